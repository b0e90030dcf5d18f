"""The fast lookup against dictionaries and loops, on random tables and requests."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve import contract
from airserve.table import tree
from airserve.table.format import NO_PATH, ServedArrays, TableManifest, Weighing, check_values, kind_keys
from airserve.table.lookup import ServedTable, merge_lookups, pad, ranker_inputs
from airserve.table.reference import Behaviours, ReferenceTable, lookup_one

INT64 = np.iinfo(np.int64)
EXTREME_IDS = (int(INT64.min) + 1, int(INT64.max), -1, 0)
UNKNOWN_IDS = (7_777_777_777_777, 8)
N_NODES, H, X = 40, 2, 3
AGES_S = (0.0, 7_000.0, 86_400.0, 1e9)
"""Far enough from one another that no two unequal relevances are a near tie."""
TOLERANCES = {
    contract.LEVEL_WEIGHTS: 2e-5,
    contract.CANDIDATE_PRIOR: 1e-4,
    contract.COVERAGE: 1e-6,
    contract.CHAIN_BIAS: 1e-9,
}
"""Of the outputs that are computed; all others are copied, and must be the same."""


def random_paths(rng: np.random.Generator, count: int) -> np.ndarray[Any, Any]:
    paths: set[tuple[int, ...]] = set()
    while len(paths) < count:
        depth = int(rng.integers(1, contract.MAX_DEPTH + 1))
        paths.add(tuple(rng.choice(np.arange(1, N_NODES), depth, replace=False).tolist()))
    table = np.zeros((count, contract.MAX_DEPTH), dtype=np.int32)
    for number, path in enumerate(sorted(paths)):
        table[number, : len(path)] = path
    return table


def halves(rng: np.random.Generator, shape: tuple[int, ...], empty: int = 0) -> np.ndarray[Any, Any]:
    """Random fp16 numbers, the first rows zeros."""
    values = rng.uniform(-1, 1, shape).astype(np.float16)
    values[:empty] = 0
    return values


def make_table(
    rng: np.random.Generator,
    *,
    n_items: int,
    n_paths: int,
    n_segments: int = 1,
    n_kinds: int = 0,
    n_neighbours: int = 3,
    company_scale: float = 0.7,
) -> ServedTable:
    """A random table that keeps the format's rules."""
    ids = {*EXTREME_IDS[: n_items // 2], *rng.integers(-(10**12), 10**12, n_items).tolist()}
    items = np.array(sorted(ids)[:n_items], dtype=np.int64)
    n_rows = len(items) + contract.FIRST_ITEM_ROW

    def path_numbers(count: int, least: int) -> np.ndarray[Any, Any]:
        table = np.full((count, contract.MAX_PATHS), NO_PATH, dtype=np.int32)
        for row in table:
            filled = int(rng.integers(least, min(contract.MAX_PATHS, n_paths) + 1))
            row[:filled] = rng.choice(n_paths, filled, replace=False)
        return table

    rows = rng.integers(contract.FIRST_ITEM_ROW, n_rows, n_kinds)
    actions, segments = rng.integers(1, contract.N_ACTIONS, n_kinds), rng.integers(0, n_segments, n_kinds)
    kinds = np.unique(kind_keys(rows, actions, segments, n_segments)).astype(np.uint64)
    item_paths = path_numbers(n_rows, 0)
    item_paths[: contract.FIRST_ITEM_ROW] = NO_PATH
    neighbours = rng.integers(contract.FIRST_ITEM_ROW, n_rows, (n_rows, n_neighbours)).astype(np.int32)
    weights = np.abs(halves(rng, neighbours.shape))
    nothing = rng.random(neighbours.shape) < 0.3
    neighbours[nothing], weights[nothing] = 0, 0
    cold_bias = float(rng.choice([0.0, 0.5]))
    bias = (cold_bias * (rng.random(n_rows) < 0.3)).astype(np.float32)
    bias[: contract.FIRST_ITEM_ROW] = 0.0
    arrays = ServedArrays(
        items=items,
        kinds=kinds,
        kind_paths=path_numbers(len(kinds), 1),
        item_paths=item_paths,
        paths=random_paths(rng, n_paths),
        kind_likeness=halves(rng, (len(kinds), contract.MAX_PATHS)),
        item_likeness=halves(rng, (n_rows, contract.MAX_PATHS)),
        node_rows=halves(rng, (N_NODES, X), 1),
        item_tokens=halves(rng, (n_rows, H), 1),
        item_targets=halves(rng, (n_rows, X), 1),
        item_prior=halves(rng, (n_rows, 1 + n_segments), contract.FIRST_ITEM_ROW),
        item_bias=bias,
        neighbours=neighbours,
        neighbour_weights=weights,
    )
    check_values(arrays, n_segments, "random table")
    weighing = Weighing(
        actions=(0.0, *rng.uniform(0.1, 2.0, contract.N_ACTIONS - 1).tolist()),
        decay_per_day=float(rng.uniform(0.0, 0.3)),
        norms=tuple(np.cumsum(rng.uniform(0.2, 2.0, contract.MAX_DEPTH)).tolist()),
        company_scale=company_scale,
        company_last=int(rng.integers(0, 6)),
        company_decay=float(rng.uniform(0.5, 1.0)),
        cold_bias=cold_bias,
    )
    manifest = TableManifest(
        contract_version=contract.CONTRACT_VERSION,
        table_version=int(rng.integers(1 << 52)),
        n_segments=n_segments,
        counts=arrays.counts(),
        catalogue_sha256="",
        vocabulary_sha256="",
        files={},
        sizes={},
        encoder="random",
        weighing=asdict(weighing),
    )
    return ServedTable(manifest, arrays)


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


def random_history(rng: np.random.Generator, table: ServedTable, length: int) -> Behaviours:
    """Behaviours on known and unknown items, oldest first, with equal ages among them."""
    items = rng.choice(np.append(table.items, UNKNOWN_IDS), length)
    ages_s = np.sort(rng.choice(AGES_S, length))[::-1]
    return [
        (int(item), int(rng.integers(1, contract.N_ACTIONS)), float(age_s))
        for item, age_s in zip(items, ages_s, strict=True)
    ]


def random_candidates(rng: np.random.Generator, table: ServedTable, count: int) -> list[int]:
    """Known and unknown items, some twice."""
    found: list[int] = rng.choice(np.append(table.items, UNKNOWN_IDS), count).tolist()
    return found


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(got) == set(expected) == {spec.name for spec in contract.LOOKUP_OUTPUTS}
    for spec in contract.LOOKUP_OUTPUTS:
        ours, theirs = got[spec.name], expected[spec.name]
        assert ours.dtype == spec.dtype, spec.name
        tolerance = TOLERANCES.get(spec)
        if tolerance is None:
            np.testing.assert_array_equal(ours, theirs, err_msg=spec.name)
        else:
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance, err_msg=spec.name)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_items=st.integers(1, 12),
    n_paths=st.integers(1, 60),
    n_segments=st.integers(1, 3),
    n_kinds=st.integers(0, 60),
    n_neighbours=st.integers(0, 4),
    company_scale=st.sampled_from([0.0, 0.7]),
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
    n_neighbours: int,
    company_scale: float,
    lengths: list[int],
    n_candidates: int,
    dense: bool,
) -> None:
    rng = np.random.default_rng(seed)
    table = make_table(
        rng,
        n_items=n_items,
        n_paths=n_paths,
        n_segments=n_segments,
        n_kinds=n_kinds,
        n_neighbours=n_neighbours,
        company_scale=company_scale,
    )
    histories = [random_history(rng, table, length) for length in lengths]
    segments = rng.integers(0, n_segments + 2, len(lengths)).tolist()
    wanted = [random_candidates(rng, table, int(rng.integers(1, n_candidates + 1))) for _ in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "DENSE_BOUND", tree.DENSE_BOUND if dense else 0)
        got = table.lookup(make_call(histories, segments, wanted))
    reference = ReferenceTable.of(table)
    requests = zip(histories, segments, wanted, strict=True)
    assert_same(got, merge_lookups([lookup_one(reference, *request) for request in requests]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(0, 80))
def test_a_history_longer_than_the_window_and_one_of_the_window_exactly_keep_its_latest(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    table = make_table(rng, n_items=9, n_paths=12, n_kinds=9)
    history, wanted = random_history(rng, table, length), random_candidates(rng, table, 5)
    assert_same(
        table.lookup(make_call([history], [0], [wanted])), lookup_one(ReferenceTable.of(table), history, 0, wanted)
    )


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(150, 400))
def test_more_chains_than_the_bound_keep_the_most_supported_then_the_youngest(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    table = make_table(rng, n_items=300, n_paths=700, n_segments=2, n_kinds=200)
    history = random_history(rng, table, length)
    got = table.lookup(make_call([history], [1], [[5]]))
    assert_same(got, lookup_one(ReferenceTable.of(table), history, 1, [5]))
    assert got[contract.CHAIN_NODES.name].shape[1] <= contract.MAX_CHAINS


def test_the_bound_on_chains_is_reached_exactly() -> None:
    rng = np.random.default_rng(0)
    table = make_table(rng, n_items=300, n_paths=700)
    history = [(int(item), 1, float(age_s)) for age_s, item in enumerate(table.items)]
    got = table.lookup(make_call([history], [0], [[5]]))
    assert got[contract.CHAIN_NODES.name].shape[1] == contract.MAX_CHAINS
    assert (got[contract.CHAIN_BIAS.name] > contract.PADDED_CHAIN).all()
    assert (got[contract.CHAIN_NODES.name][..., 0] != contract.PAD_NODE).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(0, 12),
    gaps=st.lists(st.integers(0, 12), max_size=5),
)
def test_padding_in_the_middle_of_a_history_changes_only_where_its_evidence_points(
    seed: int, length: int, gaps: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    table = make_table(rng, n_items=6, n_paths=10, n_segments=2, n_kinds=12)
    history, wanted = random_history(rng, table, length), random_candidates(rng, table, 4)
    plain = table.lookup(make_call([history], [1], [wanted]))
    holed: list[tuple[int, int, float] | None] = list(history)
    for gap in gaps:
        holed.insert(min(gap, len(holed)), None)
    padding = (contract.PAD_ITEM, contract.PAD_ACTION, 0.0)
    got = table.lookup(make_call([[padding if one is None else one for one in holed]], [1], [wanted]))
    places = np.array([at for at, one in enumerate(holed) if one is not None] + [contract.NO_EVIDENCE])
    plain[contract.EVIDENCE.name] = places[plain[contract.EVIDENCE.name]].astype(np.int32)
    for spec in contract.LOOKUP_OUTPUTS:
        np.testing.assert_array_equal(got[spec.name], plain[spec.name], err_msg=spec.name)


def test_an_empty_history_leaves_popularity_alone_and_has_no_coverage() -> None:
    table = make_table(np.random.default_rng(1), n_items=3, n_paths=5, n_segments=2, n_kinds=4)
    wanted = [int(table.items[0]), 8]
    got = table.lookup(make_call([[]], [1], [wanted]))
    assert not got[contract.WINDOW_CONTEXT.name].any()
    assert not got[contract.CANDIDATE_TOKENS.name].any(), "the sequence tower has no say"
    assert (got[contract.CHAIN_BIAS.name] == contract.PADDED_CHAIN).all()
    assert got[contract.CHAIN_NODES.name].shape == (1, contract.MIN_CHAINS, contract.MAX_DEPTH)
    assert got[contract.COVERAGE.name].tolist() == [[0.0]]
    popularity = float(table.arrays.item_prior[contract.FIRST_ITEM_ROW, 2])
    assert got[contract.CANDIDATE_PRIOR.name].tolist() == [[popularity, -contract.UNKNOWN_PENALTY]]
    assert got[contract.UNKNOWN_MASK.name].tolist() == [[False, True]]
    assert got[contract.UNKNOWN_COUNT.name].tolist() == [[1]]
    assert list(ranker_inputs(got)) == [spec.name for spec in contract.RANKER_INPUTS]
    of_another = table.lookup(make_call([[]], [99], [wanted]))
    assert of_another[contract.CANDIDATE_PRIOR.name][0, 0] == table.arrays.item_prior[contract.FIRST_ITEM_ROW, 0]


def test_a_history_of_unknown_items_only_is_ranked_like_an_empty_one_but_for_its_window() -> None:
    table = make_table(np.random.default_rng(1), n_items=3, n_paths=5)
    wanted = table.items.tolist()
    unknown = table.lookup(make_call([[(8, 1, 5.0)]], [0], [wanted]))
    empty = table.lookup(make_call([[]], [0], [wanted]))
    for spec in (contract.CANDIDATE_TOKENS, contract.CANDIDATE_PRIOR, contract.CHAIN_ROWS, contract.CHAIN_BIAS):
        np.testing.assert_array_equal(unknown[spec.name], empty[spec.name])
    assert unknown[contract.WINDOW_CONTEXT.name].any()


def test_a_candidate_that_stands_twice_has_the_same_rows_and_prior_twice() -> None:
    rng = np.random.default_rng(3)
    table = make_table(rng, n_items=4, n_paths=5)
    first, second = table.items[:2].tolist()
    got = table.lookup(make_call([random_history(rng, table, 9)], [0], [[first, second, first, 8, 8]]))
    for spec in (contract.CANDIDATE_TOKENS, contract.CANDIDATE_TARGETS, contract.CANDIDATE_PRIOR):
        values = got[spec.name][0]
        np.testing.assert_array_equal(values[0], values[2])
        np.testing.assert_array_equal(values[3], values[4])
    assert got[contract.UNKNOWN_COUNT.name].tolist() == [[2]]


def test_what_is_met_together_with_a_later_behaviour_counts_more() -> None:
    table = make_table(np.random.default_rng(0), n_items=3, n_paths=5, company_scale=1.0)
    weighing = Weighing(company_scale=1.0, company_last=2, company_decay=0.5)
    rows = len(table.items) + contract.FIRST_ITEM_ROW
    neighbours, weights = np.zeros((rows, 1), dtype=np.int32), np.zeros((rows, 1), dtype=np.float16)
    neighbours[2], weights[2] = 4, 0.5
    arrays = ServedArrays(**{**vars(table.arrays), "neighbours": neighbours, "neighbour_weights": weights})
    manifest = TableManifest(**{**vars(table.manifest), "weighing": asdict(weighing)})
    near, far, wanted = ServedTable(manifest, arrays), table.items.tolist()[:2], table.items.tolist()
    priors = [
        near.lookup(make_call([[(item, 1, 0.0) for item in history]], [0], [wanted]))[contract.CANDIDATE_PRIOR.name][0]
        for history in ([far[1], far[0]], [far[0], far[1]], [far[0], far[1], far[1]])
    ]
    assert [prior[2] for prior in priors] == pytest.approx([np.log1p(50.0), np.log1p(25.0), 0.0])
    assert not any(prior[:2].any() for prior in priors)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(0, 9), min_size=2, max_size=4))
