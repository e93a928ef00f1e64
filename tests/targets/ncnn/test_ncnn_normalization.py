"""Normalizations of ncnn against ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
from ncnn_written import check, layers, refused
from node_models import Attribute, Node, floats, model, of_text

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds

SHAPES: list[tuple[int, ...]] = [
    (3, 17),
    (1, 4, 16),
    (3, 2, 5),
    (2, 3, 4, 5),
    (1, 3, 4, 6),
    (3, 2, 3, 2, 5),
    (1, 2, 3, 4, 5, 2),
]


@pytest.mark.parametrize("operator", ["LayerNormalization", "RMSNormalization"])
def test_over_the_last_axes(operator: str) -> None:
    nodes = []
    for shape in SHAPES:
        for axis in range(len(shape)):
            size = shape[axis:]
            weights = [floats(*size, seed=2), floats(*size, seed=3)][: 2 if operator == "LayerNormalization" else 1]
            nodes += [Node(operator, [floats(*shape), *weights], {"axis": axis}, held) for held in ((1, 2), ())]
        nodes.append(Node(operator, [floats(*shape), floats(shape[-1])], {"epsilon": 0.1}, (1,)))
    nodes += [Node(operator, [floats(2, 3, 4, 5), floats(5)], {"axis": 2}, (1,))]
    nodes += [Node(operator, [floats(2, 3, 4, 5), floats(4, 1)], {"axis": 2}, held) for held in ((1,), ())]
    check(*model(*nodes), atol=3e-6)


@pytest.mark.parametrize("operator", ["LayerNormalization", "RMSNormalization"])
def test_over_the_last_axes_of_rows(operator: str) -> None:
    nodes = [
        Node(operator, [floats(3, 4, 5, 6), floats(*(4, 5, 6)[axis - 1 :])], {"axis": axis}, (1,)) for axis in (1, 2, 3)
    ]
    nodes += [
        Node(operator, [floats(3, 7), floats(7)], {}, (1,)),
        Node(operator, [floats(3, 4, 16), floats(16)], {}, (1,)),
    ]
    check(*model(*nodes), atol=3e-6)
    assert layers(model(nodes[-1])[0]) == [{"L": "LayerNorm", "R": "RMSNorm"}[operator[0]]]


def test_mean_and_deviation() -> None:
    nodes = [
        Node("LayerNormalization", [floats(*shape), floats(shape[-1], seed=2)], {}, (1,), outputs=3) for shape in SHAPES
    ]
    nodes += [Node("LayerNormalization", [floats(2, 3, 4), floats(3, 4)], {"axis": 1}, (1,), outputs=2)]
    check(*model(*nodes), atol=1e-5)


def _channels(count: int) -> list[Array]:
    made = [floats(count, seed=seed) for seed in (2, 3, 4)]
    return [*made, np.abs(floats(count, seed=5)) + np.float32(0.1)]


IMAGES: list[tuple[int, ...]] = [
    (3, 17),
    (2, 16, 5),
    (1, 3, 4, 5),
    (3, 2, 4, 6),
    (2, 3, 2, 4, 5),
    (3, 1, 4, 5),
    (2, 3, 2, 2, 2, 2),
]


def test_batch_normalization() -> None:
    for rows in (None, 3):
        shapes = [shape for shape in IMAGES if rows in (None, shape[0])]
        nodes = [
            Node("BatchNormalization", [floats(*shape), *_channels(shape[1])], {"epsilon": epsilon}, (1, 2, 3, 4))
            for shape in shapes
            for epsilon in (1e-5, 0.1)
        ]
        check(*model(*nodes), atol=2e-6)
    computed = [Node("BatchNormalization", [floats(*shape), *_channels(shape[1])]) for shape in IMAGES]
    check(*model(*computed), atol=2e-6)


def test_batch_normalization_that_trains() -> None:
    attributes: dict[str, Attribute] = {"training_mode": 1, "momentum": 0.7}
    nodes = [
        Node("BatchNormalization", [floats(*shape), *_channels(shape[1])], attributes, held, 3)
        for shape in IMAGES[1:]
        for held in ((), (1, 2, 3, 4))
    ]
    check(*model(*nodes), atol=3e-6)


def test_instance_normalization() -> None:
    nodes = [
        Node("InstanceNormalization", [floats(*shape), *_channels(shape[1])[:2]], {"epsilon": 1e-3}, held)
        for shape in IMAGES[1:]
        for held in ((1, 2), ())
    ]
    check(*model(*nodes), atol=3e-6)
    rows = Node("InstanceNormalization", [floats(3, 4, 5, 6), floats(4), floats(4)], {}, (1, 2))
    check(*model(rows), atol=3e-6)
    assert layers(model(rows)[0]) == ["InstanceNorm"]


def test_group_normalization() -> None:
    nodes = [
        Node("GroupNormalization", [floats(*shape), *_channels(shape[1])[:2]], {"num_groups": groups}, held)
        for shape in [(2, 4, 5), (3, 6, 4, 5), (1, 6, 2, 3, 4), (2, 16, 3)]
        for groups in (1, 2, shape[1])
        for held in ((1, 2), ())
    ]
    check(*_of_known_shapes(*nodes), atol=3e-6)
    rows = Node("GroupNormalization", [floats(3, 4, 5, 6), floats(4), floats(4)], {"num_groups": 2}, (1, 2))
    made, feeds = _of_known_shapes(rows)
    check(made, feeds, atol=3e-6)
    assert layers(made) == ["GroupNorm"]


def _of_known_shapes(*nodes: Node) -> tuple[ir.Model, Feeds]:
    """As `model`: ONNX does not infer the shape of a group normalization."""
    made, feeds = model(*nodes)
    for value, node in zip(made.graph.outputs, nodes, strict=True):
        assert node.operands[0] is not None
        value.shape, value.type = ir.Shape(node.operands[0].shape), ir.TensorType(ir.DataType.FLOAT)
    return made, feeds


def test_mean_variance_normalization() -> None:
    nodes = [Node("MeanVarianceNormalization", [floats(2, 3, 4, 5)], {"axes": axes}) for axes in _AXES]
    check(*model(*nodes), atol=3e-6)


_AXES = ([0, 2, 3], [2, 3], [1, 2, 3], [1], [0])


def test_norms() -> None:
    zeros = np.zeros((3, 4), np.float32)
    nodes = [
        Node("LpNormalization", [x], {"axis": axis, "p": order})
        for x in (floats(3, 4, 5), floats(3, 17), zeros, floats(3, 1, 2))
        for axis in range(x.ndim)
        for order in (1, 2)
    ]
    check(*model(*nodes), atol=2e-6)


def test_local_response_normalization() -> None:
    nodes = [
        Node("LRN", [floats(*shape)], {"size": size, "alpha": 0.3, "beta": 0.6, "bias": 1.5})
        for shape in [(2, 5, 4, 6), (1, 16, 3, 3), (3, 1, 2, 5)]
        for size in (1, 3, 5)
    ]
    check(*model(*nodes), atol=3e-6)
    assert "size=4" in refused(of_text("float[1,5,4,4] x", "LRN<size=4>(x)"))
    assert "no channels" in refused(of_text("float[5] x", "LRN<size=3>(x)"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("variance", [0.0, -1.0, np.nan])
def test_a_division_by_a_variance_of_zero_is_refused(channels: int, variance: float) -> None:
    numbers = [np.full(channels, number, np.float32) for number in (1, 0, 0, variance)]
    operands = [floats(2, channels, 4), *numbers]
    assert "not above 0" in refused(model(Node("BatchNormalization", operands, {"epsilon": 0.0}, (1, 2, 3, 4)))[0])
