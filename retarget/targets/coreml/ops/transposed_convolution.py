"""ConvTranspose of one to three spatial axes, and Col2Im, which is one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retarget.targets.coreml.call import Call, Op
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.convolution import bias_of, is_computed, with_bias
from retarget.targets.coreml.ops.parts import part, reshaped
from retarget.targets.coreml.ops.windows import AXES, zero_padded
from retarget.targets.coreml.values import Refusal, dtype_of
from retarget.targets.sliding import Sliding, Spreading


@dataclass(frozen=True)
class Spread:
    """One axis. Element ``i`` of the operand and tap ``k`` add to result ``i * stride + k * dilation - begin``."""

    stride: int
    dilation: int
    begin: int
    """Results that are cropped at the start."""
    end: int
    """Results that are cropped at the end; negative: results that nothing adds to."""

    @property
    def more(self) -> int:
        """Zeros behind the operand that reach as far as the result does."""
        return -(self.end // self.stride) if self.end < 0 else 0


def conv_transpose(call: Call) -> Var:
    rank = call.rank(0) - 2
    if not 1 <= rank <= AXES:
        raise Refusal(f"{rank} spatial axes: Core ML has one to {AXES}")
    if is_computed(call, 1):
        call.needs(17, "a ConvTranspose with computed weights")
    weight = call.var(1)
    found = _spreads(call, [int(size) for size in weight.shape[2:]])
    bias, added = bias_of(call)
    made = transposed(call, call.var(0), weight, bias, found, call.attributes.get_int("group", 1))
    return with_bias(call, made, added)


def transposed(call: Call, x: Var, weight: Var, bias: Var | None, found: Sequence[Spread], groups: int) -> Var:
    """What ONNX's ConvTranspose is of these operands."""
    x = zero_padded(call, x, [0] * len(found), [each.more for each in found])
    pads = [number for each in found for number in (each.begin, each.end + each.more * each.stride)]
    # Pads that differ mean on the GPU something else than on the CPU.
    cropped = len(set(pads)) > 1
    made = call.mil.conv_transpose(
        x=x,
        weight=weight,
        bias=bias,
        strides=[each.stride for each in found],
        dilations=[each.dilation for each in found],
        groups=groups,
        pad_type="custom" if any(pads) and not cropped else "valid",
        pad=pads if any(pads) and not cropped else None,
    )
    for axis, (begin, end) in enumerate(zip(pads[::2], pads[1::2], strict=True), start=2):
        if cropped:
            made = part(call, made, axis, slice(begin, -end if end else None))
    return made


def _spreads(call: Call, kernel: Sequence[int]) -> list[Spread]:
    rank = len(kernel)
    spreading = Spreading.of(call.node, rank)
    sliding = spreading.sliding
    sliding.refuse_negative_pads()
    # The result is as large only for one size of the operand.
    sizes = [None] * rank if spreading.wanted is None else call.sizes(0, range(2, 2 + rank))
    found = []
    steps = zip(sizes, kernel, sliding.strides, sliding.dilations, strict=True)
    for axis, (size, taps, stride, dilation) in enumerate(steps):
        begin, end = spreading.cropped(axis, size, (taps - 1) * dilation + 1)
        found.append(Spread(stride, dilation, begin, end))
    return found


def col2im(call: Call) -> Var:
    """[N, C * taps, L] as the ConvTranspose whose weights put each tap in its place."""
    columns = call.var(0)
    sizes, kernel = call.numbers(1, "the size of the image"), call.numbers(2, "the size of a block")
    rank = len(sizes)
    if not 1 <= rank <= AXES:
        raise Refusal(f"{rank} spatial axes: Core ML has one to {AXES}")
    sliding = Sliding.of(call.node, rank)
    if rank == AXES and any(dilation != 1 for dilation in sliding.dilations):
        raise Refusal(f"dilations={list(sliding.dilations)} of a volume: ONNX Runtime differs from ONNX in it")
    found, counts = [], []
    steps = zip(sizes, kernel, sliding.strides, sliding.dilations, strict=True)
    for axis, (size, taps, stride, dilation) in enumerate(steps):
        span, begin = (taps - 1) * dilation + 1, sliding.pads[axis]
        count = sliding.blocks(axis, size, span)
        found.append(Spread(stride, dilation, begin, (count - 1) * stride + span - begin - size))
        counts.append(count)
    (width,) = call.sizes(0, [1])
    taps = math.prod(kernel)
    each = np.eye(taps, dtype=dtype_of(columns)).reshape(taps, 1, *kernel)
    weight = call.mil.const(val=np.tile(each, (width // taps, *[1] * (rank + 1))))
    places = reshaped(call, columns, (columns.shape[0], width, *counts))
    return transposed(call, places, weight, None, found, width // taps)


OPS: Mapping[str, Op] = {
    "Col2Im": Op(col2im),
    "ConvTranspose": Op(conv_transpose),
}
