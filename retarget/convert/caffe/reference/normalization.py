"""LRN, BatchNorm, BN, MVN, Normalize, and the affine Scale, Bias and Axpy that go with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retarget.convert.caffe.net import Blob, Layer, Message
from retarget.convert.caffe.reference.checks import (
    Wide,
    at_least,
    canonical,
    choice,
    image,
    narrow,
    same_shape,
    shaped,
    show,
    weights,
    wide,
    wrong,
)
from retarget.convert.caffe.reference.pooling import pool, same_size


def lrn(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Divided by (k + alpha times the mean square of the neighbours) to the power beta."""
    blob = image(layer, inputs[0])
    parameters = layer.message.message("lrn_param")
    size = parameters.integer("local_size", 5)
    if size < 1 or size % 2 == 0:
        raise wrong(layer, f"local_size must be odd, not {size}")
    alpha, beta = parameters.number("alpha", 1.0), parameters.number("beta", 0.75)
    values = wide(blob)
    squares = values**2
    if choice(layer, parameters, "norm_region", {"ACROSS_CHANNELS": 0, "WITHIN_CHANNEL": 1}) == "WITHIN_CHANNEL":
        # Caffe makes this of a pooling and a Power layer whose shift is 1: `k` is not looked at.
        rows, columns = (same_size(length, size) for length in blob.shape[2:])
        scale = 1 + alpha * pool(squares, rows, columns, "AVE")
    else:
        half, channels = size // 2, blob.shape[1]
        padded = np.pad(squares, ((0, 0), (half, half), (0, 0), (0, 0)))
        total = sum((padded[:, at : at + channels] for at in range(size)), np.zeros_like(squares))
        scale = parameters.number("k", 1.0) + alpha / size * total
    return [narrow(values * scale**-beta)]


