"""Convolutions for ncnn against ONNX Runtime, with the batch as rows and without."""

from __future__ import annotations

import ncnn_written as written
import node_models
import pytest
import target_testing
from node_models import Attribute, Node, floats

from retarget.spec import DimRange


def conv(x: tuple[int, ...], weight: tuple[int, ...], *, bias: bool = False, **attributes: Attribute) -> Node:
    operands = [floats(*x), floats(*weight, scale=0.3)] + ([floats(weight[0])] if bias else [])
    return Node("Conv", operands, attributes, constants=(1, 2))


@pytest.mark.parametrize("batch", [1, 3])
def test_lines(batch: int) -> None:
    model, feeds = node_models.model(
        conv((batch, 4, 9), (6, 4, 3), bias=True, strides=[2], pads=[1, 0]),
        conv((batch, 4, 9), (8, 1, 3), group=4, dilations=[2]),
        conv((batch, 4, 9), (6, 2, 2), group=2, bias=True, pads=[0, 3]),
        conv((batch, 4, 9), (6, 4, 4), auto_pad="SAME_UPPER", strides=[2]),
        conv((batch, 4, 9), (6, 4, 4), auto_pad="SAME_LOWER", strides=[2]),
        conv((batch, 16, 9), (16, 16, 1)),
    )
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_images(batch: int) -> None:
    model, feeds = node_models.model(
        conv((batch, 4, 9, 8), (6, 4, 3, 2), pads=[2, 0, 1, 1], strides=[2, 3], dilations=[1, 2]),
        conv((batch, 4, 8, 9), (6, 4, 3, 2), auto_pad="SAME_LOWER", strides=[2, 2]),
        conv((batch, 4, 8, 9), (6, 4, 3, 2), auto_pad="SAME_UPPER", strides=[2, 2]),
        conv((batch, 4, 8, 9), (6, 4, 1, 1), auto_pad="SAME_UPPER", strides=[3, 4]),
        conv((batch, 4, 8, 9), (6, 4, 3, 3), auto_pad="SAME_UPPER", bias=True),
        conv((batch, 4, 8, 9), (6, 4, 3, 3), auto_pad="VALID"),
        conv((batch, 4, 8, 8), (12, 1, 3, 3), group=4, bias=True, strides=[2, 1], dilations=[1, 2]),
        conv((batch, 8, 8, 8), (8, 1, 3, 3), group=8, pads=[1, 1, 1, 1]),
        conv((batch, 16, 12, 12), (32, 16, 3, 3), bias=True, pads=[1, 1, 1, 1]),
        conv((batch, 16, 1, 1), (8, 16, 1, 1), bias=True),
    )
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_volumes(batch: int) -> None:
    shape = (batch, 4, 4, 5, 6)
    model, feeds = node_models.model(
        conv(shape, (6, 4, 2, 3, 2), bias=True, pads=[1, 0, 0, 1, 1, 2], strides=[1, 2, 1]),
        conv(shape, (6, 2, 2, 3, 2), group=2, pads=[1, 0, 0, 1, 1, 2], dilations=[1, 2, 3], strides=[1, 2, 1]),
        conv(shape, (6, 4, 2, 3, 2), auto_pad="SAME_UPPER", strides=[2, 2, 2]),
        conv(shape, (6, 4, 2, 3, 2), auto_pad="SAME_LOWER", strides=[2, 2, 1]),
        conv((batch, 8, 3, 4, 5), (8, 1, 2, 3, 2), group=8, bias=True),
    )
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_computed_weights(batch: int) -> None:
    image, line = floats(batch, 4, 6, 7), floats(batch, 4, 9)
    model, feeds = node_models.model(
        Node("Conv", [image, floats(6, 4, 3, 2)], {"pads": [1, 0, 0, 2], "strides": [2, 1]}),
        Node("Conv", [image, floats(6, 2, 3, 3), floats(6)], {"group": 2, "dilations": [2, 1]}),
        Node("Conv", [image, floats(6, 4, 3, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        Node("Conv", [line, floats(6, 4, 3), floats(6)], {"pads": [2, 1]}),
        Node("Conv", [line, floats(6, 2, 3), floats(6)], {"group": 2}),
        Node("Conv", [image, floats(6, 2, 3, 3), floats(6)], {"group": 2}, constants=(1,)),
    )
    written.check(model, feeds)


@pytest.mark.parametrize(
    "node",
    [
        "Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w_k)",
        'Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w_k)',
        'Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w_k)',
        "ConvTranspose <strides = [2, 2], pads = [1, 1, 0, 0], output_padding = [1, 0]> (x, w_k)",
    ],
)
def test_open_sizes(node: str) -> None:
    model = target_testing.model(f"g (float[N,4,H,W] x, float[4,4,3,3] w_k) => (float[] y) {{ [node] y = {node} }}")
    fed = [{"x": floats(1, 4, *sizes)} for sizes in ((8, 10), (11, 7), (9, 9))]
    written.check(model, *fed, N=DimRange(1, 1, 1), H=DimRange(6, 8, 12), W=DimRange(6, 10, 12))


def test_one_layer_each() -> None:
    for shape, weight, group, layer in (
        ((1, 4, 9), (4, 4, 3), 1, "Convolution1D"),
        ((1, 4, 9, 9), (4, 4, 3, 3), 1, "Convolution"),
        ((1, 4, 9, 9), (4, 1, 3, 3), 4, "ConvolutionDepthWise"),
        ((1, 4, 9, 9, 9), (4, 2, 3, 3, 3), 2, "ConvolutionDepthWise3D"),
    ):
        model, _ = node_models.model(conv(shape, weight, group=group, bias=True, pads=[1] * (2 * len(weight) - 4)))
        assert written.layers(model) == [layer]


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (Node("Conv", [floats(1, 2, 4, 4, 4), floats(3, 2, 2, 2, 2)]), "computed weights: ncnn has none over three"),
        (conv((1, 2, 2, 4), (3, 2, 3, 3)), "does not fit on an axis of 2"),
        (conv((1, 2, 2, 2, 2, 2), (3, 2, 1, 1, 1, 1)), "4 spatial axes: ncnn has layers for one to 3"),
    ],
)
def test_refused(node: Node, reason: str) -> None:
    model, _ = node_models.model(node)
    assert reason in written.refused(model)


def test_lines_of_groups_are_images() -> None:
    model, _ = node_models.model(conv((1, 4, 9), (4, 1, 3), group=4))
    assert written.layers(model) == ["Reshape", "ConvolutionDepthWise", "Reshape"]
