"""Types, which are all floats in blobs, and the bits of integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from retarget.targets.ncnn import rows
from retarget.targets.ncnn.call import ANY, INTEGERS, Call, Op
from retarget.targets.ncnn.ops.comparison import equals, opposite
from retarget.targets.ncnn.ops.elementwise import FLOOR, FROM, MUL, TRUNC, binary, by_number, function
from retarget.targets.ncnn.values import WHOLE, Refusal, Result, Value, plain_dims, reach


def cast(call: Call) -> Result:
    """Floats are cut towards zero. What becomes of those that the integer does not hold, ONNX leaves open."""
    return _cast(call, ir.DataType(call.attributes.get_int("to", 0)))


def cast_like(call: Call) -> Result:
    like = call.node.inputs[1]
    if like is None or like.dtype is None:
        raise Refusal("the type of its second operand is not known")
    return _cast(call, like.dtype)


def _cast(call: Call, to: ir.DataType) -> Result:
    name = to.name.lower()
    value, own = call.value(0), call.dtype(0)
    if name == "float":
        name = "float32"
    elif name == "double":
        name = "float64"
    if name not in ANY:
        raise Refusal(f"to={name}: ncnn has no such numbers")
    dtype = to.numpy()
    largest = call.largest(0)
    if name == "bool":
        return _truths(call, value)
    if own == np.bool_ or dtype.kind not in "iu":
        return replace(value, dtype=dtype, blob=call.blob(value), source=None, largest=largest)
    if own.kind in "iu":
        is_wider = own.kind == dtype.kind and own.itemsize <= dtype.itemsize
        if not is_wider and (largest > np.iinfo(name).max or (own.kind == "i" and dtype.kind == "u")):
            raise Refusal(f"from {own.name} to {name}: it may wrap around, and floats do not")
        return replace(value, dtype=dtype)
    made = function(call, TRUNC, call.blob(value))
    return call.made(made, value.shape, largest=reach(dtype), picks=True)


def _truths(call: Call, value: Value) -> Result:
    """Whether it is not 0: also where it is NaN."""
    if value.dtype == np.bool_:
        return value
    return call.made(opposite(call, equals(call, call.blob(value), 0.0)), value.shape)


# ---- bits


def bit_shift(call: Call) -> Result:
    """By a constant: times a power of 2."""
    bits = np.iinfo(call.dtype(0).name).bits
    shifts = call.array(1, "how far it shifts").astype(np.int64)
    right = call.attributes.get_string("direction", "") == "RIGHT"
    if (shifts >= bits).any():
        raise Refusal("it shifts further than there are bits, which ONNX leaves open")
    factors = np.exp2(-shifts if right else shifts).astype(np.float32)
    held = Value(factors.shape, factors.dtype, call.lowering.memory(factors, plain_dims(factors.shape)))
    blob, shape = binary(call, MUL, *rows.aligned(call, [call.value(0), held]))
    largest = call.largest(0) * float(factors.max())
    return call.made(function(call, FLOOR, blob) if right else blob, shape, largest=largest, picks=right)


def bitwise_not(call: Call) -> Result:
    """``-1 - x``; of unsigned integers, the largest of their type less ``x``."""
    value, kind = call.value(0), call.dtype(0)
    most = int(np.iinfo(kind.name).max) if kind.kind == "u" else -1
    if most > WHOLE:
        raise Refusal(f"of {kind.name} its integers are beyond 2^24, up to which float32 holds all")
    largest = min(call.largest(0) + 1, -float(np.iinfo(kind.name).min)) if most < 0 else float(most)
    return call.made(by_number(call, FROM, call.blob(value), float(most)), value.shape, largest=largest, picks=True)


OPS: Mapping[str, Op] = {
    "BitShift": Op(bit_shift, INTEGERS),
    "BitwiseNot": Op(bitwise_not, INTEGERS),
    "Cast": Op(cast, ANY),
    "CastLike": Op(cast_like, ANY),
}