def batch_norm(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Less the mean and divided by the root of (variance + eps), which are saved as sums with a factor of their own."""
    blob = at_least(layer, inputs[0], 1)
    parameters = layer.message.message("batch_norm_param")
    channels = blob.shape[1] if blob.ndim > 1 else 1
    values = wide(blob)
    if parameters.flag("use_global_stats", default=True):
        mean, variance, factor = weights(layer, 3)
        total = float(shaped(layer, factor, (1,), "factor")[0])
        scale = 1 / total if total else 0.0
        shape = (1, channels, *(1 for _ in blob.shape[2:])) if blob.ndim > 1 else (1,)
        centre, spread = (scale * shaped(layer, part, shape, "statistics") for part in (mean, variance))
    else:
        axes = tuple(axis for axis in range(blob.ndim) if axis != 1 or blob.ndim == 1)
        centre, spread = values.mean(axis=axes, keepdims=True), values.var(axis=axes, keepdims=True)
    return [narrow((values - centre) / np.sqrt(spread + parameters.number("eps", 1e-5)))]


def bn(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """The ``BN`` of PSPNet's Caffe, whose blobs are slope, bias, mean and variance, or of SegNet's: scale and shift."""
    blob = image(layer, inputs[0])
    parameters = layer.message.message("bn_param")
    shape = (1, blob.shape[1], 1, 1)
    values = wide(blob)
    if len(layer.blobs) == 4:
        slope, offset, centre, spread = (shaped(layer, each, shape, "statistics") for each in weights(layer, 4))
        return [narrow((values - centre) / np.sqrt(spread + parameters.number("eps", 1e-5)) * slope + offset)]
    slope, offset = (shaped(layer, each, shape, "scale") for each in weights(layer, 2))
    if choice(layer, parameters, "bn_mode", {"LEARN": 0, "INFERENCE": 1}) == "LEARN":
        centre, spread = values.mean(axis=(0, 2, 3), keepdims=True), values.var(axis=(0, 2, 3), keepdims=True)
        values = (values - centre) / np.sqrt(spread + 1e-9)
    return [narrow(values * slope + offset)]


def mvn(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Mean 0 and, if so asked, variance 1: of each channel, or of all of them together."""
    blob = at_least(layer, inputs[0], 2)
    parameters = layer.message.message("mvn_param")
    first = 1 if parameters.flag("across_channels") else 2
    rows = wide(blob).reshape(*blob.shape[:first], -1)
    rows = rows - rows.mean(axis=-1, keepdims=True)
    if parameters.flag("normalize_variance", default=True):
        # eps is added to the deviation, not to the variance.
        rows = rows / (np.sqrt((rows**2).mean(axis=-1, keepdims=True)) + parameters.number("eps", 1e-9))
    return [narrow(rows.reshape(blob.shape))]


def normalize(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Of SSD: length 1 over channels, or over all of an image, times a learned scale."""
    blob = at_least(layer, inputs[0], 2)
    parameters = layer.message.message("norm_param")
    axes = tuple(range(1, blob.ndim)) if parameters.flag("across_spatial", default=True) else (1,)
    values = wide(blob)
    length = np.sqrt((values**2).sum(axis=axes, keepdims=True) + parameters.number("eps", 1e-10))
    count = 1 if parameters.flag("channel_shared", default=True) else blob.shape[1]
    scale = shaped(layer, weights(layer, 1)[0], (1, count, *(1 for _ in blob.shape[2:])), "scales")
    return [narrow(values / length * scale)]


def scale(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Times a factor, plus a term if so asked, both broadcast over the axes that they do not have."""
    parameters = layer.message.message("scale_param")
    blob = inputs[0]
    bias = parameters.flag("bias_term")
    if len(inputs) == 2:
        shape, placed = _given(layer, parameters, blob, inputs[1])
        factor = wide(inputs[1]).reshape(placed)
        blobs = weights(layer, 1 if bias else 0)
    else:
        shape, placed = _learned(layer, parameters, blob)
        blobs = weights(layer, 2 if bias else 1)
        factor = shaped(layer, blobs[0], shape, "factors").reshape(placed)
    top = wide(blob) * factor
    if bias:
        top = top + shaped(layer, blobs[-1], shape, "terms").reshape(placed)
    return [narrow(top)]


def bias(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Plus a term, learned or the second input."""
    parameters = layer.message.message("bias_param")
    blob = inputs[0]
    term: Wide
    if len(inputs) == 2:
        _, placed = _given(layer, parameters, blob, inputs[1])
        term = wide(inputs[1]).reshape(placed)
    else:
        shape, placed = _learned(layer, parameters, blob)
        term = shaped(layer, weights(layer, 1)[0], shape, "terms").reshape(placed)
    return [narrow(wide(blob) + term)]


def axpy(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Of SENet: a x + y, where a has one number a channel."""
    a, x, y = inputs
    same_shape(layer, (x, y))
    at_least(layer, x, 2)
    if a.shape[:2] != x.shape[:2] or a.size != x.shape[0] * x.shape[1]:
        raise wrong(layer, f"takes one factor a channel of {show(x.shape)}, not {show(a.shape)}")
    return [narrow(wide(a).reshape(*x.shape[:2], *(1 for _ in x.shape[2:])) * wide(x) + wide(y))]


def _learned(layer: Layer, parameters: Message, blob: Blob) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of a learned factor, and the same as it broadcasts over ``blob``."""
    count = parameters.integer("num_axes", 1)
    if count == 0:
        return (), (1,) * blob.ndim
    at = canonical(layer, parameters.integer("axis", 1), blob.ndim)
    end = blob.ndim if count == -1 else at + count
    if count < -1 or end > blob.ndim:
        raise wrong(layer, f"{count} axes from axis {at} on of {show(blob.shape)}")
    shape = blob.shape[at:end]
    return shape, (*shape, *(1 for _ in blob.shape[end:]))


def _given(layer: Layer, parameters: Message, blob: Blob, factor: Blob) -> tuple[tuple[int, ...], tuple[int, ...]]:
    at = canonical(layer, parameters.integer("axis", 1), blob.ndim) if factor.ndim else 0
    if blob.shape[at : at + factor.ndim] != factor.shape:
        raise wrong(layer, f"{show(factor.shape)} does not fit {show(blob.shape)} from axis {at} on")
    return factor.shape, (*factor.shape, *(1 for _ in blob.shape[at + factor.ndim :]))
