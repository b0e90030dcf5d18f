"""The graph asked for many requests of different lengths answers each as if it were alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airserve import contract
from airserve.artifacts import ONNX_FILE
from airserve.bench.synthetic import random_arrays, write_engine, write_intents
from airserve.errors import ArtifactError, UserError
from airserve.export.parity import random_inputs
from airserve.triton.ranker_session import RankerSession

NAMES = [spec.name for spec in contract.RANKER_OUTPUTS]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranker")
    write_intents(folder / "tables", random_arrays(n_items=58, n_nodes=50, n_paths=40))
    write_engine(folder / "tables", folder / "engine")
    return folder / "engine" / ONNX_FILE


def parts() -> list[dict[str, Any]]:
    sizes = [(1, 1, 8), (1, 5, 9), (2, 30, 12), (1, 128, 64), (1, 5, 9)]
    return [
        random_inputs(dict(zip("BCR", size, strict=True)), contract.USUAL_SIZES, seed=at)
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


def test_a_table_of_another_encoder_is_refused_with_both_named(graph: Path) -> None:
    session = RankerSession(graph)
    ours = session.stamps["encoder"]
    session.check_encoder(ours)
    for other, named in (("f" * 64, "f" * 64), ("", "none")):
        with pytest.raises(ArtifactError, match=f"{ours}.*{named}.*encode_table"):
            session.check_encoder(other)


def test_what_is_no_graph_and_no_threads_are_refused(tmp_path: Path, graph: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"export_onnx\.py"):
        RankerSession(tmp_path / "broken.onnx")
    with pytest.raises(UserError, match="threads"):
        RankerSession(graph, threads=0)


def test_padding_chains_are_never_chosen(graph: Path) -> None:
    """So an index points into the chains that the lookup hands to the client, which come without padding."""
    for part in parts():
        answer = RankerSession(graph).run([part], NAMES)[0]
        real = (part[contract.CHAIN_BIAS.name] > contract.PADDED_CHAIN / 2).sum(axis=1)
        assert (answer[contract.CHAIN_INDEX.name] < real[:, None, None]).all()
