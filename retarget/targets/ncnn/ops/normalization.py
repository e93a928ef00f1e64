"""Normalizations by mean and variance, and by other norms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from retarget.targets.ncnn import rows
from retarget.targets.ncnn.call import Call, Op
from retarget.targets.ncnn.ops.axes import along, held
from retarget.targets.ncnn.ops.elementwise import (
    ABS,
    ADD,
    FROM,
    MUL,
    SQRT,
    SQUARE,
    SUB,
    binary,
    by_number,
    function,
    joined,
    mapped,
    raised,
)
from retarget.targets.ncnn.ops.reduction import LENGTH, MEAN, SUM_OF_SIZES, reduced
from retarget.targets.ncnn.program import Blob, Param, Weight
from retarget.targets.ncnn.values import Refusal, Result, Value

# ---- over the last axes


def layer_normalization(call: Call) -> Sequence[Result]:
    axis, epsilon = call.axis(-1), call.attributes.get_float("epsilon", 1e-5)
    value = call.value(0) if axis else call.whole(0)
    scale, bias = (_affine(call, index, axis) for index in (1, 2))
    weights = None
    if scale is not None and (bias is not None or not call.has(2)):
        weights = (scale, np.zeros_like(scale) if bias is None else bias)
    result = _normalized(call, "LayerNorm", value, axis, epsilon, weights)
    if weights is None:
        for index, op in ((1, MUL), (2, ADD)):
            result = _with(call, op, result, index) if call.has(index) else result
    shape = value.shape
    return [call.made(call.blob(result), shape), *_statistics(call, value, axis, epsilon)]


def rms_normalization(call: Call) -> Result:
    axis, epsilon = call.axis(-1), call.attributes.get_float("epsilon", 1e-5)
    value = call.value(0) if axis else call.whole(0)
    scale = _affine(call, 1, axis)
    result = _normalized(call, "RMSNorm", value, axis, epsilon, None if scale is None else (scale,))
    if scale is None:
        result = _with(call, MUL, result, 1)
    return call.made(call.blob(result), value.shape)


def _affine(call: Call, index: int, axis: int) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    """A constant operand spread over all that is normalized; None where it is no constant, or has other axes."""
    if not call.has(index) or not call.is_constant(index):
        return None
    array, shape = call.array(index, "its scale"), call.shape(0)[axis:]
    while array.ndim > len(shape) and array.shape[0] == 1:
        array = array[0]
    if array.ndim > len(shape) or np.broadcast_shapes(array.shape, shape) != shape:
        return None
    return np.ascontiguousarray(np.broadcast_to(array, shape)).astype(np.float32)


def _normalized(
    call: Call,
    layer: str,
    value: Value,
    axis: int,
    epsilon: float,
    weights: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.generic]]] | None,
) -> Value:
    """A layer that normalizes its innermost dim: all axes from ``axis`` on."""
    axes = range(axis, value.rank)
    blob = call.blob(value)
    size = math.prod(value.row[axis:])
    if held(value.row, blob.dims, axes) != (len(blob.dims) - 1,):
        outer = math.prod(value.row[:axis])
        blob = call.view(value, (size,) if outer == 1 else (outer, size))
    params: dict[int, Param] = {0: size, 1: epsilon, 2: int(weights is not None)}
    made = call.add(layer, (blob,), blob.dims, params, [Weight(each, tagged=False) for each in weights or ()])
    return Value(value.shape, value.dtype, made, made.rows)


def _with(call: Call, op: int, value: Value, index: int) -> Value:
    """A BinaryOp of ``value`` and operand ``index``."""
    blob, shape = binary(call, op, *rows.aligned(call, [value, call.value(index)]))
    return Value(shape, value.dtype, blob, blob.rows)


def _statistics(call: Call, value: Value, axis: int, epsilon: float) -> Sequence[Result]:
    """The mean, and the inverse of the standard deviation, of those of both that are used."""
    if not any(call.outputs[1:]):
        return [None] * (len(call.outputs) - 1)
    blob, places = along(call, value, range(axis, value.rank))
    centred, mean = _centred(call, blob, places)
    inverse = raised(call, _power(call, centred, places), -0.5, shift=epsilon)
    shape = (*value.shape[:axis], *(1,) * (value.rank - axis))
    made = zip((mean, inverse), range(1, len(call.outputs)), strict=False)
    return [call.made(each, shape, index) if call.outputs[index] else None for each, index in made]


def _centred(call: Call, blob: Blob, places: Sequence[int]) -> tuple[Blob, Blob]:
    """``blob`` less its mean over some dims, and the mean."""
    mean = reduced(call, MEAN, blob, places) if places else blob
    return joined(call, SUB, blob, mean), mean


def _power(call: Call, blob: Blob, places: Sequence[int]) -> Blob:
    """The mean of the squares over some dims."""
    squares = function(call, SQUARE, blob)
    return reduced(call, MEAN, squares, places) if places else squares


# ---- of channels


def batch_normalization(call: Call) -> Result | Sequence[Result]:
    """A factor and a term for each channel."""
    if call.attributes.get_int("training_mode", 0):
        return _batch_statistics(call)
    if not all(call.is_constant(index) for index in range(1, 5)):
        return _by_computed(call)
    epsilon = call.attributes.get_float("epsilon", 1e-5)
    scale, bias, mean, variance = (call.array(index, "its statistics").astype(np.float64) for index in range(1, 5))
    if not (variance + epsilon > 0).all():
        raise Refusal(f"a variance and epsilon={epsilon:g} together are not above 0, and by their root it divides")
    slope = scale / np.sqrt(variance + epsilon)
    term = bias - mean * slope
    value, channels = call.spread(0), scale.size
    if channels == 1:
        blob = by_number(call, ADD, by_number(call, MUL, call.blob(value), float(slope[0])), float(term[0]))
        return call.made(blob, value.shape)
    blob = outermost(call, value)
    ones = np.ones(channels, np.float32)
    weights = [slope.astype(np.float32), 0 * ones, ones, term.astype(np.float32)]
    made = call.add(
        "BatchNorm", (blob,), blob.dims, {0: channels, 1: 0.0}, [Weight(each, tagged=False) for each in weights]
    )
    return call.made(made, value.shape)


def _by_computed(call: Call) -> Result:
    """By operands of which not all are constant."""
    scale, bias, mean, variance = (call.whole(index) for index in range(1, 5))
    epsilon = call.attributes.get_float("epsilon", 1e-5)
    inverse = _vector(raised(call, call.view(variance, variance.shape), -0.5, shift=epsilon))
    slope = _vector(binary(call, MUL, scale, inverse)[0])
    term = _vector(binary(call, SUB, bias, _vector(binary(call, MUL, mean, slope)[0]))[0])
    return _scaled(call, call.value(0), slope, term)


def _batch_statistics(call: Call) -> Sequence[Result]:
    """What it does when it trains: by the batch's own mean and variance, which the next ones are moved towards."""
    value = call.whole(0)
    axes = [axis for axis in range(value.rank) if axis != 1]
    momentum, epsilon = call.attributes.get_float("momentum", 0.9), call.attributes.get_float("epsilon", 1e-5)
    blob, places = along(call, value, axes)
    centred, mean = _centred(call, blob, places)
    variance = _power(call, centred, places)
    normal = joined(call, MUL, centred, raised(call, variance, -0.5, shift=epsilon))
    moved: list[Result] = []
    for index, current in ((1, mean), (2, variance)):
        if index >= len(call.outputs) or not call.outputs[index]:
            moved.append(None)
            continue
        own = call.whole(index + 2)
        shares = [
            _vector(by_number(call, MUL, held_in, share))
            for held_in, share in ((call.blob(own), momentum), (_flat(call, current), 1.0 - momentum))
        ]
        moved.append(call.made(binary(call, ADD, *shares)[0], own.shape, index))
    result = Value(value.shape, value.dtype, normal)
    return [_scaled(call, result, call.whole(1), call.whole(2)), *moved]


