"""Building, publishing and opening a table, from answers to the serving files."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airserve import contract
from airserve.errors import DataError, UserError
from airserve.table.answers import read_answers
from airserve.table.atomic import assemble
from airserve.table.build import BuildSettings, build_tables
from airserve.table.format import NO_PATH, IntentArrays, TableManifest, read_table, text_key
from airserve.table.intents import IntentTable
from airserve.table.report import item_tree, vocabulary_tree
from airserve.table.vectors import normalised
from airserve.table.vocabulary import build_vocabulary, read_vocabulary

VERSION = contract.TABLE_VERSION.name
TITLES = {30: "scratching tower", 10: "cat video", 20: "garden tour", 40: "no answer"}
CAT, BED, HOSE = ["pets", "cats", "cat tree"], ["pets", "cats", "cat bed"], ["garden", "watering", "hose"]
ANSWERS: list[tuple[int, str, int, list[list[str]], bool]] = [
    (10, "click", 0, [CAT, BED], True),
    (10, "click", 2, [BED], True),
    (10, "order", 0, [BED, ["Pets", "cat", "cat beds"]], True),
    (20, "view", 1, [HOSE], True),
    (30, "order", 0, [CAT], True),
    (40, "view", 0, [], False),
]


class SeededEmbedder:
    """Vectors seeded by the text."""

    identity = "seeded embedder"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        rows = [np.random.default_rng(list(text.encode()) or [0]).normal(size=24) for text in texts]
        return normalised(np.array(rows, dtype=np.float32))


def write_inputs(folder: Path, answers: list[Any] = ANSWERS, titles: dict[int, str] = TITLES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table(
            {
                "item_id": pa.array(list(titles), pa.int64()),
                "domain": ["product"] * len(titles),
                "title": list(titles.values()),
                "is_candidate": [True] * len(titles),
            }
        ),
        folder / "items.parquet",
    )
    columns = list(zip(*answers, strict=True)) if answers else [[], [], [], [], []]
    pq.write_table(
        pa.table(
            {
                "item_id": pa.array(columns[0], pa.int64()),
                "action": pa.array(columns[1], pa.string()),
                contract.USER_SEGMENT.name: pa.array(columns[2], pa.int32()),
                "paths": pa.array(columns[3], pa.list_(pa.list_(pa.string()))),
                "valid": pa.array(columns[4], pa.bool_()),
            }
        ),
        folder / "answers.parquet",
    )


def build(folder: Path, **settings: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"data": folder, "intents": folder, "out": folder / "tables", "cache": None}
    return build_tables(BuildSettings(**(options | settings)), SeededEmbedder())


def read_intents(folder: Path) -> tuple[TableManifest, IntentArrays]:
    return read_table(folder, IntentArrays)


def paths_of(folder: Path, item: int, action: str, segment: int) -> list[str]:
    """Texts of the leaves that the published table has for a behaviour."""
    table = IntentTable.open(folder / "tables" / "intents")
    vocabulary = read_vocabulary(folder / "tables" / "vocabulary.parquet")
    rows = table.rows(np.array([[item]]))
    numbers = table.path_numbers(rows, np.array([[contract.ACTIONS[action]]]), np.array([[segment]]))[0, 0]
    leaves = [
        max(level for level in range(4) if table.arrays.paths[number][level]) for number in numbers if number >= 0
    ]
    nodes = [table.arrays.paths[number][level] for number, level in zip(numbers, leaves, strict=False)]
    return [vocabulary.nodes[node - 1].text for node in nodes]


def test_a_built_table_answers_with_its_own_kind_then_segment_0_then_the_items_defaults(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    summary = build(tmp_path)
    assert summary["kinds"] == 5
    assert summary["nodes"] == 7
    assert summary["leaves"] == 3
    assert summary["levels"] == 3
    assert summary["item_coverage"] == 0.75
    assert paths_of(tmp_path, 10, "click", 2) == ["cat bed"]
    assert paths_of(tmp_path, 10, "click", 0) == ["cat tree", "cat bed"]
    assert paths_of(tmp_path, 10, "click", 1) == ["cat tree", "cat bed"]
    assert paths_of(tmp_path, 10, "order", 99) == ["cat bed"]
    assert paths_of(tmp_path, 10, "view", 0) == ["cat bed", "cat tree"]
    assert paths_of(tmp_path, 20, "view", 0) == ["hose"]
    assert paths_of(tmp_path, 40, "view", 0) == []
    assert paths_of(tmp_path, 77, "view", 0) == []


def test_the_published_arrays_are_what_the_format_says(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    build(tmp_path)
    manifest, arrays = read_intents(tmp_path / "tables" / "intents")
    assert arrays.items.tolist() == [10, 20, 30, 40]
    assert arrays.item_paths[:2].tolist() == [[NO_PATH] * contract.MAX_PATHS] * 2
    assert manifest.n_segments == 3
    assert manifest.counts == {"n_items": 4, "n_kinds": 5, "n_paths": 3, "n_nodes": 8, "vector_width": 128}
    assert arrays.title_keys.tolist() == [text_key(TITLES[item]) for item in (10, 20, 30, 40)]
    assert arrays.node_keys[0] == 0
    assert len(set(arrays.node_keys.tolist())) == 8
    np.testing.assert_allclose(np.linalg.norm(arrays.node_vectors[1:], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(arrays.item_vectors[2:], axis=1), 1, rtol=1e-5)
    atomic = pq.read_table(tmp_path / "tables" / "atomic_intents.parquet").to_pylist()
    assert len(atomic) == 5
    assert {len(path) for row in atomic for path in row["path_nodes"]} == {3}
    embeddings = pq.read_table(tmp_path / "tables" / "vocabulary.parquet")["embedding"].to_pylist()
    np.testing.assert_array_equal(np.array(embeddings, dtype=np.float32), arrays.node_vectors[1:])


def test_equal_input_gives_equal_files_and_an_equal_version(tmp_path: Path) -> None:
    write_inputs(tmp_path / "one")
    write_inputs(tmp_path / "two", ANSWERS[::-1], dict(sorted(TITLES.items())))
    one, two = build(tmp_path / "one"), build(tmp_path / "two")
    assert one[VERSION] == two[VERSION]
    folders = [tmp_path / name / "tables" / "intents" for name in ("one", "two")]
    for path in folders[0].iterdir():
        assert path.read_bytes() == (folders[1] / path.name).read_bytes()
    write_inputs(tmp_path / "two", ANSWERS[1:])
    assert build(tmp_path / "two")[VERSION] != two[VERSION]
    assert build(tmp_path / "two", table_version=7)[VERSION] == 7


def test_a_new_table_takes_the_old_ones_place_while_the_old_stays_open(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    build(tmp_path)
    before = IntentTable.open(tmp_path / "tables" / "intents")
    items = before.items.tolist()
    write_inputs(tmp_path, ANSWERS[:1], {10: "cat video"})
    build(tmp_path)
    assert before.items.tolist() == items
    assert IntentTable.open(tmp_path / "tables" / "intents").items.tolist() == [10]
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        "atomic_intents.parquet",
        "intents",
        "projection.npz",
        "report.html",
        "title_vectors.npy",
        "vocabulary.parquet",
    }


class FirstWordEmbedder(SeededEmbedder):
    """Texts with one first word are near-duplicates."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return super().embed([text.split()[0] if text else "" for text in texts])


