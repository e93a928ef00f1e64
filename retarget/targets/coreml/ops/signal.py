"""DFT and STFT as products with a constant matrix, and what of signal processing cannot be written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.coreml.call import FLOATS, NUMBERS, Call, Op
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.matmul import layer
from retarget.targets.coreml.ops.parts import reshaped, transposed
from retarget.targets.coreml.values import Refusal

if TYPE_CHECKING:
    from retarget.protocols import Array

_MOST_WEIGHTS = 1 << 24
"""The most numbers of a matrix: 64 MB."""


def dft(call: Call) -> Var:
    source, attributes = call.var(0), call.attributes
    inverse, onesided = (bool(attributes.get_int(name, 0)) for name in ("inverse", "onesided"))
    axis = (call.numbers(2, "the axis")[0] if call.has(2) else -2) % source.rank
    size, parts = call.sizes(0, [axis, source.rank - 1])
    # Of one side that is inverted the other follows: it is of a real signal.
    implied = 2 * (size - 1) if inverse and onesided else size
    (length,) = call.numbers(1, "the length") if call.has(1) else [implied]
    _check(4 * size * length)
    if inverse and onesided and parts == 1:
        raise Refusal("inverse=1, onesided=1: the operand has no imaginary parts")
    if inverse and onesided and size < length // 2 + 1:
        raise Refusal(f"inverse=1, onesided=1: runtimes differ in what {size} frequencies are of {length} samples")
    matrix = _inverse_of_one_side(size, length) if inverse and onesided else _matrix(size, length, inverse, onesided)
    weight = matrix[:, :parts].reshape(size * parts, -1)
    # The axis next to the parts of its complex numbers: both are one vector.
    order = [*(each for each in range(source.rank - 1) if each != axis), axis, source.rank - 1]
    moved = transposed(call, source, order)
    vectors = reshaped(call, moved, (*moved.shape[:-2], size * parts))
    made = layer(call, vectors, weight.astype(call.dtype(0)))
    made = reshaped(call, made, (*made.shape[:-1], *matrix.shape[2:]))
    return transposed(call, made, [order.index(each) for each in range(source.rank)])


def stft(call: Call) -> Var:
    """A convolution whose kernels are the waves of each frequency, times the window."""
    signal, onesided = call.var(0), bool(call.attributes.get_int("onesided", 1))
    (stride,) = call.numbers(1, "the step from frame to frame")
    (parts,) = call.sizes(0, [2])
    (length,) = call.numbers(3, "the length of a frame") if call.has(3) else call.sizes(2)
    if call.has(2) and call.sizes(2) != (length,):
        raise Refusal(f"the window is not of the {length} samples of a frame")
    if onesided and parts > 1:
        raise Refusal("onesided=1: the other side does not follow from a complex signal")
    _check(4 * length * length)
    matrix = _matrix(length, length, inverse=False, onesided=onesided)[:, :parts]
    # [frequencies and their two parts, parts of the signal, samples]
    kernel = matrix.transpose(2, 3, 1, 0).reshape(-1, parts, length).astype(call.dtype(0))
    weight: Array | Var = kernel
    if call.has(2) and call.is_constant(2):
        weight = kernel * call.array(2, "the window")
    elif call.has(2):
        weight = call.mil.mul(x=kernel, y=call.var(2))
    made = call.mil.conv(x=transposed(call, signal, (0, 2, 1)), weight=weight, strides=[stride], pad_type="valid")
    batch, _, frames = made.shape
    return transposed(call, reshaped(call, made, (batch, matrix.shape[2], 2, frames)), (0, 3, 1, 2))


def _matrix(size: int, length: int, inverse: bool, onesided: bool) -> Array:
    """[samples, their two parts, frequencies, their two parts] of a transform of ``length`` samples.

    Of ``size`` samples that are given the last are left out, or as many zeros follow as are missing.
    """
    count = length // 2 + 1 if onesided else length
    turns = np.outer(np.arange(size), np.arange(count)) % length * (2 * math.pi / length)
    cosine, sine = np.cos(turns), np.sin(turns) * (1 if inverse else -1)
    # (a + ib)(c + is) = (ac - bs) + i(as + bc)
    made = np.stack([np.stack([cosine, sine], -1), np.stack([-sine, cosine], -1)], 1)
    made[length:] = 0
    return made / length if inverse else made


def _inverse_of_one_side(size: int, length: int) -> Array:
    """[frequencies, their two parts, samples, 1]: each but the first and the middle one stands for two."""
    count = length // 2 + 1
    turns = np.outer(np.arange(size), np.arange(length)) % length * (2 * math.pi / length)
    often = np.full((size, 1), 2.0)
    often[[0, count - 1] if length % 2 == 0 else 0] = 1
    often[count:] = 0
    return np.stack([np.cos(turns) * often, -np.sin(turns) * often], 1)[..., None] / length


def _check(numbers: int) -> None:
    if numbers > _MOST_WEIGHTS:
        raise Refusal(f"its matrix would have {numbers} numbers, and {_MOST_WEIGHTS} are written at most")


def mel_weight_matrix(call: Call) -> Var:
    del call
    raise Refusal("its operands are computed: of constants alone a matrix can be written")


OPS: Mapping[str, Op] = {
    "DFT": Op(dft, FLOATS),
    "MelWeightMatrix": Op(mel_weight_matrix, NUMBERS),
    "STFT": Op(stft, FLOATS),
}
