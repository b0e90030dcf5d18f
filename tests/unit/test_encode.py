"""Rows of a served table: whose learned vectors are taken, and what comes out for what is new."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airserve import contract
from airserve.bench.synthetic import N_SEGMENTS, random_arrays, random_events, write_engine, write_intents
from airserve.errors import ArtifactError
from airserve.table.encode import Encoder, EncodeReport, Events, encode_rows, encode_table
from airserve.table.format import IntentArrays, text_key
from airserve.table.intents import IntentTable
from airserve.table.lookup import ServedTable

N_ITEMS, N_NODES = 30, 25
FIRST = contract.FIRST_ITEM_ROW
TRAINED = random_arrays(n_items=N_ITEMS, n_nodes=N_NODES, n_paths=18)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Of a ranker whose learned vectors differ from one another and from *none*."""
    folder = tmp_path_factory.mktemp("encoder")
    write_intents(folder / "tables", TRAINED)
    write_engine(folder / "tables", folder / "engine")
    opened, rng = Encoder.open(folder / "engine"), np.random.default_rng(0)
    made = {
        name: rng.normal(size=getattr(opened.learned, name).shape).astype(np.float32)
        for name in ("item_ids", "no_item", "node_ids", "no_node")
    }
    return replace(opened, learned=replace(opened.learned, **made))


def table_of(folder: Path, **changes: Any) -> IntentTable:
    return write_intents(folder, replace(TRAINED, **changes))


def encode(folder: Path, encoder: Encoder, **changes: Any) -> tuple[dict[str, np.ndarray], EncodeReport]:
    return encode_rows(table_of(folder, **changes), encoder, np.float32)


def changed(array: np.ndarray, places: slice | list[int], values: Any) -> np.ndarray:
    other = array.copy()
    other[places] = values
    return other


def with_none(encoder: Encoder, **known: np.ndarray) -> Encoder:
    """The encoder without the learned vectors where a mask is False."""
    learned = encoder.learned
    if "items" in known:
        kept = known["items"]
        learned = replace(
            learned, items=learned.items[kept], titles=learned.titles[kept], item_ids=learned.item_ids[kept]
        )
    if "nodes" in known:
        learned = replace(learned, nodes=learned.nodes[known["nodes"]], node_ids=learned.node_ids[known["nodes"]])
    return replace(encoder, learned=learned)


def test_every_item_and_node_of_training_has_its_learned_vector(tmp_path: Path, encoder: Encoder) -> None:
    rows, report = encode(tmp_path, encoder)
    assert (report.items, report.items_learned, report.titles_changed) == (N_ITEMS, N_ITEMS, 0)
    assert (report.nodes, report.nodes_learned) == (N_NODES - 1, N_NODES - 1)
    assert not report.foreign
    half, _ = encode_rows(table_of(tmp_path), encoder)
    for name, array in half.items():
        assert array.dtype == (np.float32 if name == "item_bias" else np.float16)
        np.testing.assert_allclose(array, rows[name], atol=2e-2, rtol=2e-3)


def test_a_new_item_gets_none_and_the_old_ones_rows_stay(tmp_path: Path, encoder: Encoder) -> None:
    before, _ = encode(tmp_path, encoder)
    items = changed(TRAINED.items, [-1], 10**6)
    titles = changed(TRAINED.title_keys, [-1], text_key("new"))
    rows, report = encode(tmp_path, encoder, items=items, title_keys=titles)
    assert report.items_learned == N_ITEMS - 1
    np.testing.assert_array_equal(rows["item_tokens"][:-1], before["item_tokens"][:-1])
    np.testing.assert_array_equal(rows["item_targets"], before["item_targets"])
    known = np.arange(N_ITEMS) != N_ITEMS - 1
    expected, _ = encode(tmp_path, with_none(encoder, items=known))
    np.testing.assert_array_equal(rows["item_tokens"], expected["item_tokens"])
    assert not np.allclose(rows["item_tokens"][-1], before["item_tokens"][-1])


def test_an_item_keeps_its_learned_vector_by_id_wherever_it_stands_now(tmp_path: Path, encoder: Encoder) -> None:
    before, _ = encode(tmp_path, encoder)
    kept = np.arange(5, N_ITEMS)
    rows_kept = np.concatenate([[0, 1], kept + FIRST])
    kinds = {"kinds": TRAINED.kinds[:0], "kind_paths": TRAINED.kind_paths[:0]}
    rows, report = encode(
        tmp_path,
        encoder,
        items=TRAINED.items[kept],
        title_keys=TRAINED.title_keys[kept],
        item_paths=TRAINED.item_paths[rows_kept],
        item_vectors=TRAINED.item_vectors[rows_kept],
        **kinds,
    )
    assert report.items_learned == len(kept)
    np.testing.assert_allclose(rows["item_tokens"], before["item_tokens"][rows_kept], atol=1e-5)


def test_a_changed_title_is_counted_and_keeps_its_vector_while_most_agree(tmp_path: Path, encoder: Encoder) -> None:
    titles = changed(TRAINED.title_keys, slice(0, 5), 7)
    _, report = encode(tmp_path, encoder, title_keys=titles)
    assert (report.items_learned, report.titles_changed, report.foreign) == (N_ITEMS, 5, False)


