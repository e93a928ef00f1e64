"""Slice, Split, Concat, and what repeats elements."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from retarget.targets.ncnn.call import ANY, Call, Op
from retarget.targets.ncnn.ops.shape import apart, dims_of, held, in_shape, is_open, moving, standing
from retarget.targets.ncnn.program import MOST_DIMS, Blob, Dims, Param
from retarget.targets.ncnn.values import Refusal, Value, plain_dims

if TYPE_CHECKING:
    from retarget.targets.ncnn.values import Result

REST = -233
"""Of Crop: from where an axis begins, or to where it ends. Of Slice: an equal part of what is left."""

LARGE = (1 << 31) - 1
"""An end of a slice from which on it means that of the axis."""

STARTS, ENDS, AXES = 9, 10, 11
"""Keys of Crop."""

IMAGE = 3
"""Dims of a blob that Pooling takes."""

ONE_EACH: Mapping[int, Param] = {0: 1, 1: 1, 11: 1, 5: 1}
"""Params of Pooling: an average, over one element, of what is there and no more."""

STEP_ACROSS, STEP_DOWN = 2, 12
"""Keys of Pooling."""

Part: TypeAlias = tuple[int, int | None]
"""Where a part of an axis begins and ends; negative: from the end; None: where the axis does."""


# ---- parts


def whole_along(call: Call, value: Value, axes: Sequence[int]) -> Value:
    """``value`` with all of each of ``axes`` in its dims."""
    return call.with_rows(value, 1) if 0 in axes else value


def length(part: Part, size: int) -> int:
    """Elements of ``part`` of an axis of ``size``."""
    return len(range(*slice(*part).indices(size)))


def cut(call: Call, value: Value, parts: Mapping[int, Part], always: Collection[int] = ()) -> Value:
    """Parts of axes of ``value``, all at once where it has dims for it.

    ``always``: axes along which a part may be less than all at other sizes.
    """
    wanted = {
        axis: parts[axis]
        for axis in sorted(parts)
        if axis in always or length(parts[axis], value.shape[axis]) < value.shape[axis]
    }
    if not wanted:
        return value
    value = whole_along(call, value, list(wanted))
    found = standing(call, value, list(wanted))
    if found is None:
        for axis, part in wanted.items():
            value = cut(call, value, {axis: part}, always)
        return value
    blob, places = found
    dims, shape = list(blob.dims), list(value.shape)
    for place, (axis, part) in zip(places, wanted.items(), strict=True):
        dims[place] = shape[axis] = length(part, shape[axis])
    sizes = [value.shape[axis] for axis in wanted]
    params: dict[int, Param] = {
        STARTS: [_start(part, size) for part, size in zip(wanted.values(), sizes, strict=True)],
        ENDS: [_end(part, size) for part, size in zip(wanted.values(), sizes, strict=True)],
        AXES: places,
    }
    return held(value, call.add("Crop", (blob,), dims, params), shape)


def _start(part: Part, size: int) -> int:
    """As Crop has it, which takes one number for "from the first"."""
    start, _ = part
    if start < -size:
        return 0
    return start + size if start == REST else start


def _end(part: Part, size: int) -> int:
    _, end = part
    if end is None:
        return REST
    return end + size if end == REST else end


def strided(call: Call, value: Value, axis: int, step: int) -> Value:
    """Of ``axis`` the first element and every one that is ``step`` further: an average of one element each."""
    if step == 1 or value.shape[axis] == 1:
        return value
    value = whole_along(call, value, [axis])
    found = standing(call, value, [axis])
    assert found is not None
    blob, (place,) = found
    if len(blob.dims) != IMAGE or not place:
        row = value.row
        blob, place = call.view(value, (math.prod(row[:axis]), row[axis], math.prod(row[axis + 1 :]))), 1
    dims, shape = list(blob.dims), list(value.shape)
    dims[place] = shape[axis] = -(-shape[axis] // step)
    steps = {STEP_DOWN: step, STEP_ACROSS: 1} if place == 1 else {STEP_DOWN: 1, STEP_ACROSS: step}
    return held(value, call.add("Pooling", (blob,), dims, {**ONE_EACH, **steps}), shape)


def flipped(call: Call, value: Value, axes: Sequence[int]) -> Value:
    """``value`` with the elements along ``axes`` the other way around."""
    axes = sorted(axis for axis in axes if value.shape[axis] > 1)
    if not axes:
        return value
    value = whole_along(call, value, axes)
    found = standing(call, value, axes)
    if found is None:
        for axis in axes:
            value = flipped(call, value, [axis])
        return value
    blob, places = found
    return held(value, call.add("Flip", (blob,), blob.dims, {0: places}), value.shape)


def slice_(call: Call) -> Result:
    shape = call.shape(0)
    starts, ends = call.numbers(1, "where it starts"), call.numbers(2, "where it ends")
    axes = [axis % len(shape) for axis in (call.numbers(3, "the axes") if call.has(3) else range(len(starts)))]
    steps = call.numbers(4, "the steps") if call.has(4) else [1] * len(starts)
    # The other way around, each bound is as far from the other end.
    turned = [axis for axis, step in zip(axes, steps, strict=True) if step < 0]
    value = flipped(call, call.value(0), turned)
    parts: dict[int, Part] = {}
    always: list[int] = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        first, stop = (start, end) if step > 0 else (-1 - start, -1 - end)
        is_any = is_open(call, 0, [axis])
        parts[axis] = part = (first, None if stop >= (LARGE if is_any else shape[axis]) else stop)
        if not length(part, shape[axis]):
            raise Refusal("its result is empty, and ncnn has no empty blobs")
        if is_any and part != (0, None):
            always.append(axis)
    value = cut(call, value, parts, always)
    for axis, step in zip(axes, steps, strict=True):
        value = strided(call, value, axis, abs(step))
    return value


def split(call: Call) -> list[Result]:
    axis = call.axis(0)
    size, count = call.shape(0)[axis], len(call.node.outputs)
    if call.has(1):
        sizes = call.numbers(1, "the sizes of its parts")
    else:
        each = -(-size // count)
        sizes = [*[each] * (count - 1), size - each * (count - 1)]
        if sizes[-1] < 1:
            raise Refusal(
                f"of {size} elements in {count} parts of {each} the last is empty, and ncnn has no empty blobs"
            )
    value = call.value(0)
    if count == 1:
        return [value]
    value = whole_along(call, value, [axis])
    found = standing(call, value, [axis])
    assert found is not None
    blob, (place,) = found
    dims = [(*blob.dims[:place], each, *blob.dims[place + 1 :]) for each in sizes]
    written = [REST] * count if len(set(sizes)) == 1 else sizes
    made = call.add_many("Slice", (blob,), dims, {0: written, 1: place})
    shape = value.shape
    return [held(value, top, (*shape[:axis], each, *shape[axis + 1 :])) for top, each in zip(made, sizes, strict=True)]


# ---- joined


def concat(call: Call) -> Result:
    axis = call.attributes.get_int("axis", 0) % call.rank(0)
    indices = range(call.count)
    if all(map(call.is_constant, indices)):
        return np.concatenate([call.array(index, "it") for index in indices], axis)
    values = [call.whole(index) for index in indices] if axis == 0 else call.aligned(*indices)
    return concatenated(call, values, axis)


def concatenated(call: Call, values: Sequence[Value], axis: int) -> Value:
    """``values`` beside each other along ``axis``. Along axis 0 none has rows; along others all have as many, or one
    where the others have."""
    if len(values) == 1:
        return values[0]
    shape = list(values[0].shape)
    shape[axis] = sum(value.shape[axis] for value in values)
    shape[0] = max(shape[0], *(value.shape[0] for value in values)) if axis else shape[0]
    blobs, place = _alike(call, values, axis)
    dims = list(blobs[0].dims)
    dims[place] = sum(blob.dims[place] for blob in blobs)
    largest = max(value.largest for value in values)
    made = call.add("Concat", blobs, dims, {0: place})
    return Value(tuple(shape), values[0].dtype, made, made.rows, largest=largest)


def _alike(call: Call, values: Sequence[Value], axis: int) -> tuple[list[Blob], int]:
    """Rows of ``values`` in blobs whose dims differ in that of ``axis`` alone; and which it is."""
    rows = [value.row for value in values]
    ways: list[list[Dims]] = [
        [call.blob(value).dims for value in values],
        [plain_dims(row) for row in rows],
        [apart(row, [axis]) for row in rows],
    ]
    for way in ways:
        found = {tuple(dims_of(dims, row, [axis]) or ()) for dims, row in zip(way, rows, strict=True)}
        place = found.pop()
        if found or not place:
            continue
        others = {dims[: place[0]] + dims[place[0] + 1 :] for dims in way}
        if len(others) == 1:
            return [call.view(value, dims) for value, dims in zip(values, way, strict=True)], place[0]
    raise AssertionError(rows)


# ---- repeated


def tiled(call: Call, value: Value, repeats: Sequence[int]) -> Value:
    """``value`` so many times along each axis."""
    value = whole_along(call, value, [axis for axis, times in enumerate(repeats) if times > 1])
    row = value.row
    shape = [size * times for size, times in zip(value.shape, repeats, strict=True)]
    # What lies in front of an axis says what is repeated: all behind it, as one block.
    blocks: dict[int, int] = {}
    for axis, times in enumerate(repeats):
        if times > 1:
            outer = math.prod(row[:axis])
            blocks[outer] = blocks.get(outer, 1) * times
    if not blocks:
        return value
    if len(blocks) >= MOST_DIMS:
        last = max(axis for axis, times in enumerate(repeats) if times > 1)
        value = tiled(call, value, [times if axis == last else 1 for axis, times in enumerate(repeats)])
        return tiled(call, value, [1 if axis == last else times for axis, times in enumerate(repeats)])
    for dims in (call.blob(value).dims, plain_dims(row), _cut_at(math.prod(row), list(blocks))):
        starts = {math.prod(dims[:place]): place for place in reversed(range(len(dims)))}
        if len(dims) <= MOST_DIMS and all(outer in starts for outer in blocks):
            counts = [1] * len(dims)
            for outer, count in blocks.items():
                counts[starts[outer]] = count
            made = [size * count for size, count in zip(dims, counts, strict=True)]
            return held(value, call.add("Tile", (call.view(value, dims),), made, {2: counts}), shape)
    raise AssertionError(blocks)


def _cut_at(size: int, outers: Sequence[int]) -> Dims:
    """Dims of ``size`` elements, some of which have ``outers`` elements in front of them."""
    marks = [outer for outer in outers if outer > 1]
    return tuple(end // start for start, end in zip([1, *marks], [*marks, size], strict=True))


def expand(call: Call) -> Result:
    value = call.value(0)
    shape = np.broadcast_shapes(value.shape, tuple(call.numbers(1, "the shape")))
    value = in_shape(call, value, (1,) * (len(shape) - value.rank) + value.shape)
    return tiled(call, value, [size // own for size, own in zip(shape, value.shape, strict=True)])


def tile(call: Call) -> Result:
    repeats = call.numbers(1, "how often it is repeated")
    if 0 in repeats:
        raise Refusal("its result is empty, and ncnn has no empty blobs")
    return tiled(call, call.value(0), repeats)


OPS: Mapping[str, Op] = {
    "Concat": Op(concat, ANY),
    "Expand": Op(moving(expand), ANY),
    "Slice": Op(moving(slice_), ANY),
    "Split": Op(moving(split), ANY),
    "Tile": Op(moving(tile), ANY),
}
