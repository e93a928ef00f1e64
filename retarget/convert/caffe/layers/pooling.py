"""Pooling, by Caffe's own rules for the number of windows and for what an average divides by.

Caffe rounds the number of windows up, then drops a last one that would begin in the padding behind the input, but
only where there is padding. An average divides by the part of the window that lies on the input and its padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from retarget.convert.caffe.build import (
    Builder,
    Dimension,
    Lowering,
    Shape,
    Value,
    choice,
    of_rank,
    only,
    refuse,
    static,
    wrong,
)
from retarget.convert.caffe.layers.windows import count, per_axis
from retarget.convert.caffe.net import Layer, Message

_FIXED = "give height and width one size each, as in --input or in `inputs` of the recipe"


def pooling(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """MaxPool or AveragePool, ``STOCHASTIC`` as in the test phase; a second top of MAX is the index in its plane."""
    bottom = only(layer, inputs)
    parameters = layer.message.message("pooling_param")
    of_rank(layer, bottom, 4)
    method = choice(layer, parameters, "pool", ("MAX", "AVE", "STOCHASTIC"), "MAX")
    if len(layer.tops) > 1 and method != "MAX":
        raise wrong(layer, f"has {len(layer.tops)} tops; only MAX makes a second one")
    if parameters.flag("global_pooling"):
        return _global(layer, bottom, method, build)
    windows = _windows(layer, bottom, parameters)
    if _is_whole(bottom, windows) and len(layer.tops) < 2 and method != "STOCHASTIC":
        return _global(layer, bottom, method, build)
    if method == "AVE":
        return [_average(layer, bottom, windows, build)]
    if method == "STOCHASTIC":
        return [_stochastic(layer, bottom, windows, build)]
    return _maximum(layer, bottom, windows, build)


@dataclass(frozen=True)
class Windows:
    """How the windows lie along one axis."""

    size: int
    step: int
    before: int
    """Padding before the input."""
    behind: int
    """Padding behind the input that all windows together reach over; that of Caffe may be more or less."""
    counted: int
    """How much of what is behind Caffe counts as padding: an average divides by no more."""
    number: Dimension
    ceil: bool = False
    """Their number follows from an open size, rounded up: ONNX's ``ceil_mode``."""


def same_size(layer: Layer, bottom: Value, size: int) -> list[Windows]:
    """Windows of odd ``size`` around every element of the two last axes."""
    of_rank(layer, bottom, 4)
    half = (size - 1) // 2
    return [Windows(size, 1, half, half, half, dim) for dim in bottom.shape[2:]]


def _windows(layer: Layer, bottom: Value, parameters: Message) -> list[Windows]:
    kernel = per_axis(layer, parameters, "kernel_size", 2, None)
    stride = per_axis(layer, parameters, "stride", 2, 1)
    pad = per_axis(layer, parameters, "pad", 2, 0, smallest=0)
    for size, padding in zip(kernel, pad, strict=True):
        if padding >= size:
            raise wrong(layer, f"pad {padding} is not smaller than the kernel, {size}")
    rounding = choice(layer, parameters, "round_mode", ("CEIL", "FLOOR"), "CEIL")
    # ``ceil_mode`` is how some forks call it.
    ceil = rounding == "CEIL" and parameters.flag("ceil_mode", True)
    dims = bottom.shape[2:]
    make = _open if any(isinstance(dim, str) for dim in dims) else _fixed
    return [
        make(layer, dim, size, step, padding, ceil=ceil, clipped=any(pad))
        for dim, size, step, padding in zip(dims, kernel, stride, pad, strict=True)
    ]


def _fixed(layer: Layer, dim: Dimension, size: int, step: int, pad: int, *, ceil: bool, clipped: bool) -> Windows:
    number = count(dim, size, step, 2 * pad, ceil=ceil)
    assert isinstance(dim, int)
    assert isinstance(number, int)
    if clipped and (number - 1) * step >= dim + pad:
        number -= 1
        if (number - 1) * step >= dim + pad:
            raise wrong(layer, f"its last window begins behind the input of {dim} and its padding of {pad}")
    behind = max(0, (number - 1) * step + size - dim - pad)
    return Windows(size, step, pad, behind, min(pad, behind), number)


def _open(layer: Layer, dim: Dimension, size: int, step: int, pad: int, *, ceil: bool, clipped: bool) -> Windows:
    """Where one axis or both are of open size: only if ONNX's rule is Caffe's whatever the size."""
    ceil = ceil and step > 1
    if ceil and not pad and step > size:
        raise refuse(layer, f"stride {step} is larger than the kernel, {size}, and the input's size is open", _FIXED)
    if isinstance(dim, int):
        number = _fixed(layer, dim, size, step, pad, ceil=ceil, clipped=clipped).number
    else:
        number = count(dim, size, step, 2 * pad, ceil=ceil)
        if ceil and pad:
            # The last window begins before the padding ends: the smaller of the two bounds counts.
            number = f"min({number}, {count(dim, 1, step, pad)})"
    return Windows(size, step, pad, pad, pad, number, ceil)


