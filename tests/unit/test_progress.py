"""Progress on stderr: a bar on a terminal, now and then a line in a log."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from airserve import progress
from airserve.progress import LOG_EVERY_S, Progress, track


class Clock:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(progress, "time", fake)
    return fake


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    return stream


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    return stream


def test_a_short_step_leaves_nothing_in_a_log(clock: Clock, log: io.StringIO) -> None:
    with Progress("reading", 10, "titles") as bar:
        for _ in range(10):
            bar.advance()
            clock.now_s += 0.1
    assert log.getvalue() == ""


def test_a_log_gets_a_line_every_few_seconds_with_share_rate_and_time_left(clock: Clock, log: io.StringIO) -> None:
    with Progress("reading", 100, "titles") as bar:
        for _ in range(25):
            clock.now_s += LOG_EVERY_S / 10
            bar.advance(2)
    lines = log.getvalue().splitlines()
    assert len(lines) == 3
    assert "20%" in lines[0]
    assert "4 titles/s" in lines[0]
    assert "20 s left" in lines[0]
    assert "\r" not in log.getvalue()


def test_the_last_line_says_how_long_it_took(clock: Clock, log: io.StringIO) -> None:
    with Progress("reading", 4) as bar:
        clock.now_s += 2 * LOG_EVERY_S
        bar.advance(4)
    last = log.getvalue().splitlines()[-1]
    assert "100%" in last
    assert "10 s" in last
    assert "left" not in last


def test_a_terminal_gets_one_line_that_is_drawn_over_and_ended_once(clock: Clock, terminal: Terminal) -> None:
    with Progress("reading", 3) as bar:
        for _ in range(3):
            clock.now_s += 1.0
            bar.advance()
    text = terminal.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert all(len(drawn.rstrip("\n")) <= 79 for drawn in text.split("\r"))


def test_a_note_is_shown_behind_the_bar_until_the_next_one(clock: Clock, log: io.StringIO) -> None:
    with Progress("training", 3) as bar:
        for note in ("loss 0.9", "", "loss 0.5"):
            clock.now_s += LOG_EVERY_S
            bar.advance(note=note)
    lines = log.getvalue().splitlines()
    assert [line[-8:] for line in lines] == ["loss 0.9", "loss 0.9", "loss 0.5", "loss 0.5"]


def test_more_work_than_was_announced_is_never_more_than_all_of_it(clock: Clock, log: io.StringIO) -> None:
    with Progress("reading", 2) as bar:
        for _ in range(5):
            clock.now_s += LOG_EVERY_S
            bar.advance()
    assert "100%" in log.getvalue().splitlines()[-1]
    assert "-" not in log.getvalue()


def test_no_work_at_all_is_no_error(clock: Clock, log: io.StringIO) -> None:
    with Progress("reading", 0):
        clock.now_s += LOG_EVERY_S
    assert "reading" in log.getvalue()


def test_tracking_hands_on_every_item_in_order(clock: Clock, log: io.StringIO) -> None:
    assert list(track(iter("abc"), "reading", 3)) == ["a", "b", "c"]


def test_an_error_inside_passes_through(clock: Clock, log: io.StringIO) -> None:
    with pytest.raises(ZeroDivisionError), Progress("reading", 3):
        raise ZeroDivisionError


def test_nothing_goes_to_stdout(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", 2) as bar:
        clock.now_s += LOG_EVERY_S
        bar.advance(2)
    said = capsys.readouterr()
    assert said.out == ""
    assert "reading" in said.err


def test_rate_time_left_and_a_note_fit_a_terminal_of_80_columns(clock: Clock, terminal: Terminal) -> None:
    with Progress("writing intents", 1_000_000, "rows") as bar:
        clock.now_s += 10
        bar.advance(12_345, note="12,345 tok/s 91% hit")
        shown = terminal.getvalue().split("\r")[-1]
    assert len(shown) < 80
    assert "1,234 rows/s 800 s left 12,345 tok/s 91% hit" in shown
