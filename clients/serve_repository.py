"""Serve a model repository until Ctrl-C, and say how to send a request.

With the Triton server of .venv-triton, or with another one (`--tritonserver`), such as the Triton container's.
"""

import logging
import signal
import threading
from pathlib import Path

import cyclopts

from airserve.cli import run_script
from airserve.errors import UserError
from airserve.triton.config import ServingSettings
from airserve.triton.repository import RepositorySource, write_repository
from airserve.triton.server import LOOPBACK, ServerSettings, ServerTls, TraceSettings, TritonServer

log = logging.getLogger("serve")


def write_from(tables: Path | None, engine: Path | None, out: Path, limits: dict[str, int | None]) -> None:
    """Write the repository when tables and engine are given; refuse what would be ignored."""
    given = {name: value for name, value in limits.items() if value is not None}
    if tables is not None and engine is not None:
        settings = ServingSettings(**given)
        write_repository(RepositorySource(tables=tables, engine=engine, settings=settings), out)
    elif tables is not None or engine is not None or given:
        raise UserError(
            "tables, engine",
            expected="both, or neither and no limits",
            got=f"{tables} and {engine}, limits {given}",
            remedy="give both; a repository that is already written has its limits in it",
        )


def tls_from(certificate: Path | None, private_key: Path | None, client_authorities: Path | None) -> ServerTls | None:
    """The certificates, when they were given whole."""
    if (certificate is None) != (private_key is None) or (client_authorities and certificate is None):
        raise UserError(
            "certificate, private_key",
            expected="both for TLS, and before client_authorities",
            got=f"{certificate} and {private_key}",
            remedy="give both",
        )
    if certificate is None or private_key is None:
        return None
    return ServerTls(certificate=certificate, private_key=private_key, client_authorities=client_authorities)


def main(
    *,
    repository: Path = Path("artifacts/demo/model_repository"),
    tables: Path | None = None,
    engine: Path | None = None,
    max_queue_size: int | None = None,
    queue_timeout_us: int | None = None,
    tritonserver: Path | None = None,
    host: str = LOOPBACK,
    grpc_port: int = 8001,
    http_port: int = 8000,
    metrics_port: int = 8002,
    certificate: Path | None = None,
    private_key: Path | None = None,
    client_authorities: Path | None = None,
    trace: str | None = None,
    trace_one_in: int = 1000,
    stop_timeout_s: float = 20.0,
) -> None:
    """Start the server and wait.

    Args:
        repository: folder written by build/write_repository.py.
        tables: write the repository anew from this tables folder, and `engine`; for the embedded server.
        engine: folder with the exported graph.
        max_queue_size: with `tables`: requests that wait; more are refused as UNAVAILABLE.
        queue_timeout_us: with `tables`: work that waits, microseconds; more is refused.
        tritonserver: program of another Triton; by default the one of .venv-triton.
        host: address to listen on.
        grpc_port: of inference requests.
        http_port: of health checks and HTTP requests.
        metrics_port: of Prometheus metrics.
        certificate: PEM file of the server's certificate; gRPC is encrypted with it.
        private_key: PEM file of the certificate's key.
        client_authorities: PEM file; clients must show a certificate signed by one of them.
        trace: an OpenTelemetry collector's URL, or a file.
        trace_one_in: trace one request in so many.
        stop_timeout_s: how long requests in flight may take after SIGTERM.
    """
    write_from(tables, engine, repository, {"max_queue_size": max_queue_size, "queue_timeout_us": queue_timeout_us})
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    settings = ServerSettings(
        repository=repository,
        tritonserver=tritonserver,
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        tls=tls_from(certificate, private_key, client_authorities),
        stop_timeout_s=stop_timeout_s,
        trace=None if trace is None else TraceSettings(target=trace, one_in=trace_one_in),
    )
    with TritonServer(settings) as server:
        log.info("serving %s with Triton %s", repository, server.version())
        log.info("gRPC %s, health http://%s/v2/health/ready, metrics http://%s/metrics", *server.urls)
        log.info("first request: .venv/bin/python clients/rank_once.py --url %s", server.grpc_url)
        stop.wait()
        log.info("stopping; requests in flight finish first")


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