def _flat(call: Call, blob: Blob) -> Blob:
    return call.view(Value((blob.size,), np.dtype(np.float32), blob), (blob.size,))


def _vector(blob: Blob) -> Value:
    """A blob of one number a channel."""
    return Value((blob.size,), np.dtype(np.float32), blob)


def _scaled(call: Call, value: Value, factor: Value, term: Value) -> Result:
    """``value`` times ``factor`` plus ``term``, each [channels]."""
    for vector, op in ((factor, MUL), (term, ADD)):
        along_channels = Value((vector.shape[0], *(1,) * (value.rank - 2)), vector.dtype, call.blob(vector))
        blob, _ = binary(call, op, *rows.aligned(call, [value, along_channels]))
        value = Value(value.shape, value.dtype, blob, blob.rows)
    return call.made(call.blob(value), value.shape)


def outermost(call: Call, value: Value, most: int = 4, least: int = 1) -> Blob:
    """One row of ``value``, [1, channels, ...], in dims of which the first is the channels."""
    blob, row = call.blob(value), value.row[1:]
    if blob.dims[0] == row[0] and least <= len(blob.dims) <= most and held(value.row, blob.dims, [1]) == (0,):
        return blob
    dims = row
    if len(dims) > most:
        dims = (*row[: most - 1], math.prod(row[most - 1 :]))
    if len(dims) < least:
        dims = (row[0], *(1,) * (least - len(row)), *row[1:])
    return call.view(value, dims)


