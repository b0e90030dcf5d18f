"""Triton Python model `intent_lookup`: item ids in, the ids of the request's intent tree out.

One call handles all requests that Triton's dynamic batcher put together; each keeps its own lengths (ragged batch).
A request that breaks the contract is answered with INVALID_ARGUMENT and does not touch its neighbours.
"""

from __future__ import annotations

import os
from typing import Any

import triton_python_backend_utils as pb_utils

from airserve import contract
from airserve.errors import InvalidRequestError
from airserve.table.lookup import IntentTable
from airserve.triton.config_names import TABLE_FOLDER
from airserve.triton.model_metrics import ModelMetrics


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Map the table that lies beside this model's version; a damaged or foreign one stops the load."""
        folder = os.path.join(args["model_repository"], args["model_version"], TABLE_FOLDER)
        self.table = IntentTable.open(folder)
        self.metrics = ModelMetrics(self.table.table_version)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its own tree."""
        responses = [self._answer(request) for request in requests]
        self.metrics.count_batch(len(requests))
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
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        except Exception as error:  # one request's fault must not fail the batch
            self.metrics.count_refusal("internal")
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{contract.LOOKUP_MODEL}: {error!r}"))
        for value in found[contract.COVERAGE.name][:, 0]:
            self.metrics.count_coverage(float(value))
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(spec.name, found[spec.name]) for spec in contract.LOOKUP_OUTPUTS]
        )
