"""Export a trained ranker to ONNX: folded tables inside, names and axes of the contract, stamped with what it is for.

Opset 17, dynamic axes B, L, C, R, U; only operators that TensorRT compiles (no Unique, NonZero or scatter).
"""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from airserve import contract
from airserve.contract import TensorSpec
from airserve.errors import EngineError
from airserve.export.fold import fold_fixed_sizes
from airserve.export.parity import random_inputs
from airserve.model.ranker import Ranker
from airserve.table.lookup import IntentTable
from airserve.training.checkpoint import write_json
from airserve.triton.config_names import ONNX_FILE

OPSET = 17
MANIFEST = "manifest.json"
FORBIDDEN_OPERATORS = {"Unique", "NonZero", "Compress", "ScatterElements", "ScatterND", "Loop", "If", "Scan"}
"""What TensorRT does not compile, or only at a price."""
_DTYPES = {
    np.dtype(np.int32): onnx.TensorProto.INT32,
    np.dtype(np.int64): onnx.TensorProto.INT64,
    np.dtype(np.float32): onnx.TensorProto.FLOAT,
}


def dynamic_axes(spec: TensorSpec) -> dict[int, str]:
    """Axis number -> name, of the axes of a tensor that vary."""
    return {place: axis for place, axis in enumerate(spec.axes) if axis in contract.PROFILE}


def stamps(table: IntentTable) -> dict[str, str]:
    """Metadata that says what a graph was made for."""
    return {
        "contract_version": str(contract.CONTRACT_VERSION),
        "catalogue_sha256": table.manifest.catalogue_sha256,
        "vocabulary_sha256": table.manifest.vocabulary_sha256,
        contract.TABLE_VERSION.name: str(table.table_version),
    }


def export_ranker(ranker: Ranker, table: IntentTable, folder: Path) -> Path:
    """Write `ranker.onnx`, checked, to a folder.

    Args:
        ranker: trained.
        table: the table that it was trained on.
        folder: made when missing.

    Returns:
        The file.

    Raises:
        EngineError: if the graph does not come out as the contract says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ONNX_FILE
    temporary = folder / f"{ONNX_FILE}.tmp-{os.getpid()}"
    axes = {"B": 2, "L": 5, "C": 6, "R": 9, "U": 12}
    example = random_inputs(axes, n_rows=len(table.item_vectors), n_nodes=len(table.node_vectors), seed=0)
    with warnings.catch_warnings(), torch.inference_mode():
        # The tracer warns of Python numbers taken from sizes that are fixed here.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            ranker.folded(),
            tuple(torch.from_numpy(example[spec.name]) for spec in contract.RANKER_INPUTS),
            str(temporary),
            dynamo=False,
            opset_version=OPSET,
            input_names=[spec.name for spec in contract.RANKER_INPUTS],
            output_names=[spec.name for spec in contract.RANKER_OUTPUTS],
            dynamic_axes={
                spec.name: dynamic_axes(spec) for spec in (*contract.RANKER_INPUTS, *contract.RANKER_OUTPUTS)
            },
        )
    model = onnx.load(str(temporary))
    temporary.unlink()
    _set_output_shapes(model)
    model = fold_fixed_sizes(model)
    onnx.helper.set_model_props(model, stamps(table))
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    check_graph(model)
    onnx.save(model, str(temporary))
    os.replace(temporary, path)
    return path


def _set_output_shapes(model: onnx.ModelProto) -> None:
    """Write the contract's fixed axes into the outputs; tracing leaves some of them open."""
    for spec, value in zip(contract.RANKER_OUTPUTS, model.graph.output, strict=True):
        sizes: list[int | str] = [axis if axis in contract.PROFILE else -1 for axis in spec.axes]
        for place, size in enumerate(spec.dims, start=1):
            if size != -1:
                sizes[place] = size
        value.CopyFrom(onnx.helper.make_tensor_value_info(spec.name, _DTYPES[np.dtype(spec.dtype)], sizes))


def check_graph(model: onnx.ModelProto) -> None:
    """Hold a graph to the contract's names and dtypes and to the operators that TensorRT takes.

    Raises:
        EngineError: naming what differs.
    """
    for specs, values in ((contract.RANKER_INPUTS, model.graph.input), (contract.RANKER_OUTPUTS, model.graph.output)):
        got = [(value.name, value.type.tensor_type.elem_type) for value in values]
        expected = [(spec.name, _DTYPES[np.dtype(spec.dtype)]) for spec in specs]
        if got != expected:
            raise EngineError(f"{ONNX_FILE}: expected tensors {expected}, got {got}; the export is broken")
    forbidden = sorted({node.op_type for node in model.graph.node} & FORBIDDEN_OPERATORS)
    if forbidden:
        raise EngineError(f"{ONNX_FILE}: operators that TensorRT does not compile: {', '.join(forbidden)}")


def write_manifest(folder: Path, table: IntentTable, extra: dict[str, Any]) -> dict[str, Any]:
    """Write `manifest.json` beside the graph, with its sha256.

    Returns:
        What was written.
    """
    digest = hashlib.sha256((folder / ONNX_FILE).read_bytes()).hexdigest()
    manifest: dict[str, Any] = {
        **stamps(table),
        "contract_version": contract.CONTRACT_VERSION,
        contract.TABLE_VERSION.name: table.table_version,
        "opset": OPSET,
        "onnx_sha256": digest,
        **extra,
    }
    write_json(folder / MANIFEST, manifest)
    return manifest
