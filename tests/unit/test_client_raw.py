"""Encoded calls: each side reads what the other wrote, whatever came before."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from airserve import contract
from airserve.client.raw import decode_infer, encode_infer
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


def answer_of(batch, candidates, fill, *, identifier="", version="1"):
    response = service_pb2.ModelInferResponse(model_name=contract.ENSEMBLE_MODEL, model_version=version, id=identifier)
    for name in PLAIN_OUTPUTS:
        spec = next(each for each in contract.RESPONSE if each.name == name)
        array = np.full([batch if axis == "B" else candidates if axis == "C" else 1 for axis in spec.axes], fill)
        response.outputs.add(name=name, datatype=spec.triton_dtype, shape=array.shape)
        response.raw_output_contents.append(array.astype(spec.dtype).tobytes())
    return response.SerializeToString()


@given(
    answers=st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(0, 300), st.sampled_from(["", "a", "b"])),
        min_size=1,
        max_size=8,
    )
)
def test_every_answer_is_read_with_its_own_shapes_and_values(answers):
    for batch, candidates, fill, identifier in answers:
        read = decode_infer(answer_of(batch, candidates, fill, identifier=identifier))
        assert tuple(read) == PLAIN_OUTPUTS
        for name, array in read.items():
            spec = next(each for each in contract.RESPONSE if each.name == name)
            assert array.dtype == spec.dtype
            assert array.shape == tuple({"B": batch, "C": candidates}.get(axis, 1) for axis in spec.axes)
            assert (array == fill).all()


def test_answers_of_one_length_and_other_shapes_are_not_taken_for_one_another():
    wide, tall = answer_of(1, 2, 7), answer_of(1, 2, 7).replace(b"\x01\x02", b"\x02\x01")
    assert len(wide) == len(tall)
    assert decode_infer(wide)[contract.SCORES.name].shape == (1, 2)
    assert decode_infer(tall)[contract.SCORES.name].shape == (2, 1)


@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 255))
def test_what_is_no_answer_is_refused_or_read_as_one(noise, place, byte):
    changed = bytearray(answer_of(1, 3, 5))
    changed[place % len(changed)] = byte
    for message in (noise, bytes(changed), bytes(changed[:place])):
        with contextlib.suppress(InferenceServerException):
            decode_infer(message)


def test_a_tensor_whose_bytes_do_not_fill_its_shape_is_refused():
    response = service_pb2.ModelInferResponse.FromString(answer_of(1, 3, 5))
    response.raw_output_contents[0] = response.raw_output_contents[0][:-4]
    with pytest.raises(InferenceServerException, match=contract.SCORES.name):
        decode_infer(response.SerializeToString())
