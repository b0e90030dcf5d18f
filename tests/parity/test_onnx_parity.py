"""The exported graph computes what PyTorch computes, and is what the contract says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from airserve import contract
from airserve.artifacts import ITEM_ENCODER_FILE, LEARNED_FILE, MANIFEST_FILE, NODE_ENCODER_FILE, ONNX_FILE
from airserve.bench.synthetic import random_arrays, write_intents
from airserve.errors import ArtifactError, EngineError
from airserve.export.onnx import FORBIDDEN_OPERATORS, encoder_identity, export_ranker, sizes_of
from airserve.export.parity import CORNERS, TOLERANCE, check_parity, compare, open_session, random_inputs
from airserve.model.encoders import ItemEncoder, NodeEncoder
from airserve.model.ranker import Ranker, RankerSettings
from airserve.model.request import RequestNetwork
from airserve.model.sequence import SequenceSettings
from airserve.table.intents import IntentTable
from airserve.training.checkpoint import new_ranker

SIZES = {"H": 32, "E": 128, "X": 160}


def make_ranker(table: IntentTable, seed: int) -> Ranker:
    torch.manual_seed(seed)
    ranker = new_ranker(table, RankerSettings(sequence=SequenceSettings(width=SIZES["H"])))
    with torch.no_grad():
        for ids in (ranker.node_tokens.ids, ranker.queries.main_nodes, ranker.queries.other_nodes):
            ids.weight_NH.normal_()
            ids.none_H.normal_()
    return ranker.eval()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> IntentTable:
    return write_intents(tmp_path_factory.mktemp("tables"), random_arrays(n_items=60, n_nodes=50, n_paths=30))


@pytest.fixture(scope="module")
def exported(table: IntentTable, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ranker, Path]:
    ranker, folder = make_ranker(table, 0), tmp_path_factory.mktemp("engine")
    assert export_ranker(ranker, table, folder)["sizes"] == sizes_of(ranker) == SIZES
    return ranker, folder / ONNX_FILE


@pytest.mark.parametrize("axes", CORNERS, ids=str)
def test_onnx_runtime_agrees_with_pytorch_at_every_corner(exported: tuple[Ranker, Path], axes: dict[str, int]) -> None:
    ranker, path = exported
    figures = compare(RequestNetwork(ranker).eval(), open_session(path), random_inputs(axes, SIZES, seed=3))
    print(f"{axes}: largest difference {figures['max']:.2g}, mean {figures['mean']:.2g}, tolerance {TOLERANCE}")
    assert figures["max"] < TOLERANCE
    assert figures["index_share"] < 1e-3


def test_another_rankers_graph_fails_the_parity_check(exported: tuple[Ranker, Path], table: IntentTable) -> None:
    with pytest.raises(EngineError, match="differs from PyTorch"):
        check_parity(make_ranker(table, 1), exported[1], SIZES)


def test_the_graph_has_the_contracts_names_axes_and_stamps(exported: tuple[Ranker, Path]) -> None:
    model = onnx.load(str(exported[1]))
    for specs, values in (
        (contract.RANKER_INPUTS, model.graph.input),
        (contract.RANKER_OUTPUTS, model.graph.output),
    ):
        for spec, value in zip(specs, values, strict=True):
            sizes = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            expected: list[Any] = ["B"]
            for axis, size in zip(spec.axes[1:], spec.dims_for(SIZES), strict=True):
                expected.append(axis if size == -1 else size)
            assert (value.name, sizes) == (spec.name, expected)
    stamps = {entry.key: entry.value for entry in model.metadata_props}
    assert stamps["contract_version"] == str(contract.CONTRACT_VERSION)
    assert stamps["encoder"] == encoder_identity(exported[0])
    assert not [name for name in stamps if "catalogue" in name or "vocabulary" in name], "the engine knows neither"
    assert not {node.op_type for node in model.graph.node} & FORBIDDEN_OPERATORS


def test_no_number_of_the_catalogue_or_the_vocabulary_is_in_the_graph(exported: tuple[Ranker, Path]) -> None:
    sizes = {size for value in onnx.load(str(exported[1])).graph.initializer for size in value.dims}
    assert not sizes & {62, 60, 50}


def test_the_served_graph_answers_for_an_empty_history_and_unknown_items(exported: tuple[Ranker, Path]) -> None:
    inputs = random_inputs({"B": 1, "C": 3, "R": contract.MIN_CHAINS}, SIZES, seed=0)
    for spec in (contract.WINDOW_TOKENS, contract.WINDOW_CONTEXT, contract.CHAIN_ROWS, contract.LEVEL_WEIGHTS,
                 contract.EVIDENCE_TOKENS, contract.CANDIDATE_TOKENS):  # fmt: skip
        inputs[spec.name][:] = 0
    inputs[contract.CHAIN_BIAS.name][:] = contract.PADDED_CHAIN
    prior = np.array([[-contract.UNKNOWN_PENALTY, 2.5, -np.inf]], dtype=np.float32)
    scores, chains, weights = open_session(exported[1]).run(None, inputs | {contract.CANDIDATE_PRIOR.name: prior})
    np.testing.assert_array_equal(scores, prior), "nothing is known of the user: the prior alone ranks"
    assert (chains == contract.NO_CHAIN).all()
    assert not weights.any()


def test_the_exported_encoders_make_the_rows_that_pytorch_makes(exported: tuple[Ranker, Path]) -> None:
    ranker, path = exported
    generator = torch.Generator().manual_seed(0)
    ids, main, other = (torch.randn(7, SIZES["H"], generator=generator) for _ in range(3))
    vectors = torch.nn.functional.normalize(torch.randn(7, SIZES["E"], generator=generator), dim=-1)
    vectors[0] = 0
    levels = torch.arange(7) % contract.MAX_DEPTH
    for name, module, inputs in (
        (ITEM_ENCODER_FILE, ItemEncoder(ranker), (ids, vectors, main, other)),
        (NODE_ENCODER_FILE, NodeEncoder(ranker), (ids, vectors, levels)),
    ):
        session = open_session(path.with_name(name))
        names = [value.name for value in session.get_inputs()]
        theirs = session.run(None, {key: value.numpy() for key, value in zip(names, inputs, strict=True)})
        with torch.no_grad():
            ours = module(*inputs)
        for mine, made in zip(ours if isinstance(ours, tuple) else (ours,), theirs, strict=True):
            np.testing.assert_allclose(made, mine.numpy(), atol=1e-5)


def test_the_manifest_names_every_file_and_one_identity(exported: tuple[Ranker, Path], table: IntentTable) -> None:
    folder = exported[1].parent
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    assert manifest["files"] == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in (ONNX_FILE, ITEM_ENCODER_FILE, NODE_ENCODER_FILE, LEARNED_FILE)
    }
    assert manifest["encoder"] == encoder_identity(make_ranker(table, 0)) != encoder_identity(make_ranker(table, 1))
    for name in (ITEM_ENCODER_FILE, NODE_ENCODER_FILE):
        stamps = {entry.key: entry.value for entry in onnx.load(str(folder / name)).metadata_props}
        assert stamps["encoder"] == manifest["encoder"]


def test_only_learned_vectors_of_known_items_are_exported(table: IntentTable, tmp_path: Path) -> None:
    ranker = make_ranker(table, 0)
    known = torch.arange(62) % 2 == 0
    known[: contract.FIRST_ITEM_ROW] = False
    ranker.base.items.ids.set_known(known)
    assert export_ranker(ranker, table, tmp_path)["items_learned"] == 30
    with np.load(tmp_path / LEARNED_FILE) as learned:
        assert learned["items"].tolist() == table.items[::2].tolist()
        assert learned["titles"].tolist() == table.arrays.title_keys[::2].tolist()
        np.testing.assert_array_equal(learned["item_ids"], ranker.base.items.ids.weight_NH.detach()[2::2].numpy())
        assert (np.diff(learned["nodes"].astype(object)) > 0).all(), "ascending, to be searched"


def test_a_ranker_whose_base_sees_other_vectors_is_not_exported(table: IntentTable, tmp_path: Path) -> None:
    other = torch.from_numpy(np.array(table.item_vectors)) * 0.5
    with pytest.raises(EngineError, match="for a study, not served"):
        export_ranker(new_ranker(table, RankerSettings(), other), table, tmp_path)


def test_a_file_that_is_no_graph_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "ranker.onnx").write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match="export_onnx"):
        open_session(tmp_path / "ranker.onnx")
