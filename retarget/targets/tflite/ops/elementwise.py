"""Arithmetic, bounds, comparisons, logic, bits and casts, element by element.

LiteRT has arithmetic of float32 and int32; narrower integers are computed as int32 and cut back, which wraps around as
ONNX has it. Where an operand is NaN, MAXIMUM, MINIMUM and what is made of them return either operand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import numpy as np
import onnx_ir as ir

from retarget import graph
from retarget.targets.tflite.call import FUSING, Call, Int8, Op
from retarget.targets.tflite.fusing import activation_of
from retarget.targets.tflite.layout import Way
from retarget.targets.tflite.program import Codes, Constant, Options
from retarget.targets.tflite.values import NARROW, TYPES, Operand, Refusal, Value, broadcast

_NUMBERS = frozenset({"float32", "int32"})
_INTEGERS = frozenset({"int32", "int16", "int8", "uint8"})
_ALL_NUMBERS = _NUMBERS | _INTEGERS
_ANY = _ALL_NUMBERS | {"bool"}
_BOOL = frozenset({"bool"})

BITS = 32
"""Of an int32."""


# ---- arithmetic


def add(call: Call) -> Operand:
    return _arithmetic(call, "ADD")


def sub(call: Call) -> Operand:
    return _arithmetic(call, "SUB")


def mul(call: Call) -> Operand:
    return _arithmetic(call, "MUL")


def div(call: Call) -> Operand:
    """Of integers: towards zero, as the kernel does. It fails when it divides by zero."""
    return _arithmetic(call, "DIV")


def _arithmetic(call: Call, code: str) -> Operand:
    options = Options(FUSING[code], {"fusedActivationFunction": call.activation})

    def write(left: Operand, right: Operand) -> Value:
        shape = broadcast(left.shape, right.shape)
        return call.emit(code, [left, right], shape, options=options)

    return _as_int32(call, write)


def sum_(call: Call) -> Operand:
    return reduce(lambda left, right: call.binary("ADD", left, right), _operands(call))


def mean(call: Call) -> Operand:
    """The mean of operands, not of elements."""
    count = len(call.operands)
    return sum_(call) if count == 1 else call.binary("DIV", sum_(call), float(count))


def max_(call: Call) -> Operand:
    return _extreme(call, "MAXIMUM")


def min_(call: Call) -> Operand:
    return _extreme(call, "MINIMUM")


def _extreme(call: Call, code: str) -> Operand:
    return reduce(lambda left, right: call.binary(code, left, right), _operands(call))


def _operands(call: Call) -> list[Operand]:
    return [call.operand(index) for index in range(len(call.operands))]


def pow_(call: Call) -> Operand:
    """Common exponents by what is faster than POW and exact; POW itself takes two of one type."""
    base, exponent = call.operand(0), call.operand(1)
    if isinstance(base, Value) and isinstance(exponent, Constant) and exponent.size == 1:
        number = float(exponent.array().item())
        shape = broadcast(base.shape, exponent.shape)
        if shape == base.shape and (number in _WHOLE_POWERS or (base.dtype == np.float32 and number in _POWERS)):
            return (_WHOLE_POWERS.get(number) or _POWERS[number])(call, base)
        if base.dtype == np.int32 and number.is_integer() and number >= 0:
            exponent = exponent.cast("int32")
    left, right = _type(base), _type(exponent)
    if left == right == "int32":
        # It fails where an exponent is negative.
        return call.binary("POW", base, exponent)
    power = call.binary("POW", _cast(call, base, "float32"), _cast(call, exponent, "float32"))
    return call.cast(power, left)


_WHOLE_POWERS: Mapping[float, Callable[[Call, Value], Value]] = {
    1.0: lambda _, x: x,
    2.0: lambda call, x: call.binary("MUL", x, x),
    3.0: lambda call, x: call.binary("MUL", call.binary("MUL", x, x), x),
}
_POWERS: Mapping[float, Callable[[Call, Value], Value]] = {
    0.5: lambda call, x: call.unary("SQRT", x),
    -0.5: lambda call, x: call.binary("DIV", 1.0, call.unary("SQRT", x)),
    -1.0: lambda call, x: call.binary("DIV", 1.0, x),
    -2.0: lambda call, x: call.binary("DIV", 1.0, call.binary("MUL", x, x)),
}


def mod(call: Call) -> Operand:
    """``fmod=0``: the sign of the divisor, of integers. ``fmod=1``: the sign of the dividend, as C has it."""
    truncates = call.attributes.get_int("fmod", 0) == 1
    if _type(call.operand(0)) == "float32":
        if not truncates:
            raise Refusal("fmod=0: ONNX has it for integers only")
        left, right = call.operand(0), call.operand(1)
        rest = call.binary("FLOOR_MOD", call.unary("ABS", left), call.unary("ABS", right))
        return call.binary("MUL", call.unary("SIGN", left), rest)

    def write(left: Operand, right: Operand) -> Value:
        if not truncates:
            return call.binary("FLOOR_MOD", left, right)
        return call.binary("SUB", left, call.binary("MUL", call.binary("DIV", left, right), right))

    return _as_int32(call, write)


def neg(call: Call) -> Operand:
    return _one_as_int32(call, lambda x: call.unary("NEG", x))


def abs_(call: Call) -> Operand:
    return _one_as_int32(call, lambda x: call.unary("ABS", x))


def sign(call: Call) -> Operand:
    return _one_as_int32(call, lambda x: call.unary("SIGN", x))


def reciprocal(call: Call) -> Operand:
    return call.binary("DIV", 1.0, call.operand(0))


def unary(code: str) -> Callable[[Call], Operand]:
    """The op function of an ONNX operator that is one of TFLite's, of one operand."""
    return lambda call: call.unary(code, call.operand(0))


