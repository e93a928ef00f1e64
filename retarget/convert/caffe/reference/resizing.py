"""Interp of DeepLab and PSPNet, Upsample of SegNet and of the YOLO forks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retarget.convert.caffe.net import Blob, Layer, Message
from retarget.convert.caffe.reference.checks import Wide, image, narrow, positive, show, whole, wide, wrong


def interp(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Bilinear, corners on corners. A negative pad crops first; a second input lends its sizes."""
    blob = image(layer, inputs[0])
    parameters = layer.message.message("interp_param")
    begin, end = parameters.integer("pad_beg"), parameters.integer("pad_end")
    if begin > 0 or end > 0:
        raise wrong(layer, "pad_beg and pad_end may crop, not pad: they must not be above 0")
    rows, columns = (slice(-begin, size + end) for size in blob.shape[2:])
    inner = blob[:, :, rows, columns]
    if 0 in inner.shape:
        raise wrong(layer, f"pad_beg {begin} and pad_end {end} leave nothing of {show(blob.shape)}")
    like = inputs[1] if len(inputs) == 2 else None
    sizes = _sizes(layer, parameters, inner.shape[2:]) if like is None else image(layer, like).shape[2:]
    values = wide(inner)
    for axis, size in zip((2, 3), sizes, strict=True):
        values = _line(values, axis, size)
    return [narrow(values)]


def upsample(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Each value repeated in a square; with a mask, each value at its place and 0 elsewhere."""
    blob = image(layer, inputs[0])
    parameters = layer.message.message("upsample_param")
    sides = "scale_h" in parameters or "scale_w" in parameters
    scales = [
        positive(layer, parameters, name if sides else "scale", 0 if sides else 2) for name in ("scale_h", "scale_w")
    ]
    if len(inputs) == 1:
        if "upsample_h" in parameters or "upsample_w" in parameters:
            raise wrong(layer, "upsample_h and upsample_w need the mask of a max pooling as a second bottom")
        return [blob.repeat(scales[0], axis=2).repeat(scales[1], axis=3)]
    mask = image(layer, inputs[1])
    if mask.shape != blob.shape:
        raise wrong(layer, f"the mask is {show(mask.shape)} and the input {show(blob.shape)}")
    if "upsample_h" in parameters and "upsample_w" in parameters:
        height, width = (positive(layer, parameters, name) for name in ("upsample_h", "upsample_w"))
    else:
        height, width = (
            size * scale - parameters.flag(name)
            for size, scale, name in zip(blob.shape[2:], scales, ("pad_out_h", "pad_out_w"), strict=True)
        )
    planes = blob.shape[0] * blob.shape[1]
    where = whole(layer, mask, height * width, f"the mask's places in {height} x {width}").reshape(planes, -1)
    top = np.zeros((planes, height * width), np.float32)
    np.put_along_axis(top, where, blob.reshape(planes, -1), axis=1)
    return [top.reshape(*blob.shape[:2], height, width)]


def _sizes(layer: Layer, parameters: Message, sizes: Sequence[int]) -> tuple[int, ...]:
    if "shrink_factor" not in parameters and "zoom_factor" not in parameters:
        return positive(layer, parameters, "height"), positive(layer, parameters, "width")
    shrink, zoom = (positive(layer, parameters, name, 1) for name in ("shrink_factor", "zoom_factor"))
    return tuple(((size - 1) // shrink) * zoom + 1 for size in sizes)


def _line(values: Wide, axis: int, size: int) -> Wide:
    """Resampled along one axis; one sample is the first."""
    last = values.shape[axis] - 1
    at = np.arange(size) * (last / (size - 1) if size > 1 else 0.0)
    left = np.minimum(at.astype(np.int64), last)
    right = np.minimum(left + 1, last)
    share = (at - left).reshape(-1, *(1 for _ in range(values.ndim - axis - 1)))
    found: Wide = values.take(left, axis=axis) * (1 - share) + values.take(right, axis=axis) * share
    return found
