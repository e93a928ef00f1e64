"""Layers that bring their bottom to a mean, variance or norm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retarget.convert.caffe.build import (
    Builder,
    Lowering,
    Value,
    choice,
    of_rank,
    only,
    refuse,
    static,
    weights,
    wrong,
)
from retarget.convert.caffe.layers.pooling import pool, same_size
from retarget.convert.caffe.net import Layer


def lrn(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """LRN; ``WITHIN_CHANNEL``: ``x / (1 + alpha * mean of squares) ** beta``, which has no use for ``k``."""
    bottom = only(layer, inputs)
    parameters = layer.message.message("lrn_param")
    size = parameters.integer("local_size", 5)
    if size < 1 or size % 2 == 0:
        raise wrong(layer, f"local_size is {size}", "Caffe takes odd ones only")
    alpha, beta = parameters.number("alpha", 1.0), parameters.number("beta", 0.75)
    region = choice(layer, parameters, "norm_region", ("ACROSS_CHANNELS", "WITHIN_CHANNEL"), "ACROSS_CHANNELS")
    if region == "ACROSS_CHANNELS":
        return [build.op("LRN", [bottom], size=size, alpha=alpha, beta=beta, bias=parameters.number("k", 1.0))]
    squares = build.op("Mul", [bottom, bottom])
    mean = pool("AveragePool", squares, same_size(layer, bottom, size), build, count_include_pad=1)
    scaled = build.op("Add", [build.op("Mul", [mean, build.number(alpha)]), build.number(1)])
    return [build.op("Mul", [bottom, build.op("Pow", [scaled, build.number(-beta)])])]


def batch_norm(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """BatchNormalization with the statistics divided by the factor beside them (0 where it is 0).

    ``use_global_stats: false`` computes them from the batch instead, as Caffe does in the test phase too.
    """
    bottom = only(layer, inputs)
    parameters = layer.message.message("batch_norm_param")
    if bottom.rank < 2:
        raise refuse(layer, f"a bottom of {bottom.rank} dimensions")
    epsilon = parameters.number("eps", 1e-5)
    if not parameters.flag("use_global_stats", True):
        return [_of_batch(bottom, epsilon, build)]
    (channels,) = static(layer, bottom, [1])
    mean, variance = weights(layer, 0, channels), weights(layer, 1, channels)
    factor = weights(layer, 2, 1)[0]
    scale = np.float32(0) if factor == 0 else np.float32(1) / factor
    constants = [np.ones(channels, np.float32), np.zeros(channels, np.float32), mean * scale, variance * scale]
    return [build.op("BatchNormalization", [bottom, *(build.constant(array) for array in constants)], epsilon=epsilon)]


def bn(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """BatchNormalization of PSPNet's fork (slope, bias, mean, variance), or SegNet's Mul and Add (scale, shift).

    SegNet's ``bn_mode: LEARN`` takes the batch's own mean and variance before, in the test phase too.
    """
    bottom = only(layer, inputs)
    parameters = layer.message.message("bn_param")
    of_rank(layer, bottom, 4)
    (channels,) = static(layer, bottom, [1])
    if len(layer.blobs) == 4:
        names = ("slope", "bias", "mean", "variance")
        constants = [build.constant(weights(layer, index, channels), name) for index, name in enumerate(names)]
        return [build.op("BatchNormalization", [bottom, *constants], epsilon=parameters.number("eps", 1e-5))]
    gain = build.constant(weights(layer, 0, channels, 1, 1), "scale")
    shift = build.constant(weights(layer, 1, channels, 1, 1), "shift")
    if choice(layer, parameters, "bn_mode", ("LEARN", "INFERENCE"), "LEARN") == "LEARN":
        bottom = _of_batch(bottom, 1e-9, build)
    return [build.op("Add", [build.op("Mul", [bottom, gain]), shift])]


def mvn(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """``(x - mean) / (deviation + eps)`` over each channel, or all of them (``across_channels``)."""
    parameters = layer.message.message("mvn_param")
    bottom = _four(layer, only(layer, inputs), build)
    across = parameters.flag("across_channels")
    axes = build.integers(1, 2, 3) if across else build.integers(2, 3)
    shape = (bottom.shape[0], 1 if across else bottom.shape[1], 1, 1)
    centred = build.op("Sub", [bottom, build.op("ReduceMean", [bottom, axes], shape, keepdims=1)])
    if not parameters.flag("normalize_variance", True):
        return [centred]
    variance = build.op("ReduceMean", [build.op("Mul", [centred, centred]), axes], shape, keepdims=1)
    deviation = build.op("Add", [build.op("Sqrt", [variance]), build.number(parameters.number("eps", 1e-9))])
    return [build.op("Div", [centred, deviation])]


def normalize(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """``x / sqrt(sum of squares + eps) * weight``, the sum over the channels or all (``across_spatial``). Of SSD."""
    bottom = only(layer, inputs)
    parameters = layer.message.message("norm_param")
    if not 2 <= bottom.rank <= 4:
        raise wrong(layer, f"needs a bottom of 2 to 4 dimensions, has one of {bottom.rank}")
    across = parameters.flag("across_spatial", True)
    axes = range(1, bottom.rank) if across else [1]
    shape = tuple(1 if axis in axes else dim for axis, dim in enumerate(bottom.shape))
    if parameters.flag("channel_shared", True):
        scale = build.weight(layer, 0, 1)
    else:
        (channels,) = static(layer, bottom, [1])
        scale = build.weight(layer, 0, channels, *[1] * (bottom.rank - 2))
    squares = build.op("Mul", [bottom, bottom])
    total = build.op("ReduceSum", [squares, build.integers(*axes)], shape, keepdims=1)
    norm = build.op("Sqrt", [build.op("Add", [total, build.number(parameters.number("eps", 1e-10))])])
    return [build.op("Mul", [build.op("Div", [bottom, norm]), scale])]


def _of_batch(bottom: Value, epsilon: float, build: Builder) -> Value:
    """``bottom`` with each channel of the whole batch at mean 0 and variance 1."""
    axes = build.integers(0, *range(2, bottom.rank))
    shape = (1, bottom.shape[1], *[1] * (bottom.rank - 2))
    centred = build.op("Sub", [bottom, build.op("ReduceMean", [bottom, axes], shape, keepdims=1)])
    variance = build.op("ReduceMean", [build.op("Mul", [centred, centred]), axes], shape, keepdims=1)
    deviation = build.op("Sqrt", [build.op("Add", [variance, build.number(epsilon)])])
    return build.op("Div", [centred, deviation])


def _four(layer: Layer, bottom: Value, build: Builder) -> Value:
    """``bottom`` in four dimensions, as old layers see it: those that are missing at the end are 1."""
    if bottom.rank > 4:
        raise wrong(layer, f"needs a bottom of at most 4 dimensions, has one of {bottom.rank}")
    return build.reshape(bottom, (*bottom.shape, *[1] * (4 - bottom.rank)))


LAYERS: dict[str, Lowering] = {
    "BN": bn,
    "BatchNorm": batch_norm,
    "LRN": lrn,
    "MVN": mvn,
    "Normalize": normalize,
}
