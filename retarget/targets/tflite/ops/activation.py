"""Activation functions. LiteRT's builtin ones are as accurate as float32 is, GELU of both kinds included (147 dB).

XNNPACK's LOGISTIC is NaN around 1e30 and, on some machines, of infinity: no activation is as large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from retarget.targets.tflite.call import Call, Int8, Op
from retarget.targets.tflite.layout import FIRST_AXES, Layout, Way
from retarget.targets.tflite.ops.elementwise import computes, unary
from retarget.targets.tflite.ops.reduction import MOST_AXES, best_along, kept_way
from retarget.targets.tflite.program import Constant, Options, Quantization
from retarget.targets.tflite.values import Operand, Value


def relu(call: Call) -> Value:
    data = call.operand(0)
    if data.dtype == np.float32:
        return call.unary("RELU", data)
    return call.binary("MAXIMUM", data, Constant.of(0, data.dtype.name))


def leaky_relu(call: Call) -> Value:
    slope = call.attributes.get_float("alpha", 0.01)
    return call.unary("LEAKY_RELU", call.operand(0), Options("LeakyReluOptions", {"alpha": slope}))


def p_relu(call: Call) -> Value:
    data = call.operand(0)
    return call.emit("PRELU", [data, call.operand(1)], data.shape)


def elu(call: Call) -> Value:
    data, alpha = call.operand(0), call.attributes.get_float("alpha", 1.0)
    return call.unary("ELU", data) if alpha == 1.0 else _elu(call, data, alpha, 1.0)


def selu(call: Call) -> Value:
    alpha = call.attributes.get_float("alpha", 1.67326319217681884765625)
    gamma = call.attributes.get_float("gamma", 1.05070102214813232421875)
    return _elu(call, call.operand(0), alpha * gamma, 1.0, gamma)


def celu(call: Call) -> Value:
    alpha = call.attributes.get_float("alpha", 1.0)
    return call.unary("ELU", call.operand(0)) if alpha == 1.0 else _elu(call, call.operand(0), alpha, alpha)


def _elu(call: Call, data: Operand, factor: float, width: float, gain: float = 1.0) -> Value:
    """``gain * x`` where x is positive, ``factor * (exp(x / width) - 1)`` where not."""
    negative: Operand = call.binary("MINIMUM", data, 0.0)
    if width != 1.0:
        negative = call.binary("DIV", negative, width)
    below = call.binary("MUL", call.unary("ELU", negative), factor)
    above = call.unary("RELU", data)
    return call.binary("ADD", above if gain == 1.0 else call.binary("MUL", above, gain), below)


def thresholded_relu(call: Call) -> Value:
    data = call.operand(0)
    passes = call.binary("GREATER", data, call.attributes.get_float("alpha", 1.0), np.bool_)
    return call.emit("SELECT_V2", [passes, data, 0.0], data.shape, np.float32)


def shrink(call: Call) -> Value:
    data = call.operand(0)
    bias, bound = call.attributes.get_float("bias", 0.0), call.attributes.get_float("lambd", 0.5)
    below, above = call.binary("LESS", data, -bound, np.bool_), call.binary("GREATER", data, bound, np.bool_)
    lifted = call.emit("SELECT_V2", [above, call.binary("SUB", data, bias), 0.0], data.shape, np.float32)
    return call.emit("SELECT_V2", [below, call.binary("ADD", data, bias), lifted], data.shape, np.float32)


def hard_sigmoid(call: Call) -> Value:
    alpha, beta = call.attributes.get_float("alpha", 0.2), call.attributes.get_float("beta", 0.5)
    line = call.binary("ADD", call.binary("MUL", call.operand(0), alpha), beta)
    return call.unary("RELU_0_TO_1", line)


def softplus(call: Call) -> Value:
    """``max(x, 0) + log(1 + exp(-|x|))``, which no x overflows."""
    data = call.operand(0)
    small = call.unary("EXP", call.unary("NEG", call.unary("ABS", data)))
    return call.binary("ADD", call.unary("RELU", data), call.unary("LOG", call.binary("ADD", small, 1.0)))


def softsign(call: Call) -> Value:
    data = call.operand(0)
    return call.binary("DIV", data, call.binary("ADD", call.unary("ABS", data), 1.0))


def mish(call: Call) -> Value:
    """``x * tanh(softplus(x))`` is ``x * w / (w + 2)`` with ``w = e * (e + 2)`` and ``e = exp(x)``; x from 20 on."""
    data = call.operand(0)
    power = call.unary("EXP", call.binary("MINIMUM", data, 20.0))
    weight = call.binary("MUL", power, call.binary("ADD", power, 2.0))
    return call.binary("MUL", data, call.binary("DIV", weight, call.binary("ADD", weight, 2.0)))


def gelu(call: Call) -> Value:
    approximate = call.attributes.get_string("approximate", "none") == "tanh"
    return call.unary("GELU", call.operand(0), Options("GeluOptions", {"approximate": approximate}))


def hard_swish(call: Call) -> Value:
    return call.unary("HARD_SWISH", call.operand(0), Options("HardSwishOptions"))


# ---- over an axis


def softmax(call: Call) -> Value:
    return _along_axis(call, "SOFTMAX", Options("SoftmaxOptions", {"beta": 1.0}))


def log_softmax(call: Call) -> Value:
    return _along_axis(call, "LOG_SOFTMAX", Options("LogSoftmaxOptions"))


def _along_axis(call: Call, code: str, options: Options) -> Value:
    """The kernels work along the last axis that is stored; another one is moved there and back."""
    data = call.value(0)
    axis = call.attributes.get_int("axis", -1) % max(data.rank, 1)
    if call.layout is Layout.LAST or data.rank == 0:
        return call.unary(code, data, options)
    # The swap of two axes is its own inverse.
    perm = list(range(data.rank))
    perm[axis], perm[-1] = perm[-1], perm[axis]
    turned = data if axis == data.rank - 1 else call.transpose(data, perm)
    rows = turned
    if data.rank > MOST_AXES:
        rows = call.reshape(turned, (math.prod(turned.shape[:-1]), turned.shape[-1]))
    done = call.reshape(call.unary(code, rows, options), turned.shape)
    return done if axis == data.rank - 1 else call.transpose(done, perm)


def _along_way(node: ir.Node) -> Way:
    """Channels last where the axis is theirs. All else is done as ONNX has it."""
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    if shape is None or not FIRST_AXES <= len(shape) <= MOST_AXES:
        return Way.FIRST
    return Way.LAST if node.attributes.get_int("axis", -1) % len(shape) == 1 else Way.FIRST


def hardmax(call: Call) -> Value:
    """One where the first of the largest elements along the axis is, zero elsewhere."""
    data = call.value(0)
    axis = call.attributes.get_int("axis", -1) % data.rank
    along = [1] * data.rank
    along[axis] = data.shape[axis]
    steps = Constant.of(np.arange(data.shape[axis], dtype=np.int32).reshape(along))
    best = best_along(call, data, axis, "ARG_MAX")
    return call.cast(call.binary("EQUAL", best, steps, np.bool_), "float32")


def _elus(call: Call) -> Int8:
    """``computes``, where it is the builtin."""
    return "computes" if call.attributes.get_float("alpha", 1.0) == 1.0 else "no"


_SHARES = Quantization.of(1 / 256, -128)
"""Of what is between 0 and 1. Without XNNPACK LiteRT's kernels give no other scale, and fail when they are loaded."""

