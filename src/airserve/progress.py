"""Progress of long steps: a bar with an ETA on a terminal, a line every few seconds in a log.

Everything goes to stderr; stdout belongs to a script's one JSON line.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")
LOG_EVERY_S = 5.0


class Progress:
    """Count `total` units of work under a title; use as a context manager and call `advance`.

    Args:
        title: what is being done, shown in front.
        total: units of work.
        unit: what a unit is, e.g. `titles`.
    """

    def __init__(self, title: str, total: int, unit: str = "") -> None:
        self.title = title
        self.total = max(total, 1)
        self.unit = unit
        self.done = 0
        self.note = ""
        self._tty = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        self._start = self._last = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show(final=True)

    def advance(self, units: int = 1, note: str = "") -> None:
        """Add finished units; `note` (say, a loss) is shown behind the bar."""
        self.done += units
        if note:
            self.note = note
        if time.monotonic() - self._last >= (0.2 if self._tty else LOG_EVERY_S):
            self._show()

    def _show(self, *, final: bool = False) -> None:
        self._last = time.monotonic()
        spent_s = self._last - self._start
        if final and spent_s < LOG_EVERY_S and not self._tty:
            return
        share = min(self.done / self.total, 1.0)
        rate = self.done / spent_s if spent_s > 0 else 0.0
        left = f"{max(self.total - self.done, 0) / rate:.0f} s left" if rate and not final else f"{spent_s:.0f} s"
        # With a note the rest is narrower, so that all of it fits 80 columns.
        width, length = (15, 10) if self.note else (22, 16)
        bar = "#" * int(length * share)
        text = f"{self.title[:22]:{width}} [{bar:{length}}] {share:4.0%} {rate:,.0f} {self.unit}/s {left} {self.note}"
        if self._tty:
            sys.stderr.write("\r" + text[:79].ljust(79) + ("\n" if final else ""))
        else:
            sys.stderr.write(text.rstrip() + "\n")
        sys.stderr.flush()


def track(items: Iterable[T], title: str, total: int, unit: str = "") -> Iterator[T]:
    """Iterate over `items` under a `Progress`."""
    with Progress(title, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()
