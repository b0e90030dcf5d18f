"""The memory-mapped form of the atomic intent table: its files, its manifest and the checks at opening.

Runs inside the serving process: standard library and NumPy (1.26 and 2.x) only.

Shapes: N items, n event kinds, P paths per kind, D levels of a path, V vocabulary nodes with node 0, E vector width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.errors import ArtifactError

FORMAT = "airserve-intent-table-1"
MANIFEST_NAME = "manifest.json"
NO_PATH = -1
"""Fills the unused places of a kind's path numbers."""
REBUILD = "run offline/build_tables.py again"

Array = npt.NDArray[Any]

_DTYPES: dict[str, type[np.generic]] = {
    "items": np.int64,
    "kinds": np.uint64,
    "kind_paths": np.int32,
    "item_paths": np.int32,
    "paths": np.int32,
    "node_vectors": np.float32,
    "item_vectors": np.float32,
}


@dataclass(frozen=True, kw_only=True)
class TableManifest:
    """What `manifest.json` says of a published table."""

    contract_version: int
    table_version: int
    """52 bits of the files' hash unless the publisher gave a number."""
    n_segments: int
    """User segments 0 .. n_segments - 1 have kinds of their own."""
    n_items: int
    n_kinds: int
    n_paths: int
    n_nodes: int
    """With node 0."""
    vector_width: int
    catalogue_sha256: str
    """Of items.npy: which item has which catalogue row."""
    vocabulary_sha256: str
    """Of the vocabulary's ids, parents and texts."""
    files: Mapping[str, str]
    """File name -> sha256."""
    format: str = FORMAT

    def to_json(self) -> str:
        """Text of `manifest.json`."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, subject: str) -> TableManifest:
        """Parse and check the text of `manifest.json`; `subject` is named in messages.

        Raises:
            ArtifactError: if it is no manifest of this format and of this contract's version.
        """
        try:
            values = json.loads(text)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise ArtifactError(subject, expected="a JSON object", got="something else", remedy=REBUILD)
        if values.get("format") != FORMAT:
            raise ArtifactError(
                subject,
                expected=f"format {FORMAT}",
                got=str(values.get("format")),
                remedy="give a table's serving folder",
            )
        if values.get("contract_version") != contract.CONTRACT_VERSION:
            raise ArtifactError(
                subject,
                expected=f"contract version {contract.CONTRACT_VERSION} (this airserve)",
                got=f"contract version {values.get('contract_version')} (the table)",
                remedy=f"{REBUILD} with this version",
            )
        for field in fields(cls):
            kind = {"int": int, "str": str}.get(str(field.type), dict)
            value = values.get(field.name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ArtifactError(f"{subject}: {field.name}", expected=kind.__name__, got=repr(value), remedy=REBUILD)
        if not all(isinstance(digest, str) for digest in values["files"].values()):
            raise ArtifactError(f"{subject}: files", expected="a sha256 each", got="other values", remedy=REBUILD)
        return cls(**{field.name: values[field.name] for field in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class TableArrays:
    """The arrays of a table, one file each."""

    items: Array
    """int64 [N] item ids, ascending; item i has catalogue row i + FIRST_ITEM_ROW."""
    kinds: Array
    """uint64 [n] keys of event kinds, ascending, see `kind_keys`."""
    kind_paths: Array
    """int32 [n, P] path numbers, distinct, NO_PATH behind the last."""
    item_paths: Array
    """int32 [N + 2, P] default path numbers of each catalogue row; none in rows 0 and 1."""
    paths: Array
    """int32 [n_paths, D] node ids, coarse to fine, 0 behind the last."""
    node_vectors: Array
    """float32 [V, E], L2-normalised; row 0 zeros."""
    item_vectors: Array
    """float32 [N + 2, E], L2-normalised; rows 0 and 1 zeros."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each array that the others imply."""
        n_rows = len(self.items) + contract.FIRST_ITEM_ROW
        width = self.node_vectors.shape[-1] if self.node_vectors.ndim else 0
        return {
            "items": (len(self.items),),
            "kinds": (len(self.kinds),),
            "kind_paths": (len(self.kinds), contract.MAX_PATHS),
            "item_paths": (n_rows, contract.MAX_PATHS),
            "paths": (len(self.paths), contract.MAX_DEPTH),
            "node_vectors": (len(self.node_vectors), width),
            "item_vectors": (n_rows, width),
        }


def kind_keys(rows: Array, actions: Array, segments: Array | int, n_segments: int) -> npt.NDArray[np.int64]:
    """Keys of event kinds from catalogue rows, action numbers and segments < n_segments, in the rows' shape."""
    keys: npt.NDArray[np.int64] = (rows.astype(np.int64) * contract.N_ACTIONS + actions) * n_segments + segments
    return keys


def file_name(array_name: str) -> str:
    """File that holds an array of `TableArrays`."""
    return f"{array_name}.npy"


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_dtypes_and_shapes(arrays: TableArrays, subject: str) -> None:
    """Check the arrays against one another by dtype and shape only; reads no data.

    Raises:
        ArtifactError: naming the file.
    """
    for name, dtype in _DTYPES.items():
        array = getattr(arrays, name)
        if array.ndim == 0 or array.dtype != dtype:
            raise ArtifactError(
                f"{subject}/{file_name(name)}",
                expected=f"an array of {dtype.__name__}",
                got=f"{array.dtype} {list(array.shape)}",
                remedy=REBUILD,
            )
    for name, shape in arrays.shapes().items():
        got = getattr(arrays, name).shape
        if got != shape:
            raise ArtifactError(
                f"{subject}/{file_name(name)}", expected=f"shape {list(shape)}", got=str(list(got)), remedy=REBUILD
            )


