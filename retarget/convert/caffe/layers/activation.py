"""Activations: elementwise functions of one bottom."""

from __future__ import annotations

from collections.abc import Sequence

from retarget.convert.caffe.build import Builder, Lowering, Value, canonical_axis, only, static, wrong
from retarget.convert.caffe.net import Layer


def relu(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Relu, or LeakyRelu by ``negative_slope``."""
    slope = layer.message.message("relu_param").number("negative_slope")
    if slope:
        return [build.op("LeakyRelu", [only(layer, inputs)], alpha=slope)]
    return [build.op("Relu", [only(layer, inputs)])]


def relu6(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Clip to 0 and 6. Of forks."""
    return [build.op("Clip", [only(layer, inputs), build.number(0), build.number(6)])]


def prelu(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """PRelu, a slope for each channel or one for all (``channel_shared``)."""
    bottom = only(layer, inputs)
    if bottom.rank < 2:
        raise wrong(layer, f"needs a bottom of 2 or more dimensions, has one of {bottom.rank}")
    if layer.message.message("prelu_param").flag("channel_shared"):
        slope = build.weight(layer, 0, 1)
    else:
        (channels,) = static(layer, bottom, [1])
        slope = build.weight(layer, 0, channels, *[1] * (bottom.rank - 2))
    return [build.op("PRelu", [bottom, slope])]


def elu(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Elu."""
    return [build.op("Elu", [only(layer, inputs)], alpha=layer.message.message("elu_param").number("alpha", 1.0))]


def sigmoid(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Sigmoid."""
    return [build.op("Sigmoid", [only(layer, inputs)])]


def tanh(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Tanh."""
    return [build.op("Tanh", [only(layer, inputs)])]


def bnll(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Softplus: ``log(1 + exp(x))``."""
    return [build.op("Softplus", [only(layer, inputs)])]


def swish(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """``x * Sigmoid(beta * x)``."""
    bottom = only(layer, inputs)
    beta = layer.message.message("swish_param").number("beta", 1.0)
    scaled = bottom if beta == 1 else build.op("Mul", [bottom, build.number(beta)])
    return [build.op("Mul", [bottom, build.op("Sigmoid", [scaled])])]


def mish(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Mish. Of forks."""
    return [build.op("Mish", [only(layer, inputs)])]


def clip(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Clip to ``min`` and ``max``."""
    parameters = layer.message.message("clip_param")
    for bound in ("min", "max"):
        if bound not in parameters:
            raise wrong(layer, f"has no {bound}")
    low, high = parameters.number("min"), parameters.number("max")
    return [build.op("Clip", [only(layer, inputs), build.number(low), build.number(high)])]


def softmax(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Softmax over ``axis``."""
    bottom = only(layer, inputs)
    axis = canonical_axis(layer, layer.message.message("softmax_param").integer("axis", 1), bottom.rank)
    return [build.op("Softmax", [bottom], axis=axis)]


LAYERS: dict[str, Lowering] = {
    "BNLL": bnll,
    "Clip": clip,
    "ELU": elu,
    "Mish": mish,
    "PReLU": prelu,
    "ReLU": relu,
    "ReLU6": relu6,
    "Sigmoid": sigmoid,
    "Softmax": softmax,
    "Swish": swish,
    "TanH": tanh,
}
