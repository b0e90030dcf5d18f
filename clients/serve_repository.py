"""Serve a model repository with the Triton server of .venv-triton until Ctrl-C, and say how to send a request."""

import logging
import signal
import threading
from pathlib import Path

import cyclopts

from airserve.cli import run_script
from airserve.errors import UserError
from airserve.triton.server import LOOPBACK, ServerSettings, ServerTls, TraceSettings, TritonServer

log = logging.getLogger("serve")


def main(
    *,
    repository: Path = Path("artifacts/demo/model_repository"),
    host: str = LOOPBACK,
    grpc_port: int = 8001,
    http_port: int = 8000,
    metrics_port: int = 8002,
    certificate: Path | None = None,
    private_key: Path | None = None,
    client_authorities: Path | None = None,
    trace: str | None = None,
    trace_one_in: int = 1000,
) -> None:
    """Start the server and wait.

    Args:
        repository: folder written by build/write_repository.py.
        host: address to listen on.
        grpc_port: of inference requests.
        http_port: of health checks and HTTP requests.
        metrics_port: of Prometheus metrics.
        certificate: PEM file of the server's certificate; gRPC is encrypted with it.
        private_key: PEM file of the certificate's key.
        client_authorities: PEM file; clients must show a certificate signed by one of them.
        trace: an OpenTelemetry collector's URL, or a file.
        trace_one_in: trace one request in so many.
    """
    if (certificate is None) != (private_key is None) or (client_authorities and certificate is None):
        raise UserError(
            "certificate, private_key",
            expected="both for TLS, and before client_authorities",
            got=f"{certificate} and {private_key}",
            remedy="give both",
        )
    tls = None
    if certificate is not None and private_key is not None:
        tls = ServerTls(certificate=certificate, private_key=private_key, client_authorities=client_authorities)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    settings = ServerSettings(
        repository=repository,
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        tls=tls,
        trace=None if trace is None else TraceSettings(target=trace, one_in=trace_one_in),
    )
    with TritonServer(settings) as server:
        log.info("serving %s with Triton %s", repository, server.version())
        log.info("gRPC %s, health http://%s/v2/health/ready", server.grpc_url, server.http_url)
        log.info("metrics http://%s/metrics", server.metrics_url)
        log.info("first request: .venv/bin/python clients/rank_once.py --url %s", server.grpc_url)
        stop.wait()
        log.info("stopping; requests in flight finish first")


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
