"""Layers that treat each element alone, and Softmax. All formulas are those of the layer's header in Caffe."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from retarget.convert.caffe.net import Blob, Layer
from retarget.convert.caffe.reference.checks import Wide, at_least, canonical, narrow, shaped, weights, wide, wrong


def relu(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    slope = layer.message.message("relu_param").number("negative_slope")
    x = wide(inputs[0])
    return [narrow(np.maximum(x, 0) + slope * np.minimum(x, 0))]


def relu6(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:  # noqa: ARG001
    return [np.clip(inputs[0], 0, 6)]


def prelu(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """A slope a channel for what is below 0, or one for all."""
    blob = at_least(layer, inputs[0], 2)
    shared = layer.message.message("prelu_param").flag("channel_shared")
    count = 1 if shared else blob.shape[1]
    slope = shaped(layer, weights(layer, 1)[0], (1, count, *(1 for _ in blob.shape[2:])), "slopes")
    x = wide(blob)
    return [narrow(np.maximum(x, 0) + slope * np.minimum(x, 0))]


def elu(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    alpha = layer.message.message("elu_param").number("alpha", 1.0)
    x = wide(inputs[0])
    return [narrow(np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0)))]


def simple(function: Callable[[Wide], Wide]) -> Callable[[Layer, Sequence[Blob]], list[Blob]]:
    """A layer without parameters."""

    def evaluate(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:  # noqa: ARG001
        return [narrow(function(wide(inputs[0])))]

    return evaluate


def logistic(x: Wide) -> Wide:
    """1 / (1 + e^-x), without overflow."""
    found: Wide = 0.5 * np.tanh(0.5 * x) + 0.5
    return found


def bnll(x: Wide) -> Wide:
    """log(1 + e^x), without overflow."""
    found: Wide = np.logaddexp(0, x)
    return found


def power(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """(shift + scale x) ^ power."""
    parameters = layer.message.message("power_param")
    exponent, factor = parameters.number("power", 1.0), parameters.number("scale", 1.0)
    shift = parameters.number("shift")
    if exponent * factor == 0:
        # The input is not read then, whatever is in it.
        value = np.float64(1) if exponent == 0 else np.float64(shift) ** exponent
        return [np.full_like(inputs[0], value)]
    return [narrow((shift + factor * wide(inputs[0])) ** exponent)]


def exp(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """base ^ (shift + scale x); a base of -1 is e."""
    parameters = layer.message.message("exp_param")
    inner = parameters.number("shift") + parameters.number("scale", 1.0) * wide(inputs[0])
    return [narrow(np.exp(inner * _log_base(layer, parameters.number("base", -1.0))))]


def log(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """The logarithm to ``base`` of (shift + scale x); a base of -1 is e."""
    parameters = layer.message.message("log_param")
    inner = parameters.number("shift") + parameters.number("scale", 1.0) * wide(inputs[0])
    return [narrow(np.log(inner) / _log_base(layer, parameters.number("base", -1.0)))]


def threshold(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """1 above the threshold, 0 up to it."""
    return [narrow(inputs[0] > np.float32(layer.message.message("threshold_param").number("threshold")))]


def swish(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """X times the logistic of beta x."""
    x = wide(inputs[0])
    return [narrow(x * logistic(layer.message.message("swish_param").number("beta", 1.0) * x))]


def mish(x: Wide) -> Wide:
    """X times the hyperbolic tangent of ``bnll(x)``."""
    return x * np.tanh(bnll(x))


def clip(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    parameters = layer.message.message("clip_param")
    for name in ("min", "max"):
        if name not in parameters:
            raise wrong(layer, f"clip_param needs {name}")
    return [np.clip(inputs[0], np.float32(parameters.number("min")), np.float32(parameters.number("max")))]


def dropout(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Nothing, outside of training; Fast R-CNN's ``scale_train: false`` scales here instead of there."""
    parameters = layer.message.message("dropout_param")
    if parameters.flag("scale_train", default=True):
        return [inputs[0]]
    return [narrow(wide(inputs[0]) * (1 - parameters.number("dropout_ratio", 0.5)))]


def softmax(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    x = wide(inputs[0])
    axis = canonical(layer, layer.message.message("softmax_param").integer("axis", 1), x.ndim)
    raised = np.exp(x - x.max(axis=axis, keepdims=True))
    return [narrow(raised / raised.sum(axis=axis, keepdims=True))]


def _log_base(layer: Layer, base: float) -> float:
    if base == -1:
        return 1.0
    if base <= 0:
        raise wrong(layer, f"base must be above 0, or -1 for e, not {base:g}")
    return float(np.log(base))
