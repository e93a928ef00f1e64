"""Compress and NonZero, and what may follow a result that is as long as the data make it.

Shapes are numbers everywhere else, so such a result has the most rows that there can be, and goes only where nothing is
written that depends on how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from retarget import graph
from retarget.targets.tflite.call import Call, Op
from retarget.targets.tflite.ops.indexing import narrow_dtype
from retarget.targets.tflite.ops.shape import nothing, reshaped
from retarget.targets.tflite.program import Constant, Options
from retarget.targets.tflite.values import TYPES, Operand, Refusal, Value


def compress(call: Call) -> Operand:
    data, condition = call.operand(0), call.operand(1)
    axis = call.attributes.get_int("axis", 0)
    if "axis" not in call.attributes:
        data = reshaped(call, data, (math.prod(data.shape),))
    axis %= len(data.shape)
    if isinstance(condition, Constant):
        places: Operand = Constant.of(np.flatnonzero(condition.array()), "int32")
    else:
        places = call.reshape(_true(call, condition), (condition.shape[0],))
    shape = (*data.shape[:axis], places.shape[0], *data.shape[axis + 1 :])
    if 0 in shape:
        return nothing(call, shape, data)
    inputs = [call.tensor(data), call.tensor(places)]
    made = call.emit("GATHER", inputs, shape, narrow_dtype(data), Options("GatherOptions", {"axis": axis}))
    return made if isinstance(places, Constant) else settled(call, made, axis)


def non_zero(call: Call) -> Value:
    operand = call.value(0)
    if not operand.rank:
        raise Refusal("it is asked of one number, which has no place")
    if operand.dtype != np.bool_:
        zero = np.zeros((), operand.dtype)
        operand = call.emit("NOT_EQUAL", [operand, zero], operand.shape, np.bool_, Options("NotEqualOptions"))
    rows = _true(call, operand)
    turned = call.emit("TRANSPOSE", [rows, call.ints([1, 0])], rows.shape[::-1], options=Options("TransposeOptions"))
    return settled(call, turned, 1)


def _true(call: Call, condition: Value) -> Value:
    """Where ``condition`` holds: [places, axes]."""
    shape = (math.prod(condition.shape), condition.rank)
    return call.cast(call.emit("WHERE", [condition], shape, np.int64, Options("WhereOptions")).counted(), "int32")


def settled(call: Call, value: Value, axis: int = 0) -> Value:
    """``value``, of which ``axis`` is as long as the data make it. Raises ``Refusal`` where what follows must know."""
    result = call.node.outputs[0]
    declared = graph.static_shape(result, call.lowering.sizes)
    value.counted()
    for tensor in value.forms.values():
        tensor.open_axes = (axis,)
    if declared is not None:
        # The model says how many there are.
        value.shape, value.is_counted = declared, False
    elif axis and result.uses():
        raise Refusal(f"axis {axis} of its result is as long as the data make it, and only the first can be read again")
    elif (reason := _fails(result)) is not None:
        raise Refusal(reason)
    return value


def _fails(value: ir.Value) -> str | None:
    """Why what follows cannot do without the number of rows of ``value``; None where it can."""
    for use in value.uses():
        ranks = [_rank(each) for each in (value, *use.node.outputs)]
        # Of more axes the layout could be another.
        if min(ranks) < 1 or max(ranks) > 2 or not _keeps_rows(use.node, use.idx, ranks[0]):
            return f"its result goes to '{use.node.name}' ({use.node.op_type}), which must know how many rows it has"
        for each in use.node.outputs:
            if (reason := _fails(each)) is not None:
                return reason
    return None


def _rank(value: ir.Value | None) -> int:
    return 0 if value is None or value.shape is None else len(value.shape)


def _keeps_rows(node: ir.Node, index: int, rank: int) -> bool:
    """Whether the first axis of operand ``index``, of ``rank`` axes, is that of the result, and is left as it is."""
    axis = node.attributes.get_int("axis", 0)
    match node.op_type:
        case "Identity" | "Cast":
            return True
        case "Add" | "Sub" | "Mul":
            return _rank(node.outputs[0]) == rank
        case "Gather":
            return axis % rank != 0 if index == 0 else axis == 0
        case "GatherND":
            return index == 1 and not node.attributes.get_int("batch_dims", 0)
        case "Concat":
            return axis % rank != 0
        case "Squeeze" | "Slice":
            axes = _numbers(node, 1 if node.op_type == "Squeeze" else 3)
            return bool(axes) and all(each % rank for each in axes)
        case "Unsqueeze":
            return all(each % (rank + 1) for each in _numbers(node, 1) or [0])
        case "Reshape":
            first, *others = _numbers(node, 1) or [1]
            return index == 0 and first in (0, -1) and all(size > 0 for size in others)
        case _:
            return False


def _numbers(node: ir.Node, index: int) -> list[int]:
    """The numbers of a constant operand; none where there is no such."""
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return [] if tensor is None else [int(number) for number in tensor.numpy().reshape(-1)]


OPS: Mapping[str, Op] = {
    "Compress": Op(compress, dtypes=TYPES),
    "NonZero": Op(non_zero, dtypes=frozenset({"float32", "int32", "bool"})),
}
