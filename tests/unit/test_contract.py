"""What a ranking request may hold, and what it is refused for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from airserve import contract
from airserve.contract import TensorSpec, validate_request
from airserve.errors import InvalidRequestError, UserError

Tensors = dict[str, npt.NDArray[Any]]

ITEMS = contract.BEHAVIOUR_ITEMS.name
ACTIONS = contract.BEHAVIOUR_ACTIONS.name
AGES_S = contract.BEHAVIOUR_AGES_S.name
SEGMENT = contract.USER_SEGMENT.name
CANDIDATES = contract.CANDIDATE_ITEMS.name


def request_of(batch: int = 2, behaviours: int = 3, candidates: int = 4) -> Tensors:
    return {
        ITEMS: np.arange(batch * behaviours, dtype=np.int64).reshape(batch, behaviours),
        ACTIONS: np.ones((batch, behaviours), dtype=np.int32),
        AGES_S: np.full((batch, behaviours), 60.0, dtype=np.float32),
        SEGMENT: np.zeros((batch, 1), dtype=np.int32),
        CANDIDATES: np.arange(batch * candidates, dtype=np.int64).reshape(batch, candidates),
    }


def refusal(tensors: Tensors) -> InvalidRequestError:
    """The error of a request that must be refused; its message names subject, expected, got and remedy."""
    with pytest.raises(InvalidRequestError) as caught:
        validate_request(tensors)
    error = caught.value
    for part in (error.subject, error.expected, error.got, error.remedy):
        assert part
        assert part in str(error)
    return error


def with_value(name: str, value: object) -> Tensors:
    """A valid request with one value of one tensor replaced."""
    tensors = request_of()
    tensors[name][1, -1] = value
    return tensors


def test_a_plain_request_is_accepted() -> None:
    validate_request(request_of())


def test_a_refusal_is_a_user_error() -> None:
    assert issubclass(InvalidRequestError, UserError)


@pytest.mark.parametrize("spec", contract.REQUEST, ids=lambda spec: spec.name)
def test_a_missing_tensor_is_refused(spec: TensorSpec) -> None:
    tensors = request_of()
    del tensors[spec.name]
    error = refusal(tensors)
    assert error.subject == spec.name
    assert spec.dtype.__name__ in error.expected
    assert error.got == "no such tensor"


@pytest.mark.parametrize("spec", contract.REQUEST, ids=lambda spec: spec.name)
def test_a_tensor_of_another_dtype_is_refused(spec: TensorSpec) -> None:
    tensors = request_of()
    tensors[spec.name] = tensors[spec.name].astype(np.float64)
    error = refusal(tensors)
    assert error.subject == spec.name
    assert spec.dtype.__name__ in error.expected
    assert "float64" in error.got


def test_integers_of_the_wrong_width_are_refused() -> None:
    tensors = request_of()
    tensors[CANDIDATES] = tensors[CANDIDATES].astype(np.int32)
    error = refusal(tensors)
    assert (error.subject, error.got) == (CANDIDATES, "int32 [2, 4]")


@pytest.mark.parametrize("spec", contract.REQUEST, ids=lambda spec: spec.name)
def test_a_tensor_without_a_batch_axis_is_refused(spec: TensorSpec) -> None:
    tensors = request_of()
    tensors[spec.name] = tensors[spec.name][0]
    error = refusal(tensors)
    assert error.subject == spec.name
    assert ",".join(spec.axes) in error.expected
    assert str(list(tensors[spec.name].shape)) in error.got


@pytest.mark.parametrize("spec", contract.REQUEST, ids=lambda spec: spec.name)
def test_a_tensor_with_an_axis_too_many_is_refused(spec: TensorSpec) -> None:
    tensors = request_of()
    tensors[spec.name] = tensors[spec.name][..., None]
    assert refusal(tensors).subject == spec.name


@pytest.mark.parametrize("name", [ACTIONS, AGES_S])
@pytest.mark.parametrize("length", [0, 2, 4])
def test_behaviours_of_different_lengths_are_refused(name: str, length: int) -> None:
    tensors = request_of()
    tensors[name] = np.ones((2, length), dtype=tensors[name].dtype)
    error = refusal(tensors)
    assert error.subject == name
    assert "[2, 3]" in error.expected
    assert f"[2, {length}]" in error.got


@pytest.mark.parametrize("name", [ITEMS, ACTIONS, AGES_S, SEGMENT])
def test_tensors_of_different_batches_are_refused(name: str) -> None:
    tensors = request_of()
    tensors[name] = np.concatenate([tensors[name], tensors[name][:1]])
    error = refusal(tensors)
    assert error.subject == name
    assert "[2, " in error.expected
    assert "[3, " in error.got


def test_two_segments_for_one_request_are_refused() -> None:
    tensors = request_of()
    tensors[SEGMENT] = np.zeros((2, 2), dtype=np.int32)
    error = refusal(tensors)
    assert (error.subject, error.got) == (SEGMENT, "int32 [2, 2]")


def test_one_behaviour_over_the_bound_is_refused() -> None:
    error = refusal(request_of(batch=1, behaviours=contract.MAX_BEHAVIOURS + 1))
    assert error.subject == ITEMS
    assert str(contract.MAX_BEHAVIOURS) in error.expected
    assert error.got == str(contract.MAX_BEHAVIOURS + 1)


def test_one_candidate_over_the_bound_is_refused() -> None:
    error = refusal(request_of(batch=1, candidates=contract.MAX_CANDIDATES + 1))
    assert error.subject == CANDIDATES
    assert str(contract.MAX_CANDIDATES) in error.expected
    assert error.got == str(contract.MAX_CANDIDATES + 1)


def test_a_request_without_candidates_is_refused() -> None:
    error = refusal(request_of(candidates=0))
    assert (error.subject, error.got) == (CANDIDATES, "0")


def test_a_request_whose_candidates_are_all_padding_is_refused() -> None:
    tensors = request_of()
    tensors[CANDIDATES][1] = contract.PAD_ITEM
    error = refusal(tensors)
    assert (error.subject, error.got) == (CANDIDATES, "padding only")


@pytest.mark.parametrize("batch", [0, contract.MAX_BATCH + 1])
def test_a_batch_outside_the_bounds_is_refused(batch: int) -> None:
    error = refusal(request_of(batch=batch))
    assert error.subject == CANDIDATES
    assert str(contract.MAX_BATCH) in error.expected
    assert error.got == str(batch)


@pytest.mark.parametrize("age_s", [np.nan, np.inf, -np.inf, -1.0])
def test_an_age_that_is_negative_or_not_finite_is_refused(age_s: float) -> None:
    error = refusal(with_value(AGES_S, age_s))
    assert error.subject == AGES_S
    assert "finite" in error.expected
    assert error.got == str(np.float32(age_s))


@pytest.mark.parametrize("action", [-1, contract.N_ACTIONS, 2**31 - 1, -(2**31)])
def test_an_unknown_action_is_refused(action: int) -> None:
    error = refusal(with_value(ACTIONS, action))
    assert error.subject == ACTIONS
    assert error.got == str(action)
    for name in contract.ACTIONS:
        assert name in error.expected


def test_a_real_behaviour_without_an_action_is_refused() -> None:
    assert refusal(with_value(ACTIONS, contract.PAD_ACTION)).subject == ACTIONS


def test_a_padded_behaviour_with_an_action_is_refused() -> None:
    assert refusal(with_value(ITEMS, contract.PAD_ITEM)).subject == ACTIONS


def test_a_negative_segment_is_refused() -> None:
    error = refusal(with_value(SEGMENT, -3))
    assert (error.subject, error.got) == (SEGMENT, "-3")


@pytest.mark.parametrize("behaviours", [0, 1, contract.MAX_BEHAVIOURS])
@pytest.mark.parametrize("candidates", [1, contract.MAX_CANDIDATES])
@pytest.mark.parametrize("batch", [1, contract.MAX_BATCH])
def test_requests_at_the_bounds_are_accepted(batch: int, behaviours: int, candidates: int) -> None:
    validate_request(request_of(batch=batch, behaviours=behaviours, candidates=candidates))


@pytest.mark.parametrize("item", [contract.PAD_ITEM + 1, -1, 0, 2**63 - 1])
def test_every_other_64_bit_number_is_an_item_id(item: int) -> None:
    validate_request(with_value(ITEMS, item))
    validate_request(with_value(CANDIDATES, item))


@pytest.mark.parametrize("age_s", [0.0, -0.0, np.finfo(np.float32).tiny, np.finfo(np.float32).max])
def test_every_finite_age_from_zero_is_accepted(age_s: float) -> None:
    validate_request(with_value(AGES_S, age_s))


@pytest.mark.parametrize("action", contract.ACTIONS.values(), ids=contract.ACTIONS)
def test_every_named_action_is_accepted(action: int) -> None:
    validate_request(with_value(ACTIONS, action))


def test_the_largest_segment_is_accepted() -> None:
    validate_request(with_value(SEGMENT, 2**31 - 1))


def test_padded_behaviours_and_candidates_are_accepted() -> None:
    tensors = with_value(ITEMS, contract.PAD_ITEM)
    tensors[ACTIONS][1, -1] = contract.PAD_ACTION
    tensors[AGES_S][1, -1] = 0.0
    tensors[CANDIDATES][0, 1:] = contract.PAD_ITEM
    validate_request(tensors)


def test_a_history_of_padding_only_is_accepted() -> None:
    tensors = request_of()
    tensors[ITEMS][:] = contract.PAD_ITEM
    tensors[ACTIONS][:] = contract.PAD_ACTION
    validate_request(tensors)


def test_tensors_beside_the_request_are_no_reason_to_refuse() -> None:
    validate_request({**request_of(), "not part of the contract": np.zeros(1)})


def test_a_read_only_request_is_accepted() -> None:
    tensors = request_of()
    for tensor in tensors.values():
        tensor.setflags(write=False)
    validate_request(tensors)


ALL_SPECS = {
    spec.name: spec
    for spec in (*contract.REQUEST, *contract.RESPONSE, *contract.LOOKUP_OUTPUTS, *contract.RANKER_INPUTS)
}


@pytest.mark.parametrize("spec", ALL_SPECS.values(), ids=ALL_SPECS)
def test_every_tensor_has_a_triton_dtype_and_dims_without_the_batch(spec: TensorSpec) -> None:
    assert spec.triton_dtype in {"INT64", "INT32", "FP32", "FP16", "BOOL"}
    assert spec.axes[0] == "B"
    assert len(spec.dims) == len(spec.axes) - 1
    assert all(size == -1 or size > 0 for size in spec.dims)


def test_what_the_ranker_needs_comes_from_the_lookup_alone() -> None:
    assert set(contract.RANKER_INPUTS) <= set(contract.LOOKUP_OUTPUTS)
    assert not set(contract.RANKER_INPUTS) & set(contract.REQUEST)
    assert set(contract.RESPONSE) <= {*contract.RANKER_OUTPUTS, *contract.LOOKUP_OUTPUTS}


def test_every_axis_that_varies_has_a_profile_within_the_bounds() -> None:
    varying = {
        axis
        for spec in contract.RANKER_INPUTS
        for axis, size in zip(spec.axes[1:], spec.dims_for(contract.USUAL_SIZES), strict=True)
        if size == -1
    }
    assert varying | {"B"} == set(contract.PROFILE)
    assert all(1 <= low <= usual <= high for low, usual, high in contract.PROFILE.values())
    assert [contract.PROFILE[axis][2] for axis in "BCR"] == [
        contract.MAX_BATCH,
        contract.MAX_CANDIDATES,
        contract.MAX_CHAINS,
    ]


def test_no_input_of_the_ranker_is_an_id_or_a_row_number() -> None:
    """What an engine would have to know a catalogue for."""
    whole = {spec.name for spec in contract.RANKER_INPUTS if np.issubdtype(spec.dtype, np.integer)}
    assert whole == {contract.WINDOW_CONTEXT.name}


def test_the_numbers_of_actions_and_reserved_values_do_not_collide() -> None:
    assert sorted(contract.ACTIONS.values()) == list(range(1, contract.N_ACTIONS))
    assert contract.PAD_ACTION not in contract.ACTIONS.values()
    assert {number: contract.ACTIONS[name] for number, name in contract.ACTION_NAMES.items()} == {
        number: number for number in contract.ACTION_NAMES
    }
    assert len({contract.PAD_ROW, contract.UNKNOWN_ROW, contract.FIRST_ITEM_ROW}) == 3
