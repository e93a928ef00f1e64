"""TopK, and NonMaxSuppression, which takes boxes in the order of their scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from retarget.targets.tflite.call import Call, Int8, Op
from retarget.targets.tflite.ops.shape import nothing
from retarget.targets.tflite.program import Constant, Options
from retarget.targets.tflite.values import Operand, Value


def top_k(call: Call) -> list[Operand]:
    """The kernel takes the largest of the last axis, of equal ones that of the lower index first."""
    operand = call.value(0)
    count = call.numbers(1, "how many are taken")[0]
    axis = call.attributes.get_int("axis", -1) % operand.rank
    shape = (*operand.shape[:axis], count, *operand.shape[axis + 1 :])
    if 0 in shape:
        return [nothing(call, shape, operand), Constant.of(np.zeros(shape), "int64")]
    is_largest = bool(call.attributes.get_int("largest", 1))
    perm = [each for each in range(operand.rank) if each != axis]
    back = [*range(axis), operand.rank - 1, *range(axis, operand.rank - 1)]
    last = call.transpose(_negated(call, operand, is_largest), (*perm, axis))
    best, places = best_of(call, last, count)
    return [_negated(call, call.transpose(best, back), is_largest), call.transpose(places, back)]


def best_of(call: Call, operand: Value, count: int) -> tuple[Value, Value]:
    """The ``count`` largest of the last axis, in falling order, and where they were."""
    shape = (*operand.shape[:-1], count)
    made = call.result(shape, operand.dtype), call.result(shape, np.int32)
    tensors = [tensor for value in made for tensor in value.forms.values()]
    inputs = (call.tensor(operand), call.lowering.constant(Constant.of(count, "int32")))
    call.lowering.add("TOPK_V2", inputs, tensors, Options("TopKV2Options"), call.node.name or "")
    return made


def _negated(call: Call, operand: Value, is_largest: bool) -> Value:
    """In the other order, exactly: of int32 all bits are turned, as the least number has no negative."""
    if is_largest:
        return operand
    if operand.dtype == np.float32:
        return call.unary("NEG", operand, Options("NegOptions"))
    return call.binary("SUB", Constant.of(-1, "int32"), operand, np.int32)


def _integers(call: Call) -> Int8:
    return "moves" if call.attributes.get_int("largest", 1) else "no"


OPS: Mapping[str, Op] = {
    "TopK": Op(top_k, dtypes=frozenset({"float32", "int32"}), int8=_integers),
}
