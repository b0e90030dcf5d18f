"""Publish a table: all of it or nothing, under one name, while servers may have the old one open."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from airserve import contract
from airserve.artifacts import MANIFEST_FILE
from airserve.files import atomic_stream, sync_path, write_text
from airserve.table.format import (
    FORMATS,
    Arrays,
    TableManifest,
    Weighing,
    check_dtypes_and_shapes,
    check_values,
    file_name,
    file_sha256,
)

_VERSION_BITS = 52
"""A version fits a JavaScript number, and a float64, exactly."""
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def publish_table(
    folder: Path,
    arrays: Arrays,
    *,
    n_segments: int,
    vocabulary_sha256: str,
    table_version: int | None = None,
    encoder: str = "",
    weighing: Weighing | None = None,
) -> TableManifest:
    """Write a table to `folder`, replacing the one that is there.

    The files are written and synced in a folder beside it, `manifest.json` last, and take the name in one rename.
    Servers that mapped the old files keep them until they close them. Equal content gives equal files.

    Args:
        folder: e.g. the `serving/` folder.
        arrays: the table.
        n_segments: user segments with kinds of their own.
        vocabulary_sha256: of the vocabulary that the node ids are of.
        table_version: a number of the publisher's own; None for 52 bits of the content's hash.
        encoder: identity of the encoder that made the rows of a served table.
        weighing: of that encoder.

    Raises:
        ArtifactError: if the arrays break the format.
    """
    check_dtypes_and_shapes(arrays, "table to publish")
    check_values(arrays, n_segments, "table to publish")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    numbers = {} if weighing is None else asdict(weighing)
    try:
        files, sizes = _write_arrays(temporary, arrays)
        content = [files, n_segments, vocabulary_sha256, encoder, numbers]
        manifest = TableManifest(
            format=FORMATS[type(arrays)],
            contract_version=contract.CONTRACT_VERSION,
            table_version=_version_of(content) if table_version is None else table_version,
            n_segments=n_segments,
            counts=arrays.counts(),
            catalogue_sha256=files[file_name("items")],
            vocabulary_sha256=vocabulary_sha256,
            files=files,
            sizes=sizes,
            encoder=encoder,
            weighing=numbers,
        )
        write_text(temporary / MANIFEST_FILE, manifest.to_json(), sync=True)
        _take_name(temporary, folder)
        sync_path(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _write_arrays(folder: Path, arrays: Arrays) -> tuple[dict[str, str], dict[str, int]]:
    """Write one synced file per array; sha256 and bytes of each file, by its name."""
    files, sizes = {}, {}
    for name in arrays.DTYPES:
        path = folder / file_name(name)
        with atomic_stream(path, sync=True) as stream:
            np.save(stream, np.ascontiguousarray(getattr(arrays, name)), allow_pickle=False)
        files[path.name], sizes[path.name] = file_sha256(path), path.stat().st_size
    return files, sizes


def _version_of(content: list[Any]) -> int:
    text = json.dumps([contract.CONTRACT_VERSION, *content], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> (64 - _VERSION_BITS)


def _take_name(new: Path, folder: Path) -> None:
    """Give `new` the name `folder`; what had it is under `new`'s name afterwards, or gone."""
    if not folder.exists():
        os.rename(new, folder)
        return
    if _exchange(new, folder):
        return
    # No exchange on this file system: for an instant there is no folder of that name, never half of one.
    old = folder.with_name(f"{folder.name}.old-{os.getpid()}")
    os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step (Linux renameat2); False where that is not to be had."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    names = (os.fsencode(first.absolute()), os.fsencode(second.absolute()))
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
