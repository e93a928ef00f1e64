"""Pooling for ncnn against ONNX Runtime, with the batch as rows and without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import ncnn_written as written
import node_models
import numpy as np
import onnx_ir as ir
import pytest
import target_testing
from node_models import Attribute, Node, floats
from onnx.reference import ReferenceEvaluator

from retarget.spec import DimRange

Kind: TypeAlias = Mapping[str, Attribute]


def pools(operator: str, x: tuple[int, ...], *kinds: Kind) -> list[Node]:
    return [Node(operator, [floats(*x)], kind) for kind in kinds]


@pytest.mark.parametrize("batch", [1, 3])
def test_maxima(batch: int) -> None:
    image, volume = (batch, 4, 9, 8), (batch, 4, 5, 6, 7)
    model, feeds = node_models.model(
        *pools(
            "MaxPool",
            image,
            {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]},
            {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
            {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1},
            {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
            {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
            {"kernel_shape": [3, 2], "strides": [2, 1], "dilations": [2, 3], "pads": [1, 1, 1, 1]},
            {"kernel_shape": [3, 2], "dilations": [2, 3]},
        ),
        *pools(
            "MaxPool",
            volume,
            {"kernel_shape": [3, 2, 2], "strides": [2, 1, 2], "pads": [1, 0, 1, 1, 1, 0]},
            {"kernel_shape": [3, 2, 2], "strides": [2, 1, 2], "pads": [1, 0, 1, 1, 1, 0], "ceil_mode": 1},
            {"kernel_shape": [3, 3, 2], "strides": [2, 2, 2], "auto_pad": "SAME_LOWER"},
            {"kernel_shape": [2, 2, 2], "dilations": [2, 1, 3], "pads": [1, 0, 1, 1, 1, 0]},
        ),
        *pools("MaxPool", (batch, 4, 9), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
        *pools("MaxPool", (batch, 16, 8, 8), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    )
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_averages(batch: int) -> None:
    image, volume = (batch, 4, 9, 8), (batch, 4, 5, 6, 7)
    plane: dict[str, Attribute] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 0, 1]}
    cube: dict[str, Attribute] = {"kernel_shape": [3, 2, 2], "strides": [2, 1, 2], "pads": [1, 0, 1, 1, 1, 0]}
    same: dict[str, Attribute] = {"kernel_shape": [3, 2], "strides": [2, 2]}
    model, feeds = node_models.model(
        *pools(
            "AveragePool",
            image,
            plane,
            plane | {"count_include_pad": 1},
            plane | {"ceil_mode": 1},
            plane | {"ceil_mode": 1, "count_include_pad": 1},
            plane | {"dilations": [2, 1]},
            plane | {"dilations": [2, 1], "count_include_pad": 1},
            same | {"auto_pad": "SAME_UPPER"},
            same | {"auto_pad": "SAME_LOWER"},
            same | {"auto_pad": "SAME_UPPER", "count_include_pad": 1},
        ),
        *pools("AveragePool", volume, cube, cube | {"ceil_mode": 1, "count_include_pad": 1}),
        *pools("AveragePool", (batch, 4, 9), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
        *pools("AveragePool", (batch, 16, 8, 8), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    )
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_norms(batch: int) -> None:
    plane: dict[str, Attribute] = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]}
    model, feeds = node_models.model(
        *pools("LpPool", (batch, 4, 9, 8), plane, plane | {"p": 1}, plane | {"p": 3, "dilations": [2, 2]}),
        *pools("LpPool", (batch, 4, 9), {"kernel_shape": [3]}),
    )
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_all_that_there_is(batch: int) -> None:
    shapes = ((batch, 4, 9, 8), (batch, 4, 9), (batch, 4, 3, 4, 5), (batch, 16, 3, 3))
    operators = ("GlobalAveragePool", "GlobalMaxPool")
    nodes = [node for shape in shapes for operator in operators for node in pools(operator, shape, {})]
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_norms_of_all_that_there_is(batch: int) -> None:
    """ONNX Runtime does not have them at this opset."""
    model, feeds = node_models.model(
        *pools("GlobalLpPool", (batch, 4, 9, 8), {}, {"p": 1}, {"p": 3}), *pools("GlobalLpPool", (batch, 4, 9), {})
    )
    (found,) = written.executed(model, feeds)
    for node, (name, result) in zip(model.graph, found.items(), strict=True):
        power = node.attributes.get_int("p", 2)
        x = np.abs(feeds[node.inputs[0].name or ""].astype(np.float64))  # type: ignore[union-attr]
        right = (x**power).sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1 / power)
        target_testing.assert_near(result, right.astype(np.float32), 1e-5)
        assert name


@pytest.mark.parametrize("batch", [1, 3])
def test_places_of_maxima(batch: int) -> None:
    plane: dict[str, Attribute] = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}
    cube: dict[str, Attribute] = {"kernel_shape": [3, 2, 2], "pads": [1, 0, 0, 1, 0, 0]}
    model, feeds = node_models.model(
        Node("MaxPool", [floats(batch, 3, 7, 8)], plane, outputs=2),
        Node("MaxPool", [floats(batch, 3, 7, 8, scale=1).round()], plane | {"storage_order": 1}, outputs=2),
        Node("MaxPool", [floats(batch, 3, 9)], {"kernel_shape": [3], "dilations": [2]}, outputs=2),
        Node("MaxPool", [floats(batch, 2, 4, 5, 6)], cube, outputs=2),
    )
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_back_to_their_places(batch: int) -> None:
    places = np.add.outer(np.arange(batch * 2) * 24, [0, 3, 5, 12, 14, 22]).reshape(batch, 2, 2, 3)
    model, feeds = node_models.model(
        Node("MaxUnpool", [floats(batch, 2, 2, 3), places], {"kernel_shape": [2, 2], "strides": [2, 2]})
    )
    written.check(model, feeds)


def test_the_reference_agrees_where_windows_round_up() -> None:
    """Of pads that count and what lies behind them, which runtimes have mistaken for each other."""
    kind: dict[str, Attribute] = {
        "kernel_shape": [3, 3],
        "strides": [2, 2],
        "pads": [1, 0, 0, 1],
        "ceil_mode": 1,
        "count_include_pad": 1,
    }
    model, feeds = node_models.model(*pools("AveragePool", (1, 2, 8, 8), kind))
    (right,) = ReferenceEvaluator(ir.to_proto(model)).run(None, dict(feeds))
    (found,) = written.executed(model, feeds)
    target_testing.assert_near(found["y0_0"], np.asarray(right), 1e-6)


@pytest.mark.parametrize(
    "node",
    [
        "MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)",
        "MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (x)",
        "MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)",
        'MaxPool <kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER"> (x)',
        "MaxPool <kernel_shape = [3, 3], dilations = [2, 2], pads = [2, 2, 2, 2], strides = [2, 1]> (x)",
        "AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)",
        "AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (x)",
        "AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], ceil_mode = 1, count_include_pad = 1> (x)",
        "LpPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)",
        "GlobalAveragePool(x)",
    ],
)
def test_open_sizes(node: str) -> None:
    model = target_testing.model(f"g (float[N,4,H,W] x) => (float[] y) {{ [node] y = {node} }}")
    fed = [{"x": floats(1, 4, *sizes)} for sizes in ((8, 10), (11, 7), (9, 9))]
    written.check(model, *fed, N=DimRange(1, 1, 1), H=DimRange(6, 8, 12), W=DimRange(6, 10, 12))


def test_layers() -> None:
    cases: list[tuple[str, Kind, list[str]]] = [
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, ["Pooling"]),
        ("AveragePool", {"kernel_shape": [2, 2], "ceil_mode": 1}, ["Pooling"]),
        ("GlobalAveragePool", {}, ["Pooling", "Reshape"]),
    ]
    for operator, kind, layers in cases:
        model, _ = node_models.model(*pools(operator, (1, 4, 9, 9), kind))
        assert written.layers(model) == layers


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (Node("MaxPool", [floats(1, 2, 5)], {"kernel_shape": [2], "pads": [2, 0]}), "it would lie in them alone"),
        (Node("MaxPool", [floats(1, 2, 9)], {"kernel_shape": [2], "dilations": [2], "auto_pad": "SAME_UPPER"}),
         "ONNX Runtime pads otherwise"),
        (Node("MaxUnpool", [floats(1, 1, 2), np.array([[[0, 1]]])], {"kernel_shape": [2]}), "windows overlap"),
    ],
)  # fmt: skip
def test_refused(node: Node, reason: str) -> None:
    model, _ = node_models.model(node)
    assert reason in written.refused(model)
