"""Pad in its modes, and CenterCropPad."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.ncnn.call import ANY, Call, Op
from retarget.targets.ncnn.program import MASK, MOST_DIMS, NO_HALF, Blob, Dims, Param, Weight
from retarget.targets.ncnn.values import Refusal, Shape, Value

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.ncnn.values import Result

CONSTANT, REPLICATE, REFLECT = 0, 1, 2
"""``4`` of Padding."""

MODE, VALUE, CHANNEL_VALUES = 4, 5, 6
"""Keys of Padding."""

BEGINS = {1: (2,), 2: (0, 2), 3: (7, 0, 2), 4: (None, 7, 0, 2)}
ENDS = {1: (3,), 2: (1, 3), 3: (8, 1, 3), 4: (None, 8, 1, 3)}
"""Its keys for each axis of a blob of so many. The first of four cannot be padded."""

OFFSETS = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 13, 1, 0)}
LEFT_OUT = {1: (6,), 2: (7, 6), 3: (8, 7, 6), 4: (8, 15, 7, 6)}
SIZES = {1: (3,), 2: (4, 3), 3: (5, 4, 3), 4: (5, 14, 4, 3)}
"""Keys of Crop: where it starts, how much is left out at the end, how much is taken."""

TO_END = -233
"""Of ``SIZES``: as much as there is in front of what is left out."""

Pair = tuple[int, int]


def pad(call: Call) -> Result:
    pairs, mode = _pairs(call), call.attributes.get_string("mode", "constant") or "constant"
    value = cropped(call, call.value(0), pairs)
    pairs = [(max(front, 0), max(back, 0)) for front, back in pairs]
    filling: int | float = 0
    if mode == "constant" and call.has(2):
        filling = call.array(2, "the value to pad with").reshape(-1)[0].item()
    largest = call.largest(0)
    if call.result_dtype().kind in "iu":
        largest = max(largest, abs(filling))
    made = framed(call, value, pairs, filling) if mode == "constant" else _continued(call, value, pairs, mode)
    return call.made(call.blob(made), made.shape, largest=largest)


def center_crop_pad(call: Call) -> Result:
    wanted, shape = call.numbers(1, "the shape"), call.shape(0)
    axes = [axis % len(shape) for axis in call.attributes.get_ints("axes", range(len(shape)))]
    pairs = [(0, 0)] * len(shape)
    for axis, size in zip(axes, wanted, strict=True):
        more = size - shape[axis]
        front = more // 2 if more > 0 else -(-more // 2)
        pairs[axis] = front, more - front
    value = cropped(call, call.value(0), pairs)
    made = framed(call, value, [(max(front, 0), max(back, 0)) for front, back in pairs], 0)
    return call.made(call.blob(made), made.shape, largest=call.largest(0))


def _pairs(call: Call) -> list[Pair]:
    """The pads of a Pad in front of and behind each axis."""
    rank, pads = call.rank(0), call.numbers(1, "the padding")
    axes = [axis % rank for axis in call.numbers(3, "the axes")] if call.has(3) else list(range(rank))
    pairs = [(0, 0)] * rank
    for index, axis in enumerate(axes):
        pairs[axis] = pads[index], pads[index + len(axes)]
    return pairs


# ---- some axes of a value at a time


def cropped(call: Call, value: Value, pairs: Sequence[Pair]) -> Value:
    """``value`` without what negative pads, in front of and behind each axis, cut off."""
    cuts = [(max(-front, 0), max(-back, 0)) for front, back in pairs]
    if any(size - front - back < 1 for size, (front, back) in zip(value.shape, cuts, strict=True)):
        raise Refusal("its result is empty, and ncnn has no empty blobs")
    value, todo = _ready(call, value, cuts)
    while todo:
        dims, places, todo = _fitting(call, value, todo, MOST_DIMS)
        params: dict[int, Param] = dict.fromkeys(SIZES[len(dims)], TO_END)
        outs = list(dims)
        for place, axis in places.items():
            front, back = cuts[axis]
            params |= {OFFSETS[len(dims)][place]: front, LEFT_OUT[len(dims)][place]: back}
            outs[place] -= front + back
        blob = call.add("Crop", (call.view(value, dims),), outs, dict(sorted(params.items())))
        value = resized(value, blob, {axis: outs[place] for place, axis in places.items()})
    return value


def framed(call: Call, value: Value, pairs: Sequence[Pair], filling: float) -> Value:
    """``value`` with ``filling`` around it."""
    value, todo = _ready(call, value, pairs)
    while todo:
        dims, places, todo = _fitting(call, value, todo, MOST_DIMS if math.isfinite(filling) else MOST_DIMS - 1)
        value = _padded(call, value, dims, places, pairs, CONSTANT, filling)
    return value


def _continued(call: Call, value: Value, pairs: Sequence[Pair], mode: str) -> Value:
    """``value`` with what ``mode`` makes of its own elements around it."""
    value, todo = _ready(call, value, pairs)
    if mode == "wrap" or any(mode == "reflect" and max(pairs[axis]) >= value.shape[axis] for axis in todo):
        for axis in todo:
            numbers = np.pad(np.arange(value.row[axis]), pairs[axis], mode=mode)  # type: ignore[call-overload]
            value = taken(call, value, axis, numbers)
        return value
    while todo:
        dims, places, todo = _fitting(call, value, todo, MOST_DIMS)
        value = _padded(call, value, dims, places, pairs, REFLECT if mode == "reflect" else REPLICATE, 0.0)
    return value


def _ready(call: Call, value: Value, pairs: Sequence[Pair]) -> tuple[Value, list[int]]:
    """``value`` with rows that no pad is for, and the axes that have pads."""
    axes = [axis for axis, pair in enumerate(pairs) if any(pair)]
    return (call.with_rows(value, 1) if 0 in axes else value), axes


def _fitting(call: Call, value: Value, axes: Sequence[int], most: int) -> tuple[Dims, dict[int, int], list[int]]:
    """Dims of at most ``most`` axes in which as many of the last ``axes`` as can be are on their own, where these are
    (place → axis), and which are left. The first of four dims is none of them.

    They are those that the value has already where these will do.
    """
    dims = call.blob(value).dims
    held = _held(dims, value.row, axes)
    if held is not None and len(dims) <= most and not (len(dims) == MOST_DIMS and 0 in held):
        return dims, held, []
    for start in range(len(axes)):
        own, found, places = axes[start:], [1], dict[int, int]()
        joined = True
        for axis, size in enumerate(value.row):
            if axis in own:
                if joined and found[-1] == 1:
                    found.pop()
                places[len(found)] = axis
                found.append(size)
                joined = False
            elif joined:
                found[-1] *= size
            else:
                found.append(size)
                joined = True
        if joined and len(found) > 1 and found[-1] == 1:
            found.pop()
        if len(found) <= most and not (len(found) == MOST_DIMS and 0 in places):
            return tuple(found), places, list(axes[:start])
    raise AssertionError("one axis alone has those in front and behind, which are three")


def _held(dims: Dims, row: Shape, axes: Sequence[int]) -> dict[int, int] | None:
    """Where in ``dims``, which hold ``row``, each of ``axes`` is on its own; None if one of them is not."""
    places: dict[int, int] = {}
    for axis in axes:
        ahead = math.prod(row[:axis])
        fits = [
            place
            for place, size in enumerate(dims)
            if size == row[axis] and math.prod(dims[:place]) == ahead and place > max(places, default=-1)
        ]
        if not fits:
            return None
        places[fits[0]] = axis
    return places


def resized(value: Value, blob: Blob, sizes: Mapping[int, int]) -> Value:
    """``blob`` as ``value`` with other sizes of some axes."""
    shape: Shape = tuple(sizes.get(axis, size) for axis, size in enumerate(value.shape))
    return replace(value, shape=shape, blob=blob, index=None, source=None)


def _padded(
    call: Call,
    value: Value,
    dims: Dims,
    places: Mapping[int, int],
    pairs: Sequence[Pair],
    mode: int,
    filling: float,
) -> Value:
    params: dict[int, Param] = {MODE: mode} if mode else {}
    outs = list(dims)
    weights: list[Weight] = []
    if not math.isfinite(filling):
        # A param cannot be infinite; a weight for each channel can.
        ahead = MOST_DIMS - 1 - len(dims)
        dims, outs = (1,) * ahead + dims, [1] * ahead + outs
        places = {place + ahead: axis for place, axis in places.items()}
    for place, axis in places.items():
        begin, end = BEGINS[len(dims)][place], ENDS[len(dims)][place]
        assert begin is not None
        assert end is not None
        params |= {begin: pairs[axis][0], end: pairs[axis][1]}
        outs[place] += sum(pairs[axis])
    if not math.isfinite(filling):
        params[CHANNEL_VALUES] = outs[0]
        weights.append(Weight(np.full(outs[0], filling, np.float32), tagged=False))
    elif filling:
        params[VALUE] = float(filling)
        if abs(filling) > np.finfo(np.float16).max:
            params[MASK] = NO_HALF
    blob = call.add("Padding", (call.view(value, dims),), outs, dict(sorted(params.items())), weights)
    return resized(value, blob, {axis: outs[place] for place, axis in places.items()})


def pieces(numbers: Array) -> list[Array]:
    """``numbers`` in pieces in each of which one is after the other."""
    return np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)


def taken(call: Call, value: Value, axis: int, numbers: Array) -> Value:
    """The elements along ``axis`` (of one row) that have these numbers: pieces that are side by side, joined."""
    source = call.blob(value)
    if (held := _held(source.dims, value.row, [axis])) is not None:
        (place,) = held
    else:
        place = 1
        source = call.view(value, (math.prod(value.row[:axis]), value.row[axis], math.prod(value.row[axis + 1 :])))
    dims = source.dims
    found = []
    for piece in pieces(numbers):
        first, count = int(piece[0]), len(piece)
        params: dict[int, Param] = dict.fromkeys(SIZES[len(dims)], TO_END)
        params |= {OFFSETS[len(dims)][place]: first, SIZES[len(dims)][place]: count}
        outs = (*dims[:place], count, *dims[place + 1 :])
        found.append(
            source if count == dims[place] else call.add("Crop", (source,), outs, dict(sorted(params.items())))
        )
    blob = found[0]
    if len(found) > 1:
        blob = call.add("Concat", found, (*dims[:place], len(numbers), *dims[place + 1 :]), {0: place})
    return resized(value, blob, {axis: len(numbers)})


OPS: Mapping[str, Op] = {"CenterCropPad": Op(center_crop_pad, ANY), "Pad": Op(pad, ANY)}
