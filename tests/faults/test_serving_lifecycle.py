"""Requests in flight when a server is told to stop, and requests that nobody waits for any more."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from airserve import contract
from airserve.bench.inprocess import InProcess
from airserve.bench.load import OK, Wire, encode_call, executed
from airserve.bench.synthetic import write_engine, write_tables
from airserve.bench.workload import WorkloadSettings, make_requests
from airserve.triton.config import ServingSettings, Variant, executing_model
from airserve.triton.repository import RepositorySource, write_repository
from airserve.triton.server import ServerSettings, TraceSettings, TritonServer

pytestmark = pytest.mark.triton
ROOT = Path(__file__).resolve().parents[2]
VARIANTS: tuple[Variant, ...] = ("fused", "stepwise")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lifecycle")
    write_tables(folder / "tables")
    write_engine(folder / "tables", folder / "engine")
    for variant in VARIANTS:
        settings = ServingSettings(
            variant=variant, queue_timeout_us=60_000_000
        )  # what is refused for its number is not of interest here
        source = RepositorySource(tables=folder / "tables", engine=folder / "engine", settings=settings)
        write_repository(source, folder / variant)
    return folder


def large_messages(made: Path) -> list[bytes]:
    table = InProcess(made / "tables", made / "engine").table
    requests = make_requests(table, WorkloadSettings(behaviours=1024, candidates=1024, count=8))
    return [encode_call(request) for request in requests]


@pytest.mark.parametrize("variant", VARIANTS)
def test_requests_in_flight_are_answered_when_the_server_is_told_to_stop(made: Path, variant: Variant) -> None:
    messages = large_messages(made)
    answers: Counter[str] = Counter()
    settings = ServerSettings(repository=made / variant, environment=ROOT / ".venv-triton")
    with TritonServer(settings) as server, Wire(server.grpc_url) as wire:
        ended = threading.Semaphore(0)

        def done(status: str) -> None:
            answers[status] += 1
            ended.release()

        for message in messages:
            wire.start(message, 60.0, done)
        # The first answer shows that all have arrived: they went out together on one connection.
        assert ended.acquire(timeout=60)
        os.kill(server.pid, signal.SIGTERM)
        for _ in messages[1:]:
            assert ended.acquire(timeout=60)
    assert answers == {OK: len(messages)}


def test_waiting_requests_whose_deadline_passed_are_not_computed(made: Path) -> None:
    """Fused only: Triton does not tell a step of an ensemble that its client gave up."""
    message = large_messages(made)[0]
    model = executing_model("embedded", ServingSettings(variant="fused"))
    given_up = 200
    settings = ServerSettings(repository=made / "fused", environment=ROOT / ".venv-triton")
    with TritonServer(settings) as server, Wire(server.grpc_url) as wire:
        assert wire.ask(message, 60.0) == OK
        before = executed(server.grpc_url, model).inferences
        ended = threading.Semaphore(0)
        statuses: Counter[str] = Counter()

        def done(status: str) -> None:
            statuses[status] += 1
            ended.release()

        for _ in range(given_up):
            wire.start(message, 0.15, done)
        for _ in range(given_up):
            assert ended.acquire(timeout=60)
        assert wire.ask(message, 60.0) == OK
        executions = executed(server.grpc_url, model).inferences - before - 1
        time.sleep(1.2)  # our metrics are handed over twice a second
        ended_early = sum(
            float(line.rsplit(" ", 1)[1]) for line in server.metrics().splitlines() if 'reason="cancelled"' in line
        )
    # Triton counts what a model was given; the model counts what it then did not compute.
    computed = executions - ended_early
    print(f"{dict(statuses)}, given to the model {executions}, computed {computed:.0f}")
    assert statuses["DEADLINE_EXCEEDED"] > given_up // 2
    assert computed < given_up // 2


def test_traces_go_through_every_step_when_asked_for(made: Path, tmp_path: Path) -> None:
    trace = TraceSettings(target=str(tmp_path / "trace.json"), one_in=1)
    settings = ServerSettings(repository=made / "stepwise", environment=ROOT / ".venv-triton", trace=trace)
    with TritonServer(settings) as server, Wire(server.grpc_url) as wire:
        assert wire.ask(large_messages(made)[0], 60.0) == OK
    entries = json.loads((tmp_path / "trace.json").read_text())
    models = {entry["id"]: entry["model_name"] for entry in entries if "model_name" in entry}
    parents = {entry["id"]: models[entry["parent_id"]] for entry in entries if "parent_id" in entry}
    steps = (contract.LOOKUP_MODEL, contract.RANKER_MODEL)
    assert {models[at]: parent for at, parent in parents.items()} == dict.fromkeys(steps, contract.ENSEMBLE_MODEL)
