"""Triton Python model `intent_ranker` for servers without an ONNX Runtime backend: runs the compiled graph in process.

The requests of one dynamic batch have different lengths; they are padded together, run once, and cut apart again. In
the Triton container the `tensorrt` or `onnxruntime` backend takes this model's place in the same ensemble.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

from airserve import contract
from airserve.errors import ArtifactError
from airserve.table.lookup import merge_lookups
from airserve.triton.config_names import ONNX_FILE

OUTPUTS = [spec.name for spec in contract.RANKER_OUTPUTS]


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph and check that it was exported for this contract."""
        config = json.loads(args["model_config"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["threads"]["string_value"])
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = os.path.join(args["model_repository"], args["model_version"], ONNX_FILE)
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        made_for = self.session.get_modelmeta().custom_metadata_map.get("contract_version", "none")
        if made_for != str(contract.CONTRACT_VERSION):
            raise ArtifactError(
                ONNX_FILE,
                expected=f"contract version {contract.CONTRACT_VERSION}",
                got=made_for,
                remedy="export it again with build/export_onnx.py",
            )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests of a dynamic batch as one padded batch."""
        parts = [
            {
                spec.name: pb_utils.get_input_tensor_by_name(request, spec.name).as_numpy()
                for spec in contract.RANKER_INPUTS
            }
            for request in requests
        ]
        # Also for a single part: an empty history has no ages, while the lookup hands on one padded row.
        merged = merge_lookups(parts)
        wanted = [name for name in OUTPUTS if any(name in request.requested_output_names() for request in requests)]
        results = dict(zip(wanted, self.session.run(wanted, merged), strict=True))
        responses = []
        start = 0
        for request, part in zip(requests, parts, strict=True):
            batch, candidates = part[contract.CANDIDATE_ROWS.name].shape
            tensors = [
                pb_utils.Tensor(name, np.ascontiguousarray(results[name][start : start + batch, :candidates]))
                for name in request.requested_output_names()
                if name in results
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
            start += batch
        return responses
