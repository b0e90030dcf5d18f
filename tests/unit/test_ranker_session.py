"""The graph asked for many requests of different lengths answers each as if it were alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from airserve import contract
from airserve.errors import ArtifactError, UserError
from airserve.export.onnx import export_ranker
from airserve.export.parity import random_inputs
from airserve.model.ranker import Ranker, RankerSettings
from airserve.table.lookup import IntentTable
from airserve.triton.ranker_session import RankerSession

N_ROWS, N_NODES, SIZE = 60, 50, 16
NAMES = [spec.name for spec in contract.RANKER_OUTPUTS]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    items = torch.nn.functional.normalize(torch.randn(N_ROWS, SIZE), dim=-1)
    nodes = torch.nn.functional.normalize(torch.randn(N_NODES, SIZE), dim=-1)
    items[: contract.FIRST_ITEM_ROW] = 0
    nodes[0] = 0
    ranker = Ranker(items, nodes, torch.arange(N_NODES) % contract.MAX_DEPTH, RankerSettings()).eval()
    manifest = SimpleNamespace(catalogue_sha256="c" * 64, vocabulary_sha256="v" * 64)
    table = cast(
        IntentTable,
        SimpleNamespace(manifest=manifest, table_version=5, item_vectors=items.numpy(), node_vectors=nodes.numpy()),
    )
    return export_ranker(ranker, table, tmp_path_factory.mktemp("engine"))


def parts() -> list[dict[str, Any]]:
    sizes = [(1, 1, 1, 1, 1), (1, 7, 5, 3, 6), (2, 9, 30, 8, 20), (1, 128, 128, 64, 128), (1, 6, 5, 3, 6)]
    return [
        random_inputs(dict(zip("BLCRU", size, strict=True)), n_rows=N_ROWS, n_nodes=N_NODES, seed=at)
        for at, size in enumerate(sizes)
    ]


def test_requests_together_are_answered_as_alone(graph: Path) -> None:
    session = RankerSession(graph)
    together = session.run(parts(), NAMES)
    for part, answer in zip(parts(), together, strict=True):
        alone = session.run([part], NAMES)[0]
        for name in NAMES:
            assert answer[name].shape == alone[name].shape
            np.testing.assert_allclose(answer[name], alone[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_request_that_was_given_up_is_not_computed_alone_or_among_others(graph: Path) -> None:
    session = RankerSession(graph)
    assert session.run(parts()[3:4], NAMES, lambda at: True) == [{}]
    answers = session.run(parts(), NAMES, lambda at: at == 3)
    assert [at for at, answer in enumerate(answers) if not answer] == [3]


def test_only_wanted_outputs_come_back_contiguous(graph: Path) -> None:
    for answer in RankerSession(graph).run(parts(), [contract.SCORES.name]):
        assert list(answer) == [contract.SCORES.name]
        assert answer[contract.SCORES.name].flags.c_contiguous


def test_a_table_of_another_catalogue_is_refused(graph: Path) -> None:
    session = RankerSession(graph)
    session.check_table("c" * 64, "v" * 64)
    with pytest.raises(ArtifactError, match="catalogue_sha256"):
        session.check_table("x" * 64, "v" * 64)
    with pytest.raises(ArtifactError, match="vocabulary_sha256"):
        session.check_table("c" * 64, "x" * 64)


def test_what_is_no_graph_and_no_threads_are_refused(tmp_path: Path, graph: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"export_onnx\.py"):
        RankerSession(tmp_path / "broken.onnx")
    with pytest.raises(UserError, match="threads"):
        RankerSession(graph, threads=0)


def test_an_empty_history_alone_scores_as_one_padded_row(graph: Path) -> None:
    padded = parts()[0]
    padded[contract.BEHAVIOUR_ACTIONS.name][:] = contract.PAD_ACTION
    empty = {
        **padded,
        contract.BEHAVIOUR_ACTIONS.name: np.zeros((1, 0), np.int32),
        contract.BEHAVIOUR_AGES_S.name: np.zeros((1, 0), np.float32),
    }
    padded = {**padded, contract.BEHAVIOUR_AGES_S.name: np.zeros((1, 1), np.float32)}
    session = RankerSession(graph)
    for name, expected in session.run([padded], NAMES)[0].items():
        np.testing.assert_array_equal(session.run([empty], NAMES)[0][name], expected)