def test_the_catalogue_of_another_shop_gets_none_for_all_and_says_so(
    tmp_path: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    titles = changed(TRAINED.title_keys, slice(0, N_ITEMS // 2 + 1), np.arange(N_ITEMS // 2 + 1))
    with caplog.at_level(logging.WARNING):
        rows, report = encode(tmp_path, encoder, title_keys=titles)
    assert report.foreign
    assert (report.items_learned, report.titles_changed) == (0, 0)
    assert "another catalogue" in caplog.text
    assert f"{N_ITEMS // 2 + 1} of {N_ITEMS} ids" in caplog.text
    expected, _ = encode(tmp_path, with_none(encoder, items=np.zeros(N_ITEMS, dtype=bool)))
    np.testing.assert_array_equal(rows["item_tokens"], expected["item_tokens"])


def test_a_catalogue_of_new_ids_only_is_not_foreign_but_new(tmp_path: Path, encoder: Encoder) -> None:
    _, report = encode(tmp_path, encoder, items=TRAINED.items + 10**9)
    assert (report.items_learned, report.foreign) == (0, False)


def test_an_encoder_that_learned_of_no_item_and_no_node_encodes_all_the_same(tmp_path: Path, encoder: Encoder) -> None:
    bare = with_none(encoder, items=np.zeros(N_ITEMS, dtype=bool), nodes=np.zeros(N_NODES - 1, dtype=bool))
    rows, report = encode(tmp_path, bare)
    assert (report.items_learned, report.nodes_learned) == (0, 0)
    assert all(np.isfinite(array).all() for array in rows.values())


def test_a_node_is_known_by_the_key_of_its_path_and_a_new_one_gets_none(tmp_path: Path, encoder: Encoder) -> None:
    before, _ = encode(tmp_path, encoder)
    keys = changed(TRAINED.node_keys, [7], text_key("a new path"))
    rows, report = encode(tmp_path, encoder, node_keys=keys)
    assert report.nodes_learned == N_NODES - 2
    others = np.arange(N_NODES) != 7
    np.testing.assert_array_equal(rows["node_rows"][others], before["node_rows"][others])
    assert not np.allclose(rows["node_rows"][7], before["node_rows"][7])
    known = encoder.learned.nodes != TRAINED.node_keys[7]
    expected, _ = encode(tmp_path, with_none(encoder, nodes=known))
    for name, array in rows.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_padding_has_rows_of_zeros_and_the_unknown_item_a_token_but_no_target(tmp_path: Path, encoder: Encoder) -> None:
    rows, _ = encode(tmp_path, encoder)
    assert not rows["node_rows"][contract.PAD_NODE].any()
    for name in ("item_tokens", "item_targets"):
        assert not rows[name][contract.PAD_ROW].any()
    assert rows["item_tokens"][contract.UNKNOWN_ROW].any()
    assert not rows["item_targets"][contract.UNKNOWN_ROW].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("name", "said"), [("item_ids", "item_tokens"), ("node_ids", "node_rows")])
def test_weights_that_make_no_numbers_are_refused(
    tmp_path: Path, encoder: Encoder, bad: float, name: str, said: str
) -> None:
    values = getattr(encoder.learned, name).copy()
    values[3] = bad
    broken = replace(encoder, learned=replace(encoder.learned, **{name: values}))
    with pytest.raises(ArtifactError, match=rf"{said}.*train again"):
        encode_rows(table_of(tmp_path), broken)


def test_vectors_of_another_width_are_refused_with_what_to_do(tmp_path: Path, encoder: Encoder) -> None:
    narrow = {name: getattr(TRAINED, name)[:, :64].copy() for name in ("node_vectors", "item_vectors")}
    with pytest.raises(ArtifactError, match=r"vectors of 128 numbers.*got 64.*--previous"):
        encode(tmp_path, encoder, **narrow)


def test_a_served_table_has_company_and_popularity_by_segment_and_is_the_same_each_time(
    tmp_path: Path, encoder: Encoder
) -> None:
    table, events = table_of(tmp_path), random_events(N_ITEMS)
    shuffled = np.random.default_rng(1).permutation(len(events.rows))
    again = Events(**{name: values[shuffled] for name, values in vars(events).items()})
    first, _ = encode_table(table, encoder, events, tmp_path / "serving")
    second, _ = encode_table(table, encoder, again, tmp_path / "again")
    assert first == second
    served = ServedTable.open(tmp_path / "serving")
    assert served.manifest.encoder == encoder.identity
    assert served.weighing == encoder.weighing()
    assert served.arrays.item_prior.shape == (N_ITEMS + FIRST, 1 + N_SEGMENTS)
    assert served.arrays.neighbours[FIRST:].any()
    assert not served.arrays.neighbours[:FIRST].any()


def test_without_events_a_served_table_has_no_company(tmp_path: Path, encoder: Encoder) -> None:
    encode_table(table_of(tmp_path), encoder, Events(), tmp_path / "serving", table_version=9)
    served = ServedTable.open(tmp_path / "serving")
    assert served.arrays.neighbours.shape[1] == 0
    assert not served.arrays.item_prior.any()
    assert served.table_version == 9


def test_likeness_is_the_cosine_with_the_leaf_of_each_path(tmp_path: Path, encoder: Encoder) -> None:
    encode_table(table_of(tmp_path), encoder, Events(), tmp_path / "serving")
    arrays: IntentArrays = TRAINED
    served = ServedTable.open(tmp_path / "serving").arrays
    for row in (FIRST, FIRST + 11):
        for place, number in enumerate(arrays.item_paths[row]):
            leaf = arrays.paths[number][arrays.paths[number] > 0][-1] if number >= 0 else 0
            expected = float(arrays.item_vectors[row] @ arrays.node_vectors[leaf])
            assert float(served.item_likeness[row, place]) == pytest.approx(expected, abs=1e-3)
