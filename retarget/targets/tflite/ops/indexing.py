"""Elements taken by computed or constant indices.

GATHER and GATHER_ND fail at negative indices, which count from the end in ONNX: those of constants are made positive
here, computed ones by FLOOR_MOD unless their producers show that there are none.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from retarget.targets.tflite.layout import FIRST_AXES, Layout, Way
from retarget.targets.tflite.lowering import TYPES, Call, Op, Operand, narrow
from retarget.targets.tflite.ops.parts import MOST_AXES
from retarget.targets.tflite.program import Constant, Options


def gather(call: Call) -> Operand:
    data = call.operand(0)
    rank = len(data.shape)
    axis = call.attributes.get_int("axis", 0) % rank
    indices = counted(call, 1, data.shape[axis])
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    if 0 in shape:
        return Constant.of(np.zeros(shape, data.dtype))
    options = Options("GatherOptions", {"axis": call.position(axis, rank)})
    taken = call.tensor(indices, layout=Layout.FIRST)
    return call.emit("GATHER", [call.tensor(data), taken], shape, _dtype(data), options)


def _dtype(operand: Operand) -> np.dtype[np.generic]:
    return narrow(operand).dtype if isinstance(operand, Constant) else operand.dtype


def counted(call: Call, index: int, size: int | tuple[int, ...]) -> Operand:
    """Operand ``index``, indices of an axis of ``size`` (of several: one after the other), counted from the front."""
    indices = call.operand(index)
    if isinstance(indices, Constant):
        return Constant.of(np.mod(indices.array(), size), "int32")
    value = call.node.inputs[index]
    if value is not None and is_counted(value):
        return indices
    return call.emit(
        "FLOOR_MOD",
        [indices, Constant.of(size, "int32")],
        indices.shape,
        options=Options("FloorModOptions"),
        layout=Layout.FIRST,
    )


_NEVER_NEGATIVE = frozenset({"ArgMax", "ArgMin", "NonZero", "Shape", "Size"})
"""Operators whose results are positions or counts."""

_MOVERS = frozenset(
    {"Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Operators whose results are elements of their first operand."""

_OF_POSITIVE = frozenset({"Add", "Concat", "Max", "Min", "Mul", "ReduceMax", "ReduceSum"})
"""Operators whose results are not negative where no operand is."""


def is_counted(value: ir.Value) -> bool:
    """Whether the producers of ``value`` show that it is nowhere negative."""
    constant = ir.convenience.get_const_tensor(value)
    if constant is not None:
        return constant.size == 0 or bool((constant.numpy() >= 0).all())
    node = value.producer()
    if node is None:
        return False
    operands = [each for each in node.inputs if each is not None]
    match node.op_type:
        case name if name in _NEVER_NEGATIVE:
            return True
        case "TopK":
            return value is node.outputs[1]
        case "Split":
            return is_counted(operands[0])
        case name if name in _MOVERS:
            return is_counted(operands[0])
        case "Where":
            return all(map(is_counted, operands[1:]))
        case name if name in _OF_POSITIVE:
            return all(map(is_counted, operands))
        case _:
            return False


def _gather_way(node: ir.Node) -> Way:
    """EITHER where one axis of an image is taken parts of, or a spatial one is dropped."""
    data, indices = (None if value is None else value.shape for value in node.inputs[:2])
    if data is None or indices is None or not FIRST_AXES <= len(data) <= MOST_AXES:
        return Way.FIRST
    axis = node.attributes.get_int("axis", 0) % len(data)
    return Way.EITHER if len(indices) == 1 or (len(indices) == 0 and axis > 1) else Way.FIRST


OPS: Mapping[str, Op] = {
    "Gather": Op(gather, _gather_way, (0,), dtypes=TYPES, int8="moves"),
}