def _average(layer: Layer, bottom: Value, windows: Sequence[Windows], build: Builder) -> Value:
    """AveragePool; where windows reach beyond the padding, the padding is made first, so that it alone is counted."""
    padded = any(axis.before or axis.counted for axis in windows)
    if padded and any(axis.ceil for axis in windows):
        raise refuse(layer, "what the last average divides by depends on the input's size, which is open", _FIXED)
    if any(axis.behind >= axis.size for axis in windows) and not padded:
        raise refuse(layer, "its last window lies behind the input: an average of nothing")
    if padded and any(axis.behind > axis.counted for axis in windows):
        bottom = _pad(bottom, [axis.before for axis in windows], [axis.counted for axis in windows], 0.0, build)
        windows = [replace(axis, before=0, behind=axis.behind - axis.counted, counted=0) for axis in windows]
        padded = False
    return pool("AveragePool", bottom, windows, build, count_include_pad=int(padded))


def _stochastic(layer: Layer, bottom: Value, windows: Sequence[Windows], build: Builder) -> Value:
    """The mean of a window weighted by its own elements, 0 where they sum up to 0 or less."""
    if any(axis.before for axis in windows):
        raise wrong(layer, "padding is for MAX and AVE only")
    squares = _average(layer, build.op("Mul", [bottom, bottom]), windows, build)
    sums = _average(layer, bottom, windows, build)
    positive = build.op("Greater", [sums, build.number(0)], dtype=ir.DataType.BOOL)
    ratio = build.op("Div", [squares, sums])
    return build.op("Where", [positive, ratio, build.number(0)], ratio.shape)


def _maximum(layer: Layer, bottom: Value, windows: Sequence[Windows], build: Builder) -> Sequence[Value]:
    if any(axis.behind >= axis.size for axis in windows):
        # Caffe's own rule makes a window that holds nothing: the least float, where it begins to look for the maximum.
        if len(layer.tops) > 1:
            raise refuse(layer, "a window without elements has no index for the second top")
        least = float(np.finfo(np.float32).min)
        bottom = _pad(bottom, [axis.before for axis in windows], [axis.behind for axis in windows], least, build)
        windows = [replace(axis, before=0, behind=0) for axis in windows]
    if len(layer.tops) < 2:
        return [pool("MaxPool", bottom, windows, build)]
    plane = static(layer, bottom, [2, 3])
    top, index = _pool("MaxPool", bottom, windows, build, tops=2)
    index.value.type = ir.TensorType(ir.DataType.INT64)
    size = build.constant(np.array(plane[0] * plane[1], np.int64))
    index = build.op("Mod", [index, size], dtype=ir.DataType.INT64)
    return [top, build.op("Cast", [index], to=ir.DataType.FLOAT)]


def _is_whole(bottom: Value, windows: Sequence[Windows]) -> bool:
    """Whether there is one window, and it is the input."""
    return all(
        axis.number == 1 and axis.size == dim and not axis.before
        for axis, dim in zip(windows, bottom.shape[2:], strict=True)
    )


def _global(layer: Layer, bottom: Value, method: str, build: Builder) -> Sequence[Value]:
    if len(layer.tops) > 1:
        raise refuse(layer, "a second top of global pooling")
    if method == "STOCHASTIC":
        raise refuse(layer, "global stochastic pooling")
    op_type = "GlobalMaxPool" if method == "MAX" else "GlobalAveragePool"
    return [build.op(op_type, [bottom], (*bottom.shape[:2], 1, 1))]


def pool(
    op_type: str, bottom: Value, windows: Sequence[Windows], build: Builder, *, count_include_pad: int | None = None
) -> Value:
    """MaxPool or AveragePool of ``bottom`` by ``windows``."""
    return _pool(op_type, bottom, windows, build, count_include_pad=count_include_pad)[0]


def _pool(
    op_type: str,
    bottom: Value,
    windows: Sequence[Windows],
    build: Builder,
    *,
    count_include_pad: int | None = None,
    tops: int = 1,
) -> list[Value]:
    attributes: dict[str, int] = {} if count_include_pad is None else {"count_include_pad": count_include_pad}
    shape: Shape = (*bottom.shape[:2], *(axis.number for axis in windows))
    return build.ops(
        op_type,
        [bottom],
        [shape] * tops,
        ir.DataType.FLOAT,
        kernel_shape=[axis.size for axis in windows],
        strides=[axis.step for axis in windows],
        pads=[*(axis.before for axis in windows), *(axis.behind for axis in windows)],
        ceil_mode=int(any(axis.ceil for axis in windows)),
        **attributes,
    )


def _pad(bottom: Value, before: Sequence[int], behind: Sequence[int], value: float, build: Builder) -> Value:
    """``bottom`` with its two last axes, of fixed size, padded by ``value``."""
    spatial = [
        dim + first + last
        for dim, first, last in zip(bottom.shape[2:], before, behind, strict=True)
        if isinstance(dim, int)
    ]
    pads = build.integers(0, 0, *before, 0, 0, *behind)
    return build.op("Pad", [bottom, pads, build.number(value)], (*bottom.shape[:2], *spatial))


LAYERS: dict[str, Lowering] = {"Pooling": pooling}