def test_the_report_shows_what_was_merged_and_nothing_in_it_can_run(tmp_path: Path) -> None:
    hostile = ["pets", "cats", "<script>alert(1)</script>"]
    write_inputs(tmp_path, [*ANSWERS, (20, "order", 0, [hostile], True)])
    options = BuildSettings(data=tmp_path, intents=tmp_path, out=tmp_path / "tables", cache=None)
    assert build_tables(options, FirstWordEmbedder())["nodes_merged"] == 1
    page = (tmp_path / "tables" / "report.html").read_text()
    assert "pet &gt; cat &gt; cat tree" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_empty_titles_are_embedded_like_any_other(tmp_path: Path) -> None:
    write_inputs(tmp_path, titles=TITLES | {20: ""})
    build(tmp_path)
    _, arrays = read_intents(tmp_path / "tables" / "intents")
    np.testing.assert_allclose(np.linalg.norm(arrays.item_vectors[2:], axis=1), 1, rtol=1e-5)


def test_answers_are_streamed_so_memory_does_not_grow_with_their_texts(tmp_path: Path) -> None:
    kinds = 20_000
    path = ["pets", "cats", "cat tree"]
    rows = [(item, "view", 0, [path, [*path[:2], f"cat bed {item % 50}"]], True) for item in range(kinds)]
    write_inputs(tmp_path, rows, {0: "x"})
    del rows
    answers = read_answers(tmp_path / "answers.parquet", np.arange(kinds))
    tracemalloc.start()
    vocabulary = build_vocabulary(answers.paths)
    assemble(answers, vocabulary, kinds)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(vocabulary) == 53
    # All texts as Python objects take over 600 bytes a kind, ids and defaults a quarter of that.
    assert peak_bytes < 300 * kinds


