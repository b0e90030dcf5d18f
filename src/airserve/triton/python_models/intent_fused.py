"""Triton Python model that serves the public name in one process: the lookup, then the compiled graph.

Saves what the two steps of the ensemble cost each other on a machine without a GPU: a second queue, a second process,
and the copies of seven tensors between them. Requests of one dynamic batch keep their own lengths (ragged batch).
A request that breaks the contract is answered with INVALID_ARGUMENT and does not touch its neighbours.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from airserve import contract
from airserve.errors import InvalidRequestError
from airserve.table.lookup import IntentTable, ranker_inputs
from airserve.triton.config_names import ONNX_FILE, TABLE_FOLDER
from airserve.triton.model_answers import (
    admission_of,
    given_up,
    parameters_of,
    patience,
    published_s,
    refusal,
    refuse_from,
    settle,
)
from airserve.triton.model_metrics import ModelMetrics
from airserve.triton.padding import extent_of
from airserve.triton.ranker_session import RankerSession
from airserve.triton.warmup import warmup_requests

COMPUTED = [spec.name for spec in contract.RANKER_OUTPUTS]
LOOKED_UP = (contract.COVERAGE.name, contract.TABLE_VERSION.name)


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open table and graph, check that they fit, and run both once at the usual sizes."""
        settings = parameters_of(args)
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.table = IntentTable.open(os.path.join(folder, TABLE_FOLDER))
        self.ranker = RankerSession(os.path.join(folder, ONNX_FILE), threads=int(settings["threads"]))
        self.ranker.check_table(self.table.manifest.catalogue_sha256, self.table.manifest.vocabulary_sha256)
        self.admission = admission_of(settings)
        for request in warmup_requests(self.table.items):
            began = time.perf_counter()
            inputs = ranker_inputs(request, self.table.lookup(request))
            self.ranker.run([inputs], COMPUTED)
            self.admission.begin()
            self.admission.take(extent_of(inputs).cost())
            self.admission.end(time.perf_counter() - began)
        self.metrics = ModelMetrics(self.table.table_version, published_s(folder))
        settle()

    def finalize(self) -> None:
        """Called when the model is unloaded."""
        self.metrics.close()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Look every request up, rank those that are sound together, and answer in order."""
        began = time.perf_counter()
        responses: list[Any] = [None] * len(requests)
        parts: list[dict[str, Any]] = []
        found: list[dict[str, Any]] = []
        places: list[int] = []
        self.admission.begin()
        for at, request in enumerate(requests):
            if not self.admission.has_room():
                refuse_from(responses, at, self.admission, self.metrics)
                break
            try:
                inputs, looked_up = self._look_up(request)
            except InvalidRequestError as error:
                self.metrics.count_refusal(error.subject)
                responses[at] = refusal(str(error), pb_utils.TritonError.INVALID_ARG)
            except Exception as error:  # one request's fault must not fail the batch
                self.metrics.count_refusal("internal")
                responses[at] = refusal(f"{contract.ENSEMBLE_MODEL}: {error!r}")
            else:
                self.admission.take(extent_of(inputs).cost())
                parts.append(inputs)
                found.append(looked_up)
                places.append(at)
        if parts:
            self._rank([requests[at] for at in places], parts, found, places, responses, began)
        seconds = time.perf_counter() - began
        self.admission.end(seconds)
        self.metrics.observe_batch(len(parts), seconds)
        return responses

    def _look_up(self, request: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        tensors = {
            spec.name: pb_utils.get_input_tensor_by_name(request, spec.name).as_numpy() for spec in contract.REQUEST
        }
        contract.validate_request(tensors)
        looked_up = self.table.lookup(tensors)
        for value in looked_up[contract.COVERAGE.name][:, 0]:
            self.metrics.observe_coverage(float(value))
        return ranker_inputs(tensors, looked_up), looked_up

    def _rank(
        self,
        requests: list[Any],
        parts: list[dict[str, Any]],
        found: list[dict[str, Any]],
        places: list[int],
        responses: list[Any],
        began: float,
    ) -> None:
        asked = [set(request.requested_output_names()) for request in requests]
        wanted = [name for name in COMPUTED if any(name in names for names in asked)]
        try:
            answers = self.ranker.run(parts, wanted, patience(requests, began))
        except Exception as error:
            for at in places:
                responses[at] = refusal(f"{contract.ENSEMBLE_MODEL}: {error!r}")
            return
        for at, names, answer, looked_up in zip(places, asked, answers, found, strict=True):
            if not answer:
                responses[at] = given_up(self.metrics)
                continue
            tensors = [pb_utils.Tensor(name, array) for name, array in answer.items() if name in names]
            tensors += [
                pb_utils.Tensor(name, np.ascontiguousarray(looked_up[name])) for name in LOOKED_UP if name in names
            ]
            responses[at] = pb_utils.InferenceResponse(tensors)
