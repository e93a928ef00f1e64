"""GridSample and DeformConv by Core ML's `resample`; AffineGrid and RoiAlign by products of matrices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from retarget.targets import affine
from retarget.targets.coreml.call import Call, Op
from retarget.targets.coreml.compressed import expanded
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.convolution import bias_of, with_bias
from retarget.targets.coreml.ops.parts import concatenated, length, part, reshaped, transposed
from retarget.targets.coreml.ops.windows import windows
from retarget.targets.coreml.values import Codes, Refusal, dtype_of, is_known

EXACT = 1 << 24
"""Integers up to it are exact as float32."""

CUBIC = -0.75
"""The coefficient that ONNX's GridSample has."""

PADDINGS = {"zeros": "constant", "border": "border", "reflection": "symmetric"}
"""ONNX's paddings in Core ML's words; with align_corners=1, elements are mirrored at the last one: `reflection`."""

IMAGE = 4
"""Axes of an image, which `resample` takes."""


def grid_sample(call: Call) -> Var:
    x, grid = call.var(0), call.var(1)
    # Places in halves would be none: numbers of elements are too large for them.
    grid = grid if dtype_of(grid) == np.float32 else call.mil.cast(x=grid, dtype="fp32")
    mode = call.attributes.get_string("mode") or "linear"
    corners = call.attributes.get_int("align_corners", 0) != 0
    if x.rank == IMAGE + 1 and mode != "cubic":
        return _volume(call, x, grid, mode, corners=corners)
    if x.rank != IMAGE:
        raise Refusal(f"mode={mode} along {x.rank - 2} axes: Core ML samples images")
    padding = call.attributes.get_string("padding_mode") or "zeros"
    kind = "reflection" if padding == "reflection" and corners else PADDINGS[padding]
    if mode in ("linear", "bilinear"):
        return _resampled(call, x, grid, "bilinear", kind, "normalized_minus_one_to_one", corners=corners)
    across, down = (_place(call, grid, number, x, axis, corners=corners) for number, axis in ((0, 3), (1, 2)))
    if mode == "nearest":
        # Which of two is the nearest Core ML does not say: it is given whole numbers.
        whole = concatenated(call, [call.mil.round(x=across), call.mil.round(x=down)], 3)
        return _resampled(call, x, whole, "nearest", kind, "unnormalized", corners=corners)
    total: Var | None = None
    for (column, by_column), (row, by_row) in itertools.product(_cubic(call, across), _cubic(call, down)):
        seen = _resampled(
            call, x, concatenated(call, [column, row], 3), "nearest", kind, "unnormalized", corners=corners
        )
        weight = call.mil.transpose(x=call.mil.mul(x=by_column, y=by_row), perm=[0, 3, 1, 2])
        total = _plus(call, total, call.mil.mul(x=seen, y=_like(call, weight, x)))
    assert total is not None
    return total


def _resampled(call: Call, x: Var, places: Var, mode: str, padding: str, coordinates: str, *, corners: bool) -> Var:
    return call.mil.resample(
        x=x,
        coordinates=places,
        sampling_mode=mode,
        padding_mode=padding,
        padding_value=dtype_of(x).type(0),
        coordinates_mode=coordinates,
        align_corners=corners,
    )


def _place(call: Call, grid: Var, number: int, x: Var, axis: int, *, corners: bool) -> Var:
    """The coordinate ``number`` of all places, from -1 to 1, as a number of an element along ``axis`` of ``x``."""
    one = call.mil.add(x=part(call, grid, -1, slice(number, number + 1)), y=np.float32(1))
    size: Var | np.float32
    if is_known(x.shape[axis]):
        size = np.float32(int(x.shape[axis]))
    else:
        found = length(call, x.shape[axis], x)
        assert found is not None
        size = call.mil.cast(x=found, dtype="fp32")
    if corners:
        last = size - np.float32(1) if isinstance(size, np.float32) else call.mil.sub(x=size, y=np.float32(1))
        return call.mil.mul(x=call.mil.mul(x=one, y=np.float32(0.5)), y=last)
    wide = call.mil.sub(x=call.mil.mul(x=one, y=size), y=np.float32(1))
    return call.mil.mul(x=wide, y=np.float32(0.5))


