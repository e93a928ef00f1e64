"""Pad and CenterCropPad for ncnn against ONNX Runtime, with the batch as rows and without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ncnn_written as written
import node_models
import numpy as np
import pytest
from node_models import Node, floats, integers, truths

if TYPE_CHECKING:
    from retarget.protocols import Array


def pad(x: Array, pads: list[int], value: object = None, mode: str = "constant") -> Node:
    operands = [x, np.array(pads)] + ([] if value is None else [np.array(value, x.dtype)])
    return Node("Pad", operands, {"mode": mode}, constants=(1, 2))


@pytest.mark.parametrize("batch", [1, 3])
def test_constants(batch: int) -> None:
    x, deep = floats(batch, 4, 9, 8), floats(batch, 3, 2, 3, 2, 4)
    model, feeds = node_models.model(
        pad(x, [0, 0, 1, 2, 0, 0, 0, 3]),
        pad(x, [0, 1, 1, 2, 0, 0, 2, 3], 2.5),
        pad(x, [0, 1, 1, 2, 0, 0, 2, 3], -np.inf),
        pad(x, [0, 1, 0, 0, 0, 2, 0, 0], np.inf),
        pad(x, [0, 0, 1, 2, 0, 0, 2, 3], -3e38),
        pad(x, [1, 1, 1, 2, 2, 0, 2, 3], 2.5),
        pad(x, [0, -1, 1, 2, 0, -2, 0, -3], 1.0),
        pad(x, [0, 0, 0, 0, 0, 0, 0, 0]),
        pad(deep, [0, 1, 1, 2, 2, 0, 0, 2, 3, 1, 0, 1], 2.5),
        pad(deep, [0, 1, 1, 2, 2, 0, 0, 2, 3, 1, 0, 1], -np.inf),
        pad(floats(batch, 16, 4, 4), [0, 4, 1, 1, 0, 4, 1, 1], 1.0),
        pad(floats(batch, 3, 16, 5, 4), [0, 0, 4, 1, 1, 0, 0, 4, 1, 1]),
        pad(floats(8), [2, 3], 1.5),
        Node("Pad", [x, np.array([1, 2, 0, 3]), None, np.array([3, -3])], constants=(1, 3)),
    )
    written.check(model, feeds, atol=0)


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
@pytest.mark.parametrize("batch", [1, 3])
def test_what_goes_on(batch: int, mode: str) -> None:
    x = floats(batch, 4, 9, 8)
    model, feeds = node_models.model(
        pad(x, [0, 0, 1, 2, 0, 0, 2, 3], mode=mode),
        pad(x, [0, 2, 1, 2, 0, 1, 2, 3], mode=mode),
        pad(floats(3, 4, 5, 4), [1, 1, 1, 2, 1, 0, 1, 2], mode=mode),
        pad(floats(batch, 3, 4, 5, 4), [0, 1, 1, 1, 2, 0, 0, 1, 2, 3], mode=mode),
        pad(floats(batch, 16, 5, 4), [0, 4, 0, 0, 0, 4, 0, 0], mode=mode),
        pad(floats(batch, 8), [0, 1, 0, 3], mode=mode),
        pad(floats(8), [2, 3], mode=mode),
    )
    written.check(model, feeds, atol=0)


def test_thrown_back_more_than_once() -> None:
    model, feeds = node_models.model(pad(floats(1, 2, 3), [0, 0, 5, 0, 0, 4], mode="reflect"))
    (found,) = written.executed(model, feeds)
    np.testing.assert_array_equal(found["y0_0"], np.pad(feeds["x0_0"], [(0, 0), (0, 0), (5, 4)], mode="reflect"))


@pytest.mark.parametrize("batch", [1, 3])
def test_integers_and_truths(batch: int) -> None:
    model, feeds = node_models.model(
        pad(integers(batch, 4, 5), [0, 1, 0, 0, 2, 3], 7),
        pad(integers(batch, 4, 5, dtype="int64"), [0, 1, 0, 0, 2, 3], mode="edge"),
        pad(truths(batch, 4, 5), [0, 1, 0, 0, 2, 3], True),
    )
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_center_crop_pad(batch: int) -> None:
    x = floats(batch, 8, 5)
    model, feeds = node_models.model(
        Node("CenterCropPad", [x, np.array([5, 8])], {"axes": [1, 2]}, constants=(1,)),
        Node("CenterCropPad", [x, np.array([3, 9, 4])], constants=(1,)),
        Node("CenterCropPad", [x, np.array([4])], {"axes": [-1]}, constants=(1,)),
    )
    written.check(model, feeds, atol=0)


def test_one_layer_of_many_axes() -> None:
    model, _ = node_models.model(pad(floats(1, 4, 9, 8), [0, 1, 1, 2, 0, 0, 2, 3]))
    assert written.layers(model) == ["Padding"]
    model, _ = node_models.model(pad(floats(1, 4, 9, 8), [0, -1, 0, 0, 0, 0, 0, -2]))
    assert written.layers(model) == ["Crop"]


def test_refused() -> None:
    model, _ = node_models.model(pad(floats(1, 4, 2), [0, 0, -1, 0, 0, -1]))
    assert "no empty blobs" in written.refused(model)
    x, value = floats(1, 4), floats()
    model, _ = node_models.model(Node("Pad", [x, np.array([0, 1, 0, 0]), value], constants=(1,)))
    assert "the value to pad with is computed" in written.refused(model)
    model, _ = node_models.model(pad(integers(1, 4, dtype="int64"), [0, 1, 0, 0], 1 << 30))
    assert "beyond 2^24" in written.refused(model)
