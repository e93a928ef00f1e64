"""What the kernel of one node does of the nodes behind it: add a constant row, and apply an activation function."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir

from retarget.targets.tflite.program import Activation


def read_alone(node: ir.Node) -> ir.Node | None:
    """The node that alone reads the first result of ``node``, a float; None where others do, or the user."""
    (out, *_) = node.outputs
    uses = tuple(out.uses())
    if len(uses) != 1 or out.is_graph_output() or out.dtype not in (ir.DataType.FLOAT, None):
        return None
    return uses[0].node


def addition(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The Add that alone reads the result of ``node``, and what it adds; None where there is none."""
    reader = read_alone(node)
    if reader is None or reader.op_type != "Add":
        return None
    left, right = reader.inputs
    other = right if left is node.outputs[0] else left
    return None if other is None or other is node.outputs[0] else (reader, other)


def activation(node: ir.Node) -> ir.Node | None:
    """The activation function that alone reads the result of ``node`` and that a kernel can apply; None without."""
    reader = read_alone(node)
    return reader if reader is not None and activation_of(reader) is not None else None


def activation_of(node: ir.Node) -> Activation | None:
    """What a kernel calls the function of ``node``; None where it has no name for it."""
    if node.op_type == "Relu":
        return "RELU"
    if node.op_type != "Clip":
        return None
    bounds: list[float | None] = []
    for index in (1, 2):
        value = node.inputs[index] if index < len(node.inputs) else None
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        if value is not None and tensor is None:
            return None
        bounds.append(None if tensor is None else float(tensor.numpy().item()))
    return _CLIPS.get((bounds[0], bounds[1]))


_CLIPS: Mapping[tuple[float | None, float | None], Activation] = {
    (0.0, None): "RELU",
    (0.0, math.inf): "RELU",
    (0.0, 6.0): "RELU6",
    (-1.0, 1.0): "RELU_N1_TO_1",
}
