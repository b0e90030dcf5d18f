"""The committed model repository, and the configuration that is generated for each target."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from airserve import contract
from airserve.artifacts import ONNX_FILE, PLAN_FILE, TABLE_FOLDER, WARMUP_FOLDER
from airserve.contract import TensorSpec
from airserve.errors import ArtifactError, UserError
from airserve.triton.config import DEFAULT_VARIANT, TARGETS, ServingSettings, Target, all_configs, executing_model
from airserve.triton.config_names import FUSED_SOURCE, PADS, QUEUE_SIZE, QUEUE_TIMEOUT_US
from airserve.triton.repository import RepositorySource, write_repository, write_static

STEPWISE = ServingSettings(variant="stepwise")
FUSED = ServingSettings(variant="fused")
COMMITTED = Path(__file__).resolve().parents[2] / "model_repository"
REGENERATE = "run `make repository` and commit what it writes"

SIGNATURES: dict[str, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]] = {
    contract.ENSEMBLE_MODEL: (contract.REQUEST, contract.RESPONSE),
    contract.LOOKUP_MODEL: (contract.REQUEST, contract.LOOKUP_OUTPUTS),
    contract.RANKER_MODEL: (contract.RANKER_INPUTS, contract.RANKER_OUTPUTS),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def parse(text: str) -> Any:
    return text_format.Parse(text, pb.ModelConfig())


def configs(target: Target, settings: ServingSettings | None = None) -> dict[str, Any]:
    """The parsed configs; of the stepwise variant when nothing is said."""
    return {name: parse(text) for name, text in all_configs(target, settings or STEPWISE).items()}


def signature(tensors: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name to dtype and dims, of a config's inputs or outputs."""
    return {tensor.name: (pb.DataType.Name(tensor.data_type), tuple(tensor.dims)) for tensor in tensors}


def expected_signature(
    specs: tuple[TensorSpec, ...], sizes: Mapping[str, int] = contract.USUAL_SIZES
) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {spec.name: (f"TYPE_{spec.triton_dtype}", spec.dims_for(sizes)) for spec in specs}


def test_the_committed_repository_is_what_the_contract_generates(tmp_path: Path) -> None:
    write_static(tmp_path, "embedded", STEPWISE)
    fresh, committed = contents(tmp_path), contents(COMMITTED)
    assert sorted(fresh) == sorted(committed), REGENERATE
    for name, content in fresh.items():
        assert content == committed[name], f"{name}: {REGENERATE}"


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_static(tmp_path / name, "embedded", STEPWISE)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", SIGNATURES)
def test_a_config_parses_back_to_the_contract(target: Target, model: str) -> None:
    config = configs(target)[model]
    inputs, outputs = SIGNATURES[model]
    assert config.name == model
    drains = config.backend == "python"
    assert config.max_batch_size == (contract.MAX_DRAINED if drains else contract.MAX_BATCH)
    assert signature(config.input) == expected_signature(inputs)
    assert signature(config.output) == expected_signature(outputs)
    assert config.parameters["contract_version"].string_value == str(contract.CONTRACT_VERSION)


@pytest.mark.parametrize("target", TARGETS)
def test_every_served_model_has_a_config(target: Target) -> None:
    assert set(configs(target)) == set(SIGNATURES)


@pytest.mark.parametrize("target", TARGETS)
def test_the_two_steps_batch_dynamically_and_the_ensemble_schedules_them(target: Target) -> None:
    found = configs(target)
    assert found[contract.LOOKUP_MODEL].HasField("dynamic_batching")
    assert found[contract.RANKER_MODEL].HasField("dynamic_batching")
    assert found[contract.ENSEMBLE_MODEL].HasField("ensemble_scheduling")


