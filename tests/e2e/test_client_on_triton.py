"""Both clients against a real Triton whose public model is a double with the contract's tensors."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tritonclient.grpc as triton

from airserve import contract
from airserve.client import (
    AsyncRankClient,
    Behaviour,
    ItemIds,
    RankClient,
    RankRequest,
    RetryPolicy,
    TlsSettings,
    item_id,
)
from airserve.client.regions import MAX_REGIONS
from airserve.client.replay import ReplayReport, ReplaySettings, Traffic, replay
from airserve.errors import ArtifactError, InvalidRequestError, ServerError
from airserve.triton.config import ensemble_config, render
from airserve.triton.server import ServerSettings, ServerTls, TritonServer

pytestmark = pytest.mark.triton
ROOT = Path(__file__).resolve().parents[2]

# An ordinary candidate of the double scores its id modulo this. As first candidate, the ids below select a behaviour.
MODULUS = 1000
SLOW_ITEM, SLOW_S = 7_000_001, 1.0
BUSY_TWICE_ITEM = 7_000_002
ALWAYS_BUSY_ITEM = 7_000_003
TABLE_VERSION = 42
UNKNOWN_EVERY = 5
"""Of the double's items, those whose id is a multiple."""

MODEL = f"""
import time
import numpy as np
import triton_python_backend_utils as pb_utils
from airserve import contract
from airserve.errors import InvalidRequestError


class TritonPythonModel:
    def initialize(self, args):
        self.busy = 0

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensors = {{
            spec.name: pb_utils.get_input_tensor_by_name(request, spec.name).as_numpy() for spec in contract.REQUEST
        }}
        try:
            contract.validate_request(tensors)
        except InvalidRequestError as error:
            return self.failed(str(error), pb_utils.TritonError.INVALID_ARG)
        candidates = tensors[contract.CANDIDATE_ITEMS.name]
        first = int(candidates[0, 0])
        if first == {SLOW_ITEM}:
            time.sleep({SLOW_S})
        if first == {BUSY_TWICE_ITEM} and self.busy < 2 or first == {ALWAYS_BUSY_ITEM}:
            self.busy += 1
            return self.failed("the double is busy", pb_utils.TritonError.UNAVAILABLE)
        return pb_utils.InferenceResponse(self.outputs(tensors, candidates, first))

    def failed(self, message, code):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))

    def outputs(self, tensors, candidates, first):
        batch, count = candidates.shape
        # As of real requests, the number of chains changes from call to call.
        chains = 7 + first % (contract.MAX_CHAINS - 6)
        unknown = (candidates % {UNKNOWN_EVERY} == 0) & (candidates != contract.PAD_ITEM)
        history = (tensors[contract.BEHAVIOUR_ITEMS.name] != contract.PAD_ITEM).sum(axis=1)
        arrays = {{
            contract.SCORES.name: np.where(candidates == contract.PAD_ITEM, -np.inf, candidates % {MODULUS}),
            contract.CHAIN_INDEX.name: np.full((batch, count, *contract.CHAIN_INDEX.dims[1:]), contract.NO_CHAIN),
            contract.CHAIN_WEIGHTS.name: np.zeros((batch, count, *contract.CHAIN_WEIGHTS.dims[1:])),
            contract.CHAIN_NODES.name: np.zeros((batch, chains, *contract.CHAIN_NODES.dims[1:])),
            contract.EVIDENCE.name: np.full((batch, chains, *contract.EVIDENCE.dims[1:]), contract.NO_EVIDENCE),
            contract.COVERAGE.name: (history > 0).reshape(-1, 1),
            contract.UNKNOWN_COUNT.name: unknown.sum(axis=1, keepdims=True),
            contract.UNKNOWN_MASK.name: unknown,
            contract.TABLE_VERSION.name: np.full((batch, 1), {TABLE_VERSION}),
        }}
        # A candidate's chain is one of the last seven, and says of itself which.
        arrays[contract.CHAIN_INDEX.name][..., 0] = chains - 7 + candidates % 7
        arrays[contract.CHAIN_WEIGHTS.name][..., 0] = 0.5
        arrays[contract.CHAIN_NODES.name][..., 0] = 8 - chains + np.arange(chains)
        arrays[contract.EVIDENCE.name][..., 0] = history[:, None] - 1
        return [
            pb_utils.Tensor(spec.name, np.ascontiguousarray(arrays[spec.name].astype(spec.dtype)))
            for spec in contract.RESPONSE
        ]
"""


