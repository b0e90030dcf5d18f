"""What a server does when far more is asked than it can answer.

Peak: what the same generator gets in a closed loop. Goodput: calls answered with OK within the deadline, per second,
while `factor` times the peak is offered in an open loop, counted from `lead_s` on (when the queue has filled) until the
last call is due. A call counts from the moment at which it was due. Peaks and overloads take turns, and their means are
compared, so that a machine that others slow down for a while slows both. Calls themselves may take `watchdog_s`: one
that is not answered by then hangs.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from airserve.bench.flood import Flood
from airserve.bench.load import OK, Wire, closed_loop
from airserve.errors import UserError

UNAVAILABLE = "UNAVAILABLE"
HANGS = "DEADLINE_EXCEEDED"
PROBES_IN_A_ROW = 3
LONGEST_PAUSE_S = 0.001
"""How long the generator waits for an answer before it looks whether the next call is due."""


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
    concurrency: int = 16
    """Calls in flight when the peak is measured."""
    rounds: int = 3
    """Overloads, each between two measurements of the peak."""

    def __post_init__(self) -> None:
        for name in ("factor", "seconds", "deadline_s", "watchdog_s", "concurrency", "rounds"):
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
    outcome = Offered(seconds=settings.seconds)
    due_at: dict[int, float] = {}
    with Flood(url, messages, timeout_s=math.ceil(settings.watchdog_s)) as flood:
        begin = time.perf_counter()
        while (spent_s := time.perf_counter() - begin) < settings.seconds or due_at:
            if spent_s > settings.seconds + settings.watchdog_s:
                break
            if spent_s < settings.seconds:
                while outcome.sent < rate * spent_s:
                    due_at[flood.start(outcome.sent % len(messages))] = begin + outcome.sent / rate
                    outcome.sent += 1
            for stream, status in flood.ended(LONGEST_PAUSE_S):
                now = time.perf_counter()
                waited_s = now - due_at.pop(stream)
                outcome.statuses[status] += 1
                counts = waited_s <= settings.deadline_s and settings.lead_s <= now - begin <= settings.seconds
                outcome.good += status == OK and counts
                if status == UNAVAILABLE:
                    outcome.refused_ms.append(1e3 * waited_s)
    outcome.statuses[HANGS] += len(due_at)
    return outcome


def peak_per_s(url: str, messages: Sequence[bytes], settings: OverloadSettings) -> float:
    """Calls answered with OK per second while a fixed number is in flight, from the generator of the overload."""
    sent, in_flight, good = 0, 0, 0
    with Flood(url, messages, timeout_s=math.ceil(settings.watchdog_s)) as flood:
        begin = time.perf_counter()
        while (spent_s := time.perf_counter() - begin) < settings.seconds:
            while in_flight < settings.concurrency:
                flood.start(sent % len(messages))
                sent, in_flight = sent + 1, in_flight + 1
            for _, status in flood.ended(LONGEST_PAUSE_S):
                in_flight -= 1
                good += status == OK
        # What follows must find the server idle.
        while in_flight and time.perf_counter() - begin < settings.seconds + settings.watchdog_s:
            in_flight -= len(flood.ended(LONGEST_PAUSE_S))
    return good / spent_s


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
    """Overload a server again and again, and see what it does and how soon it is itself again.

    Returns:
        `goodput_share` of the peak, `hung` calls, `recovery_s` (the longest), and what they were made of.
    """
    usual_ms = closed_loop(url, messages, concurrency=1, seconds=settings.seconds / 2).quantile_ms(0.99)
    peaks = [peak_per_s(url, messages, settings)]
    outcomes: list[Offered] = []
    recovered_s: list[float] = []
    for _ in range(settings.rounds):
        outcomes.append(open_loop(url, messages, settings.factor * peaks[-1], settings))
        recovered_s.append(recovery_s(url, messages[0], usual_ms, settings))
        peaks.append(peak_per_s(url, messages, settings))
    peak = float(np.mean(peaks))
    statuses = sum((outcome.statuses for outcome in outcomes), Counter[str]())
    sent = sum(outcome.sent for outcome in outcomes)
    good_per_s = float(np.mean([outcome.good for outcome in outcomes])) / (settings.seconds - settings.lead_s)
    refused_ms = np.array([spent for outcome in outcomes for spent in outcome.refused_ms] or [0.0])
    return {
        "goodput_share": round(good_per_s / peak, 3) if peak else 0.0,
        "hung": statuses[HANGS],
        "recovery_s": round(max(recovered_s), 3),
        "peak_per_s": round(peak, 1),
        "offered_over_peak": round(sent / (settings.rounds * settings.seconds) / peak, 2) if peak else 0.0,
        "answered": statuses[OK],
        "refused": statuses[UNAVAILABLE],
        "otherwise": sent - statuses[OK] - statuses[UNAVAILABLE] - statuses[HANGS],
        "refusal_p99_ms": round(float(np.quantile(refused_ms, 0.99)), 1),
    }
