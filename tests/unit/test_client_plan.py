"""How requests are divided into calls, and answers put together."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve import contract
from airserve.client import Behaviour, Chain, RankRequest, RankResult
from airserve.client.plan import Part, merge_answers, plan_calls, split_request

SIZES = st.lists(
    st.tuples(st.integers(1, 3 * contract.MAX_CANDIDATES), st.integers(0, contract.MAX_BEHAVIOURS + 50)), max_size=50
)


def asking(candidates: int, behaviours: int = 0) -> RankRequest:
    history = [Behaviour(item=at, action="view", age_s=1.0) for at in range(behaviours)]
    return RankRequest(behaviours=history, candidates=range(candidates))


def answer(part: Part[int], version: int = 1, *, told: bool = True) -> RankResult[int]:
    """Scores are item ids; the only evidence is the last behaviour that was sent; every third item is unknown."""
    chain = Chain(nodes=(1,), weight=1.0, evidence=(len(part.request.behaviours) - 1,))
    count = len(part.request.candidates)
    unknown = tuple(item for item in part.request.candidates if item % 3 == 0)
    return RankResult(
        items=tuple(part.request.candidates),
        scores=np.array(part.request.candidates, dtype=np.float32),
        coverage=0.5,
        unknown_count=len(unknown),
        table_version=version,
        chains=((chain,),) * count,
        unknown=unknown if told else None,
    )


@given(SIZES)
@settings(max_examples=60, deadline=None)
def test_any_requests_become_calls_within_the_bounds_and_come_back_whole(sizes: list[tuple[int, int]]) -> None:
    requests = [asking(candidates, behaviours) for candidates, behaviours in sizes]
    calls = plan_calls(requests)
    for call in calls:
        assert 1 <= len(call) <= contract.MAX_BATCH
        assert all(1 <= len(part.request.candidates) <= contract.MAX_CANDIDATES for part in call)
        assert all(len(part.request.behaviours) <= contract.MAX_BEHAVIOURS for part in call)
    results = merge_answers(requests, calls, [[answer(part) for part in call] for call in calls])
    assert len(results) == len(requests)
    for request, result in zip(requests, results, strict=True):
        assert result.items == tuple(request.candidates)
        assert result.scores.tolist() == list(request.candidates)
        assert result.unknown == tuple(item for item in request.candidates if item % 3 == 0)
        assert result.unknown_count == len(result.unknown)
        last = len(request.behaviours) - 1
        assert all(chain.evidence == (last,) for (chain,) in result.chains)


def test_no_request_is_no_call() -> None:
    assert plan_calls([]) == []
    assert merge_answers([], [], []) == []


def test_a_request_within_the_bounds_is_sent_as_it_is() -> None:
    request = asking(contract.MAX_CANDIDATES, contract.MAX_BEHAVIOURS)
    (part,) = split_request(request, 0)
    assert part.request is request


def test_the_parts_of_a_long_list_are_of_about_equal_length() -> None:
    sizes = [len(part.request.candidates) for part in split_request(asking(contract.MAX_CANDIDATES + 1), 0)]
    assert sizes == [512, 513]


def test_a_request_without_candidates_stays_one_part_for_the_contract_to_refuse() -> None:
    assert [len(part.request.candidates) for part in split_request(asking(0), 0)] == [0]


def test_the_parts_of_one_request_travel_in_one_call_where_they_fit() -> None:
    requests = [asking(1)] * (contract.MAX_BATCH - 1) + [asking(2 * contract.MAX_CANDIDATES)]
    assert [len(call) for call in plan_calls(requests)] == [contract.MAX_BATCH - 1, 2]


def test_a_request_larger_than_a_call_is_spread_over_several() -> None:
    requests = [asking(contract.MAX_BATCH * contract.MAX_CANDIDATES + 1)]
    assert [len(call) for call in plan_calls(requests)] == [contract.MAX_BATCH, 1]


def test_the_behaviours_that_are_left_out_are_the_oldest() -> None:
    (part,) = split_request(asking(1, contract.MAX_BEHAVIOURS + 3), 0)
    assert part.dropped == 3
    assert [part.request.behaviours[0].item, part.request.behaviours[-1].item] == [3, contract.MAX_BEHAVIOURS + 2]


def test_unknown_candidates_that_were_not_asked_for_stay_untold_over_parts() -> None:
    requests = [asking(contract.MAX_CANDIDATES + 1)]
    calls = plan_calls(requests)
    (result,) = merge_answers(requests, calls, [[answer(part, told=False) for part in call] for call in calls])
    assert result.unknown is None
    assert result.unknown_count == len(range(0, contract.MAX_CANDIDATES + 1, 3))


def test_parts_answered_by_two_tables_report_the_older_one_and_warn(caplog: pytest.LogCaptureFixture) -> None:
    requests = [asking(contract.MAX_CANDIDATES + 1)]
    calls = plan_calls(requests)
    answers = [[answer(part, version=9 - at) for at, part in enumerate(call)] for call in calls]
    with caplog.at_level(logging.WARNING):
        (result,) = merge_answers(requests, calls, answers)
    assert result.table_version == 8
    assert "table versions [8, 9]" in caplog.text
