"""ConvTranspose and Col2Im for ncnn against ONNX Runtime, with the batch as rows and without."""

from __future__ import annotations

import ncnn_written as written
import node_models
import numpy as np
import pytest
from node_models import Attribute, Node, floats


def transposed(
    x: tuple[int, ...], weight: tuple[int, ...], *, bias: bool = False, constants: tuple[int, ...] = (1, 2),
    **attributes: Attribute,
) -> Node:  # fmt: skip
    group = attributes.get("group", 1)
    assert isinstance(group, int)
    operands = [floats(*x), floats(*weight, scale=0.3)] + ([floats(weight[1] * group)] if bias else [])
    return Node("ConvTranspose", operands, attributes, constants=constants)


@pytest.mark.parametrize("batch", [1, 3])
def test_lines(batch: int) -> None:
    line = (batch, 4, 5)
    model, feeds = node_models.model(
        transposed(line, (4, 6, 3), bias=True, strides=[2]),
        transposed(line, (4, 1, 4), bias=True, strides=[2], pads=[2, 1], group=4),
        transposed(line, (4, 3, 4), strides=[2], pads=[2, 1], group=2, output_padding=[1]),
        transposed(line, (4, 6, 3), bias=True, constants=(), strides=[2]),
        transposed(line, (4, 3, 3), bias=True, constants=(), strides=[2], group=2),
    )
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_images(batch: int) -> None:
    image, weight = (batch, 4, 5, 6), (4, 6, 3, 3)
    model, feeds = node_models.model(
        transposed(image, (4, 6, 3, 4), bias=True, strides=[2, 1], pads=[1, 2, 0, 1], dilations=[1, 2]),
        transposed(image, (4, 3, 3, 4), bias=True, strides=[2, 1], pads=[1, 2, 0, 1], group=2),
        transposed(image, (4, 1, 3, 4), bias=True, strides=[2, 1], pads=[1, 2, 0, 1], group=4),
        transposed(image, (4, 6, 1, 2), bias=True, strides=[3, 3], output_padding=[2, 2]),
        transposed(image, weight, strides=[2, 2], output_shape=[10, 12]),
        transposed(image, weight, strides=[2, 2], output_shape=[12, 14]),
        transposed(image, weight, strides=[2, 2], auto_pad="SAME_UPPER"),
        transposed(image, weight, strides=[2, 2], auto_pad="SAME_LOWER"),
        transposed(image, weight, strides=[2, 2], auto_pad="SAME_LOWER", output_shape=[10, 12]),
        transposed((batch, 16, 5, 6), (16, 8, 4, 4), bias=True, strides=[2, 2], pads=[1, 1, 1, 1]),
    )
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_computed_weights(batch: int) -> None:
    image = (batch, 4, 5, 6)
    pads, more, strides = [1, 0, 1, 1], [1, 0], [2, 2]
    model, feeds = node_models.model(
        transposed(image, (4, 6, 3, 3), bias=True, constants=(), strides=strides, pads=pads, output_padding=more),
        transposed(image, (4, 3, 3, 3), constants=(), group=2, strides=strides, pads=pads, output_padding=more),
        transposed(
            image, (4, 3, 3, 3), bias=True, constants=(1,), group=2, strides=strides, pads=pads, output_padding=more
        ),
    )
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_volumes(batch: int) -> None:
    volume, pads = (batch, 4, 3, 4, 5), [1, 0, 0, 0, 1, 2]
    model, feeds = node_models.model(
        transposed(volume, (4, 6, 2, 3, 2), bias=True, strides=[2, 1, 3], pads=pads, output_padding=[1, 0, 2]),
        transposed(volume, (4, 3, 2, 3, 2), bias=True, strides=[2, 1, 3], pads=pads, dilations=[1, 2, 2], group=2),
    )
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_columns(batch: int) -> None:
    def columns(width: int, count: int, sizes: list[int], kernel: list[int], **attributes: Attribute) -> Node:
        operands = [floats(batch, width, count), np.array(sizes), np.array(kernel)]
        return Node("Col2Im", operands, attributes, constants=(1, 2))

    model, feeds = node_models.model(
        columns(12, 9, [4, 4], [2, 2]),
        columns(12, 16, [7, 6], [2, 2], pads=[1, 1, 1, 1], strides=[2, 2]),
        columns(8, 4, [5], [2]),
        columns(8, 9, [5, 5], [2, 2], dilations=[2, 2]),
        columns(16, 2, [2, 2, 3], [2, 2, 2]),
    )
    written.check(model, feeds)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (transposed((1, 2, 3, 3, 3), (2, 3, 2, 2, 2), constants=()), "computed weights: ncnn has none over three"),
        (transposed((1, 2, 3, 3), (2, 3, 2, 2), auto_pad="SAME_UPPER", strides=[2, 2], output_padding=[1, 1]),
         "ONNX does not say how large"),
        (Node("Col2Im", [floats(1, 8, 3), np.array([5]), np.array([2])], {"dilations": [2]}, constants=(1, 2)),
         "ONNX Runtime differs from ONNX"),
    ],
)  # fmt: skip
def test_refused(node: Node, reason: str) -> None:
    model, _ = node_models.model(node)
    assert reason in written.refused(model)
