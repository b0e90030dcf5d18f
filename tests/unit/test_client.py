"""The client: requests to tensors, tensors to results, and what is done with a server's errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tritonclient.utils import InferenceServerException

from airserve import client, contract
from airserve.client import Behaviour, Chain, NodeTexts, RankClient, RankRequest, RankResult, to_tensors
from airserve.client import sync as sync_module
from airserve.client.result import from_tensors
from airserve.errors import ArtifactError, InvalidRequestError, ServerError
from airserve.triton.config import ensemble_config


def behaviour(item: int = 7, action: str = "view", age_s: float = 60.0) -> Behaviour:
    return Behaviour(item=item, action=action, age_s=age_s)


def request_of(behaviours: int = 2, candidates: Sequence[int] = (1, 2, 3), segment: int = 0) -> RankRequest:
    return RankRequest(
        behaviours=[behaviour(item) for item in range(behaviours)], candidates=candidates, segment=segment
    )


def refusal(*requests: RankRequest) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        to_tensors(requests)
    return caught.value


# Requests to tensors.


def test_requests_of_different_lengths_become_one_padded_batch() -> None:
    short = RankRequest(behaviours=[behaviour(5, "order", 9.5)], candidates=[10], segment=2)
    long = RankRequest(behaviours=[behaviour(6, "view", 3.0), behaviour(7, "cart", 1.0)], candidates=[11, 12])
    tensors = to_tensors([short, long])
    assert list(tensors) == [spec.name for spec in contract.REQUEST]
    wanted = {
        contract.BEHAVIOUR_ITEMS: [[5, contract.PAD_ITEM], [6, 7]],
        contract.BEHAVIOUR_ACTIONS: [[5, contract.PAD_ACTION], [1, 4]],
        contract.BEHAVIOUR_AGES_S: [[9.5, 0.0], [3.0, 1.0]],
        contract.USER_SEGMENT: [[2], [0]],
        contract.CANDIDATE_ITEMS: [[10, contract.PAD_ITEM], [11, 12]],
    }
    for spec, rows in wanted.items():
        assert tensors[spec.name].dtype == spec.dtype
        assert tensors[spec.name].tolist() == rows


def test_an_empty_history_has_no_behaviour_axis() -> None:
    assert to_tensors([request_of(behaviours=0)])[contract.BEHAVIOUR_ITEMS.name].shape == (1, 0)


def test_an_empty_history_beside_a_full_one_is_padding() -> None:
    items = to_tensors([request_of(behaviours=0), request_of()])[contract.BEHAVIOUR_ITEMS.name]
    assert items[0].tolist() == [contract.PAD_ITEM] * 2


def test_numpy_ids_are_as_good_as_python_numbers() -> None:
    request = RankRequest(behaviours=[], candidates=np.array([3, 2**63 - 1], dtype=np.int64).tolist())
    numpy_request = RankRequest(behaviours=[], candidates=list(np.array([3, 2**63 - 1], dtype=np.int64)))
    assert (
        to_tensors([request])[contract.CANDIDATE_ITEMS.name].tolist()
        == to_tensors([numpy_request])[contract.CANDIDATE_ITEMS.name].tolist()
    )


def test_an_unknown_action_is_refused_by_name() -> None:
    error = refusal(RankRequest(behaviours=[behaviour(action="purchase")], candidates=[1]))
    assert (error.subject, error.got) == (contract.BEHAVIOUR_ACTIONS.name, "'purchase'")
    assert "order" in error.expected


@pytest.mark.parametrize("age_s", [-1.0, float("nan"), float("inf"), 1e300])
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_an_impossible_age_is_refused_before_sending(age_s: float) -> None:
    error = refusal(RankRequest(behaviours=[behaviour(age_s=age_s)], candidates=[1]))
    assert error.subject == contract.BEHAVIOUR_AGES_S.name


@pytest.mark.parametrize("item", [2**63, -(2**63) - 1, 2**80, 1.5, "B00004OCKR", None])
def test_an_id_that_is_no_64_bit_number_is_refused_before_sending(item: Any) -> None:
    in_history = refusal(RankRequest(behaviours=[behaviour(item)], candidates=[1]))
    in_candidates = refusal(RankRequest(behaviours=[], candidates=[1, item]))
    assert in_history.subject == contract.BEHAVIOUR_ITEMS.name
    assert in_candidates.subject == contract.CANDIDATE_ITEMS.name
    assert "64" in in_candidates.expected


@pytest.mark.parametrize("segment", [-1, 2**31, 0.5])
def test_an_impossible_segment_is_refused_before_sending(segment: Any) -> None:
    assert refusal(request_of(segment=segment)).subject == contract.USER_SEGMENT.name


def test_the_padding_id_is_refused_in_a_history_and_among_the_candidates() -> None:
    refusal(RankRequest(behaviours=[behaviour(contract.PAD_ITEM)], candidates=[1]))
    assert refusal(request_of(candidates=[1, contract.PAD_ITEM])).subject == contract.CANDIDATE_ITEMS.name


def test_an_age_that_is_no_number_is_refused_before_sending() -> None:
    error = refusal(RankRequest(behaviours=[behaviour(age_s="yesterday")], candidates=[1]))  # type: ignore[arg-type]
    assert error.subject == contract.BEHAVIOUR_AGES_S.name


def test_a_batch_without_requests_is_refused_and_says_so() -> None:
    error = refusal()
    assert error.got == "0"
    assert "requests" in error.expected
    assert "split" not in error.remedy


def test_a_request_without_candidates_is_refused_even_beside_others() -> None:
    assert refusal(request_of(candidates=[])).subject == contract.CANDIDATE_ITEMS.name
    assert refusal(request_of(), request_of(candidates=[])).subject == contract.CANDIDATE_ITEMS.name


def test_more_requests_than_a_call_takes_are_refused() -> None:
    assert refusal(*[request_of()] * (contract.MAX_BATCH + 1)).subject == contract.CANDIDATE_ITEMS.name


def test_more_behaviours_than_the_bound_are_refused() -> None:
    assert refusal(request_of(behaviours=contract.MAX_BEHAVIOURS + 1)).subject == contract.BEHAVIOUR_ITEMS.name


# Tensors to results.


def response_of(batch: int = 1, candidates: int = 3, chains: int = 9) -> dict[str, np.ndarray[Any, Any]]:
    k, d, m = contract.CHAINS_PER_CANDIDATE, contract.MAX_DEPTH, contract.MAX_EVIDENCE
    return {
        contract.SCORES.name: np.arange(batch * candidates, dtype=np.float32).reshape(batch, candidates),
        contract.CHAIN_INDEX.name: np.full((batch, candidates, k), contract.NO_CHAIN, dtype=np.int32),
        contract.CHAIN_WEIGHTS.name: np.zeros((batch, candidates, k), dtype=np.float32),
        contract.CHAIN_NODES.name: np.full((batch, chains, d), contract.PAD_NODE, dtype=np.int32),
        contract.EVIDENCE.name: np.full((batch, chains, m), contract.NO_EVIDENCE, dtype=np.int32),
        contract.COVERAGE.name: np.full((batch, 1), 0.5, dtype=np.float32),
        contract.UNKNOWN_COUNT.name: np.zeros((batch, 1), dtype=np.int32),
        contract.UNKNOWN_MASK.name: np.zeros((batch, candidates), dtype=np.bool_),
        contract.TABLE_VERSION.name: np.full((batch, 1), 2**52 + 1, dtype=np.int64),
    }


def test_a_response_becomes_scores_coverage_and_table_version() -> None:
    (result,) = from_tensors([request_of(candidates=[9, 8, 7])], response_of(), explained=False)
    assert result.items == (9, 8, 7)
    assert result.scores.tolist() == [0.0, 1.0, 2.0]
    assert result.coverage == 0.5
    assert result.table_version == 2**52 + 1
    assert result.chains == ()
    assert result.unknown_count == 0
    assert result.unknown is None


def test_unknown_candidates_are_told_with_the_ids_of_the_request_where_they_were_asked_for() -> None:
    response = response_of(batch=2)
    response[contract.UNKNOWN_COUNT.name][:, 0] = [0, 2]
    response[contract.UNKNOWN_MASK.name][:] = [[False, False, True], [True, False, True]]
    requests = [RankRequest(behaviours=[], candidates=["a", "b"]), RankRequest(behaviours=[], candidates=["c", 8, "d"])]
    short, long = from_tensors(requests, response, explained=False, tell_unknown=True)
    # What is marked behind the last candidate is padding of the batch.
    assert (short.unknown_count, short.unknown) == (0, ())
    assert (long.unknown_count, long.unknown) == (2, ("c", "d"))


def test_padded_candidates_of_a_batch_are_cut_off() -> None:
    requests = [request_of(candidates=[9]), request_of(candidates=[1, 2, 3])]
    short, long = from_tensors(requests, response_of(batch=2), explained=True)
    assert (short.scores.shape, long.scores.shape) == ((1,), (3,))
    assert (len(short.chains), len(long.chains)) == (1, 3)


def test_chains_hold_what_is_real_and_nothing_of_the_padding() -> None:
    response = response_of()
    response[contract.CHAIN_INDEX.name][0, 1, :2] = [8, 3]
    response[contract.CHAIN_WEIGHTS.name][0, 1, :2] = [1.5, 0.25]
    response[contract.CHAIN_NODES.name][0, 8, :3] = [4, 5, 6]
    response[contract.CHAIN_NODES.name][0, 3, :1] = [4]
    response[contract.EVIDENCE.name][0, 8, :2] = [1, 0]
    (result,) = from_tensors([request_of()], response, explained=True)
    assert result.chains[1] == (
        Chain(nodes=(4, 5, 6), weight=1.5, evidence=(1, 0)),
        Chain(nodes=(4,), weight=0.25, evidence=()),
    )
    assert result.chains[0] == result.chains[2] == ()


def result_of(scores: Sequence[float]) -> RankResult:
    return RankResult(
        items=tuple(range(len(scores))),
        scores=np.array(scores, dtype=np.float32),
        coverage=1.0,
        unknown_count=0,
        table_version=1,
        chains=(),
    )


def test_the_top_is_the_best_first_with_ties_in_the_order_of_the_request() -> None:
    assert [item.item for item in result_of([1.0, 3.0, 1.0, 3.0, 2.0]).top(4)] == [1, 3, 4, 0]


def test_the_top_of_more_than_there_are_is_all_of_them() -> None:
    assert len(result_of([1.0, 2.0]).top(10)) == 2


def test_an_item_of_minus_infinity_ranks_last() -> None:
    assert [item.item for item in result_of([-np.inf, -5.0]).top(2)] == [1, 0]


def test_the_top_carries_chains_only_when_they_were_asked_for() -> None:
    response = response_of()
    response[contract.CHAIN_INDEX.name][0, :, 0] = 2
    response[contract.CHAIN_NODES.name][0, 2, 0] = 4
    (explained,) = from_tensors([request_of()], response, explained=True)
    (plain,) = from_tensors([request_of()], response, explained=False)
    assert len(explained.top(1)[0].chains) == 1
    assert plain.top(1)[0].chains == ()


def test_a_chain_reads_coarse_to_fine_and_names_nodes_without_a_text() -> None:
    chain = Chain(nodes=(1, 2, 3), weight=1.0, evidence=())
    assert chain.text({1: "pet supplies", 3: "cat bed"}) == "pet supplies > node 2 > cat bed"


def test_node_texts_are_read_from_a_tables_folder(tmp_path: Path) -> None:
    columns = {"node_id": [1, 2], "parent_id": [0, 1], "text": ["pet supplies", "cat furniture"]}
    pq.write_table(pa.table(columns), tmp_path / "vocabulary.parquet")
    texts = NodeTexts.open(tmp_path)
    assert texts == {1: "pet supplies", 2: "cat furniture"}
    texts.save(tmp_path / "texts.json")
    assert json.loads((tmp_path / "texts.json").read_text()) == {"1": "pet supplies", "2": "cat furniture"}


def test_a_folder_without_a_vocabulary_is_refused_with_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"vocabulary\.parquet.*build_tables\.py"):
        NodeTexts.open(tmp_path)


# The connection.


class FakeAnswer:
    def __init__(self, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
        self._tensors = tensors

    def as_numpy(self, name: str) -> np.ndarray[Any, Any]:
        return self._tensors[name]


class FakeChannel:
    """Stands in for tritonclient's connection: what it was asked is kept, what it answers is set."""

    def __init__(self) -> None:
        self.config = ensemble_config()
        self.error: Exception | None = None
        self.calls: list[dict[str, Any]] = []
        self.closed = False

    def get_model_config(self, model_name: str, **options: Any) -> SimpleNamespace:
        self._fail()
        assert model_name == contract.ENSEMBLE_MODEL
        return SimpleNamespace(config=self.config)

    def infer(self, **arguments: Any) -> FakeAnswer:
        self.calls.append(arguments)
        self._fail()
        return FakeAnswer(response_of())

    def _fail(self) -> None:
        if self.error:
            raise self.error

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> FakeChannel:
    fake = FakeChannel()
    monkeypatch.setattr(sync_module.triton, "InferenceServerClient", lambda url, **options: fake)
    return fake


