"""Conv of one to three spatial axes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from retarget.targets.coreml.call import Call, Op
from retarget.targets.coreml.compressed import expanded
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.parts import reshaped
from retarget.targets.coreml.ops.windows import windows
from retarget.targets.coreml.values import Codes, Refusal


def conv(call: Call) -> Var:
    weight, groups = call.var(1), call.attributes.get_int("group", 1)
    found = windows(call, [int(size) for size in weight.shape[2:]])
    if found.is_dilated and is_computed(call, 1):
        dilations = [each.dilation for each in found.along]
        raise Refusal(f"dilations={dilations} with computed weights: Core ML has them with constant ones")
    bias, added = bias_of(call)
    dilations = [each.dilation for each in found.along]
    if found.is_dilated and groups > 1 and len(found.along) == 1:
        # Of groups along one axis, dilations end the process: zeros stand between the weights.
        weight, dilations = _spread(call, dilations[0]), [1]
    made = call.mil.conv(
        x=call.var(0),
        weight=weight,
        bias=bias,
        strides=found.strides,
        dilations=dilations,
        groups=groups,
        **found.padding,
    )
    return with_bias(call, made, added)


def _spread(call: Call, dilation: int) -> Var:
    """The constant weights [outputs, inputs, taps] with zeros between the taps."""
    operand = call.operand(1)
    array = expanded(operand) if isinstance(operand, Codes) else call.array(1, "the weights")
    rows, columns, taps = array.shape
    wide = np.zeros((rows, columns, (taps - 1) * dilation + 1), array.dtype)
    wide[:, :, ::dilation] = array
    return call.mil.const(val=wide)


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
