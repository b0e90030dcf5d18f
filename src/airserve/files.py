"""Write files whole or not at all: the one place of the project that puts a file under its final name.

The content goes to a temporary file in the same folder, which then takes the name in one rename. A reader sees the old
file or the new one. A writer that fails leaves the old file as it was, and no temporary file. A killed process can
leave a hidden file that ends in `PART_SUFFIX`; nothing reads it.

A new file has the mode that the umask implies (0666 & ~umask), also where the library that writes it sets another one:
safetensors makes its files 0600. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PART_SUFFIX = ".tmp"
"""End of a temporary file's name."""


@contextmanager
def atomic_path(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there becomes `path` when the block ends without an error.

    For libraries that want a path. The temporary file exists and is empty when the block starts. Its name ends in
    `PART_SUFFIX`, so a library that chooses a format by the name must be told the format.

    Args:
        path: the file to write; its parent folder is made where it is missing.
        sync: also flush the file and its folder to the disk, so that it survives a power failure.

    Yields:
        The path to write to.

    Raises:
        OSError: if the folder or the file cannot be written; what the block raises passes through too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PART_SUFFIX}")
    try:
        mode = _create(part)
        yield part
        if stat.S_IMODE(part.stat().st_mode) != mode:
            part.chmod(mode)
        if sync:
            sync_path(part)
        os.replace(part, path)
        if sync:
            sync_path(path.parent)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


@contextmanager
def atomic_stream(path: Path, *, sync: bool = False) -> Iterator[BinaryIO]:
    """Yield a binary stream whose content becomes `path` when the block ends without an error.

    Args:
        path: see `atomic_path`.
        sync: see `atomic_path`.

    Yields:
        The stream, open for writing.

    Raises:
        OSError: see `atomic_path`.
    """
    with atomic_path(path, sync=sync) as part, part.open("wb") as stream:
        yield stream


@contextmanager
def atomic_files(folder: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary folder; its files replace those of the same names in `folder` when the block ends.

    Each file appears whole, one after the other in the order of their names. Other files of `folder` stay.

    Args:
        folder: the folder to write into; made where it is missing.
        sync: see `atomic_path`.

    Yields:
        The folder to write to. It may hold files only, no folders.

    Raises:
        OSError: see `atomic_path`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=PART_SUFFIX, dir=folder.parent) as name:
        yield Path(name)
        for file in sorted(Path(name).iterdir()):
            with atomic_path(folder / file.name, sync=sync) as part:
                os.replace(file, part)


def write_bytes(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write a file of bytes.

    Args:
        path: see `atomic_path`.
        content: the whole file.
        sync: see `atomic_path`.

    Raises:
        OSError: see `atomic_path`.
    """
    with atomic_stream(path, sync=sync) as stream:
        stream.write(content)


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Write a text file in UTF-8; line ends stay as they are.

    Args:
        path: see `atomic_path`.
        text: the whole file.
        sync: see `atomic_path`.

    Raises:
        OSError: see `atomic_path`.
        UnicodeEncodeError: for a text that has no UTF-8 form (lone surrogates).
    """
    write_bytes(path, text.encode("utf-8"), sync=sync)


def write_json(path: Path, value: Any, *, indent: int | None = 2, sync: bool = False) -> None:
    """Write a value as JSON in UTF-8, with a line end behind it.

    Args:
        path: see `atomic_path`.
        value: anything that `json.dumps` takes.
        indent: spaces per level; None for one line.
        sync: see `atomic_path`.

    Raises:
        OSError: see `atomic_path`.
        TypeError: for a value that JSON cannot hold; nothing is written.
    """
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n", sync=sync)


def _create(path: Path) -> int:
    """Make an empty file and return its mode, which the kernel takes from the umask."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def sync_path(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
