"""Pooling: windows along one to three axes, and over all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from retarget.targets.sliding import Sliding
from retarget.targets.tflite.call import Call, Int8, Op
from retarget.targets.tflite.layout import Way
from retarget.targets.tflite.ops.convolution import IMAGE, LINE, POINT, VOLUME, as_image, as_line
from retarget.targets.tflite.ops.windows import Window, bound, extended, kept, padded, padding, windows
from retarget.targets.tflite.program import Constant, Options
from retarget.targets.tflite.values import Refusal, Value

if TYPE_CHECKING:
    from retarget.protocols import Array

LOWEST = float(np.finfo(np.float32).min)
"""What is never a maximum."""

Step: TypeAlias = Callable[[Value, Sequence[Window]], Value]
"""Pools the last two axes of a value of four."""


def max_pool(call: Call) -> list[Value | None]:
    indices = call.node.outputs[1] if len(call.node.outputs) > 1 else None
    if indices is not None and (indices.uses() or indices.is_graph_output()):
        return list(_max_with_places(call))

    def step(value: Value, found: Sequence[Window]) -> Value:
        if any(window.dilation != 1 for window in found):
            return _dilated_max(call, value, found)
        value, mode = padded(call, value, found, LOWEST)
        return call.emit("MAX_POOL_2D", [value], _shape(value, found), options=_options(found, mode))

    return [_over(call, _windows(call), step), None]


def average_pool(call: Call) -> Value:
    return _over(call, _windows(call), lambda value, found: _average(call, value, found))


def lp_pool(call: Call) -> Value:
    power = call.attributes.get_int("p", 2)

    def step(value: Value, found: Sequence[Window]) -> Value:
        value = extended(call, value, [each.begin for each in found], [each.extra for each in found])
        return _weighed(call, value, found, 1.0)

    return _root(call, _over(call, _windows(call), step, _powers(call, call.value(0), power)), power)


def global_average_pool(call: Call) -> Value:
    return _reduced(call, "MEAN", call.value(0))


def global_max_pool(call: Call) -> Value:
    return _reduced(call, "REDUCE_MAX", call.value(0))


def global_lp_pool(call: Call) -> Value:
    power = call.attributes.get_int("p", 2)
    return _root(call, _reduced(call, "SUM", _powers(call, call.value(0), power)), power)


def max_unpool(call: Call) -> Value:
    """Zeros, and each element at the place that it had."""
    value, places, attributes = call.value(0), call.value(1), call.attributes
    kernel = attributes.get_ints("kernel_shape") or []
    sliding = Sliding.of(call.node, len(kernel))
    strides = sliding.strides
    if call.has(2):
        raise Refusal("the size of the result is given: places are numbered for another one")
    if any(stride < taps for stride, taps in zip(strides, kernel, strict=True)):
        raise Refusal(f"strides={strides}: windows overlap, and the kernel would add what has the same place")
    spatial = [sliding.unpooled(axis, size, kernel[axis]) for axis, size in enumerate(value.shape[2:])]
    shape, count = (*value.shape[:2], *spatial), math.prod(value.shape)
    numbers = call.reshape(places, (count, 1))
    updates = call.reshape(value, (count,))
    whole = call.ints([math.prod(shape)])
    made = call.emit(
        "SCATTER_ND", [numbers, updates, whole], (math.prod(shape),), np.float32, Options("ScatterNdOptions")
    )
    return call.reshape(made, shape)


# ---- windows


def _windows(call: Call) -> tuple[Window, ...]:
    attributes = call.attributes
    kernel, auto = attributes.get_ints("kernel_shape") or [], attributes.get_string("auto_pad") or ""
    found = windows(call, call.operand(0).shape[2:], kernel, ceil=attributes.get_int("ceil_mode", 0) != 0)
    if auto.startswith("SAME"):
        if any(window.dilation != 1 for window in found):
            raise Refusal(f"auto_pad={auto} with dilations: ONNX Runtime pads otherwise than ONNX says")
        if any((window.out - 1) * window.stride + window.span - window.size < -1 for window in found):
            raise Refusal(
                f"auto_pad={auto} with strides that leave elements over: ONNX Runtime leaves some at both ends"
            )
    return found


def _over(call: Call, found: Sequence[Window], step: Step, source: Value | None = None) -> Value:
    """``step`` on operand 0, or on ``source`` made of it; of a volume on the last two axes, and then on the first."""
    value = source or call.value(0)
    if value.rank == LINE:
        return as_line(call, step(as_image(call, value), (POINT, *found)))
    if value.rank == IMAGE:
        return step(value, found)
    if value.rank != VOLUME:
        raise Refusal(f"{value.rank - 2} spatial axes: the kernels have one to three")
    batch, channels, depth, *plane = value.shape
    planes = step(_reshaped(call, value, (batch * depth, channels, *plane)), found[1:])
    size = math.prod(planes.shape[2:])
    rest = replace(POINT, size=size, out=size)
    made = step(_reshaped(call, planes, (batch, channels, depth, size)), (found[0], rest))
    return call.reshape(made, (batch, channels, *(window.out for window in found)))


def _reshaped(call: Call, value: Value, shape: Sequence[int]) -> Value:
    """``value`` with other axes in front of the channels, which are last."""
    stored = call.ints(call.placed(shape))
    return kept(call, "RESHAPE", value, [stored], shape, Options("ReshapeOptions"))


def _shape(value: Value, found: Sequence[Window]) -> tuple[int, ...]:
    return (*value.shape[:2], *(window.out for window in found))


def _options(found: Sequence[Window], mode: str) -> Options:
    rows, columns = found
    fields: dict[str, int | str] = {"padding": mode, "strideH": rows.stride, "strideW": columns.stride}
    fields |= {"filterHeight": rows.kernel, "filterWidth": columns.kernel}
    return Options("Pool2DOptions", fields, bound(found, mode))


def _dilated_max(call: Call, value: Value, found: Sequence[Window]) -> Value:
    """The maximum of what each tap sees, along one axis and then along the other."""
    value = extended(call, value, [each.begin for each in found], [each.extra for each in found], LOWEST)
    for axis, window in enumerate(found, start=2):
        shape = [*value.shape[:axis], window.out, *value.shape[axis + 1 :]]
        seen = [_every(call, value, axis, tap * window.dilation, window, shape) for tap in range(window.kernel)]
        value = seen[0]
        for other in seen[1:]:
            options = Options("MaximumMinimumOptions", {}, bound(found, None))
            value = call.emit("MAXIMUM", [value, other], shape, options=options)
    return value


def _max_with_places(call: Call) -> tuple[Value, Value]:
    """The maxima, and the places of the first of each in the whole operand: by one comparison for each tap."""
    value, found = call.value(0), _windows(call)
    if math.prod(value.shape) > np.iinfo(np.int32).max:
        raise Refusal("the places of the maxima are more than int32 can number")
    sizes = value.shape[2:]
    # Places within an image, then of the image.
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    if call.attributes.get_int("storage_order", 0):
        strides = [math.prod(sizes[:axis]) for axis in range(len(sizes))]
    images = np.arange(math.prod(value.shape[:2]), dtype=np.int32).reshape(*value.shape[:2], *[1] * len(sizes))
    around = extended(call, value, [each.begin for each in found], [each.extra for each in found], LOWEST)
    shape = _shape(value, found)
    best: tuple[Value, Value | Constant] | None = None
    for taps in itertools.product(*(range(window.kernel) for window in found)):
        seen, place = around, np.zeros((1, 1, *[1] * len(sizes)), np.int64)
        for axis, (tap, window) in enumerate(zip(taps, found, strict=True)):
            made = (*seen.shape[: axis + 2], window.out, *seen.shape[axis + 3 :])
            seen = _every(call, seen, axis + 2, tap * window.dilation, window, made)
            along = np.arange(window.out) * window.stride + tap * window.dilation - window.begin
            place = place + (along * strides[axis]).reshape(
                [-1 if each == axis + 2 else 1 for each in range(value.rank)]
            )
        places = Constant.of(place.astype(np.int32))
        if best is None:
            best = seen, places
            continue
        larger = call.emit("GREATER", [seen, best[0]], shape, np.bool_, Options("GreaterOptions"))
        chosen = call.emit("SELECT_V2", [larger, places, best[1]], shape, np.int32, Options("SelectV2Options"))
        maximum = call.emit("MAXIMUM", [seen, best[0]], shape, options=Options("MaximumMinimumOptions"))
        best = maximum, chosen
    assert best is not None
    offsets = Constant.of(images * math.prod(sizes))
    return best[0], call.emit("ADD", [offsets, best[1]], shape, np.int32, Options("AddOptions", {}, bound(found, None)))


def _every(call: Call, value: Value, axis: int, start: int, window: Window, shape: Sequence[int]) -> Value:
    starts, strides, ends = [0] * value.rank, [1] * value.rank, list(value.shape)
    # Up to where the last window may start: so it is of all sizes.
    starts[axis], strides[axis], ends[axis] = start, window.stride, value.shape[axis] - (window.span - 1 - start)
    bounds = [call.ints(call.placed(each)) for each in (starts, ends, strides)]
    return kept(call, "STRIDED_SLICE", value, bounds, shape, Options("StridedSliceOptions"))


# ---- averages


def _average(call: Call, value: Value, found: Sequence[Window]) -> Value:
    mode = _mode(call, found)
    if mode is None:
        value = extended(call, value, [each.begin for each in found], [each.extra for each in found])
    shape = _shape(value, found)
    if any(window.dilation != 1 for window in found):
        made = _weighed(call, value, found, 1 / math.prod(window.kernel for window in found))
    else:
        made = call.emit("AVERAGE_POOL_2D", [value], shape, options=_options(found, mode or "VALID"))
    factors = _factors(call, found)
    if mode is not None or np.all(factors == 1):
        return made
    return call.binary("MUL", made, Constant.of(factors[None, None]))


def _mode(call: Call, found: Sequence[Window]) -> str | None:
    """The kernel's padding that has these windows and divides as the node does; None where there is none."""
    mode = padding(found)
    if any(window.dilation != 1 for window in found):
        return mode if mode == "VALID" else None
    # With SAME the kernel divides by what lies inside.
    return None if mode == "SAME" and _with_pads(call) else mode