def write_double(folder: Path, *, version: int = contract.CONTRACT_VERSION, renamed_output: bool = False) -> Path:
    """A model repository with the double as the public model; returns `folder`."""
    config = ensemble_config()
    config.ClearField("platform")
    config.ClearField("ensemble_scheduling")
    config.backend = "python"
    config.parameters["contract_version"].string_value = str(version)
    if renamed_output:
        config.output[0].name = "relevance"
    place = folder / contract.ENSEMBLE_MODEL / "1"
    place.mkdir(parents=True)
    (place / "model.py").write_text(MODEL)
    (place.parent / "config.pbtxt").write_text(render(config))
    return folder


def start(repository: Path, **ports: int) -> TritonServer:
    return TritonServer(ServerSettings(repository=repository, environment=ROOT / ".venv-triton", **ports))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_double(tmp_path_factory.mktemp("double"))


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with start(repository) as running:
        yield running


def asking(candidates: Sequence[int], behaviours: int = 2) -> RankRequest:
    history = [Behaviour(item=at, action="view", age_s=float(behaviours - at)) for at in range(behaviours)]
    return RankRequest(behaviours=history, candidates=candidates)


def mixed(count: int) -> list[RankRequest]:
    """Requests of many lengths, some with no history, some with more candidates than one request may carry."""
    return [asking(range(at, at + 1 + 331 * (at % 5)), behaviours=at % 4) for at in range(count)]


def expected_scores(request: RankRequest) -> np.ndarray[Any, Any]:
    return np.array([item % MODULUS for item in request.candidates], dtype=np.float32)


def region_names(server: TritonServer) -> set[str]:
    channel = triton.InferenceServerClient(server.grpc_url)
    names = set(channel.get_system_shared_memory_status().regions)
    channel.close()
    return names


def arrivals(server: TritonServer) -> int:
    """Calls that reached the model so far, by the server's own counters."""
    channel = triton.InferenceServerClient(server.grpc_url)
    (stats,) = channel.get_inference_statistics(contract.ENSEMBLE_MODEL).model_stats
    channel.close()
    return int(stats.inference_stats.success.count + stats.inference_stats.fail.count)


async def rank_async(url: str, requests: list[RankRequest], **options: Any) -> Any:
    async with AsyncRankClient(url, **options) as client:
        return await client.rank(requests, explain=True, tell_unknown=True)


def test_requests_of_any_number_and_length_come_back_in_order(server: TritonServer) -> None:
    requests = mixed(75)
    with RankClient(server.grpc_url, timeout_s=30) as client:
        results = client.rank(requests)
    assert len(results) == len(requests)
    for request, result in zip(requests, results, strict=True):
        assert result.items == tuple(request.candidates)
        np.testing.assert_array_equal(result.scores, expected_scores(request))
        assert result.table_version == TABLE_VERSION


@pytest.mark.parametrize("shared_memory", [False, True])
def test_blocking_and_asyncio_clients_give_the_same_answers(server: TritonServer, shared_memory: bool) -> None:
    requests = mixed(40)
    with RankClient(server.grpc_url, timeout_s=30) as client:
        blocking = client.rank(requests, explain=True, tell_unknown=True)
    asynchronous = asyncio.run(rank_async(server.grpc_url, requests, timeout_s=30, shared_memory=shared_memory))
    for one, other in zip(blocking, asynchronous, strict=True):
        assert (one.items, one.coverage, one.chains) == (other.items, other.coverage, other.chains)
        assert [chains[0].nodes for chains in one.chains] == [(1 + item % 7,) for item in one.items]
        assert one.unknown == other.unknown == tuple(item for item in one.items if item % UNKNOWN_EVERY == 0)
        assert one.unknown_count == other.unknown_count == len(one.unknown)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_a_list_of_five_thousand_candidates_is_ranked_as_one(server: TritonServer) -> None:
    request = asking(range(5000))
    with RankClient(server.grpc_url, timeout_s=30) as client:
        (result,) = client.rank([request])
    np.testing.assert_array_equal(result.scores, expected_scores(request))
    assert [item.item for item in result.top(6)] == [999, 1999, 2999, 3999, 4999, 998]


def test_of_a_longer_history_the_last_behaviours_are_sent_and_evidence_points_into_all(
    server: TritonServer, caplog: pytest.LogCaptureFixture
) -> None:
    request = asking([1, 2], behaviours=contract.MAX_BEHAVIOURS + 76)
    with RankClient(server.grpc_url) as client, caplog.at_level(logging.WARNING):
        results = client.rank([request, request], explain=True)
        client.rank([request])
    for result in results:
        assert all(chain.evidence == (contract.MAX_BEHAVIOURS + 75,) for (chain,) in result.chains)
    assert len([record for record in caplog.records if "behaviours" in record.getMessage()]) == 1


