"""Triton Python model `intent_ranker` for servers without an ONNX Runtime backend: runs the compiled graph in process.

The requests of one dynamic batch have different lengths; they are padded together, run once, and cut apart again. In
the Triton container the `tensorrt` or `onnxruntime` backend takes this model's place in the same ensemble.
"""

from __future__ import annotations

import json
import os
from typing import Any

import triton_python_backend_utils as pb_utils

from airserve import contract
from airserve.triton.config_names import ONNX_FILE
from airserve.triton.ranker_session import RankerSession

OUTPUTS = [spec.name for spec in contract.RANKER_OUTPUTS]


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph and check that it was exported for this contract."""
        threads = int(json.loads(args["model_config"])["parameters"]["threads"]["string_value"])
        path = os.path.join(args["model_repository"], args["model_version"], ONNX_FILE)
        self.ranker = RankerSession(path, threads=threads)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests of a dynamic batch together, those of like size as one padded batch."""
        parts = [
            {
                spec.name: pb_utils.get_input_tensor_by_name(request, spec.name).as_numpy()
                for spec in contract.RANKER_INPUTS
            }
            for request in requests
        ]
        asked = [set(request.requested_output_names()) for request in requests]
        wanted = [name for name in OUTPUTS if any(name in names for names in asked)]
        answers = self.ranker.run(parts, wanted)
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, array) for name, array in answer.items() if name in names]
            )
            for names, answer in zip(asked, answers, strict=True)
        ]
