"""Any batch of valid requests becomes valid tensors, and a response is cut back to each request."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve import contract
from airserve.client import Behaviour, RankRequest, to_tensors
from airserve.client.result import from_tensors

ITEM_IDS = st.integers(min_value=contract.PAD_ITEM + 1, max_value=2**63 - 1)
AGES_S = st.floats(min_value=0.0, width=32, allow_nan=False, allow_infinity=False)
BEHAVIOURS = st.builds(Behaviour, item=ITEM_IDS, action=st.sampled_from(sorted(contract.ACTIONS)), age_s=AGES_S)
REQUESTS = st.builds(
    RankRequest,
    behaviours=st.lists(BEHAVIOURS, max_size=12),
    candidates=st.lists(ITEM_IDS, min_size=1, max_size=12),
    segment=st.integers(min_value=0, max_value=2**31 - 1),
)
BATCHES = st.lists(REQUESTS, min_size=1, max_size=6)


@given(BATCHES)
def test_any_batch_of_valid_requests_becomes_valid_tensors(requests: list[RankRequest]) -> None:
    tensors = to_tensors(requests)
    contract.validate_request(tensors)
    for spec in contract.REQUEST:
        assert tensors[spec.name].dtype == spec.dtype
        assert tensors[spec.name].shape[0] == len(requests)
        assert tensors[spec.name].ndim == len(spec.axes)


@given(BATCHES)
def test_tensors_hold_each_request_in_full_and_padding_behind_it(requests: list[RankRequest]) -> None:
    tensors = to_tensors(requests)
    items, actions, ages_s, segments, candidates = (tensors[spec.name] for spec in contract.REQUEST)
    for at, request in enumerate(requests):
        length, count = len(request.behaviours), len(request.candidates)
        assert items[at, :length].tolist() == [behaviour.item for behaviour in request.behaviours]
        assert actions[at, :length].tolist() == [behaviour.action_number for behaviour in request.behaviours]
        assert ages_s[at, :length].tolist() == [behaviour.age_s for behaviour in request.behaviours]
        assert segments[at].tolist() == [request.segment]
        assert candidates[at, :count].tolist() == list(request.candidates)
        assert (items[at, length:] == contract.PAD_ITEM).all()
        assert (actions[at, length:] == contract.PAD_ACTION).all()
        assert (candidates[at, count:] == contract.PAD_ITEM).all()


@given(REQUESTS)
def test_a_request_alone_has_no_padding(request: RankRequest) -> None:
    tensors = to_tensors([request])
    assert not (tensors[contract.BEHAVIOUR_ITEMS.name] == contract.PAD_ITEM).any()
    assert not (tensors[contract.CANDIDATE_ITEMS.name] == contract.PAD_ITEM).any()


def padded_response(requests: list[RankRequest], seed: int) -> dict[str, npt.NDArray[Any]]:
    """A random response in which a candidate's chains are packed in front, as the ranker returns it."""
    rng = np.random.default_rng(seed)
    width = max(len(request.candidates) for request in requests)
    k, d, m = contract.CHAINS_PER_CANDIDATE, contract.MAX_DEPTH, contract.MAX_EVIDENCE
    shape, chains = (len(requests), width), int(rng.integers(1, contract.MAX_CHAINS + 1))
    real = np.arange(k) < rng.integers(0, k + 1, shape)[..., None]
    of_chain = (len(requests), chains, 1)
    within = np.arange(d) < rng.integers(1, d + 1, of_chain)
    shown = np.arange(m) < rng.integers(0, m + 1, of_chain)
    unknown = rng.random(shape) < 0.3
    for row, request in zip(unknown, requests, strict=True):
        row[len(request.candidates) :] = False
    return {
        contract.SCORES.name: rng.standard_normal(shape).astype(np.float32),
        contract.CHAIN_INDEX.name: np.where(real, rng.integers(0, chains, real.shape), -1).astype(np.int32),
        contract.CHAIN_WEIGHTS.name: np.where(real, rng.random(real.shape), 0.0).astype(np.float32),
        contract.CHAIN_NODES.name: np.where(within, rng.integers(1, 99, within.shape), 0).astype(np.int32),
        contract.EVIDENCE.name: np.where(shown, rng.integers(0, 99, shown.shape), -1).astype(np.int32),
        contract.COVERAGE.name: rng.random((len(requests), 1)).astype(np.float32),
        contract.UNKNOWN_COUNT.name: unknown.sum(axis=1, keepdims=True).astype(np.int32),
        contract.UNKNOWN_MASK.name: unknown,
        contract.TABLE_VERSION.name: rng.integers(0, 2**52, (len(requests), 1)),
    }


@settings(max_examples=50)
@given(BATCHES, st.integers(min_value=0, max_value=2**32))
def test_a_response_is_cut_back_to_each_request(requests: list[RankRequest], seed: int) -> None:
    response = padded_response(requests, seed)
    results = from_tensors(requests, response, explained=True, tell_unknown=True)
    assert len(results) == len(requests)
    for at, (request, result) in enumerate(zip(requests, results, strict=True)):
        count = len(request.candidates)
        assert result.items == tuple(request.candidates)
        assert result.scores.tolist() == response[contract.SCORES.name][at, :count].tolist()
        assert result.coverage == response[contract.COVERAGE.name][at, 0]
        assert result.table_version == response[contract.TABLE_VERSION.name][at, 0]
        assert result.unknown is not None
        assert len(result.unknown) == result.unknown_count
        assert set(result.unknown) <= set(request.candidates)
        for candidate, chains in enumerate(result.chains):
            index = response[contract.CHAIN_INDEX.name][at, candidate]
            kept = index[index != contract.NO_CHAIN]
            nodes, evidence = (response[spec.name][at, kept] for spec in (contract.CHAIN_NODES, contract.EVIDENCE))
            weights = response[contract.CHAIN_WEIGHTS.name][at, candidate]
            assert [list(chain.nodes) for chain in chains] == [row[row != 0].tolist() for row in nodes]
            assert [chain.weight for chain in chains] == weights[: len(kept)].tolist()
            assert [list(chain.evidence) for chain in chains] == [row[row != -1].tolist() for row in evidence]


@given(REQUESTS, st.integers(min_value=0, max_value=20), st.integers(min_value=0, max_value=2**32))
def test_the_top_is_sorted_and_holds_only_what_was_asked_for(request: RankRequest, k: int, seed: int) -> None:
    (result,) = from_tensors([request], padded_response([request], seed), explained=False)
    top = result.top(k)
    assert len(top) == min(k, len(request.candidates))
    assert [item.score for item in top] == sorted((item.score for item in top), reverse=True)
    assert {item.item for item in top} <= set(request.candidates)