def wanted_outputs(call: dict[str, Any]) -> set[str]:
    return {output.name() for output in call["outputs"]}


def test_ranking_asks_the_ensemble_for_scores_only(channel: FakeChannel) -> None:
    with RankClient("here:8001") as connection:
        (result,) = connection.rank([request_of()])
    (call,) = channel.calls
    sent = {tensor.name(): (tensor.datatype(), list(tensor.shape())) for tensor in call["inputs"]}
    tensors = to_tensors([request_of()])
    assert call["model_name"] == contract.ENSEMBLE_MODEL
    assert sent == {spec.name: (spec.triton_dtype, list(tensors[spec.name].shape)) for spec in contract.REQUEST}
    assert wanted_outputs(call) == {
        spec.name for spec in {*contract.RESPONSE} - {*contract.EXPLANATION, contract.UNKNOWN_MASK}
    }
    assert result.items == (1, 2, 3)
    assert channel.closed


def test_an_explanation_is_asked_for_on_request(channel: FakeChannel) -> None:
    (result,) = RankClient("here:8001").rank([request_of()], explain=True)
    assert wanted_outputs(channel.calls[0]) == {spec.name for spec in contract.RESPONSE} - {contract.UNKNOWN_MASK.name}
    assert len(result.chains) == 3


def test_the_mask_of_unknown_candidates_is_asked_for_on_request(channel: FakeChannel) -> None:
    (result,) = RankClient("here:8001").rank([request_of()], tell_unknown=True)
    assert contract.UNKNOWN_MASK.name in wanted_outputs(channel.calls[0])
    assert contract.CHAIN_NODES.name not in wanted_outputs(channel.calls[0])
    assert result.unknown == ()