def identity(call: Call) -> Operand:
    return call.operand(0)


def dropout(call: Call) -> list[Operand | None]:
    """Nothing, when it does not train. The mask is then true everywhere."""
    trains = call.has(2) and bool(call.array(2, "training_mode").item())
    if trains and (not call.has(1) or float(call.array(1, "the ratio").item()) != 0.0):
        raise Refusal("training_mode=1: what it drops is random")
    data = call.operand(0)
    wanted = len(call.node.outputs) > 1 and (call.node.outputs[1].uses() or call.node.outputs[1].is_graph_output())
    # Nothing is less than itself, whatever its size when the model is loaded.
    mask = call.unary("LOGICAL_NOT", call.binary("LESS", data, data, np.bool_)) if wanted else None
    return [data, mask]


# ---- bounds


def clip(call: Call) -> Operand:
    """Bounds may be absent, and computed. Where the lower one is above the other, the other holds."""
    data = call.operand(0)
    activation = activation_of(call.node) if data.dtype == np.float32 else None
    if activation is not None:
        return call.unary(activation, data)
    for index, code in ((1, "MAXIMUM"), (2, "MINIMUM")):
        if call.has(index):
            data = call.emit(code, [data, call.operand(index)], data.shape)
    return data


# ---- comparisons and logic


def comparison(code: str) -> Callable[[Call], Operand]:
    """The op function of a comparison."""

    def compare(call: Call) -> Operand:
        left, right = call.operand(0), call.operand(1)
        if _type(left) in _INTEGERS:
            left, right = _cast(call, left, "int32"), _cast(call, right, "int32")
        return call.binary(code, left, right, np.bool_)

    return compare


def where(call: Call) -> Operand:
    condition, left, right = (call.operand(index) for index in range(3))
    shape = broadcast(condition.shape, left.shape, right.shape)
    return call.emit("SELECT_V2", [condition, left, right], shape, np.dtype(_type(left)))


def is_nan(call: Call) -> Operand:
    data = call.operand(0)
    return call.binary("NOT_EQUAL", data, data, np.bool_)


def is_inf(call: Call) -> Operand:
    data = call.operand(0)
    negative = call.attributes.get_int("detect_negative", 1)
    positive = call.attributes.get_int("detect_positive", 1)
    if negative and positive:
        return call.binary("EQUAL", call.unary("ABS", data), np.inf, np.bool_)
    if negative or positive:
        return call.binary("EQUAL", data, np.inf if positive else -np.inf, np.bool_)
    return call.binary("LESS", data, data, np.bool_)


# ---- casts


def cast(call: Call) -> Operand:
    """Floats are cut towards zero, and held within the range of integers of 8 and 16 bits."""
    to = call.node.attributes.get_int("to", 0)
    return _cast_to(call, graph.dtype_name(ir.DataType(to)))


def cast_like(call: Call) -> Operand:
    return _cast_to(call, call.operand(1).dtype.name)


