"""Triton Python model `intent_ranker` for servers without an ONNX Runtime backend: runs the compiled graph in process.

The requests of one dynamic batch have different lengths; they are padded together, run once, and cut apart again. In
the Triton container the `tensorrt` or `onnxruntime` backend takes this model's place in the same ensemble.
"""

from __future__ import annotations

import os
import time
from typing import Any

import triton_python_backend_utils as pb_utils

from airserve import contract
from airserve.triton.config_names import ONNX_FILE
from airserve.triton.model_answers import admission_of, parameters_of, refuse_from, settle
from airserve.triton.model_metrics import ModelMetrics
from airserve.triton.padding import extent_of
from airserve.triton.ranker_session import RankerSession

OUTPUTS = [spec.name for spec in contract.RANKER_OUTPUTS]


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph and check that it was exported for this contract."""
        settings = parameters_of(args)
        path = os.path.join(args["model_repository"], args["model_version"], ONNX_FILE)
        self.ranker = RankerSession(path, threads=int(settings["threads"]))
        self.admission = admission_of(settings)
        self.metrics = ModelMetrics()
        settle()

    def finalize(self) -> None:
        """Called when the model is unloaded."""
        self.metrics.close()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests of a dynamic batch together, those of like size as one padded batch."""
        began = time.perf_counter()
        responses: list[Any] = [None] * len(requests)
        parts: list[dict[str, Any]] = []
        self.admission.begin()
        for at, request in enumerate(requests):
            if not self.admission.has_room():
                refuse_from(responses, at, self.admission, self.metrics)
                break
            part = {
                spec.name: pb_utils.get_input_tensor_by_name(request, spec.name).as_numpy()
                for spec in contract.RANKER_INPUTS
            }
            self.admission.take(extent_of(part).cost())
            parts.append(part)
        asked = [set(request.requested_output_names()) for request in requests[: len(parts)]]
        wanted = [name for name in OUTPUTS if any(name in names for names in asked)]
        # Whether a client gave up cannot be asked here: a step of an ensemble is not told (Triton 2.51).
        for at, answer in enumerate(self.ranker.run(parts, wanted)):
            tensors = [pb_utils.Tensor(name, array) for name, array in answer.items() if name in asked[at]]
            responses[at] = pb_utils.InferenceResponse(tensors)
        seconds = time.perf_counter() - began
        self.admission.end(seconds)
        self.metrics.observe_batch(len(parts), seconds)
        return responses
