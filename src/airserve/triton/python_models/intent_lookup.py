"""Triton Python model `intent_lookup`: item ids in, the ids of the request's intent tree out.

One call handles all requests that Triton's dynamic batcher put together; each keeps its own lengths (ragged batch).
A request that breaks the contract is answered with INVALID_ARGUMENT and does not touch its neighbours.
"""

from __future__ import annotations

import os
import time
from typing import Any

import triton_python_backend_utils as pb_utils

from airserve import contract
from airserve.errors import InvalidRequestError
from airserve.table.lookup import IntentTable, ranker_inputs
from airserve.triton.config_names import PADS, TABLE_FOLDER
from airserve.triton.model_answers import admission_of, parameters_of, published_s, refusal, refuse_from, settle
from airserve.triton.model_metrics import ModelMetrics
from airserve.triton.padding import pad_to_class


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Map the table that lies beside this model's version; a damaged or foreign one stops the load."""
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.table = IntentTable.open(os.path.join(folder, TABLE_FOLDER))
        settings = parameters_of(args)
        self.admission = admission_of(settings)
        self.pads = settings.get(PADS) == "1"
        self.outputs = (*contract.LOOKUP_OUTPUTS, *(contract.PADDED_HISTORY.values() if self.pads else ()))
        self.metrics = ModelMetrics(self.table.table_version, published_s(folder))
        settle()

    def finalize(self) -> None:
        """Called when the model is unloaded."""
        self.metrics.close()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its own tree."""
        began = time.perf_counter()
        responses: list[Any] = [None] * len(requests)
        self.admission.begin()
        for at, request in enumerate(requests):
            if not self.admission.has_room():
                refuse_from(responses, at, self.admission, self.metrics)
                break
            self.admission.take(1.0)
            try:
                found = self._look_up(request)
            except InvalidRequestError as error:
                self.metrics.count_refusal(error.subject)
                responses[at] = refusal(str(error), pb_utils.TritonError.INVALID_ARG)
            except Exception as error:  # one request's fault must not fail the batch
                self.metrics.count_refusal("internal")
                responses[at] = refusal(f"{contract.LOOKUP_MODEL}: {error!r}")
            else:
                tensors = [pb_utils.Tensor(spec.name, found[spec.name]) for spec in self.outputs]
                responses[at] = pb_utils.InferenceResponse(tensors)
        self.admission.end(time.perf_counter() - began)
        return responses

    def _look_up(self, request: Any) -> dict[str, Any]:
        tensors = {
            spec.name: pb_utils.get_input_tensor_by_name(request, spec.name).as_numpy() for spec in contract.REQUEST
        }
        contract.validate_request(tensors)
        found = self.table.lookup(tensors)
        for value in found[contract.COVERAGE.name][:, 0]:
            self.metrics.observe_coverage(float(value))
        return padded({**found, **ranker_inputs(tensors, found)}) if self.pads else found


def padded(tensors: dict[str, Any]) -> dict[str, Any]:
    """What was looked up in the shape of its class, the history under its padded names."""
    alike = pad_to_class({spec.name: tensors[spec.name] for spec in contract.RANKER_INPUTS})
    history = {spec.name: alike[name] for name, spec in contract.PADDED_HISTORY.items()}
    return {**tensors, **alike, **history}
