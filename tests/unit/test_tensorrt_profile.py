"""The engine's optimisation profile, and what compiling says where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airserve import contract
from airserve.artifacts import MANIFEST_FILE, ONNX_FILE, PLAN_FILE, PLAN_MANIFEST
from airserve.contract import TensorSpec
from airserve.errors import ArtifactError, EngineError
from airserve.export import tensorrt
from airserve.export.tensorrt import (
    CompileSettings,
    check_plan,
    compile_engine,
    engine_sizes,
    plan_identity,
    profile_json,
    profile_shapes,
)

each_input = pytest.mark.parametrize("spec", contract.RANKER_INPUTS, ids=lambda spec: spec.name)


@each_input
def test_a_profile_is_min_opt_max_in_the_rank_of_the_input(spec: TensorSpec) -> None:
    low, usual, high = profile_shapes(spec)
    assert len(low) == len(usual) == len(high) == len(spec.axes)
    assert all(1 <= a <= b <= c for a, b, c in zip(low, usual, high, strict=True))


@each_input
def test_every_axis_takes_its_bounds_from_the_contract_or_its_size_from_the_encoder(spec: TensorSpec) -> None:
    sizes = {"H": 32, "E": 16, "X": 48}
    fixed = dict(zip(spec.axes[1:], spec.dims, strict=True)) | sizes
    for axis, *bounds in zip(spec.axes, *profile_shapes(spec, sizes=sizes), strict=True):
        assert bounds == (list(contract.PROFILE[axis]) if axis in contract.PROFILE else [fixed[axis]] * 3)


def test_the_largest_request_of_the_contract_fits_the_profile() -> None:
    high = {spec: profile_shapes(spec)[2] for spec in contract.RANKER_INPUTS}
    assert high[contract.WINDOW_CONTEXT] == (contract.MAX_BATCH, contract.WINDOW)
    assert high[contract.CANDIDATE_PRIOR] == (contract.MAX_BATCH, contract.MAX_CANDIDATES)
    assert high[contract.CHAIN_BIAS] == (contract.MAX_BATCH, contract.MAX_CHAINS)
    assert high[contract.LEVEL_WEIGHTS] == (contract.MAX_BATCH, contract.MAX_CHAINS, contract.MAX_DEPTH)


def test_a_single_request_with_a_candidate_of_one_and_the_fewest_chains_fits_the_profile() -> None:
    for spec in contract.RANKER_INPUTS:
        low = dict(zip(spec.axes, profile_shapes(spec)[0], strict=True))
        assert low["B"] == 1
        assert low.get("C", 1) == 1
        assert low.get("R", contract.MIN_CHAINS) == contract.MIN_CHAINS


def test_the_profile_has_the_sizes_of_the_engines_own_encoder(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text(json.dumps({"sizes": {"H": 8, "E": 16, "X": 24}}))
    assert engine_sizes(tmp_path) == {"H": 8, "E": 16, "X": 24}
    assert profile_json(4, engine_sizes(tmp_path))[contract.CANDIDATE_TARGETS.name][2] == [4, 1024, 24]


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", '{"sizes": {"H": 8}}', '{"sizes": {"H": 8, "E": null, "X": 1}}']
)
def test_an_engine_whose_manifest_has_no_sizes_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / MANIFEST_FILE).write_text(text)
    with pytest.raises(ArtifactError, match=r"sizes.*export_onnx\.py"):
        engine_sizes(tmp_path)


@each_input
def test_a_smaller_batch_bounds_min_opt_and_max(spec: TensorSpec) -> None:
    assert [shape[0] for shape in profile_shapes(spec, 1)] == [1, 1, 1]
    assert profile_shapes(spec, 8)[2][0] == 8
    assert profile_shapes(spec, 8)[2][1:] == profile_shapes(spec)[2][1:]


def test_the_profile_as_json_names_every_input_once() -> None:
    profile = json.loads(json.dumps(profile_json()))
    assert list(profile) == [spec.name for spec in contract.RANKER_INPUTS]
    assert all(len(shapes) == 3 for shapes in profile.values())


@pytest.mark.parametrize("max_batch", [0, contract.MAX_BATCH + 1])
def test_a_batch_that_the_contract_does_not_have_is_refused(tmp_path: Path, max_batch: int) -> None:
    with pytest.raises(ArtifactError, match=f"max_batch: .*got {max_batch}"):
        CompileSettings(engine=tmp_path, max_batch=max_batch)


def test_compiling_without_a_graph_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"export_onnx\.py"):
        compile_engine(CompileSettings(engine=tmp_path))


def test_compiling_without_tensorrt_says_where_it_can_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "has_tensorrt", lambda: False)
    (tmp_path / ONNX_FILE).write_bytes(b"a graph")
    with pytest.raises(EngineError, match="Triton container"):
        compile_engine(CompileSettings(engine=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [ONNX_FILE]


def test_tensorrt_counts_as_missing_when_polygraphy_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"tensorrt"}
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda name: object() if name in found else None)
    assert not tensorrt.has_tensorrt()
    found.add("polygraphy")
    assert tensorrt.has_tensorrt()


def write_plan(folder: Path) -> None:
    same = {"contract_version": 1, "encoder": "e", "onnx_sha256": "o"}
    (folder / MANIFEST_FILE).write_text(json.dumps(same))
    (folder / PLAN_FILE).write_bytes(b"a plan")
    (folder / PLAN_MANIFEST).write_text(json.dumps({"tensorrt": "11.0", **plan_identity(folder, b"a plan")}))


def test_a_plan_of_the_graph_beside_it_is_accepted(tmp_path: Path) -> None:
    write_plan(tmp_path)
    assert check_plan(tmp_path)["tensorrt"] == "11.0"


def test_a_plan_without_a_manifest_is_refused(tmp_path: Path) -> None:
    write_plan(tmp_path)
    (tmp_path / PLAN_MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"compile_engine\.py"):
        check_plan(tmp_path)


def test_a_damaged_plan_is_refused(tmp_path: Path) -> None:
    write_plan(tmp_path)
    (tmp_path / PLAN_FILE).write_bytes(b"A plan")
    with pytest.raises(ArtifactError, match="plan_sha256"):
        check_plan(tmp_path)


@pytest.mark.parametrize("key", ["contract_version", "encoder", "onnx_sha256"])
def test_a_plan_of_another_graph_is_refused(tmp_path: Path, key: str) -> None:
    write_plan(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST_FILE).read_text())
    (tmp_path / MANIFEST_FILE).write_text(json.dumps({**manifest, key: "another"}))
    with pytest.raises(ArtifactError, match=f"{key} another"):
        check_plan(tmp_path)


def test_compiling_for_fp16_asks_for_the_fp16_graph(tmp_path: Path) -> None:
    (tmp_path / ONNX_FILE).write_bytes(b"a graph")
    with pytest.raises(ArtifactError, match="--fp16"):
        compile_engine(CompileSettings(engine=tmp_path, fp16=True))
