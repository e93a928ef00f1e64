"""Arithmetic, bounds, comparisons, logic, bits and casts, element by element.

MIL's integers have 32 bits. Where an operand is NaN, `maximum` and `minimum` are documented as ``x > y ? x : y`` and
``x > y ? y : x``, and so is what is made of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce

import numpy as np
import onnx_ir as ir

from retarget import graph
from retarget.targets.coreml.call import ANY, FLOATS, NUMBERS, Call, Op
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.values import MOST_AXES, NARROW, TYPES, WIDE, Refusal, Result, dtype_of

BOOL = frozenset({"bool"})
INTEGERS = frozenset({"int32"})

MIL_NAMES = {"float32": "fp32", "float16": "fp16"}
"""What `cast` calls types, where that is not numpy's name."""

_SIGN = -(2**31)
"""The int32 of the highest bit alone."""

_BELOW = float(np.nextafter(np.float32(2**31), np.float32(0)))
"""The largest float32 that is an int32."""


def unary(name: str) -> Callable[[Call], Result]:
    """An operator that MIL has under ``name``, with the one operand ``x``."""

    def lower(call: Call) -> Var:
        return getattr(call.mil, name)(x=call.var(0))

    return lower


def binary(name: str) -> Callable[[Call], Result]:
    """An operator that MIL has under ``name``, with the operands ``x`` and ``y``."""

    def lower(call: Call) -> Var:
        return getattr(call.mil, name)(x=call.var(0), y=call.var(1))

    return lower


def folded(name: str) -> Callable[[Call], Var]:
    """An operator of any number of operands, which MIL has under ``name`` for two."""

    def lower(call: Call) -> Var:
        build = getattr(call.mil, name)
        return reduce(lambda x, y: build(x=x, y=y), (call.var(index) for index in range(call.count)))

    return lower


# ---- arithmetic


def div(call: Call) -> Var:
    """Of integers: towards zero."""
    if call.dtype(0) == np.int32:
        return quotient(call, call.var(0), call.var(1))
    return call.mil.real_div(x=call.var(0), y=call.var(1))


def quotient(call: Call, x: Var, y: Var | int) -> Var:
    """Of integers, towards zero; also where `floor_div` should do so by itself."""
    below, rest = _floored(call, x, y)
    return call.mil.add(x=below, y=call.mil.cast(x=_has_other_sign(call, rest, x), dtype="int32"))


def mod(call: Call) -> Var:
    """``fmod=0``: the sign of the divisor, of integers. ``fmod=1``: the sign of the dividend, as C has it."""
    x, y, truncates = call.var(0), call.var(1), call.attributes.get_int("fmod", 0) == 1
    if call.dtype(0) != np.int32:
        if not truncates:
            raise Refusal("fmod=0: ONNX has it for integers only")
        rest = call.mil.mod(x=call.mil.abs(x=x), y=call.mil.abs(x=y))
        return call.mil.mul(x=call.mil.sign(x=x), y=rest)
    _, rest = _floored(call, x, y)
    # One y more, or less, where the rest has not the sign that it should have.
    is_off = call.mil.cast(x=_has_other_sign(call, rest, x if truncates else y), dtype="int32")
    step = call.mil.mul(x=is_off, y=y)
    return call.mil.sub(x=rest, y=step) if truncates else call.mil.add(x=rest, y=step)


def _floored(call: Call, x: Var, y: Var | int) -> tuple[Var, Var]:
    """The quotient of integers, and what is left."""
    below = call.mil.floor_div(x=x, y=y)
    return below, call.mil.sub(x=x, y=call.mil.mul(x=below, y=y))


def _has_other_sign(call: Call, rest: Var, than: Var) -> Var:
    """Whether ``rest`` is not zero, and negative where ``than`` is not, or the other way round."""
    differ = call.mil.logical_xor(x=call.mil.less(x=rest, y=0), y=call.mil.less(x=than, y=0))
    return call.mil.logical_and(x=call.mil.not_equal(x=rest, y=0), y=differ)


