"""Normalizations, composed of means and of what is done element by element, in either layout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from retarget.targets.tflite.call import Call, Op
from retarget.targets.tflite.layout import FIRST_AXES, Layout, Way, order
from retarget.targets.tflite.ops.reduction import MOST_AXES, kept_way, stored_as, without
from retarget.targets.tflite.program import Constant, Options, Shape
from retarget.targets.tflite.values import Operand, Refusal, Value

IMAGE_AXES = 4
"""Of what LOCAL_RESPONSE_NORMALIZATION takes."""


def batch_normalization(call: Call) -> Value | list[Value]:
    """A factor and a term for each channel."""
    if call.attributes.get_int("training_mode", 0):
        return _batch_statistics(call)
    data, epsilon = call.operand(0), call.attributes.get_float("epsilon", 1e-5)
    given = [call.operand(index) for index in range(1, 5)]
    constants = [each.array().astype(np.float64) for each in given if isinstance(each, Constant)]
    factor: Operand
    term: Operand
    if len(constants) == len(given):
        scale, bias, mean, variance = constants
        slope = scale / np.sqrt(variance + epsilon)
        factor, term = (Constant.of(each.astype(np.float32)) for each in (slope, bias - mean * slope))
    else:
        root = call.unary("SQRT", call.binary("ADD", given[3], epsilon))
        factor = call.binary("DIV", given[0], root)
        term = call.binary("SUB", given[1], call.binary("MUL", given[2], factor))
    rank = len(data.shape)
    product = call.binary("MUL", data, _along_channels(call, factor, rank))
    options = Options("AddOptions", {"fusedActivationFunction": call.activation})
    return call.emit("ADD", [product, _along_channels(call, term, rank)], data.shape, options=options)


def _batch_statistics(call: Call) -> list[Value]:
    """What it does when it trains: by the batch's own mean and variance, which the next ones are moved towards."""
    data, momentum = call.value(0), call.attributes.get_float("momentum", 0.9)
    axes = [axis for axis in range(data.rank) if axis != 1]
    normal, mean, inverse = _standardized(call, data, axes, call.attributes.get_float("epsilon", 1e-5))
    del inverse
    centred = call.binary("SUB", data, mean)
    variance = _mean(call, call.binary("MUL", centred, centred), axes)
    moved = []
    for index, current in ((3, mean), (4, variance)):
        flat = call.reshape(current, (data.shape[1],))
        kept = call.binary("MUL", call.value(index), momentum)
        moved.append(call.binary("ADD", kept, call.binary("MUL", flat, 1.0 - momentum)))
    return [call.activated(_scaled(call, normal)), *moved]


def _along_channels(call: Call, operand: Operand, rank: int) -> Operand:
    """``operand`` [channels], as it broadcasts with values of ``rank`` axes."""
    shape = (*operand.shape, *(1,) * (rank - 2))
    return operand.reshaped(shape) if isinstance(operand, Constant) else call.reshape(operand, shape)


# ---- by mean and variance


def layer_normalization(call: Call) -> list[Operand | None]:
    data = call.value(0)
    axes = range(call.attributes.get_int("axis", -1) % data.rank, data.rank)
    normal, mean, inverse = _standardized(call, data, axes, call.attributes.get_float("epsilon", 1e-5))
    scaled = call.binary("MUL", normal, call.operand(1))
    return [call.binary("ADD", scaled, call.operand(2)) if call.has(2) else scaled, mean, inverse]


def rms_normalization(call: Call) -> Value:
    data = call.value(0)
    axes = range(call.attributes.get_int("axis", -1) % data.rank, data.rank)
    power = _mean(call, call.binary("MUL", data, data), axes)
    normal = call.binary("MUL", data, _inverse_root(call, power, call.attributes.get_float("epsilon", 1e-5)))
    return call.binary("MUL", normal, call.operand(1))


def instance_normalization(call: Call) -> Value:
    data = call.value(0)
    normal, _, _ = _standardized(call, data, range(2, data.rank), call.attributes.get_float("epsilon", 1e-5))
    return _scaled(call, normal)


def group_normalization(call: Call) -> Value:
    """The channels are parted into groups where they stand: behind the batch, or last."""
    data = call.value(0)
    groups, epsilon = call.attributes.get_int("num_groups", 1), call.attributes.get_float("epsilon", 1e-5)
    batch, channels, *sizes = data.shape
    each = channels // groups
    parted: Shape = (batch, groups, each * math.prod(sizes))
    axes: tuple[int, ...] = (2,)
    if call.layout is Layout.LAST:
        sizes = sizes if data.rank < MOST_AXES else [math.prod(sizes)]
        parted, axes = (batch, *sizes, groups, each), (*range(1, len(sizes) + 1), len(sizes) + 2)
    source = call.tensor(data)
    assert source is not None
    normal, _, _ = _standardized(call, stored_as(call, source, parted, Layout.FIRST), axes, epsilon, Layout.FIRST)
    parts = call.tensor(normal, layout=Layout.FIRST)
    assert parts is not None
    return _scaled(call, stored_as(call, parts, data.shape))


def _scaled(call: Call, normal: Value) -> Value:
    """``normal`` with the factor of operand 1 and the term of operand 2 for each channel."""
    product = call.binary("MUL", normal, _along_channels(call, call.operand(1), normal.rank))
    return call.binary("ADD", product, _along_channels(call, call.operand(2), normal.rank))


