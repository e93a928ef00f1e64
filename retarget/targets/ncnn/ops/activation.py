"""Activation functions, element by element and along an axis."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.ncnn.call import NUMBERS, Call, Op
from retarget.targets.ncnn.ops.axes import around
from retarget.targets.ncnn.ops.elementwise import (
    ABS,
    ADD,
    EXP,
    MAX,
    MIN,
    MUL,
    SUB,
    binary,
    by_number,
    function,
    joined,
    layer,
    mapped,
    number_of,
    raised,
)
from retarget.targets.ncnn.ops.normalization import outermost
from retarget.targets.ncnn.ops.reduction import LARGEST, SUM, first_of, reduced
from retarget.targets.ncnn.program import Blob, Weight
from retarget.targets.ncnn.values import Refusal, Result, Value

FIXED = 1
"""Key of Softmax: its axis is counted as documented."""


def relu(call: Call) -> Result:
    value = call.value(0)
    return call.made(mapped(call, "ReLU", call.blob(value)), value.shape, largest=call.largest(0), picks=True)


def leaky_relu(call: Call) -> Result:
    value = call.value(0)
    return call.made(mapped(call, "ReLU", call.blob(value), {0: call.attributes.get_float("alpha", 0.01)}), value.shape)


def p_relu(call: Call) -> Result:
    """By a layer where the slope is one number, or one for each channel; else ``max(x, 0) + slope * min(x, 0)``."""
    number = number_of(call, 1)
    if number is not None:
        value = call.value(0)
        return call.made(mapped(call, "ReLU", call.blob(value), {0: number}), value.shape)
    if call.is_constant(1) and call.rank(0) > 1:
        slope, channels = call.array(1, "the slope"), call.shape(0)[1]
        shape = (channels, *(1,) * (call.rank(0) - 2))
        if slope.shape in (shape, (1, *shape)):
            value = call.spread(0)
            blob = outermost(call, value)
            made = call.add("PReLU", (blob,), blob.dims, {0: channels}, [Weight(slope, tagged=False)])
            return call.made(made, value.shape)
    value, slopes = call.aligned(0, 1)
    blob = call.blob(value)
    below = by_number(call, MIN, blob, 0.0)
    negative, shape = binary(call, MUL, Value(value.shape, value.dtype, below, value.rows), slopes)
    above = Value(value.shape, value.dtype, mapped(call, "ReLU", blob), value.rows)
    return call.made(*binary(call, ADD, above, Value(shape, value.dtype, negative, negative.rows)))


def elu(call: Call) -> Result:
    value = call.value(0)
    return call.made(mapped(call, "ELU", call.blob(value), {0: call.attributes.get_float("alpha", 1.0)}), value.shape)


def selu(call: Call) -> Result:
    value = call.value(0)
    alpha = call.attributes.get_float("alpha", 1.67326319217681884765625)
    gamma = call.attributes.get_float("gamma", 1.05070102214813232421875)
    return call.made(mapped(call, "SELU", call.blob(value), {0: alpha, 1: gamma}), value.shape)


def celu(call: Call) -> Result:
    value, alpha = call.value(0), call.attributes.get_float("alpha", 1.0)
    if alpha <= 0.0:
        raise Refusal(f"alpha={alpha:g}: of positive ones alone the parts of Celu meet at 0")
    return call.made(mapped(call, "CELU", call.blob(value), {0: alpha}), value.shape)


def gelu(call: Call) -> Result:
    value = call.value(0)
    approximate = call.attributes.get_string("approximate", "none") == "tanh"
    return call.made(mapped(call, "GELU", call.blob(value), {0: int(approximate)}), value.shape)


def hard_sigmoid(call: Call) -> Result:
    value = call.value(0)
    alpha, beta = call.attributes.get_float("alpha", 0.2), call.attributes.get_float("beta", 0.5)
    return call.made(clipped_line(call, call.blob(value), alpha, beta), value.shape)


def clipped_line(call: Call, blob: Blob, alpha: float, beta: float) -> Blob:
    """``min(max(alpha * x + beta, 0), 1)``; HardSigmoid divides by ``alpha``, and holds for those above 0."""
    if alpha > 0.0:
        return mapped(call, "HardSigmoid", blob, {0: alpha, 1: beta})
    line = by_number(call, ADD, by_number(call, MUL, blob, alpha), beta)
    return mapped(call, "Clip", line, {0: 0.0, 1: 1.0})


def softsign(call: Call) -> Result:
    value = call.value(0)
    blob = call.blob(value)
    inverse = raised(call, function(call, ABS, blob), -1.0, shift=1.0)
    return call.made(joined(call, MUL, blob, inverse), value.shape)


def thresholded_relu(call: Call) -> Result:
    """Whether it is above the threshold, times what is at least the threshold: 0 times infinity is never asked for."""
    value, alpha = call.value(0), call.attributes.get_float("alpha", 1.0)
    blob = call.blob(value)
    passes = mapped(call, "Threshold", blob, {0: alpha})
    return call.made(joined(call, MUL, by_number(call, MAX, blob, alpha), passes), value.shape)


def shrink(call: Call) -> Result:
    value = call.value(0)
    bias, bound = call.attributes.get_float("bias", 0.0), call.attributes.get_float("lambd", 0.5)
    return call.made(mapped(call, "Shrink", call.blob(value), {0: bias, 1: bound}), value.shape)


# ---- along an axis


def softmax(call: Call) -> Result:
    value, axis = _along_axis(call)
    blob, place = around(call, value, axis)
    return call.made(call.add("Softmax", (blob,), blob.dims, {0: place, FIXED: 1}), value.shape)


def log_softmax(call: Call) -> Result:
    """``z - log(sum(exp(z)))`` of ``z = x - max(x)``."""
    value, axis = _along_axis(call)
    blob, place = around(call, value, axis)
    lowered = joined(call, SUB, blob, reduced(call, LARGEST, blob, [place]))
    total = reduced(call, SUM, function(call, EXP, lowered), [place])
    return call.made(joined(call, SUB, lowered, mapped(call, "Log", total)), value.shape)


def hardmax(call: Call) -> Result:
    """One where the first of the largest elements along the axis is, zero elsewhere."""
    value, axis = _along_axis(call)
    blob, place = around(call, value, axis)
    return call.made(first_of(call, blob, place), value.shape)


def _along_axis(call: Call) -> tuple[Value, int]:
    """Operand 0, whose axis that is meant is whole in its dims, and the axis."""
    if not call.rank(0):
        raise Refusal("its operand has no axes")
    axis = call.axis(-1)
    return call.value(0) if axis else call.whole(0), axis


OPS: Mapping[str, Op] = {
    "Celu": Op(celu),
    "Elu": Op(elu),
    "Gelu": Op(gelu),
    "HardSigmoid": Op(hard_sigmoid),
    "HardSwish": Op(layer("HardSwish", {0: 1 / 6, 1: 0.5})),
    "Hardmax": Op(hardmax),
    "LeakyRelu": Op(leaky_relu),
    "LogSoftmax": Op(log_softmax),
    "Mish": Op(layer("Mish")),
    "PRelu": Op(p_relu),
    "Relu": Op(relu, NUMBERS),
    "Selu": Op(selu),
    "Shrink": Op(shrink),
    "Sigmoid": Op(layer("Sigmoid")),
    "Softmax": Op(softmax),
    "Softplus": Op(layer("BNLL")),
    "Softsign": Op(softsign),
    "Tanh": Op(layer("TanH")),
    "ThresholdedRelu": Op(thresholded_relu),
}
