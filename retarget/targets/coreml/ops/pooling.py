"""Pooling, over windows and over all that there is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.coreml.call import Call, Op
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.parts import part
from retarget.targets.coreml.ops.windows import Window, Windows, windows, zero_padded
from retarget.targets.coreml.values import Refusal, Result, dtype_of, is_known
from retarget.targets.sliding import Sliding

if TYPE_CHECKING:
    from retarget.protocols import Array


def max_pool(call: Call) -> list[Result]:
    x = call.var(0)
    if len(call.outputs) > 1 and call.outputs[1]:
        return list(_max_with_places(call, x))
    found = _windows(call)
    if not found.is_dilated:
        return [call.mil.max_pool(x=x, kernel_sizes=found.kernel, strides=found.strides, **found.padding), None]
    x = _extended(call, x, found, -math.inf)
    for axis, window in enumerate(found.along, start=2):
        seen = [_every(call, x, axis, tap, window) for tap in range(window.kernel)]
        x = seen[0]
        for other in seen[1:]:
            x = call.mil.maximum(x=x, y=other)
    return [x, None]


def average_pool(call: Call) -> Var:
    x, found = call.var(0), _windows(call)
    with_pads = call.attributes.get_int("count_include_pad", 0) != 0
    if found.is_dilated:
        return _dilated_average(call, x, found, with_pads=with_pads)
    padding = found.padding
    if with_pads and found.kind != "custom":
        call.sizes(0, range(2, x.rank))
    if with_pads and any(each.extra > each.end for each in found.along):
        # Pads count, and what lies behind them does not.
        x = zero_padded(call, x, [each.begin for each in found.along], [each.end for each in found.along])
        ends = [max(each.extra - each.end, 0) for each in found.along]
        padding = {"pad_type": "custom", "pad": [number for end in ends for number in (0, end)]}
        with_pads = False
    return call.mil.avg_pool(
        x=x,
        kernel_sizes=found.kernel,
        strides=found.strides,
        exclude_padding_from_average=not with_pads,
        **padding,
    )


def lp_pool(call: Call) -> Var:
    power, found = call.attributes.get_int("p", 2), _windows(call)
    x = _extended(call, _powers(call, call.var(0), power), found, 0.0)
    return _root(call, _sums(call, x, found, 1.0), power)


def global_average_pool(call: Call) -> Var:
    x = call.var(0)
    return call.mil.reduce_mean(x=x, axes=_spatial(x), keep_dims=True)


def global_max_pool(call: Call) -> Var:
    x = call.var(0)
    return call.mil.reduce_max(x=x, axes=_spatial(x), keep_dims=True)


def global_lp_pool(call: Call) -> Var:
    x, power = call.var(0), call.attributes.get_int("p", 2)
    return _root(call, call.mil.reduce_sum(x=_powers(call, x, power), axes=_spatial(x), keep_dims=True), power)


def max_unpool(call: Call) -> Var:
    """Zeros, and each element at the place that it had."""
    attributes = call.attributes
    kernel = attributes.get_ints("kernel_shape") or []
    sliding = Sliding.of(call.node, len(kernel))
    strides = sliding.strides
    if call.has(2):
        raise Refusal("the size of the result is given: places are numbered for another one")
    if any(stride < taps for stride, taps in zip(strides, kernel, strict=True)):
        raise Refusal(f"strides={list(strides)}: windows overlap, and several elements would have one place")
    sizes = call.sizes(0)
    spatial = [sliding.unpooled(axis, size, kernel[axis]) for axis, size in enumerate(sizes[2:])]
    shape = [*sizes[:2], *spatial]
    zeros = np.zeros(math.prod(shape), call.dtype(0))
    places = call.mil.reshape(x=call.var(1), shape=[math.prod(sizes)])
    values = call.mil.reshape(x=call.var(0), shape=[math.prod(sizes)])
    made = call.mil.scatter(data=zeros, indices=places, updates=values, axis=0, mode="update")
    return call.mil.reshape(x=made, shape=shape)


# ---- windows


def _windows(call: Call) -> Windows:
    attributes = call.attributes
    kernel, auto = attributes.get_ints("kernel_shape") or [], attributes.get_string("auto_pad") or ""
    found = windows(call, kernel, ceil=attributes.get_int("ceil_mode", 0) != 0)
    for axis, each in enumerate(found.along, start=2):
        if max(each.begin, each.end) >= each.span:
            raise Refusal(f"pads as wide as the window of {each.span}: it would lie in them alone")
        if auto.startswith("SAME") and each.dilation != 1:
            raise Refusal(f"auto_pad={auto} with dilations: ONNX Runtime pads otherwise than ONNX says")
        left = each.stride - each.span
        if each.size is not None and each.out is not None:
            left = each.size - each.span - (each.out - 1) * each.stride
        if auto.startswith("SAME") and left > 1:
            call.sizes(0, [axis])
            raise Refusal(
                f"auto_pad={auto} with strides that leave elements over: ONNX Runtime leaves some at both ends"
            )
    return found


def _extended(call: Call, x: Var, found: Windows, value: float) -> Var:
    """``x`` with the pads as elements."""
    if found.kind != "custom":
        call.sizes(0, range(2, x.rank))
    return zero_padded(call, x, [each.begin for each in found.along], [each.extra for each in found.along], value)


def _every(call: Call, x: Var, axis: int, tap: int, window: Window) -> Var:
    """What one tap sees along one axis of what is padded, at all places of the window."""
    start = tap * window.dilation
    behind = window.span - 1 - start
    return part(call, x, axis, slice(start, -behind if behind else None, window.stride))


def _max_with_places(call: Call, x: Var) -> tuple[Var, Var]:
    """The maxima, and the places of the first of each in the whole operand: by one comparison for each tap."""
    found, rank = _windows(call), x.rank - 2
    sizes = call.sizes(0, range(1, x.rank))
    channels, spatial = sizes[0], sizes[1:]
    area = math.prod(spatial)
    # Places within an image, then of the image.
    steps = [math.prod(spatial[axis + 1 :]) for axis in range(rank)]
    if call.attributes.get_int("storage_order", 0):
        steps = [math.prod(spatial[:axis]) for axis in range(rank)]
    around = _extended(call, x, found, -math.inf)
    best: Var | None = None
    best_place: Var | Array | None = None
    for taps in itertools.product(*map(range, found.kernel)):
        seen, place = around, np.zeros((1, 1, *[1] * rank), np.int32)
        for axis, (tap, window) in enumerate(zip(taps, found.along, strict=True)):
            assert window.out is not None
            seen = _every(call, seen, axis + 2, tap, window)
            along = (np.arange(window.out) * window.stride + tap * window.dilation - window.begin) * steps[axis]
            place = place + along.astype(np.int32).reshape([-1 if each == axis else 1 for each in range(-2, rank)])
        if best is None or best_place is None:
            best, best_place = seen, place
            continue
        larger = call.mil.cast(x=call.mil.greater(x=seen, y=best), dtype="int32")
        # `select` takes its shape from the values alone: places are moved by what they differ.
        step = call.mil.mul(x=larger, y=call.mil.sub(x=call.mil.const(val=place), y=best_place))
        best_place = call.mil.add(x=best_place, y=step)
        best = call.mil.maximum(x=seen, y=best)
    assert best is not None
    return best, call.mil.add(x=_firsts(call, x, channels, area), y=best_place)


def _firsts(call: Call, x: Var, channels: int, area: int) -> Var | Array:
    """The number of the first element of each channel of each image."""
    shape = [-1, channels, *[1] * (x.rank - 2)]
    if is_known(x.shape[0]):
        count = int(x.shape[0]) * channels
        if count * area > np.iinfo(np.int32).max:
            raise Refusal("the places of the maxima are more than int32 can number")
        return (np.arange(count, dtype=np.int32) * area).reshape(shape)
    end = call.mil.reduce_prod(x=call.mil.shape(x=x), axes=[0], keep_dims=False)
    return call.mil.reshape(x=call.mil.range_1d(start=np.int32(0), end=end, step=np.int32(area)), shape=shape)


# ---- sums


def _dilated_average(call: Call, x: Var, found: Windows, *, with_pads: bool) -> Var:
    area = math.prod(found.kernel)
    whole = _sums(call, _extended(call, x, found, 0.0), found, 1 / area)
    if not any(number for each in found.along for number in (each.begin, each.extra)):
        return whole
    call.sizes(0, range(2, x.rank))
    counts = np.ones((), np.float64)
    for window in found.along:
        counts = np.multiply.outer(counts, _counts(window, with_pads=with_pads))
    if not counts.all():
        raise Refusal("a window lies in the pads alone: there is nothing to average")
    return call.mil.mul(x=whole, y=(area / counts)[None, None].astype(dtype_of(x)))


def _counts(window: Window, *, with_pads: bool) -> Array:
    """For each result along an axis: the taps that count."""
    assert window.size is not None
    assert window.out is not None
    taps = np.arange(window.out)[:, None] * window.stride - window.begin + np.arange(window.kernel) * window.dilation
    low, high = (-window.begin, window.size + window.end) if with_pads else (0, window.size)
    return np.asarray(((taps >= low) & (taps < high)).sum(axis=1))


def _sums(call: Call, x: Var, found: Windows, weight: float) -> Var:
    """The sum of ``weight`` times what each tap sees: a convolution of each channel alone."""
    (channels,) = call.sizes(0, [1])
    return call.mil.conv(
        x=x,
        weight=call.mil.const(val=np.full((channels, 1, *found.kernel), weight, dtype_of(x))),
        strides=found.strides,
        dilations=[each.dilation for each in found.along],
        groups=channels,
        pad_type="valid",
    )


def _powers(call: Call, x: Var, power: int) -> Var:
    if power == 2:
        return call.mil.square(x=x)
    magnitude = call.mil.abs(x=x)
    return magnitude if power == 1 else call.mil.pow(x=magnitude, y=float(power))


def _root(call: Call, x: Var, power: int) -> Var:
    if power == 1:
        return x
    return call.mil.sqrt(x=x) if power == 2 else call.mil.pow(x=x, y=1 / power)


def _spatial(x: Var) -> list[int]:
    """The axes behind the channels."""
    if x.rank < 3:
        raise Refusal(f"{x.rank} axes: there are none behind the channels")
    return list(range(2, x.rank))


OPS: Mapping[str, Op] = {
    "AveragePool": Op(average_pool),
    "GlobalAveragePool": Op(global_average_pool),
    "GlobalLpPool": Op(global_lp_pool),
    "GlobalMaxPool": Op(global_max_pool),
    "LpPool": Op(lp_pool),
    "MaxPool": Op(max_pool),
    "MaxUnpool": Op(max_unpool),
}