def _factors(call: Call, found: Sequence[Window]) -> Array:
    """For each result: elements of a whole window, over those that the node divides by."""
    with_pads = _with_pads(call)
    rows, columns = (_counts(window, with_pads=with_pads) for window in found)
    if not rows.all() or not columns.all():
        raise Refusal("a window lies in the pads alone: there is nothing to average")
    area = found[0].kernel * found[1].kernel
    return (area / np.outer(rows, columns)).astype(np.float32)


def _with_pads(call: Call) -> bool:
    return call.attributes.get_int("count_include_pad", 0) != 0


def _counts(window: Window, *, with_pads: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """For each result along an axis: the taps that count."""
    starts = np.arange(window.out)[:, None] * window.stride - window.begin
    taps = starts + np.arange(window.kernel) * window.dilation
    low, high = (-window.begin, window.size + window.end) if with_pads else (0, window.size)
    counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]] = ((taps >= low) & (taps < high)).sum(axis=1)
    return counts


def _weighed(call: Call, value: Value, found: Sequence[Window], weight: float) -> Value:
    """The sum of ``weight`` times what each tap sees: a convolution of each channel alone."""
    rows, columns = found
    channels = value.shape[1]
    weights = Constant.of(np.full((1, rows.kernel, columns.kernel, channels), weight, np.float32))
    bias = Constant.of(np.zeros(channels, np.float32))
    fields: dict[str, int | str] = {
        "padding": "VALID",
        "strideH": rows.stride,
        "strideW": columns.stride,
        "dilationHFactor": rows.dilation,
        "dilationWFactor": columns.dilation,
        "depthMultiplier": 1,
    }
    kernel = [call.lowering.constant(weights), call.lowering.constant(bias)]
    options = Options("DepthwiseConv2DOptions", fields, bound(found, None))
    return call.emit("DEPTHWISE_CONV_2D", [value, *kernel], _shape(value, found), options=options)


