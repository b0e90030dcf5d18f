"""Turn sizes that the tracer left to run time, but that never vary, into constants.

PyTorch's tracer writes every `x.shape[i]` as Shape -> Gather, also for axes of a fixed size (the width, the sequence
tower's window, the heads). ONNX Runtime then computes them on every call, and with them what depends on nothing else,
such as the attention's distance bias. A call of this graph is some 120 small kernels, so their number is its cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

KEEP = 0
"""In a Reshape's target: the size of the input's same axis."""


class _Graph:
    """A graph with what is needed to look backwards from a tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.graph = model.graph
        self.sizes: dict[str, list[int | None]] = {
            value.name: [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
            for value in (*inferred.value_info, *inferred.input, *inferred.output)
            if value.type.tensor_type.HasField("shape")
        }
        self.maker = {output: node for node in model.graph.node for output in node.output}
        self.constants = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)

    def axis_read(self, name: str) -> tuple[str, int] | None:
        """(tensor, axis) when `name` is the scalar size of a tensor's axis."""
        node = self.maker.get(name)
        if node is None or node.op_type != "Gather":
            return None
        shape, index = self.maker.get(node.input[0]), self.constants.get(node.input[1])
        if shape is None or shape.op_type != "Shape" or shape.attribute or index is None or index.ndim:
            return None
        return shape.input[0], int(index)

    def fixed_size(self, name: str) -> int | None:
        """The value of `name` when it is the size of an axis that does not vary."""
        read = self.axis_read(name)
        if read is None or read[0] not in self.sizes:
            return None
        return self.sizes[read[0]][read[1]]

    def replace(self, node: Any, value: Any) -> None:
        """Make a node the constant of its output."""
        output = node.output[0]
        node.CopyFrom(
            onnx.helper.make_node(
                "Constant", [], [output], value=numpy_helper.from_array(np.asarray(value, dtype=np.int64))
            )
        )
        self.constants[output] = np.asarray(value, dtype=np.int64)


def _target_of(graph: _Graph, node: Any) -> list[int] | None:
    """A constant target for a Reshape: fixed sizes, KEEP where the axis stays, one -1 at most."""
    concat = graph.maker.get(node.input[1])
    sizes = graph.sizes.get(node.output[0])
    if concat is None or concat.op_type != "Concat" or sizes is None or len(concat.input) != len(sizes):
        return None
    target: list[int] = []
    for at, (part, size) in enumerate(zip(concat.input, sizes, strict=True)):
        unsqueeze = graph.maker.get(part)
        read = (
            graph.axis_read(unsqueeze.input[0]) if unsqueeze is not None and unsqueeze.op_type == "Unsqueeze" else None
        )
        if size is not None:
            target.append(size)
        elif read == (node.input[0], at):
            target.append(KEEP)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 and 0 not in [s for s in sizes if s is not None] else None


def _drop_unused(graph: Any, outputs: Sequence[str]) -> None:
    needed = set(outputs)
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def fold_fixed_sizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with fewer nodes: sizes that do not vary are constants, and reshapes keep axes by themselves.

    Args:
        model: checked, with its axes named; not changed.
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    graph = _Graph(folded)
    for node in folded.graph.node:
        if node.op_type == "Reshape":
            target = _target_of(graph, node)
            if target is not None:
                name = f"{node.output[0]}_target"
                folded.graph.initializer.append(numpy_helper.from_array(np.array(target, dtype=np.int64), name))
                node.input[1] = name
    for node in folded.graph.node:
        if node.op_type == "Gather":
            size = graph.fixed_size(node.output[0])
            if size is not None:
                graph.replace(node, size)
    _drop_unused(folded.graph, [value.name for value in folded.graph.output])
    return folded
