"""Encoded calls: what the server reads is what was asked, whatever was encoded before."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from airserve import contract
from airserve.client.raw import encode_infer
from airserve.client.wire import EXPLAINED_OUTPUTS, PLAIN_OUTPUTS

SIZES = {"B": st.integers(1, 3), "L": st.integers(0, 5), "C": st.integers(1, 5)}


@given(
    calls=st.lists(
        st.tuples(
            st.fixed_dictionaries(SIZES), st.sampled_from([PLAIN_OUTPUTS, EXPLAINED_OUTPUTS]), st.integers(0, 2**40)
        ),
        min_size=1,
        max_size=6,
    )
)
def test_every_call_is_read_with_its_own_tensors_outputs_and_timeout(calls):
    rng = np.random.default_rng(0)
    for sizes, outputs, timeout_us in calls:
        tensors = {
            spec.name: rng.integers(0, 100, [sizes.get(axis, 1) for axis in spec.axes]).astype(spec.dtype)
            for spec in contract.REQUEST
        }
        read = service_pb2.ModelInferRequest.FromString(encode_infer(tensors, outputs, timeout_us=timeout_us))
        assert read.model_name == contract.ENSEMBLE_MODEL
        assert [each.name for each in read.outputs] == list(outputs)
        assert {name: each.int64_param for name, each in read.parameters.items()} == (
            {"timeout": timeout_us} if timeout_us else {}
        )
        assert [each.name for each in read.inputs] == [spec.name for spec in contract.REQUEST]
        for spec, each, raw in zip(contract.REQUEST, read.inputs, read.raw_input_contents, strict=True):
            assert each.datatype == spec.triton_dtype
            received = np.frombuffer(raw, dtype=spec.dtype).reshape(tuple(each.shape))
            np.testing.assert_array_equal(received, tensors[spec.name])
