"""Conv of one to three spatial axes."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.coreml.call import Call, Op
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.parts import reshaped
from retarget.targets.coreml.ops.windows import windows
from retarget.targets.coreml.values import Codes, Refusal


def conv(call: Call) -> Var:
    weight = call.var(1)
    taps = weight.shape[2:]
    found = windows(call, [int(size) for size in taps])
    if found.is_dilated and is_computed(call, 1):
        dilations = [each.dilation for each in found.along]
        raise Refusal(f"dilations={dilations} with computed weights: Core ML has them with constant ones")
    bias, added = bias_of(call)
    made = call.mil.conv(
        x=call.var(0),
        weight=weight,
        bias=bias,
        strides=found.strides,
        dilations=[each.dilation for each in found.along],
        groups=call.attributes.get_int("group", 1),
        **found.padding,
    )
    return with_bias(call, made, added)


def is_computed(call: Call, index: int) -> bool:
    """Whether operand ``index`` is known only when the model runs."""
    return not isinstance(call.operand(index), Codes) and not call.is_constant(index)


def bias_of(call: Call, index: int = 2) -> tuple[Var | None, Var | None]:
    """Operand ``index`` as the bias of a convolution, which is constant, or as what is added behind it."""
    if not call.has(index):
        return None, None
    bias = call.var(index)
    return (None, bias) if is_computed(call, index) else (bias, None)


def with_bias(call: Call, x: Var, bias: Var | None) -> Var:
    """``x`` and, for each channel, an element of ``bias``."""
    if bias is None:
        return x
    return call.mil.add(x=x, y=reshaped(call, bias, (1, bias.shape[0], *[1] * (x.rank - 2))))


OPS: Mapping[str, Op] = {
    "Conv": Op(conv),
}