# What has ``int16=False`` has no kernel for integers of 16 bits, or one that is off by more than one step of theirs.
OPS: Mapping[str, Op] = {
    "Celu": Op(celu, Way.EITHER),
    "Elu": Op(elu, Way.EITHER, int8=_elus, int16=False),
    "Gelu": Op(gelu, Way.EITHER, int8="computes", int16=False),
    "HardSigmoid": Op(hard_sigmoid, Way.EITHER),
    "HardSwish": Op(hard_swish, Way.EITHER, int8="computes", int16=False),
    "Hardmax": Op(hardmax, kept_way),
    "LeakyRelu": Op(leaky_relu, Way.EITHER, int8="computes"),
    "LogSoftmax": Op(log_softmax, _along_way, int8="computes", fixed=Quantization.of(1 / 16, 127), int16=False),
    "Mish": Op(mish, Way.EITHER),
    "PRelu": Op(p_relu, Way.EITHER, int8=computes, int16=False),
    "Relu": Op(relu, Way.EITHER, dtypes=frozenset({"float32", "int32", "int16", "int8"}), int8="computes"),
    "Selu": Op(selu, Way.EITHER),
    "Shrink": Op(shrink, Way.EITHER),
    "Sigmoid": Op(unary("LOGISTIC"), Way.EITHER, int8="computes", fixed=_SHARES, fixed16=Quantization.of(1 / 32768, 0)),
    "Softmax": Op(softmax, _along_way, int8="computes", fixed=_SHARES, int16=False),
    "Softplus": Op(softplus, Way.EITHER),
    "Softsign": Op(softsign, Way.EITHER),
    "Tanh": Op(unary("TANH"), Way.EITHER, int8="computes", int16=False),
    "ThresholdedRelu": Op(thresholded_relu, Way.EITHER),
}
