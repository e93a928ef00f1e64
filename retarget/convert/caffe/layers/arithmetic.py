"""Arithmetic: with constants, with weights, between blobs, along axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
import onnx_ir as ir

from retarget.convert.caffe.build import (
    Builder,
    Lowering,
    Shape,
    Value,
    alike,
    canonical_axis,
    choice,
    exactly,
    only,
    product,
    refuse,
    show,
    static,
    wrong,
)
from retarget.convert.caffe.net import Layer, Message


def absval(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Abs."""
    return [build.op("Abs", [only(layer, inputs)])]


def power(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """``(shift + scale * x) ** power``; a constant where ``scale`` or ``power`` is 0."""
    bottom = only(layer, inputs)
    parameters = layer.message.message("power_param")
    exponent, scale, shift = (
        parameters.number(name, default) for name, default in (("power", 1.0), ("scale", 1.0), ("shift", 0.0))
    )
    if exponent * scale == 0:
        with np.errstate(all="ignore"):
            value = np.ones((), np.float32) if exponent == 0 else np.array(shift, np.float32) ** np.float32(exponent)
        shape = build.op("Shape", [bottom], (bottom.rank,), ir.DataType.INT64)
        return [build.op("Expand", [build.constant(np.asarray(value)), shape], bottom.shape)]
    made = _affine(bottom, scale, shift, build)
    return [made if exponent == 1 else build.op("Pow", [made, build.number(exponent)])]


def exp(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """``base ** (shift + scale * x)``; a ``base`` of -1 is e."""
    parameters = layer.message.message("exp_param")
    rate = _log_base(layer, parameters)
    with np.errstate(over="ignore"):
        inner, outer = rate * parameters.number("scale", 1.0), float(np.exp(rate * parameters.number("shift")))
    raised = build.op("Exp", [_affine(only(layer, inputs), inner, 0, build)])
    return [_affine(raised, outer, 0, build)]


def log(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """``log(shift + scale * x)`` to ``base``; a ``base`` of -1 is e."""
    parameters = layer.message.message("log_param")
    rate = _log_base(layer, parameters)
    if rate == 0:
        raise wrong(layer, "base is 1")
    inner = _affine(only(layer, inputs), parameters.number("scale", 1.0), parameters.number("shift"), build)
    return [_affine(build.op("Log", [inner]), 1 / rate, 0, build)]


def threshold(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """1 where the bottom is greater than ``threshold``, else 0."""
    limit = layer.message.message("threshold_param").number("threshold")
    greater = build.op("Greater", [only(layer, inputs), build.number(limit)], dtype=ir.DataType.BOOL)
    return [build.op("Cast", [greater], to=ir.DataType.FLOAT)]


def dropout(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Nothing, as in the test phase; ``scale_train: false`` of forks multiplies by ``1 - dropout_ratio``."""
    bottom = only(layer, inputs)
    parameters = layer.message.message("dropout_param")
    if parameters.flag("sample_weights_test"):
        raise refuse(layer, "sample_weights_test drops at random in the test phase too")
    if parameters.flag("scale_train", True):
        return [bottom]
    return [_affine(bottom, 1 - parameters.number("dropout_ratio", 0.5), 0, build)]


def scale(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Mul by weights or by the second bottom, along ``num_axes`` axes from ``axis``; Add of a bias behind it."""
    parameters = layer.message.message("scale_param")
    bottom, factor, shape = _along(layer, inputs, parameters, build)
    made = build.op("Mul", [bottom, factor])
    if parameters.flag("bias_term"):
        index = 1 if len(inputs) == 1 else 0
        made = build.op("Add", [made, build.weight(layer, index, *shape)])
    return [made]


def bias(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Add of weights or of the second bottom, along ``num_axes`` axes from ``axis``."""
    bottom, summand, _ = _along(layer, inputs, layer.message.message("bias_param"), build)
    return [build.op("Add", [bottom, summand])]


def eltwise(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Mul, Add (with ``coeff``) or Max of all bottoms."""
    parameters = layer.message.message("eltwise_param")
    if len(inputs) < 2:
        raise wrong(layer, f"takes 2 or more bottoms, has {len(inputs)}")
    alike(layer, *(bottom.shape for bottom in inputs))
    operation = choice(layer, parameters, "operation", ("PROD", "SUM", "MAX"), "SUM")
    coefficients = parameters.numbers("coeff")
    if operation == "MAX":
        return [build.op("Max", inputs)]
    if operation == "PROD":
        return [reduce(lambda one, other: build.op("Mul", [one, other]), inputs)]
    if coefficients and len(coefficients) != len(inputs):
        raise wrong(layer, f"has {len(coefficients)} coeff for {len(inputs)} bottoms")
    return [_weighted_sum(inputs, coefficients or [1.0] * len(inputs), build)]


def axpy(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """``a * x + y``, a factor for each channel. Of SENet."""
    factor, bottom, summand = exactly(layer, inputs, 3)
    if factor.rank > bottom.rank or product(factor.shape[2:]) != 1:
        raise wrong(layer, f"its first bottom is {show(factor.shape)}, not a factor for each of {show(bottom.shape)}")
    alike(layer, bottom.shape, summand.shape)
    alike(layer, bottom.shape[:2], factor.shape[:2])
    factor = build.reshape(factor, (*factor.shape, *[1] * (bottom.rank - factor.rank)))
    return [build.op("Add", [build.op("Mul", [bottom, factor]), summand], bottom.shape)]


def reduction(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """ReduceSum, ReduceL1, ReduceSumSquare or ReduceMean of all axes from ``axis``, times ``coeff``."""
    bottom = only(layer, inputs)
    parameters = layer.message.message("reduction_param")
    operation = choice(layer, parameters, "operation", ("0", "SUM", "ASUM", "SUMSQ", "MEAN"), "SUM")
    if operation == "0":
        raise wrong(layer, "operation is 0", "operations are numbered from 1, SUM")
    axis = canonical_axis(layer, parameters.integer("axis"), bottom.rank)
    op_type = {"SUM": "ReduceSum", "ASUM": "ReduceL1", "SUMSQ": "ReduceSumSquare", "MEAN": "ReduceMean"}[operation]
    axes = build.integers(*range(axis, bottom.rank))
    made = build.op(op_type, [bottom, axes], bottom.shape[:axis], keepdims=0)
    return [_affine(made, parameters.number("coeff", 1.0), 0, build)]


def argmax(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """ArgMax, or TopK for more and for values; along ``axis``, else over all but the batch. Of equals the last."""
    bottom = only(layer, inputs)
    parameters = layer.message.message("argmax_param")
    top, values = parameters.integer("top_k", 1), parameters.flag("out_max_val")
    if "axis" in parameters:
        axis = canonical_axis(layer, parameters.integer("axis"), bottom.rank)
        if top == 1 and not values:
            return [_last_of_largest(layer, bottom, axis, build)]
        return [_largest(layer, bottom, axis, top, build)[0 if values else 1]]
    flat = build.reshape(bottom, (bottom.shape[0], product(static(layer, bottom, range(1, bottom.rank)))))
    shape = (bottom.shape[0], 1, top, *[1] * max(0, bottom.rank - 3))
    pair = [build.reshape(each, shape) for each in _largest(layer, flat, 1, top, build)]
    if not values:
        return pair[1:]
    return [build.op("Concat", pair[::-1], (shape[0], 2, *shape[2:]), axis=1)]


def _largest(layer: Layer, bottom: Value, axis: int, top: int, build: Builder) -> tuple[Value, Value]:
    """The ``top`` largest elements along ``axis`` and their numbers as floats; of equals the last comes first."""
    (size,) = static(layer, bottom, [axis])
    if not 1 <= top <= size:
        raise wrong(layer, f"top_k is {top}, of {size} elements")
    shape: Shape = (*bottom.shape[:axis], top, *bottom.shape[axis + 1 :])
    turned = _turned(bottom, axis, size, build)
    largest, numbers = build.ops("TopK", [turned, build.integers(top)], [shape, shape], axis=axis)
    numbers.value.type = ir.TensorType(ir.DataType.INT64)
    return largest, _counted_from_behind(numbers, size, build)


def _last_of_largest(layer: Layer, bottom: Value, axis: int, build: Builder) -> Value:
    """The number of the largest element along ``axis``."""
    (size,) = static(layer, bottom, [axis])
    shape: Shape = (*bottom.shape[:axis], 1, *bottom.shape[axis + 1 :])
    turned = _turned(bottom, axis, size, build)
    numbers = build.op("ArgMax", [turned], shape, ir.DataType.INT64, axis=axis, keepdims=1)
    return _counted_from_behind(numbers, size, build)


def _turned(bottom: Value, axis: int, size: int, build: Builder) -> Value:
    """``bottom`` back to front along ``axis``: the first of equals, which ONNX gives, is then the last."""
    starts, ends, steps = build.integers(size - 1), build.integers(-size - 1), build.integers(-1)
    return build.op("Slice", [bottom, starts, ends, build.integers(axis), steps])


def _counted_from_behind(numbers: Value, size: int, build: Builder) -> Value:
    counted = build.op("Cast", [numbers], to=ir.DataType.FLOAT)
    return build.op("Sub", [build.number(size - 1), counted], numbers.shape)


def _affine(value: Value, factor: float, summand: float, build: Builder) -> Value:
    """``factor * value + summand`` with what does nothing left out."""
    if factor != 1:
        value = build.op("Mul", [value, build.number(factor)])
    if summand != 0:
        value = build.op("Add", [value, build.number(summand)])
    return value


def _log_base(layer: Layer, parameters: Message) -> float:
    base = parameters.number("base", -1.0)
    if base == -1:
        return 1.0
    if not 0 < base < math.inf:
        raise wrong(layer, f"base is {base}", "a base is positive, or -1 for e")
    return math.log(np.float32(base))


def _along(
    layer: Layer, inputs: Sequence[Value], parameters: Message, build: Builder
) -> tuple[Value, Value, tuple[int, ...]]:
    """The bottom, the operand in a shape that broadcasts to it, and that shape without what is open before it."""
    if len(inputs) not in (1, 2):
        raise wrong(layer, f"takes 1 or 2 bottoms, has {len(inputs)}")
    bottom = inputs[0]
    if len(inputs) == 2:
        operand = inputs[1]
        axis = canonical_axis(layer, parameters.integer("axis", 1), bottom.rank) if operand.rank else 0
        alike(layer, bottom.shape[axis : axis + operand.rank], operand.shape)
        behind = [1] * (bottom.rank - axis - operand.rank)
        sizes = tuple(dim for dim in operand.shape if isinstance(dim, int))
        if parameters.flag("bias_term"):
            sizes = static(layer, operand)
        return bottom, build.reshape(operand, (*operand.shape, *behind)), (*sizes, *behind)
    axis = canonical_axis(layer, parameters.integer("axis", 1), bottom.rank)
    axes = parameters.integer("num_axes", 1)
    end = bottom.rank if axes == -1 else axis + axes
    if axes < -1 or end > bottom.rank:
        raise wrong(layer, f"num_axes is {axes}, from axis {axis} of {show(bottom.shape)}")
    shape = (*static(layer, bottom, range(axis, end)), *[1] * (bottom.rank - end))
    return bottom, build.weight(layer, 0, *shape), shape


def _weighted_sum(inputs: Sequence[Value], coefficients: Sequence[float], build: Builder) -> Value:
    total = _affine(inputs[0], coefficients[0], 0, build)
    for bottom, coefficient in zip(inputs[1:], coefficients[1:], strict=True):
        if coefficient == -1:
            total = build.op("Sub", [total, bottom])
        else:
            total = build.op("Add", [total, _affine(bottom, coefficient, 0, build)])
    return total


LAYERS: dict[str, Lowering] = {
    "AbsVal": absval,
    "ArgMax": argmax,
    "Axpy": axpy,
    "Bias": bias,
    "Dropout": dropout,
    "Eltwise": eltwise,
    "Exp": exp,
    "Log": log,
    "Power": power,
    "Reduction": reduction,
    "Scale": scale,
    "Threshold": threshold,
}
