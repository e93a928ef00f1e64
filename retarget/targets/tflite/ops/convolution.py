"""Conv and ConvTranspose of one to three spatial axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retarget.targets.tflite.layout import Layout, Way
from retarget.targets.tflite.lowering import Call, Int8, Op, Operand, Refusal, Value
from retarget.targets.tflite.ops.weights import bias_tensor, takes_integers, weight_tensor
from retarget.targets.tflite.ops.windows import Window, padded, windows
from retarget.targets.tflite.program import Constant, Options, Tensor

LINE, IMAGE, VOLUME = 3, 4, 5
"""Axes of what has one, two or three that kernels slide along."""

POINT = Window(1, 1, 1, 1, 0, 0, 1)
"""Of an axis that was added."""


def conv(call: Call) -> Value:
    source, weight = call.value(0), call.operand(1)
    found = windows(call, source.shape[2:], weight.shape[2:])
    if source.rank == VOLUME:
        return _volume(call, source, weight, found)
    if source.rank not in (LINE, IMAGE):
        raise Refusal(f"{source.rank - 2} spatial axes: the kernels have one to three")
    if source.rank == LINE:
        source, found = as_image(call, source), (POINT, *found)
    made = _image(call, source, weight, found)
    return call.reshape(made, made.shape[:2] + made.shape[3:]) if call.value(0).rank == LINE else made


def as_image(call: Call, line: Value) -> Value:
    """[N, C, L] as [N, C, 1, L]."""
    return call.reshape(line, (*line.shape[:2], 1, line.shape[2]))


def _image(call: Call, source: Value, weight: Operand, found: Sequence[Window]) -> Value:
    groups = call.attributes.get_int("group", 1)
    count, each, kernel = weight.shape[0], weight.shape[1], [window.kernel for window in found]
    source, mode = padded(call, source, found)
    options: dict[str, int | str] = {
        "padding": mode,
        "strideH": found[0].stride,
        "strideW": found[1].stride,
        "dilationHFactor": found[0].dilation,
        "dilationWFactor": found[1].dilation,
        "fusedActivationFunction": call.activation,
    }
    depthwise = groups > 1 and each == 1
    code, table = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions") if depthwise else ("CONV_2D", "Conv2DOptions")
    perm, axis = ((1, 2, 3, 0), 3) if depthwise else ((0, 2, 3, 1), 0)
    if depthwise:
        options["depthMultiplier"] = count // groups
    shape = (count, each, *kernel)
    inputs: list[Value | Tensor] = [
        source,
        _weights(call, weight, shape, perm, axis),
        bias_tensor(call, call.operand(2) if call.has(2) else None, count, _constant(weight), source.quantization),
    ]
    return call.emit(code, inputs, (source.shape[0], count, *(w.out for w in found)), options=Options(table, options))


def _volume(call: Call, source: Value, weight: Operand, found: Sequence[Window]) -> Value:
    if call.attributes.get_int("group", 1) != 1:
        raise Refusal(f"group={call.attributes.get_int('group', 1)} with three spatial axes: the kernel has one group")
    source, mode = padded(call, source, found)
    options: dict[str, int | str] = {"padding": mode, "fusedActivationFunction": call.activation}
    for name, window in zip("DHW", found, strict=True):
        options |= {f"stride{name}": window.stride, f"dilation{name}Factor": window.dilation}
    inputs: list[Value | Tensor] = [
        source,
        _weights(call, weight, weight.shape, (2, 3, 4, 1, 0), 4),
        bias_tensor(call, call.operand(2) if call.has(2) else None, weight.shape[0]),
    ]
    shape = (source.shape[0], weight.shape[0], *(window.out for window in found))
    return call.emit("CONV_3D", inputs, shape, options=Options("Conv3DOptions", options))


def _weights(call: Call, weight: Operand, shape: Sequence[int], perm: Sequence[int], axis: int) -> Tensor:
    """In the kernel's order of axes; computed ones are turned where they are."""
    if isinstance(weight, Constant):
        return weight_tensor(call, weight, perm, shape=shape, axis=axis)
    turned = [shape[each] for each in perm]
    value = call.reshape(weight, shape, layout=Layout.FIRST)
    (tensor,) = call.emit(
        "TRANSPOSE", [value, call.ints(perm)], turned, options=Options("TransposeOptions"), layout=Layout.FIRST
    ).forms.values()
    return tensor


def _constant(weight: Operand) -> Constant | None:
    return weight if isinstance(weight, Constant) else None


def _conv_integers(call: Call) -> Int8:
    return "computes" if len(call.operand(0).shape) <= IMAGE and takes_integers(call, 0) else "no"


OPS: Mapping[str, Op] = {
    "Conv": Op(conv, Way.LAST, operands=(0,), fuses=True, int8=_conv_integers),
}
