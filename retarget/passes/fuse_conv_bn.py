"""Fold BatchNormalization, and multiplication and addition by a constant of each channel, into Conv and ConvTranspose.

Given::

    y = Conv(x, w, b);  z = BatchNormalization(y, scale, bias, mean, variance)      # or z = y * s, or z = y + t

Result::

    z = Conv(x, w * s, b * s + t)        s = scale / √(variance + ε),  t = bias - mean * s

The factor of an output channel is constant over the sum that the convolution takes, so it moves into the weights
without any change but rounding. A grouped ConvTranspose has its output channels in axis 1 of the weight, once a group.
"""

from __future__ import annotations

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
    initializer,
    is_constant,
    node,
    own,
    producer,
    replace,
)

Floats: TypeAlias = NDArray[np.float64]

CHANNELS = 1 << 22
"""Bytes up to which a vector of one number a channel is read."""


class FuseConvBn(Rewriting):
    """See the module. ``affine=False`` leaves multiplications and additions alone."""

    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.affine = affine

    def rules(self) -> Mapping[str, Rule]:
        table: dict[str, Rule] = {"BatchNormalization": _batch_norm}
        return table | {"Mul": _scale, "Add": _shift, "Sub": _shift, "Div": _scale} if self.affine else table


def _batch_norm(norm: ir.Node) -> Verdict:
    conv = producer(norm.inputs[0], "Conv", "ConvTranspose")
    if conv is None:
        return False
    if norm.attributes.get_int("training_mode", 0):
        return "BatchNormalization in training mode"
    if any(out.uses() or out.is_graph_output() for out in norm.outputs[1:]):
        return "the running statistics are read"
    vectors = [constant(value, CHANNELS) for value in norm.inputs[1:5]]
    if any(vector is None for vector in vectors):
        return "scale, bias, mean or variance is not constant"
    scale, bias, mean, variance = (vector.astype(np.float64) for vector in vectors if vector is not None)
    factor = scale / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    return _fold(norm, conv, factor, bias - mean * factor)


def _scale(after: ir.Node) -> Verdict:
    found = _channel_constant(after)
    if found is None:
        return False
    conv, vector, at = found
    if after.op_type == "Div":
        if at == 0:
            return False
        if not vector.all():
            return "division by zero"
        vector = 1 / vector
    return _fold(after, conv, vector, None)


def _shift(after: ir.Node) -> Verdict:
    found = _channel_constant(after)
    if found is None or (after.op_type == "Sub" and found[2] == 0):
        return False
    conv, vector, _ = found
    return _fold(after, conv, None, -vector if after.op_type == "Sub" else vector)


def _channel_constant(after: ir.Node) -> tuple[ir.Node, Floats, int] | None:
    """(convolution, one number for each of its output channels as float64, which input the constant is)."""
    for at in (1, 0):
        conv = producer(after.inputs[1 - at], "Conv", "ConvTranspose")
        array = constant(after.inputs[at], CHANNELS)
        if conv is None or array is None or array.dtype.kind != "f":
            continue
        out, channels = conv.outputs[0].shape, _channels(conv)
        if out is None or channels is None or array.ndim > len(out):
            return None
        shape = (1,) * (len(out) - array.ndim) + array.shape
        if shape[1] in (1, channels) and all(size == 1 for axis, size in enumerate(shape) if axis != 1):
            return conv, np.broadcast_to(array.reshape(-1).astype(np.float64), (channels,)), at
    return None


def _channels(conv: ir.Node) -> int | None:
    weight = conv.inputs[1]
    if weight is None or weight.shape is None:
        return None
    size = weight.shape[0] if conv.op_type == "Conv" else weight.shape[1]
    if not isinstance(size, int):
        return None
    return size if conv.op_type == "Conv" else size * conv.attributes.get_int("group", 1)


def _fold(after: ir.Node, conv: ir.Node, factor: Floats | None, shift: Floats | None) -> Verdict:
    """Let one convolution do what ``conv`` and then ``after`` do: y * factor + shift for each channel."""
    weight = conv.inputs[1]
    if weight is None or not is_constant(weight) or weight.dtype is None or weight.shape is None:
        return "the weight is not constant"
    channels = _channels(conv)
    old_bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    bias = constant(old_bias, CHANNELS)
    if old_bias is not None and bias is None:
        return "the bias is not constant"
    if not own(after, conv):
        return "the convolution is read elsewhere too"
    numbers = [vector for vector in (factor, shift) if vector is not None]
    if channels is None or any(vector.size != channels for vector in numbers):
        return "not one number for each output channel"
    if not all(np.isfinite(vector).all() for vector in numbers):
        return "a factor is not finite"

    total = np.zeros(channels) if bias is None else bias.astype(np.float64)
    if factor is not None:
        total = total * factor
    if shift is not None:
        total = total + shift
    if factor is not None:
        shape = [int(size) for size in weight.shape.dims if isinstance(size, int)]
        grouped = conv.attributes.get_int("group", 1) if conv.op_type == "ConvTranspose" else None
        weight = initializer(conv, f"{weight.name}_folded", computed(weight, _scaled(factor, grouped), shape))
    dtype = weight.dtype
    assert dtype is not None
    new_bias = None
    if bias is not None or shift is not None:
        vector = ir.Tensor(total.astype(dtype.numpy()), dtype=dtype)
        new_bias = initializer(conv, f"{conv.outputs[0].name}_bias", vector)
    made = node(conv.op_type, [conv.inputs[0], weight, *([new_bias] if new_bias is not None else [])], like=conv)
    made.attributes.update(conv.attributes)
    replace(after, made)
    return True


def _scaled(factor: Floats, grouped: int | None) -> Callable[[Array], Array]:
    """Weight → weight times the factor of each output channel; ``grouped``: the group count of a ConvTranspose."""

    def apply(weight: Array) -> Array:
        ones = (1,) * (weight.ndim - 2)
        if grouped is None:
            scale = factor.reshape(-1, 1, *ones)
        else:
            # Input channel i belongs to group i // (inputs / groups), whose outputs stand in axis 1.
            scale = np.repeat(factor.reshape(grouped, -1), weight.shape[0] // grouped, axis=0)
            scale = scale.reshape(*weight.shape[:2], *ones)
        return (weight * scale.astype(weight.dtype)).astype(weight.dtype)

    return apply