@pytest.mark.parametrize("target", TARGETS)
def test_every_input_and_output_of_the_ensemble_is_wired(target: Target) -> None:
    found = configs(target)
    ensemble = found[contract.ENSEMBLE_MODEL]
    known = signature(ensemble.input)
    consumed: set[str] = set()
    for step in ensemble.ensemble_scheduling.step:
        model = found[step.model_name]
        assert set(step.input_map) == set(signature(model.input)), f"{step.model_name}: an input is not fed"
        assert set(step.output_map) <= set(signature(model.output)), f"{step.model_name}: no such output"
        for own, tensor in step.input_map.items():
            assert known[tensor] == signature(model.input)[own], f"{tensor}: other dtype or dims than {own}"
            consumed.add(tensor)
        produced = {tensor: signature(model.output)[own] for own, tensor in step.output_map.items()}
        assert not known.keys() & produced.keys(), f"{step.model_name}: writes a tensor that is already there"
        known |= produced
    assert set(signature(ensemble.input)) <= consumed
    for name, wanted in signature(ensemble.output).items():
        assert known[name] == wanted


def test_the_ranker_runs_in_the_backend_of_the_target() -> None:
    rankers = {target: configs(target)[contract.RANKER_MODEL] for target in TARGETS}
    assert {target: ranker.backend for target, ranker in rankers.items()} == {
        "embedded": "python",
        "onnxruntime": "onnxruntime",
        "tensorrt": "tensorrt",
    }
    assert rankers["onnxruntime"].default_model_filename == ONNX_FILE
    assert rankers["tensorrt"].default_model_filename == PLAN_FILE


def test_compiled_targets_differ_in_the_rankers_backend_only() -> None:
    for model in (contract.LOOKUP_MODEL, contract.ENSEMBLE_MODEL):
        assert all_configs("onnxruntime", STEPWISE)[model] == all_configs("tensorrt", STEPWISE)[model]


@pytest.mark.parametrize("target", TARGETS)
def test_the_lookup_pads_where_the_ranker_batches_equal_shapes_only(target: Target) -> None:
    found = configs(target)
    pads = found[contract.LOOKUP_MODEL].parameters[PADS].string_value == "1"
    assert pads == (not found[contract.RANKER_MODEL].input[0].allow_ragged_batch)


@pytest.mark.parametrize("target", TARGETS)
def test_the_steps_have_the_widths_of_the_encoder(target: Target) -> None:
    sizes = {"H": 32, "E": 48, "X": 80}
    found = {name: parse(text) for name, text in all_configs(target, STEPWISE, sizes).items()}
    assert signature(found[contract.RANKER_MODEL].input) == expected_signature(contract.RANKER_INPUTS, sizes)
    assert signature(found[contract.LOOKUP_MODEL].output) == expected_signature(contract.LOOKUP_OUTPUTS, sizes)
    # What clients see does not depend on an encoder.
    assert (
        all_configs(target, STEPWISE)[contract.ENSEMBLE_MODEL]
        == all_configs(target, STEPWISE, sizes)[contract.ENSEMBLE_MODEL]
    )


def test_python_models_take_requests_of_different_lengths_in_one_batch() -> None:
    found = configs("embedded")
    for model in (contract.LOOKUP_MODEL, contract.RANKER_MODEL):
        assert all(tensor.allow_ragged_batch for tensor in found[model].input)


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_a_compiled_ranker_takes_whole_tensors_only(target: Target) -> None:
    assert not any(tensor.allow_ragged_batch for tensor in configs(target)[contract.RANKER_MODEL].input)


@pytest.mark.parametrize("target", TARGETS)
def test_python_models_are_written_exactly_where_the_python_backend_runs_them(tmp_path: Path, target: Target) -> None:
    write_static(tmp_path, target, STEPWISE)
    found = configs(target)
    with_source = {path.parent.parent.name for path in tmp_path.glob("*/1/model.py")}
    assert with_source == {name for name, config in found.items() if config.backend == "python"}
    assert {path.parent.name for path in tmp_path.glob("*/1")} == set(SIGNATURES)


def test_settings_reach_the_configuration() -> None:
    settings = ServingSettings(
        variant="stepwise", max_queue_delay_us=7, lookup_instances=2, ranker_instances=3, ranker_threads=4
    )
    found = configs("embedded", settings)
    lookup, ranker = found[contract.LOOKUP_MODEL], found[contract.RANKER_MODEL]
    assert lookup.instance_group[0].count == 2
    assert ranker.instance_group[0].count == 3
    assert ranker.parameters["threads"].string_value == "4"
    assert lookup.dynamic_batching.max_queue_delay_microseconds == 7
    assert ranker.dynamic_batching.max_queue_delay_microseconds == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lookup_instances", 0),
        ("ranker_instances", -1),
        ("ranker_threads", 0),
        ("max_queue_delay_us", -1),
        ("max_queue_size", 0),
        ("queue_timeout_us", 0),
    ],
)
def test_impossible_settings_are_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{name}: .*got {value}"):
        ServingSettings(**{name: value})


