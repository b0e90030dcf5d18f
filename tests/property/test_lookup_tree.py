"""The fast lookup against dictionaries and loops, on random tables and requests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve import contract
from airserve.table import tree
from airserve.table.format import NO_PATH, TableArrays, TableManifest, check_values, kind_keys
from airserve.table.lookup import IntentTable, merge_lookups, ranker_inputs, trim
from airserve.table.reference import ReferenceTable, lookup_one

INT64 = np.iinfo(np.int64)
EXTREME_IDS = (int(INT64.min) + 1, int(INT64.max), -1, 0)
N_NODES = 40
Behaviours = list[tuple[int, int, float]]


def make_table(rng: np.random.Generator, *, n_items: int, n_paths: int, n_segments: int, n_kinds: int) -> IntentTable:
    """A random table that keeps the format's rules."""
    ids = {*EXTREME_IDS[: n_items // 2], *rng.integers(-(10**12), 10**12, n_items).tolist()}
    items = np.array(sorted(ids)[:n_items], dtype=np.int64)
    paths: set[tuple[int, ...]] = set()
    while len(paths) < n_paths:
        depth = int(rng.integers(1, contract.MAX_DEPTH + 1))
        path = tuple(rng.choice(np.arange(1, N_NODES), depth, replace=False).tolist())
        paths.add(path)
    path_table = np.zeros((n_paths, contract.MAX_DEPTH), dtype=np.int32)
    for number, path in enumerate(sorted(paths)):
        path_table[number, : len(path)] = path

    def path_numbers(n_rows: int, least: int) -> np.ndarray[Any, Any]:
        table = np.full((n_rows, contract.MAX_PATHS), NO_PATH, dtype=np.int32)
        for row in table:
            count = int(rng.integers(least, min(contract.MAX_PATHS, n_paths) + 1))
            row[:count] = rng.choice(n_paths, count, replace=False)
        return table

    rows = rng.integers(contract.FIRST_ITEM_ROW, len(items) + contract.FIRST_ITEM_ROW, n_kinds)
    actions, segments = rng.integers(1, contract.N_ACTIONS, n_kinds), rng.integers(0, n_segments, n_kinds)
    kinds = np.unique(kind_keys(rows, actions, segments, n_segments)).astype(np.uint64)
    item_paths = path_numbers(len(items) + contract.FIRST_ITEM_ROW, 0)
    item_paths[: contract.FIRST_ITEM_ROW] = NO_PATH
    node_vectors = np.ones((N_NODES, 2), dtype=np.float32)
    node_vectors[0] = 0
    item_vectors = np.ones((len(item_paths), 2), dtype=np.float32)
    item_vectors[: contract.FIRST_ITEM_ROW] = 0
    arrays = TableArrays(
        items=items,
        kinds=kinds,
        kind_paths=path_numbers(len(kinds), 1),
        item_paths=item_paths,
        paths=path_table,
        node_vectors=node_vectors,
        item_vectors=item_vectors,
    )
    check_values(arrays, n_segments, "random table")
    manifest = TableManifest(
        contract_version=contract.CONTRACT_VERSION,
        table_version=int(rng.integers(1 << 52)),
        n_segments=n_segments,
        n_items=len(items),
        n_kinds=len(kinds),
        n_paths=n_paths,
        n_nodes=N_NODES,
        vector_width=2,
        catalogue_sha256="",
        vocabulary_sha256="",
        files={},
    )
    return IntentTable(manifest, arrays)


def make_call(histories: list[Behaviours], segments: list[int], candidates: list[list[int]]) -> dict[str, Any]:
    """One call of several requests, short rows padded at the end, and checked against the contract."""
    length, n_candidates = max(map(len, histories)), max(map(len, candidates))
    items = np.full((len(histories), length), contract.PAD_ITEM, dtype=np.int64)
    actions = np.full(items.shape, contract.PAD_ACTION, dtype=np.int32)
    ages_s = np.zeros(items.shape, dtype=np.float32)
    candidate_items = np.full((len(histories), n_candidates), contract.PAD_ITEM, dtype=np.int64)
    for row, (history, wanted) in enumerate(zip(histories, candidates, strict=True)):
        for place, behaviour in enumerate(history):
            items[row, place], actions[row, place], ages_s[row, place] = behaviour
        candidate_items[row, : len(wanted)] = wanted
    call = {
        contract.BEHAVIOUR_ITEMS.name: items,
        contract.BEHAVIOUR_ACTIONS.name: actions,
        contract.BEHAVIOUR_AGES_S.name: ages_s,
        contract.USER_SEGMENT.name: np.array(segments, dtype=np.int32)[:, None],
        contract.CANDIDATE_ITEMS.name: candidate_items,
    }
    contract.validate_request(call)
    return call


def random_history(rng: np.random.Generator, table: IntentTable, length: int) -> Behaviours:
    """Behaviours on known and unknown items, with equal ages among them."""
    items = rng.choice(np.append(table.items, [7_777_777_777_777, 8]), length)
    ages_s = rng.choice([0.0, 5.0, 60.0, 1e9], length)
    return [
        (int(item), int(rng.integers(1, contract.N_ACTIONS)), float(age_s))
        for item, age_s in zip(items, ages_s, strict=True)
    ]


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(got) == set(expected) == {spec.name for spec in contract.LOOKUP_OUTPUTS}
    for spec in contract.LOOKUP_OUTPUTS:
        assert got[spec.name].dtype == spec.dtype
        np.testing.assert_array_equal(got[spec.name], expected[spec.name], err_msg=spec.name)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_items=st.integers(1, 12),
    n_paths=st.integers(1, 60),
    n_segments=st.integers(1, 3),
    n_kinds=st.integers(0, 60),
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    n_candidates=st.integers(1, 6),
    dense=st.booleans(),
)
def test_the_fast_lookup_equals_dictionaries_and_loops(
    seed: int,
    n_items: int,
    n_paths: int,
    n_segments: int,
    n_kinds: int,
    lengths: list[int],
    n_candidates: int,
    dense: bool,
) -> None:
    rng = np.random.default_rng(seed)
    table = make_table(rng, n_items=n_items, n_paths=n_paths, n_segments=n_segments, n_kinds=n_kinds)
    histories = [random_history(rng, table, length) for length in lengths]
    segments = rng.integers(0, n_segments + 2, len(lengths)).tolist()
    wanted = [rng.choice(np.append(table.items, 8), n_candidates).tolist() for _ in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "DENSE_BOUND", tree.DENSE_BOUND if dense else 0)
        got = table.lookup(make_call(histories, segments, wanted))
    reference = ReferenceTable.of(table)
    requests = zip(histories, segments, wanted, strict=True)
    assert_same(got, merge_lookups([lookup_one(reference, *request) for request in requests]))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(150, 400))
