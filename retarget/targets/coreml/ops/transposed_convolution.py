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
    rank, attributes = len(kernel), call.attributes
    strides = attributes.get_ints("strides") or [1] * rank
    dilations = attributes.get_ints("dilations") or [1] * rank
    pads = attributes.get_ints("pads") or [0] * (2 * rank)
    more = attributes.get_ints("output_padding") or [0] * rank
    shape = attributes.get("output_shape")
    wanted = None if shape is None else list(shape.as_ints())[-rank:]
    auto = attributes.get_string("auto_pad") or "NOTSET"
    if wanted is None and auto.startswith("SAME") and any(more):
        raise Refusal(f"auto_pad={auto} with output_padding: ONNX does not say how large the result is")
    if min(pads) < 0:
        raise Refusal(f"pads={list(pads)}: negative pads are not written")
    # The result is as large only for one size of the operand.
    sizes = None if wanted is None else call.sizes(0, range(2, 2 + rank))
    found = []
    for axis, (taps, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        begin, end = (0, 0) if auto == "VALID" else (pads[axis], pads[axis + rank])
        span = (taps - 1) * dilation + 1
        if sizes is not None and wanted is not None:
            natural = (sizes[axis] - 1) * stride + span
            begin, end = _split(auto, max(natural + more[axis] - wanted[axis], 0))
            end = natural - begin - wanted[axis]
        else:
            if auto.startswith("SAME"):
                begin, end = _split(auto, max(span - stride, 0))
            end -= more[axis]
        found.append(Spread(stride, dilation, begin, end))
    return found


def _split(auto: str, total: int) -> tuple[int, int]:
    """``total`` results in front and behind, as ``auto_pad`` says."""
    less, more = total // 2, total - total // 2
    return (less, more) if auto == "SAME_UPPER" else (more, less)


def col2im(call: Call) -> Var:
    """[N, C * taps, L] as the ConvTranspose whose weights put each tap in its place."""
    columns = call.var(0)
    sizes, kernel = call.numbers(1, "the size of the image"), call.numbers(2, "the size of a block")
    rank, attributes = len(sizes), call.attributes
    if not 1 <= rank <= AXES:
        raise Refusal(f"{rank} spatial axes: Core ML has one to {AXES}")
    strides = attributes.get_ints("strides") or [1] * rank
    dilations = attributes.get_ints("dilations") or [1] * rank
    pads = attributes.get_ints("pads") or [0] * (2 * rank)
    if rank == AXES and any(dilation != 1 for dilation in dilations):
        raise Refusal(f"dilations={list(dilations)} of a volume: ONNX Runtime differs from ONNX in it")
    found, counts = [], []
    for axis, (size, taps, stride, dilation) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        span = (taps - 1) * dilation + 1
        count = (size + pads[axis] + pads[axis + rank] - span) // stride + 1
        found.append(Spread(stride, dilation, pads[axis], (count - 1) * stride + span - pads[axis] - size))
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