def test_a_call_has_the_deadline_of_the_client_or_its_own(channel: FakeChannel) -> None:
    connection = RankClient("here:8001", timeout_s=60.0)
    connection.rank([request_of()])
    connection.rank([request_of()], timeout_s=30.0)
    assert 30.0 < channel.calls[0]["client_timeout"] <= 60.0
    assert 0.0 < channel.calls[1]["client_timeout"] <= 30.0


def test_a_bad_request_is_never_sent(channel: FakeChannel) -> None:
    connection = RankClient("here:8001")
    with pytest.raises(InvalidRequestError):
        connection.rank([request_of(candidates=[])])
    assert channel.calls == []


@pytest.mark.parametrize(("version", "named"), [("0", "0"), (None, "none")])
def test_a_server_of_another_contract_is_refused_with_both_versions(
    channel: FakeChannel, version: str | None, named: str
) -> None:
    del channel.config.parameters["contract_version"]
    if version is not None:
        channel.config.parameters["contract_version"].string_value = version
    with pytest.raises(ArtifactError) as caught:
        RankClient("here:8001")
    assert str(contract.CONTRACT_VERSION) in caught.value.expected
    assert named in caught.value.got
    assert caught.value.subject == "here:8001"


def test_a_refusal_by_the_server_keeps_its_status_and_message_and_is_not_sent_again(channel: FakeChannel) -> None:
    connection = RankClient("here:8001")
    channel.error = InferenceServerException("age: got -1", status=str(grpc.StatusCode.INVALID_ARGUMENT))
    with pytest.raises(ServerError, match="age: got -1") as caught:
        connection.rank([request_of()])
    assert caught.value.status == "StatusCode.INVALID_ARGUMENT"
    assert len(channel.calls) == 1


def test_a_server_that_does_not_answer_is_named_by_its_address(channel: FakeChannel) -> None:
    channel.error = InferenceServerException("refused", status=str(grpc.StatusCode.UNAVAILABLE))
    with pytest.raises(ServerError, match="here:8001") as caught:
        RankClient("here:8001", timeout_s=0.5)
    assert caught.value.status == "StatusCode.UNAVAILABLE"


def test_no_server_at_all_is_a_server_error() -> None:
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9"):
        RankClient("127.0.0.1:9", timeout_s=2.0)


def test_everything_that_the_package_exports_is_there() -> None:
    assert all(hasattr(client, name) for name in client.__all__)
