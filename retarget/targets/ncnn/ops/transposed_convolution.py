"""ConvTranspose of one to three spatial axes, and Col2Im, which is one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.ncnn.call import Call, Op
from retarget.targets.ncnn.ops.convolution import (
    BEGIN,
    BIAS,
    COUNT,
    DILATION,
    END,
    GROUPS,
    KERNEL,
    OUTPUTS,
    STRIDE,
    as_image,
    constant_bias,
    with_bias,
)
from retarget.targets.ncnn.ops.windows import AXES, SUFFIX, by_axis, numbered
from retarget.targets.ncnn.program import Blob, Param, Weight
from retarget.targets.ncnn.values import Refusal
from retarget.targets.sliding import Sliding, Spreading

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.ncnn.values import Result

MORE, DYNAMIC = by_axis(18, 19, 20), 28
"""Keys: results behind the others that nothing adds to, along each axis; whether the weights are computed."""


@dataclass(frozen=True)
class Spread:
    """One axis. Element ``i`` of the operand and tap ``k`` add to result ``i * stride + k * dilation - begin``."""

    size: int
    kernel: int
    stride: int
    dilation: int
    begin: int
    """Results that are cut off at the start."""
    end: int
    """Results that are cut off at the end; negative: results that nothing adds to."""

    @property
    def out(self) -> int:
        return (self.size - 1) * self.stride + (self.kernel - 1) * self.dilation + 1 - self.begin - self.end


def conv_transpose(call: Call) -> Result:
    x, shape, groups = call.spread(0), call.shape(1), call.attributes.get_int("group", 1)
    found, outputs = _spreads(call, shape[2:]), shape[1] * groups
    blob = call.view(x, x.shape[1:])
    if call.is_constant(1):
        bias = constant_bias(call)
        weights = [Weight(_ordered(call.array(1, "the weights"), groups)), *bias]
        made = transposed(call, blob, found, outputs, groups, weights)
        made = with_bias(call, made) if not bias else made
    else:
        made = _with_computed(call, blob, found, outputs, groups)
    return call.made(made, (x.shape[0], outputs, *(each.out for each in found)))


def transposed(
    call: Call, x: Blob, found: Sequence[Spread], outputs: int, groups: int, weights: Sequence[Weight]
) -> Blob:
    """The layer of constant weights, as ncnn has them, and of a bias where there is one."""
    x, found = _fast(call, x, found)
    params = {COUNT: weights[0].array.size, **_params(found, outputs, groups)}
    if len(weights) > 1:
        params[BIAS] = 1
    outs = (outputs, *(each.out for each in found))
    return call.add(_layer(found, groups), (x,), outs, dict(sorted(params.items())), weights)


def _fast(call: Call, x: Blob, found: Sequence[Spread]) -> tuple[Blob, Sequence[Spread]]:
    """A line as an image of one row, which ncnn computes many times as fast."""
    return (as_image(call, x), [Spread(1, 1, 1, 1, 0, 0), *found]) if len(found) == 1 else (x, found)


def _with_computed(call: Call, x: Blob, found: Sequence[Spread], outputs: int, groups: int) -> Blob:
    """The layer of weights that are an operand, as the bias is then."""
    if len(found) == AXES:
        raise Refusal("computed weights: ncnn has none over three axes")
    weight = call.whole(1)
    x, found = _fast(call, x, found)
    bottoms = [x, call.view(weight, (*weight.shape[:2], *(each.kernel for each in found)))]
    params = {DYNAMIC: 1, **_params(found, outputs, groups)}
    if call.has(2):
        bias = call.whole(2)
        bottoms.append(call.view(bias, bias.shape))
        params[BIAS] = 1
    outs = (outputs, *(each.out for each in found))
    return call.add(_layer(found, groups), bottoms, outs, dict(sorted(params.items())))


def _layer(found: Sequence[Spread], groups: int) -> str:
    return f"Deconvolution{'DepthWise' if groups > 1 else ''}{SUFFIX[len(found)]}"


def _params(found: Sequence[Spread], outputs: int, groups: int) -> dict[int, Param]:
    params: dict[int, Param] = {OUTPUTS: outputs, **({GROUPS: groups} if groups > 1 else {})}
    for keys, numbers in (
        (KERNEL, [each.kernel for each in found]),
        (DILATION, [each.dilation for each in found]),
        (STRIDE, [each.stride for each in found]),
        (BEGIN, [each.begin for each in found]),
        (END, [max(each.end, 0) for each in found]),
        (MORE, [max(-each.end, 0) for each in found]),
    ):
        params |= numbered(keys, numbers)
    return params


def _ordered(weights: Array, groups: int) -> Array:
    """ONNX's [inputs, outputs of a group, taps] as [groups, outputs of one, inputs of one, taps]."""
    inputs, outputs, *taps = weights.shape
    return weights.reshape(groups, inputs // groups, outputs, *taps).swapaxes(1, 2)


def _spreads(call: Call, kernel: Sequence[int]) -> list[Spread]:
    rank, sizes = len(kernel), call.shape(0)[2:]
    if not 1 <= rank <= AXES:
        raise Refusal(f"{rank} spatial axes: ncnn has layers for one to {AXES}")
    spreading = Spreading.of(call.node, rank)
    sliding = spreading.sliding
    sliding.refuse_negative_pads()
    found = []
    steps = zip(sizes, kernel, sliding.strides, sliding.dilations, strict=True)
    for axis, (size, taps, stride, dilation) in enumerate(steps):
        begin, end = spreading.cropped(axis, size, (taps - 1) * dilation + 1)
        spread = Spread(size, taps, stride, dilation, begin, end)
        if spread.out < 1:
            raise Refusal("its result is empty, and ncnn has no empty blobs")
        found.append(spread)
    return found


def col2im(call: Call) -> Result:
    """[N, C * taps, L] as the ConvTranspose whose weights put each tap in its place."""
    sizes, kernel = call.numbers(1, "the size of the image"), call.numbers(2, "the size of a block")
    rank = len(sizes)
    if not 1 <= rank <= AXES:
        raise Refusal(f"{rank} spatial axes: ncnn has layers for one to {AXES}")
    sliding = Sliding.of(call.node, rank)
    if rank != 2 and any(dilation != 1 for dilation in sliding.dilations):
        raise Refusal(f"dilations={list(sliding.dilations)} along {rank} axes: ONNX Runtime differs from ONNX in it")
    found = []
    steps = zip(sizes, kernel, sliding.strides, sliding.dilations, strict=True)
    for axis, (size, taps, stride, dilation) in enumerate(steps):
        span, begin = (taps - 1) * dilation + 1, sliding.pads[axis]
        count = sliding.blocks(axis, size, span)
        found.append(Spread(count, taps, stride, dilation, begin, (count - 1) * stride + span - begin - size))
    x, area = call.spread(0), math.prod(kernel)
    channels = x.shape[1] // area
    each = np.eye(area, dtype=np.float32).reshape(1, area, *kernel)
    weight = Weight(np.tile(each, (channels, 1, *[1] * rank)))
    blob = call.view(x, (x.shape[1], *(each.size for each in found)))
    made = transposed(call, blob, found, channels, channels, [weight])
    return call.made(made, (x.shape[0], channels, *(each.out for each in found)))


OPS: Mapping[str, Op] = {
    "Col2Im": Op(col2im),
    "ConvTranspose": Op(conv_transpose),
}
