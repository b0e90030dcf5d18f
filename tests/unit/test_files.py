"""Files appear whole or not at all, with the umask's mode."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from airserve.files import PART_SUFFIX, atomic_files, atomic_path, atomic_stream, write_bytes, write_json, write_text


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_each_writer_writes_what_it_is_given_and_makes_the_parent_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    write_text(folder / "text", "Katze 猫\r\n")
    write_bytes(folder / "bytes", b"\0\1")
    write_json(folder / "json", {"name": "猫"}, indent=None)
    assert (folder / "text").read_bytes() == "Katze 猫\r\n".encode()
    assert (folder / "bytes").read_bytes() == b"\0\1"
    assert (folder / "json").read_bytes() == '{"name": "猫"}\n'.encode()
    assert names(folder) == ["bytes", "json", "text"]


def test_a_crash_in_the_middle_leaves_the_old_file_whole_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def crash() -> None:
        with atomic_stream(path) as stream:
            stream.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crash()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_the_old_file_stands_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with atomic_path(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
        assert part.parent == tmp_path
        assert part.name.startswith(".")
        assert part.name.endswith(PART_SUFFIX)
    assert path.read_text() == "new"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_path(path) as first, atomic_path(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_surfaces_as_it_came(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError) as caught, atomic_path(path):
        raise full
    assert caught.value is full
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError):
        write_text(tmp_path / "taken", "a folder has this name")
    assert names(tmp_path) == ["taken"]


def test_a_value_that_json_cannot_hold_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == "old"


def test_a_file_has_the_mode_that_the_umask_implies(tmp_path: Path, umask: int) -> None:
    write_text(tmp_path / "file", "")
    assert mode_of(tmp_path / "file") == 0o666 & ~umask


def test_a_library_that_makes_private_files_does_not_decide_the_mode(tmp_path: Path, umask: int) -> None:
    with atomic_path(tmp_path / "weights") as part:
        save_file({"a": np.zeros(3, dtype=np.float32)}, part)  # 0600 in safetensors 0.8
    assert mode_of(tmp_path / "weights") == 0o666 & ~umask


def test_the_mode_of_the_old_file_does_not_stay(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o600)
    write_text(path, "new")
    assert mode_of(path) == 0o666 & ~umask


def test_syncing_flushes_the_file_before_and_the_folder_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []
    path = tmp_path / "file"

    def fsync(descriptor: int) -> None:
        seen.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "not synced")
    assert not seen
    path.unlink()
    write_text(path, "synced", sync=True)
    assert seen == [(False, False), (True, True)]


def test_files_of_a_folder_are_replaced_together_at_the_end(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "model"
    write_text(folder / "kept", "kept")
    write_text(folder / "weights", "old")
    with atomic_files(folder) as part:
        (part / "weights").write_text("new")
        (part / "weights").chmod(0o600)
        (part / "config").write_text("new")
        assert (folder / "weights").read_text() == "old"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "kept": "kept",
        "weights": "new",
        "config": "new",
    }
    assert mode_of(folder / "weights") == mode_of(folder / "config") == 0o666 & ~umask
    assert names(tmp_path) == ["model"]


def test_a_crash_while_a_folders_files_are_made_changes_none_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_text(folder / "weights", "old")

    def crash() -> None:
        with atomic_files(folder) as part:
            (part / "weights").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        crash()
    assert (folder / "weights").read_text() == "old"
    assert names(tmp_path) == ["model"]