def pow_(call: Call) -> Result:
    """Common exponents by what is exact. Of integers: wrapped around; of negative exponents, what is left of the
    fraction."""
    kind = call.dtype(0)
    if call.is_constant(1) and not isinstance(call.operand(0), np.ndarray):
        exponent = call.array(1, "the exponent")
        number = float(exponent.flat[0]) if exponent.size == 1 else math.nan
        if number in _POWERS and exponent.ndim <= call.rank(0) and (kind != np.int32 or number > 0):
            return _POWERS[number](call, call.var(0))
    if kind == np.int32:
        return _integer_power(call)
    exponents = call.var(1)
    if dtype_of(exponents) != kind:
        exponents = call.mil.cast(x=exponents, dtype=MIL_NAMES[kind.name])
    return call.mil.pow(x=_base(call, exponents), y=exponents)


def _base(call: Call, exponents: Var) -> Var:
    """What is raised. No constant 2: beside one, though it is the base, the runtime squares the other operand."""
    if not call.is_constant(0) or not (call.array(0, "the base") == 2).all():
        return call.var(0)
    # Of no exponent, be it infinite, more than nothing is left.
    zeros = call.mil.cast(x=call.mil.less(x=exponents, y=exponents), dtype=MIL_NAMES.get(call.dtype(0).name, "int32"))
    return call.mil.add(x=zeros, y=call.var(0))


def _integer_power(call: Call) -> Var:
    if call.dtype(1) != np.int32:
        if not call.is_constant(1):
            raise Refusal("integers to the power of computed floats are rounded as floats are")
        exponent = _numbers(call)
        if (exponent < 0).any() or (exponent != np.trunc(exponent)).any():
            raise Refusal("integers to the power of fractions or negative floats are rounded as floats are")
        return call.mil.pow(x=call.var(0), y=exponent.astype(np.int64))
    x, y = call.var(0), call.var(1)
    if call.is_constant(1) and (_numbers(call) >= 0).all():
        return call.mil.pow(x=x, y=y)
    x = _base(call, y)
    # Of 1 and -1 the sign of the exponent does not matter; of all others nothing is left.
    power = call.mil.pow(x=x, y=call.mil.abs(x=y))
    stays = call.mil.logical_or(
        x=call.mil.greater_equal(x=y, y=0), y=call.mil.equal(x=call.mil.abs(x=x), y=np.int32(1))
    )
    return call.mil.mul(x=power, y=call.mil.cast(x=stays, dtype="int32"))


