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
from airserve.table.lookup import IntentTable
from airserve.triton.config_names import TABLE_FOLDER
from airserve.triton.model_answers import admission_of, parameters_of, published_s, refusal, refuse_from
from airserve.triton.model_metrics import ModelMetrics


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Map the table that lies beside this model's version; a damaged or foreign one stops the load."""
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.table = IntentTable.open(os.path.join(folder, TABLE_FOLDER))
        self.admission = admission_of(parameters_of(args))
        self.metrics = ModelMetrics(self.table.table_version, published_s(folder))

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
            responses[at] = self._answer(request)
        self.admission.end(time.perf_counter() - began)
        return responses

    def _answer(self, request: Any) -> Any:
        try:
            tensors = {
                spec.name: pb_utils.get_input_tensor_by_name(request, spec.name).as_numpy() for spec in contract.REQUEST
            }
            contract.validate_request(tensors)
            found = self.table.lookup(tensors)
        except InvalidRequestError as error:
            self.metrics.count_refusal(error.subject)
            return refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # one request's fault must not fail the batch
            self.metrics.count_refusal("internal")
            return refusal(f"{contract.LOOKUP_MODEL}: {error!r}")
        for value in found[contract.COVERAGE.name][:, 0]:
            self.metrics.observe_coverage(float(value))
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(spec.name, found[spec.name]) for spec in contract.LOOKUP_OUTPUTS]
        )
