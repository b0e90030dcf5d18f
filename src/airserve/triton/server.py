"""Start and stop a real Triton server as a child process.

The server is the one that the `nvidia-pytriton` wheel carries (tritonserver 2.51.0 with the Python backend), installed
in an environment of its own with NumPy 1.x, which its Python backend needs. It runs without a GPU. In production the
Triton container takes its place; see docs/PRODUCTION.md.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from airserve import contract
from airserve.artifacts import PLAN_MANIFEST
from airserve.errors import EngineError, UserError
from airserve.export.runtime import check_runtime, runtime

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


LOWEST_FREE_PORT, PORTS_OF_CLIENTS = 20_000, 32_768
"""Ports are chosen below those that the kernel gives to outgoing connections: a port that was free when it was chosen
is wanted seconds later, when the server has loaded its models."""
_given_ports: set[int] = set()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on right now, another one at each call.

    Raises:
        EngineError: when there is none.
    """
    for port in random.sample(range(LOWEST_FREE_PORT, PORTS_OF_CLIENTS), 1000):
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            if port not in _given_ports:
                _given_ports.add(port)
                return port
    raise EngineError(f"ports {LOWEST_FREE_PORT} to {PORTS_OF_CLIENTS}: no free one found; give the ports yourself")


FAILED_HANDSHAKES = ("is not healthy", "boost::interprocess::lock_exception")
"""What Triton says, or dies of, when a Python model's process does not answer in time while it is loaded; seen with
2.51.0 on an overloaded machine, gone at the next start."""
START_ATTEMPTS = 3
HIGHEST_PORT = 65535
KILL_AFTER_S = 5.0
"""Past `stop_timeout_s`, for the models to be unloaded."""
LOG_TAIL = 20
"""Lines of the log that a failed start shows."""


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """Certificates of the server's gRPC endpoint, PEM files. HTTP stays plain: keep it on the loopback interface."""

    certificate: Path
    private_key: Path
    client_authorities: Path | None = None
    """Ask clients for a certificate signed by one of these (mutual TLS)."""

    def __post_init__(self) -> None:
        for name in ("certificate", "private_key", "client_authorities"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise UserError(name, expected="a PEM file", got=f"{path}, no such file", remedy="check the path")

    def arguments(self) -> list[str]:
        """For the tritonserver command line."""
        given = [
            "--grpc-use-ssl=1",
            f"--grpc-server-cert={self.certificate.resolve()}",
            f"--grpc-server-key={self.private_key.resolve()}",
        ]
        if self.client_authorities is not None:
            given += ["--grpc-use-ssl-mutual=1", f"--grpc-root-cert={self.client_authorities.resolve()}"]
        return given


@dataclass(frozen=True, kw_only=True)
class TraceSettings:
    """Traces of requests through the steps."""

    target: str
    """An OpenTelemetry collector's URL (`http://host:4318/v1/traces`), or a file for Triton's own JSON."""
    one_in: int = 1000
    """Trace one request in so many."""

    def __post_init__(self) -> None:
        if self.one_in < 1:
            raise UserError("one_in", expected="at least 1", got=str(self.one_in), remedy="1 traces every request")

    def arguments(self) -> list[str]:
        """For the tritonserver command line."""
        given = [f"--trace-config=rate={self.one_in}", "--trace-config=level=TIMESTAMPS"]
        if "://" in self.target:
            return [*given, "--trace-config=mode=opentelemetry", f"--trace-config=opentelemetry,url={self.target}"]
        return [*given, "--trace-config=mode=triton", f"--trace-config=triton,file={Path(self.target).resolve()}"]


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where the server and its models are, and how it listens."""

    repository: Path
    """The model repository to serve."""
    environment: Path = Path(".venv-triton")
    """The virtual environment with nvidia-pytriton and numpy<2."""
    tritonserver: Path | None = None
    """A tritonserver to run instead of that environment's, such as the Triton container's."""
    host: str = LOOPBACK
    grpc_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    start_timeout_s: float = 120.0
    stop_timeout_s: float = 20.0
    """Seconds that requests in flight may take once the server is told to stop; Kubernetes waits 30 by default."""
    tls: ServerTls | None = None
    """Encrypt gRPC."""
    trace: TraceSettings | None = None
    """Trace requests."""
    log: Path | None = None
    """File for the server's own log; by default a temporary one, shown when the start fails."""

    def __post_init__(self) -> None:
        if not (self.repository / contract.ENSEMBLE_MODEL).is_dir():
            raise UserError(
                str(self.repository),
                expected=f"a model repository with the ensemble `{contract.ENSEMBLE_MODEL}`",
                got="none",
                remedy="write one with build/write_repository.py",
            )
        if self.tritonserver is not None and not self.tritonserver.is_file():
            raise UserError(
                "tritonserver",
                expected="the server's program",
                got=f"{self.tritonserver}, no such file",
                remedy="leave it out to run the embedded server",
            )
        ports = {name: getattr(self, name) for name in ("grpc_port", "http_port", "metrics_port")}
        for name, port in ports.items():
            if not 1 <= port <= HIGHEST_PORT:
                raise UserError(name, expected=f"1 to {HIGHEST_PORT}", got=str(port), remedy="choose another")
        if len(set(ports.values())) < len(ports):
            given = ", ".join(f"{name} {port}" for name, port in ports.items())
            raise UserError("ports", expected="three different ones", got=given, remedy="change one")
        for name, usual in (("start_timeout_s", 120), ("stop_timeout_s", 20)):
            if getattr(self, name) <= 0:
                raise UserError(
                    name, expected="seconds > 0", got=str(getattr(self, name)), remedy=f"{usual} is the default"
                )


def plan_of(repository: Path) -> dict[str, Any]:
    """The manifest of a repository's TensorRT plan, empty without one."""
    for path in repository.glob(f"{contract.RANKER_MODEL}/*/{PLAN_MANIFEST}"):
        return dict(json.loads(path.read_text()))
    return {}


def find_site_packages(environment: Path) -> Path:
    """The site-packages of the server's environment.

    Raises:
        UserError: when the environment or the server in it is missing.
    """
    for site in sorted(environment.glob("lib/python3.*/site-packages")):
        if (site / "pytriton" / "tritonserver" / "bin" / "tritonserver").exists():
            return site.resolve()
    raise UserError(
        str(environment),
        expected="an environment with nvidia-pytriton",
        got="nothing of the kind" if environment.exists() else "no such folder",
        remedy="run `make setup`",
    )


def how_it_failed(code: int | None, timeout_s: float) -> str:
    """Why a start was given up, from the exit code of the process; None while it runs."""
    if code is None:
        return f"not ready within {timeout_s:g} s; give it longer, or look for what holds it up"
    if code < 0:
        return f"ended by signal {-code} ({signal.Signals(-code).name}); after SIGKILL look at the machine's memory"
    return f"ended with exit code {code}"


def what_went_wrong(lines: Sequence[str]) -> str:
    """The errors in a server's log, models that could not be loaded included, and the log's end."""
    texts = [re.sub(r"\s{2,}", " ", line.strip("| ")) for line in lines if not line.startswith("+-")]
    errors = [text for text in texts if re.match(r"E\d{4} |error:", text) or " UNAVAILABLE: " in text]
    found = "\n".join(dict.fromkeys(errors)) or "none"
    return f"errors in its log:\n{found}\nthe end of its log:\n" + "\n".join(texts[-LOG_TAIL:])


class TritonServer:
    """A running tritonserver; use as a context manager.

    Attributes:
        grpc_url: `host:port` for gRPC clients.
        http_url: `host:port` for HTTP clients and health checks.
        metrics_url: `host:port` of the Prometheus metrics.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.grpc_url = f"{settings.host}:{settings.grpc_port}"
        self.http_url = f"{settings.host}:{settings.http_port}"
        self.metrics_url = f"{settings.host}:{settings.metrics_port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch = Path(tempfile.mkdtemp(prefix="airserve-triton-"))
        self.log_path = settings.log or self._scratch / "triton.log"

    @property
    def urls(self) -> tuple[str, str, str]:
        """`host:port` of gRPC, HTTP and metrics."""
        return self.grpc_url, self.http_url, self.metrics_url

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise EngineError("triton: not started; use it as a context manager or call start()")
        return self._process.pid

    def _write_backends(self, site: Path) -> Path:
        """A backend directory with the Python backend and the stub of this Python's version."""
        folder = self._scratch / "backends"
        bundled = site / "pytriton" / "tritonserver"
        shutil.copytree(bundled / "backends" / "python", folder / "python")
        version = site.parent.name.removeprefix("python")
        stub = bundled / "python_backend_stubs" / version / "triton_python_backend_stub"
        if not stub.exists():
            raise UserError(str(site), expected="a stub for this Python version", got=version, remedy="use Python 3.11")
        shutil.copy2(stub, folder / "python" / stub.name)
        return folder

    def command(self, backends: Path, site: Path) -> list[str]:
        """The tritonserver command line of the embedded server."""
        program = site / "pytriton" / "tritonserver" / "bin" / "tritonserver"
        return [str(program), f"--backend-directory={backends}", "--allow-gpu-metrics=false", *self.arguments()]

    def arguments(self) -> list[str]:
        """What any tritonserver is told."""
        s = self.settings
        plan = plan_of(s.repository)
        return [
            f"--model-repository={s.repository.resolve()}",
            f"--grpc-address={s.host}",
            f"--http-address={s.host}",
            f"--metrics-address={s.host}",
            f"--grpc-port={s.grpc_port}",
            f"--http-port={s.http_port}",
            f"--metrics-port={s.metrics_port}",
            "--disable-auto-complete-config",
            "--exit-on-error=true",
            f"--exit-timeout-secs={math.ceil(s.stop_timeout_s)}",
            *(["--backend-config=tensorrt,version-compatible=true"] if plan.get("version_compatible") else []),
            *(s.tls.arguments() if s.tls else []),
            *(s.trace.arguments() if s.trace else []),
        ]

    def _environment(self, site: Path) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        base_lib = Path(sys.base_prefix) / "lib"
        env["LD_LIBRARY_PATH"] = f"{site / 'nvidia_pytriton.libs'}:{base_lib}"
        # The stub finds its packages through the `python` on PATH; PYTHONPATH does not reach it.
        env["PYTHONHOME"] = sys.base_prefix
        env["PATH"] = f"{site.parents[2] / 'bin'}:{env.get('PATH', '')}"
        env["OMP_NUM_THREADS"] = env["OPENBLAS_NUM_THREADS"] = "1"
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        return env

    def start(self) -> TritonServer:
        """Start the server and wait until every model is ready, its warm-up requests included.

        A start that fails because the machine was too busy to run a model's process is tried again.

        Raises:
            ArtifactError: for a TensorRT plan that was built for another TensorRT or GPU.
            EngineError: when it ends or is not ready in time; the end of its log is part of the message.
        """
        if plan := plan_of(self.settings.repository):
            check_runtime(plan, runtime())
        if self.settings.tritonserver is not None:
            command, env = [str(self.settings.tritonserver), *self.arguments()], dict(os.environ)
        else:
            site = find_site_packages(self.settings.environment)
            command, env = self.command(self._write_backends(site), site), self._environment(site)
        for attempt in range(1, START_ATTEMPTS + 1):
            if self._launch(command, env):
                return self
            code = self._process.poll() if self._process is not None else None
            lines = self.log_path.read_text(errors="replace").splitlines()
            if attempt == START_ATTEMPTS or not any(sign in line for line in lines for sign in FAILED_HANDSHAKES):
                break
            self._end()
            log.warning("triton: a model's process got no CPU time while it was loading; starting again")
        self.stop()
        raise EngineError(f"triton: {how_it_failed(code, self.settings.start_timeout_s)}; {what_went_wrong(lines)}")

    def _launch(self, command: list[str], env: dict[str, str]) -> bool:
        """Start the process; whether it became ready in time."""
        with open(self.log_path, "wb") as log_file:
            self._process = subprocess.Popen(
                command,
                env=env,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + self.settings.start_timeout_s
        while self._process.poll() is None and time.monotonic() < deadline:
            if self.is_ready():
                return True
            time.sleep(0.1)
        return False

    def is_ready(self) -> bool:
        """Whether the server answers and all its models are loaded."""
        try:
            with urllib.request.urlopen(f"http://{self.http_url}/v2/health/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def version(self) -> str:
        """The server's own version, e.g. `2.51.0`."""
        with urllib.request.urlopen(f"http://{self.http_url}/v2", timeout=5) as answer:
            return str(json.load(answer)["version"])

    def metrics(self) -> str:
        """The Prometheus text of the server."""
        with urllib.request.urlopen(f"http://{self.metrics_url}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=self.settings.stop_timeout_s + KILL_AFTER_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._process = None

    def stop(self) -> None:
        """Let requests in flight finish, then end the server; kill it when it takes too long."""
        self._end()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> TritonServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
