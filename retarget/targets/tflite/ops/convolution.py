"""Conv and ConvTranspose of one to three spatial axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retarget.targets.tflite.call import Call, Int8, Op
from retarget.targets.tflite.layout import Layout, Way
from retarget.targets.tflite.ops.weights import bias_tensor, is_hybrid, takes_integers, weight_tensor
from retarget.targets.tflite.ops.windows import Window, bound, padded, sliced, windows
from retarget.targets.tflite.program import Constant, Options, Tensor
from retarget.targets.tflite.values import Operand, Refusal, Value

LINE, IMAGE, VOLUME = 3, 4, 5
"""Axes of what has one, two or three that kernels slide along."""

POINT = Window(1, 1, 1, 1, 0, 0, 1)
"""Of an axis that was added."""


def conv(call: Call) -> Value:
    source, weight = call.value(0), call.operand(1)
    found = windows(call, source.shape[2:], weight.shape[2:])
    bias = call.operand(2) if call.has(2) else None
    return convolved(call, source, weight, bias, found, call.attributes.get_int("group", 1))


def convolved(
    call: Call, source: Value, weight: Operand, bias: Operand | None, found: Sequence[Window], groups: int
) -> Value:
    """What ONNX's Conv is of these operands, with the activation function of the node."""
    if source.rank == VOLUME:
        return _volume(call, source, weight, bias, found, groups)
    if source.rank == IMAGE:
        return _image(call, source, weight, bias, found, groups)
    if source.rank == LINE:
        made = _image(call, as_image(call, source), weight, bias, (POINT, *found), groups)
        return as_line(call, made)
    raise Refusal(f"{source.rank - 2} spatial axes: the kernels have one to three")


def as_image(call: Call, line: Value) -> Value:
    """[N, C, L] as [N, C, 1, L]."""
    return call.reshape(line, (*line.shape[:2], 1, line.shape[2]))


def as_line(call: Call, image: Value) -> Value:
    """[N, C, 1, L] as [N, C, L]."""
    return call.reshape(image, (*image.shape[:2], image.shape[3]))


def _image(
    call: Call, source: Value, weight: Operand, bias: Operand | None, found: Sequence[Window], groups: int
) -> Value:
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
        bias_tensor(call, bias, count, weight if isinstance(weight, Constant) else None, source.quantization),
    ]
    return call.emit(
        code,
        inputs,
        (source.shape[0], count, *(w.out for w in found)),
        options=Options(table, options, bound(found, mode)),
    )


def _volume(
    call: Call, source: Value, weight: Operand, bias: Operand | None, found: Sequence[Window], groups: int
) -> Value:
    """The kernel has one group: of others each is convolved alone."""
    count = weight.shape[0] // groups
    source, mode = padded(call, source, found)
    options: dict[str, int | str] = {"padding": mode, "fusedActivationFunction": call.activation}
    for name, window in zip("DHW", found, strict=True):
        options |= {f"stride{name}": window.stride, f"dilation{name}Factor": window.dilation}
    out = tuple(window.out for window in found)

    def alone(part: Value, kernel: Operand, added: Operand | None) -> Value:
        inputs: list[Value | Tensor] = [
            part,
            _weights(call, kernel, kernel.shape, (2, 3, 4, 1, 0), 4),
            bias_tensor(call, added, kernel.shape[0]),
        ]
        shape = (source.shape[0], kernel.shape[0], *out)
        return call.emit("CONV_3D", inputs, shape, options=Options("Conv3DOptions", options, bound(found, mode)))

    if groups == 1:
        return alone(source, weight, bias)
    if not isinstance(weight, Constant) or isinstance(bias, Value):
        raise Refusal(f"group={groups} with computed weights: the kernel has one group")
    parts = []
    for index in range(groups):
        starts, sizes = [0, index * weight.shape[1], 0, 0, 0], [source.shape[0], weight.shape[1], *source.shape[2:]]
        added = None if bias is None else part_of(bias, index * count, count)
        parts.append(alone(sliced(call, source, starts, sizes), part_of(weight, index * count, count), added))
    options = {"axis": call.position(1, VOLUME), "fusedActivationFunction": "NONE"}
    shape = (source.shape[0], weight.shape[0], *out)
    return call.emit("CONCATENATION", parts, shape, options=Options("ConcatenationOptions", options))


def part_of(constant: Constant, start: int, count: int) -> Constant:
    """``count`` of the first axis, from ``start`` on."""
    shape = (count, *constant.shape[1:])
    return constant.then(("part", start, count), lambda array: array[start : start + count], shape)


def _weights(call: Call, weight: Operand, shape: Sequence[int], perm: Sequence[int], axis: int) -> Tensor:
    """In the kernel's order of axes; computed ones are turned where they are."""
    if isinstance(weight, Constant):
        hybrid = len(shape) == IMAGE and is_hybrid(call, weight, 0)
        return weight_tensor(call, weight, perm, shape=shape, axis=axis, hybrid=hybrid)
    turned = [shape[each] for each in perm]
    value = call.reshape(weight, shape, layout=Layout.FIRST)
    (tensor,) = call.emit(
        "TRANSPOSE", [value, call.ints(perm)], turned, options=Options("TransposeOptions"), layout=Layout.FIRST
    ).forms.values()
    return tensor


def _conv_integers(call: Call) -> Int8:
    return "computes" if len(call.operand(0).shape) <= IMAGE and takes_integers(call, 0) else "no"


OPS: Mapping[str, Op] = {
    "Conv": Op(conv, Way.LAST, operands=(0,), fuses=True, int8=_conv_integers),
}