def test_merging_requests_equals_asking_them_together(seed: int, lengths: list[int]) -> None:
    rng = np.random.default_rng(seed)
    table = make_table(rng, n_items=8, n_paths=20, n_segments=2, n_kinds=20)
    histories = [random_history(rng, table, length) for length in lengths]
    wanted = [random_candidates(rng, table, int(rng.integers(1, 5))) for _ in lengths]
    single = [
        table.lookup(make_call([history], [0], [candidates]))
        for history, candidates in zip(histories, wanted, strict=True)
    ]
    merged = merge_lookups(single)
    assert_same(merged, table.lookup(make_call(histories, [0] * len(lengths), wanted)))


def test_padding_a_lookup_to_a_shape_is_padding_it_into_a_batch() -> None:
    rng = np.random.default_rng(5)
    table = make_table(rng, n_items=8, n_paths=20)
    small = table.lookup(make_call([random_history(rng, table, 2)], [0], [random_candidates(rng, table, 2)]))
    large = table.lookup(make_call([random_history(rng, table, 40)], [0], [random_candidates(rng, table, 9)]))
    extents = {"C": 9, "R": large[contract.CHAIN_BIAS.name].shape[1]}
    merged = merge_lookups([small, large])
    assert_same(pad(small, extents), {name: array[:1] for name, array in merged.items()})
    assert_same(pad(large, extents), large)
    assert np.isneginf(merged[contract.CANDIDATE_PRIOR.name][0, 2:]).all(), "what is padded is never ranked"
    assert (merged[contract.EVIDENCE.name][0, len(small[contract.CHAIN_BIAS.name][0]) :] == contract.NO_EVIDENCE).all()


def test_merging_whole_calls_pads_the_request_tensors_as_the_contract_says() -> None:
    table = make_table(np.random.default_rng(2), n_items=3, n_paths=5, n_kinds=4)
    item = int(table.items[0])
    calls = [make_call([[(item, 1, 3.0)]], [0], [[item]]), make_call([[(item, 2, 3.0)] * 3], [0], [[item, 8]])]
    merged = merge_lookups(calls)
    contract.validate_request(merged)
    assert merged[contract.BEHAVIOUR_ITEMS.name].tolist()[0] == [item, contract.PAD_ITEM, contract.PAD_ITEM]
    assert merged[contract.CANDIDATE_ITEMS.name].tolist()[0] == [item, contract.PAD_ITEM]
