"""DFT and STFT as products with a constant matrix, and what of signal processing cannot be written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from retarget.targets import fourier
from retarget.targets.coreml.call import FLOATS, NUMBERS, Call, Op
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.matmul import layer
from retarget.targets.coreml.ops.parts import reshaped, transposed
from retarget.targets.coreml.values import Refusal

if TYPE_CHECKING:
    from retarget.protocols import Array


def dft(call: Call) -> Var:
    source, attributes = call.var(0), call.attributes
    axis = (call.numbers(2, "the axis")[0] if call.has(2) else -2) % source.rank
    size, parts = call.sizes(0, [axis, source.rank - 1])
    length = call.numbers(1, "the length")[0] if call.has(1) else None
    inverse, onesided = (bool(attributes.get_int(name, 0)) for name in ("inverse", "onesided"))
    matrix = fourier.Transform(size, parts, length, inverse, onesided).matrix()
    weight = matrix.reshape(size * parts, -1)
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
    fourier.check(4 * length * length)
    matrix = fourier.matrix(length, length, inverse=False, onesided=onesided)[:, :parts]
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


def mel_weight_matrix(call: Call) -> Var:
    del call
    raise Refusal("its operands are computed: of constants alone a matrix can be written")


OPS: Mapping[str, Op] = {
    "DFT": Op(dft, FLOATS),
    "MelWeightMatrix": Op(mel_weight_matrix, NUMBERS),
    "STFT": Op(stft, FLOATS),
}