def test_more_chains_than_the_bound_keep_the_most_supported_then_the_youngest(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    table = make_table(rng, n_items=300, n_paths=700, n_segments=2, n_kinds=200)
    history = random_history(rng, table, length)
    got = table.lookup(make_call([history], [1], [[5]]))
    assert_same(got, lookup_one(ReferenceTable.of(table), history, 1, [5]))
    assert got[contract.CHAIN_SLOTS.name].shape[1] <= contract.MAX_CHAINS


def test_the_bound_on_chains_is_reached_exactly() -> None:
    rng = np.random.default_rng(0)
    table = make_table(rng, n_items=300, n_paths=700, n_segments=1, n_kinds=0)
    history = [(int(item), 1, float(age_s)) for age_s, item in enumerate(table.items)]
    got = table.lookup(make_call([history], [0], [[5]]))
    assert got[contract.CHAIN_SLOTS.name].shape[1] == contract.MAX_CHAINS
    assert got[contract.BEHAVIOUR_CHAINS.name].max() == contract.MAX_CHAINS - 1


def test_an_empty_history_becomes_one_padded_row_with_no_coverage() -> None:
    table = make_table(np.random.default_rng(1), n_items=3, n_paths=5, n_segments=1, n_kinds=4)
    call = make_call([[]], [0], [[int(table.items[0]), 8]])
    got = table.lookup(call)
    assert got[contract.BEHAVIOUR_ROWS.name].tolist() == [[contract.PAD_ROW]]
    assert (got[contract.BEHAVIOUR_CHAINS.name] == contract.PAD_CHAIN).all()
    assert got[contract.TREE_NODES.name].tolist() == [[contract.PAD_NODE]]
    assert got[contract.CHAIN_SLOTS.name].tolist() == [[[contract.PAD_SLOT] * contract.MAX_DEPTH]]
    assert got[contract.CANDIDATE_ROWS.name].tolist() == [[contract.FIRST_ITEM_ROW, contract.UNKNOWN_ROW]]
    assert got[contract.COVERAGE.name].tolist() == [[0.0]]
    inputs = ranker_inputs(call, got)
    assert list(inputs) == [spec.name for spec in contract.RANKER_INPUTS]
    assert {inputs[spec.name].shape[1] for spec in contract.RANKER_INPUTS if spec.axes[1] == "L"} == {1}


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(0, 9), min_size=2, max_size=4))
def test_merging_requests_equals_asking_them_together_and_trimming_takes_the_padding_off(
    seed: int, lengths: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    table = make_table(rng, n_items=8, n_paths=20, n_segments=2, n_kinds=20)
    histories = [random_history(rng, table, length) for length in lengths]
    wanted = [rng.choice(table.items, int(rng.integers(1, 5))).tolist() for _ in lengths]
    segments = [0] * len(lengths)
    single = [
        table.lookup(make_call([history], [0], [candidates]))
        for history, candidates in zip(histories, wanted, strict=True)
    ]
    merged = merge_lookups(single)
    assert_same(merged, table.lookup(make_call(histories, segments, wanted)))
    for place, alone in enumerate(single):
        assert_same(trim({name: array[place : place + 1] for name, array in merged.items()}), alone)


def test_merging_whole_calls_pads_the_request_tensors_as_the_contract_says() -> None:
    table = make_table(np.random.default_rng(2), n_items=3, n_paths=5, n_segments=1, n_kinds=4)
    item = int(table.items[0])
    calls = [make_call([[(item, 1, 3.0)]], [0], [[item]]), make_call([[(item, 2, 3.0)] * 3], [0], [[item, 8]])]
    merged = merge_lookups(calls)
    contract.validate_request(merged)
    assert merged[contract.BEHAVIOUR_ITEMS.name].tolist()[0] == [item, contract.PAD_ITEM, contract.PAD_ITEM]
    assert merged[contract.CANDIDATE_ITEMS.name].tolist()[0] == [item, contract.PAD_ITEM]
