"""Pad in its modes, and CenterCropPad."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.ncnn.call import ANY, Call, Op
from retarget.targets.ncnn.ops.places import taken
from retarget.targets.ncnn.ops.shape import held, standing
from retarget.targets.ncnn.ops.slices import cut, whole_along
from retarget.targets.ncnn.program import LARGEST_HALF, MASK, MOST_DIMS, NO_HALF, Blob, Param, Weight
from retarget.targets.ncnn.values import Refusal, Value
from retarget.targets.pads import Pair, of_center_crop_pad, of_pad

if TYPE_CHECKING:
    from retarget.targets.ncnn.values import Result

CONSTANT, REPLICATE, REFLECT = 0, 1, 2
"""``4`` of Padding."""

MODE, VALUE, CHANNEL_VALUES = 4, 5, 6
"""Keys of Padding."""

PADS: Mapping[int, Sequence[Pair | None]] = {
    1: ((2, 3),),
    2: ((0, 1), (2, 3)),
    3: ((7, 8), (0, 1), (2, 3)),
    4: (None, (7, 8), (0, 1), (2, 3)),
}
"""Its keys for each axis of a blob of so many: the first of four it does not pad."""


def pad(call: Call) -> Result:
    axes = call.numbers(3, "the axes") if call.has(3) else None
    pairs = of_pad(call.rank(0), call.numbers(1, "the padding"), axes)
    mode = call.attributes.get_string("mode", "constant") or "constant"
    value = cropped(call, call.value(0), pairs)
    pairs = [(max(front, 0), max(back, 0)) for front, back in pairs]
    if mode != "constant":
        return _result(call, _continued(call, value, pairs, mode), call.largest(0))
    filling = call.array(2, "the value to pad with").reshape(-1)[0].item() if call.has(2) else 0
    made = framed(call, value, pairs, filling)
    return _result(call, made, max(call.largest(0), abs(filling)))


def center_crop_pad(call: Call) -> Result:
    wanted, shape = call.numbers(1, "the shape"), call.shape(0)
    axes = [axis % len(shape) for axis in call.attributes.get_ints("axes", range(len(shape)))]
    pairs = of_center_crop_pad(len(shape), axes, [shape[axis] for axis in axes], wanted)
    value = cropped(call, call.value(0), pairs)
    made = framed(call, value, [(max(front, 0), max(back, 0)) for front, back in pairs], 0)
    return _result(call, made, call.largest(0))


def _result(call: Call, value: Value, largest: float) -> Result:
    return call.made(call.blob(value), value.shape, largest=largest, picks=True)


def cropped(call: Call, value: Value, pairs: Sequence[Pair]) -> Value:
    """``value`` without what negative pads, in front of and behind each axis, cut off."""
    parts = {
        axis: (max(-front, 0), back if back < 0 else None)
        for axis, (front, back) in enumerate(pairs)
        if min(front, back) < 0
    }
    for axis in parts:
        if sum(min(each, 0) for each in pairs[axis]) + value.shape[axis] < 1:
            raise Refusal("its result is empty, and ncnn has no empty blobs")
    return cut(call, value, parts)


def framed(call: Call, value: Value, pairs: Sequence[Pair], filling: float) -> Value:
    """``value`` with ``filling`` around it."""
    return _padded(call, value, pairs, CONSTANT, filling)


def _continued(call: Call, value: Value, pairs: Sequence[Pair], mode: str) -> Value:
    """``value`` with what ``mode`` makes of its own elements around it."""
    axes = [axis for axis, pair in enumerate(pairs) if any(pair)]
    # ncnn throws back once, and does not go around.
    if mode == "edge" or (mode == "reflect" and all(max(pairs[axis]) < value.shape[axis] for axis in axes)):
        return _padded(call, value, pairs, REFLECT if mode == "reflect" else REPLICATE, 0.0)
    for axis in axes:
        numbers = np.pad(np.arange(value.shape[axis]), pairs[axis], mode=mode)  # type: ignore[call-overload]
        value = taken(call, value, axis, [int(number) for number in numbers])
    return value


# ---- layers


def _padded(call: Call, value: Value, pairs: Sequence[Pair], mode: int, filling: float) -> Value:
    """Layers on as many axes at once as there are dims for."""
    left = [axis for axis, pair in enumerate(pairs) if any(pair)]
    value = whole_along(call, value, left)
    most = MOST_DIMS if math.isfinite(filling) else MOST_DIMS - 1
    while left:
        for first in range(len(left)):
            found = _standing(call, value, left[first:], most)
            if found is not None:
                break
        assert found is not None, "one axis alone has those in front and behind, which are three"
        blob, places = found
        shape = list(value.shape)
        for axis in left[first:]:
            shape[axis] += sum(pairs[axis])
        own = {place: pairs[axis] for place, axis in zip(places, left[first:], strict=True)}
        value = held(value, _layer(call, blob, own, mode, filling), shape)
        left = left[:first]
    return value


def _standing(call: Call, value: Value, axes: Sequence[int], most: int) -> tuple[Blob, list[int]] | None:
    """`standing`, of dims that can be padded: the first of four cannot."""
    found = standing(call, value, axes)
    if found is not None and (len(found[0].dims) > most or (len(found[0].dims) == MOST_DIMS and 0 in found[1])):
        if len(axes) > 1:
            return None
        (axis,) = axes
        row = value.row
        dims = (math.prod(row[:axis]), row[axis], math.prod(row[axis + 1 :]))
        return call.view(value, dims), [1]
    return found


def _layer(call: Call, blob: Blob, pairs: Mapping[int, Pair], mode: int, filling: float) -> Blob:
    """The layer that pads these dims."""
    params: dict[int, Param] = {MODE: mode} if mode else {}
    weights: list[Weight] = []
    if not math.isfinite(filling):
        # A param cannot be infinite; a weight for each channel can.
        ahead = MOST_DIMS - 1 - len(blob.dims)
        blob = call.lowering.reshaped(blob, (1,) * ahead + blob.dims, call.node.name or "")
        pairs = {place + ahead: pair for place, pair in pairs.items()}
    outs = list(blob.dims)
    for place, pair in pairs.items():
        keys = PADS[len(outs)][place]
        assert keys is not None, "the first of four"
        params |= dict(zip(keys, pair, strict=True))
        outs[place] += sum(pair)
    if not math.isfinite(filling):
        params[CHANNEL_VALUES] = outs[0]
        weights.append(Weight(np.full(outs[0], filling, np.float32), tagged=False))
    elif filling:
        params[VALUE] = float(filling)
        if abs(filling) > LARGEST_HALF:
            params[MASK] = NO_HALF
    return call.add("Padding", (blob,), outs, dict(sorted(params.items())), weights)


OPS: Mapping[str, Op] = {"CenterCropPad": Op(center_crop_pad, ANY), "Pad": Op(pad, ANY)}
