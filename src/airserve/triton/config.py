"""config.pbtxt of every served model, generated from the contract through Triton's own protobuf.

Three targets: `embedded` (the server of the pytriton wheel, which has the Python backend only), `onnxruntime` and
`tensorrt` (the Triton container). Two variants answer under the same public name: `stepwise`, an ensemble of the lookup
(a Python model everywhere) and the ranker (a Python model that runs ONNX Runtime on `embedded`, the named backend
elsewhere); and `fused`, one Python model that does both in one process. docs/SERVING.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from airserve import contract
from airserve.artifacts import ONNX_FILE, PLAN_FILE
from airserve.contract import TensorSpec
from airserve.errors import UserError
from airserve.triton.config_names import PADS, QUEUE_SIZE, QUEUE_TIMEOUT_US, WARMUP_BATCHES
from airserve.triton.warmup import warmup_request

Target = Literal["embedded", "onnxruntime", "tensorrt"]
TARGETS: tuple[Target, ...] = ("embedded", "onnxruntime", "tensorrt")
Variant = Literal["stepwise", "fused"]
DEFAULT_VARIANT: dict[Target, Variant] = {"embedded": "fused", "onnxruntime": "stepwise", "tensorrt": "stepwise"}
"""On one machine without a GPU the hand-over costs more than a step; a compiled backend needs the steps."""
Sizes = Mapping[str, int]
"""An encoder's H, E and X."""
GRAPH_BATCHES = (1, 2, 4, 8, 16)
"""Batches that a CUDA graph is captured for; others launch their kernels one by one."""
WARMUP_SIZE = 128
"""L and C of the warm-up requests in the configuration."""


@dataclass(frozen=True, kw_only=True)
class ServingSettings:
    """What can be tuned in the generated configuration."""

    variant: Variant | None = None
    """`stepwise` or `fused` (`embedded` only); the target's default when None."""
    max_queue_delay_us: int = 0
    """How long a step waits for more requests to batch, microseconds. At 0 a batch is what came during the last one."""
    max_queue_size: int = 256
    """Requests that wait in front of a step and are answered; more are refused as UNAVAILABLE."""
    queue_timeout_us: int = 250_000
    """Microseconds of work that may wait in front of a step; what is beyond is refused as UNAVAILABLE."""
    max_drained: int = contract.MAX_DRAINED
    """Requests that a Python model takes from the queue at once; only those beyond the queue's bound are refused."""
    lookup_instances: int = 1
    """Processes that run the lookup."""
    ranker_instances: int = 1
    """Instances of the ranker: processes on `embedded`, per GPU elsewhere."""
    ranker_threads: int = 1
    """ONNX Runtime threads of one ranker instance (`embedded` only)."""

    def __post_init__(self) -> None:
        bounds = {
            "lookup_instances": 1,
            "ranker_instances": 1,
            "ranker_threads": 1,
            "max_queue_delay_us": 0,
            "max_queue_size": 1,
            "queue_timeout_us": 1,
            "max_drained": 8,
        }
        for name, fewest in bounds.items():
            value = getattr(self, name)
            if value < fewest:
                raise UserError(name, expected=f"at least {fewest}", got=str(value), remedy=f"give {fewest} or more")

    def variant_for(self, target: Target) -> Variant:
        """The variant to write.

        Raises:
            UserError: for `fused` where no Python model runs the graph.
        """
        variant = self.variant or DEFAULT_VARIANT[target]
        if variant == "fused" and target != "embedded":
            raise UserError(
                f"variant {variant}",
                expected="target embedded",
                got=f"target {target}",
                remedy=f"use the variant stepwise: the {target} backend runs the ranker",
            )
        return variant


def _data_type(spec: TensorSpec) -> int:
    return int(pb.DataType.Value(f"TYPE_{spec.triton_dtype}"))


