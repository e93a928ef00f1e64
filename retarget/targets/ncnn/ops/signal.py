"""DFT and STFT as products with a constant matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from retarget.targets import folding, fourier
from retarget.targets.ncnn.call import INTEGERS, Call, Op
from retarget.targets.ncnn.ops.convolution import COUNT, DYNAMIC, KERNEL, OUTPUTS, STRIDE
from retarget.targets.ncnn.ops.elementwise import MUL, joined
from retarget.targets.ncnn.ops.matmul import linear
from retarget.targets.ncnn.ops.shape import held, in_shape, transposed
from retarget.targets.ncnn.ops.slices import whole_along
from retarget.targets.ncnn.ops.windows import numbered
from retarget.targets.ncnn.program import Blob, Param, Weight
from retarget.targets.ncnn.values import Refusal

if TYPE_CHECKING:
    from retarget.targets.ncnn.values import Result


def dft(call: Call) -> Result:
    shape, attributes = call.shape(0), call.attributes
    axis = (call.numbers(2, "the axis")[0] if call.has(2) else -2) % len(shape)
    length = call.numbers(1, "the length")[0] if call.has(1) else None
    inverse, onesided = (bool(attributes.get_int(name, 0)) for name in ("inverse", "onesided"))
    matrix = fourier.Transform(shape[axis], shape[-1], length, inverse, onesided).matrix()
    inputs = shape[axis] * shape[-1]
    # The axis next to the parts of its complex numbers: both are one vector.
    order = [*(each for each in range(len(shape) - 1) if each != axis), axis, len(shape) - 1]
    moved = transposed(call, whole_along(call, call.value(0), [axis]), order)
    vectors = in_shape(call, moved, (*moved.shape[:-2], inputs))
    made = linear(call, vectors, matrix.reshape(inputs, -1).T.astype("float32"))
    made = in_shape(call, made, (*moved.shape[:-2], *matrix.shape[2:]))
    return transposed(call, made, [order.index(each) for each in range(len(shape))])


def stft(call: Call) -> Result:
    """A convolution whose kernels are the waves of each frequency, times the window."""
    onesided = bool(call.attributes.get_int("onesided", 1))
    stride = call.numbers(1, "the step from frame to frame")[0]
    batch, samples, parts = call.shape(0)
    length = call.numbers(3, "the length of a frame")[0] if call.has(3) else math.prod(call.shape(2))
    if call.has(2) and call.shape(2) != (length,):
        raise Refusal(f"the window is not of the {length} samples of a frame")
    if onesided and parts > 1:
        raise Refusal("onesided=1: the other side does not follow from a complex signal")
    fourier.check(4 * length * length)
    matrix = fourier.matrix(length, length, inverse=False, onesided=onesided)[:, :parts]
    frequencies, frames = matrix.shape[2], (samples - length) // stride + 1
    # [frequencies and their two parts, parts of the signal, samples]
    kernel = matrix.transpose(2, 3, 1, 0).reshape(-1, parts, length).astype("float32")
    signal = transposed(call, call.spread(0), (0, 2, 1))
    bottoms: list[Blob] = [call.view(signal, (parts, samples))]
    slides = numbered(KERNEL, [length]) | numbered(STRIDE, [stride])
    params: dict[int, Param] = {OUTPUTS: len(kernel), **slides, COUNT: kernel.size}
    weights: list[Weight] = []
    if call.has(2) and not call.is_constant(2):
        window = call.view(call.whole(2), (1, 1, length))
        bottoms.append(joined(call, MUL, call.lowering.memory(kernel, kernel.shape), window))
        params[DYNAMIC] = 1
    else:
        window_of = call.array(2, "the window").astype("float32") if call.has(2) else 1
        weights.append(Weight(kernel * window_of))
    made = call.add("Convolution1D", bottoms, (len(kernel), frames), params, weights)
    found = held(signal, made, (batch, frequencies, 2, frames))
    return transposed(call, found, (0, 3, 1, 2))


def windowed(call: Call) -> Result:
    """A window function, of as many numbers as the model says that there are."""
    made = folding.window(call.node, (call.declared() or (None,))[0])
    if made is None:
        raise Refusal("its size is computed, and the model does not say how long its result is")
    return made


OPS: Mapping[str, Op] = {
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), Op(windowed, INTEGERS)),
    "DFT": Op(dft),
    "STFT": Op(stft),
}
