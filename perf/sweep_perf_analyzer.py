"""Measure serving configurations with NVIDIA's perf_analyzer: variants, instances, batches, queue delays.

Each configuration gets its own Triton. The committed result (docs/results/serving/sweep.json) is where the defaults of
`ServingSettings` come from. What limits it: the graph, on the cores that server and perf_analyzer share.
"""

import dataclasses
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import cyclopts

from airserve.artifacts import SERVING_FOLDER
from airserve.bench.analyzer import AnalyzerSettings, analyze, find_analyzer
from airserve.bench.load import executed
from airserve.bench.workload import WorkloadSettings, make_requests
from airserve.cli import run_script
from airserve.files import write_json
from airserve.progress import track
from airserve.table.lookup import ServedTable
from airserve.triton.config import ServingSettings, executing_model
from airserve.triton.repository import RepositorySource, write_repository
from airserve.triton.server import ServerSettings, TritonServer

log = logging.getLogger("sweep_perf_analyzer")
GRID: tuple[dict[str, Any], ...] = (
    {"variant": "fused"},
    {"variant": "fused", "max_queue_delay_us": 500},
    {"variant": "fused", "max_queue_delay_us": 2000},
    {"variant": "fused", "max_drained": 8},
    {"variant": "fused", "max_drained": 32},
    {"variant": "fused", "ranker_threads": 2},
    {"variant": "fused", "ranker_instances": 2},
    {"variant": "stepwise"},
    {"variant": "stepwise", "max_queue_delay_us": 500},
    {"variant": "stepwise", "ranker_instances": 2},
)


def measure(
    settings: ServingSettings, tables: Path, engine: Path, analyzer: AnalyzerSettings, concurrency: int
) -> dict[str, Any]:
    """Serve one configuration; single calls, then many at once with L and C of 1 to 128."""
    table = ServedTable.open(tables / SERVING_FOLDER)
    alike = make_requests(table, WorkloadSettings(count=64))
    mixed = make_requests(table, WorkloadSettings(count=64, mixed=True))
    with tempfile.TemporaryDirectory() as folder:
        source = RepositorySource(tables=tables, engine=engine, settings=settings)
        repository = write_repository(source, Path(folder) / "repository")
        with TritonServer(ServerSettings(repository=repository)) as server:
            single = analyze(server.grpc_url, alike, 1, analyzer)
            before = executed(server.grpc_url, executing_model("embedded", settings))
            many = analyze(server.grpc_url, mixed, concurrency, analyzer)
            after = executed(server.grpc_url, executing_model("embedded", settings))
    return {"single": single, "many": {**many, "mean_batch": round(after.mean_batch_since(before), 2)}}


def main(
    *,
    tables: Path = Path("artifacts/demo/tables"),
    engine: Path = Path("artifacts/demo/engine"),
    perf_analyzer: Path | None = None,
    libraries: str = "",
    concurrency: int = 16,
    window_ms: int = 2000,
    out: Path = Path("docs/results/serving/sweep.json"),
) -> dict[str, object]:
    """Measure all configurations of the grid.

    Args:
        tables: tables folder.
        engine: folder with the exported graph.
        perf_analyzer: the binary; the one on PATH when not given.
        libraries: folders with libraries that it needs, colon-separated.
        concurrency: calls in flight in the second measurement.
        window_ms: length of a measurement.
        out: where the table of results goes, JSON.
    """
    program = find_analyzer(perf_analyzer)
    if program is None:
        log.warning("NOT MEASURED: no perf_analyzer; it comes with Triton's SDK container and tritonclient's wheels")
        return {"skipped": "no perf_analyzer"}
    analyzer = AnalyzerSettings(program=program, libraries=libraries, window_ms=window_ms)
    rows = []
    for changes in track(GRID, "serving configurations", len(GRID), "configurations"):
        rows.append({**changes, **measure(ServingSettings(**changes), tables, engine, analyzer, concurrency)})
        log.info("%s", rows[-1])
    about = {"concurrency": concurrency, "window_ms": window_ms, "cores": os.cpu_count(), "target": "embedded"}
    defaults = dataclasses.asdict(ServingSettings())
    write_json(out, {**about, "defaults": defaults, "configurations": rows})
    fastest = max(rows, key=lambda row: row["many"]["per_s"])
    return {"out": str(out), "configurations": len(rows), "fastest": fastest}


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
