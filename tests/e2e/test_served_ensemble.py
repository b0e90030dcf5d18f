"""The ensemble on a real Triton: what it answers, and what it refuses."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from airserve import contract
from airserve.client import Behaviour, NodeTexts, RankClient, RankRequest, to_tensors
from airserve.table.lookup import ServedTable, ranker_inputs

pytestmark = [pytest.mark.triton, pytest.mark.vllm]
ALL = [spec.name for spec in contract.RESPONSE]


@pytest.fixture(scope="module")
def client(served: Any) -> Any:
    with RankClient(served.grpc_url, timeout_s=30) as connected:
        yield connected


def in_process(folder: Path, tensors: dict[str, Any]) -> dict[str, Any]:
    """The same computation without a server: table lookup, then ONNX Runtime."""
    found = ServedTable.open(folder / "tables" / "serving").lookup(tensors)
    session = ort.InferenceSession(str(folder / "engine" / "ranker.onnx"), providers=["CPUExecutionProvider"])
    names = [spec.name for spec in contract.RANKER_OUTPUTS]
    return {**found, **dict(zip(names, session.run(names, ranker_inputs(found)), strict=True))}


def test_the_served_answer_is_the_in_process_answer(client: RankClient, small_job: Any, logged: Any) -> None:
    for user in logged[:10]:
        tensors = to_tensors([user.request])
        served, local = client.infer(tensors, ALL), in_process(small_job[0].folder, tensors)
        for name in ALL:
            np.testing.assert_allclose(served[name], local[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_batch_equals_its_requests_one_by_one(client: RankClient, logged: Any) -> None:
    requests = [user.request for user in logged[:16]]
    together = client.rank(requests)
    for request, result in zip(requests, together, strict=True):
        alone = client.rank([request])[0]
        np.testing.assert_allclose(result.scores, alone.scores, rtol=1e-4, atol=1e-4)
        assert result.coverage == pytest.approx(alone.coverage)


def test_requests_of_different_lengths_batch_together_and_keep_their_answers(served: Any, logged: Any) -> None:
    requests = [
        RankRequest(behaviours=user.request.behaviours[: at % 7], candidates=user.request.candidates[: 1 + at])
        for at, user in enumerate(logged[:32])
    ]

    def ask(request: RankRequest) -> Any:
        with RankClient(served.grpc_url, timeout_s=30) as own:
            return own.rank([request], explain=True)[0]

    alone = [ask(request) for request in requests]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        crowded = list(pool.map(ask, requests))
    for one, other in zip(alone, crowded, strict=True):
        assert one.items == other.items
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-4)


def test_chains_are_paths_of_the_vocabulary_and_evidence_points_at_behaviours(
    client: RankClient, small_job: Any, logged: Any
) -> None:
    texts = NodeTexts.open(small_job[0].folder / "tables")
    explained = 0
    for user in logged[:10]:
        result = client.rank([user.request], explain=True)[0]
        for chains in result.chains:
            assert len(chains) <= contract.CHAINS_PER_CANDIDATE
            for chain in chains:
                assert all(node in texts for node in chain.nodes)
                assert all(0 <= at < len(user.request.behaviours) for at in chain.evidence)
                explained += bool(chain.evidence)
    assert explained > 0


def test_an_empty_history_scores_with_zero_coverage(client: RankClient, logged: Any) -> None:
    result = client.rank([RankRequest(behaviours=[], candidates=logged[0].request.candidates)], explain=True)[0]
    assert result.coverage == 0.0
    assert np.isfinite(result.scores).all()
    assert len(set(result.scores.tolist())) > 1
    assert all(not chains for chains in result.chains)


def test_unknown_items_score_and_coverage_tells(client: RankClient, logged: Any) -> None:
    known = logged[0].request.behaviours[0]
    unknown = Behaviour(item=-987654321, action="view", age_s=10.0)
    request = RankRequest(behaviours=[known, unknown], candidates=[-5, logged[0].target])
    result = client.rank([request], tell_unknown=True)[0]
    assert np.isfinite(result.scores).all()
    assert result.coverage == pytest.approx(0.5)
    assert (result.unknown, result.unknown_count) == ((-5,), 1)
    assert [item.item for item in result.top(2)] == [logged[0].target, -5]


def test_int64_extremes_are_ordinary_unknown_items(client: RankClient) -> None:
    extremes = [np.iinfo(np.int64).max, np.iinfo(np.int64).min + 1, 0, -1]
    behaviours = [Behaviour(item=int(item), action="order", age_s=0.0) for item in extremes]
    result = client.rank([RankRequest(behaviours=behaviours, candidates=[int(item) for item in extremes])])[0]
    assert np.isfinite(result.scores).all()
    assert result.coverage == 0.0


def test_duplicate_candidates_score_the_same_and_order_does_not_matter(client: RankClient, logged: Any) -> None:
    user = logged[1]
    candidates = list(user.request.candidates[:20])
    request = RankRequest(behaviours=user.request.behaviours, candidates=candidates + candidates[::-1])
    scores = client.rank([request])[0].scores
    np.testing.assert_allclose(scores[:20], scores[20:][::-1], rtol=1e-4, atol=1e-4)


def test_the_longest_request_fits(client: RankClient, logged: Any) -> None:
    user = logged[0]
    behaviours = (list(user.request.behaviours) * 400)[: contract.MAX_BEHAVIOURS]
    candidates = (list(user.request.candidates) * 400)[: contract.MAX_CANDIDATES]
    assert len(behaviours) == contract.MAX_BEHAVIOURS
    result = client.rank([RankRequest(behaviours=behaviours, candidates=candidates)])[0]
    assert result.scores.shape == (contract.MAX_CANDIDATES,)
    assert np.isfinite(result.scores).all()


def raw_call(served: Any, changes: dict[str, Any]) -> str:
    """Send tensors past the client's own checks; the server's refusal as text."""
    tensors: dict[str, Any] = {
        contract.BEHAVIOUR_ITEMS.name: np.array([[1, 2]], np.int64),
        contract.BEHAVIOUR_ACTIONS.name: np.array([[1, 2]], np.int32),
        contract.BEHAVIOUR_AGES_S.name: np.array([[1.0, 2.0]], np.float32),
        contract.USER_SEGMENT.name: np.array([[0]], np.int32),
        contract.CANDIDATE_ITEMS.name: np.array([[1, 2, 3]], np.int64),
    } | changes
    kinds = {np.dtype(np.int64): "INT64", np.dtype(np.int32): "INT32", np.dtype(np.float32): "FP32"}
    inputs = []
    for name, array in tensors.items():
        if array is not None:
            inputs.append(triton.InferInput(name, list(array.shape), kinds[array.dtype]))
            inputs[-1].set_data_from_numpy(array)
    channel = triton.InferenceServerClient(served.grpc_url)
    try:
        channel.infer(contract.ENSEMBLE_MODEL, inputs, client_timeout=30)
    except InferenceServerException as error:
        return f"{error.status()} {error.message()}"
    finally:
        channel.close()
    return "answered"


BAD: dict[str, tuple[str, Any]] = {
    "ages of another length": (contract.BEHAVIOUR_AGES_S.name, np.zeros((1, 3), np.float32)),
    "actions of another length": (contract.BEHAVIOUR_ACTIONS.name, np.ones((1, 1), np.int32)),
    "actions of another dtype": (contract.BEHAVIOUR_ACTIONS.name, np.ones((1, 2), np.int64)),
    "an unknown action": (contract.BEHAVIOUR_ACTIONS.name, np.array([[1, 77]], np.int32)),
    "a negative action": (contract.BEHAVIOUR_ACTIONS.name, np.array([[1, -1]], np.int32)),
    "NaN ages": (contract.BEHAVIOUR_AGES_S.name, np.array([[1, np.nan]], np.float32)),
    "infinite ages": (contract.BEHAVIOUR_AGES_S.name, np.array([[1, np.inf]], np.float32)),
    "negative ages": (contract.BEHAVIOUR_AGES_S.name, np.array([[1, -1]], np.float32)),
    "no candidate": (contract.CANDIDATE_ITEMS.name, np.zeros((1, 0), np.int64)),
    "too many candidates": (contract.CANDIDATE_ITEMS.name, np.ones((1, 1025), np.int64)),
    "three axes": (contract.CANDIDATE_ITEMS.name, np.ones((1, 2, 2), np.int64)),
    "a negative segment": (contract.USER_SEGMENT.name, np.array([[-1]], np.int32)),
    "two segments": (contract.USER_SEGMENT.name, np.array([[0, 1]], np.int32)),
    "a tensor that is missing": (contract.USER_SEGMENT.name, None),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_invalid_argument_that_names_the_tensor(served: Any, case: str) -> None:
    name, value = BAD[case]
    refusal = raw_call(served, {name: value})
    assert "INVALID_ARGUMENT" in refusal
    assert name in refusal
    assert raw_call(served, {}) == "answered"


def test_too_long_histories_are_refused(served: Any) -> None:
    long = {
        contract.BEHAVIOUR_ITEMS.name: np.ones((1, 1025), np.int64),
        contract.BEHAVIOUR_ACTIONS.name: np.ones((1, 1025), np.int32),
        contract.BEHAVIOUR_AGES_S.name: np.ones((1, 1025), np.float32),
    }
    refusal = raw_call(served, long)
    assert "INVALID_ARGUMENT" in refusal
    assert contract.BEHAVIOUR_ITEMS.name in refusal
    assert "1024" in refusal


def test_a_bad_request_does_not_touch_its_neighbours(served: Any, logged: Any) -> None:
    def good(at: int) -> Any:
        with RankClient(served.grpc_url, timeout_s=30) as own:
            return own.rank([logged[at % 8].request])[0].scores

    expected = [good(at) for at in range(8)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        bad = [pool.submit(raw_call, served, {BAD["NaN ages"][0]: BAD["NaN ages"][1]}) for _ in range(32)]
        answers = [pool.submit(good, at) for at in range(64)]
        for at, answer in enumerate(answers):
            np.testing.assert_allclose(answer.result(), expected[at % 8], rtol=1e-4, atol=1e-4)
        assert all("INVALID_ARGUMENT" in refusal.result() for refusal in bad)


def test_a_batch_is_really_executed_as_one(served: Any, logged: Any) -> None:
    def executions() -> tuple[int, int]:
        channel = triton.InferenceServerClient(served.grpc_url)
        stats = channel.get_inference_statistics(contract.RANKER_MODEL).model_stats[0]
        channel.close()
        return stats.inference_count, stats.execution_count

    def ask(at: int) -> None:
        with RankClient(served.grpc_url, timeout_s=30) as own:
            for _ in range(10):
                own.rank([logged[at].request])

    inferences, batches = executions()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))
    after_inferences, after_batches = executions()
    assert after_inferences - inferences == 160
    assert (after_inferences - inferences) / (after_batches - batches) > 1.2
