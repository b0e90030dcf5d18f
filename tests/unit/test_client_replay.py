"""Requests made of a behaviours log: which, when, and with what history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airserve import contract
from airserve.client.replay import ReplaySettings, Traffic, spread
from airserve.errors import DataError, UserError

EVENTS: dict[str, list[Any]] = {
    "user_id": [1, 1, 1, 2, 2],
    "item_id": [10, 11, 12, 20, 21],
    "action": ["view", "click", "order", "view", "like"],
    "timestamp_s": [100, 160, 220, 130, 190],
    contract.USER_SEGMENT.name: [3, 3, 3, 0, 0],
}


def log_of(folder: Path, **changes: list[Any]) -> Path:
    path = folder / "behaviours.parquet"
    pq.write_table(pa.table({name: values for name, values in (EVENTS | changes).items() if values}), path)
    return path


def whole_log(**changes: Any) -> ReplaySettings:
    return ReplaySettings(**{"speed": 1.0, "duration_s": 1e6, "skip_share": 0.0, "candidates": 2} | changes)


def history(traffic: Traffic, number: int) -> list[int]:
    items: list[int] = traffic.tensors(number)[contract.BEHAVIOUR_ITEMS.name][0].tolist()
    return items


def test_each_event_asks_with_what_its_user_did_before(tmp_path: Path) -> None:
    traffic = Traffic(log_of(tmp_path), whole_log())
    assert traffic.due_s.tolist() == [0, 30, 60, 90, 120]
    assert [history(traffic, number) for number in range(5)] == [[], [], [10], [20], [10, 11]]
    last = traffic.tensors(4)
    assert last[contract.BEHAVIOUR_AGES_S.name].tolist() == [[120.0, 60.0]]
    assert last[contract.BEHAVIOUR_ACTIONS.name].tolist() == [[contract.ACTIONS["view"], contract.ACTIONS["click"]]]
    assert last[contract.USER_SEGMENT.name].tolist() == [[3]]


def test_every_request_of_a_log_keeps_the_contract(tmp_path: Path) -> None:
    traffic = Traffic(log_of(tmp_path), whole_log())
    for number in range(len(traffic)):
        contract.validate_request(traffic.tensors(number))


def test_speed_length_and_duration_bound_the_replay(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    assert Traffic(log, whole_log(speed=60.0)).due_s.tolist() == [0, 0.5, 1.0, 1.5, 2.0]
    assert len(Traffic(log, whole_log(duration_s=65.0))) == 3
    assert len(Traffic(log, whole_log(max_requests=2))) == 2
    assert len(Traffic(log, whole_log(skip_share=1.0))) == 1
    assert [history(Traffic(log, whole_log(history=1)), 4)] == [[11]]


def test_candidates_are_different_rankable_items(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    items = {"item_id": list(range(50)), "is_candidate": [at >= 40 for at in range(50)]}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    for number in range(5):
        drawn = Traffic(log, whole_log(candidates=5)).tensors(number)[contract.CANDIDATE_ITEMS.name][0]
        assert len(set(drawn.tolist())) == 5
        assert (drawn >= 40).all()


def test_a_log_alone_ranks_its_own_items(tmp_path: Path) -> None:
    drawn = Traffic(log_of(tmp_path), whole_log(candidates=99)).tensors(0)[contract.CANDIDATE_ITEMS.name]
    assert sorted(drawn[0].tolist()) == EVENTS["item_id"]


def test_a_log_in_any_order_gives_the_same_requests(tmp_path: Path) -> None:
    in_order = Traffic(log_of(tmp_path), whole_log())
    shuffled = Traffic(log_of(tmp_path, **{name: values[::-1] for name, values in EVENTS.items()}), whole_log())
    for number in range(5):
        for name, array in in_order.tensors(number).items():
            np.testing.assert_array_equal(array, shuffled.tensors(number)[name])


def test_events_of_one_second_share_it_evenly() -> None:
    assert spread(np.array([5, 5, 6, 6, 6, 6, 9])).tolist() == [0, 0.5, 1, 1.25, 1.5, 1.75, 4]


def test_a_log_without_segments_has_segment_zero(tmp_path: Path) -> None:
    traffic = Traffic(log_of(tmp_path, **{contract.USER_SEGMENT.name: []}), whole_log())
    assert traffic.tensors(4)[contract.USER_SEGMENT.name].tolist() == [[0]]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"action": ["view", "buy", "view", "view", "view"]}, "buy"),
        ({"timestamp_s": []}, "timestamp_s"),
        ({"item_id": ["a", "b", "c", "d", "e"]}, "item_id"),
        ({"item_id": [1, 2, None, 4, 5]}, "item_id"),
    ],
)
def test_a_log_of_another_form_is_refused_by_column(tmp_path: Path, changes: dict[str, list[Any]], named: str) -> None:
    with pytest.raises(DataError, match=named):
        Traffic(log_of(tmp_path, **changes), whole_log())


def test_a_log_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Traffic(tmp_path / "behaviours.parquet", whole_log())


@pytest.mark.parametrize(
    "wrong", [{"speed": 0.0}, {"max_requests": 0}, {"duration_s": 0.0}, {"skip_share": 2.0}, {"candidates": 1025}]
)
def test_impossible_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        ReplaySettings(**wrong)
