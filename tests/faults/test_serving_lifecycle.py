"""Requests in flight when a server is told to stop, and requests that nobody waits for any more."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from airserve import contract
from airserve.bench.inprocess import InProcess
from airserve.bench.load import OK, Wire, encode_call, executed
from airserve.bench.overload import UNAVAILABLE
from airserve.bench.workload import WorkloadSettings, make_requests
from airserve.table.lookup import merge_lookups
from airserve.triton.config import ServingSettings, Variant, executing_model
from airserve.triton.server import TraceSettings, TritonServer

pytestmark = pytest.mark.triton
CALLS = 4
VARIANTS: tuple[Variant, ...] = ("fused", "stepwise")


def patient(variant: Variant) -> ServingSettings:
    """Nothing is refused for the time it would wait."""
    return ServingSettings(variant=variant, queue_timeout_us=60_000_000)


@pytest.fixture(scope="module")
def large_messages(local: InProcess) -> list[bytes]:
    requests = make_requests(local.table, WorkloadSettings(behaviours=1024, candidates=1024, count=8))
    return [encode_call(request) for request in requests]


@pytest.fixture(scope="module")
def batch_message(local: InProcess) -> bytes:
    """The largest call there is: it takes the server long enough for others to arrive meanwhile."""
    requests = make_requests(local.table, WorkloadSettings(behaviours=1024, candidates=1024, count=contract.MAX_BATCH))
    return encode_call(merge_lookups(requests))


def refused(server: TritonServer, reason: str) -> float:
    """Requests that the server's models counted as refused for a reason."""
    lines = server.metrics().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if f'reason="{reason}"' in line)


@pytest.mark.parametrize("variant", VARIANTS)
def test_requests_in_flight_are_answered_when_the_server_is_told_to_stop(
    synthetic_server: Any, batch_message: bytes, variant: Variant
) -> None:
    """Through the lookup, that is: Triton starts no further step of an ensemble once it stops (UNAVAILABLE)."""
    answers: Counter[str] = Counter()
    waiting_model = contract.LOOKUP_MODEL if variant == "stepwise" else None
    with synthetic_server(patient(variant), stop_timeout_s=60) as server, Wire(server.grpc_url) as wire:
        ended = threading.Semaphore(0)
        before = executed(server.grpc_url, waiting_model).inferences if waiting_model else 0

        def done(status: str) -> None:
            answers[status] += 1
            ended.release()

        for _ in range(CALLS):
            wire.start(batch_message, 60.0, done)
        if waiting_model:
            while executed(server.grpc_url, waiting_model).inferences - before < CALLS * contract.MAX_BATCH:
                time.sleep(0.005)
        else:
            # The first answer shows that all have arrived: they went out together on one connection.
            assert ended.acquire(timeout=60)
            ended.release()
        in_flight = CALLS - answers.total()
        os.kill(server.pid, signal.SIGTERM)
        for _ in range(CALLS):
            assert ended.acquire(timeout=60)
    assert in_flight > 0
    assert answers == {OK: CALLS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_server_that_is_told_to_stop_under_overload_answers_or_refuses_every_call(
    synthetic_server: Any, large_messages: list[bytes], variant: Variant
) -> None:
    """What was not refused is answered by a thread behind Triton's back; the model ends only after it."""
    asked = 300
    statuses: Counter[str] = Counter()
    with (
        synthetic_server(ServingSettings(variant=variant), stop_timeout_s=60) as server,
        Wire(server.grpc_url) as wire,
    ):
        ended = threading.Semaphore(0)

        def done(status: str) -> None:
            statuses[status] += 1
            ended.release()

        for at in range(asked):
            wire.start(large_messages[at % len(large_messages)], 60.0, done)
        while not statuses[UNAVAILABLE]:
            assert ended.acquire(timeout=60)
            asked -= 1
        os.kill(server.pid, signal.SIGTERM)
        for _ in range(asked):
            assert ended.acquire(timeout=60)
    print(dict(statuses))
    assert set(statuses) == {OK, UNAVAILABLE}


def test_waiting_requests_whose_deadline_passed_are_not_computed(
    synthetic_server: Any, large_messages: list[bytes]
) -> None:
    """Fused only: Triton does not tell a step of an ensemble that its client gave up."""
    message = large_messages[0]
    model = executing_model("embedded", ServingSettings(variant="fused"))
    given_up = 200
    with synthetic_server(patient("fused")) as server, Wire(server.grpc_url) as wire:
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
        ended_early = refused(server, "cancelled")
    # Triton counts what a model was given; the model counts what it then did not compute.
    computed = executions - ended_early
    print(f"{dict(statuses)}, given to the model {executions}, computed {computed:.0f}")
    assert statuses["DEADLINE_EXCEEDED"] > given_up // 2
    assert computed < given_up // 2


def test_deadlines_that_pass_while_other_requests_are_refused_are_noticed(
    synthetic_server: Any, large_messages: list[bytes]
) -> None:
    """Requests that are answered behind Triton's back are asked for before they are computed."""
    statuses: Counter[str] = Counter()
    with (
        synthetic_server(ServingSettings(variant="fused", queue_timeout_us=2_000_000)) as server,
        Wire(server.grpc_url) as wire,
    ):
        assert wire.ask(large_messages[0], 60.0) == OK
        ended = threading.Semaphore(0)

        def done(status: str) -> None:
            statuses[status] += 1
            ended.release()

        asked, cancelled, full = 600, 0.0, 0.0
        for _ in range(5):  # Triton itself drops what is given up before a busy machine's model takes it
            for at in range(asked):
                wire.start(large_messages[at % len(large_messages)], 0.5, done)
            for _ in range(asked):
                assert ended.acquire(timeout=60)
            time.sleep(1.2)  # our metrics are handed over twice a second
            cancelled, full = refused(server, "cancelled"), refused(server, "queue")
            if cancelled and full:
                break
    print(f"{dict(statuses)}, cancelled {cancelled:.0f}, for want of room {full:.0f}")
    assert cancelled > 0
    assert full > 0


def test_traces_go_through_every_step_when_asked_for(
    synthetic_server: Any, large_messages: list[bytes], tmp_path: Path
) -> None:
    trace = TraceSettings(target=str(tmp_path / "trace.json"), one_in=1)
    with synthetic_server(patient("stepwise"), trace=trace) as server, Wire(server.grpc_url) as wire:
        assert wire.ask(large_messages[0], 60.0) == OK
    entries = json.loads((tmp_path / "trace.json").read_text())
    models = {entry["id"]: entry["model_name"] for entry in entries if "model_name" in entry}
    parents = {entry["id"]: models[entry["parent_id"]] for entry in entries if "parent_id" in entry}
    steps = (contract.LOOKUP_MODEL, contract.RANKER_MODEL)
    assert {models[at]: parent for at, parent in parents.items()} == dict.fromkeys(steps, contract.ENSEMBLE_MODEL)