def mean_variance_normalization(call: Call) -> Value:
    data = call.value(0)
    axes = [axis % data.rank for axis in call.attributes.get_ints("axes", (0, 2, 3))]
    centred, _ = _centred(call, data, axes)
    deviation = call.unary("SQRT", _mean(call, call.binary("MUL", centred, centred), axes))
    return call.binary("DIV", centred, call.binary("ADD", deviation, 1e-9))


def _standardized(
    call: Call, data: Value, axes: Sequence[int], epsilon: float, layout: Layout | None = None
) -> tuple[Value, Value, Value]:
    """``data`` with mean 0 and variance 1 over ``axes``; its mean, and the inverse of its standard deviation."""
    centred, mean = _centred(call, data, axes, layout)
    power = call.emit("MUL", [centred, centred], data.shape, options=Options("MulOptions"), layout=layout)
    inverse = _inverse_root(call, _mean(call, power, axes, layout), epsilon, layout)
    normal = call.emit("MUL", [centred, inverse], data.shape, options=Options("MulOptions"), layout=layout)
    return normal, mean, inverse


def _centred(call: Call, data: Value, axes: Sequence[int], layout: Layout | None = None) -> tuple[Value, Value]:
    mean = _mean(call, data, axes, layout)
    return call.emit("SUB", [data, mean], data.shape, options=Options("SubOptions"), layout=layout), mean


def _inverse_root(call: Call, variance: Value, epsilon: float, layout: Layout | None = None) -> Value:
    safe = call.emit("ADD", [variance, epsilon], variance.shape, options=Options("AddOptions"), layout=layout)
    return call.emit("RSQRT", [safe], safe.shape, layout=layout)


def _mean(call: Call, data: Value, axes: Sequence[int], layout: Layout | None = None) -> Value:
    """Over ``axes``, which are kept.

    Where these are not the last ones that are stored, the kernels add up element after element: one axis is then
    reduced after the other, from the last on, which loses far fewer digits of large means.
    """
    layout = layout or call.layout
    if data.rank > MOST_AXES:
        raise Refusal(f"its operand has {data.rank} axes: LiteRT's kernels reduce values of up to {MOST_AXES}")
    places = order(layout, data.rank)
    reduced = sorted((places.index(axis) for axis in axes), reverse=True)
    at_once = [reduced] if reduced[-1] == data.rank - len(reduced) else [[place] for place in reduced]
    for part in at_once:
        shape = without(data.shape, [places[place] for place in part], keep=True)
        options = Options("ReducerOptions", {"keepDims": True})
        data = call.emit("MEAN", [data, call.ints(sorted(part))], shape, options=options, layout=layout)
    return data


# ---- by other norms


def lp_normalization(call: Call) -> Value:
    data, order = call.value(0), call.attributes.get_int("p", 2)
    axis = call.attributes.get_int("axis", -1)
    sizes = call.binary("MUL", data, data) if order == 2 else call.unary("ABS", data)
    places = call.ints([call.position(axis, data.rank)])
    kept = without(data.shape, [axis % data.rank], keep=True)
    total = call.emit("SUM", [sizes, places], kept, options=Options("ReducerOptions", {"keepDims": True}))
    norm = call.unary("SQRT", total) if order == 2 else total
    # What is zero everywhere stays so.
    is_zero = call.binary("EQUAL", norm, 0.0, np.bool_)
    return call.binary("DIV", data, call.emit("SELECT_V2", [is_zero, 1.0, norm], kept, np.float32))


def lrn(call: Call) -> Value:
    data, size = call.value(0), call.attributes.get_int("size", 1)
    alpha, beta = call.attributes.get_float("alpha", 1e-4), call.attributes.get_float("beta", 0.75)
    bias = call.attributes.get_float("bias", 1.0)
    if size % 2 == 0:
        raise Refusal(f"size={size}: the kernel takes as many channels in front as behind")
    fields = {"radius": size // 2, "bias": bias, "alpha": alpha / size, "beta": beta}
    source = call.tensor(data, layout=Layout.LAST)
    assert source is not None
    image = stored_as(call, source, (data.shape[0], 1, math.prod(data.shape[2:]), data.shape[1]), Layout.FIRST)
    options = Options("LocalResponseNormalizationOptions", fields)
    made = call.emit("LOCAL_RESPONSE_NORMALIZATION", [image], image.shape, options=options, layout=Layout.FIRST)
    last = call.tensor(made, layout=Layout.FIRST)
    assert last is not None
    return stored_as(call, last, data.shape, Layout.LAST)


def _lrn_way(node: ir.Node) -> Way:
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    return Way.LAST if shape is not None and len(shape) >= FIRST_AXES else Way.FIRST


OPS: Mapping[str, Op] = {
    "BatchNormalization": Op(batch_normalization, Way.EITHER, operands=(0,), fuses=True),
    "GroupNormalization": Op(group_normalization, kept_way, operands=(0,)),
    "InstanceNormalization": Op(instance_normalization, kept_way, operands=(0,)),
    "LRN": Op(lrn, _lrn_way),
    "LayerNormalization": Op(layer_normalization, kept_way),
    "LpNormalization": Op(lp_normalization, kept_way),
    "MeanVarianceNormalization": Op(mean_variance_normalization, kept_way),
    "RMSNormalization": Op(rms_normalization, kept_way),
}
