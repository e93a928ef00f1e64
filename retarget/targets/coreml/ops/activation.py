"""Activation functions, element by element and along an axis."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from retarget.targets.coreml.call import FLOATS, NUMBERS, Call, Op
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.elementwise import MIL_NAMES, unary
from retarget.targets.coreml.ops.reduction import best_scores
from retarget.targets.coreml.values import Refusal


def relu(call: Call) -> Var:
    x = call.var(0)
    return call.mil.maximum(x=x, y=0) if call.dtype(0) == np.int32 else call.mil.relu(x=x)


def leaky_relu(call: Call) -> Var:
    return call.mil.leaky_relu(x=call.var(0), alpha=call.attributes.get_float("alpha", 0.01))


def p_relu(call: Call) -> Var:
    """``max(x, 0) + slope * min(x, 0)``, unless the slope is a constant for each channel of images: MIL has those."""
    x, mil = call.var(0), call.mil
    if call.is_constant(1):
        slope = call.array(1, "the slope")
        if slope.size == 1 and slope.ndim <= call.rank(0):
            return mil.leaky_relu(x=x, alpha=float(slope.item()))
        channels = (slope.size, *(1,) * (call.rank(0) - 2))
        is_channels = slope.shape in (channels, (1, *channels)) and call.shape(0)[1:2] == (slope.size,)
        # Of float16 the runtime's own is wrong.
        if call.rank(0) == 4 and is_channels and call.dtype(0) == np.float32:
            return mil.prelu(x=x, alpha=slope.reshape(-1))
    below = mil.mul(x=call.var(1), y=mil.minimum(x=x, y=0.0))
    return mil.add(x=mil.relu(x=x), y=below)


def elu(call: Call) -> Var:
    return call.mil.elu(x=call.var(0), alpha=call.attributes.get_float("alpha", 1.0))


def selu(call: Call) -> Var:
    alpha = call.attributes.get_float("alpha", 1.67326319217681884765625)
    gamma = call.attributes.get_float("gamma", 1.05070102214813232421875)
    return call.mil.mul(x=call.mil.elu(x=call.var(0), alpha=alpha), y=gamma)


def celu(call: Call) -> Var:
    """``max(x, 0) + min(alpha * (exp(x / alpha) - 1), 0)``."""
    x, alpha = call.var(0), call.attributes.get_float("alpha", 1.0)
    if alpha == 1.0:
        return call.mil.elu(x=x, alpha=alpha)
    if alpha <= 0.0:
        raise Refusal(f"alpha={alpha:g}: of positive ones alone the parts of Celu meet at 0")
    negative = call.mil.real_div(x=call.mil.minimum(x=x, y=0.0), y=alpha)
    return call.mil.add(x=call.mil.relu(x=x), y=call.mil.elu(x=negative, alpha=alpha))


def gelu(call: Call) -> Var:
    approximate = call.attributes.get_string("approximate", "none") == "tanh"
    return call.mil.gelu(x=call.var(0), mode="TANH_APPROXIMATION" if approximate else "EXACT")


def hard_sigmoid(call: Call) -> Var:
    alpha, beta = call.attributes.get_float("alpha", 0.2), call.attributes.get_float("beta", 0.5)
    return call.mil.sigmoid_hard(x=call.var(0), alpha=alpha, beta=beta)


def hard_swish(call: Call) -> Var:
    x = call.var(0)
    return call.mil.mul(x=x, y=call.mil.sigmoid_hard(x=x, alpha=1 / 6, beta=0.5))


def softplus(call: Call) -> Var:
    """``max(x, 0) + log(1 + exp(-|x|))``, which no x overflows: MIL's own is documented as ``log(1 + exp(x))``."""
    x, mil = call.var(0), call.mil
    return mil.add(x=mil.relu(x=x), y=mil.log(x=mil.add(x=_small_power(call, x), y=1.0), epsilon=0.0))


