"""Weights and biases of the kernels that multiply and sum: in float, or as the integers behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.tflite.call import Call
from retarget.targets.tflite.program import Codes, Constant, Quantization, Tensor
from retarget.targets.tflite.values import Operand, Refusal, Value

if TYPE_CHECKING:
    from retarget.protocols import Array


def takes_integers(call: Call, axis: int | None, operand: int = 1) -> bool:
    """Whether operand ``operand`` is weights that the integer kernels multiply with.

    They are a constant's int8 codes around 0, with one scale, or one for each index of ``axis`` of the constant.
    """
    return has_integers(call.operand(operand), axis)


def has_integers(weight: Operand, axis: int | None) -> bool:
    """The same of any weights."""
    codes = weight.codes if isinstance(weight, Constant) else None
    if codes is None or codes.integers.dtype != np.int8 or any(codes.quantization.zero_points):
        return False
    return not codes.quantization.per_channel or codes.quantization.axis == axis


def is_hybrid(call: Call, weight: Operand, axis: int | None) -> bool:
    """Whether floats are multiplied with int8 weights, for which a kernel rounds what it is given as it runs."""
    return call.lowering.job.precision == "int8_dynamic" and not call.int8 and has_integers(weight, axis)


def weight_tensor(
    call: Call,
    weight: Constant,
    perm: Sequence[int] | None = None,
    *,
    shape: Sequence[int] | None = None,
    axis: int = 0,
    hybrid: bool = False,
) -> Tensor:
    """``weight``, first reshaped to ``shape``, then transposed by ``perm``, as the kernel of ``call`` reads it.

    In a node that works on integers, or with ``hybrid``, these are int8, and ``axis`` of the result has the scales
    where there is one for each channel; ``takes_integers`` must hold. Otherwise they are floats.
    """
    if not (call.int8 or hybrid):
        return call.lowering.constant(_arranged(weight, shape, perm))
    assert weight.codes is not None
    integers, means = _arranged(weight.codes.integers, shape, perm), weight.codes.quantization
    if hybrid and not means.per_channel:
        # Kernels of floats and integers look for a scale at each channel.
        count = integers.shape[axis]
        means = Quantization(means.scales * count, means.zero_points * count)
    return call.lowering.codes(Codes(integers, replace(means, axis=axis)), "int8")


def bias_tensor(
    call: Call,
    bias: Operand | None,
    count: int,
    weight: Constant | None = None,
    source: Quantization | None = None,
) -> Tensor:
    """``count`` numbers that a kernel adds to its sums; zeros where there is no bias.

    In a node that works on integers they are multiples of the product of the scales of ``source``, which is the
    quantization of operand 0 if it is not given, and of ``weight``: int32, or int64 where the activations have 16 bits.
    Raises ``Refusal`` where such a bias is computed.
    """
    constant = Constant.of(np.zeros(count, np.float32)) if bias is None else bias
    if not call.int8:
        if isinstance(constant, Constant):
            return call.lowering.constant(constant.reshaped((count,)))
        tensor = call.tensor(constant)
        assert tensor is not None
        return tensor
    if not isinstance(constant, Constant):
        raise Refusal("the bias is computed: with integers only a constant can be written")
    if source is None:
        (source,) = {each.quantization for each in call.operands[:1] if isinstance(each, Value)}
    assert source is not None
    assert weight is not None
    assert weight.codes is not None
    scales = _product(source, weight.codes.quantization)
    integers = _integers(constant, scales, count, call.lowering.integers.name)
    means = Quantization(tuple(float(scale) for scale in scales), (0,) * scales.size)
    return call.lowering.codes(Codes(integers, means), integers.dtype.name)


def _arranged(constant: Constant, shape: Sequence[int] | None, perm: Sequence[int] | None) -> Constant:
    reshaped = constant if shape is None else constant.reshaped(shape)
    return reshaped if perm is None else reshaped.transposed(perm)


def _product(source: Quantization, weight: Quantization) -> Array:
    return np.float32(source.scales[0]) * np.array(weight.scales, np.float32)


def _integers(bias: Constant, scales: Array, count: int, activations: str) -> Constant:
    """The graph's own integers where it has them at ``scales``; else the float bias, rounded to them."""
    wide = np.dtype(np.int64 if activations == "int16" else np.int32)
    if bias.codes is not None and bias.codes.integers.dtype == np.int32:
        held = bias.codes.quantization
        own = np.array(held.scales, np.float32)
        fits = own.size in (1, scales.size) and not any(held.zero_points)
        if fits and np.allclose(own, scales, rtol=1e-6, atol=0):
            return bias.codes.integers.reshaped((count,)).cast(wide.name)

    def rounded(array: Array) -> Array:
        steps = np.rint(array.reshape(-1).astype(np.float64) / scales.astype(np.float64))
        # Beyond this no sum of products could balance it; int64 itself would round up in float64.
        return np.clip(steps, -_LARGEST, _LARGEST).astype(wide)

    return bias.then(("bias", scales.tobytes(), wide.str), rounded, (count,), wide)


_LARGEST = 2**31 - 1
