"""GridSample, DeformConv, AffineGrid and RoiAlign for ncnn, with the batch as rows and without."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import ncnn_written as written
import node_models
import numpy as np
import onnx_ir as ir
import pytest
import target_testing
from node_models import Attribute, Node, floats
from onnx.reference import ReferenceEvaluator

if TYPE_CHECKING:
    from retarget.protocols import Array

PADDINGS = ("zeros", "border", "reflection")


def uniform(low: float, high: float, *shape: int, seed: int = 1) -> Array:
    array: Array = np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)
    return array


def halves(batch: int) -> Array:
    """Places of which many are just between two elements of four."""
    line = np.arange(-9, 10) / 6
    grid = np.stack(np.meshgrid(line, line), axis=-1).astype(np.float32)
    return np.repeat(grid[None], batch, axis=0)


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("batch", [1, 3])
def test_grids(batch: int, corners: int) -> None:
    nodes = []
    for padding, mode in itertools.product(PADDINGS, ("linear", "nearest", "cubic")):
        how: dict[str, Attribute] = {"mode": mode, "padding_mode": padding, "align_corners": corners}
        nodes += [
            Node("GridSample", [floats(batch, 4, 5, 6), uniform(-4, 4, batch, 3, 7, 2)], how),
            Node("GridSample", [floats(batch, 16, 4, 4), halves(batch)], how),
            Node("GridSample", [floats(batch, 3, 5, 6), uniform(-1, 1, batch, 3, 7, 2)], how, constants=(1,)),
        ]
        if mode != "cubic":
            operands = [floats(batch, 2, 3, 4, 5), uniform(-4, 4, batch, 2, 3, 2, 3)]
            nodes.append(Node("GridSample", operands, how))
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds, atol=2e-5)


@pytest.mark.parametrize("corners", [0, 1])
def test_affine_grids(corners: int) -> None:
    for batch, sizes in ((1, [1, 2, 4, 5]), (3, [3, 2, 4, 5]), (3, [3, 2, 3, 4, 5])):
        matrices = floats(batch, len(sizes) - 2, len(sizes) - 1)
        node = Node("AffineGrid", [matrices, np.array(sizes)], {"align_corners": corners}, constants=(1,))
        model, feeds = node_models.model(node)
        written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_deformed(batch: int, group: int, parts: int) -> None:
    how: dict[str, Attribute] = {"group": group, "offset_group": parts, "pads": [1, 0, 1, 1], "strides": [1, 2]}
    x, offsets = floats(batch, 4, 6, 7), floats(batch, parts * 12, 6, 4, scale=1)
    weights, bias, mask = floats(8, 4 // group, 3, 2, scale=0.3), floats(8), uniform(0, 1, batch, parts * 6, 6, 4)
    model, feeds = node_models.model(
        Node("DeformConv", [x, weights, offsets], how, constants=(1,)),
        Node("DeformConv", [x, weights, offsets, bias, mask], how, constants=(1, 3)),
        Node("DeformConv", [x, weights, offsets, bias, mask], how),
    )
    written.check(model, feeds, atol=2e-5)


def test_computed_weights_and_a_constant_bias() -> None:
    """The bias is no weight of the layer, which has none."""
    operands = [
        floats(1, 2, 3, 3),
        floats(4, 2, 2, 2, scale=0.3, seed=2),
        floats(1, 8, 2, 2, scale=1),
        floats(4, seed=3),
    ]
    model, feeds = node_models.model(Node("DeformConv", operands, {"pads": [0, 0, 0, 0]}, constants=(3,)))
    written.check(model, feeds)


@pytest.mark.parametrize("mode", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("count", [1, 5])
def test_boxes(count: int, mode: str) -> None:
    """ONNX Runtime does not have them at this opset."""
    boxes = np.sort(uniform(-2, 9, count, 2, 2), axis=1).reshape(count, 4)
    boxes[0] = [0, 0, 8, 8]
    how: dict[str, Attribute] = {
        "output_height": 3, "output_width": 2, "sampling_ratio": 2, "spatial_scale": 0.9,
        "coordinate_transformation_mode": mode,
    }  # fmt: skip
    operands = [floats(1, 3, 6, 7), boxes, np.zeros(count, np.int64)]
    model, feeds = node_models.model(Node("RoiAlign", operands, how, constants=(2,)))
    (right,) = ReferenceEvaluator(ir.to_proto(model)).run(None, dict(feeds))
    (found,) = written.executed(model, feeds)
    target_testing.assert_near(found["y0_0"], np.asarray(right), 1e-5)


def test_layers() -> None:
    for mode, layers in (("linear", ["GridSample"]), ("cubic", ["GridSample"])):
        node = Node("GridSample", [floats(1, 4, 5, 6), uniform(-1, 1, 1, 3, 7, 2)], {"mode": mode})
        model, _ = node_models.model(node)
        assert written.layers(model) == layers
    model, _ = node_models.model(Node("DeformConv", [floats(1, 4, 6, 7), floats(8, 4, 1, 1), floats(1, 2, 6, 7)],
                                      constants=(1,)))  # fmt: skip
    assert written.layers(model) == ["DeformableConv2D"]


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (Node("GridSample", [floats(1, 1, 2, 9), floats(1, 2, 2, 2)], {"mode": "cubic", "padding_mode": "reflection"}),
         "thrown back at one end reaches the other"),
        (Node("GridSample", [floats(1, 1, 2, 2, 2), floats(1, 2, 2, 2, 3)], {"mode": "cubic"}), "not cubic"),
        (Node("GridSample", [floats(1, 1, 1025, 1024), floats(1, 2, 2, 2)]), "tells 1048576 apart"),
        (Node("RoiAlign", [floats(1, 1, 4, 4), floats(2, 4), np.zeros(2, np.int64)]), "hangs on the size of each box"),
        (Node("RoiAlign", [floats(1, 1, 4, 4), floats(2, 4), np.zeros(2, np.int64)], {"mode": "max"}), "mode=max"),
        (Node("RoiAlign", [floats(2, 1, 4, 4), floats(2, 4), np.zeros(2, np.int64)], {"sampling_ratio": 1}),
         "which one a box is of is computed"),
        (Node("AffineGrid", [floats(1, 2, 3), np.array([1, 1, 1, 4])], {"align_corners": 1}, constants=(1,)),
         "ONNX does not say where it lies"),
    ],
)  # fmt: skip
def test_refused(node: Node, reason: str) -> None:
    model, _ = node_models.model(node)
    assert reason in written.refused(model)