# The fused variant.


def test_the_fused_variant_is_one_python_model_under_the_public_name(tmp_path: Path) -> None:
    found = configs("embedded", FUSED)
    assert list(found) == [contract.ENSEMBLE_MODEL]
    config = found[contract.ENSEMBLE_MODEL]
    assert config.backend == "python"
    assert signature(config.input) == expected_signature(contract.REQUEST)
    assert signature(config.output) == expected_signature(contract.RESPONSE)
    assert all(tensor.allow_ragged_batch for tensor in config.input)
    write_static(tmp_path, "embedded", FUSED)
    assert FUSED_SOURCE in (tmp_path / contract.ENSEMBLE_MODEL / "1" / "model.py").read_text()


def test_the_default_variant_is_the_targets() -> None:
    for target in TARGETS:
        assert (set(all_configs(target)) == {contract.ENSEMBLE_MODEL}) == (DEFAULT_VARIANT[target] == "fused")


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_the_fused_variant_is_refused_where_a_backend_runs_the_graph(target: Target) -> None:
    with pytest.raises(UserError, match=f"fused: expected target embedded, got target {target}; use"):
        all_configs(target, FUSED)


def test_the_executing_model_is_the_one_that_batches() -> None:
    for settings in (FUSED, STEPWISE):
        model = executing_model("embedded", settings)
        assert configs("embedded", settings)[model].HasField("dynamic_batching")


@pytest.mark.parametrize("settings", [FUSED, STEPWISE], ids=["fused", "stepwise"])
def test_every_queue_is_bounded_and_every_executed_model_warms_up(tmp_path: Path, settings: ServingSettings) -> None:
    write_static(tmp_path, "embedded", settings)
    for name, config in configs("embedded", settings).items():
        if config.platform == "ensemble":
            continue
        assert config.HasField("dynamic_batching")
        # A bound of Triton's own would bring the stalls that airserve/triton/admission.py tells of.
        assert not config.dynamic_batching.HasField("default_queue_policy")
        assert config.parameters[QUEUE_SIZE].string_value == str(settings.max_queue_size)
        assert config.parameters[QUEUE_TIMEOUT_US].string_value == str(settings.queue_timeout_us)
        assert len(config.model_warmup) > 0
        for warmup in config.model_warmup:
            assert set(warmup.inputs) == {tensor.name for tensor in config.input}
            for tensor in warmup.inputs.values():
                if tensor.input_data_file:
                    file = tmp_path / name / WARMUP_FOLDER / tensor.input_data_file
                    size = {pb.TYPE_INT64: 8, pb.TYPE_INT32: 4, pb.TYPE_FP32: 4}[tensor.data_type]
                    assert file.stat().st_size == size * math.prod(tensor.dims)


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_a_compiled_ranker_leaves_the_bound_of_its_queue_to_triton(target: Target) -> None:
    policy = configs(target)[contract.RANKER_MODEL].dynamic_batching.default_queue_policy
    assert policy.timeout_action == pb.ModelQueuePolicy.REJECT
    assert policy.default_timeout_microseconds == STEPWISE.queue_timeout_us
    assert policy.max_queue_size == STEPWISE.max_queue_size


def test_a_compiled_ranker_serves_its_latest_version_and_captures_cuda_graphs_on_tensorrt() -> None:
    for target in ("onnxruntime", "tensorrt"):
        config = configs(target)[contract.RANKER_MODEL]
        assert config.version_policy.latest.num_versions == 1
        assert config.optimization.cuda.graphs == (target == "tensorrt")
    shape = contract.SHAPE_CLASSES[0]
    for graph in configs("tensorrt")[contract.RANKER_MODEL].optimization.cuda.graph_spec:
        for spec in contract.RANKER_INPUTS:
            axes = zip(spec.axes[1:], spec.dims_for(contract.USUAL_SIZES), strict=True)
            expected = [shape[axis] if size < 0 else size for axis, size in axes]
            assert list(graph.input[spec.name].dim) == expected


