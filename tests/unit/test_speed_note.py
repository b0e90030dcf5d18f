"""The lookup reckons from the ranker's noted speed what can still be ranked in time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from airserve.triton.speed_note import Pace, SpeedNote, note_path


def test_a_note_is_read_by_who_opened_it_before_it_was_there(tmp_path: Path) -> None:
    reader = SpeedNote(tmp_path / "note", write=False)
    assert reader.read() == 0.0
    writer = SpeedNote(tmp_path / "note", write=True)
    assert reader.read() == 0.0
    writer.write(0.125)
    assert reader.read() == 0.125


def test_a_note_crosses_processes_of_one_parent_and_is_removed_in_the_end(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from airserve.triton.speed_note import SpeedNote, note_path\n"
        "path = note_path('m', Path(sys.argv[1]))\n"
        "note = SpeedNote(path, write=len(sys.argv) > 2)\n"
        "note.write(float(sys.argv[2])) if len(sys.argv) > 2 else print(path.name, note.read())"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), "0.5"], check=True)
    told = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    name, value = told.stdout.split()
    assert value == "0.5"
    assert name != note_path("m", tmp_path).name, "another parent, another place"
    SpeedNote(tmp_path / name, write=False).close()
    assert list(tmp_path.iterdir()) == []


def test_without_a_note_everything_is_passed_on(tmp_path: Path) -> None:
    pace = Pace(SpeedNote(tmp_path / "none", write=False), budget_s=0.1)
    for _ in range(100):
        pace.take(1e9)
    assert pace.has_room()


@pytest.fixture
def note(tmp_path: Path) -> SpeedNote:
    note = SpeedNote(tmp_path / "note", write=True)
    note.write(10.0)
    return note


def test_no_more_is_passed_on_than_the_ranker_does_in_the_budget(note: SpeedNote) -> None:
    pace = Pace(note, budget_s=60.0)
    passed = 0
    while pace.has_room():
        pace.take(1.0)
        passed += 1
    assert passed == 7, "six take a minute, some time has passed since the first"


def test_time_makes_room_again(note: SpeedNote) -> None:
    note.write(0.05)
    pace = Pace(note, budget_s=0.01)
    pace.take(1.0)
    assert not pace.has_room()
    time.sleep(0.06)
    assert pace.has_room()