def _cubic(call: Call, place: Var) -> list[tuple[Var, Var]]:
    """The four elements around ``place``, and the weight of each."""
    first = call.mil.floor(x=place)
    after = call.mil.sub(x=place, y=first)
    found = []
    for number in range(-1, 3):
        # The distance of the element from the place.
        distance = call.mil.abs(x=call.mil.sub(x=after, y=np.float32(number)))
        element = call.mil.add(x=first, y=np.float32(number))
        a = CUBIC
        factors = (a, -5 * a, 8 * a, -4 * a) if number in (-1, 2) else (a + 2, -(a + 3), 0.0, 1.0)
        found.append((element, _polynomial(call, distance, factors)))
    return found


def _polynomial(call: Call, x: Var, factors: Sequence[float]) -> Var:
    made = call.mil.mul(x=x, y=np.float32(factors[0]))
    for factor in factors[1:-1]:
        made = call.mil.mul(x=call.mil.add(x=made, y=np.float32(factor)), y=x)
    return call.mil.add(x=made, y=np.float32(factors[-1]))


def _plus(call: Call, total: Var | None, more: Var) -> Var:
    return more if total is None else call.mil.add(x=total, y=more)


def _like(call: Call, x: Var, other: Var) -> Var:
    """``x`` in the type of ``other``."""
    return x if dtype_of(x) == dtype_of(other) else call.mil.cast(x=x, dtype="fp16")


def _volume(call: Call, x: Var, grid: Var, mode: str, *, corners: bool) -> Var:
    """Of a volume, whose planes lie one below the other in an image: elements are named one by one."""
    padding = call.attributes.get_string("padding_mode") or "zeros"
    channels, *sizes = call.sizes(0, range(1, x.rank))
    outs = call.sizes(1, range(1, x.rank - 1))
    if math.prod(sizes[:2]) >= EXACT:
        raise Refusal(f"{math.prod(sizes[:2])} rows: their numbers are not exact as floats")
    image = reshaped(call, x, (x.shape[0], channels, sizes[0] * sizes[1], sizes[2]))
    # Of the result, too, the rows of all planes are those of one image.
    grid = reshaped(call, grid, (grid.shape[0], outs[0] * outs[1], outs[2], 3))
    axes = []
    for axis, size in enumerate(sizes):
        place = _place(call, grid, 2 - axis, x, axis + 2, corners=corners)
        axes.append([_inside(call, *tap, size, padding, corners=corners) for tap in _taps(call, place, mode)])
    total: Var | None = None
    for planes, rows, columns in itertools.product(*axes):
        row = call.mil.add(x=call.mil.mul(x=planes[0], y=np.float32(sizes[1])), y=rows[0])
        places = concatenated(call, [columns[0], row], 3)
        seen = _resampled(call, image, places, "nearest", "border", "unnormalized", corners=corners)
        weight: Var | None = None
        for _, each in (planes, rows, columns):
            if each is not None:
                weight = each if weight is None else call.mil.mul(x=weight, y=each)
        if weight is not None:
            weight = _like(call, call.mil.transpose(x=weight, perm=[0, 3, 1, 2]), x)
            seen = call.mil.mul(x=seen, y=weight)
        total = _plus(call, total, seen)
    assert total is not None
    return reshaped(call, total, (x.shape[0], channels, *outs))


def _taps(call: Call, place: Var, mode: str) -> list[tuple[Var, Var | None]]:
    """The elements that a result at ``place`` is made of along one axis, and the weight of each."""
    if mode == "nearest":
        return [(call.mil.round(x=place), None)]
    first = call.mil.floor(x=place)
    after = call.mil.sub(x=place, y=first)
    return [(first, call.mil.sub(x=np.float32(1), y=after)), (call.mil.add(x=first, y=np.float32(1)), after)]


