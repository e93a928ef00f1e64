"""QuantizeLinear and DequantizeLinear: integers that activations are rounded to, and integers that weights are.

Integers are computed as floats. Layers that compute in int8 round what they take themselves (``int8``), and then
nothing of this is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets import legal
from retarget.targets.ncnn.call import FLOATS, INTEGERS, Call, Op
from retarget.targets.ncnn.ops.elementwise import ADD, DIV, MUL, ROUND, SUB, binary, function, mapped, with_number
from retarget.targets.ncnn.program import Blob
from retarget.targets.ncnn.rows import aligned
from retarget.targets.ncnn.values import Codes, Quantized, Refusal, Result, Shape, Value, plain_dims, reach

if TYPE_CHECKING:
    from retarget.protocols import Array

_ROUNDED_TO = frozenset({"int8", "uint8", "int16", "uint16"})

_CONSTANT = frozenset({"int4", "uint4", "int2", "uint2"})
"""Integers that constants may be beside those of numpy."""


def quantize_linear(call: Call) -> Result:
    dtype, scale, zero = call.result_dtype(), _scale(call), _zero_point(call)
    if dtype.name not in _ROUNDED_TO:
        raise Refusal(f"{dtype.name} is not among {', '.join(sorted(_ROUNDED_TO))}")
    limits = np.iinfo(dtype.name)
    if call.is_constant(0) and not isinstance(scale, Value) and not isinstance(zero, Value):
        rounded = np.rint(call.array(0, "it").astype(np.float32) / scale.astype(np.float32))
        rounded = np.clip(rounded + (0 if zero is None else zero), limits.min, limits.max)
        return np.asarray(rounded.astype(dtype))
    value = call.value(0)
    made = _with(call, DIV, value, scale)
    made = _as(made, function(call, ROUND, call.blob(made)))
    if zero is not None:
        made = _with(call, ADD, made, zero)
    blob = mapped(call, "Clip", call.blob(made), {0: float(limits.min), 1: float(limits.max)})
    return Value(value.shape, dtype, blob, made.rows, largest=reach(dtype))


def dequantize_linear(call: Call) -> Result:
    scale, zero = _scale(call), _zero_point(call)
    integers = call.operand(0)
    if isinstance(integers, np.ndarray) and not isinstance(scale, Value) and not isinstance(zero, Value):
        return Codes(integers, scale, zero)
    value = call.value(0)
    if zero is None and not isinstance(scale, Value) and scale.size == 1:
        found = _quantized(call, value, float(scale.reshape(())))
        if found is not None:
            return found
    made = _with(call, MUL, value if zero is None else _with(call, SUB, value, zero), scale)
    return Value(value.shape, call.result_dtype(), made.blob, made.rows)


def _as(value: Value, blob: Blob) -> Value:
    return Value(value.shape, value.dtype, blob, blob.rows)


def _quantized(call: Call, codes: Value, scale: float) -> Quantized | None:
    """What was rounded to int8 of this scale right in front of this node, around 0; None where it was not that."""
    source = call.node.inputs[0]
    maker = None if source is None else source.producer()
    if maker is None or legal.operator(maker) != "QuantizeLinear" or codes.dtype != np.int8 or not 0 < scale < math.inf:
        return None
    of, *levels = [None if value is None else call.lowering.env.get(value) for value in maker.inputs]
    wanted = (scale, 0.0)[: len(levels)]
    if not isinstance(of, Value) or not all(map(_is, levels, wanted)):
        return None
    return Quantized(of, scale, codes)


def _is(operand: object, number: float) -> bool:
    return isinstance(operand, np.ndarray) and bool((operand == number).all())


def _scale(call: Call) -> Array | Value:
    return _spread(call, call.array(1, "scale") if call.is_constant(1) else call.whole(1))


def _zero_point(call: Call) -> Array | Value | None:
    """None where it is 0."""
    if not call.has(2):
        return None
    if not call.is_constant(2):
        return _spread(call, call.whole(2))
    zero = call.array(2, "zero_point").astype(np.float32)
    return _spread(call, zero) if zero.any() else None


def _spread(call: Call, given: Array | Value) -> Array | Value:
    """Scales or zero points with the rank of operand 0: one, or one for each place along the axis, or block of them."""
    shape, block = call.shape(0), call.attributes.get_int("block_size", 0)
    if math.prod(given.shape) == 1:
        return _in_shape(given, (1,) * len(shape))
    axis = call.axis(1)
    if not block:
        return _in_shape(given, tuple(shape[axis] if at == axis else 1 for at in range(len(shape))))
    if isinstance(given, Value):
        raise Refusal("scales of blocks that are computed are not written")
    return np.repeat(given, block, axis)[(slice(None),) * axis + (slice(shape[axis]),)]


def _in_shape(given: Array | Value, shape: Shape) -> Array | Value:
    return replace(given, shape=shape) if isinstance(given, Value) else given.reshape(shape)


def _with(call: Call, op: int, value: Value, numbers: Array | Value) -> Value:
    """A BinaryOp on ``value`` and ``numbers`` of its rank, as large."""
    if isinstance(numbers, Value):
        return _as(value, binary(call, op, *aligned(call, [value, numbers]))[0])
    if numbers.size == 1:
        return _as(value, with_number(call, op, value, float(numbers.reshape(()))))
    if numbers.shape[0] != 1:
        value = call.with_rows(value, 1)
    memory = call.lowering.memory(numbers, plain_dims(numbers.shape))
    return _as(value, binary(call, op, value, Value(numbers.shape, numbers.dtype, memory))[0])


OPS: Mapping[str, Op] = {
    "DequantizeLinear": Op(dequantize_linear, INTEGERS | _CONSTANT),
    "QuantizeLinear": Op(quantize_linear, FLOATS | {"int32"}),
}
