"""NVIDIA's perf_analyzer against a served repository: where it is, what it is asked, what it said.

perf_analyzer is C++: unlike a load generator in Python it takes little of the cores that the server runs on.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from airserve import contract
from airserve.errors import EngineError, UserError

Array = npt.NDArray[Any]
PROGRAM = "perf_analyzer"
THROUGHPUT = "Inferences/Second"
P50_US = "p50 latency"
P99_US = "p99 latency"
UNBOUNDED_PERCENT = "1000"
"""Of instability that is accepted: without stable windows it writes no report."""


@dataclass(frozen=True, kw_only=True)
class AnalyzerSettings:
    """How long and how often is measured."""

    program: Path
    """The perf_analyzer binary."""
    libraries: str = ""
    """Folders for LD_LIBRARY_PATH, in front of what is there."""
    window_ms: int = 2000
    """Length of one measurement."""
    trials: int = 3
    """Measurements that the figures are the mean of."""

    def __post_init__(self) -> None:
        if self.window_ms < 1 or self.trials < 1:
            raise UserError(
                "window_ms, trials", expected="1 or more", got=f"{self.window_ms}, {self.trials}", remedy="raise them"
            )


def find_analyzer(given: Path | None) -> Path | None:
    """The binary that was given, or the one on PATH; None without one."""
    if given is not None:
        return given if given.is_file() and os.access(given, os.X_OK) else None
    found = shutil.which(PROGRAM)
    return None if found is None else Path(found)


def input_data(requests: Sequence[Mapping[str, Array]]) -> dict[str, Any]:
    """Calls of one request each, as perf_analyzer's `--input-data` wants them."""
    return {
        "data": [
            {
                spec.name: {"content": request[spec.name].ravel().tolist(), "shape": list(request[spec.name].shape[1:])}
                for spec in contract.REQUEST
            }
            for request in requests
        ]
    }


def analyze(url: str, requests: Sequence[Mapping[str, Array]], concurrency: int, settings: AnalyzerSettings) -> Any:
    """Keep `concurrency` calls in flight over gRPC, and measure.

    Returns:
        `per_s`, `p50_ms` and `p99_ms`.

    Raises:
        EngineError: when perf_analyzer fails; its last lines are part of the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        data, report = Path(folder) / "data.json", Path(folder) / "report.csv"
        data.write_text(json.dumps(input_data(requests)))
        command = [str(settings.program), "-m", contract.ENSEMBLE_MODEL, "-i", "grpc", "-u", url, "--input-data", data]
        command += ["--concurrency-range", str(concurrency), "-p", str(settings.window_ms), "-s", UNBOUNDED_PERCENT]
        command += ["-r", str(settings.trials), "--percentile", "50", "-f", report]
        env = dict(os.environ)
        if settings.libraries:
            env["LD_LIBRARY_PATH"] = f"{settings.libraries}:{env.get('LD_LIBRARY_PATH', '')}".rstrip(":")
        done = subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True, check=False)
        if not report.exists():
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
            raise EngineError(f"{PROGRAM}: exit status {done.returncode}, no report; its last lines:\n{tail}")
        return read_report(report.read_text())


def read_report(text: str) -> dict[str, float]:
    """The figures of a report with one line of measurements.

    Raises:
        EngineError: for a report without them.
    """
    rows = list(csv.DictReader(text.splitlines()))
    if not rows or not {THROUGHPUT, P50_US, P99_US} <= set(rows[0]):
        raise EngineError(f"{PROGRAM}: a report without {THROUGHPUT}, {P50_US} and {P99_US}: {text[:200]!r}")
    return {
        "per_s": round(float(rows[0][THROUGHPUT]), 1),
        "p50_ms": round(float(rows[0][P50_US]) / 1e3, 3),
        "p99_ms": round(float(rows[0][P99_US]) / 1e3, 3),
    }