def _numbers(call: Call) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The constant exponents."""
    return call.array(1, "the exponent").astype(np.float64)


_POWERS: Mapping[float, Callable[[Call, Var], Var]] = {
    1.0: lambda _, x: x,
    2.0: lambda call, x: call.mil.mul(x=x, y=x),
    3.0: lambda call, x: call.mil.mul(x=call.mil.mul(x=x, y=x), y=x),
    0.5: lambda call, x: call.mil.sqrt(x=x),
    -0.5: lambda call, x: call.mil.rsqrt(x=x, epsilon=0.0),
    -1.0: lambda call, x: call.mil.real_div(x=1.0, y=x),
    -2.0: lambda call, x: call.mil.real_div(x=1.0, y=call.mil.mul(x=x, y=x)),
}


def mean(call: Call) -> Var:
    """The mean of operands, not of elements."""
    total = folded("add")(call)
    return total if call.count == 1 else call.mil.real_div(x=total, y=float(call.count))


def neg(call: Call) -> Var:
    return call.mil.mul(x=call.var(0), y=-1 if call.dtype(0) == np.int32 else -1.0)


def log(call: Call) -> Var:
    return call.mil.log(x=call.var(0), epsilon=0.0)


def reciprocal(call: Call) -> Var:
    """By a division: `inverse` adds its epsilon, be it 0, and forgets the sign of a negative zero."""
    return call.mil.real_div(x=1.0, y=call.var(0))


def identity(call: Call) -> Result:
    return call.operand(0)


def dropout(call: Call) -> tuple[Result, Result]:
    """Nothing, when it does not train. The mask is then true everywhere."""
    trains = call.has(2) and bool(call.array(2, "training_mode").item())
    if trains and (not call.has(1) or float(call.array(1, "the ratio").item()) != 0.0):
        raise Refusal("training_mode=1: what it drops is random")
    if len(call.outputs) < 2 or not call.outputs[1]:
        return call.operand(0), None
    x = call.var(0)
    # Nothing is less than itself, whatever its size.
    return x, call.mil.logical_not(x=call.mil.less(x=x, y=x))


# ---- bounds


def clip(call: Call) -> Var:
    """Bounds may be absent, and computed. Where the lower one is above the other, the other holds."""
    x = call.var(0)
    if call.dtype(0) != np.int32 and all(call.has(index) and call.is_constant(index) for index in (1, 2)):
        low, high = (float(call.array(index, "the bound").item()) for index in (1, 2))
        if low < high:
            return call.mil.clip(x=x, alpha=low, beta=high)
    for index, name in ((1, "maximum"), (2, "minimum")):
        if call.has(index):
            x = getattr(call.mil, name)(x=x, y=_bound(call, index))
    return x


def _bound(call: Call, index: int) -> Var | np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Of integers: none beyond what int32 holds, as no value is."""
    if call.dtype(0) != np.int32 or not call.is_constant(index):
        return call.var(index)
    limits = np.iinfo(np.int32)
    return np.clip(call.array(index, "the bound").astype(np.int64), limits.min, limits.max)


# ---- comparisons and logic


def equal(call: Call) -> Var:
    if call.dtype(0) == np.bool_:
        return call.mil.logical_not(x=call.mil.logical_xor(x=call.var(0), y=call.var(1)))
    return call.mil.equal(x=call.var(0), y=call.var(1))


def where(call: Call) -> Var:
    """`select` takes its shape from the two that it chooses from, and not from the condition."""
    condition, x, y = (call.var(index) for index in range(3))
    if dtype_of(x) == np.bool_:
        chosen = call.mil.logical_and(x=condition, y=x)
        other = call.mil.logical_and(x=call.mil.logical_not(x=condition), y=y)
        return call.mil.logical_or(x=chosen, y=other)
    if not _covers(call):
        kind = dtype_of(x)
        zeros = call.mil.mul(
            x=call.mil.cast(x=condition, dtype=MIL_NAMES.get(kind.name, kind.name)), y=np.zeros((), kind)
        )
        x = call.mil.add(x=x, y=zeros)
    return call.mil.select(cond=condition, a=x, b=y)


def _covers(call: Call) -> bool:
    """Whether, along each axis, one of the two to choose from is as long as the condition."""
    condition, *shapes = (call.shape(index)[::-1] for index in range(3))
    return all(
        dim == 1 or any(axis < len(shape) and shape[axis] == dim for shape in shapes)
        for axis, dim in enumerate(condition)
    ) and len(condition) <= max(len(shape) for shape in shapes)


def is_nan(call: Call) -> Var:
    x = call.var(0)
    return call.mil.not_equal(x=x, y=x)


def is_inf(call: Call) -> Var:
    x = call.var(0)
    negative = call.attributes.get_int("detect_negative", 1)
    positive = call.attributes.get_int("detect_positive", 1)
    if negative and positive:
        return call.mil.equal(x=call.mil.abs(x=x), y=math.inf)
    if negative or positive:
        return call.mil.equal(x=x, y=math.inf if positive else -math.inf)
    return call.mil.less(x=x, y=x)


# ---- casts


def cast(call: Call) -> Result:
    """Floats are cut towards zero, integers wrap around in narrower types."""
    return _cast_to(call, graph.dtype_name(ir.DataType(call.attributes.get_int("to", 0))))


def cast_like(call: Call) -> Result:
    value = call.node.inputs[1]
    if value is None or value.dtype is None:
        raise Refusal("the type of its second operand is not known")
    return _cast_to(call, graph.dtype_name(value.dtype))


