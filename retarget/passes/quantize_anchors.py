"""Which nodes int8 is for under a scheme: those with a constant weight, and products of two activations."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from retarget.passes.rewriting import is_constant, rank, sole_use

if TYPE_CHECKING:
    from retarget.schemes import QuantScheme

ASKED = "it was asked to stay in float32"
QUANTIZED = "it is quantized already"


@dataclass(frozen=True, eq=False)
class Anchor:
    """A node that int8 is for."""

    node: ir.Node
    activations: tuple[int, ...]
    """Positions of the inputs that are rounded."""
    weight: int | None = None
    """Position of the constant weight; None for a product of two activations."""
    axis: int = 0
    """The weight's output channels."""
    groups: int = 1
    """How often the weight's channels repeat along the output's."""
    bias: tuple[ir.Node, int] | None = None
    """The node and position where the constant bias comes in: this one, or the Add behind a MatMul."""


def find_anchors(
    nodes: Iterable[ir.Node], scheme: QuantScheme, keep: Collection[str] = ()
) -> tuple[dict[ir.Node, Anchor], dict[ir.Node, str]]:
    """The nodes that ``scheme`` quantizes, ranges allowing, in graph order; and why others of their kind stay."""
    anchors: dict[ir.Node, Anchor] = {}
    kept: dict[ir.Node, str] = {}
    for node in nodes:
        if node.domain or not (node.op_type in scheme.weighted or (scheme.products and node.op_type == "MatMul")):
            continue
        found = ASKED if name_of(node) in keep else _anchor(node, scheme, keep)
        if isinstance(found, Anchor):
            anchors[node] = found
        else:
            kept[node] = found
    return anchors, kept


def _anchor(node: ir.Node, scheme: QuantScheme, keep: Collection[str]) -> Anchor | str:
    inputs = node.inputs
    if len(inputs) < 2 or inputs[0] is None or inputs[1] is None:
        return "an input is missing"
    if any(value is not None and value.dtype != ir.DataType.FLOAT for value in (*inputs, *node.outputs)):
        return "it does not compute in float32"
    if touches_quantization(node):
        return QUANTIZED
    data, weight = inputs[0], inputs[1]
    if not is_constant(weight):
        return _product(node, scheme)
    if node.op_type not in scheme.weighted:
        return f"{scheme.name} has no {scheme.word} {node.op_type} of a weight"
    if is_constant(data):
        return "both of its inputs are constant"
    assert weight.const_value is not None
    shape = [int(size) for size in weight.const_value.shape.numpy()]
    if len(shape) < 2 or not weight.const_value.size:
        return "its weight has fewer than two axes"
    if node.op_type == "MatMul" and len(shape) > 2:
        # ONNX Runtime accepts scales for its columns when it loads the model, and fails when it runs it.
        return "its weight is a stack of matrices"
    if node.op_type == "Gemm":
        if node.attributes.get_float("alpha", 1.0) != 1 or node.attributes.get_float("beta", 1.0) != 1:
            return "its alpha or beta is not 1"
        axis = 0 if node.attributes.get_int("transB", 0) else 1
    else:
        axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": len(shape) - 1}[node.op_type]
    if node.op_type == "Conv" and (reason := _without_kernel(node, len(shape) - 2, scheme)) is not None:
        return reason
    groups = node.attributes.get_int("group", 1) if node.op_type == "ConvTranspose" else 1
    bias = _bias(node, shape[axis] * groups, keep)
    if isinstance(bias, str) and scheme.bias == "int32":
        return bias
    return Anchor(node, (0,), 1, axis, groups, bias if isinstance(bias, tuple) else None)


def _without_kernel(node: ir.Node, axes: int, scheme: QuantScheme) -> str | None:
    """Why this Conv, whose windows slide along so many axes, has no int8 kernel; None if it has."""
    if scheme.spatial is not None and axes not in scheme.spatial:
        return f"{scheme.name} has no {scheme.word} Conv along {axes} axes"
    if not scheme.grouped and node.attributes.get_int("group", 1) != 1:
        return f"{scheme.name} leaves a Conv of several groups in float32, where it takes less time"
    return None


def _product(node: ir.Node, scheme: QuantScheme) -> Anchor | str:
    if node.op_type != "MatMul":
        return "its weight is not a constant"
    if not scheme.products:
        return f"{scheme.name} leaves products of two activations in float32"
    if is_constant(node.inputs[0]):
        return "its weight is on the left"
    return Anchor(node, (0, 1))


def _bias(node: ir.Node, channels: int, keep: Collection[str]) -> tuple[ir.Node, int] | str | None:
    """Where the bias of one number a channel comes in; None without one, a reason where it has another form."""
    place: tuple[ir.Node, int] | None = None
    if node.op_type == "MatMul":
        add = sole_user(node.outputs[0])
        if add is None or add.op_type != "Add" or add.domain or name_of(add) in keep or touches_quantization(add):
            return None
        at = 1 if add.inputs[0] is node.outputs[0] else 0
        operand = add.inputs[at]
        # A bias of more axes than the product would give it more.
        if (
            not is_constant(operand)
            or not _is_vector(operand, channels)
            or (rank(operand) or 0) > (rank(node.outputs[0]) or 1)
        ):
            return None
        place = (add, at)
    elif len(node.inputs) > 2 and node.inputs[2] is not None:
        if not is_constant(node.inputs[2]):
            return "its bias is not a constant"
        if not _is_vector(node.inputs[2], channels):
            return "its bias has not one number for each channel"
        place = (node, 2)
    return place


def _is_vector(value: ir.Value | None, size: int) -> bool:
    """Whether the constant has ``size`` elements along its last axis and no other."""
    assert value is not None
    assert value.const_value is not None
    shape = [int(dim) for dim in value.const_value.shape.numpy()]
    return bool(shape) and shape[-1] == size and value.const_value.size == size


def name_of(node: ir.Node) -> str:
    """Its name, or that of its output where it has none."""
    return node.name or node.outputs[0].name or ""


def touches_quantization(node: ir.Node) -> bool:
    """Whether an input of ``node`` comes out of a DequantizeLinear or an output goes into a QuantizeLinear."""
    makers = (value.producer() for value in node.inputs if value is not None)
    users = (user for value in node.outputs for user, _ in value.uses())
    return any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers) or any(
        user.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") for user in users
    )


def sole_user(value: ir.Value | None) -> ir.Node | None:
    """The node that is all that reads ``value``, in its own graph."""
    if value is None or not sole_use(value):
        return None
    user, _ = next(iter(value.uses()))
    return user if user.graph is value.graph else None