def check_values(arrays: TableArrays, n_segments: int, subject: str) -> None:
    """Check every value that the lookup relies on: order, bounds, padding.

    Raises:
        ArtifactError: naming the file and what is wrong in it.
    """
    n_rows = len(arrays.items) + contract.FIRST_ITEM_ROW
    n_paths, n_nodes = len(arrays.paths), len(arrays.node_vectors)
    kinds = arrays.kinds.view(np.int64)
    first_key = contract.FIRST_ITEM_ROW * contract.N_ACTIONS * n_segments
    reserved = arrays.item_paths[: contract.FIRST_ITEM_ROW]
    facts: list[tuple[str, str, bool]] = [
        ("items", "ids in ascending order, each once", bool((arrays.items[1:] > arrays.items[:-1]).all())),
        ("items", f"no id {contract.PAD_ITEM}", contract.PAD_ITEM not in arrays.items[:1]),
        ("kinds", "keys in ascending order, each once", bool((kinds[1:] > kinds[:-1]).all())),
        (
            "kinds",
            "keys of items of this table",
            bool(((kinds >= first_key) & (kinds < n_rows * contract.N_ACTIONS * n_segments)).all()),
        ),
        ("item_paths", "no paths in the reserved rows", bool((reserved == NO_PATH).all())),
        ("paths", f"node ids below {n_nodes}", _within(arrays.paths, 0, n_nodes)),
        ("paths", "node ids coarse to fine without gaps", _packed(arrays.paths, contract.PAD_NODE)),
        ("paths", "at least one node in a path", bool((arrays.paths[:, 0] != contract.PAD_NODE).all())),
        ("node_vectors", "a row of zeros for node 0", n_nodes > 0 and not arrays.node_vectors[:1].any()),
        ("node_vectors", "finite numbers", bool(np.isfinite(arrays.node_vectors).all())),
        ("item_vectors", "zeros in the reserved rows", not arrays.item_vectors[: contract.FIRST_ITEM_ROW].any()),
        ("item_vectors", "finite numbers", bool(np.isfinite(arrays.item_vectors).all())),
    ]
    for name in ("kind_paths", "item_paths"):
        numbers = getattr(arrays, name)
        facts += [
            (name, f"path numbers below {n_paths}", _within(numbers, NO_PATH, n_paths)),
            (name, "path numbers without gaps", _packed(numbers, NO_PATH)),
            (name, "each path once in a row", _distinct_in_rows(numbers)),
        ]
    for name, expected, holds in facts:
        if not holds:
            raise ArtifactError(f"{subject}/{file_name(name)}", expected=expected, got="other values", remedy=REBUILD)


def _within(array: Array, low: int, high: int) -> bool:
    return bool(array.size == 0 or (array.min() >= low and array.max() < high))


def _packed(array: Array, empty: int) -> bool:
    """Whether no filled place of a row stands behind an empty one."""
    filled = array != empty
    return not bool((filled[:, 1:] & ~filled[:, :-1]).any())


def _distinct_in_rows(array: Array) -> bool:
    ordered = np.sort(array, axis=1)
    return not bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_PATH)).any())


def read_table(folder: Path, *, verify: bool = True) -> tuple[TableManifest, TableArrays]:
    """Memory-map a published `serving/` folder.

    Args:
        folder: the folder with `manifest.json`.
        verify: also hash every file and check every value; without it only the manifest, dtypes and shapes.

    Raises:
        ArtifactError: if it is missing, damaged, incomplete, or of another format or contract version.
    """
    manifest_path = folder / MANIFEST_NAME
    try:
        text = manifest_path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            str(manifest_path),
            expected="the manifest of a published table",
            got=type(error).__name__,
            remedy="give a table's serving folder, or run offline/build_tables.py",
        ) from None
    manifest = TableManifest.from_json(text, str(manifest_path))
    arrays = TableArrays(**{name: _map_file(folder, name, manifest, verify=verify) for name in _DTYPES})
    check_dtypes_and_shapes(arrays, str(folder))
    counts = {
        "n_items": len(arrays.items),
        "n_kinds": len(arrays.kinds),
        "n_paths": len(arrays.paths),
        "n_nodes": len(arrays.node_vectors),
        "vector_width": arrays.node_vectors.shape[1],
    }
    for name, count in counts.items():
        if getattr(manifest, name) != count:
            raise ArtifactError(
                f"{manifest_path}: {name}", expected=str(getattr(manifest, name)), got=str(count), remedy=REBUILD
            )
    if manifest.n_segments < 1:
        raise ArtifactError(
            f"{manifest_path}: n_segments", expected=">= 1", got=str(manifest.n_segments), remedy=REBUILD
        )
    if verify:
        check_values(arrays, manifest.n_segments, str(folder))
    return manifest, arrays


def _map_file(folder: Path, name: str, manifest: TableManifest, *, verify: bool) -> Array:
    path = folder / file_name(name)
    expected = manifest.files.get(path.name)
    if expected is None:
        raise ArtifactError(
            str(folder / MANIFEST_NAME), expected=f"a sha256 of {path.name}", got="none", remedy=REBUILD
        )
    try:
        if verify and (got := file_sha256(path)) != expected:
            raise ArtifactError(
                str(path),
                expected=f"sha256 {expected[:12]}",
                got=f"{got[:12]}: the file is damaged or from another table",
                remedy=f"copy the whole folder again or {REBUILD}",
            )
        # A plain view of the map: indexing np.memmap itself costs several times more.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(
            str(path),
            expected="a NumPy file as published",
            got=f"{type(error).__name__}: {error}",
            remedy=f"copy the whole folder again or {REBUILD}",
        ) from None
