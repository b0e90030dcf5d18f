"""The fp16 graph keeps the fp32 graph's scores and chains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from airserve import contract
from airserve.artifacts import FP16_FILE, ONNX_FILE
from airserve.bench.synthetic import random_arrays, write_engine, write_intents
from airserve.errors import EngineError
from airserve.export.parity import CORNERS, open_session, random_inputs
from airserve.export.precision import FP16_TOLERANCE, compare_scores, to_fp16, write_fp16

SIZES = contract.USUAL_SIZES


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half")
    write_intents(folder / "tables", random_arrays(n_items=300, n_nodes=120, n_paths=80))
    write_engine(folder / "tables", folder / "engine")
    write_fp16(folder / "engine", SIZES)
    return folder / "engine"


def test_fp16_scores_are_those_of_fp32_within_the_tolerance(engine: Path) -> None:
    figures = compare_scores(engine / ONNX_FILE, engine / FP16_FILE, CORNERS, SIZES)
    print(figures, "tolerance", FP16_TOLERANCE)
    assert 0 < figures["max_difference"] <= FP16_TOLERANCE


def test_fp16_keeps_the_very_same_chains_and_their_weights(engine: Path) -> None:
    inputs = random_inputs(CORNERS[1], SIZES, seed=5)
    full, half = (open_session(engine / name).run(None, inputs) for name in (ONNX_FILE, FP16_FILE))
    for ours, theirs in zip(full[1:], half[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_fp16_is_smaller_and_keeps_the_stamps(engine: Path) -> None:
    assert (engine / FP16_FILE).stat().st_size < (engine / ONNX_FILE).stat().st_size
    stamps = {entry.key: entry.value for entry in onnx.load(str(engine / FP16_FILE)).metadata_props}
    assert stamps["precision"] == "fp16"
    assert {"contract_version", "encoder"} <= set(stamps)


def test_an_fp16_graph_that_differs_too_much_is_not_written(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ONNX_FILE).write_bytes((engine / ONNX_FILE).read_bytes())
    monkeypatch.setattr("airserve.export.precision.FP16_TOLERANCE", 1e-9)
    with pytest.raises(EngineError, match="serve the fp32 graph"):
        write_fp16(tmp_path, SIZES)
    assert [path.name for path in tmp_path.iterdir()] == [ONNX_FILE]


def test_a_graph_with_nothing_to_halve_is_refused() -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"], name="/other/Relu")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B"]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "none", values[:1], values[1:])
    with pytest.raises(EngineError, match="fp16"):
        to_fp16(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]))
