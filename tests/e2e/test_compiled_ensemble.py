"""The ensemble of the compiled targets, whose ranker batches equal shapes only, on a real Triton.

The embedded server has no compiled backend: the Python ranker stands in for it with ragged batches switched off, so
that Triton's batcher joins requests as it does in front of `tensorrt` or `onnxruntime`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from airserve import contract
from airserve.bench.flood import Flood
from airserve.bench.inprocess import InProcess
from airserve.bench.load import OK, Wire, encode_call, executed
from airserve.bench.overload import UNAVAILABLE
from airserve.bench.workload import WorkloadSettings, make_requests
from airserve.client import RankClient
from airserve.client.wire import ALL_OUTPUTS, PLAIN_OUTPUTS
from airserve.table.lookup import ranker_inputs
from airserve.triton.config import ServingSettings, all_configs
from airserve.triton.server import TritonServer

pytestmark = pytest.mark.triton
STEPWISE = ServingSettings(variant="stepwise")


def compiled_server(synthetic_server: Any, max_queue_size: int | None = None) -> TritonServer:
    """A server, not started, configured for a compiled target; with a queue bound only where one is asked for."""
    server: TritonServer = synthetic_server(STEPWISE)
    for model, text in all_configs("onnxruntime", STEPWISE).items():
        path = server.settings.repository / model / "config.pbtxt"
        if model == contract.RANKER_MODEL:
            config = text_format.Parse(path.read_text(), pb.ModelConfig())
            for tensor in config.input:
                tensor.allow_ragged_batch = False
            if max_queue_size is not None:
                compiled = text_format.Parse(text, pb.ModelConfig())
                config.max_batch_size = compiled.max_batch_size
                config.dynamic_batching.CopyFrom(compiled.dynamic_batching)
                config.dynamic_batching.default_queue_policy.max_queue_size = max_queue_size
            text = text_format.MessageToString(config)
        path.write_text(text)
    return server


@pytest.fixture(scope="module")
def whole_tensors(synthetic_server: Any) -> Iterator[TritonServer]:
    with compiled_server(synthetic_server) as server:
        yield server


@pytest.mark.parametrize("shared_memory", [False, True])
def test_requests_of_any_size_rank_as_in_process(
    whole_tensors: TritonServer, local: InProcess, shared_memory: bool
) -> None:
    calls = make_requests(local.table, WorkloadSettings(behaviours=40, candidates=200, count=12, mixed=True))
    with RankClient(whole_tensors.grpc_url, timeout_s=60, shared_memory=shared_memory) as client:
        for call in calls:
            served, expected = client.infer(call, PLAIN_OUTPUTS), local.answer(call)
            for name in PLAIN_OUTPUTS:
                assert served[name].shape == expected[name].shape
                np.testing.assert_allclose(served[name], expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
            explained = client.infer(call, ALL_OUTPUTS)
            found = local.table.lookup(call)
            chosen = local.ranker.run([ranker_inputs(found)], [contract.CHAIN_INDEX.name])[0]
            for name, expected_array in {**found, **chosen}.items():
                if name in explained:
                    np.testing.assert_array_equal(explained[name], expected_array, err_msg=name)


def test_requests_asked_at_once_get_their_own_answers(whole_tensors: TritonServer, local: InProcess) -> None:
    calls = make_requests(local.table, WorkloadSettings(behaviours=60, candidates=60, count=24, mixed=True))
    wrong: list[int] = []

    def ask(first: int) -> None:
        with RankClient(whole_tensors.grpc_url, timeout_s=60) as client:
            for at in range(first, len(calls), 6):
                scores = client.infer(calls[at], PLAIN_OUTPUTS)[contract.SCORES.name]
                expected = local.answer(calls[at])[contract.SCORES.name]
                if scores.shape != expected.shape or not np.allclose(scores, expected, rtol=1e-3, atol=1e-3):
                    wrong.append(at)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_requests_of_different_sizes_batch_together(whole_tensors: TritonServer, local: InProcess) -> None:
    messages = [encode_call(r) for r in make_requests(local.table, WorkloadSettings(count=64, mixed=True))]
    before = executed(whole_tensors.grpc_url, contract.RANKER_MODEL)
    # All at once: what a batch holds then depends on what may be batched, not on how busy the machine is.
    with Flood(whole_tensors.grpc_url, messages, timeout_s=60) as flood:
        waiting = {flood.start(number) for number in range(len(messages))}
        statuses: Counter[str] = Counter()
        deadline = time.monotonic() + 60
        while waiting and time.monotonic() < deadline:
            for stream, status in flood.ended(0.1):
                waiting.remove(stream)
                statuses[status] += 1
    mean_batch = executed(whole_tensors.grpc_url, contract.RANKER_MODEL).mean_batch_since(before)
    print(f"mean executed batch {mean_batch:.2f}")
    assert statuses[OK] > len(messages) / 2
    assert mean_batch > 2.0


def test_a_bad_request_is_refused_by_name_and_not_padded(whole_tensors: TritonServer, local: InProcess) -> None:
    call = make_requests(local.table, WorkloadSettings(behaviours=4, candidates=4, count=1))[0]
    bad = {**call, contract.BEHAVIOUR_AGES_S.name: np.full((1, 4), np.nan, np.float32)}
    with Wire(whole_tensors.grpc_url) as wire:
        status, text = wire.call(encode_call(bad), 30.0)
    assert status == "INVALID_ARGUMENT"
    assert contract.BEHAVIOUR_AGES_S.name in text.decode()


def test_a_full_queue_of_tritons_own_in_front_of_the_ranker_refuses_and_hangs_no_request(
    synthetic_server: Any, local: InProcess
) -> None:
    """Triton can lose a request of an ensemble whose step has a full queue."""
    requests = make_requests(local.table, WorkloadSettings(behaviours=128, candidates=1024, count=8))
    messages = [encode_call(request) for request in requests]
    statuses: Counter[str] = Counter()
    with (
        compiled_server(synthetic_server, max_queue_size=4) as server,
        Flood(server.grpc_url, messages, timeout_s=60) as flood,
    ):
        for _ in range(3):
            waiting = {flood.start(number % len(messages)) for number in range(200)}
            deadline = time.monotonic() + 90
            while waiting and time.monotonic() < deadline:
                for stream, status in flood.ended(0.1):
                    waiting.remove(stream)
                    statuses[status] += 1
            assert not waiting
    assert set(statuses) == {OK, UNAVAILABLE}
