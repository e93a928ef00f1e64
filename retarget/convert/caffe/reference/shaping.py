"""Layers that move or count elements: Flatten, Reshape, Permute, Tile, Reduction, ArgMax, ShuffleChannel, Reorg."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retarget.convert.caffe.net import Blob, Layer
from retarget.convert.caffe.reference.checks import (
    at_least,
    canonical,
    choice,
    image,
    narrow,
    positive,
    show,
    wide,
    wrong,
)


def flatten(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Axes from ``axis`` to ``end_axis`` as one."""
    blob = inputs[0]
    parameters = layer.message.message("flatten_param")
    first = canonical(layer, parameters.integer("axis", 1), blob.ndim)
    last = canonical(layer, parameters.integer("end_axis", -1), blob.ndim)
    if last < first - 1:
        raise wrong(layer, f"end_axis {last} lies before axis {first}")
    return [blob.reshape(*blob.shape[:first], int(np.prod(blob.shape[first : last + 1])), *blob.shape[last + 1 :])]


def reshape(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """``num_axes`` axes from ``axis`` on are replaced by ``shape``: 0 keeps that axis, -1 is what is left."""
    blob = inputs[0]
    parameters = layer.message.message("reshape_param")
    dims = parameters.message("shape").integers("dim")
    at, count = parameters.integer("axis"), parameters.integer("num_axes", -1)
    first = at if at >= 0 else blob.ndim + at + 1
    end = blob.ndim if count == -1 else first + count
    if not 0 <= first <= blob.ndim or not first <= end <= blob.ndim:
        raise wrong(layer, f"axis {at} and num_axes {count} of an input of {show(blob.shape)}")
    if dims.count(-1) > 1 or any(dim < -1 for dim in dims):
        raise wrong(layer, f"shape {show(dims)} has sizes below 0 other than one -1")
    found = []
    for place, dim in enumerate(dims, start=first):
        if dim == 0 and place >= blob.ndim:
            raise wrong(layer, f"shape {show(dims)} keeps axis {place}, the input is {show(blob.shape)}")
        found.append(blob.shape[place] if dim == 0 else dim)
    shape = [*blob.shape[:first], *found, *blob.shape[end:]]
    known = int(np.prod([size for size in shape if size != -1], dtype=object))
    if (known == 0 or blob.size % known) if -1 in shape else known != blob.size:
        raise wrong(layer, f"{show(blob.shape)} does not reshape to {show(shape)}")
    return [blob.reshape(shape)]


def permute(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Of SSD: axes in ``order``, then those that it does not name."""
    blob = inputs[0]
    order = layer.message.message("permute_param").integers("order")
    if len(set(order)) != len(order) or any(not 0 <= axis < blob.ndim for axis in order):
        raise wrong(layer, f"order {show(order)} is none of the axes of {show(blob.shape)}")
    return [np.ascontiguousarray(blob.transpose(*order, *(axis for axis in range(blob.ndim) if axis not in order)))]


def tile(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Repeated along ``axis``."""
    blob = inputs[0]
    parameters = layer.message.message("tile_param")
    axis = canonical(layer, parameters.integer("axis", 1), blob.ndim)
    repeats = [1] * blob.ndim
    repeats[axis] = positive(layer, parameters, "tiles")
    return [np.tile(blob, repeats)]


def reduction(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """All axes from ``axis`` on become one number: their sum, that of absolutes or squares, or their mean."""
    blob = inputs[0]
    parameters = layer.message.message("reduction_param")
    operation = choice(layer, parameters, "operation", {"SUM": 1, "ASUM": 2, "SUMSQ": 3, "MEAN": 4})
    at = canonical(layer, parameters.integer("axis"), blob.ndim)
    rows = wide(blob).reshape(*blob.shape[:at], -1)
    if operation == "ASUM":
        rows = np.abs(rows)
    elif operation == "SUMSQ":
        rows = rows**2
    top = rows.mean(axis=-1) if operation == "MEAN" else rows.sum(axis=-1)
    return [narrow(np.asarray(top * parameters.number("coeff", 1.0)))]


def arg_max(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Where the ``top_k`` largest are along ``axis``, or in all but the batch. Of equals the last comes first."""
    blob = inputs[0]
    parameters = layer.message.message("argmax_param")
    count, values = positive(layer, parameters, "top_k", 1), parameters.flag("out_max_val")
    along = "axis" in parameters
    axis = canonical(layer, parameters.integer("axis"), blob.ndim) if along else 1
    rows = np.moveaxis(blob, axis, -1) if along else at_least(layer, blob, 1).reshape(len(blob), -1)
    if count > rows.shape[-1]:
        raise wrong(layer, f"top_k {count} of {rows.shape[-1]} values")
    # Sorting is stable and upwards: reversed, equals come with the larger index first, as Caffe's pairs do.
    where = np.argsort(rows, axis=-1, kind="stable")[..., ::-1][..., :count]
    largest = np.take_along_axis(rows, where, axis=-1)
    if along:
        return [np.ascontiguousarray(np.moveaxis(largest if values else narrow(where), -1, axis))]
    top = np.stack([narrow(where), largest], axis=1) if values else narrow(where)[:, None]
    return [top.reshape(*top.shape, *(1 for _ in range(blob.ndim - 3)))]


def shuffle_channel(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Of ShuffleNet: channel c of group g becomes channel g of group c."""
    blob = at_least(layer, inputs[0], 2)
    group = positive(layer, layer.message.message("shuffle_channel_param"), "group", 1)
    number, channels, *sizes = blob.shape
    if channels % group:
        raise wrong(layer, f"{channels} channels do not divide into {group} groups")
    return [blob.reshape(number, group, channels // group, *sizes).swapaxes(1, 2).reshape(blob.shape)]


def reorg(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Of Darknet and the forks that run its weights: squares of ``stride`` by ``stride`` become channels.

    Darknet reads the memory of [C, H, W] as [C / stride^2, H stride, W stride] before it does so, which is not the
    same as taking squares of the image; ``reverse`` is the plain turn from channels to squares.
    """
    blob = image(layer, inputs[0])
    parameters = layer.message.message("reorg_param")
    s = positive(layer, parameters, "stride")
    number, channels, height, width = blob.shape
    if channels % (s * s):
        raise wrong(layer, f"{channels} channels do not divide by {s} x {s}")
    inner = channels // (s * s)
    if parameters.flag("reverse"):
        squares = blob.reshape(number, s, s, inner, height, width).transpose(0, 3, 4, 1, 5, 2)
        return [squares.reshape(number, inner, height * s, width * s)]
    if height % s or width % s:
        raise wrong(layer, f"{height} x {width} does not divide by {s}")
    squares = blob.reshape(number, inner, height, s, width, s).transpose(0, 3, 5, 1, 2, 4)
    return [squares.reshape(number, channels * s * s, height // s, width // s)]
