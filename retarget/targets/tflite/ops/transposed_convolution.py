"""ConvTranspose of one to three spatial axes, and Col2Im, which is one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.sliding import Sliding, Spreading
from retarget.targets.tflite.call import Call, Int8, Op
from retarget.targets.tflite.layout import Layout, Way
from retarget.targets.tflite.ops.convolution import IMAGE, LINE, VOLUME, as_image, as_line, convolved
from retarget.targets.tflite.ops.resizing import laid_out
from retarget.targets.tflite.ops.weights import bias_tensor, is_hybrid, takes_integers, weight_tensor
from retarget.targets.tflite.ops.windows import Window, extended, sliced
from retarget.targets.tflite.program import Codes, Constant, Options, Quantization, Tensor
from retarget.targets.tflite.values import Operand, Refusal, Value

if TYPE_CHECKING:
    from retarget.protocols import Array


@dataclass(frozen=True)
class Spread:
    """One axis. Element ``i`` of the operand and tap ``k`` add to result ``i * stride + k * dilation - begin``."""

    size: int
    """Of the operand."""
    kernel: int
    stride: int
    dilation: int
    begin: int
    """Results that are cropped at the start."""
    out: int
    """Of the result."""

    @property
    def span(self) -> int:
        """From the first to behind the last result that one element adds to."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def full(self) -> int:
        """Results that the operand adds to."""
        return (self.size - 1) * self.stride + self.span

    @property
    def is_same(self) -> bool:
        """Whether a kernel with the padding SAME has this result."""
        total = self.full - self.out
        return total >= 0 and self.begin == total // 2 and -(-self.out // self.stride) == self.size


POINT = Spread(1, 1, 1, 1, 0, 1)
"""Of an axis that was added."""


def conv_transpose(call: Call) -> Value:
    source, weight = call.value(0), call.fixed(1, "the weight")
    if source.rank not in (LINE, IMAGE, VOLUME):
        raise Refusal(f"{source.rank - 2} spatial axes: the kernels have one to three")
    found = _spreads(call, source.shape[2:], weight.shape[2:])
    bias = call.operand(2) if call.has(2) else None
    if _is_plain(call):
        # TRANSPOSE_CONV holds the size of its result, and does not take floats with weights of integers.
        composed = _is_open(call) or is_hybrid(call, weight, 1)
        if source.rank <= IMAGE and composed and not isinstance(bias, Value):
            return _by_phases(call, source, weight, bias, found)
        return _transposed(call, source, weight, bias, found)
    return _of_stretched(call, source, weight, bias, found, call.attributes.get_int("group", 1))