def test_string_ids_come_back_as_the_caller_wrote_them(server: TritonServer) -> None:
    asins = [f"B{at:09}" for at in range(1500)]
    history = [Behaviour(item=asins[0], action="order", age_s=5.0)]
    with RankClient(server.grpc_url, item_ids=ItemIds()) as client:
        (result,) = client.rank([RankRequest(behaviours=history, candidates=asins)], tell_unknown=True)
    assert result.items == tuple(asins)
    assert result.unknown == tuple(asin for asin in asins if item_id(asin) % UNKNOWN_EVERY == 0)
    assert result.scores.tolist() == [float(item_id(asin) % MODULUS) for asin in asins]
    with RankClient(server.grpc_url) as client, pytest.raises(InvalidRequestError, match="ItemIds"):
        client.rank([RankRequest(behaviours=[], candidates=asins)])


def test_threads_may_share_a_client_with_shared_memory(server: TritonServer) -> None:
    requests = mixed(48)
    with RankClient(server.grpc_url, timeout_s=30, shared_memory=True) as client, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda request: client.rank([request])[0], requests))
    for request, result in zip(requests, results, strict=True):
        np.testing.assert_array_equal(result.scores, expected_scores(request))


def test_a_closed_client_leaves_no_shared_memory_behind(server: TritonServer) -> None:
    before = region_names(server)
    with RankClient(server.grpc_url, shared_memory=True) as client:
        client.rank([asking([1, 2])])
        (name,) = region_names(server) - before
        assert Path("/dev/shm", name).exists()
    assert region_names(server) == before
    assert not Path("/dev/shm", name).exists()


def test_memory_of_an_unanswered_call_is_not_used_before_the_server_lets_go(server: TritonServer) -> None:
    with RankClient(server.grpc_url, shared_memory=True) as client:
        client.rank([asking([5])])
        with pytest.raises(ServerError, match="DEADLINE_EXCEEDED"):
            client.rank([asking([SLOW_ITEM])], timeout_s=0.2)
        before = region_names(server)
        for at in range(3):
            assert client.rank([asking([at])])[0].scores.tolist() == [float(at)]
        assert len(region_names(server)) == len(before) + 1 <= MAX_REGIONS
    assert not region_names(server)


@pytest.mark.parametrize("shared_memory", [False, True])
def test_a_call_ends_at_its_deadline(server: TritonServer, shared_memory: bool) -> None:
    slow = asking([SLOW_ITEM])
    with RankClient(server.grpc_url, timeout_s=0.2, shared_memory=shared_memory) as client:
        with pytest.raises(ServerError) as caught:
            client.rank([slow])
        (result,) = client.rank([slow], timeout_s=20 * SLOW_S)
    assert caught.value.status == "StatusCode.DEADLINE_EXCEEDED"
    assert "0.2 s" in str(caught.value)
    assert result.scores.tolist() == [SLOW_ITEM % MODULUS]


def test_a_cancelled_task_leaves_the_client_usable(server: TritonServer) -> None:
    async def run() -> list[float]:
        async with AsyncRankClient(server.grpc_url, timeout_s=20, shared_memory=True) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.rank([asking([SLOW_ITEM])]), timeout=0.2)
            answers = await asyncio.gather(*(client.rank([asking([at])]) for at in range(8)))
            return [float(result.scores[0]) for (result,) in answers]

    assert asyncio.run(run()) == [float(at) for at in range(8)]


def test_an_unavailable_model_is_asked_again_until_it_answers(server: TritonServer) -> None:
    with RankClient(server.grpc_url) as client:
        before = arrivals(server)
        (result,) = client.rank([asking([BUSY_TWICE_ITEM])])
        assert arrivals(server) - before == 3
    assert result.scores.tolist() == [BUSY_TWICE_ITEM % MODULUS]


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_model_that_stays_unavailable_is_asked_as_often_as_the_policy_says(
    server: TritonServer, attempts: int
) -> None:
    with RankClient(server.grpc_url, retry=RetryPolicy(attempts=attempts)) as client:
        before = arrivals(server)
        with pytest.raises(ServerError, match="the double is busy") as caught:
            client.rank([asking([ALWAYS_BUSY_ITEM])])
        assert arrivals(server) - before == attempts
    assert caught.value.status == "StatusCode.UNAVAILABLE"


def test_a_refused_request_is_sent_once_and_keeps_the_servers_words(server: TritonServer) -> None:
    bad = {
        spec.name: np.full((1, 1), np.nan if spec.dtype == np.float32 else 1, dtype=spec.dtype)
        for spec in contract.REQUEST
    }
    with RankClient(server.grpc_url) as client:
        before = arrivals(server)
        with pytest.raises(ServerError, match=rf"{contract.BEHAVIOUR_AGES_S.name}: expected .*, got nan") as caught:
            client.infer(bad, [contract.SCORES.name])
        assert arrivals(server) - before == 1
    assert caught.value.status == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("shared_memory", [False, True])