def test_without_an_atomic_exchange_of_folders_the_new_table_still_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs(tmp_path)
    build(tmp_path)
    monkeypatch.setattr("airserve.table.publish._exchange", lambda first, second: False)
    version = build(tmp_path, table_version=9)[VERSION]
    assert IntentTable.open(tmp_path / "tables" / "intents").table_version == version == 9
    assert len(os.listdir(tmp_path / "tables")) == 6


def test_a_rebuild_with_the_previous_vocabulary_keeps_ids_and_vectors(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    build(tmp_path)
    vocabulary = tmp_path / "tables" / "vocabulary.parquet"
    _, old = read_intents(tmp_path / "tables" / "intents")
    write_inputs(tmp_path, [(30, "like", 0, [["pets", "dogs", "leash"]], True), *ANSWERS[3:]])
    build(tmp_path, out=tmp_path / "next", previous=vocabulary)
    _, new = read_intents(tmp_path / "next" / "intents")
    assert len(new.node_vectors) == len(old.node_vectors) + 2
    np.testing.assert_array_equal(new.node_vectors[: len(old.node_vectors)], old.node_vectors)
    np.testing.assert_array_equal(new.node_keys[: len(old.node_keys)], old.node_keys)


def test_a_node_has_the_same_key_in_another_vocabulary_and_a_title_in_another_catalogue(tmp_path: Path) -> None:
    write_inputs(tmp_path / "one")
    write_inputs(tmp_path / "two", [(20, "view", 0, [HOSE], True), (5, "view", 0, [["pets", "dogs"]], True)],
                 {20: TITLES[20], 5: "dog"})  # fmt: skip
    keys = []
    for name in ("one", "two"):
        build(tmp_path / name)
        tables = tmp_path / name / "tables"
        _, arrays = read_intents(tables / "intents")
        vocabulary = read_vocabulary(tables / "vocabulary.parquet")
        by_path = dict(zip(vocabulary.path_texts(), arrays.node_keys[1:].tolist(), strict=True))
        keys.append((by_path, dict(zip(arrays.items.tolist(), arrays.title_keys.tolist(), strict=True))))
    (nodes, titles), (other_nodes, other_titles) = keys
    assert {path: nodes[path] for path in nodes.keys() & other_nodes.keys()} == {
        path: other_nodes[path] for path in nodes.keys() & other_nodes.keys()
    }
    assert len(nodes.keys() & other_nodes.keys()) == 4
    assert titles[20] == other_titles[20]


def test_shuffling_gives_every_item_another_items_intents_and_keeps_the_rest(tmp_path: Path) -> None:
    titles = {item: f"title {item}" for item in range(40)}
    answers = [
        (item, action, segment, [["root", f"leaf {item} {action}"], ["root", f"leaf {item}"]], True)
        for item in range(30)
        for action, segment in (("view", 0), ("order", item % 2))
    ]
    write_inputs(tmp_path, answers, titles)
    plain = build(tmp_path)
    mixed = build(tmp_path, out=tmp_path / "mixed", shuffle_seed=3)
    for name in ("nodes", "paths", "kinds", "item_coverage"):
        assert plain[name] == mixed[name]
    manifest, old = read_intents(tmp_path / "tables" / "intents")
    shuffled_manifest, new = read_intents(tmp_path / "mixed" / "intents")
    assert manifest.vocabulary_sha256 == shuffled_manifest.vocabulary_sha256
    assert manifest.catalogue_sha256 == shuffled_manifest.catalogue_sha256
    np.testing.assert_array_equal(old.kinds, new.kinds)
    own = [set(numbers.tolist()) - {NO_PATH} for numbers in old.item_paths]
    given = [set(numbers.tolist()) - {NO_PATH} for numbers in new.item_paths]
    assert all(not a & b for a, b in zip(own[2:32], given[2:32], strict=True))
    rows = new.kinds.astype(np.int64) // manifest.n_segments // contract.N_ACTIONS
    for row, numbers in zip(rows, new.kind_paths, strict=True):
        assert set(numbers.tolist()) - {NO_PATH} <= given[row]
    assert not np.allclose(old.item_vectors[2:32], new.item_vectors[2:32])
    np.testing.assert_array_equal(old.item_vectors[32:], new.item_vectors[32:])


@pytest.mark.parametrize(
    ("answers", "titles", "words"),
    [
        ([(10, "stare", 0, [CAT], True)], TITLES, "action"),
        ([(10, "view", -1, [CAT], True)], TITLES, contract.USER_SEGMENT.name),
        ([(10, "view", 0, [CAT], True)] * 2, TITLES, "each event kind once"),
        ([(10, "view", 0, [CAT], False)], TITLES, "valid answers"),
        ([], TITLES, "valid answers"),
        ([(10, "view", 0, [["", " "], []], True)], TITLES, "valid answers"),
        (ANSWERS, {contract.PAD_ITEM: "reserved"}, "item_id"),
    ],
)
def test_bad_input_is_refused_with_its_file_and_column(
    tmp_path: Path, answers: list[Any], titles: dict[int, str], words: str
) -> None:
    write_inputs(tmp_path, answers, titles)
    with pytest.raises(DataError, match=words):
        build(tmp_path)
    assert not (tmp_path / "tables").exists()


def test_answers_about_other_items_are_left_out_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_inputs(tmp_path, [*ANSWERS, (99, "view", 0, [CAT], True)])
    assert build(tmp_path)["answers_left_out"] == 1
    assert "1 answers" in capsys.readouterr().err


def test_a_missing_column_of_the_answers_is_refused(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    pq.write_table(pa.table({"item_id": [10], "action": ["view"]}), tmp_path / "answers.parquet")
    with pytest.raises(DataError, match=r"answers\.parquet.*generate_intents"):
        build(tmp_path)


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="table-version"):
        BuildSettings(data=Path(), intents=Path(), out=Path(), table_version=-1)
    with pytest.raises(UserError, match="shuffle-seed"):
        BuildSettings(data=Path(), intents=Path(), out=Path(), shuffle_seed=-1)


def test_a_person_can_read_the_tree_and_an_items_intents(tmp_path: Path) -> None:
    from rich.console import Console

    write_inputs(tmp_path)
    build(tmp_path)
    console = Console(record=True, width=100, file=open(os.devnull, "w"))  # noqa: SIM115
    tree, figures = vocabulary_tree(tmp_path / "tables", max_children=1)
    console.print(tree)
    item, item_figures = item_tree(tmp_path / "tables", 10)
    console.print(item)
    text = console.export_text()
    assert "and 1 more" in text
    assert "pets > cats > cat bed" in text
    assert figures["leaves"] == 3
    assert json.loads(json.dumps(item_figures))["default_paths"][0] == "pets > cats > cat bed"
    with pytest.raises(DataError, match="item 11"):
        item_tree(tmp_path / "tables", 11)