def _cast_to(call: Call, name: str) -> Result:
    source = call.node.inputs[0]
    own = graph.dtype_name(source.dtype) if source is not None and source.dtype is not None else ""
    to = NARROW.get(name) or WIDE.get(name) or name
    if to not in TYPES or name == "bfloat16":
        raise Refusal(f"to={name}: Core ML does not compute with it")
    if name in ("uint32", "uint64") and own.startswith("int"):
        raise Refusal(f"to={name}: negative numbers wrap around to what the int32 of Core ML does not hold")
    x = call.var(0)
    found = dtype_of(x).name
    if to == "bool":
        return x if found == "bool" else call.mil.not_equal(x=x, y=0 if found == "int32" else 0.0)
    if found.startswith("float") and to == "int32":
        # What becomes of others, infinities among them, differs between processors; models compute and discard them.
        most = float(np.finfo(found).max)
        x = call.mil.clip(x=x, alpha=max(-most, -(2.0**31)), beta=min(most, _BELOW))
    if found != to:
        x = call.mil.cast(x=x, dtype=MIL_NAMES.get(to, to))
    return _wrapped(call, x, name) if name in WIDE and _reaches_beyond(own, name) else x


def _reaches_beyond(own: str, name: str) -> bool:
    """Whether integers of type ``own`` may not fit into type ``name``. What becomes of floats then is not defined."""
    if "int" not in own:
        return False
    ours, theirs = np.iinfo(own), np.iinfo(name)
    return int(ours.min) < int(theirs.min) or int(ours.max) > int(theirs.max)


def _wrapped(call: Call, x: Var, name: str) -> Var:
    """``x`` as the integer type ``name`` of fewer bits holds it."""
    limits = np.iinfo(name)
    low, count = int(limits.min), 2**limits.bits
    shifted = call.mil.sub(x=x, y=low) if low else x
    _, rest = _floored(call, shifted, count)
    positive = call.mil.select(cond=call.mil.less(x=rest, y=0), a=call.mil.add(x=rest, y=count), b=rest)
    return call.mil.add(x=positive, y=low) if low else positive


# ---- bits


def bitwise_not(call: Call) -> Var:
    """``-1 - x``; of unsigned integers, the largest of their type less ``x``."""
    kind = call.operand(0).dtype if not isinstance(call.operand(0), Var) else dtype_of(call.var(0))
    source = call.node.inputs[0]
    name = graph.dtype_name(source.dtype) if source is not None and source.dtype is not None else kind.name
    if name in ("uint32", "uint64"):
        raise Refusal(f"{name}: the int32 of Core ML does not hold its largest numbers")
    return call.mil.sub(x=np.iinfo(name).max if name.startswith("u") else -1, y=call.var(0))


def bit_shift(call: Call) -> Var:
    """Of unsigned integers, as far as a constant says."""
    x, source = call.var(0), call.node.inputs[0]
    bits = np.iinfo(graph.dtype_name(source.dtype)).bits if source is not None else 32
    shifts = call.array(1, "how far it shifts").astype(np.int64)
    if (shifts >= min(bits, 31)).any():
        raise Refusal("it shifts further than there are bits that Core ML's int32 has for it")
    powers = np.left_shift(1, shifts)
    if call.attributes.get_string("direction", "") == "RIGHT":
        return call.mil.floor_div(x=x, y=powers)
    if bits > 16:
        raise Refusal("direction=LEFT: what is shifted out of its bits is not in Core ML's int32")
    return _wrapped(call, call.mil.mul(x=x, y=powers), f"uint{bits}")


def bitwise(combined: Callable[[Call, Var, Var], Var]) -> Callable[[Call], Var]:
    """What ``combined`` makes of each bit of both operands, as 0 and 1: there is no such operation.

    The bits are laid out along an axis behind all others, and summed up again.
    """

    def lower(call: Call) -> Var:
        both = combined(call, _bits(call, call.var(0)), _bits(call, call.var(1)))
        # The sum wraps around to the negative numbers with the highest bit.
        weights = (np.int64(1) << np.arange(32)).astype(np.int32)
        return call.mil.reduce_sum(x=call.mil.mul(x=both, y=weights), axes=[-1], keep_dims=False)

    return lower