def _add_tensors(
    config: Any, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec], sizes: Sizes, *, ragged: bool
) -> None:
    for spec in inputs:
        dims = spec.dims_for(sizes)
        config.input.add(name=spec.name, data_type=_data_type(spec), dims=dims, allow_ragged_batch=ragged)
    for spec in outputs:
        config.output.add(name=spec.name, data_type=_data_type(spec), dims=spec.dims_for(sizes))


def _new(name: str, max_batch_size: int = contract.MAX_BATCH) -> Any:
    config = pb.ModelConfig(name=name, max_batch_size=max_batch_size)
    config.parameters["contract_version"].string_value = str(contract.CONTRACT_VERSION)
    return config


def _python_model(config: Any, settings: ServingSettings, instances: int) -> None:
    """Backend, instances, and a queue that the model itself bounds (`airserve/triton/admission.py` says why)."""
    config.backend = "python"
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=instances)
    config.dynamic_batching.max_queue_delay_microseconds = settings.max_queue_delay_us
    config.parameters[QUEUE_SIZE].string_value = str(settings.max_queue_size)
    config.parameters[QUEUE_TIMEOUT_US].string_value = str(settings.queue_timeout_us)


def _bounded_queue(config: Any, settings: ServingSettings) -> None:
    """Dynamic batching in front of a compiled backend, whose queue only Triton can bound."""
    config.dynamic_batching.max_queue_delay_microseconds = settings.max_queue_delay_us
    policy = config.dynamic_batching.default_queue_policy
    policy.timeout_action = pb.ModelQueuePolicy.REJECT
    policy.default_timeout_microseconds = settings.queue_timeout_us
    policy.allow_timeout_override = True
    policy.max_queue_size = settings.max_queue_size


def _warm_up_with_files(config: Any) -> None:
    for batch in WARMUP_BATCHES:
        warmup = config.model_warmup.add(name=f"batch_{batch}", batch_size=batch)
        for spec in contract.REQUEST:
            tensor = warmup.inputs[spec.name]
            tensor.data_type = _data_type(spec)
            tensor.dims.extend(WARMUP_SIZE if size < 0 else size for size in spec.dims)
            tensor.input_data_file = spec.name


def warmup_files() -> dict[str, bytes]:
    """File name to content, of the request that `_warm_up_with_files` names."""
    items = np.arange(1, 1 + WARMUP_SIZE, dtype=np.int64)
    request = warmup_request(items, 1, WARMUP_SIZE, WARMUP_SIZE)
    return {spec.name: request[spec.name].tobytes() for spec in contract.REQUEST}


def _warm_up_with_zeros(config: Any, sizes: Sizes) -> None:
    """All zeros are a valid ranker input. The axes have the profile's usual sizes."""
    for batch in WARMUP_BATCHES:
        warmup = config.model_warmup.add(name=f"batch_{batch}", batch_size=batch)
        for spec in contract.RANKER_INPUTS:
            tensor = warmup.inputs[spec.name]
            tensor.data_type = _data_type(spec)
            axes = zip(spec.axes[1:], spec.dims_for(sizes), strict=True)
            tensor.dims.extend(contract.PROFILE[axis][1] if size < 0 else size for axis, size in axes)
            tensor.zero_data = True


def fused_config(settings: ServingSettings) -> Any:
    """The public model as one Python model: lookup and graph in one process."""
    config = _new(contract.ENSEMBLE_MODEL, settings.max_drained)
    _add_tensors(config, contract.REQUEST, contract.RESPONSE, {}, ragged=True)
    config.parameters["threads"].string_value = str(settings.ranker_threads)
    _python_model(config, settings, settings.ranker_instances)
    _warm_up_with_files(config)
    return config


def lookup_config(target: Target, settings: ServingSettings, sizes: Sizes = contract.USUAL_SIZES) -> Any:
    """`intent_lookup`: item ids to rows of an encoder and the weights of the request's intent tree."""
    pads = target != "embedded"
    config = _new(contract.LOOKUP_MODEL, settings.max_drained)
    _add_tensors(config, contract.REQUEST, contract.LOOKUP_OUTPUTS, sizes, ragged=True)
    config.parameters[PADS].string_value = str(int(pads))
    _python_model(config, settings, settings.lookup_instances)
    _warm_up_with_files(config)
    return config


