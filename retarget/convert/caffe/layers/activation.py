"""Activations: elementwise, one bottom."""

from __future__ import annotations

from collections.abc import Sequence

from retarget.convert.caffe.build import Builder, Lowering, Value
from retarget.convert.caffe.net import Layer


def relu(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """``max(x, 0)``, or with ``negative_slope`` times what is below zero."""
    slope = layer.message.message("relu_param").number("negative_slope")
    if slope:
        return [build.op("LeakyRelu", inputs, alpha=slope)]
    return [build.op("Relu", inputs)]


LAYERS: dict[str, Lowering] = {
    "ReLU": relu,
}
