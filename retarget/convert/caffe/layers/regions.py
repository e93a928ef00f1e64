"""Pooling of regions: each row (image, x1, y1, x2, y2) of a bottom, in pixels of the image, becomes a grid of bins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from retarget.convert.caffe.build import Builder, Lowering, Value, exactly, of_rank, product, show, static, wrong
from retarget.convert.caffe.layers.suppression import BOOL
from retarget.convert.caffe.net import Layer

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
_MOST_BINS = 4096
"""Along one side. Each has a number in the graph; the nets that there are have 14 at most."""


def roi_pooling(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """``features[N,C,H,W]`` and ``rois[K,5]`` to ``[K,C,pooled_h,pooled_w]``: the largest in each bin, 0 where empty.

    Formula: Fast R-CNN's ``roi_pooling_layer``. ONNX leaves MaxRoiPool's rounding open, and ONNX Runtime has none of
    the opset used here. So maxima are looked up: those of all windows whose sides are powers of two are made once, and
    four of them, in the corners of a bin, cover it.
    """
    parameters = layer.message.message("roi_pooling_param")
    features, rois = exactly(layer, inputs, 2)
    of_rank(layer, features, 4)
    height, width = parameters.integer("pooled_h"), parameters.integer("pooled_w")
    if not (0 < height <= _MOST_BINS and 0 < width <= _MOST_BINS):
        raise wrong(layer, f"pooled_h and pooled_w are {height} and {width}, must be 1 to {_MOST_BINS}")
    rows = _rows(layer, rois, build)
    images, channels = features.shape[0], *static(layer, features, (1,))
    count, scale = rows.shape[0], parameters.number("spatial_scale", 1.0)
    sizes = static(layer, features, (2, 3))
    features = build.op("Transpose", [features], (images, *sizes, channels), perm=[0, 2, 3, 1])
    windows, (lines, columns) = _maxima(build, features, sizes)
    windows = build.reshape(windows, (product((images, lines * columns)), channels))

    down = _corners(build, rows, 2, scale, height, sizes[0])
    across = _corners(build, rows, 1, scale, width, sizes[1])
    image = _column(build, rows, 0)
    image = build.op("Cast", [image], dtype=INT64, to=INT64.value)
    starts = build.op("Mul", [image, build.integers(lines * columns)], dtype=INT64)
    largest = []
    for line in down[:2]:
        line = build.op("Mul", [line, build.integers(columns)], dtype=INT64)
        line = build.op("Add", [line, starts], dtype=INT64)
        line = build.op("Unsqueeze", [line, build.integers(2)], (count, height, 1), INT64)
        for column in across[:2]:
            column = build.op("Unsqueeze", [column, build.integers(1)], (count, 1, width), INT64)
            places = build.op("Add", [line, column], (count, height, width), INT64)
            largest.append(build.op("Gather", [windows, places], (count, height, width, channels)))
    pooled = build.op("Transpose", [build.op("Max", largest)], (count, channels, height, width), perm=[0, 3, 1, 2])
    high = build.op("Unsqueeze", [down[2], build.integers(1, 3)], (count, 1, height, 1), BOOL)
    wide = build.op("Unsqueeze", [across[2], build.integers(1, 2)], (count, 1, 1, width), BOOL)
    filled = build.op("And", [high, wide], (count, 1, height, width), BOOL)
    return [build.op("Where", [filled, pooled, build.number(0)], pooled.shape)]


def _maxima(build: Builder, features: Value, sizes: tuple[int, ...]) -> tuple[Value, tuple[int, int]]:
    """Of ``features[N,H,W,C]`` the maxima of windows of 1, 2, 4 ... down and across, one size after the other."""
    lengths: list[int] = []
    for axis, size in enumerate(sizes, start=1):
        levels = [features]
        for power in _powers(size)[1:]:
            count, half = size - power + 1, power // 2
            parts = [
                build.op(
                    "Slice",
                    [levels[-1], *map(build.integers, (start, start + count, axis))],
                    (*features.shape[:axis], count, *features.shape[axis + 1 :]),
                )
                for start in (0, half)
            ]
            levels.append(build.op("Max", parts))
        lengths.append(sum(size - power + 1 for power in _powers(size)))
        if len(levels) > 1:
            shape = (*features.shape[:axis], lengths[-1], *features.shape[axis + 1 :])
            features = build.op("Concat", levels, shape, axis=axis)
    return features, (lengths[0], lengths[1])


def _powers(size: int) -> list[int]:
    return [2**level for level in range(size.bit_length())]


def _corners(build: Builder, rows: Value, axis: int, scale: float, bins: int, size: int) -> tuple[Value, Value, Value]:
    """For each bin [K,bins] the two windows of ``_maxima`` that cover it, and whether there is anything in it."""
    count = rows.shape[0]
    first, last = (
        _rounded(build, build.op("Mul", [_column(build, rows, column), build.number(scale)]))
        for column in (axis, axis + 2)
    )
    length = build.op("Add", [build.op("Sub", [last, first]), build.number(1)])
    step = build.op("Div", [build.op("Max", [length, build.number(1)]), build.number(bins)])
    begin, end = (
        build.op("Min", [build.op("Max", [build.op("Add", [edge, first]), build.number(0)]), build.number(size)])
        for edge in _edges(build, step, bins)
    )
    span = build.op("Sub", [end, begin])
    filled = build.op("Greater", [span, build.number(0)], dtype=BOOL)
    # An empty bin looks up any window, its result is not used.
    begin = build.op("Min", [begin, build.number(size - 1)])
    begin, end, span = (
        build.op("Cast", [each], dtype=INT64, to=INT64.value)
        for each in (begin, build.op("Max", [end, build.number(1)]), build.op("Max", [span, build.number(1)]))
    )
    powers = [1, *(2 ** (length.bit_length() - 1) for length in range(1, size + 1))]
    starts = [sum(size - power + 1 for power in _powers(power - 1)) for power in powers]
    window, start = (
        build.op("Gather", [build.constant(np.array(table)), span], (count, bins), INT64) for table in (powers, starts)
    )
    left = build.op("Add", [start, begin], dtype=INT64)
    right = build.op("Add", [start, build.op("Sub", [end, window], dtype=INT64)], dtype=INT64)
    return left, right, filled


def psroi_pooling(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """``features[N,D*g*g,H,W]`` and ``rois[K,5]`` to ``[K,D,g,g]``: each bin the mean in a channel of its own.

    Formula: R-FCN's ``psroi_pooling_layer``. A bin is a range of rows and one of columns: a product with a 0-1 matrix
    sums the columns of each, a weighted sum the rows.
    """
    parameters = layer.message.message("psroi_pooling_param")
    features, rois = exactly(layer, inputs, 2)
    of_rank(layer, features, 4)
    depth, group = parameters.integer("output_dim"), parameters.integer("group_size")
    images, channels, height, width = static(layer, features)
    if depth <= 0 or group <= 0 or channels != depth * group * group:
        raise wrong(layer, f"output_dim {depth} and group_size {group} do not fit {channels} channels")
    rows = _rows(layer, rois, build)
    count = rows.shape[0]
    scale = parameters.number("spatial_scale")
    columns = _ranges(build, rows, 1, scale, group, width)
    lines = _ranges(build, rows, 2, scale, group, height)

    # Sums along each line, for each column of bins: [g,g*D*N*H,W] x [g,W,K].
    planes = build.reshape(features, (images, depth, group, group, height, width))
    planes = build.op("Transpose", [planes], (group, group, depth, images, height, width), perm=[3, 2, 1, 0, 4, 5])
    planes = build.reshape(planes, (group, group * depth * images * height, width))
    matrix = build.op("Transpose", [columns], (group, width, count), perm=[1, 2, 0])
    sums = build.op("MatMul", [planes, matrix], (*planes.shape[:2], count))
    sums = build.reshape(sums, (group, group, depth, images * height, count))

    # Then along the columns.
    matrix = build.op(
        "Transpose", [_of_image(build, rows, lines, images)], (group, images * height, count), perm=[1, 2, 0]
    )
    matrix = build.op("Unsqueeze", [matrix, build.integers(1)], (group, 1, images * height, count))
    sums = build.op(
        "ReduceSum", [build.op("Mul", [sums, matrix]), build.integers(3)], (*sums.shape[:3], count), keepdims=0
    )
    sums = build.op("Transpose", [sums], (count, depth, group, group), perm=[3, 2, 1, 0])

    high = build.op("ReduceSum", [lines, build.integers(2)], (count, group, 1), keepdims=1)
    wide = build.op("Transpose", [columns], (count, width, group), perm=[0, 2, 1])
    wide = build.op("ReduceSum", [wide, build.integers(1)], (count, 1, group), keepdims=1)
    area = build.op("Mul", [high, wide], (count, group, group))
    # An empty bin is 0.
    area = build.op("Max", [area, build.number(1)])
    return [build.op("Div", [sums, build.op("Unsqueeze", [area, build.integers(1)], (count, 1, group, group))])]


def _rows(layer: Layer, rois: Value, build: Builder) -> Value:
    """``rois`` as [K,5], whether saved as that or as [K,5,1,1]."""
    if int(np.prod(static(layer, rois, range(1, rois.rank)))) != 5:
        raise wrong(layer, f"its regions are {show(rois.shape)}, need 5 values each: image, x1, y1, x2, y2")
    return build.reshape(rois, (rois.shape[0], 5))


def _ranges(build: Builder, rows: Value, axis: int, scale: float, group: int, size: int) -> Value:
    """Float [K,g,size]: 1 where a cell lies in a bin; ``axis`` 1: along x, 2: along y."""
    count = rows.shape[0]
    first, last = (_rounded(build, _column(build, rows, column)) for column in (axis, axis + 2))
    factor = build.number(scale)
    begin = build.op("Mul", [first, factor])
    end = build.op("Mul", [build.op("Add", [last, build.number(1)]), factor])
    length = build.op("Max", [build.op("Sub", [end, begin]), build.number(0.1)])
    step = build.op("Div", [length, build.number(group)])
    cells = build.constant(np.arange(size, dtype=np.float32)[None, None])
    edges = [
        build.op("Unsqueeze", [edge, build.integers(2)], (count, group, 1))
        for edge in _edges(build, step, group, begin)
    ]
    after = build.op("GreaterOrEqual", [cells, edges[0]], (count, group, size), BOOL)
    before = build.op("Less", [cells, edges[1]], (count, group, size), BOOL)
    return build.op("Cast", [build.op("And", [after, before], dtype=BOOL)], to=FLOAT.value)


def _edges(build: Builder, step: Value, bins: int, start: Value | None = None) -> list[Value]:
    """Where each bin [K,bins] begins and where it ends, in whole cells; ``step`` and ``start`` are [K,1]."""
    edges = []
    for rounding, first in (("Floor", 0), ("Ceil", 1)):
        numbers = build.constant(np.arange(first, first + bins, dtype=np.float32)[None])
        edge = build.op("Mul", [step, numbers], (step.shape[0], bins))
        edges.append(build.op(rounding, [build.op("Add", [edge, start]) if start else edge]))
    return edges


def _column(build: Builder, rows: Value, column: int) -> Value:
    return build.op("Gather", [rows, build.integers(column)], (rows.shape[0], 1), axis=1)


def _of_image(build: Builder, rows: Value, lines: Value, images: int) -> Value:
    """Float [K,g,N*H]: ``lines[K,g,H]`` of the region's own image, 0 in the others."""
    if images == 1:
        return lines
    count, group, height = lines.shape
    assert isinstance(height, int)
    image = _column(build, rows, 0)
    numbers = build.constant(np.arange(images, dtype=np.float32)[None])
    own = build.op("Equal", [image, numbers], (count, images), BOOL)
    own = build.op("Cast", [own], to=FLOAT.value)
    own = build.op("Unsqueeze", [own, build.integers(1, 3)], (count, 1, images, 1))
    lines = build.op("Unsqueeze", [lines, build.integers(2)], (count, group, 1, height))
    return build.reshape(build.op("Mul", [lines, own], (count, group, images, height)), (count, group, images * height))


def _rounded(build: Builder, value: Value) -> Value:
    """As C rounds: halves away from zero, where ONNX's Round takes the even neighbour."""
    size = build.op("Abs", [value])
    whole = build.op("Floor", [size])
    up = build.op("GreaterOrEqual", [build.op("Sub", [size, whole]), build.number(0.5)], dtype=BOOL)
    whole = build.op("Add", [whole, build.op("Cast", [up], to=FLOAT.value)])
    return build.op("Mul", [whole, build.op("Sign", [value])])


LAYERS: dict[str, Lowering] = {
    "PSROIPooling": psroi_pooling,
    "ROIPooling": roi_pooling,
}
