"""A damaged, foreign or half-written table or encoder is refused with a message that says what to do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airserve import contract
from airserve.artifacts import ITEM_ENCODER_FILE, LEARNED_FILE, MANIFEST_FILE, NODE_ENCODER_FILE
from airserve.bench.synthetic import random_arrays, write_engine, write_intents
from airserve.errors import ArtifactError
from airserve.table import publish
from airserve.table.encode import Encoder
from airserve.table.format import NO_PATH, IntentArrays, ServedArrays, TableManifest, Weighing
from airserve.table.intents import IntentTable
from airserve.table.lookup import ServedTable
from airserve.table.publish import publish_table

ROWS = 3 + contract.FIRST_ITEM_ROW
Tables = type[IntentTable] | type[ServedTable]
WEIGHING = Weighing(company_scale=0.5)
both_kinds = pytest.mark.parametrize("kind", [IntentTable, ServedTable])


def ids() -> dict[str, Any]:
    item_paths = np.full((ROWS, contract.MAX_PATHS), NO_PATH, dtype=np.int32)
    item_paths[contract.FIRST_ITEM_ROW :, 0] = 0
    kind_paths = np.full((2, contract.MAX_PATHS), NO_PATH, dtype=np.int32)
    kind_paths[:, :2] = [[0, 1], [1, 0]]
    return {
        "items": np.array([-5, 7, 9], dtype=np.int64),
        "kinds": np.array([2 * contract.N_ACTIONS + 1, 3 * contract.N_ACTIONS + 5], dtype=np.uint64),
        "kind_paths": kind_paths,
        "item_paths": item_paths,
        "paths": np.array([[1, 2, 0, 0], [1, 2, 3, 0]], dtype=np.int32),
    }


def ones(dtype: type, *shape: int, empty: int = 0) -> np.ndarray[Any, Any]:
    values = np.ones(shape, dtype=dtype)
    values[:empty] = 0
    return values


def small_arrays(kind: Tables) -> IntentArrays | ServedArrays:
    if kind is IntentTable:
        return IntentArrays(
            **ids(),
            node_vectors=ones(np.float32, 4, 2, empty=1),
            item_vectors=ones(np.float32, ROWS, 2, empty=contract.FIRST_ITEM_ROW),
            title_keys=np.arange(3, dtype=np.uint64),
            node_keys=np.arange(4, dtype=np.uint64),
        )
    return ServedArrays(
        **ids(),
        kind_likeness=ones(np.float16, 2, contract.MAX_PATHS),
        item_likeness=ones(np.float16, ROWS, contract.MAX_PATHS),
        node_rows=ones(np.float16, 4, 5, empty=1),
        item_tokens=ones(np.float16, ROWS, 2, empty=1),
        item_targets=ones(np.float16, ROWS, 5, empty=1),
        item_prior=ones(np.float16, ROWS, 2, empty=contract.FIRST_ITEM_ROW),
        item_bias=np.zeros(ROWS, np.float32),
        neighbours=np.full((ROWS, 2), 3, dtype=np.int32),
        neighbour_weights=ones(np.float16, ROWS, 2),
    )


def publish_small(folder: Path, kind: Tables, **changes: Any) -> TableManifest:
    served = {"encoder": "e", "weighing": WEIGHING} if kind is ServedTable else {}
    arrays = replace(small_arrays(kind), **changes)
    return publish_table(folder, arrays, n_segments=1, vocabulary_sha256="v", **served)


@pytest.fixture
def folder(tmp_path: Path, kind: Tables) -> Path:
    publish_small(tmp_path / "table", kind)
    return tmp_path / "table"


def change_manifest(folder: Path, **values: Any) -> None:
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@both_kinds
def test_a_published_table_opens(folder: Path, kind: Tables) -> None:
    table = kind.open(folder)
    assert table.items.tolist() == [-5, 7, 9]
    assert 0 <= table.table_version < 1 << 52


def test_a_served_table_keeps_its_encoder_and_its_weighing(tmp_path: Path) -> None:
    publish_small(tmp_path / "table", ServedTable)
    table = ServedTable.open(tmp_path / "table")
    assert table.manifest.encoder == "e"
    assert table.weighing == WEIGHING


def test_another_encoder_or_weighing_is_another_version(tmp_path: Path) -> None:
    arrays, same = small_arrays(ServedTable), {"n_segments": 1, "vocabulary_sha256": "v"}
    versions = {
        publish_table(tmp_path / "table", arrays, **same, encoder=encoder, weighing=weighing).table_version
        for encoder, weighing in (("e", WEIGHING), ("f", WEIGHING), ("e", Weighing()), ("e", WEIGHING))
    }
    assert len(versions) == 3


@both_kinds
def test_a_table_without_event_kinds_opens_and_answers_with_defaults(tmp_path: Path, kind: Tables) -> None:
    empty = {name: array[:0] for name, array in vars(small_arrays(kind)).items() if name.startswith("kind")}
    publish_small(tmp_path / "table", kind, **empty)
    table = kind.open(tmp_path / "table")
    assert table.path_numbers(np.array([[2]]), np.array([[1]]), np.array([[0]]))[0, 0, 0] == 0


def test_a_table_without_neighbours_opens(tmp_path: Path) -> None:
    without = {name: getattr(small_arrays(ServedTable), name)[:, :0] for name in ("neighbours", "neighbour_weights")}
    publish_small(tmp_path / "table", ServedTable, **without)
    assert ServedTable.open(tmp_path / "table").arrays.neighbours.shape == (ROWS, 0)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(IntentTable, name) for name in IntentArrays.DTYPES] + [(ServedTable, name) for name in ServedArrays.DTYPES],
)
def test_one_changed_byte_is_found_and_the_file_named(folder: Path, kind: Tables, name: str) -> None:
    path = folder / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name}\.npy.*build_tables"):
        kind.open(folder)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(("kind", "name"), [(IntentTable, "paths"), (ServedTable, "paths"), (ServedTable, "node_rows")])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not numpy at all"),
        lambda path: np.save(path, np.zeros((2, 2))),
        lambda path: np.save(path, np.zeros((1, contract.MAX_DEPTH + 1), dtype=np.int32)),
        lambda path: np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True),
    ],
)
def test_a_missing_cut_or_foreign_file_is_refused_even_without_hashing(
    folder: Path, kind: Tables, name: str, damage: Callable[[Path], Any], verify: bool
) -> None:
    damage(folder / f"{name}.npy")
    with pytest.raises(ArtifactError, match=rf"{name}\.npy"):
        kind.open(folder, verify=verify)


@both_kinds
def test_a_file_of_the_right_size_that_is_no_array_is_refused_without_hashing(folder: Path, kind: Tables) -> None:
    path = folder / "paths.npy"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ArtifactError, match=r"paths\.npy"):
        kind.open(folder, verify=False)


@both_kinds
def test_a_folder_without_a_manifest_is_no_table(folder: Path, kind: Tables) -> None:
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(ArtifactError, match="build_tables"):
        kind.open(folder)


@both_kinds
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "something else"}', "\x00"])
def test_a_manifest_of_something_else_is_refused(folder: Path, kind: Tables, text: str) -> None:
    (folder / MANIFEST_FILE).write_text(text)
    with pytest.raises(ArtifactError, match=MANIFEST_FILE):
        kind.open(folder)


@both_kinds
@pytest.mark.parametrize("version", [1, contract.CONTRACT_VERSION + 1, None])
def test_another_contract_version_is_refused_naming_both_sides_and_what_to_do(
    folder: Path, kind: Tables, version: int | None
) -> None:
    change_manifest(folder, contract_version=version)
    with pytest.raises(ArtifactError) as caught:
        kind.open(folder)
    assert f"contract version {contract.CONTRACT_VERSION} (this airserve)" in str(caught.value)
    assert f"contract version {version} (the table)" in str(caught.value)
    assert "build_tables.py again" in str(caught.value)


@pytest.mark.parametrize(("kind", "other"), [(IntentTable, ServedTable), (ServedTable, IntentTable)])
def test_one_kind_of_table_given_as_the_other_is_refused_naming_both_folders(
    folder: Path, kind: Tables, other: Tables
) -> None:
    with pytest.raises(ArtifactError, match=r"format airserve-.*tables/intents or tables/serving"):
        other.open(folder)


@both_kinds
@pytest.mark.parametrize(
    "values",
    [
        {contract.TABLE_VERSION.name: "7"},
        {contract.TABLE_VERSION.name: True},
        {"counts": {}},
        {"counts": {"n_items": "3"}},
        {"n_segments": 0},
        {"files": {}},
        {"files": {"items.npy": 3}},
        {"sizes": {}},
        {"sizes": None},
        {"vocabulary_sha256": 1},
        {"encoder": 1},
        {"weighing": []},
    ],
)
def test_a_manifest_that_does_not_fit_its_files_is_refused(folder: Path, kind: Tables, values: dict[str, Any]) -> None:
    change_manifest(folder, **values)
    with pytest.raises(ArtifactError, match=MANIFEST_FILE):
        kind.open(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"actions": [0.0, 1.0]},
        {"actions": ["a"] * contract.N_ACTIONS},
        {"norms": [1.0, 0.0, 1.0, 1.0]},
        {"decay_per_day": float("nan")},
        {"decay_per_day": None},
        {"company_last": -1},
        {"surprise": 1},
    ],
)
def test_a_served_table_with_a_damaged_weighing_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    publish_small(tmp_path / "table", ServedTable)
    change_manifest(tmp_path / "table", weighing=asdict(WEIGHING) | change)
    with pytest.raises(ArtifactError, match="weighing"):
        ServedTable.open(tmp_path / "table")


def test_a_served_table_without_a_weighing_is_refused_rather_than_served_with_none(tmp_path: Path) -> None:
    publish_small(tmp_path / "table", ServedTable)
    change_manifest(tmp_path / "table", weighing={})
    with pytest.raises(ArtifactError, match="weighing"):
        ServedTable.open(tmp_path / "table")


@both_kinds
def test_files_of_two_tables_do_not_mix(folder: Path, kind: Tables, tmp_path: Path) -> None:
    publish_small(tmp_path / "other", kind, items=np.array([1, 2, 3], dtype=np.int64))
    shutil.copy(tmp_path / "other" / "items.npy", folder / "items.npy")
    with pytest.raises(ArtifactError, match=r"items\.npy.*another table"):
        kind.open(folder)


@both_kinds
def test_a_table_answers_as_before_when_its_files_are_cut_or_overwritten_after_it_was_opened(
    folder: Path, kind: Tables
) -> None:
    """A mapped file that is cut ends the process (SIGBUS): a small table must not be mapped."""
    table = kind.open(folder)
    before = {name: np.array(getattr(table.arrays, name)) for name in table.arrays.DTYPES}
    for place, path in enumerate(sorted(folder.glob("*.npy"))):
        if place % 2:
            os.truncate(path, 80)
        else:
            path.write_bytes(b"\xff" * path.stat().st_size)
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(table.arrays, name), array)


def one_bad(array: np.ndarray[Any, Any], value: float, row: int = -1) -> np.ndarray[Any, Any]:
    broken = array.copy()
    broken[row, 0] = value
    return broken


BAD_IDS = [
    ("items", np.array([7, 7, 9], dtype=np.int64)),
    ("items", np.array([contract.PAD_ITEM, 7, 9], dtype=np.int64)),
    ("items", np.array([1, 7, 9], dtype=np.int32)),
    ("kinds", np.array([99, 13], dtype=np.uint64)),
    ("kinds", np.array([3, 13], dtype=np.uint64)),
    ("kinds", np.array([13, 1 << 63], dtype=np.uint64)),
    ("kind_paths", np.array([[0, 2, -1, -1], [0, -1, -1, -1]], dtype=np.int32)),
    ("kind_paths", np.array([[-1, 0, -1, -1], [0, -1, -1, -1]], dtype=np.int32)),
    ("kind_paths", np.array([[0, 0, -1, -1], [0, -1, -1, -1]], dtype=np.int32)),
    ("item_paths", np.zeros((ROWS, contract.MAX_PATHS), dtype=np.int32)),
    ("paths", np.array([[1, 9, 0, 0], [1, 2, 3, 0]], dtype=np.int32)),
    ("paths", np.array([[1, 0, 2, 0], [1, 2, 3, 0]], dtype=np.int32)),
    ("paths", np.array([[0, 0, 0, 0], [1, 2, 3, 0]], dtype=np.int32)),
]
BAD_INTENTS = [
    ("node_vectors", ones(np.float32, 4, 2)),
    ("node_vectors", one_bad(ones(np.float32, 4, 2, empty=1), np.nan)),
    ("item_vectors", ones(np.float32, ROWS, 2)),
    ("item_vectors", ones(np.float32, ROWS, 3, empty=2)),
    ("title_keys", np.arange(4, dtype=np.uint64)),
    ("node_keys", np.arange(4, dtype=np.int64)),
]
SERVED = small_arrays(ServedTable)
BAD_SERVED = [
    *(
        (name, one_bad(getattr(SERVED, name), value))
        for name in ("node_rows", "item_tokens", "item_targets", "kind_likeness", "item_prior", "neighbour_weights")
        for value in (np.nan, np.inf)
    ),
    ("node_rows", one_bad(SERVED.node_rows, 1.0, row=0)),
    ("item_tokens", one_bad(SERVED.item_tokens, 1.0, row=0)),
    ("item_tokens", SERVED.item_tokens.astype(np.float32)),
    ("item_tokens", SERVED.item_tokens[:-1]),
    ("item_targets", ones(np.float16, ROWS, 6, empty=1)),
    ("item_likeness", ones(np.float16, ROWS, 3)),
    ("item_prior", ones(np.float16, ROWS, 0)),
    ("neighbours", one_bad(SERVED.neighbours, ROWS)),
    ("neighbours", one_bad(SERVED.neighbours, -1)),
    ("neighbour_weights", one_bad(SERVED.neighbour_weights, -0.5)),
    ("neighbour_weights", ones(np.float16, ROWS, 3)),
]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(kind, *bad) for kind in (IntentTable, ServedTable) for bad in BAD_IDS]
    + [(IntentTable, *bad) for bad in BAD_INTENTS]
    + [(ServedTable, *bad) for bad in BAD_SERVED],
)
def test_arrays_that_break_the_format_are_neither_published_nor_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Tables, name: str, value: Any
) -> None:
    with pytest.raises(ArtifactError, match=name):
        publish_small(tmp_path / "table", kind, **{name: value})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(publish, "check_values", lambda *_: None)
    monkeypatch.setattr(publish, "check_dtypes_and_shapes", lambda *_: None)
    publish_small(tmp_path / "table", kind, **{name: value})
    with pytest.raises(ArtifactError, match=name):
        kind.open(tmp_path / "table")


@both_kinds
def test_a_publisher_that_dies_leaves_the_old_table_in_place(
    folder: Path, kind: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kind.open(folder).table_version

    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(publish, "_take_name", fail)
    with pytest.raises(OSError, match="no space"):
        publish_small(folder, kind, items=np.array([1, 2, 3], dtype=np.int64))
    assert kind.open(folder).table_version == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write_intents(folder / "tables", random_arrays(n_items=20, n_nodes=30, n_paths=10))
    write_engine(folder / "tables", folder / "engine")
    return folder / "engine"


@pytest.fixture
def engine(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "engine"))


def test_an_exported_encoder_opens(engine: Path) -> None:
    assert len(Encoder.open(engine).learned.items) == 20


@pytest.mark.parametrize("name", [ITEM_ENCODER_FILE, NODE_ENCODER_FILE, LEARNED_FILE])
@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_a_damaged_encoder_file_is_refused_by_name_or_folder(engine: Path, name: str, damage: str) -> None:
    path = engine / name
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-10] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=rf"{name}.*export_onnx\.py"):
        Encoder.open(engine)


@pytest.mark.parametrize("text", [None, "", "[]", "3", "\x00", '{"contract_version": 1}'])
def test_an_encoder_without_a_manifest_or_of_another_contract_is_refused(engine: Path, text: str | None) -> None:
    (engine / MANIFEST_FILE).unlink()
    if text is not None:
        (engine / MANIFEST_FILE).write_text(text)
    with pytest.raises(ArtifactError, match=r"export_onnx\.py"):
        Encoder.open(engine)


@pytest.mark.parametrize("values", [{"files": {}}, {"files": None}, {"files": []}])
def test_an_encoder_whose_manifest_says_nothing_of_its_files_is_refused(engine: Path, values: dict[str, Any]) -> None:
    change_manifest(engine, **values)
    with pytest.raises(ArtifactError, match=r"export_onnx\.py"):
        Encoder.open(engine)