def _powers(call: Call, value: Value, power: int) -> Value:
    if power == 2:
        return call.binary("MUL", value, value)
    magnitude = call.unary("ABS", value)
    return magnitude if power == 1 else call.emit("POW", [magnitude, float(power)], value.shape)


def _root(call: Call, value: Value, power: int) -> Value:
    if power == 1:
        return value
    if power == 2:
        return call.unary("SQRT", value)
    return call.emit("POW", [value, 1 / power], value.shape)


def _reduced(call: Call, code: str, value: Value) -> Value:
    """All axes behind the channels, kept as axes of one."""
    axes = sorted(call.position(axis, value.rank) for axis in range(2, value.rank))
    shape = (*value.shape[:2], *[1] * (value.rank - 2))
    return call.emit(code, [value, call.ints(axes)], shape, options=Options("ReducerOptions", {"keepDims": True}))


# ---- integers


def _average_integers(call: Call) -> Int8:
    """The kernel rounds to the scale that it is given."""
    source = call.operand(0)
    if isinstance(source, Constant) or call.quantization is None or source.quantization != call.quantization:
        return "no"
    found = _windows(call)
    if source.rank > IMAGE or any(window.dilation != 1 for window in found):
        return "no"
    pair = found if source.rank == IMAGE else (POINT, *found)
    return "computes" if _mode(call, pair) or np.all(_factors(call, pair) == 1) else "no"


def _max_integers(call: Call) -> Int8:
    """Maxima are moved; their places are found among floats."""
    outputs = call.node.outputs[1:]
    return "no" if any(value.uses() or value.is_graph_output() for value in outputs) else "moves"


OPS: Mapping[str, Op] = {
    "AveragePool": Op(average_pool, Way.LAST, operands=(0,), int8=_average_integers),
    "GlobalAveragePool": Op(global_average_pool, Way.EITHER, int8="computes"),
    "GlobalLpPool": Op(global_lp_pool, Way.EITHER),
    "GlobalMaxPool": Op(global_max_pool, Way.EITHER, int8="moves"),
    "LpPool": Op(lp_pool, Way.LAST, operands=(0,)),
    "MaxPool": Op(max_pool, Way.LAST, operands=(0,), int8=_max_integers),
    "MaxUnpool": Op(max_unpool),
}
