"""A server that does not start says why: what of it failed, in its own words, first."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from airserve import contract
from airserve.errors import EngineError
from airserve.triton.server import (
    LOG_TAIL,
    PORTS_OF_CLIENTS,
    ServerSettings,
    TritonServer,
    free_port,
    how_it_failed,
    what_went_wrong,
)

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
backend: "python"
max_batch_size: 1
input { name: "a" data_type: TYPE_FP32 dims: [1] }
output { name: "b" data_type: TYPE_FP32 dims: [1] }
"""


def settings(folder: Path, model: str, *, start_timeout_s: float = 120.0, port: int | None = None) -> ServerSettings:
    """A repository of one small model with this source."""
    version = folder / contract.ENSEMBLE_MODEL / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    (version / "model.py").write_text(model)
    return ServerSettings(
        repository=folder,
        environment=ROOT / ".venv-triton",
        start_timeout_s=start_timeout_s,
        grpc_port=port or free_port(),
    )


@pytest.mark.triton
def test_a_model_that_cannot_be_loaded_is_named_with_its_own_reason(tmp_path: Path) -> None:
    model = "class TritonPythonModel:\n    def initialize(self, args):\n        raise RuntimeError('no table here')\n"
    with pytest.raises(EngineError) as caught:
        TritonServer(settings(tmp_path, model)).start()
    first, _, rest = str(caught.value).partition("\n")
    assert first == "triton: ended with exit code 1; errors in its log:"
    errors = rest.split("the end of its log:")[0]
    assert contract.ENSEMBLE_MODEL in errors
    assert "no table here" in errors


@pytest.mark.triton
def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        port = free_port()
        other.bind(("127.0.0.1", port))
        other.listen()
        model = "class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"
        with pytest.raises(EngineError, match=f"127.0.0.1:{port}' already in use"):
            TritonServer(settings(tmp_path, model, port=port)).start()


@pytest.mark.triton
def test_a_start_that_takes_too_long_says_so_and_leaves_no_process(tmp_path: Path) -> None:
    model = "import time\nclass TritonPythonModel:\n    def initialize(self, args):\n        time.sleep(600)\n"
    server = TritonServer(settings(tmp_path, model, start_timeout_s=2.0))
    with pytest.raises(EngineError, match="not ready within 2 s"):
        server.start()
    with pytest.raises(EngineError, match="not started"):
        _ = server.pid


def test_each_port_is_free_given_once_and_not_one_that_a_client_may_get() -> None:
    ports = [free_port() for _ in range(200)]
    assert len(set(ports)) == len(ports)
    assert max(ports) < PORTS_OF_CLIENTS
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", ports[0]))


def test_a_process_that_was_killed_is_told_from_one_that_gave_up() -> None:
    assert "SIGKILL" in how_it_failed(-signal.SIGKILL, 120.0)
    assert how_it_failed(3, 120.0) == "ended with exit code 3"


def test_errors_are_found_before_the_tables_that_hide_them() -> None:
    table = ["+----+----+", "| Option      | Value |", "| server_id      | triton      |"] * 30
    wrong = ["| air   | 1   | UNAVAILABLE: Internal: no such table |", "E1123 10:24:59.7 1 main.cc:245] cannot start"]
    text = what_went_wrong([*wrong, *table])
    errors, end = text.split("the end of its log:\n")
    assert errors == (
        "errors in its log:\nair | 1 | UNAVAILABLE: Internal: no such table\n"
        "E1123 10:24:59.7 1 main.cc:245] cannot start\n"
    )
    assert len(end.splitlines()) == LOG_TAIL
    assert "+-" not in end