def _cast_to(call: Call, name: str) -> Operand:
    to = NARROW.get(name, name)
    if to not in TYPES:
        raise Refusal(f"to={name}: TFLite does not compute with it")
    return _cast(call, call.operand(0), to)


# ---- bits


def bitwise_xor(call: Call) -> Operand:
    return call.binary("BITWISE_XOR", call.operand(0), call.operand(1))


def bitwise_not(call: Call) -> Operand:
    data = call.operand(0)
    ones = 255 if data.dtype == np.uint8 else -1
    return call.binary("BITWISE_XOR", data, Constant.of(np.asarray(ones, data.dtype)))


def bitwise_and(call: Call) -> Operand:
    return _bit_by_bit(call, "MUL")


def bitwise_or(call: Call) -> Operand:
    return _bit_by_bit(call, "MAXIMUM")


def _bit_by_bit(call: Call, code: str) -> Operand:
    """There is no builtin: the bits are laid out along an axis behind all others, and summed up again."""

    def bits(operand: Operand) -> Value:
        value = call.lowering.computed(operand) if isinstance(operand, Constant) else operand
        alone = call.reshape(value, (*value.shape, 1))
        shifts = Constant.of(np.arange(BITS, dtype=np.int32))
        return call.binary("FLOOR_MOD", call.binary("RIGHT_SHIFT", alone, shifts), Constant.of(2, "int32"))

    def write(left: Operand, right: Operand) -> Value:
        both = call.binary(code, bits(left), bits(right))
        # The sum wraps around to the negative numbers with the highest bit.
        weights = Constant.of((np.int64(1) << np.arange(BITS)).astype(np.int32))
        weighed, axis = call.binary("MUL", both, weights), call.ints([len(both.shape) - 1])
        return call.emit("SUM", [weighed, axis], both.shape[:-1], options=Options("ReducerOptions"))

    return _as_int32(call, write)


def bit_shift(call: Call) -> Operand:
    """ONNX shifts unsigned integers. Those of 32 and 64 bits are held in an int32, and so below 2**31."""
    if call.attributes.get_string("direction", "") == "RIGHT":
        return call.binary("RIGHT_SHIFT", call.operand(0), call.operand(1))

    def write(left: Operand, right: Operand) -> Value:
        return call.binary("MUL", left, call.binary("POW", Constant.of(2, "int32"), right))

    return _as_int32(call, write)


# ---- integers of quantized values


def computes(call: Call) -> Int8:
    """``computes``, where each constant stands for integers of one scale."""
    return (
        "computes" if all(codes is not None and not codes.quantization.per_channel for codes in _codes(call)) else "no"
    )


def _moves(call: Call) -> Int8:
    """``moves``, where each constant stands for integers of the operands' own scale."""
    of_values = {each.quantization for each in call.operands if isinstance(each, Value)}
    return "moves" if all(codes is not None and {codes.quantization} == of_values for codes in _codes(call)) else "no"


def _codes(call: Call) -> list[Codes | None]:
    """Of each constant, None where they are not such integers as activations are."""
    found = [each.codes for each in call.operands if isinstance(each, Constant)]
    return [each if each is not None and each.integers.dtype == call.lowering.integers else None for each in found]


def _clips(call: Call) -> Int8:
    """``computes``, where it is an activation function; bounds of other kinds have no integers."""
    return "computes" if activation_of(call.node) is not None else "no"


# ---- types


def _type(operand: Operand) -> str:
    """Its type in the file."""
    return NARROW.get(operand.dtype.name, operand.dtype.name)


def _cast(call: Call, operand: Operand, to: str) -> Operand:
    if _type(operand) == to:
        return operand
    return operand.cast(to) if isinstance(operand, Constant) else call.cast(operand, to)


def _as_int32(call: Call, write: Callable[[Operand, Operand], Value]) -> Operand:
    """What ``write`` makes of both operands, narrow integers as int32, in the operands' type."""
    left, right = call.operand(0), call.operand(1)
    own = _type(left)
    if own not in _INTEGERS:
        return write(left, right)
    return call.cast(write(_cast(call, left, "int32"), _cast(call, right, "int32")), own)


def _one_as_int32(call: Call, write: Callable[[Operand], Value]) -> Operand:
    data = call.operand(0)
    own = _type(data)
    return call.cast(write(_cast(call, data, "int32")), own) if own in _INTEGERS else write(data)


