"""Settings of a connection, the comparison of contracts, and what is refused on its way to or from the wire."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airserve import contract
from airserve.client import Behaviour, ItemIds, KeepAlive, RankClient, RankRequest, TlsSettings, item_id, to_tensors
from airserve.client.agreement import check_agreement
from airserve.client.connection import channel_settings
from airserve.client.regions import REGION_BYTES, RegionPool
from airserve.client.request import encode_items
from airserve.client.wire import ALL_OUTPUTS, check_answer, check_tensors, plan_layout, response_shape
from airserve.errors import ArtifactError, InvalidRequestError, ServerError, UserError
from airserve.triton.config import ensemble_config


def tensors_of(candidates: int = 3, behaviours: int = 2) -> dict[str, Any]:
    history = [Behaviour(item=at, action="view", age_s=1.0) for at in range(behaviours)]
    return to_tensors([RankRequest(behaviours=history, candidates=range(candidates))])


def answer_to(tensors: dict[str, Any], chains: int = 9) -> dict[str, Any]:
    batch, candidates = tensors[contract.CANDIDATE_ITEMS.name].shape
    shapes = {spec: response_shape(spec.name, batch, candidates, chains) for spec in contract.RESPONSE}
    return {spec.name: np.zeros(shape, dtype=spec.dtype) for spec, shape in shapes.items()}


def disagreement(config: Any) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        check_agreement("here:8001", config)
    return caught.value


# Contracts.


def test_the_generated_configuration_agrees_with_the_client() -> None:
    check_agreement("here:8001", ensemble_config())


@pytest.mark.parametrize("at", range(len(contract.REQUEST)))
def test_every_input_is_compared(at: int) -> None:
    name = contract.REQUEST[at].name
    for change in ({"name": "renamed"}, {"data_type": 13}, {"dims": [7, 7]}):
        config = ensemble_config()
        for field, value in change.items():
            if field == "dims":
                config.input[at].dims[:] = value
            else:
                setattr(config.input[at], field, value)
        error = disagreement(config)
        assert f"input {name}" in error.expected
        assert f"input {name}" in error.got


@pytest.mark.parametrize("at", range(len(contract.RESPONSE)))
def test_every_output_is_compared(at: int) -> None:
    config = ensemble_config()
    del config.output[at]
    assert f"no output {contract.RESPONSE[at].name}" in disagreement(config).got


def test_a_tensor_that_the_client_does_not_know_is_a_disagreement() -> None:
    config = ensemble_config()
    config.input.add(name="user_mood", data_type=8, dims=[1])
    error = disagreement(config)
    assert "no input user_mood" in error.expected
    assert "user_mood INT32 [1]" in error.got


def test_a_server_of_smaller_batches_is_a_disagreement() -> None:
    config = ensemble_config()
    config.max_batch_size = contract.MAX_BATCH - 1
    assert "batches of 31" in disagreement(config).got


# Settings.


def test_a_client_without_a_usable_timeout_is_refused_before_connecting() -> None:
    with pytest.raises(UserError, match="timeout_s"):
        RankClient("127.0.0.1:9", timeout_s=0)


def test_tls_files_that_are_not_there_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"root_certificates.*ca\.pem"):
        TlsSettings(root_certificates=tmp_path / "ca.pem")
    chain = tmp_path / "chain.pem"
    chain.touch()
    with pytest.raises(UserError, match="private_key"):
        TlsSettings(certificate_chain=chain)


def test_tls_and_keepalive_reach_the_channel(tmp_path: Path) -> None:
    root = tmp_path / "ca.pem"
    root.touch()
    settings = channel_settings(TlsSettings(root_certificates=root), KeepAlive(time_s=60, timeout_s=5, while_idle=True))
    arguments = dict(settings["channel_args"])
    assert settings["ssl"] is True
    assert settings["root_certificates"] == str(root)
    assert arguments["grpc.keepalive_time_ms"] == 60_000
    assert arguments["grpc.keepalive_timeout_ms"] == 5_000
    assert arguments["grpc.keepalive_permit_without_calls"] == 1
    assert "ssl" not in channel_settings(None, None)


@pytest.mark.parametrize("wrong", [{"time_s": 1.0}, {"timeout_s": 0.0}])
def test_an_impossible_keepalive_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        KeepAlive(**wrong)  # type: ignore[arg-type]


# Ids.


def test_strings_become_the_ids_of_item_ids_and_numbers_stay() -> None:
    history = [Behaviour(item="cat video", action="view", age_s=1.0)]
    known = ItemIds()
    encoded = encode_items(RankRequest[Any](behaviours=history, candidates=["cat bed", 7], segment=3), known)
    assert [behaviour.item for behaviour in encoded.behaviours] == [item_id("cat video")]
    assert encoded.candidates == [item_id("cat bed"), 7]
    assert encoded.segment == 3
    assert known.decode(item_id("cat bed")) == "cat bed"


def test_a_number_written_as_a_string_is_not_taken_for_a_number() -> None:
    with pytest.raises(InvalidRequestError, match=r"'12'.*ItemIds"):
        to_tensors([RankRequest[Any](behaviours=[], candidates=["12"])])


def test_the_padding_id_is_refused_as_a_candidate() -> None:
    with pytest.raises(InvalidRequestError, match="reserved"):
        to_tensors([RankRequest(behaviours=[], candidates=[1, contract.PAD_ITEM])])


# The wire.


@pytest.mark.parametrize("spec", contract.REQUEST, ids=lambda spec: spec.name)
def test_a_tensor_that_is_missing_or_of_another_kind_is_not_sent(spec: contract.TensorSpec) -> None:
    good = tensors_of()
    check_tensors(good)
    without = {name: array for name, array in good.items() if name != spec.name}
    for bad in (
        without,
        good | {spec.name: good[spec.name].astype(np.float64)},
        good | {spec.name: good[spec.name][0]},
    ):
        with pytest.raises(InvalidRequestError, match=spec.name):
            check_tensors(bad)


@pytest.mark.parametrize("spec", contract.RESPONSE, ids=lambda spec: spec.name)
def test_an_answer_of_another_shape_is_an_error_not_a_result(spec: contract.TensorSpec) -> None:
    question = tensors_of()
    good = answer_to(question)
    assert set(check_answer(good, question)) == set(ALL_OUTPUTS)
    for bad in (None, good[spec.name].astype(np.float64), good[spec.name][:0]):
        with pytest.raises(ServerError, match=spec.name) as caught:
            check_answer(good | {spec.name: bad}, question)
        assert caught.value.status == "StatusCode.INTERNAL"


def test_padding_candidates_behind_the_real_ones_are_cut_off() -> None:
    question, longer = tensors_of(3, 2), tensors_of(contract.SHAPE_CLASSES[0]["C"], 2)
    answer = check_answer(answer_to(longer), question)
    for name, array in answer_to(question).items():
        assert answer[name].shape == array.shape
    with pytest.raises(ServerError, match="the server sent"):
        check_answer(answer_to(tensors_of(5, 2)), question)


@pytest.mark.parametrize("chains", [1, contract.MIN_CHAINS, contract.MAX_CHAINS])
def test_an_answer_has_as_many_chains_as_the_request(chains: int) -> None:
    question = tensors_of()
    checked = check_answer(answer_to(question, chains), question)
    assert checked[contract.CHAIN_NODES.name].shape[1] == chains
    assert checked[contract.EVIDENCE.name].shape[1] == chains


@pytest.mark.parametrize("chains", [0, contract.MAX_CHAINS + 1])
def test_no_chains_or_more_than_the_bound_are_an_error(chains: int) -> None:
    question = tensors_of()
    with pytest.raises(ServerError, match=f"{contract.CHAIN_NODES.name}: expected .*1 to {contract.MAX_CHAINS}"):
        check_answer(answer_to(question, chains), question)


def test_a_compiled_backends_padded_chains_do_not_come_with_its_answer() -> None:
    """C comes padded, what the lookup alone knows does not."""
    question, longer = tensors_of(3, 2), tensors_of(contract.SHAPE_CLASSES[0]["C"], 2)
    mixed = answer_to(question) | {spec.name: answer_to(longer)[spec.name] for spec in contract.RANKER_OUTPUTS}
    for name, array in answer_to(question).items():
        assert check_answer(mixed, question)[name].shape == array.shape


@pytest.mark.parametrize("spec", [contract.CHAIN_NODES, contract.EVIDENCE], ids=lambda spec: spec.name)
def test_a_chain_that_did_not_come_with_the_answer_is_an_error(spec: contract.TensorSpec) -> None:
    question = tensors_of()
    answer = answer_to(question)
    answer[contract.CHAIN_INDEX.name][0, 0, 0] = 8
    check_answer(answer, question)
    with pytest.raises(ServerError, match=f"{contract.CHAIN_INDEX.name}: expected indices below 8.*{spec.name}"):
        check_answer(answer | {spec.name: answer[spec.name][:, :8]}, question)


@pytest.mark.parametrize(("candidates", "behaviours"), [(1, 0), (3, 2), (1024, 1024)])
def test_tensors_in_shared_memory_do_not_overlap(candidates: int, behaviours: int) -> None:
    layout = plan_layout(tensors_of(candidates, behaviours), ALL_OUTPUTS)
    places = [*layout.inputs, *layout.outputs]
    for one, following in itertools.pairwise(places):
        assert one.offset + one.n_bytes <= following.offset
        assert following.offset % 64 == 0
    assert places[-1].offset + places[-1].n_bytes <= layout.n_bytes <= REGION_BYTES


def test_what_is_written_to_shared_memory_can_be_read_and_is_gone_afterwards() -> None:
    pool = RegionPool()
    pool.open_first()
    region = pool.take()
    assert region is not None
    try:
        tensors = tensors_of()
        layout = plan_layout(tensors, ALL_OUTPUTS)
        region.write(layout, tensors)
        shapes = {name: array.shape for name, array in answer_to(tensors).items()}
        for name, array in region.read(layout, shapes).items():
            assert array is not None
            assert array.shape == shapes[name]
        too_large = {name: (*shape, 10**6) for name, shape in shapes.items()}
        assert set(region.read(layout, too_large).values()) == {None}
        other = pool.take()
        assert other is not None
        assert other.name != region.name
        pool.give_back(region)
        assert pool.take() is region
    finally:
        pool.destroy()
    assert not Path("/dev/shm", region.name).exists()
