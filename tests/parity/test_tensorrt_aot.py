"""TensorRT's parser and builder take every exported graph with the real profile, where the tool for it is there.

The tool builds engines ahead of time, without a GPU, with the TensorRT-RTX that a PyPI wheel carries: not the
enterprise TensorRT that Triton loads, and nothing is run. It has an environment of its own
(`requirements/install.py --checks`).
"""

from __future__ import annotations

import json
import os
import subprocess
import warnings
from pathlib import Path

import onnx
import pytest

import airserve.export.onnx as export
from airserve import contract
from airserve.artifacts import FP16_FILE, ONNX_FILE
from airserve.bench.synthetic import random_arrays, write_engine, write_intents
from airserve.export.precision import write_fp16
from airserve.export.tensorrt import profile_json

ROOT = Path(__file__).resolve().parents[2]
SIZES = contract.USUAL_SIZES
PYTHON = ROOT / ".venv-trt" / "bin" / "python"
REJECTED = 1
"""The tool's exit status for a graph that TensorRT does not take; 2 is a wrong use of the tool."""


def aot_check(graph: Path, profile: Path) -> subprocess.CompletedProcess[str]:
    """Build a graph ahead of time with TensorRT-RTX; skips, loudly, where that cannot be had."""
    tool = Path(os.environ.get("AIRSERVE_TRT_AOT_CHECK", ROOT.parent / "shared" / "tools" / "trt_aot_check"))
    missing = None
    if not tool.exists():
        missing = f"no tool at AIRSERVE_TRT_AOT_CHECK ({tool.name})"
    elif not PYTHON.exists():
        missing = "no .venv-trt; run requirements/install.py --checks"
    if missing:
        warnings.warn(f"NOT CHECKED with TensorRT: {missing}", stacklevel=2)
        pytest.skip(f"NOT CHECKED with TensorRT: {missing}")
    command = [str(PYTHON), str(tool), str(graph), "--profile", str(profile)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    path.write_text(json.dumps(profile_json()))
    return path


@pytest.fixture(scope="module", params=["folded", "unfolded"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine folder with the fp32 and the fp16 graph."""
    folder = tmp_path_factory.mktemp(request.param)
    write_intents(folder / "tables", random_arrays(n_items=300, n_nodes=120, n_paths=80))
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "unfolded":
            patch.setattr(export, "fold_fixed_sizes", lambda model: model)
        write_engine(folder / "tables", folder / "engine")
    write_fp16(folder / "engine", SIZES)
    return folder / "engine"


@pytest.mark.parametrize("name", [ONNX_FILE, FP16_FILE])
def test_tensorrt_builds_the_graph_for_the_whole_profile(engine: Path, profile: Path, name: str) -> None:
    done = aot_check(engine / name, profile)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout.strip())


@pytest.mark.parametrize("operator", ["NonZero", "Unique"])
def test_a_graph_with_an_operator_that_tensorrt_rejects_fails(
    engine: Path, tmp_path: Path, profile: Path, operator: str
) -> None:
    model = onnx.load(str(engine / ONNX_FILE))
    scores = model.graph.output[0]
    model.graph.node.append(onnx.helper.make_node(operator, [scores.name], ["rejected"]))
    kind = onnx.TensorProto.INT64 if operator == "NonZero" else onnx.TensorProto.FLOAT
    model.graph.output.append(onnx.helper.make_tensor_value_info("rejected", kind, None))
    onnx.save(model, str(tmp_path / "rejected.onnx"))
    done = aot_check(tmp_path / "rejected.onnx", profile)
    assert done.returncode == REJECTED, done.stdout + done.stderr
    assert operator in done.stdout
