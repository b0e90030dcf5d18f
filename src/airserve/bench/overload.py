"""What a server does when far more is asked than it can answer.

Peak: what the same generator gets in a closed loop just before and just after. Goodput: calls answered with OK within
the deadline, per second, while `factor` times the peak is offered in an open loop, counted from `lead_s` on (when the
queue has filled) until the last call is sent. Calls themselves may take
`watchdog_s`: one that is not answered by then hangs.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from airserve.bench.load import OK, LoadResult, Wire, closed_loop
from airserve.errors import UserError

UNAVAILABLE = "UNAVAILABLE"
HANGS = "DEADLINE_EXCEEDED"
PROBES_IN_A_ROW = 3


@dataclass(frozen=True, kw_only=True)
class OverloadSettings:
    """How much is asked for how long."""

    factor: float = 10.0
    """Offered load over peak."""
    seconds: float = 4.0
    """Length of the overload and of each measurement of the peak."""
    deadline_s: float = 1.0
    """An answer later than this is not counted as goodput, and a refusal must come within it."""
    lead_s: float = 1.0
    """Not counted at the start of the overload; less than `seconds`."""
    watchdog_s: float = 10.0
    concurrency: int = 32
    """Calls in flight when the peak is measured."""

    def __post_init__(self) -> None:
        for name in ("factor", "seconds", "deadline_s", "watchdog_s", "concurrency"):
            value = getattr(self, name)
            if value <= 0:
                raise UserError(name, expected="more than 0", got=str(value), remedy="raise it")
        if not 0 <= self.lead_s < self.seconds:
            raise UserError(
                "lead_s", expected=f"0 to less than {self.seconds:g}", got=str(self.lead_s), remedy="lower it"
            )


@dataclass(kw_only=True)
class Offered:
    """Outcome of an open loop."""

    sent: int = 0
    seconds: float = 0.0
    good: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    refused_ms: list[float] = field(default_factory=list)


def open_loop(url: str, messages: Sequence[bytes], rate: float, settings: OverloadSettings) -> Offered:
    """Send `rate` calls per second whether or not they are answered, then wait for all answers."""
    outcome, lock = Offered(), threading.Lock()
    idle = threading.Semaphore(0)
    begin = time.perf_counter()

    def sent_at(start: float) -> Any:
        def done(status: str) -> None:
            now = time.perf_counter()
            spent_s = now - start
            with lock:
                outcome.statuses[status] += 1
                counts = spent_s <= settings.deadline_s and settings.lead_s <= now - begin <= settings.seconds
                outcome.good += status == OK and counts
                if status == UNAVAILABLE:
                    outcome.refused_ms.append(1e3 * spent_s)
            idle.release()

        return done

    with Wire(url) as wire:
        begin = time.perf_counter()
        while (now := time.perf_counter()) - begin < settings.seconds:
            if outcome.sent < rate * (now - begin):
                wire.start(messages[outcome.sent % len(messages)], settings.watchdog_s, sent_at(now))
                outcome.sent += 1
            else:
                time.sleep(0.0005)
        outcome.seconds = time.perf_counter() - begin
        for _ in range(outcome.sent):
            idle.acquire()
    return outcome


def recovery_s(url: str, message: bytes, usual_ms: float, settings: OverloadSettings) -> float:
    """Seconds until a few calls in a row are answered within twice the usual time (its p99); infinite if never."""
    begin, good = time.perf_counter(), 0
    first = 0.0
    with Wire(url) as wire:
        while time.perf_counter() - begin < settings.watchdog_s:
            start = time.perf_counter()
            status = wire.ask(message, settings.watchdog_s)
            if status == OK and 1e3 * (time.perf_counter() - start) <= 2 * usual_ms:
                first = first if good else start - begin
                good += 1
                if good == PROBES_IN_A_ROW:
                    return first
            else:
                good = 0
    return float("inf")


def measure_overload(url: str, messages: Sequence[bytes], settings: OverloadSettings) -> dict[str, float]:
    """Overload a server, and see what it does and how soon it is itself again.

    Returns:
        `goodput_share` of the peak, `hung` calls, `recovery_s`, and what they were made of.
    """

    def peak() -> LoadResult:
        return closed_loop(url, messages, concurrency=settings.concurrency, seconds=settings.seconds)

    quiet = closed_loop(url, messages, concurrency=1, seconds=settings.seconds / 2)
    before = peak()
    outcome = open_loop(url, messages, settings.factor * before.per_second, settings)
    recovered_s = recovery_s(url, messages[0], quiet.quantile_ms(0.99), settings)
    best = max(before.per_second, peak().per_second)
    known = outcome.statuses[OK] + outcome.statuses[UNAVAILABLE] + outcome.statuses[HANGS]
    refused_ms = np.array(outcome.refused_ms or [0.0])
    return {
        "goodput_share": round(outcome.good / (settings.seconds - settings.lead_s) / best, 3) if best else 0.0,
        "hung": outcome.statuses[HANGS],
        "recovery_s": round(recovered_s, 3),
        "peak_per_s": round(best, 1),
        "offered_over_peak": round(outcome.sent / outcome.seconds / best, 2) if best else 0.0,
        "answered": outcome.statuses[OK],
        "refused": outcome.statuses[UNAVAILABLE],
        "otherwise": outcome.sent - known,
        "refusal_p99_ms": round(float(np.quantile(refused_ms, 0.99)), 1),
    }
