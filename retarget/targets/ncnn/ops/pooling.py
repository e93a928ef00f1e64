"""Pooling, over windows and over all that there is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.ncnn.call import Call, Op
from retarget.targets.ncnn.ops import padding
from retarget.targets.ncnn.ops.comparison import above, opposite
from retarget.targets.ncnn.ops.convolution import convolved
from retarget.targets.ncnn.ops.elementwise import ABS, ADD, MAX, MUL, SQRT, SQUARE, SUB, function, joined, raised
from retarget.targets.ncnn.ops.places import taken
from retarget.targets.ncnn.ops.reduction import SUM, reduced
from retarget.targets.ncnn.ops.shape import held
from retarget.targets.ncnn.ops.slices import cut
from retarget.targets.ncnn.ops.windows import SUFFIX, Window, Windows, by_axis, numbered, windows
from retarget.targets.ncnn.program import Blob, Dims, Param, Weight
from retarget.targets.ncnn.values import WHOLE, Refusal, Value
from retarget.targets.sliding import Sliding

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.ncnn.values import Result

KIND, GLOBAL, PAD_MODE, WITH_PADS = 0, 4, 5, 6
"""Keys: maximum or average, whether of all, how it pads, whether pads count in an average."""

MAXIMUM, AVERAGE = 0, 1

VALID, SAME_UPPER, SAME_LOWER = 1, 2, 3
"""How it pads: as numbers say and no more, or as its names say."""

KERNEL, STRIDE, BEGIN, END = by_axis(1, 11, 21), by_axis(2, 12, 22), by_axis(3, 13, 23), by_axis(14, 15, 16)
"""Keys of each axis."""


def max_pool(call: Call) -> list[Result]:
    x, found = call.spread(0), _windows(call)
    if len(call.outputs) > 1 and call.outputs[1]:
        return _max_with_places(call, x, found)
    blob = call.view(x, x.shape[1:])
    made = _dilated_maximum(call, x, found) if found.is_dilated else _pooled(call, blob, found, MAXIMUM)
    return [call.made(made, (x.shape[0], *made.dims)), None]


def average_pool(call: Call) -> Result:
    x, found = call.spread(0), _windows(call)
    with_pads = call.attributes.get_int("count_include_pad", 0) != 0
    if found.is_dilated:
        made = _dilated_average(call, x, found, with_pads=with_pads)
    elif with_pads and any(each.extra > each.end for each in found.along):
        # Pads count, and what lies behind them does not.
        padded = padding.framed(call, x, [(0, 0)] * 2 + [(each.begin, each.end) for each in found.along], 0.0)
        along = [
            Window(size, each.kernel, each.stride, 1, 0, 0, max(each.extra - each.end, 0))
            for each, size in zip(found.along, padded.shape[2:], strict=True)
        ]
        made = _pooled(call, call.view(padded, padded.shape[1:]), Windows(tuple(along), ""), AVERAGE)
    else:
        made = _pooled(call, call.view(x, x.shape[1:]), found, AVERAGE, with_pads=with_pads)
    return call.made(made, (*x.shape[:2], *found.outs))


def lp_pool(call: Call) -> Result:
    x, found, power = call.spread(0), _windows(call), call.attributes.get_int("p", 2)
    powers = _powers(call, call.view(x, x.shape[1:]), power)
    made = _root(call, _sums(call, powers, found, 1.0), power)
    return call.made(made, (*x.shape[:2], *found.outs))


def global_average_pool(call: Call) -> Result:
    return _of_all(call, AVERAGE)


def global_max_pool(call: Call) -> Result:
    return _of_all(call, MAXIMUM)


def global_lp_pool(call: Call) -> Result:
    x, power = call.spread(0), call.attributes.get_int("p", 2)
    area = math.prod(_spatial(call))
    powers = _powers(call, call.view(x, (x.shape[1], area)), power)
    total = reduced(call, SUM, powers, [1], keeps=False)
    return call.made(_root(call, total, power), _as_one(call))


# ---- layers


def _windows(call: Call) -> Windows:
    attributes = call.attributes
    kernel, auto = attributes.get_ints("kernel_shape") or [], attributes.get_string("auto_pad") or ""
    found = windows(call, kernel, ceil=attributes.get_int("ceil_mode", 0) != 0)
    for each in found.along:
        if max(each.begin, each.end) >= each.span:
            raise Refusal(f"pads as wide as the window of {each.span}: it would lie in them alone")
        if auto.startswith("SAME") and each.dilation != 1:
            raise Refusal(f"auto_pad={auto} with dilations: ONNX Runtime pads otherwise than ONNX says")
        if auto.startswith("SAME") and each.size - each.span - (each.out - 1) * each.stride > 1:
            raise Refusal(
                f"auto_pad={auto} with strides that leave elements over: ONNX Runtime leaves some at both ends"
            )
    return found


def _pooled(call: Call, x: Blob, found: Windows, kind: int, *, with_pads: bool = False) -> Blob:
    params: dict[int, Param] = {KIND: kind, PAD_MODE: VALID}
    strides = [each.stride for each in found.along]
    params |= numbered(KERNEL, found.kernel) | numbered(STRIDE, strides)
    # Pads that ncnn finds itself count in its averages.
    if found.auto and (kind == MAXIMUM or with_pads):
        params[PAD_MODE] = {"SAME_UPPER": SAME_UPPER, "SAME_LOWER": SAME_LOWER}[found.auto]
    elif found.has_pads:
        params |= numbered(BEGIN, [each.begin for each in found.along])
        params |= numbered(END, [each.extra for each in found.along])
    if with_pads:
        params[WITH_PADS] = 1
    return call.add(f"Pooling{SUFFIX[len(found.along)]}", (x,), (x.dims[0], *found.outs), dict(sorted(params.items())))


def _of_all(call: Call, kind: int) -> Result:
    x, spatial = call.spread(0), _spatial(call)
    sizes = spatial if len(spatial) in (1, 2) else (math.prod(spatial),)
    blob = call.view(x, (x.shape[1], *sizes))
    made = call.add(f"Pooling{SUFFIX[len(sizes)]}", (blob,), (x.shape[1],), {KIND: kind, GLOBAL: 1})
    return call.made(made, _as_one(call))


def _as_one(call: Call) -> Dims:
    """The shape of what has one element in place of all behind the channels."""
    shape = call.shape(0)
    return (*shape[:2], *[1] * (len(shape) - 2))


def _spatial(call: Call) -> Dims:
    """The sizes behind the channels."""
    if call.rank(0) < 3:
        raise Refusal(f"{call.rank(0)} axes: there are none behind the channels")
    return call.shape(0)[2:]


# ---- windows with holes


def _dilated_maximum(call: Call, x: Value, found: Windows) -> Blob:
    """The maximum of what each tap sees, along one axis after the other; of these, those at the strides."""
    x = padding.framed(call, x, _frame(found), -math.inf if found.has_pads else 0.0)
    for axis, window in enumerate(found.along, start=2):
        count = x.shape[axis] - window.span + 1
        starts = range(0, window.span, window.dilation)
        parts = [cut(call, x, {axis: (start, start + count)}) for start in starts]
        best, *others = (call.view(part, part.shape[1:]) for part in parts)
        for other in others:
            best = joined(call, MAX, best, other)
        x = held(x, best, parts[0].shape)
    return _at_strides(call, x, found)


def _at_strides(call: Call, x: Value, found: Windows) -> Blob:
    """The elements of ``x`` at which windows start."""
    steps = [Window(size, 1, each.stride, 1, 0, 0, 0) for each, size in zip(found.along, x.shape[2:], strict=True)]
    blob = call.view(x, x.shape[1:])
    return blob if all(each.stride == 1 for each in steps) else _pooled(call, blob, Windows(tuple(steps), ""), MAXIMUM)


def _max_with_places(call: Call, x: Value, found: Windows) -> list[Result]:
    """The maxima, and the places of the first of each in the whole operand: by one comparison for each tap."""
    (count, channels, *spatial), rank = x.shape, len(found.along)
    steps = [math.prod(spatial[axis + 1 :]) for axis in range(rank)]
    if call.attributes.get_int("storage_order", 0):
        steps = [math.prod(spatial[:axis]) for axis in range(rank)]
    around = padding.framed(call, x, _frame(found), -math.inf if found.has_pads else 0.0)
    best, place = None, None
    for taps in itertools.product(*map(range, found.kernel)):
        parts, number = {}, np.zeros([1] * (rank + 1), np.float32)
        for axis, (tap, window) in enumerate(zip(taps, found.along, strict=True)):
            start = tap * window.dilation
            parts[axis + 2] = start, start + (window.out - 1) * window.stride + 1
            along = (np.arange(window.out) * window.stride + start - window.begin) * steps[axis]
            number = number + along.astype(np.float32).reshape([-1 if each == axis else 1 for each in range(-1, rank)])
        seen = _at_strides(call, cut(call, around, parts), found)
        own = call.lowering.memory(number, number.shape)
        if best is None or place is None:
            best, place = seen, own
            continue
        larger = above(call, joined(call, SUB, seen, best), 0.0)
        place = joined(call, ADD, joined(call, MUL, larger, joined(call, SUB, own, place)), place)
        best = joined(call, MAX, best, seen)
    assert best is not None
    assert place is not None
    area, shape = math.prod(spatial), (count, *best.dims)
    place = joined(call, ADD, place, _firsts(call, channels, area, rank))
    if count > 1:
        place = joined(call, ADD, place, _row_firsts(call, count, channels * area, rank))
    return [call.made(best, shape), call.made(place, shape, index=1, largest=float(count * channels * area))]


def _firsts(call: Call, channels: int, area: int, rank: int) -> Blob:
    """The number of the first element of each channel of an image."""
    numbers = np.arange(channels, dtype=np.float32).reshape(-1, *[1] * rank) * area
    return call.lowering.memory(numbers, numbers.shape)


def _row_firsts(call: Call, count: int, step: int, rank: int) -> Blob:
    """The number of the first element of each image, as rows."""
    numbers = np.arange(count, dtype=np.float32) * step
    value = Value((count, *[1] * (rank + 1)), numbers.dtype, call.lowering.memory(numbers, numbers.shape))
    return call.view(call.with_rows(value, count), [1] * (rank + 1))


def max_unpool(call: Call) -> Result:
    """Each element, all over the window that it is of, where its place is that of the result, and zeros elsewhere."""
    attributes, x, places = call.attributes, call.spread(0), call.spread(1)
    kernel = attributes.get_ints("kernel_shape") or []
    sliding = Sliding.of(call.node, len(kernel))
    strides = sliding.strides
    if call.has(2):
        raise Refusal("the size of the result is given: places are numbered for another one")
    if any(stride < taps for stride, taps in zip(strides, kernel, strict=True)):
        raise Refusal(f"strides={list(strides)}: windows overlap, and several elements would have one place")
    count, channels, *sizes = x.shape
    outs = []
    for axis, (size, taps, stride) in enumerate(zip(sizes, kernel, strides, strict=True)):
        outs.append(sliding.unpooled(axis, size, taps))
        windows_of = [int(place) for place in (np.arange(outs[-1]) + sliding.pads[axis]) // stride]
        x, places = taken(call, x, axis + 2, windows_of), taken(call, places, axis + 2, windows_of)
    total = math.prod(outs)
    if count * channels * total > WHOLE:
        raise Refusal("the places of the maxima may be beyond 2^24, up to which float32 holds all")
    numbers = np.arange(channels * total, dtype=np.float32).reshape(channels, *outs)
    own = call.lowering.memory(numbers, numbers.shape)
    if count > 1:
        own = joined(call, ADD, own, _row_firsts(call, count, channels * total, len(outs)))
    differ = above(call, function(call, ABS, joined(call, SUB, call.view(places, (channels, *outs)), own)), 0.0)
    made = joined(call, MUL, call.view(x, (channels, *outs)), opposite(call, differ))
    return call.made(made, (count, channels, *outs))


def _dilated_average(call: Call, x: Value, found: Windows, *, with_pads: bool) -> Blob:
    area = math.prod(found.kernel)
    whole = _sums(call, call.view(x, x.shape[1:]), found, 1 / area)
    if not found.has_pads:
        return whole
    counts = np.ones((), np.float64)
    for window in found.along:
        counts = np.multiply.outer(counts, _counts(window, with_pads=with_pads))
    if not counts.all():
        raise Refusal("a window lies in the pads alone: there is nothing to average")
    factors = call.lowering.memory((area / counts).astype(np.float32), (1, *whole.dims[1:]))
    return joined(call, MUL, whole, factors)


def _counts(window: Window, *, with_pads: bool) -> Array:
    """For each result along an axis: the taps that count."""
    taps = np.arange(window.out)[:, None] * window.stride - window.begin + np.arange(window.kernel) * window.dilation
    low, high = (-window.begin, window.size + window.end) if with_pads else (0, window.size)
    return np.asarray(((taps >= low) & (taps < high)).sum(axis=1))


def _frame(found: Windows) -> list[tuple[int, int]]:
    return [(0, 0), (0, 0), *((each.begin, each.extra) for each in found.along)]


# ---- sums


def _sums(call: Call, x: Blob, found: Windows, weight: float) -> Blob:
    """The sum of ``weight`` times what each tap sees: a convolution of each channel alone."""
    channels = x.dims[0]
    along = tuple(
        Window(each.size, each.kernel, each.stride, each.dilation, each.begin, each.extra, each.extra)
        for each in found.along
    )
    found = Windows(along, found.auto)
    weights = np.full((channels, 1, *found.kernel), weight, np.float32)
    return convolved(call, x, found, channels, channels, [Weight(weights)])


def _powers(call: Call, x: Blob, power: int) -> Blob:
    if power == 2:
        return function(call, SQUARE, x)
    magnitude = function(call, ABS, x)
    return magnitude if power == 1 else raised(call, magnitude, power)


def _root(call: Call, x: Blob, power: int) -> Blob:
    if power == 1:
        return x
    return function(call, SQRT, x) if power == 2 else raised(call, x, 1 / power)


OPS: Mapping[str, Op] = {
    "AveragePool": Op(average_pool),
    "GlobalAveragePool": Op(global_average_pool),
    "GlobalLpPool": Op(global_lp_pool),
    "GlobalMaxPool": Op(global_max_pool),
    "LpPool": Op(lp_pool),
    "MaxPool": Op(max_pool),
    "MaxUnpool": Op(max_unpool),
}
