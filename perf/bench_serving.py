"""Measure a served model against the same computation in process; starts its own Triton and stops by itself.

What limits it: the graph (in both), one gRPC round trip, the hand-over to the Python backend, the client. Ratios come
from interleaved calls of one run, so they hold on a machine that is not idle; milliseconds do not.
"""

import logging
import os
import tempfile
from pathlib import Path

os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client")  # read when gRPC is imported; see docs/SERVING.md

import cyclopts

from airserve import contract
from airserve.bench.growth import measure_growth
from airserve.bench.inprocess import InProcess
from airserve.bench.load import encode_call
from airserve.bench.overload import OverloadSettings, measure_overload
from airserve.bench.serving import ServingBench, measure_latency, measure_sizes, measure_throughput
from airserve.bench.workload import WorkloadSettings, make_requests
from airserve.cli import run_script
from airserve.triton.config import ServingSettings, Variant, executing_model
from airserve.triton.repository import RepositorySource, write_repository
from airserve.triton.server import ServerSettings, TritonServer

log = logging.getLogger("bench_serving")


def main(
    *,
    tables: Path = Path("artifacts/demo/tables"),
    engine: Path = Path("artifacts/demo/engine"),
    variant: Variant | None = None,
    rounds: int = 20,
    seconds: float = 3.0,
    concurrency: int = 16,
    overload_size: int = 1024,
    sizes: bool = False,
    rows: int | None = None,
    scratch: Path | None = None,
) -> dict[str, object]:
    """Serve, ask, compare.

    Args:
        tables: tables folder.
        engine: folder with the exported graph.
        variant: `stepwise` or `fused`; the default of the embedded server when not given.
        rounds: blocks of 20 single calls of each kind.
        seconds: length of each load, of which there are eight.
        concurrency: calls in flight when throughput and mean batch are measured.
        overload_size: L and C of the overload's requests; the largest keep small what refusing takes of the cores.
        sizes: also measure latency against L and C.
        rows: measure nothing but what a table of so many items costs, grown from the given one; same engine.
        scratch: where the grown table is written for the time (1.1 kB an item); the temporary folder when left out.
    """
    bench = ServingBench(rounds=rounds, seconds=seconds, concurrency=concurrency)
    settings = ServingSettings(variant=variant)
    if rows is not None:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            return measure_growth(tables, engine, Path(folder), rows=rows, settings=settings, rounds=rounds)
    local = InProcess(tables, engine)
    with tempfile.TemporaryDirectory() as folder:
        source = RepositorySource(tables=tables, engine=engine, settings=settings)
        repository = write_repository(source, Path(folder) / "repository")
        with TritonServer(ServerSettings(repository=repository)) as server:
            log.info("Triton %s serves the %s variant", server.version(), settings.variant_for("embedded"))
            figures: dict[str, object] = {**measure_latency(server.grpc_url, local, bench)}
            log.info("%s", figures)
            model = executing_model("embedded", settings)
            figures |= measure_throughput(server.grpc_url, server.pid, model, local, bench)
            log.info("%s", figures)
            if sizes:
                figures["sizes"] = measure_sizes(server.grpc_url, local)
            large = WorkloadSettings(behaviours=overload_size, candidates=overload_size, count=16)
            messages = [encode_call(request) for request in make_requests(local.table, large)]
            figures["overload"] = measure_overload(server.grpc_url, messages, OverloadSettings(seconds=seconds + 1.0))
    conditions = {
        "variant": settings.variant_for("embedded"),
        "contract_version": contract.CONTRACT_VERSION,
        "encoder": local.table.manifest.encoder,
        "grpc_experiments": os.environ["GRPC_EXPERIMENTS"],
    }
    return conditions | figures


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