def col2im(call: Call) -> Value:
    """[N, C * taps, L] as the ConvTranspose whose weights put each tap in its place."""
    columns = call.value(0)
    sizes, kernel = call.numbers(1, "the size of the image"), call.numbers(2, "the size of a block")
    rank = len(sizes)
    if rank > VOLUME - 2:
        raise Refusal(f"{rank} spatial axes: the kernels have one to three")
    sliding, found = Sliding.of(call.node, rank), []
    steps = zip(sizes, kernel, sliding.strides, sliding.dilations, strict=True)
    for axis, (size, taps, stride, dilation) in enumerate(steps):
        count = sliding.blocks(axis, size, (taps - 1) * dilation + 1)
        found.append(Spread(count, taps, stride, dilation, sliding.pads[axis], size))
    batch, channels, _ = columns.shape
    taps = math.prod(kernel)
    places = (batch, channels, *(spread.size for spread in found))
    source = call.reshape(columns, places, layout=Layout.FIRST)
    each = np.eye(taps, dtype=np.float32).reshape(taps, 1, *kernel)
    weight = Constant.of(np.tile(each, (channels // taps, *[1] * (rank + 1))))
    return _of_stretched(call, source, weight, None, found, channels // taps)


def _is_plain(call: Call) -> bool:
    """Whether there is a kernel for it: they have one group and no dilations."""
    attributes = call.attributes
    return attributes.get_int("group", 1) == 1 and set(attributes.get_ints("dilations") or [1]) == {1}


def _is_open(call: Call) -> bool:
    """Whether the operand may have other sizes when the model is loaded: the kernels hold the size of their result."""
    declared = call.node.inputs[0].shape if call.node.inputs[0] is not None else None
    is_known = declared is not None and all(isinstance(dim, int) for dim in declared)
    return not is_known and any(extent.min != extent.max for extent in call.lowering.job.shapes.values())


def _spreads(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[Spread, ...]:
    spreading, found = Spreading.of(call.node, len(sizes)), []
    sliding = spreading.sliding
    steps = zip(sizes, kernel, sliding.strides, sliding.dilations, strict=True)
    for axis, (size, taps, stride, dilation) in enumerate(steps):
        span = (taps - 1) * dilation + 1
        begin, end = spreading.cropped(axis, size, span)
        out = (size - 1) * stride + span - begin - end
        if begin < 0 or out < 1:
            raise Refusal(f"pads={sliding.pads}: what is left has no elements, or more than there were")
        found.append(Spread(size, taps, stride, dilation, begin, out))
    return tuple(found)


def _transposed(call: Call, source: Value, weight: Constant, bias: Operand | None, found: Sequence[Spread]) -> Value:
    """By the kernel. What it gives more is cropped; results that no element adds to are made with elements of 0."""
    if source.rank == LINE:
        shape = (*weight.shape[:2], 1, weight.shape[2])
        return as_line(call, _image(call, as_image(call, source), weight, shape, bias, (POINT, *found)))
    if source.rank == IMAGE:
        return _image(call, source, weight, weight.shape, bias, found)
    return _volume(call, source, weight, bias, found)


def _image(
    call: Call, source: Value, weight: Constant, shape: Sequence[int], bias: Operand | None, found: Sequence[Spread]
) -> Value:
    inputs = [
        weight_tensor(call, weight, (1, 2, 3, 0), shape=shape, axis=0),
        bias_tensor(call, bias, shape[1], weight, source.quantization),
    ]
    return _cropped(call, "TRANSPOSE_CONV", "TransposeConvOptions", source, inputs, found)


def _volume(call: Call, source: Value, weight: Constant, bias: Operand | None, found: Sequence[Spread]) -> Value:
    inputs = [
        weight_tensor(call, weight, (2, 3, 4, 1, 0)),
        bias_tensor(call, bias, weight.shape[1]),
    ]
    return _cropped(call, "CONV_3D_TRANSPOSE", "Conv3DOptions", source, inputs, found)


def _cropped(
    call: Call, code: str, table: str, source: Value, inputs: Sequence[Tensor], found: Sequence[Spread]
) -> Value:
    """The kernel ``code`` on ``source``; ``inputs`` are its weights and bias."""
    weight, bias = inputs
    count = bias.shape[0]
    wanted = (source.shape[0], count, *(spread.out for spread in found))
    options: dict[str, int | str] = {"padding": "SAME", "fusedActivationFunction": call.activation}
    options |= {f"stride{name}": each.stride for name, each in zip("DHW"[-len(found) :], found, strict=True)}
    made = wanted
    if not all(spread.is_same for spread in found):
        options["padding"] = "VALID"
        more = [-(-max(each.begin + each.out - each.full, 0) // each.stride) for each in found]
        source = extended(call, source, [0] * len(found), more)
        grown = (each.full + added * each.stride for each, added in zip(found, more, strict=True))
        made = (source.shape[0], count, *grown)
    operands: list[Value | Tensor] = [call.ints(call.placed(made)), weight, source, bias]
    whole = call.emit(code, operands, made, np.float32, Options(table, options))
    return sliced(call, whole, [0, 0, *(spread.begin for spread in found)], wanted)


def _by_phases(call: Call, source: Value, weight: Constant, bias: Constant | None, found: Sequence[Spread]) -> Value:
    """By a convolution whose channels are the results of a whole stride, which are then laid out side by side."""
    if source.rank == LINE:
        wide = weight.reshaped((*weight.shape[:2], 1, weight.shape[2]))
        if weight.codes is not None:
            wide = replace(wide, codes=replace(weight.codes, integers=weight.codes.integers.reshaped(wide.shape)))
        return as_line(call, _by_phases(call, as_image(call, source), wide, bias, (POINT, *found)))
    count, phases = weight.shape[1], math.prod(each.stride for each in found)
    taps = [-(-each.kernel // each.stride) for each in found]
    blocks = [-(-(each.begin + each.out) // each.stride) for each in found]
    ends = [block - each.size for block, each in zip(blocks, found, strict=True)]
    source = extended(call, source, [tap - 1 for tap in taps], ends)
    over = [
        Window(size, tap, 1, 1, 0, 0, block) for size, tap, block in zip(source.shape[2:], taps, blocks, strict=True)
    ]
    if bias is not None:
        bias = bias.then(("tiled", phases), lambda array: np.tile(array.reshape(-1), phases), (phases * count,))
    made = convolved(call, source, _phased(weight, [each.stride for each in found]), bias, over, 1)
    whole = laid_out(call, made, [each.stride for each in found])
    starts, shape = [0, 0, *(each.begin for each in found)], (*whole.shape[:2], *(each.out for each in found))
    return sliced(call, whole, starts, shape)


def _phased(weight: Constant, strides: Sequence[int]) -> Constant:
    """[C, M, ...] of ConvTranspose as [phases * M, C, ...] of Conv, also of the integers behind it."""
    channels, count, *kernel = weight.shape
    taps = [-(-size // stride) for size, stride in zip(kernel, strides, strict=True)]
    phases = math.prod(strides)
    shape = (phases * count, channels, *taps)

    def change(array: Array) -> Array:
        ends = [(0, tap * stride - size) for tap, stride, size in zip(taps, strides, kernel, strict=True)]
        whole = np.pad(array, [(0, 0), (0, 0), *ends])
        apart = whole.reshape(channels, count, taps[0], strides[0], taps[1], strides[1])
        return np.ascontiguousarray(apart.transpose(3, 5, 1, 0, 2, 4)[..., ::-1, ::-1].reshape(shape))

    what = ("phases", tuple(strides))
    made = weight.then(what, change, shape)
    if weight.codes is None:
        return made
    means = weight.codes.quantization
    if means.per_channel:
        means = Quantization(means.scales * phases, means.zero_points * phases, 0)
    return replace(made, codes=Codes(weight.codes.integers.then(what, change, shape), means))


def _of_stretched(
    call: Call, source: Value, weight: Constant, bias: Operand | None, found: Sequence[Spread], groups: int
) -> Value:
    """As the convolution of ``source``, with zeros between its elements, by the weights turned round."""
    ends = []
    for axis, spread in enumerate(found):
        source = _stretched(call, source, axis + 2, spread.stride)
        ends.append(spread.out + spread.begin - spread.size * spread.stride)
    source = extended(call, source, [spread.span - 1 - spread.begin for spread in found], ends)
    over = [
        Window(size, spread.kernel, 1, spread.dilation, 0, 0, spread.out)
        for size, spread in zip(source.shape[2:], found, strict=True)
    ]
    return convolved(call, source, _turned(weight, groups), bias, over, groups)


def _stretched(call: Call, value: Value, axis: int, stride: int) -> Value:
    """``stride - 1`` zeros behind each element of ``axis``."""
    if stride == 1:
        return value
    shape = value.shape
    before, after = math.prod(shape[2 : axis + 1]), math.prod(shape[axis + 1 :])
    rows = call.reshape(value, (*shape[:2], before, 1, after))
    rows = extended(call, rows, [0, 0, 0], [0, stride - 1, 0])
    return call.reshape(rows, (*shape[:axis], shape[axis] * stride, *shape[axis + 1 :]))


def _turned(weight: Constant, groups: int) -> Constant:
    """[C, M / groups, ...] of ConvTranspose as [M, C / groups, ...] of Conv, each kernel reversed."""
    channels, each, *kernel = weight.shape
    shape = (each * groups, channels // groups, *kernel)

    def change(array: Array) -> Array:
        parts = array.reshape(groups, channels // groups, each, *kernel).swapaxes(1, 2).reshape(shape)
        return np.ascontiguousarray(np.flip(parts, tuple(range(2, len(shape)))))

    return weight.then(("turned", groups), change, shape)


def _integers(call: Call) -> Int8:
    is_taken = len(call.operand(0).shape) <= IMAGE and _is_plain(call) and takes_integers(call, 1)
    return "computes" if is_taken else "no"


OPS: Mapping[str, Op] = {
    "Col2Im": Op(col2im, Way.LAST, operands=()),
    "ConvTranspose": Op(conv_transpose, Way.LAST, operands=(0,), fuses=True, int8=_integers),
}