OPS: Mapping[str, Op] = {
    "Abs": Op(abs_, Way.EITHER, dtypes=_ALL_NUMBERS, int8="computes"),
    "Add": Op(add, Way.EITHER, dtypes=_ALL_NUMBERS, fuses=True, int8=computes),
    "And": Op(comparison("LOGICAL_AND"), Way.EITHER, dtypes=_BOOL),
    "BitShift": Op(bit_shift, Way.EITHER, dtypes=_INTEGERS),
    # The axis of bits stands behind all others.
    "BitwiseAnd": Op(bitwise_and, Way.FIRST, dtypes=_INTEGERS),
    "BitwiseNot": Op(bitwise_not, Way.EITHER, dtypes=_INTEGERS),
    "BitwiseOr": Op(bitwise_or, Way.FIRST, dtypes=_INTEGERS),
    "BitwiseXor": Op(bitwise_xor, Way.EITHER, dtypes=_INTEGERS),
    "Cast": Op(cast, Way.EITHER, dtypes=_ANY),
    "CastLike": Op(cast_like, Way.EITHER, operands=(0,), dtypes=_ANY),
    "Ceil": Op(unary("CEIL"), Way.EITHER),
    "Clip": Op(clip, Way.EITHER, operands=(0,), dtypes=_ALL_NUMBERS, int8=_clips, int16=False),
    # Int8 DIV is wrong in all of LiteRT's kernels.
    "Div": Op(div, Way.EITHER, dtypes=_ALL_NUMBERS, fuses=True),
    "Dropout": Op(dropout, Way.EITHER, operands=(0,)),
    "Equal": Op(comparison("EQUAL"), Way.EITHER, dtypes=_ANY),
    "Exp": Op(unary("EXP"), Way.EITHER),
    "Floor": Op(unary("FLOOR"), Way.EITHER),
    "Greater": Op(comparison("GREATER"), Way.EITHER, dtypes=_ALL_NUMBERS),
    "GreaterOrEqual": Op(comparison("GREATER_EQUAL"), Way.EITHER, dtypes=_ALL_NUMBERS),
    "Identity": Op(identity, Way.EITHER, dtypes=_ANY),
    "IsInf": Op(is_inf, Way.EITHER),
    "IsNaN": Op(is_nan, Way.EITHER),
    "Less": Op(comparison("LESS"), Way.EITHER, dtypes=_ALL_NUMBERS),
    "LessOrEqual": Op(comparison("LESS_EQUAL"), Way.EITHER, dtypes=_ALL_NUMBERS),
    "Log": Op(unary("LOG"), Way.EITHER),
    # Int8 MAXIMUM and MINIMUM of different scales are wrong in all of LiteRT's kernels.
    "Max": Op(max_, Way.EITHER, dtypes=_ALL_NUMBERS, int8=_moves),
    "Mean": Op(mean, Way.EITHER),
    "Min": Op(min_, Way.EITHER, dtypes=_ALL_NUMBERS, int8=_moves),
    "Mod": Op(mod, Way.EITHER, dtypes=_ALL_NUMBERS),
    "Mul": Op(mul, Way.EITHER, dtypes=_ALL_NUMBERS, fuses=True, int8=computes),
    # Int8 NEG is wrong in all of LiteRT's kernels.
    "Neg": Op(neg, Way.EITHER, dtypes=_ALL_NUMBERS),
    "Not": Op(unary("LOGICAL_NOT"), Way.EITHER, dtypes=_BOOL),
    "Or": Op(comparison("LOGICAL_OR"), Way.EITHER, dtypes=_BOOL),
    "Pow": Op(pow_, Way.EITHER, dtypes=_NUMBERS),
    "Reciprocal": Op(reciprocal, Way.EITHER),
    "Round": Op(unary("ROUND"), Way.EITHER),
    "Sign": Op(sign, Way.EITHER, dtypes=_ALL_NUMBERS),
    "Sqrt": Op(unary("SQRT"), Way.EITHER),
    "Sub": Op(sub, Way.EITHER, dtypes=_ALL_NUMBERS, fuses=True, int8=computes),
    "Sum": Op(sum_, Way.EITHER),
    "Where": Op(where, Way.EITHER, dtypes=_BOOL),
    "Xor": Op(comparison("NOT_EQUAL"), Way.EITHER, dtypes=_BOOL),
}