def instance_normalization(call: Call) -> Result:
    return _by_groups(call, call.shape(0)[1])


def group_normalization(call: Call) -> Result:
    return _by_groups(call, call.attributes.get_int("num_groups", 1))


def _by_groups(call: Call, groups: int) -> Result:
    value, epsilon = call.spread(0), call.attributes.get_float("epsilon", 1e-5)
    channels = value.shape[1]
    affine = all(call.is_constant(index) for index in (1, 2))
    weights = [call.array(index, "its scale").astype(np.float32) for index in (1, 2)] if affine else []
    held_in = [Weight(each, tagged=False) for each in weights]
    if groups == channels and value.rank > 2:
        blob = outermost(call, value, least=3)
        params: dict[int, Param] = {0: channels, 1: epsilon, 2: int(affine)}
        made = call.add("InstanceNorm", (blob,), blob.dims, params, held_in)
    else:
        blob = outermost(call, value)
        params = {0: groups, 1: channels, 2: epsilon, 3: int(affine)}
        made = call.add("GroupNorm", (blob,), blob.dims, params, held_in)
    if affine:
        return call.made(made, value.shape)
    return _scaled(call, Value(value.shape, value.dtype, made, made.rows), call.whole(1), call.whole(2))


def mean_variance_normalization(call: Call) -> Result:
    axes = [axis % call.rank(0) for axis in call.attributes.get_ints("axes", (0, 2, 3))]
    value = call.whole(0) if 0 in axes else call.value(0)
    blob, places = along(call, value, axes)
    centred, _ = _centred(call, blob, places)
    deviation = function(call, SQRT, _power(call, centred, places))
    return call.made(joined(call, MUL, centred, raised(call, deviation, -1.0, shift=1e-9)), value.shape)


# ---- by other norms


def lp_normalization(call: Call) -> Result:
    """Divided by a norm; what is zero everywhere stays so."""
    axis, order = call.axis(-1), call.attributes.get_int("p", 2)
    value = call.value(0) if axis else call.whole(0)
    blob, places = along(call, value, [axis])
    operation = LENGTH if order == 2 else SUM_OF_SIZES
    norm = reduced(call, operation, blob, places) if places else function(call, ABS, blob)
    is_zero = by_number(call, FROM, mapped(call, "Threshold", norm, {0: 0.0}), 1.0)
    return call.made(joined(call, MUL, blob, raised(call, joined(call, ADD, norm, is_zero), -1.0)), value.shape)


def lrn(call: Call) -> Result:
    size = call.attributes.get_int("size", 1)
    if size % 2 == 0:
        raise Refusal(f"size={size}: ncnn's sums are over as many channels before as behind, and so over one more")
    if call.rank(0) < 2:
        raise Refusal(f"{call.rank(0)} axes: there are no channels")
    value = call.spread(0)
    row = value.row[1:]
    blob = (
        outermost(call, value, most=3, least=3) if len(row) <= 3 else call.view(value, (row[0], 1, math.prod(row[1:])))
    )
    names = {2: ("alpha", 1e-4), 3: ("beta", 0.75), 4: ("bias", 1.0)}
    numbers = {key: call.attributes.get_float(*each) for key, each in names.items()}
    return call.made(call.add("LRN", (blob,), blob.dims, {0: 0, 1: size, **numbers}), value.shape)


OPS: Mapping[str, Op] = {
    "BatchNormalization": Op(batch_normalization),
    "GroupNormalization": Op(group_normalization),
    "InstanceNormalization": Op(instance_normalization),
    "LRN": Op(lrn),
    "LayerNormalization": Op(layer_normalization),
    "LpNormalization": Op(lp_normalization),
    "MeanVarianceNormalization": Op(mean_variance_normalization),
    "RMSNormalization": Op(rms_normalization),
}