def mish(call: Call) -> Var:
    """``x * tanh(softplus(x))``, which no x overflows.

    With ``n = exp(-|x|)`` the tanh is ``p / (p + 2)`` of ``p = n * (n + 2)`` where x is negative, and
    ``q / (q + 2 * n**2)`` of ``q = 2 * n + 1`` where not.
    """
    x, mil = call.var(0), call.mil
    small = _small_power(call, x)
    is_negative = mil.less(x=x, y=0.0)
    below = mil.mul(x=small, y=mil.add(x=small, y=2.0))
    above = mil.add(x=mil.mul(x=small, y=2.0), y=1.0)
    weight = mil.select(cond=is_negative, a=below, b=above)
    # A float for each: `select` takes the shape of what it chooses from.
    square = mil.mul(x=mil.mul(x=small, y=small), y=2.0)
    twos = mil.add(x=mil.mul(x=small, y=0.0), y=2.0)
    rest = mil.select(cond=is_negative, a=twos, b=square)
    return mil.mul(x=x, y=mil.real_div(x=weight, y=mil.add(x=weight, y=rest)))


def _small_power(call: Call, x: Var) -> Var:
    """``exp(-|x|)``."""
    return call.mil.exp(x=call.mil.mul(x=call.mil.abs(x=x), y=-1.0))


def thresholded_relu(call: Call) -> Var:
    """MIL's own lets the threshold itself pass."""
    x, mil = call.var(0), call.mil
    passes = mil.greater(x=x, y=call.attributes.get_float("alpha", 1.0))
    return mil.select(cond=passes, a=x, b=0.0)


def shrink(call: Call) -> Var:
    x, mil = call.var(0), call.mil
    bias, bound = call.attributes.get_float("bias", 0.0), call.attributes.get_float("lambd", 0.5)
    lowered = mil.select(cond=mil.greater(x=x, y=bound), a=mil.sub(x=x, y=bias), b=0.0)
    return mil.select(cond=mil.less(x=x, y=-bound), a=mil.add(x=x, y=bias), b=lowered)


# ---- over an axis


def softmax(call: Call) -> Var:
    return call.mil.softmax(x=call.var(0), axis=call.axis(-1))


def log_softmax(call: Call) -> Var:
    """``z - log(sum(exp(z)))`` of ``z = x - max(x)``."""
    x, axes, mil = call.var(0), [call.axis(-1)], call.mil
    lowered = mil.sub(x=x, y=mil.reduce_max(x=x, axes=axes, keep_dims=True))
    total = mil.reduce_sum(x=mil.exp(x=lowered), axes=axes, keep_dims=True)
    return mil.sub(x=lowered, y=mil.log(x=total, epsilon=0.0))


def hardmax(call: Call) -> Var:
    """One where the first of the largest elements along the axis is, zero elsewhere."""
    scores = best_scores(call, call.axis(-1), "reduce_max", last=False)
    best = call.mil.reduce_max(x=scores, axes=[call.axis(-1)], keep_dims=True)
    return call.mil.cast(x=call.mil.equal(x=scores, y=best), dtype=MIL_NAMES[call.dtype(0).name])


OPS: Mapping[str, Op] = {
    "Celu": Op(celu, FLOATS),
    "Elu": Op(elu, FLOATS),
    "Gelu": Op(gelu, FLOATS),
    "HardSigmoid": Op(hard_sigmoid, FLOATS),
    "HardSwish": Op(hard_swish, FLOATS),
    "Hardmax": Op(hardmax, FLOATS),
    "LeakyRelu": Op(leaky_relu, FLOATS),
    "LogSoftmax": Op(log_softmax, FLOATS),
    "Mish": Op(mish, FLOATS),
    "PRelu": Op(p_relu, FLOATS),
    "Relu": Op(relu, NUMBERS, small=True),
    "Selu": Op(selu, FLOATS),
    "Shrink": Op(shrink, FLOATS),
    "Sigmoid": Op(unary("sigmoid"), FLOATS),
    "Softmax": Op(softmax, FLOATS),
    "Softplus": Op(softplus, FLOATS),
    "Softsign": Op(unary("softsign"), FLOATS),
    "Tanh": Op(unary("tanh"), FLOATS),
    "ThresholdedRelu": Op(thresholded_relu, FLOATS),
}