def _bits(call: Call, x: Var) -> Var:
    """The 32 bits of each element along a last axis, the lowest first."""
    if x.rank == MOST_AXES:
        raise Refusal(f"operands of {MOST_AXES} axes leave none for the bits")
    alone = call.mil.expand_dims(x=x, axes=[-1])
    is_negative = call.mil.cast(x=call.mil.less(x=alone, y=0), dtype="int32")
    # Without the sign bit nothing is negative, and it is all the same which way a quotient is rounded.
    size = call.mil.sub(x=alone, y=call.mil.mul(x=is_negative, y=_SIGN))
    quotients = call.mil.floor_div(x=size, y=(1 << np.arange(31)).astype(np.int32))
    halves = call.mil.floor_div(x=quotients, y=2)
    bits = call.mil.sub(x=quotients, y=call.mil.mul(x=halves, y=2))
    return call.mil.concat(values=[bits, is_negative], axis=-1)


OPS: Mapping[str, Op] = {
    "Abs": Op(unary("abs"), NUMBERS),
    "And": Op(binary("logical_and"), BOOL),
    "BitShift": Op(bit_shift, INTEGERS, small=True),
    "BitwiseAnd": Op(bitwise(lambda call, x, y: call.mil.mul(x=x, y=y)), INTEGERS, small=True),
    "BitwiseNot": Op(bitwise_not, INTEGERS, small=True),
    "BitwiseOr": Op(bitwise(lambda call, x, y: call.mil.maximum(x=x, y=y)), INTEGERS, small=True),
    "BitwiseXor": Op(bitwise(lambda call, x, y: call.mil.abs(x=call.mil.sub(x=x, y=y))), INTEGERS, small=True),
    "Cast": Op(cast, ANY, small=True),
    "CastLike": Op(cast_like, ANY, small=True),
    "Ceil": Op(unary("ceil"), FLOATS),
    "Clip": Op(clip, NUMBERS, small=True),
    "Div": Op(div, NUMBERS),
    "Dropout": Op(dropout, FLOATS),
    "Equal": Op(equal, ANY, small=True),
    "Exp": Op(unary("exp"), FLOATS),
    "Floor": Op(unary("floor"), FLOATS),
    "Greater": Op(binary("greater"), NUMBERS, small=True),
    "GreaterOrEqual": Op(binary("greater_equal"), NUMBERS, small=True),
    "Identity": Op(identity, ANY, moves=True),
    "IsInf": Op(is_inf, FLOATS),
    "IsNaN": Op(is_nan, FLOATS),
    "Less": Op(binary("less"), NUMBERS, small=True),
    "LessOrEqual": Op(binary("less_equal"), NUMBERS, small=True),
    "Log": Op(log, FLOATS),
    "Max": Op(folded("maximum"), NUMBERS, small=True),
    "Mean": Op(mean, FLOATS),
    "Min": Op(folded("minimum"), NUMBERS, small=True),
    "Mod": Op(mod, NUMBERS, small=True),
    "Mul": Op(binary("mul"), NUMBERS),
    "Neg": Op(neg, NUMBERS),
    "Not": Op(unary("logical_not"), BOOL),
    "Or": Op(binary("logical_or"), BOOL),
    "Pow": Op(pow_, NUMBERS),
    "Reciprocal": Op(reciprocal, FLOATS),
    "Round": Op(unary("round"), FLOATS),
    "Sign": Op(unary("sign"), NUMBERS, small=True),
    "Sqrt": Op(unary("sqrt"), FLOATS),
    "Sum": Op(folded("add"), FLOATS),
    "Where": Op(where, BOOL),
    "Xor": Op(binary("logical_xor"), BOOL),
}