def test_a_fused_repository_holds_table_and_graph_beside_each_other(tmp_path: Path) -> None:
    out = write_repository(source_of(tmp_path, settings=FUSED), tmp_path / "repository")
    version = out / contract.ENSEMBLE_MODEL / "1"
    assert (version / ONNX_FILE).read_bytes() == b"graph"
    assert (version / TABLE_FOLDER / "items.npy").read_bytes() == b"items"
    assert [path.name for path in out.iterdir()] == [contract.ENSEMBLE_MODEL]


# A whole repository, of stand-in files.

MANIFEST = {"contract_version": contract.CONTRACT_VERSION, "encoder": "e"}
SIZES = {"sizes": dict(contract.USUAL_SIZES)}


def source_of(
    folder: Path,
    *,
    target: Target = "embedded",
    engine_file: str = ONNX_FILE,
    settings: ServingSettings = STEPWISE,
    **engine: object,
) -> RepositorySource:
    serving, engine_folder = folder / "tables" / "serving", folder / "engine"
    serving.mkdir(parents=True)
    engine_folder.mkdir()
    (serving / "manifest.json").write_text(json.dumps(MANIFEST))
    (serving / "items.npy").write_bytes(b"items")
    (engine_folder / "manifest.json").write_text(json.dumps({**MANIFEST, **SIZES, **engine}))
    (engine_folder / engine_file).write_bytes(b"graph")
    return RepositorySource(tables=folder / "tables", engine=engine_folder, target=target, settings=settings)


def test_a_repository_holds_the_static_part_the_table_and_the_engine(tmp_path: Path) -> None:
    out = write_repository(source_of(tmp_path), tmp_path / "deep" / "repository")
    found = contents(out)
    assert {name: content for name, content in found.items() if name in contents(COMMITTED)} == contents(COMMITTED)
    added = {name: content for name, content in found.items() if name not in contents(COMMITTED)}
    assert added == {
        f"{contract.LOOKUP_MODEL}/1/{TABLE_FOLDER}/items.npy": b"items",
        f"{contract.LOOKUP_MODEL}/1/{TABLE_FOLDER}/manifest.json": json.dumps(MANIFEST).encode(),
        f"{contract.RANKER_MODEL}/1/{ONNX_FILE}": b"graph",
    }


def test_a_repository_replaces_the_one_before_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    out = write_repository(source, tmp_path / "repository")
    (out / "stale").touch()
    write_repository(source, out)
    assert not (out / "stale").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "repository", "tables"]


def test_a_table_of_another_catalogue_and_vocabulary_goes_with_the_same_engine(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    table = source.tables / "serving" / "manifest.json"
    table.write_text(json.dumps({**MANIFEST, "catalogue_sha256": "another", "vocabulary_sha256": "another"}))
    out = write_repository(source, tmp_path / "repository")
    assert (out / contract.LOOKUP_MODEL / "1" / TABLE_FOLDER / "manifest.json").read_text() == table.read_text()


@pytest.mark.parametrize("key", MANIFEST)
def test_a_table_and_an_engine_made_apart_are_refused_with_both_sides(tmp_path: Path, key: str) -> None:
    source = source_of(tmp_path, **{key: "another"})
    with pytest.raises(ArtifactError, match=rf"{key} another .*got {MANIFEST[key]} "):
        write_repository(source, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("target", "there", "script"),
    [("tensorrt", ONNX_FILE, r"compile_engine\.py"), ("onnxruntime", PLAN_FILE, r"export_onnx\.py")],
)
def test_a_target_without_its_engine_file_is_refused_with_what_to_run(
    tmp_path: Path, target: Target, there: str, script: str
) -> None:
    source = source_of(tmp_path, target=target, engine_file=there)
    with pytest.raises(ArtifactError, match=script):
        write_repository(source, tmp_path / "repository")


def test_a_folder_without_a_manifest_is_refused_with_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"encode_table\.py"):
        RepositorySource(tables=tmp_path, engine=tmp_path)
