"""Conv over one, two and three axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from retarget.targets.ncnn import int8
from retarget.targets.ncnn.call import Call, Op
from retarget.targets.ncnn.ops.elementwise import ADD, joined
from retarget.targets.ncnn.ops.windows import AXES, SAME_LOWER, SAME_UPPER, SUFFIX, Windows, by_axis, numbered, windows
from retarget.targets.ncnn.program import Blob, Param, Weight
from retarget.targets.ncnn.values import Refusal

if TYPE_CHECKING:
    from retarget.targets.ncnn.values import Result

OUTPUTS, BIAS, COUNT, GROUPS, DYNAMIC = 0, 5, 6, 7, 19
"""Keys: how many outputs, whether there is a bias, how many weights, in how many groups, whether they are computed."""

KERNEL, DILATION, STRIDE = by_axis(1, 11, 21), by_axis(2, 12, 22), by_axis(3, 13, 23)
BEGIN, END = by_axis(4, 14, 24), by_axis(15, 16, 17)
"""Keys of each axis."""


def conv(call: Call) -> Result:
    shape, groups = call.shape(1), call.attributes.get_int("group", 1)
    found = windows(call, shape[2:])
    if call.is_constant(1):
        bias = constant_bias(call)
        rounded = int8.int8(call, 0, 1, 0)
        if rounded is not None and int8.has_kernel(rounded.codes, groups):
            image = found.as_image if found.is_line else found
            made = int8.convolved(call, rounded, image.outs, window_params(image) | _grouped(groups), bias)
        else:
            weights = [Weight(call.array(1, "the weights")), *bias]
            made = convolved(call, _image(call), found, shape[0], groups, weights)
        made = with_bias(call, made) if not bias else made
    else:
        made = _with_computed(call, _image(call), found, groups)
    return call.made(made, (call.shape(0)[0], shape[0], *found.outs))


def _image(call: Call) -> Blob:
    x = call.spread(0)
    return call.view(x, x.shape[1:])


def convolved(call: Call, x: Blob, found: Windows, outputs: int, groups: int, weights: Sequence[Weight]) -> Blob:
    """The layer of constant weights, as ONNX has them, and of a bias where there is one.

    Its dims are [outputs, *windows], and those of an image of one row where groups of channels have lines.
    """
    x, found = _fast(call, x, found, groups)
    params = {OUTPUTS: outputs, COUNT: weights[0].array.size, **window_params(found), **_grouped(groups)}
    if len(weights) > 1:
        params[BIAS] = 1
    return call.add(_layer(found, groups), (x,), (outputs, *found.outs), dict(sorted(params.items())), weights)


def _fast(call: Call, x: Blob, found: Windows, groups: int) -> tuple[Blob, Windows]:
    """A line of groups as an image of one row, which ncnn computes several times as fast."""
    if groups == 1 or not found.is_line:
        return x, found
    return as_image(call, x), found.as_image


def as_image(call: Call, line: Blob) -> Blob:
    """A line as an image of one row."""
    channels, size = line.dims
    return call.lowering.reshaped(line, (channels, 1, size), call.node.name or "")


def _layer(found: Windows, groups: int) -> str:
    return f"Convolution{'DepthWise' if groups > 1 else ''}{SUFFIX[len(found.along)]}"


def window_params(found: Windows) -> dict[int, Param]:
    """The params of a convolution that say how windows slide."""
    params: dict[int, Param] = {}
    for keys, numbers in (
        (KERNEL, found.kernel),
        (DILATION, [each.dilation for each in found.along]),
        (STRIDE, [each.stride for each in found.along]),
        (BEGIN, [each.begin for each in found.along]),
        (END, [each.end for each in found.along]),
    ):
        params |= numbered(keys, numbers)
    if found.auto:
        same = {"SAME_UPPER": SAME_UPPER, "SAME_LOWER": SAME_LOWER}[found.auto]
        for keys in (BEGIN, END):
            params |= numbered(keys, [same] * len(found.along))
    return params


def _grouped(groups: int) -> dict[int, Param]:
    return {GROUPS: groups} if groups > 1 else {}


def _with_computed(call: Call, x: Blob, found: Windows, groups: int) -> Blob:
    """The layer of weights that are an operand, as the bias is then."""
    if len(found.along) == AXES:
        raise Refusal("computed weights: ncnn has none over three axes")
    weight = call.whole(1)
    x, found = _fast(call, x, found, groups)
    outputs, inputs = weight.shape[:2]
    bottoms = [x, call.view(weight, (outputs, inputs, *found.kernel))]
    params = {OUTPUTS: outputs, **window_params(found), DYNAMIC: 1, **_grouped(groups)}
    if call.has(2):
        bias = call.whole(2)
        bottoms.append(call.view(bias, bias.shape))
        params[BIAS] = 1
    return call.add(_layer(found, groups), bottoms, (outputs, *found.outs), dict(sorted(params.items())))


def constant_bias(call: Call, index: int = 2) -> list[Weight]:
    """Operand ``index`` as the bias of a layer with constant weights; nothing where it is none, or computed."""
    if not call.has(index) or not call.is_constant(index):
        return []
    return [Weight(call.array(index, "the bias"), tagged=False)]


def with_bias(call: Call, x: Blob, index: int = 2) -> Blob:
    """``x`` and, for each channel, an element of operand ``index`` where that is given."""
    if not call.has(index):
        return x
    bias = call.whole(index)
    each = call.view(bias, (*bias.shape, *[1] * (len(x.dims) - 1)))
    return joined(call, ADD, x, each)


OPS: Mapping[str, Op] = {"Conv": Op(conv)}
