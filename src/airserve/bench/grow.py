"""A served table of any number of items, made of a small one by repeating its rows: for measuring what size costs.

What limits it: the disk. An item of the demo takes 1.1 kB, most of them rows and neighbours.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.artifacts import MANIFEST_FILE
from airserve.errors import UserError
from airserve.files import write_text
from airserve.table.format import ServedArrays, TableManifest, file_name, file_sha256
from airserve.table.lookup import ServedTable

log = logging.getLogger(__name__)
CHUNK = 1 << 18
BY_ROW = (
    "item_paths",
    "item_likeness",
    "item_tokens",
    "item_targets",
    "item_prior",
    "item_bias",
    "neighbours",
    "neighbour_weights",
)


def _chunks(start: int, stop: int) -> Iterator[slice]:
    for low in range(start, stop, CHUNK):
        yield slice(low, min(low + CHUNK, stop))


def grow_table(small: ServedTable, n_items: int, folder: Path) -> TableManifest:
    """Write a table of `n_items` items: those of a small one, then new ids with the rows of random items of it.

    New items have kinds of their own as the item had that they repeat. Written straight to files, a chunk at a time, so
    memory does not grow with it; not atomic, for it is scratch.

    Args:
        small: an opened table.
        n_items: at least as many as it has.
        folder: made; must not exist.

    Raises:
        UserError: if there are fewer items than the small table has.
    """
    arrays, manifest = small.arrays, small.manifest
    old = len(arrays.items)
    if not 0 < old <= n_items:
        raise UserError("--rows", expected=f"at least {old} items", got=str(n_items), remedy="raise it")
    folder.mkdir(parents=True)
    first = contract.FIRST_ITEM_ROW
    source = np.random.default_rng(0).integers(0, old, n_items - old).astype(np.int32)
    new_items = arrays.items[-1] + 1 + np.arange(n_items - old)
    np.save(folder / file_name("items"), np.concatenate([arrays.items, new_items]))
    for name in BY_ROW:
        array = getattr(arrays, name)
        grown = _new_file(folder, name, array, n_items + first)
        grown[: old + first] = array
        for part in _chunks(0, n_items - old):
            grown[part.start + old + first : part.stop + old + first] = array[source[part] + first]
        grown.flush()
        del grown
    _grow_kinds(small, source, folder)
    for name in ("paths", "node_rows"):
        np.save(folder / file_name(name), np.asarray(getattr(arrays, name)))
    return _write_manifest(manifest, n_items, folder)


def _new_file(folder: Path, name: str, like: npt.NDArray[Any], rows: int) -> Any:
    """A mapped file of as many rows, else shaped as an array."""
    shape = (rows, *like.shape[1:])
    return np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        folder / file_name(name), mode="w+", dtype=like.dtype, shape=shape
    )


def _grow_kinds(small: ServedTable, source: npt.NDArray[np.int32], folder: Path) -> None:
    arrays = small.arrays
    per_row = contract.N_ACTIONS * small.manifest.n_segments
    rows, rest = np.divmod(np.asarray(arrays.kinds).astype(np.int64), per_row)
    starts = np.searchsorted(rows, np.arange(arrays.n_rows + 1))
    counts = np.diff(starts)[contract.FIRST_ITEM_ROW :][source]
    total = len(rows) + int(counts.sum())
    names = ("kinds", "kind_paths", "kind_likeness")
    grown = {name: _new_file(folder, name, getattr(arrays, name), total) for name in names}
    for name, array in grown.items():
        array[: len(rows)] = getattr(arrays, name)
    at = len(rows)
    for part in _chunks(0, len(source)):
        owned = counts[part]
        new_rows = np.repeat(np.arange(part.start, part.stop) + arrays.n_rows, owned)
        begins = starts[contract.FIRST_ITEM_ROW :][source[part]]
        inside = np.arange(len(new_rows)) - np.repeat(np.cumsum(owned) - owned, owned)
        old_kinds = np.repeat(begins, owned) + inside
        span = slice(at, at + len(new_rows))
        grown["kinds"][span] = (new_rows * per_row + rest[old_kinds]).astype(np.uint64)
        for name in ("kind_paths", "kind_likeness"):
            grown[name][span] = getattr(arrays, name)[old_kinds]
        at = span.stop


def _write_manifest(manifest: TableManifest, n_items: int, folder: Path) -> TableManifest:
    paths = [folder / file_name(name) for name in ServedArrays.DTYPES]
    files = {path.name: file_sha256(path) for path in paths}
    n_kinds = len(np.load(folder / file_name("kinds"), mmap_mode="r"))
    grown = TableManifest(
        **{
            **vars(manifest),
            "counts": {**manifest.counts, "n_items": n_items, "n_kinds": n_kinds},
            "files": files,
            "sizes": {path.name: path.stat().st_size for path in paths},
            "catalogue_sha256": files[file_name("items")],
        }
    )
    write_text(folder / MANIFEST_FILE, grown.to_json())
    return grown
