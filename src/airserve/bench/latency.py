"""Latency of single requests, one after the other.

What limits it: one gRPC round trip on loopback (about 0.3 ms), two Triton steps (about 0.13 ms each), the lookup and
the graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from airserve.progress import track

Request = TypeVar("Request")


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Percentiles over all timed calls, milliseconds."""

    p50_ms: float
    p99_ms: float
    mean_ms: float
    calls: int


def time_calls(
    call: Callable[[Request], object], requests: Sequence[Request], *, warmup: int = 20, title: str = "timing requests"
) -> Latency:
    """Time `call` on each request, after `warmup` untimed ones.

    Args:
        call: what is timed.
        requests: one timed call each; at least one.
        warmup: calls before, cycling through the requests.
        title: of the progress bar.
    """
    for at in range(warmup):
        call(requests[at % len(requests)])
    spent_s = []
    for request in track(requests, title, len(requests), "requests"):
        start = time.perf_counter()
        call(request)
        spent_s.append(time.perf_counter() - start)
    spent_ms = np.array(spent_s) * 1e3
    p50, p99 = np.percentile(spent_ms, [50, 99])
    return Latency(p50_ms=float(p50), p99_ms=float(p99), mean_ms=float(spent_ms.mean()), calls=len(requests))
