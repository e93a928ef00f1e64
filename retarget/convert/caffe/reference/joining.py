"""Layers with several bottoms or tops: Eltwise, Concat, Slice, Split, Crop, BatchReindex, Silence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import numpy as np

from retarget.convert.caffe.net import Blob, Layer
from retarget.convert.caffe.reference.checks import canonical, choice, narrow, same_shape, show, whole, wide, wrong


def eltwise(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Sum, each input times its coefficient, product or maximum."""
    same_shape(layer, inputs)
    parameters = layer.message.message("eltwise_param")
    operation = choice(layer, parameters, "operation", {"SUM": 1, "PROD": 0, "MAX": 2})
    coefficients = parameters.numbers("coeff")
    if coefficients and (operation != "SUM" or len(coefficients) != len(inputs)):
        raise wrong(layer, f"{len(coefficients)} coefficients for the {operation} of {len(inputs)} inputs")
    values = [wide(blob) for blob in inputs]
    if operation == "MAX":
        return [narrow(reduce(np.maximum, values))]
    if operation == "PROD":
        return [narrow(reduce(np.multiply, values))]
    weighted = [factor * value for factor, value in zip(coefficients or [1.0] * len(values), values, strict=True)]
    return [narrow(reduce(np.add, weighted))]


def concat(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """One after another along ``axis``."""
    parameters = layer.message.message("concat_param")
    name = "concat_dim" if "concat_dim" in parameters else "axis"
    axis = canonical(layer, parameters.integer(name, 1), inputs[0].ndim)
    rest = {(*blob.shape[:axis], *blob.shape[axis + 1 :]) for blob in inputs}
    if len(rest) > 1 or len({blob.ndim for blob in inputs}) > 1:
        shapes = " and ".join(show(blob.shape) for blob in inputs)
        raise wrong(layer, f"inputs may differ along axis {axis} only, not {shapes}")
    return [np.concatenate(inputs, axis=axis)]


def slice_(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Cut along ``axis`` at the points given, or into equal parts."""
    blob = inputs[0]
    parameters = layer.message.message("slice_param")
    name = "slice_dim" if "slice_dim" in parameters else "axis"
    axis = canonical(layer, parameters.integer(name, 1), blob.ndim)
    size, count = blob.shape[axis], len(layer.tops)
    points = parameters.integers("slice_point")
    if points:
        edges = (0, *points, size)
        if len(points) != count - 1 or any(left >= right for left, right in pairwise(edges)):
            raise wrong(layer, f"slice points {show(points)} do not cut a size of {size} into {count} parts")
    elif size % count:
        raise wrong(layer, f"a size of {size} does not divide into {count} equal parts")
    else:
        points = tuple(size // count * part for part in range(1, count))
    return [np.ascontiguousarray(part) for part in np.split(blob, points, axis=axis)]


def split(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """The same to every top."""
    return [inputs[0]] * len(layer.tops)


def silence(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:  # noqa: ARG001
    """Nothing: it takes blobs, so that they are no outputs of the net."""
    return []


def crop(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """The first input, from ``axis`` on cut to the sizes of the second."""
    blob, like = inputs
    parameters = layer.message.message("crop_param")
    at = canonical(layer, parameters.integer("axis", 2), blob.ndim)
    if like.ndim != blob.ndim:
        raise wrong(layer, f"{show(blob.shape)} cannot be cut to {show(like.shape)}: the ranks differ")
    offsets = parameters.integers("offset") or (0,)
    if len(offsets) not in (1, blob.ndim - at):
        raise wrong(layer, f"{len(offsets)} offsets for {blob.ndim - at} axes")
    if len(offsets) == 1:
        offsets = offsets * (blob.ndim - at)
    for axis, offset in enumerate(offsets, start=at):
        if offset < 0 or offset + like.shape[axis] > blob.shape[axis]:
            raise wrong(
                layer, f"{like.shape[axis]} from {offset} on lies outside of the {blob.shape[axis]} of axis {axis}"
            )
    kept = [slice(offset, offset + like.shape[axis]) for axis, offset in enumerate(offsets, start=at)]
    return [blob[(*(slice(None) for _ in range(at)), *kept)]]


def batch_reindex(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Rows of the first input by the indices of the second."""
    blob, index = inputs
    if index.ndim != 1:
        raise wrong(layer, f"takes indices of one axis, not {show(index.shape)}")
    return [blob[whole(layer, index, len(blob), "indices")]]