def test_a_client_outlives_a_restart_of_its_server(repository: Path, shared_memory: bool) -> None:
    policy = RetryPolicy(attempts=100, max_delay_s=0.2)
    with start(repository) as server:
        ports = {name: getattr(server.settings, name) for name in ("grpc_port", "http_port", "metrics_port")}
        client = RankClient(server.grpc_url, timeout_s=1.0, shared_memory=shared_memory, retry=policy)
        assert client.rank([asking([5])])[0].scores.tolist() == [5.0]
    began = time.monotonic()
    with pytest.raises(ServerError) as caught:
        client.rank([asking([5])])
    assert caught.value.status in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")
    assert time.monotonic() - began < 10 * client.timeout_s
    with start(repository, **ports):
        assert client.rank([asking([6])], timeout_s=20)[0].scores.tolist() == [6.0]
        client.close()


def test_a_replay_sends_the_log_at_its_rate_and_ends_by_itself(server: TritonServer, tmp_path: Path) -> None:
    users = np.repeat(np.arange(10), 30)
    log = {
        "user_id": users,
        "item_id": np.arange(len(users)),
        "action": ["view", "click", "order"] * 100,
        "timestamp_s": np.tile(np.arange(30), 10),
    }
    pq.write_table(pa.table(log), tmp_path / "behaviours.parquet")
    settings = ReplaySettings(speed=10.0, max_requests=120, candidates=20, skip_share=0.5)
    traffic = Traffic(tmp_path / "behaviours.parquet", settings)

    async def run() -> ReplayReport:
        async with AsyncRankClient(server.grpc_url, timeout_s=20) as client:
            return await replay(client, traffic, settings)

    report = asyncio.run(run())
    assert (report.requests, report.errors) == (120, {})
    assert report.planned_rate == pytest.approx(100, rel=0.05)
    assert report.duration_s >= traffic.due_s[-1]
    assert report.p50_ms is not None
    assert report.p99_ms is not None
    assert 0 < report.p50_ms <= report.p99_ms


def test_a_connection_can_be_encrypted(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names, *files]
    subprocess.run(made, check=True, capture_output=True)
    own = ServerTls(certificate=tmp_path / "cert.pem", private_key=tmp_path / "key.pem")
    repository = write_double(tmp_path / "double")
    with TritonServer(ServerSettings(repository=repository, environment=ROOT / ".venv-triton", tls=own)) as server:
        tls = TlsSettings(root_certificates=tmp_path / "cert.pem")
        with RankClient(server.grpc_url, tls=tls) as client:
            assert client.rank([asking([5])])[0].scores.tolist() == [5.0]
        (result,) = asyncio.run(rank_async(server.grpc_url, [asking([6])], tls=tls))
        assert result.scores.tolist() == [6.0]
        with pytest.raises(ServerError, match=r"UNAVAILABLE|DEADLINE"):
            RankClient(server.grpc_url, timeout_s=2.0)


def test_mutual_tls_wants_a_certificate_of_the_client(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names]
    subprocess.run([*made, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    tls = ServerTls(certificate=cert, private_key=key, client_authorities=cert)
    repository = write_double(tmp_path / "double")
    with TritonServer(ServerSettings(repository=repository, environment=ROOT / ".venv-triton", tls=tls)) as server:
        ours = TlsSettings(root_certificates=cert, certificate_chain=cert, private_key=key)
        with RankClient(server.grpc_url, tls=ours) as client:
            assert client.rank([asking([5])])[0].scores.tolist() == [5.0]
        with pytest.raises(ServerError, match=r"UNAVAILABLE|DEADLINE"):
            RankClient(server.grpc_url, timeout_s=2.0, tls=TlsSettings(root_certificates=cert))


def test_a_server_of_another_contract_is_refused_at_connect(tmp_path: Path) -> None:
    with start(write_double(tmp_path / "newer", version=999)) as server, pytest.raises(ArtifactError) as caught:
        RankClient(server.grpc_url)
    assert (caught.value.subject, caught.value.got) == (server.grpc_url, "999")
    with (
        start(write_double(tmp_path / "renamed", renamed_output=True)) as server,
        pytest.raises(ArtifactError, match=rf"no output {contract.SCORES.name}.*relevance"),
    ):
        asyncio.run(rank_async(server.grpc_url, [asking([1])]))
