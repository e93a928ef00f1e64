"""Layers that multiply by weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from retarget.convert.caffe.build import (
    Builder,
    Dimension,
    Lowering,
    Shape,
    Value,
    alike,
    canonical_axis,
    only,
    product,
    refuse,
    static,
    weights,
    wrong,
)
from retarget.convert.caffe.layers.windows import count, per_axis
from retarget.convert.caffe.net import Layer, Message


def convolution(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Conv, with groups, dilation and any number of spatial axes; each further bottom with the same weights."""
    return _convolution(layer, inputs, build, depthwise=False)


def depthwise_convolution(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Conv with as many groups as channels, whatever ``group`` says. Of forks."""
    return _convolution(layer, inputs, build, depthwise=True)


def deconvolution(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """ConvTranspose, with groups, dilation and any number of spatial axes."""
    windows = _windows(layer, inputs)

    def spread(size: Dimension, index: int) -> Dimension:
        stride = windows.stride[index]
        rest = windows.reach(index) - 2 * windows.pad[index] - stride
        if isinstance(size, int):
            return stride * size + rest
        return f"{product([size, stride])} {'-' if rest < 0 else '+'} {abs(rest)}" if rest else product([size, stride])

    shape = (windows.channels, windows.outputs // windows.group, *windows.kernel)
    return _slide("ConvTranspose", layer, inputs, windows, shape, spread, build)


def inner_product(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Gemm on what follows ``axis``, flattened."""
    parameters = layer.message.message("inner_product_param")
    bottom = only(layer, inputs)
    axis = canonical_axis(layer, parameters.integer("axis", 1), bottom.rank)
    features = math.prod(static(layer, bottom, range(axis, bottom.rank)))
    outputs = parameters.integer("num_output")
    if outputs < 1:
        raise wrong(layer, f"num_output is {outputs}")
    transposed = parameters.flag("transpose")
    blob = weights(layer, 0, *((features, outputs) if transposed else (outputs, features)))
    rows = product(bottom.shape[:axis])
    flat = build.reshape(bottom, (rows, features))
    operands = [flat, build.constant(blob)]
    if parameters.flag("bias_term", True):
        operands.append(build.weight(layer, 1, outputs))
    made = build.op("Gemm", operands, (rows, outputs), transB=0 if transposed else 1)
    return [build.reshape(made, (*bottom.shape[:axis], outputs))]


def embed(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Gather of the rows that the bottom numbers; numbers are rounded toward zero, as by a cast in C."""
    parameters = layer.message.message("embed_param")
    bottom = only(layer, inputs)
    rows, outputs = parameters.integer("input_dim"), parameters.integer("num_output")
    if rows < 1 or outputs < 1:
        raise wrong(layer, f"num_output is {outputs}, input_dim {rows}")
    numbers = build.op("Cast", [bottom], dtype=ir.DataType.INT64, to=ir.DataType.INT64)
    shape = (*bottom.shape, outputs)
    made = build.op("Gather", [build.weight(layer, 0, rows, outputs), numbers], shape, axis=0)
    if parameters.flag("bias_term", True):
        made = build.op("Add", [made, build.weight(layer, 1, outputs)])
    return [made]


@dataclass(frozen=True)
class _Windows:
    """What a layer slides over its bottoms: ``kernel`` and what follows it along each spatial axis."""

    axis: int
    channels: int
    outputs: int
    group: int
    kernel: Sequence[int]
    stride: Sequence[int]
    pad: Sequence[int]
    dilation: Sequence[int]

    def reach(self, index: int) -> int:
        """From the first to the last that a window sees, along spatial axis ``index``."""
        return self.dilation[index] * (self.kernel[index] - 1) + 1


def _windows(layer: Layer, inputs: Sequence[Value], *, depthwise: bool = False) -> _Windows:
    parameters = layer.message.message("convolution_param")
    axis, channels, axes = _channels(layer, inputs, parameters)
    outputs, group = _outputs(layer, parameters, channels, depthwise=depthwise)
    return _Windows(
        axis,
        channels,
        outputs,
        group,
        kernel=per_axis(layer, parameters, "kernel_size", axes, None),
        stride=per_axis(layer, parameters, "stride", axes, 1),
        pad=per_axis(layer, parameters, "pad", axes, 0, smallest=0),
        dilation=per_axis(layer, parameters, "dilation", axes, 1),
    )


def _convolution(layer: Layer, inputs: Sequence[Value], build: Builder, *, depthwise: bool) -> Sequence[Value]:
    windows = _windows(layer, inputs, depthwise=depthwise)

    def fit(size: Dimension, index: int) -> Dimension:
        return count(size, windows.reach(index), windows.stride[index], 2 * windows.pad[index])

    shape = (windows.outputs, windows.channels // windows.group, *windows.kernel)
    return _slide("Conv", layer, inputs, windows, shape, fit, build)


def _slide(
    operator: str,
    layer: Layer,
    inputs: Sequence[Value],
    windows: _Windows,
    shape: Sequence[int],
    made_of: Callable[[Dimension, int], Dimension],
    build: Builder,
) -> Sequence[Value]:
    """``operator`` on each of ``inputs``. ``shape``: of the weight; ``made_of``: what becomes of a spatial size."""
    constants = [build.weight(layer, 0, *shape)]
    if layer.message.message("convolution_param").flag("bias_term", True):
        constants.append(build.weight(layer, 1, windows.outputs))

    def one(bottom: Value) -> Value:
        blob = _with_one_batch_axis(bottom, windows.axis, build)
        spatial = (made_of(size, index) for index, size in enumerate(blob.shape[2:]))
        top: Shape = (blob.shape[0], windows.outputs, *spatial)
        made = build.op(
            operator,
            [blob, *constants],
            top,
            kernel_shape=windows.kernel,
            strides=windows.stride,
            pads=[*windows.pad, *windows.pad],
            dilations=windows.dilation,
            group=windows.group,
        )
        return build.reshape(made, (*bottom.shape[: windows.axis], *top[1:]))

    alike(layer, *(bottom.shape for bottom in inputs))
    return [one(bottom) for bottom in inputs]


def _channels(layer: Layer, inputs: Sequence[Value], parameters: Message) -> tuple[int, int, int]:
    """The axis of the channels, how many they are, and the number of spatial axes behind them."""
    if not inputs:
        raise wrong(layer, "has no bottom")
    bottom = inputs[0]
    axis = canonical_axis(layer, parameters.integer("axis", 1), bottom.rank)
    axes = bottom.rank - axis - 1
    if axes == 0:
        raise refuse(layer, "a bottom without spatial axes", "an InnerProduct layer does the same")
    (channels,) = static(layer, bottom, [axis])
    return axis, channels, axes


def _outputs(layer: Layer, parameters: Message, channels: int, *, depthwise: bool = False) -> tuple[int, int]:
    """``num_output`` and ``group``."""
    outputs = parameters.integer("num_output")
    group = channels if depthwise else parameters.integer("group", 1)
    if outputs < 1 or group < 1 or channels % group or outputs % group:
        raise wrong(
            layer,
            f"num_output is {outputs}, group {group}, for {channels} channels",
            "both numbers of channels are multiples of group",
        )
    return outputs, group


def _with_one_batch_axis(bottom: Value, axis: int, build: Builder) -> Value:
    """``bottom`` with all that stands before its channels as one axis."""
    return build.reshape(bottom, (product(bottom.shape[:axis]), *bottom.shape[axis:]))


LAYERS: dict[str, Lowering] = {
    "Convolution": convolution,
    "ConvolutionDepthwise": depthwise_convolution,
    "Deconvolution": deconvolution,
    "DepthwiseConvolution": depthwise_convolution,
    "Embed": embed,
    "InnerProduct": inner_product,
}
