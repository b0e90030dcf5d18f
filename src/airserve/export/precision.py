"""A half-precision graph: precision is written into it, as TensorRT 11 (strongly typed networks) wants.

The matrix products of the sequence tower, the composition and the head are fp16. What decides which chains are kept
stays fp32 (ties are told apart by 1e-6 of a score, see `model/retrieval.py`), as do norms and softmaxes. Inputs and
outputs keep the contract's dtypes; rows come in fp16 anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from airserve import contract
from airserve.artifacts import FP16_FILE, ONNX_FILE
from airserve.errors import EngineError
from airserve.export.parity import CORNERS, open_session, random_inputs
from airserve.files import atomic_path

HALF_SCOPES = ("/tower/", "/composition/", "/head", "/evidence/")
"""Module names, as the exporter writes them in front of node names."""
FP16_TOLERANCE = 1e-2
"""Largest difference of a score accepted between the fp16 and the fp32 graph: fp16 rounds by 2^-11, in some ten
products one behind the other. 6e-4 was found at scores up to 3."""
PRODUCTS = ("MatMul", "Gemm")


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with fp16 tables and products.

    Args:
        model: checked, fp32; not changed.

    Raises:
        EngineError: if there is nothing to convert, so that no one serves fp32 under the name of fp16.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    tables = {value.name: value for value in half.graph.initializer if value.data_type == TensorProto.FLOAT}
    for node in half.graph.node:
        constant = node.op_type == "Constant" and node.attribute[0].name == "value"
        if constant and node.attribute[0].t.data_type == TensorProto.FLOAT:
            tables[node.output[0]] = node.attribute[0].t
    nodes: list[Any] = []
    fresh: dict[str, str] = {}
    for node in half.graph.node:
        if not node.name.startswith(HALF_SCOPES):
            nodes.append(node)
        elif node.op_type in PRODUCTS:
            _halve(half, node, range(len(node.input)), tables, fresh, nodes)
        elif node.op_type == "Gather" and node.input[0] in tables and tables[node.input[0]].dims:
            _halve(half, node, range(1), tables, fresh, nodes)
        else:
            nodes.append(node)
    if not fresh:
        raise EngineError("fp16: the graph has no table and no product of the modules that take it; see HALF_SCOPES")
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    _drop_unused_tables(half)
    # Value infos of before name fp32 where there is fp16 now.
    del half.graph.value_info[:]
    entry = half.metadata_props.add()
    entry.key, entry.value = "precision", "fp16"
    half = onnx.shape_inference.infer_shapes(half, check_type=True, strict_mode=True)
    onnx.checker.check_model(half, full_check=True)
    return half


def _halve(
    model: onnx.ModelProto, node: Any, places: range, tables: dict[str, Any], fresh: dict[str, str], nodes: list[Any]
) -> None:
    """Make the inputs at `places` fp16, and the output fp32 again."""
    for place in places:
        name = node.input[place]
        if name not in fresh:
            fresh[name] = f"{name}_fp16"
            if name in tables:
                array = numpy_helper.to_array(tables[name]).astype(np.float16)
                model.graph.initializer.append(numpy_helper.from_array(array, fresh[name]))
            else:
                nodes.append(_cast(name, fresh[name], TensorProto.FLOAT16))
        node.input[place] = fresh[name]
    output = node.output[0]
    node.output[0] = f"{output}_in_fp16"
    nodes.append(node)
    nodes.append(_cast(node.output[0], output, TensorProto.FLOAT))


def _cast(source: str, target: str, dtype: int) -> Any:
    return onnx.helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=dtype)


def _drop_unused_tables(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [value for value in model.graph.initializer if value.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def write_fp16(folder: Path, sizes: Mapping[str, int]) -> dict[str, float]:
    """Write the fp16 graph beside the fp32 one, after comparing their scores.

    Args:
        folder: with the exported graph.
        sizes: the encoder's H, E and X.

    Returns:
        See `compare_scores`.

    Raises:
        EngineError: if they differ by more than `FP16_TOLERANCE`.
    """
    with atomic_path(folder / FP16_FILE) as temporary:
        onnx.save(to_fp16(onnx.load(str(folder / ONNX_FILE))), str(temporary))
        figures = compare_scores(folder / ONNX_FILE, temporary, CORNERS, sizes)
        if figures["max_difference"] > FP16_TOLERANCE:
            raise EngineError(
                f"{FP16_FILE}: scores differ from fp32 by {figures['max_difference']:.2g}, at most {FP16_TOLERANCE:g} "
                "is accepted; serve the fp32 graph"
            )
    return figures


def compare_scores(
    full: Path, half: Path, corners: Sequence[Mapping[str, int]], sizes: Mapping[str, int]
) -> dict[str, float]:
    """Largest and mean difference of the scores of two graphs, over all corners, in ONNX Runtime."""
    sessions = [open_session(path) for path in (full, half)]
    differences = []
    for seed, axes in enumerate(corners):
        inputs = random_inputs(axes, sizes, seed=seed)
        ours, theirs = (session.run([contract.SCORES.name], inputs)[0] for session in sessions)
        real = np.isfinite(ours)
        if (real != np.isfinite(theirs)).any():
            return {"max_difference": float("inf"), "mean_difference": float("inf")}
        differences.append(np.abs(ours[real] - theirs[real]))
    joined = np.concatenate([*differences, np.zeros(1)])
    return {"max_difference": float(joined.max()), "mean_difference": float(joined.mean())}
