"""Conv over one, two and three axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from retarget.targets.ncnn import int8
from retarget.targets.ncnn.call import Call, Op
from retarget.targets.ncnn.ops.elementwise import ADD
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
    params = window_params(found) | _grouped(groups)
    if call.is_constant(1):
        bias = constant_bias(call)
        rounded = int8.int8(call, 0, 1, 0)
        if rounded is not None and int8.has_kernel(rounded.codes, groups):
            made = int8.convolved(call, rounded, found.outs, params, bias)
        else:
            weights = [Weight(call.array(1, "the weights")), *bias]
            made = convolved(call, _image(call), found, params, shape[0], groups, weights)
        made = with_bias(call, made) if not bias else made
    else:
        made = _with_computed(call, _image(call), found, params, groups)
    return call.made(made, (call.shape(0)[0], shape[0], *found.outs))


def _image(call: Call) -> Blob:
    x = call.spread(0)
    return call.view(x, x.shape[1:])


def convolved(
    call: Call,
    x: Blob,
    found: Windows,
    params: Mapping[int, Param],
    outputs: int,
    groups: int,
    weights: Sequence[Weight],
) -> Blob:
    """The layer of constant weights, as ONNX has them, and of a bias where there is one."""
    own = {OUTPUTS: outputs, COUNT: weights[0].array.size, **params, **_grouped(groups)}
    if len(weights) > 1:
        own[BIAS] = 1
    name = f"Convolution{'DepthWise' if groups > 1 else ''}{SUFFIX[len(found.along)]}"
    return call.add(name, (x,), (outputs, *found.outs), dict(sorted(own.items())), weights)


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


def _with_computed(call: Call, x: Blob, found: Windows, params: Mapping[int, Param], groups: int) -> Blob:
    """The layer of weights that are an operand, as the bias is then."""
    if len(found.along) == AXES:
        raise Refusal("computed weights: ncnn has none over three axes")
    weight = call.whole(1)
    bottoms = [x, call.view(weight, weight.shape)]
    own = {OUTPUTS: weight.shape[0], **params, DYNAMIC: 1, **_grouped(groups)}
    if call.has(2):
        bias = call.whole(2)
        bottoms.append(call.view(bias, bias.shape))
        own[BIAS] = 1
    name = f"Convolution{'DepthWise' if groups > 1 else ''}{SUFFIX[len(found.along)]}"
    return call.add(name, bottoms, (weight.shape[0], *found.outs), dict(sorted(own.items())))


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
    return call.add("BinaryOp", (x, each), x.dims, {0: ADD})


OPS: Mapping[str, Op] = {"Conv": Op(conv)}
