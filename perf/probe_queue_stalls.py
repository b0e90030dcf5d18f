"""Show whether a Triton misses wake-ups when its own queue policy bounds a queue (airserve/triton/admission.py).

Single calls one after the other, on a server that has nothing else to do: no call should take much longer than the
others. Triton's dynamic batcher looks at its queue every 500 ms when it was not woken.
"""

import logging
import tempfile
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from airserve.artifacts import MODEL_CONFIG_FILE, SERVING_FOLDER
from airserve.bench.load import OK, closed_loop, encode_call
from airserve.bench.workload import WorkloadSettings, make_requests
from airserve.cli import run_script
from airserve.files import write_text
from airserve.progress import track
from airserve.table.lookup import ServedTable
from airserve.triton.config import ServingSettings
from airserve.triton.repository import RepositorySource, write_repository
from airserve.triton.server import ServerSettings, TritonServer

log = logging.getLogger("probe_queue_stalls")
STALL_MS = 400.0
POLICIES: dict[str, dict[str, int]] = {
    "unbounded": {},
    "max_queue_size": {"max_queue_size": 64},
    "timeout": {"default_timeout_microseconds": 500_000},
}


def bound_queues(repository: Path, policy: dict[str, int]) -> None:
    """Give every model with a batcher a queue policy of Triton's own."""
    for path in repository.glob(f"*/{MODEL_CONFIG_FILE}"):
        config = text_format.Parse(path.read_text(), pb.ModelConfig())
        if policy and config.HasField("dynamic_batching"):
            for name, value in policy.items():
                setattr(config.dynamic_batching.default_queue_policy, name, value)
            write_text(path, text_format.MessageToString(config))


def measure(url: str, messages: list[bytes], seconds: float, concurrency: int) -> dict[str, Any]:
    """Calls for a time, `concurrency` of them in flight; how many stalled or failed."""
    load = closed_loop(url, messages, concurrency=concurrency, seconds=seconds)
    calls = sum(load.statuses.values())
    stalled = int(np.sum(np.array(load.latencies_ms) > STALL_MS))
    return {"calls": calls, "stalled": stalled, "failed": calls - load.statuses[OK]}


def main(
    *,
    tables: Path = Path("artifacts/demo/tables"),
    engine: Path = Path("artifacts/demo/engine"),
    seconds: float = 5.0,
    tritonserver: Path | None = None,
) -> dict[str, object]:
    """Serve the fused variant under each policy, and count.

    Args:
        tables: tables folder.
        engine: folder with the exported graph.
        seconds: of calls, under each policy, with 1 and with 16 in flight.
        tritonserver: program of another Triton; by default the one of .venv-triton.
    """
    requests = make_requests(
        ServedTable.open(tables / SERVING_FOLDER), WorkloadSettings(behaviours=8, candidates=8, count=20)
    )
    messages = [encode_call(request) for request in requests]
    figures: dict[str, object] = {}
    for name, policy in track(POLICIES.items(), "queue policies", len(POLICIES), "policies"):
        with tempfile.TemporaryDirectory() as folder:
            source = RepositorySource(tables=tables, engine=engine, settings=ServingSettings(variant="fused"))
            repository = write_repository(source, Path(folder) / "repository")
            bound_queues(repository, policy)
            with TritonServer(ServerSettings(repository=repository, tritonserver=tritonserver)) as server:
                version = server.version()
                figures[name] = {
                    f"in_flight_{count}": measure(server.grpc_url, messages, seconds, count) for count in (16, 1)
                }
        log.info("%s: %s", name, figures[name])
    return {"triton": version, "policies": figures}


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