def _inside(
    call: Call, index: Var, weight: Var | None, size: int, padding: str, *, corners: bool
) -> tuple[Var, Var | None]:
    """``index``, which may lie outside, as the padding takes it: what lies outside is another element, or weighs 0."""
    if padding == "reflection" and size > 1:
        index = _reflected(call, index, size, corners=corners)
    zero, last = np.float32(0), np.float32(size - 1)
    inside = call.mil.minimum(x=call.mil.maximum(x=index, y=zero), y=last)
    if padding != "zeros":
        return inside, weight
    mask = call.mil.cast(x=call.mil.equal(x=inside, y=index), dtype="fp32")
    return inside, mask if weight is None else call.mil.mul(x=weight, y=mask)


def _reflected(call: Call, index: Var, size: int, *, corners: bool) -> Var:
    """``index`` thrown back at both ends, as often as it takes: the ends are elements, or half an element further."""
    low, span = (0.0, size - 1.0) if corners else (-0.5, float(size))
    far = call.mil.abs(x=call.mil.sub(x=index, y=np.float32(low)))
    turns = call.mil.floor(x=call.mil.real_div(x=far, y=np.float32(2 * span)))
    rest = call.mil.sub(x=far, y=call.mil.mul(x=turns, y=np.float32(2 * span)))
    back = call.mil.abs(x=call.mil.sub(x=rest, y=np.float32(span)))
    return call.mil.sub(x=np.float32(low + span), y=back)


def affine_grid(call: Call) -> Var:
    """The places of all results, a constant, times the matrices."""
    matrices = call.var(0)
    sizes = call.numbers(1, "the size")[2:]
    base = affine.places(call.node, sizes).astype(dtype_of(matrices))
    made = call.mil.matmul(x=call.mil.const(val=base[None]), y=matrices, transpose_y=True)
    return reshaped(call, made, (matrices.shape[0], *sizes, len(sizes)))


def roi_align(call: Call) -> Var:
    """Averages of samples between elements: of each box a matrix for the rows, the image, and one for the columns."""
    x, boxes, attributes = call.var(0), call.var(1), call.attributes
    mode, samples = attributes.get_string("mode") or "avg", attributes.get_int("sampling_ratio", 0)
    if mode != "avg":
        raise Refusal(f"mode={mode}: it is composed for averages")
    if samples < 1:
        raise Refusal(f"sampling_ratio={samples}: how many samples there are hangs on the size of each box")
    rows, columns = call.sizes(0, [2, 3])
    outs = attributes.get_int("output_height", 1), attributes.get_int("output_width", 1)
    down, across = (
        _box_weights(call, boxes, axis, size, out, samples)
        for axis, size, out in ((1, rows, outs[0]), (0, columns, outs[1]))
    )
    if x.shape[0] != 1:
        x = call.mil.gather(x=x, indices=call.var(2), axis=0)
    return call.mil.matmul(x=call.mil.matmul(x=down, y=x), y=across, transpose_y=True)


