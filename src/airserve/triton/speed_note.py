"""How fast the ranker is, noted where the lookup can read it, so that what cannot be ranked in time is not looked up.

An ensemble has no queue of its own: its first step takes what it can do itself, and a quick lookup in front of a slow
ranker passes on many times what the ranker then refuses. On cores that both share, that work is missing in answers.
Both are children of one server, so a file of one number in shared memory, named after that server, is enough.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time
from pathlib import Path

from airserve.files import write_bytes

FOLDER = Path("/dev/shm")
"""The Python backend needs it too."""
NUMBER = struct.Struct("=d")


def note_path(model: str, folder: Path = FOLDER) -> Path:
    """Where a model of this process's server notes its speed; other servers and containers have other places."""
    container = Path("/proc/self/ns/pid").stat().st_ino
    return folder / f"airserve-{container}-{os.getppid()}-{model}"


class SpeedNote:
    """One number in a mapped file: seconds per cost.

    Args:
        path: the file.
        write: make it (the model that is noted), or wait for it to appear (who reads it).
    """

    def __init__(self, path: Path, *, write: bool) -> None:
        self._path = path
        self._map: mmap.mmap | None = None
        if write:
            write_bytes(path, NUMBER.pack(0.0))
            self._open()

    def _open(self) -> None:
        with contextlib.suppress(OSError), open(self._path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), NUMBER.size)

    def write(self, seconds_per_cost: float) -> None:
        """Note a speed."""
        if self._map is not None:
            NUMBER.pack_into(self._map, 0, seconds_per_cost)

    def read(self) -> float:
        """The noted speed; 0 while there is none."""
        if self._map is None:
            self._open()
        return float(NUMBER.unpack_from(self._map, 0)[0]) if self._map is not None else 0.0

    def close(self) -> None:
        """Remove the note."""
        self._path.unlink(missing_ok=True)


class Pace:
    """What the ranker still has to do, reckoned from what was passed on and how fast it is.

    It needs no answer from the ranker, so requests that Triton drops between the steps cost nothing for long.

    Args:
        note: of the ranker.
        budget_s: seconds of work that may wait, > 0.
    """

    def __init__(self, note: SpeedNote, budget_s: float) -> None:
        self._note = note
        self._budget_s = budget_s
        self._done_at = 0.0

    def has_room(self) -> bool:
        """Whether one more request would be ranked in time."""
        return self._done_at - time.monotonic() < self._budget_s

    def take(self, cost: float) -> None:
        """A request is passed on."""
        self._done_at = max(self._done_at, time.monotonic()) + cost * self._note.read()
