"""Fold what is done to each channel in front of a convolution into its weights.

1. Mul or Div by a constant of each channel: a factor of the weights that read the channel
2. Gather that reorders the channels: the weights in that order
3. Add or Sub of a constant of each channel: what the convolution makes of it is added to its bias, if it pads nothing

Given::   Conv(Gather(Mul(Sub(x, mean), 1 / std), [2, 1, 0], axis=1), w, b)
Result::  Conv(x, w', b')

A Transpose may stand between: the channels are then another axis in front of it.
All is exact up to rounding: padding by zeros stays zeros in 1 and 2, but not in 3. It is what raw pixels go through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retarget.passes.rewriting import (
    Array,
    Rewriting,
    Rule,
    Verdict,
    computed,
    constant,
    dims,
    initializer,
    ints,
    is_constant,
    node,
    own,
    producer,
    rank,
    replace,
    rewire,
)

Floats: TypeAlias = NDArray[np.float64]

LIMIT = 1 << 22
"""Bytes up to which a weight is summed for a bias: first convolutions are far smaller."""


class FoldChannels(Rewriting):
    """See the module."""

    def rules(self) -> Mapping[str, Rule]:
        return {"Conv": _fold}


def _fold(conv: ir.Node) -> Verdict:
    """Every node in front of ``conv`` that can go, the nearest first."""
    done = False
    while True:
        reader, axis = _reader(conv)
        before = producer(reader.inputs[0], "Mul", "Div", "Add", "Sub", "Gather")
        weight = conv.inputs[1]
        if before is None or weight is None or weight.shape is None:
            return done
        if not own(reader, before):
            return done or "what is in front of the convolution is read elsewhere too"
        if not is_constant(weight):
            return done or "the weight is not constant"
        folded = _folded(conv, before, weight, axis)
        if folded is None or isinstance(folded, str):
            return done or folded or False
        x, constants = folded
        if reader is conv:
            made = node("Conv", [x, *constants], like=conv)
        else:
            made = node("Conv", [conv.inputs[0], *constants], like=conv)
            rewire(reader, 0, x)
        made.attributes.update(conv.attributes)
        replace(conv, made)
        conv, done = made, True


def _reader(conv: ir.Node) -> tuple[ir.Node, int]:
    """What reads the node in front: ``conv``, or the Transpose that it alone reads; and its axis of the channels."""
    transpose = producer(conv.inputs[0], "Transpose")
    perm = () if transpose is None else transpose.attributes.get_ints("perm", ())
    if transpose is None or len(perm) < 3 or not own(conv, transpose):
        return conv, 1
    return transpose, perm[1]


def _folded(
    conv: ir.Node, before: ir.Node, weight: ir.Value, axis: int
) -> tuple[ir.Value | None, list[ir.Value | None]] | str | None:
    """What ``before`` reads, and the weight and bias that do its work; or why not; None where it is another pattern."""
    assert weight.shape is not None
    shape = [int(size) for size in weight.shape.dims if isinstance(size, int)]
    groups: int = conv.attributes.get_int("group", 1)
    rest = list(conv.inputs[2:])
    if before.op_type == "Gather":
        order = ints(before.inputs[1])
        if before.attributes.get_int("axis", 0) % len(shape) != axis or order is None or rank(before.inputs[1]) != 1:
            return None
        if groups != 1 or sorted(order) != list(range(shape[1])):
            return "it takes some of the channels, or the convolution has groups"
        if not _has_channels(before.inputs[0], axis, shape[1], len(shape)):
            return "there are other channels in front of it"
        back = [order.index(channel) for channel in range(shape[1])]
        return before.inputs[0], [_made(conv, weight, lambda array: np.take(array, back, axis=1), shape), *rest]
    at = 1 if is_constant(before.inputs[1]) else 0
    vector = _each_channel(constant(before.inputs[at]), len(shape), shape[1] * groups, axis)
    if vector is None or not np.isfinite(vector).all() or (at == 0 and before.op_type in ("Div", "Sub")):
        return None
    x = before.inputs[1 - at]
    if not _has_channels(x, axis, shape[1] * groups, len(shape)):
        return "there are other channels in front of it"
    if before.op_type in ("Mul", "Div"):
        if before.op_type == "Div" and not vector.all():
            return "division by zero"
        factors = _of_weights(1 / vector if before.op_type == "Div" else vector, shape, groups)
        return x, [_made(conv, weight, lambda array: np.multiply(array, factors).astype(array.dtype), shape), *rest]
    bias = _bias(conv, weight, _of_weights(-vector if before.op_type == "Sub" else vector, shape, groups))
    return bias if isinstance(bias, str) else (x, [weight, bias])


def _has_channels(value: ir.Value | None, axis: int, count: int, size: int) -> bool:
    """Whether ``value`` is known to have so many channels along ``axis`` of ``size`` axes."""
    shape = dims(value)
    return shape is not None and len(shape) == size and shape[axis] == count


def _each_channel(array: Array | None, size: int, channels: int, axis: int) -> Floats | None:
    """One number for each input channel, if ``array`` broadcasts so along ``axis`` of ``size`` axes."""
    if array is None or array.dtype.kind != "f" or array.ndim > size:
        return None
    shape = (1,) * (size - array.ndim) + array.shape
    if shape[axis] not in (1, channels) or math.prod(shape) != shape[axis]:
        return None
    return np.broadcast_to(array.reshape(-1).astype(np.float64), (channels,))


def _of_weights(vector: Floats, shape: list[int], groups: int) -> Floats:
    """The number of the channel that each element of the weight reads: of shape [outputs, inputs of a group, 1, …]."""
    rows = np.repeat(vector.reshape(groups, shape[1]), shape[0] // groups, axis=0)
    return rows.reshape(*rows.shape, *(1,) * (len(shape) - 2))


def _made(conv: ir.Node, weight: ir.Value, make: Callable[[Array], Array], shape: list[int]) -> ir.Value:
    return initializer(conv, f"{weight.name}_folded", computed(weight, make, shape))


def _bias(conv: ir.Node, weight: ir.Value, shift: Floats) -> ir.Value | str:
    """The bias with what a shift of the input channels makes of each output channel, were nothing padded."""
    if any(conv.attributes.get_ints("pads", ())) or conv.attributes.get_string("auto_pad", "NOTSET") not in (
        "NOTSET",
        "VALID",
    ):
        return "the convolution pads with zeros, which would have to be shifted as well"
    array = constant(weight, LIMIT)
    old = conv.inputs[2] if len(conv.inputs) > 2 else None
    bias = constant(old, LIMIT)
    if array is None or (old is not None and bias is None):
        return "the weight is too large to sum, or the bias is not constant"
    total = (array.astype(np.float64) * shift).sum(axis=tuple(range(1, array.ndim)))
    total = total if bias is None else total + bias.astype(np.float64)
    return initializer(conv, f"{conv.outputs[0].name}_bias", total.astype(array.dtype))
