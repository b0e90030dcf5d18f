"""Folding fixed sizes takes kernels out of the graph and changes no answer."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from airserve.export.fold import fold_fixed_sizes


def traced() -> onnx.ModelProto:
    """What the tracer writes of x.reshape(x.shape[0], x.shape[1], 2, x.shape[2] // 2) with x of [B, C, 8]."""
    nodes = [helper.make_node("Shape", ["x"], ["shape"])]
    for axis in range(3):
        nodes.append(
            helper.make_node("Constant", [], [f"i{axis}"], value=helper.make_tensor("i", TensorProto.INT64, [], [axis]))
        )
        nodes.append(helper.make_node("Gather", ["shape", f"i{axis}"], [f"s{axis}"]))
    for name, value in (("two", 2), ("zero", 0)):
        dims = [1] if name == "zero" else []
        nodes.append(
            helper.make_node("Constant", [], [name], value=helper.make_tensor(name, TensorProto.INT64, dims, [value]))
        )
    nodes.append(helper.make_node("Div", ["s2", "two"], ["half"]))
    parts = []
    for name in ("s0", "s1", "two", "half"):
        nodes.append(helper.make_node("Unsqueeze", [name, "zero"], [f"{name}_1"]))
        parts.append(f"{name}_1")
    nodes.append(helper.make_node("Concat", parts, ["target"], axis=0))
    nodes.append(helper.make_node("Reshape", ["x", "target"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "traced",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "C", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "C", 2, 4])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_reshape_that_keeps_axes_needs_no_sizes_at_run_time() -> None:
    folded = fold_fixed_sizes(traced())
    onnx.checker.check_model(folded, full_check=True)
    assert [node.op_type for node in folded.graph.node] == ["Reshape"]
    x = np.arange(3 * 5 * 8, dtype=np.float32).reshape(3, 5, 8)
    answers = [
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for model in (traced(), folded)
    ]
    np.testing.assert_array_equal(*answers)


def test_the_given_model_is_not_changed() -> None:
    model = traced()
    before = model.SerializeToString()
    fold_fixed_sizes(model)
    assert model.SerializeToString() == before
