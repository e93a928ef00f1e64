"""Pooling, over windows and over all that there is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.ncnn.call import Call, Op
from retarget.targets.ncnn.ops import padding
from retarget.targets.ncnn.ops.convolution import convolved, window_params
from retarget.targets.ncnn.ops.elementwise import ABS, MAX, MUL, SQRT, SQUARE, function, joined, raised
from retarget.targets.ncnn.ops.windows import SUFFIX, Window, Windows, by_axis, numbered, windows
from retarget.targets.ncnn.program import Blob, Dims, Param, Weight
from retarget.targets.ncnn.values import Refusal, Value

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
    if len(call.outputs) > 1 and call.outputs[1]:
        raise Refusal("the places of the maxima are asked for: ncnn's Pooling gives none")
    x, found = call.spread(0), _windows(call)
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
    return call.made(made, (x.shape[0], *made.dims))


def lp_pool(call: Call) -> Result:
    x, found, power = call.spread(0), _windows(call), call.attributes.get_int("p", 2)
    powers = _powers(call, call.view(x, x.shape[1:]), power)
    made = _root(call, _sums(call, powers, found, 1.0), power)
    return call.made(made, (x.shape[0], *made.dims))


def global_average_pool(call: Call) -> Result:
    return _of_all(call, AVERAGE)


def global_max_pool(call: Call) -> Result:
    return _of_all(call, MAXIMUM)


def global_lp_pool(call: Call) -> Result:
    x, power = call.spread(0), call.attributes.get_int("p", 2)
    area = math.prod(_spatial(call))
    powers = _powers(call, call.view(x, (x.shape[1], area)), power)
    # ``0`` of Reduction: a sum; over axis 1.
    total = call.add("Reduction", (powers,), (x.shape[1],), {0: 0, 1: 0, 3: (1,), 4: 0, 5: 1})
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
        seen: Blob | None = None
        behind = window.span - 1
        for start in range(0, window.span, window.dilation):
            pairs = [(0, 0)] * x.rank
            pairs[axis] = -start, start - behind
            part = padding.cropped(call, x, pairs)
            shape, blob = part.shape, call.view(part, part.shape[1:])
            seen = blob if seen is None else joined(call, MAX, seen, blob)
        assert seen is not None
        x = Value(shape, x.dtype, seen, seen.rows)
    made = call.view(x, x.shape[1:])
    if all(each.stride == 1 for each in found.along):
        return made
    steps = [Window(size, 1, each.stride, 1, 0, 0, 0) for each, size in zip(found.along, x.shape[2:], strict=True)]
    return _pooled(call, made, Windows(tuple(steps), ""), MAXIMUM)


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
    factors = call.lowering.memory((area / counts)[None].astype(np.float32), (1, *found.outs))
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
    return convolved(call, x, found, window_params(found), channels, channels, [Weight(weights)])


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
}
