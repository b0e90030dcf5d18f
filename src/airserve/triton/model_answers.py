"""What the Python models share: their parameters, and how they refuse."""

from __future__ import annotations

import gc
import json
import os
from typing import Any

import triton_python_backend_utils as pb_utils

from airserve import contract
from airserve.artifacts import MANIFEST_FILE, MODEL_CONFIG_FILE, TABLE_FOLDER
from airserve.errors import ArtifactError
from airserve.table.lookup import ServedTable
from airserve.triton.admission import Admission
from airserve.triton.config_names import QUEUE_SIZE, QUEUE_TIMEOUT_US
from airserve.triton.model_metrics import ModelMetrics

PATIENCE_S = 0.03
"""Of a batch, before it is asked whether its requests are still waited for: asking takes 0.1 to 5 ms."""


def parameters_of(args: dict[str, str]) -> dict[str, str]:
    """A model's parameters, from what Triton hands to `initialize`."""
    return {name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()}


def admission_of(parameters: dict[str, str]) -> Admission:
    """The bound of a model's queue, as configured.

    Raises:
        ArtifactError: for a configuration of an older release, which has none.
    """
    missing = [name for name in (QUEUE_SIZE, QUEUE_TIMEOUT_US) if name not in parameters]
    if missing:
        raise ArtifactError(
            MODEL_CONFIG_FILE,
            expected=f"the parameters {QUEUE_SIZE} and {QUEUE_TIMEOUT_US}",
            got=f"no {' and no '.join(missing)}",
            remedy="write the repository again with build/write_repository.py",
        )
    return Admission(max_requests=int(parameters[QUEUE_SIZE]), budget_s=int(parameters[QUEUE_TIMEOUT_US]) / 1e6)


def settle() -> None:
    """Called when a model is loaded: what it holds now is not looked through again by the garbage collector."""
    gc.collect()
    gc.freeze()


def instances_of(args: dict[str, str]) -> int:
    """How many processes run this model."""
    return sum(int(group["count"]) for group in json.loads(args["model_config"])["instance_group"])


def file_of(args: dict[str, str], name: str) -> str:
    """A file or folder beside a model's version, from what Triton hands to `initialize`."""
    return os.path.join(args["model_repository"], args["model_version"], name)


def table_metrics(table: ServedTable, args: dict[str, str]) -> ModelMetrics:
    """The counters of a model that serves a table; its file's time is when it was published."""
    return ModelMetrics(table.table_version, os.stat(file_of(args, f"{TABLE_FOLDER}/{MANIFEST_FILE}")).st_mtime)


def look_up(table: ServedTable, request: Any, metrics: ModelMetrics) -> dict[str, Any]:
    """What the table says about a request's tensors.

    Raises:
        InvalidRequestError: if it breaks the contract.
    """
    tensors = {spec.name: pb_utils.get_input_tensor_by_name(request, spec.name).as_numpy() for spec in contract.REQUEST}
    contract.validate_request(tensors)
    found = table.lookup(tensors)
    for value in found[contract.COVERAGE.name][:, 0]:
        metrics.observe_coverage(float(value))
    unknown = int(found[contract.UNKNOWN_COUNT.name].sum())
    metrics.count_candidates(found[contract.UNKNOWN_MASK.name].size, unknown)
    return found


def refusal(message: str, code: int | None = None) -> Any:
    """A response that carries an error."""
    error = pb_utils.TritonError(message) if code is None else pb_utils.TritonError(message, code)
    return pb_utils.InferenceResponse(error=error)


def given_up_response(metrics: ModelMetrics) -> Any:
    """The response for a request that nobody waits for."""
    metrics.count_refusal("cancelled")
    return refusal("the client gave this request up", pb_utils.TritonError.CANCELLED)


def refuse_from(responses: list[Any], first: int, admission: Admission, metrics: ModelMetrics) -> None:
    """Answer all requests of a batch from number `first` on with UNAVAILABLE."""
    metrics.count_refusal("queue", len(responses) - first)
    for at in range(first, len(responses)):
        responses[at] = refusal(admission.refusal(), pb_utils.TritonError.UNAVAILABLE)
