"""A damaged, foreign or half-written table is refused with a message that says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airserve import contract
from airserve.errors import ArtifactError
from airserve.table import publish
from airserve.table.format import MANIFEST_NAME, NO_PATH, TableArrays
from airserve.table.lookup import IntentTable
from airserve.table.publish import publish_table

ROWS = 3 + contract.FIRST_ITEM_ROW


def small_arrays() -> TableArrays:
    item_paths = np.full((ROWS, contract.MAX_PATHS), NO_PATH, dtype=np.int32)
    item_paths[contract.FIRST_ITEM_ROW :, 0] = 0
    kind_paths = np.full((2, contract.MAX_PATHS), NO_PATH, dtype=np.int32)
    kind_paths[:, :2] = [[0, 1], [1, 0]]
    node_vectors = np.ones((4, 2), dtype=np.float32)
    node_vectors[0] = 0
    item_vectors = np.ones((ROWS, 2), dtype=np.float32)
    item_vectors[: contract.FIRST_ITEM_ROW] = 0
    return TableArrays(
        items=np.array([-5, 7, 9], dtype=np.int64),
        kinds=np.array([2 * contract.N_ACTIONS + 1, 3 * contract.N_ACTIONS + 5], dtype=np.uint64),
        kind_paths=kind_paths,
        item_paths=item_paths,
        paths=np.array([[1, 2, 0, 0], [1, 2, 3, 0]], dtype=np.int32),
        node_vectors=node_vectors,
        item_vectors=item_vectors,
    )


@pytest.fixture
def serving(tmp_path: Path) -> Path:
    folder = tmp_path / "serving"
    publish_table(folder, small_arrays(), n_segments=1, vocabulary_sha256="v")
    return folder


def change_manifest(folder: Path, **values: Any) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_published_table_opens(serving: Path) -> None:
    table = IntentTable.open(serving)
    assert table.items.tolist() == [-5, 7, 9]
    assert 0 <= table.table_version < 1 << 52


def test_a_table_without_event_kinds_opens_and_answers_with_defaults(tmp_path: Path) -> None:
    arrays = small_arrays()
    bare = replace(arrays, kinds=arrays.kinds[:0], kind_paths=arrays.kind_paths[:0])
    publish_table(tmp_path / "serving", bare, n_segments=1, vocabulary_sha256="v")
    table = IntentTable.open(tmp_path / "serving")
    assert table.path_numbers(np.array([[2]]), np.array([[1]]), np.array([[0]]))[0, 0, 0] == 0


@pytest.mark.parametrize(
    "name", ["items", "kinds", "kind_paths", "item_paths", "paths", "node_vectors", "item_vectors"]
)
def test_one_changed_byte_is_found_and_the_file_named(serving: Path, name: str) -> None:
    path = serving / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name}\.npy.*build_tables"):
        IntentTable.open(serving)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not numpy at all"),
        lambda path: np.save(path, np.zeros((2, 2))),
        lambda path: np.save(path, np.zeros((1, contract.MAX_DEPTH + 1), dtype=np.int32)),
        lambda path: np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True),
    ],
)
def test_a_missing_short_or_foreign_file_is_refused_even_without_hashing(
    serving: Path, damage: Callable[[Path], Any], verify: bool
) -> None:
    damage(serving / "paths.npy")
    with pytest.raises(ArtifactError, match=r"paths\.npy"):
        IntentTable.open(serving, verify=verify)


def test_a_folder_without_a_manifest_is_no_table(serving: Path) -> None:
    (serving / MANIFEST_NAME).unlink()
    with pytest.raises(ArtifactError, match="build_tables"):
        IntentTable.open(serving)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "something else"}', "\x00"])
def test_a_manifest_of_something_else_is_refused(serving: Path, text: str) -> None:
    (serving / MANIFEST_NAME).write_text(text)
    with pytest.raises(ArtifactError, match=MANIFEST_NAME):
        IntentTable.open(serving)


def test_another_contract_version_is_refused_naming_both_sides(serving: Path) -> None:
    change_manifest(serving, contract_version=contract.CONTRACT_VERSION + 1)
    with pytest.raises(ArtifactError) as caught:
        IntentTable.open(serving)
    assert f"contract version {contract.CONTRACT_VERSION} (this airserve)" in str(caught.value)
    assert f"contract version {contract.CONTRACT_VERSION + 1} (the table)" in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {contract.TABLE_VERSION.name: "7"},
        {"n_items": 4},
        {"n_segments": 0},
        {"files": {}},
        {"files": {"items.npy": 3}},
        {"n_kinds": None},
        {"vocabulary_sha256": 1},
    ],
)
def test_a_manifest_that_does_not_fit_its_files_is_refused(serving: Path, values: dict[str, Any]) -> None:
    change_manifest(serving, **values)
    with pytest.raises(ArtifactError, match=MANIFEST_NAME):
        IntentTable.open(serving)


def test_files_of_two_tables_do_not_mix(serving: Path, tmp_path: Path) -> None:
    other = replace(small_arrays(), items=np.array([1, 2, 3], dtype=np.int64))
    publish_table(tmp_path / "other", other, n_segments=1, vocabulary_sha256="v")
    shutil.copy(tmp_path / "other" / "items.npy", serving / "items.npy")
    with pytest.raises(ArtifactError, match=r"items\.npy.*another table"):
        IntentTable.open(serving)


@pytest.mark.parametrize(
    ("name", "value"),
    [
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
        ("node_vectors", np.ones((4, 2), dtype=np.float32)),
        ("node_vectors", np.array([[0, 0], [1, 0], [np.nan, 0], [1, 0]], dtype=np.float32)),
        ("item_vectors", np.ones((ROWS, 2), dtype=np.float32)),
        ("item_vectors", np.zeros((ROWS, 3), dtype=np.float32)),
    ],
)
def test_arrays_that_break_the_format_are_neither_published_nor_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    broken = replace(small_arrays(), **{name: value})
    with pytest.raises(ArtifactError, match=name):
        publish_table(tmp_path / "serving", broken, n_segments=1, vocabulary_sha256="v")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(publish, "check_values", lambda *_: None)
    monkeypatch.setattr(publish, "check_dtypes_and_shapes", lambda *_: None)
    publish_table(tmp_path / "serving", broken, n_segments=1, vocabulary_sha256="v")
    with pytest.raises(ArtifactError, match=name):
        IntentTable.open(tmp_path / "serving")


def test_a_publisher_that_dies_leaves_the_old_table_in_place(serving: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = IntentTable.open(serving).table_version

    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(publish, "_take_name", fail)
    with pytest.raises(OSError, match="no space"):
        publish_table(serving, small_arrays(), n_segments=1, vocabulary_sha256="w")
    assert IntentTable.open(serving).table_version == before
    assert [path.name for path in serving.parent.iterdir()] == ["serving"]
