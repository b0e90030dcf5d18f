"""A real Triton under requests that should not be, and under more of them than it can answer."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from airserve import contract
from airserve.bench.fuzz import TIMEOUT_S, fuzz_raw, fuzz_schema, over_grpc
from airserve.bench.http import HttpWire
from airserve.bench.inprocess import InProcess
from airserve.bench.load import OK, Wire, encode_call
from airserve.bench.overload import OverloadSettings, measure_overload
from airserve.bench.workload import WorkloadSettings, make_requests
from airserve.client import RankClient
from airserve.client.wire import ALL_OUTPUTS
from airserve.table.lookup import ranker_inputs
from airserve.triton.config import ServingSettings
from airserve.triton.server import TritonServer

pytestmark = pytest.mark.triton
SOME, MANY = 1_000, 50_000
"""Fuzzed calls of each of the two kinds in `make test`, and in `make test-all`."""


@pytest.fixture(scope="module", params=["fused", "stepwise"])
def attacked(request: pytest.FixtureRequest, synthetic_server: Any) -> Iterator[TritonServer]:
    with synthetic_server(ServingSettings(variant=request.param, max_queue_size=16)) as server:
        yield server


@pytest.fixture(scope="module")
def calls(local: InProcess) -> list[dict[str, Any]]:
    return make_requests(local.table, WorkloadSettings(behaviours=24, candidates=24, count=20, mixed=True))


@pytest.mark.parametrize("count", [SOME, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
def test_changed_calls_are_refused_by_name_or_answered_as_in_process(
    attacked: TritonServer, local: InProcess, calls: list[dict[str, Any]], count: int
) -> None:
    with Wire(attacked.grpc_url) as wire:
        report = fuzz_schema(over_grpc(wire), local, calls, count=count, seed=count)
    print(dict(report.statuses))
    assert not report.wrong, "\n".join(report.wrong[:5])
    assert report.statuses[OK] > count // 20
    assert report.statuses["INVALID_ARGUMENT"] > count // 20


@pytest.mark.parametrize("count", [SOME, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
def test_spoilt_messages_leave_the_server_and_its_answers_alone(
    attacked: TritonServer, local: InProcess, calls: list[dict[str, Any]], count: int
) -> None:
    pid = attacked.pid
    with Wire(attacked.grpc_url) as wire:
        report = fuzz_raw(wire, local, calls, count=count, seed=count)
    print(dict(report.statuses))
    assert not report.wrong, "\n".join(report.wrong[:5])
    assert attacked.is_ready()
    assert attacked.pid == pid


def test_changed_calls_over_http_are_refused_by_name_or_answered_as_in_process(
    attacked: TritonServer, local: InProcess, calls: list[dict[str, Any]]
) -> None:
    with HttpWire(attacked.http_url, TIMEOUT_S) as wire:
        report = fuzz_schema(wire.ask, local, calls, count=SOME, seed=7)
    print(dict(report.statuses))
    assert not report.wrong, "\n".join(report.wrong[:5])
    assert report.statuses[OK] > SOME // 20
    assert report.statuses["INVALID_ARGUMENT"] > SOME // 20


def test_spoilt_http_requests_are_refused(attacked: TritonServer) -> None:
    rng = np.random.default_rng(0)
    for number in range(200):
        connection = http.client.HTTPConnection(attacked.http_url, timeout=30)
        body = bytes(rng.integers(0, 256, int(rng.integers(0, 300)), dtype=np.uint8))
        if number % 3 == 0:
            body = b'{"inputs": [' + body + b"]}"
        connection.request("POST", f"/v2/models/{contract.ENSEMBLE_MODEL}/infer", body)
        # Triton itself answers some broken JSON with 500; what counts is that it refuses and lives.
        assert 400 <= connection.getresponse().status <= 500
        connection.close()
    assert attacked.is_ready()


def test_more_than_fits_the_queue_is_refused_and_nothing_hangs(attacked: TritonServer, local: InProcess) -> None:
    requests = make_requests(local.table, WorkloadSettings(behaviours=256, candidates=512, count=4))
    messages = [encode_call(request) for request in requests]
    settings = OverloadSettings(factor=10.0, seconds=1.5, watchdog_s=60.0)
    figures = measure_overload(attacked.grpc_url, messages, settings)
    print(figures)
    assert figures["refused"] > 0
    assert figures["answered"] > 0
    assert figures["hung"] == 0
    assert figures["otherwise"] == 0
    with Wire(attacked.grpc_url) as wire:
        assert wire.ask(messages[0], 60.0) == OK


def test_calls_that_clients_gave_up_do_not_block_the_server(attacked: TritonServer, local: InProcess) -> None:
    heavy = make_requests(local.table, WorkloadSettings(behaviours=1024, candidates=1024, count=1))
    message = encode_call(heavy[0])
    with Wire(attacked.grpc_url) as wire:
        for _ in range(40):
            assert wire.ask(message, 0.001) in ("DEADLINE_EXCEEDED", "UNAVAILABLE")
        for _ in range(100):
            if wire.ask(message, 60.0) == OK:
                break
            time.sleep(0.1)
        else:
            pytest.fail("still refused after the calls were given up")


def test_our_metrics_tell_coverage_table_batches_times_and_refusals(
    attacked: TritonServer, local: InProcess, calls: list[dict[str, Any]]
) -> None:
    bad = {**calls[0], contract.USER_SEGMENT.name: np.array([[-1]], np.int32)}
    with Wire(attacked.grpc_url) as wire:
        assert wire.ask(encode_call(bad), 60.0) == "INVALID_ARGUMENT"
        assert wire.ask(encode_call(calls[0]), 60.0) == OK
    wanted = [f'airserve_{name}_bucket{{le="+Inf"}}' for name in ("coverage", "batch_size", "execution_seconds")]
    wanted += [f"airserve_{name}_sum" for name in ("coverage", "batch_size", "execution_seconds")]
    wanted += ["airserve_candidates", "airserve_unknown_candidates"]
    wanted += [f"airserve_table_{name}" for name in ("version", "published_seconds", "loaded_seconds")]
    wanted += [f'reason="{contract.USER_SEGMENT.name}"']
    for _ in range(50):
        text = attacked.metrics()
        if all(part in text for part in wanted):
            break
        time.sleep(0.1)
    assert [part for part in wanted if part not in text] == []


def test_single_calls_one_after_the_other_never_wait_for_a_poll(
    attacked: TritonServer, calls: list[dict[str, Any]]
) -> None:
    """Bounds of Triton's own queue made 3 to 8 % of such calls wait 500 ms, or refused them."""
    messages = [encode_call(call) for call in calls]
    with Wire(attacked.grpc_url) as wire:
        spent_s = []
        for number in range(400):
            began = time.perf_counter()
            assert wire.ask(messages[number % len(messages)], 60.0) == OK
            spent_s.append(time.perf_counter() - began)
    polled = sum(0.49 < seconds < 0.56 for seconds in spent_s)
    assert polled <= 1, sorted(spent_s)[-20:]


def test_both_variants_give_the_explanations_of_the_computation_in_process(
    attacked: TritonServer, local: InProcess, calls: list[dict[str, Any]]
) -> None:
    names = [spec.name for spec in contract.RANKER_OUTPUTS]
    with RankClient(attacked.grpc_url, timeout_s=60) as client:
        for call in calls[:5]:
            served = client.infer(call, ALL_OUTPUTS)
            found = local.table.lookup(call)
            expected = {**found, **local.ranker.run([ranker_inputs(found)], names)[0]}
            for name in ALL_OUTPUTS:
                np.testing.assert_allclose(served[name], expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
