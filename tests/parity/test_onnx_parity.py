"""The exported graph computes what PyTorch computes, and is what the contract says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch

from airserve import contract
from airserve.errors import ArtifactError, EngineError
from airserve.export.onnx import FORBIDDEN_OPERATORS, export_ranker
from airserve.export.parity import CORNERS, TOLERANCE, check_parity, compare, open_session, random_inputs
from airserve.model.ranker import Ranker, RankerSettings
from airserve.table.lookup import IntentTable

N_ROWS, N_NODES, SIZE = 60, 50, 16


def make_ranker(seed: int) -> Ranker:
    torch.manual_seed(seed)
    items = torch.nn.functional.normalize(torch.randn(N_ROWS, SIZE), dim=-1)
    nodes = torch.nn.functional.normalize(torch.randn(N_NODES, SIZE), dim=-1)
    items[: contract.FIRST_ITEM_ROW] = 0
    nodes[0] = 0
    return Ranker(items, nodes, torch.arange(N_NODES) % contract.MAX_DEPTH, RankerSettings()).eval()


def fake_table() -> IntentTable:
    """The parts of a table that the export reads."""
    manifest = SimpleNamespace(catalogue_sha256="c" * 64, vocabulary_sha256="v" * 64)
    rows, nodes = np.zeros((N_ROWS, SIZE)), np.zeros((N_NODES, SIZE))
    return cast(IntentTable, SimpleNamespace(manifest=manifest, table_version=5, item_vectors=rows, node_vectors=nodes))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ranker, Path]:
    ranker = make_ranker(0)
    return ranker, export_ranker(ranker, fake_table(), tmp_path_factory.mktemp("engine"))


@pytest.mark.parametrize("axes", CORNERS, ids=str)
def test_onnx_runtime_agrees_with_pytorch_at_every_corner(exported: tuple[Ranker, Path], axes: dict[str, int]) -> None:
    ranker, path = exported
    figures = compare(ranker, open_session(path), random_inputs(axes, n_rows=N_ROWS, n_nodes=N_NODES, seed=3))
    print(f"{axes}: largest difference {figures['max']:.2g}, mean {figures['mean']:.2g}, tolerance {TOLERANCE}")
    assert figures["max"] < TOLERANCE
    assert figures["index_share"] < 1e-3


def test_another_rankers_graph_fails_the_parity_check(exported: tuple[Ranker, Path]) -> None:
    with pytest.raises(EngineError, match="differs from PyTorch"):
        check_parity(make_ranker(1), exported[1])


def test_the_graph_has_the_contracts_names_axes_and_stamps(exported: tuple[Ranker, Path]) -> None:
    model = onnx.load(str(exported[1]))
    for specs, values in (
        (contract.RANKER_INPUTS, model.graph.input),
        (contract.RANKER_OUTPUTS, model.graph.output),
    ):
        for spec, value in zip(specs, values, strict=True):
            sizes = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            expected: list[Any] = ["B"]
            for axis, size in zip(spec.axes[1:], spec.dims, strict=True):
                expected.append(axis if size == -1 else size)
            assert (value.name, sizes) == (spec.name, expected)
    stamps = {entry.key: entry.value for entry in model.metadata_props}
    assert stamps["contract_version"] == str(contract.CONTRACT_VERSION)
    assert stamps["catalogue_sha256"] == "c" * 64
    assert not {node.op_type for node in model.graph.node} & FORBIDDEN_OPERATORS


def test_the_served_graph_answers_for_an_empty_history_and_unknown_items(exported: tuple[Ranker, Path]) -> None:
    inputs = random_inputs({"B": 1, "L": 1, "C": 3, "R": 1, "U": 1}, n_rows=N_ROWS, n_nodes=N_NODES, seed=0)
    inputs[contract.BEHAVIOUR_ROWS.name][:] = contract.PAD_ROW
    inputs[contract.BEHAVIOUR_ACTIONS.name][:] = contract.PAD_ACTION
    inputs[contract.CANDIDATE_ROWS.name][:] = [[contract.UNKNOWN_ROW, 5, contract.PAD_ROW]]
    scores, nodes, weights, evidence = open_session(exported[1]).run(None, inputs)
    assert np.isfinite(scores[0, :2]).all()
    assert np.isneginf(scores[0, 2])
    assert not nodes.any()
    assert not weights.any()
    assert (evidence == contract.NO_EVIDENCE).all()


def test_a_file_that_is_no_graph_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "ranker.onnx").write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match="export_onnx"):
        open_session(tmp_path / "ranker.onnx")
