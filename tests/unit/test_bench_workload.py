"""Workloads are the same every time, sound, and of the sizes asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from airserve import contract
from airserve.bench.fuzz import change_call, encode_any, spoil
from airserve.bench.synthetic import write_all
from airserve.bench.workload import WorkloadSettings, make_requests
from airserve.errors import UserError
from airserve.table.lookup import ServedTable
from airserve.triton.warmup import warmup_requests


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ServedTable:
    folder: Path = tmp_path_factory.mktemp("workload")
    write_all(folder, n_items=100, n_nodes=60, n_paths=40)
    return ServedTable.open(folder / "tables" / "serving")


def test_a_workload_repeats_exactly(table: ServedTable) -> None:
    settings = WorkloadSettings(count=5, mixed=True)
    for one, other in zip(make_requests(table, settings), make_requests(table, settings), strict=True):
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name])


def test_requests_are_sound_and_of_the_size_asked_for(table: ServedTable) -> None:
    for request in make_requests(table, WorkloadSettings(behaviours=30, candidates=20, count=5)):
        contract.validate_request(request)
        assert request[contract.BEHAVIOUR_ITEMS.name].shape == (1, 30)
        assert request[contract.CANDIDATE_ITEMS.name].shape == (1, 20)


def test_warm_up_requests_are_sound_with_and_without_items(table: ServedTable) -> None:
    for items in (table.items, table.items[:1], table.items[:0]):
        for request in warmup_requests(items):
            contract.validate_request(request)


@pytest.mark.parametrize(("name", "value"), [("behaviours", 1025), ("candidates", 0), ("count", 0)])
def test_sizes_beyond_the_contract_are_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{name}: .*got {value}"):
        WorkloadSettings(**{name: value})


def test_attacks_repeat_with_their_seed(table: ServedTable) -> None:
    call = make_requests(table, WorkloadSettings(behaviours=9, candidates=9, count=1))[0]

    def attack(seed: int) -> list[bytes]:
        rng = np.random.default_rng(seed)
        return [spoil(rng, encode_any(change_call(rng, call))) for _ in range(20)]

    assert attack(3) == attack(3)
    assert attack(3) != attack(4)
