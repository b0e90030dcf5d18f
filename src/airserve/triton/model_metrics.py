"""Our own Prometheus metrics, from inside Triton's Python models.

Each value given to Triton is a message to another process (0.1 to 4 ms), so observations are kept here, and a thread
counts them and hands the counts over every `REPORT_EVERY_S`. Histograms are counters named as Prometheus names a
histogram's (`_bucket` with `le`, cumulative, `_sum`, `_count`): Triton's own histograms take one message per
observation.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_left
from collections import defaultdict, deque
from typing import Any

import triton_python_backend_utils as pb_utils

log = logging.getLogger(__name__)

REPORT_EVERY_S = 0.5
COVERAGE = "airserve_coverage"
BATCH_SIZE = "airserve_batch_size"
SECONDS = "airserve_execution_seconds"
REFUSED = "airserve_refused_requests"
CANDIDATES = "airserve_candidates"
UNKNOWN = "airserve_unknown_candidates"
HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    COVERAGE: ("Share of a request's behaviours that have intents", (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)),
    BATCH_SIZE: ("Requests executed together", (1, 2, 4, 8, 16, 32, 64, 128)),
    SECONDS: (
        "Time of a request in the model, with its batch, without the queue",
        (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0),
    ),
}
"""Name: what it says, and the buckets' upper bounds."""
Key = tuple[str, str, str]


_BUCKET_KEYS: dict[str, tuple[Key, ...]] = {
    name: tuple((f"{name}_bucket", "le", label) for label in (*(f"{bound:g}" for bound in bounds), "+Inf"))
    for name, (_, bounds) in HISTOGRAMS.items()
}


class ModelMetrics:
    """Counters of one Python model.

    Args:
        table_version: of the table that it serves; None when it serves none.
        published_s: when that table was written, Unix time.
    """

    def __init__(self, table_version: int | None = None, published_s: float = 0.0) -> None:
        self._observed: deque[tuple[str, float | str, int]] = deque()
        """What was observed since the last report: metric, value or reason, how often. Threads append and pop."""
        self._families: dict[str, Any] = {}
        self._metrics: dict[Key, Any] = {}
        for name, (about, _) in HISTOGRAMS.items():
            for part in ("bucket", "sum", "count"):
                self._counter(f"{name}_{part}", about)
        self._counter(REFUSED, "Requests refused, by tensor or reason")
        if table_version is not None:
            self._counter(CANDIDATES, "Candidates asked for")
            self._counter(UNKNOWN, "Candidates asked for that the table does not know")
        if table_version is not None:
            self._gauge("airserve_table_version", "Version of the table served", float(table_version))
            self._gauge("airserve_table_published_seconds", "When the table was written, Unix time", published_s)
            self._gauge("airserve_table_loaded_seconds", "When the table was loaded, Unix time", time.time())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._report_often, name="metrics", daemon=True)
        self._thread.start()

    def _counter(self, name: str, about: str) -> None:
        self._families[name] = pb_utils.MetricFamily(name=name, description=about, kind=pb_utils.MetricFamily.COUNTER)

    def _gauge(self, name: str, about: str, value: float) -> None:
        family = pb_utils.MetricFamily(name=name, description=about, kind=pb_utils.MetricFamily.GAUGE)
        metric = family.Metric(labels={})
        metric.set(value)
        self._families[name] = family
        self._metrics[name, "", ""] = metric

    def observe_coverage(self, coverage: float) -> None:
        """One request was looked up."""
        self._observed.append((COVERAGE, coverage, 1))

    def count_candidates(self, asked: int, unknown: int) -> None:
        """Candidates were looked up."""
        self._observed.append((CANDIDATES, "", asked))
        if unknown:
            self._observed.append((UNKNOWN, "", unknown))

    def count_refusal(self, reason: str, times: int = 1) -> None:
        """Requests were refused."""
        self._observed.append((REFUSED, reason, times))

    def observe_batch(self, requests: int, seconds: float) -> None:
        """A batch of so many answered requests took so long."""
        if requests:
            self._observed.append((BATCH_SIZE, requests, 1))
            self._observed.append((SECONDS, seconds, requests))

    def _report_often(self) -> None:
        while not self._ended.wait(REPORT_EVERY_S):
            try:
                self.report()
            except Exception as error:  # the models serve on without their metrics
                log.warning("metrics: %r", error)

    def _take_counts(self) -> dict[Key, float]:
        """What was observed since the last call, as counters; it is taken away."""
        counts: defaultdict[Key, float] = defaultdict(float)
        for _ in range(len(self._observed)):
            name, value, times = self._observed.popleft()
            if isinstance(value, str):
                counts[(name, "reason", value) if value else (name, "", "")] += times
                continue
            for key in _BUCKET_KEYS[name][bisect_left(HISTOGRAMS[name][1], value) :]:
                counts[key] += times
            counts[f"{name}_count", "", ""] += times
            counts[f"{name}_sum", "", ""] += times * value
        return counts

    def report(self) -> None:
        """Hand all counts over to Triton; called by one thread at a time."""
        for key, count in self._take_counts().items():
            name, label, value = key
            if key not in self._metrics:
                self._metrics[key] = self._families[name].Metric(labels={label: value} if label else {})
            if count:
                self._metrics[key].increment(count)

    def close(self) -> None:
        """End the thread; called when the model is unloaded."""
        self._ended.set()
        self._thread.join(timeout=2 * REPORT_EVERY_S)