def _capture_graphs(config: Any, sizes: Sizes) -> None:
    """CUDA graphs for the usual shape class: some 120 small kernels are launched as one."""
    config.optimization.cuda.graphs = True
    usual = contract.SHAPE_CLASSES[0]
    for batch in GRAPH_BATCHES:
        graph = config.optimization.cuda.graph_spec.add(batch_size=batch)
        for spec in contract.RANKER_INPUTS:
            axes = zip(spec.axes[1:], spec.dims_for(sizes), strict=True)
            graph.input[spec.name].dim.extend(usual[axis] if size < 0 else size for axis, size in axes)


def ranker_config(target: Target, settings: ServingSettings, sizes: Sizes = contract.USUAL_SIZES) -> Any:
    """`intent_ranker`: sequence tower, target-aware retrieval, composition and score."""
    config = _new(contract.RANKER_MODEL, settings.max_drained if target == "embedded" else contract.MAX_BATCH)
    _add_tensors(config, contract.RANKER_INPUTS, contract.RANKER_OUTPUTS, sizes, ragged=target == "embedded")
    _warm_up_with_zeros(config, sizes)
    if target == "embedded":
        config.parameters["threads"].string_value = str(settings.ranker_threads)
        _python_model(config, settings, settings.ranker_instances)
        return config
    _bounded_queue(config, settings)
    config.backend = target
    config.version_policy.latest.num_versions = 1
    if target == "tensorrt":
        _capture_graphs(config, sizes)
    config.default_model_filename = PLAN_FILE if target == "tensorrt" else ONNX_FILE
    config.instance_group.add(
        kind=pb.ModelInstanceGroup.KIND_AUTO if target == "onnxruntime" else pb.ModelInstanceGroup.KIND_GPU,
        count=settings.ranker_instances,
    )
    return config


def ensemble_config() -> Any:
    """`air`, the public model: the lookup, then the ranker."""
    config = _new(contract.ENSEMBLE_MODEL)
    config.platform = "ensemble"
    _add_tensors(config, contract.REQUEST, contract.RESPONSE, {}, ragged=False)
    lookup = config.ensemble_scheduling.step.add(model_name=contract.LOOKUP_MODEL, model_version=-1)
    ranker = config.ensemble_scheduling.step.add(model_name=contract.RANKER_MODEL, model_version=-1)
    for step, inputs, outputs in (
        (lookup, contract.REQUEST, contract.LOOKUP_OUTPUTS),
        (ranker, contract.RANKER_INPUTS, contract.RANKER_OUTPUTS),
    ):
        for spec in inputs:
            step.input_map[spec.name] = spec.name
        for spec in outputs:
            step.output_map[spec.name] = spec.name
    return config


def executing_model(target: Target, settings: ServingSettings | None = None) -> str:
    """The model that runs the graph, whose statistics tell the executed batches."""
    fused = (settings or ServingSettings()).variant_for(target) == "fused"
    return contract.ENSEMBLE_MODEL if fused else contract.RANKER_MODEL


def render(config: Any) -> str:
    """The text of a config.pbtxt, maps in a fixed order."""
    head = "# Generated by build/write_repository.py from airserve/contract.py; do not edit.\n"
    return head + str(text_format.MessageToString(config))


def all_configs(
    target: Target, settings: ServingSettings | None = None, sizes: Sizes = contract.USUAL_SIZES
) -> dict[str, str]:
    """Model name to config.pbtxt text, for one target and an encoder's sizes."""
    settings = settings or ServingSettings()
    if settings.variant_for(target) == "fused":
        return {contract.ENSEMBLE_MODEL: render(fused_config(settings))}
    return {
        contract.LOOKUP_MODEL: render(lookup_config(target, settings, sizes)),
        contract.RANKER_MODEL: render(ranker_config(target, settings, sizes)),
        contract.ENSEMBLE_MODEL: render(ensemble_config()),
    }