def _box_weights(call: Call, boxes: Var, axis: int, size: int, out: int, samples: int) -> Var:
    """[boxes, 1, out, size]: how much of each element along an axis each result of each box has."""
    scale = call.attributes.get_float("spatial_scale", 1.0)
    half = (call.attributes.get_string("coordinate_transformation_mode") or "half_pixel") == "half_pixel"
    start, end = (call.mil.mul(x=part(call, boxes, 1, slice(at, at + 1)), y=scale) for at in (axis, axis + 2))
    extent = call.mil.sub(x=end, y=start)
    if half:
        start = call.mil.sub(x=start, y=0.5)
    else:
        extent = call.mil.maximum(x=extent, y=1.0)
    steps = ((np.arange(out * samples) + 0.5) / (out * samples)).astype(dtype_of(boxes))[None]
    at = call.mil.add(x=start, y=call.mil.mul(x=extent, y=steps))
    outside = call.mil.logical_or(x=call.mil.less(x=at, y=-1.0), y=call.mil.greater(x=at, y=float(size)))
    inside = call.mil.cast(x=call.mil.logical_not(x=outside), dtype="fp16" if dtype_of(at) == np.float16 else "fp32")
    place = call.mil.minimum(x=call.mil.maximum(x=at, y=0.0), y=float(size - 1))
    place, inside = (call.mil.expand_dims(x=each, axes=[2]) for each in (place, inside))
    elements = np.arange(size).astype(dtype_of(boxes))[None, None]
    near = call.mil.relu(x=call.mil.sub(x=1.0, y=call.mil.abs(x=call.mil.sub(x=place, y=elements))))
    weights = reshaped(call, call.mil.mul(x=near, y=inside), (boxes.shape[0], out, samples, size))
    return call.mil.expand_dims(x=call.mil.reduce_mean(x=weights, axes=[2], keep_dims=False), axes=[1])


def deform_conv(call: Call) -> Var:
    """Each tap of the kernel sees the image at a place of its own, and between elements; then convolutions sum them."""
    x, moved = call.var(0), call.var(2)
    if x.rank != IMAGE:
        raise Refusal(f"{x.rank - 2} spatial axes: Core ML samples images")
    call.sizes(0, [2, 3])
    found = windows(call, call.sizes(1, [2, 3]))
    (channels,) = call.sizes(0, [1])
    parts = call.attributes.get_int("offset_group", 1)
    mask = call.var(4) if call.has(4) else None
    bias, added = bias_of(call, 3)
    images = [part(call, x, 1, slice(at, at + channels // parts)) for at in range(0, channels, channels // parts)]
    total: Var | None = None
    for number, taps in enumerate(itertools.product(*map(range, found.kernel))):
        seen = []
        for index, image in enumerate(images):
            at = index * math.prod(found.kernel) + number
            places = []
            for axis, (tap, window) in enumerate(zip(taps, found.along, strict=True)):
                assert window.out is not None
                line = np.arange(window.out) * window.stride - window.begin + tap * window.dilation
                grid = line.astype(np.float32).reshape([1, -1, 1, 1] if axis == 0 else [1, 1, -1, 1])
                by = transposed(call, part(call, moved, 1, slice(2 * at + axis, 2 * at + axis + 1)), (0, 2, 3, 1))
                by = by if dtype_of(by) == np.float32 else call.mil.cast(x=by, dtype="fp32")
                places.append(call.mil.add(x=by, y=grid))
            coordinates = concatenated(call, places[::-1], 3)
            each = _resampled(call, image, coordinates, "bilinear", "constant", "unnormalized", corners=True)
            if mask is not None:
                each = call.mil.mul(x=each, y=part(call, mask, 1, slice(at, at + 1)))
            seen.append(each)
        made = call.mil.conv(
            x=concatenated(call, seen, 1),
            weight=_tap(call, taps),
            bias=bias if total is None else None,
            groups=call.attributes.get_int("group", 1),
            pad_type="valid",
        )
        total = _plus(call, total, made)
    assert total is not None
    return with_bias(call, total, added)


def _tap(call: Call, taps: Sequence[int]) -> Var:
    """The weights of one tap, as a kernel of one."""
    weight = call.operand(1)
    if isinstance(weight, Codes):
        weight = expanded(weight)
    if isinstance(weight, np.ndarray):
        (row, column) = taps
        return call.mil.const(val=np.ascontiguousarray(weight[:, :, row : row + 1, column : column + 1]))
    made = call.var(1)
    for axis, tap in enumerate(taps, start=2):
        made = part(call, made, axis, slice(tap, tap + 1))
    return made


OPS: Mapping[str, Op] = {
    "AffineGrid": Op(affine_grid),
    "DeformConv": Op(deform_conv),
    "GridSample": Op(grid_sample),
    "RoiAlign": Op(roi_align),
}
