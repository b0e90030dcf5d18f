"""Our own Prometheus metrics, from inside Triton's Python models.

Each report to Triton is a message to another process, so counts are kept here and handed over at most
once in `REPORT_EVERY_S`, with the first batch after that time; on an idle server the last batches' counts wait.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import triton_python_backend_utils as pb_utils

REPORT_EVERY_S = 0.5
COVERAGE_BOUNDS = (0.0, 0.25, 0.5, 0.75, 0.9)
"""Upper bounds of the coverage histogram's buckets; the rest is `+Inf`."""
BATCH_BOUNDS = (1, 2, 4, 8, 16)


def bucket(value: float, bounds: tuple[float, ...]) -> str:
    """The smallest bound that a value does not exceed, as a label."""
    return next((f"{bound:g}" for bound in bounds if value <= bound), "+Inf")


class ModelMetrics:
    """Counters of one Python model.

    Args:
        table_version: of the table that it serves; None when it serves none.
    """

    def __init__(self, table_version: int | None = None) -> None:
        self._pending: Counter[tuple[str, str, str]] = Counter()
        self._last = time.monotonic()
        self._families = {
            name: pb_utils.MetricFamily(name=name, description=about, kind=pb_utils.MetricFamily.COUNTER)
            for name, about in (
                ("airserve_requests_by_coverage", "Requests by the share of behaviours with intents, at most `le`"),
                ("airserve_batches_by_size", "Batches by the requests executed in them, at most `le`"),
                ("airserve_refused_requests", "Requests refused, by tensor or reason"),
            )
        }
        self._counters: dict[tuple[str, str, str], Any] = {}
        if table_version is not None:
            self._gauge("airserve_table_version", "Version of the table served", float(table_version))
            self._gauge("airserve_table_loaded_seconds", "When the table was loaded, Unix time", time.time())

    def _gauge(self, name: str, about: str, value: float) -> None:
        family = pb_utils.MetricFamily(name=name, description=about, kind=pb_utils.MetricFamily.GAUGE)
        metric = family.Metric(labels={})
        metric.set(value)
        self._families[name] = family
        self._counters[name, "", ""] = metric

    def count_coverage(self, coverage: float) -> None:
        """One request was looked up."""
        self._pending["airserve_requests_by_coverage", "le", bucket(coverage, COVERAGE_BOUNDS)] += 1

    def count_refusal(self, reason: str) -> None:
        """One request was refused."""
        self._pending["airserve_refused_requests", "reason", reason] += 1

    def count_batch(self, requests: int) -> None:
        """One batch was executed; hands counts over when it is time."""
        self._pending["airserve_batches_by_size", "le", bucket(requests, BATCH_BOUNDS)] += 1
        if time.monotonic() - self._last >= REPORT_EVERY_S:
            self.report()

    def report(self) -> None:
        """Hand all counts over to Triton."""
        self._last = time.monotonic()
        for key, count in self._pending.items():
            name, label, value = key
            if key not in self._counters:
                self._counters[key] = self._families[name].Metric(labels={label: value})
            self._counters[key].increment(count)
        self._pending.clear()
