"""The fp16 graph keeps the fp32 graph's scores; TensorRT's parser and builder take both, where the tool is there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest

from airserve.bench.synthetic import write_engine, write_tables
from airserve.errors import EngineError
from airserve.export.parity import CORNERS, open_session, random_inputs
from airserve.export.precision import FP16_TOLERANCE, compare_scores, to_fp16, write_fp16
from airserve.export.tensorrt import profile_json
from airserve.triton.config_names import FP16_FILE, ONNX_FILE

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"n_rows": 302, "n_nodes": 120}
WHEEL = "onnxruntime-ep-nv-tensorrt-rtx"
REJECTED = 1
"""The tool's exit status for a graph that TensorRT does not take; 2 is a wrong use of the tool."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half")
    write_tables(folder / "tables", n_items=300, n_nodes=120, n_paths=80)
    write_engine(folder / "tables", folder / "engine")
    write_fp16(folder / "engine", **SIZES)
    return folder / "engine"


def test_fp16_scores_are_those_of_fp32_within_the_tolerance(engine: Path) -> None:
    figures = compare_scores(engine / ONNX_FILE, engine / FP16_FILE, CORNERS, **SIZES)
    print(figures, "tolerance", FP16_TOLERANCE)
    assert 0 < figures["max_difference"] <= FP16_TOLERANCE


def test_fp16_keeps_the_very_same_chains_and_evidence(engine: Path) -> None:
    inputs = random_inputs(CORNERS[1], seed=5, **SIZES)
    full, half = (open_session(engine / name).run(None, inputs) for name in (ONNX_FILE, FP16_FILE))
    for ours, theirs in zip(full[1:], half[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_fp16_is_smaller_and_keeps_the_stamps(engine: Path) -> None:
    assert (engine / FP16_FILE).stat().st_size < (engine / ONNX_FILE).stat().st_size
    stamps = {entry.key: entry.value for entry in onnx.load(str(engine / FP16_FILE)).metadata_props}
    assert stamps["precision"] == "fp16"
    assert {"contract_version", "catalogue_sha256", "vocabulary_sha256"} <= set(stamps)


def test_a_graph_with_nothing_to_halve_is_refused() -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"], name="/other/Relu")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B"]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "none", values[:1], values[1:])
    with pytest.raises(EngineError, match="fp16"):
        to_fp16(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]))


def aot_check(graph: Path, profile: Path) -> subprocess.CompletedProcess[str]:
    """Build a graph ahead of time with TensorRT-RTX; skips, loudly, where that cannot be had."""
    tool = Path(os.environ.get("AIRSERVE_TRT_AOT_CHECK", ROOT.parent / "shared" / "tools" / "trt_aot_check"))
    missing = None
    if not tool.exists():
        missing = f"no tool at AIRSERVE_TRT_AOT_CHECK ({tool.name})"
    elif importlib.util.find_spec(WHEEL.replace("-", "_")) is None:
        missing = f"the wheel {WHEEL}-cu13 is not installed"
    if missing:
        warnings.warn(f"NOT CHECKED with TensorRT: {missing}", stacklevel=2)
        pytest.skip(f"NOT CHECKED with TensorRT: {missing}")
    command = [sys.executable, str(tool), str(graph), "--profile", str(profile)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", [ONNX_FILE, FP16_FILE])
def test_tensorrt_builds_the_graph_for_the_whole_profile(engine: Path, tmp_path: Path, name: str) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(profile_json()))
    done = aot_check(engine / name, profile)
    assert done.returncode == 0, done.stdout + done.stderr


def test_tensorrt_refuses_a_graph_with_an_operator_it_does_not_have(tmp_path: Path) -> None:
    node = onnx.helper.make_node("NonZero", ["x"], ["y"])
    graph = onnx.helper.make_graph(
        [node],
        "rejected",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["B", 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT64, [2, "N"])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "rejected.onnx"))
    (tmp_path / "profile.json").write_text(json.dumps({"x": [[1, 4], [2, 4], [8, 4]]}))
    assert aot_check(tmp_path / "rejected.onnx", tmp_path / "profile.json").returncode == REJECTED
