"""Activation functions of TFLite against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import one_node
import pytest
import target_testing as t
from many_nodes import LAYOUTS, agrees
from node_models import Attribute, Node, floats, integers

if TYPE_CHECKING:
    from retarget.protocols import Array

ATTRIBUTES: dict[str, list[dict[str, Attribute]]] = {
    "Celu": [{}, {"alpha": 0.4}],
    "Elu": [{}, {"alpha": 0.4}],
    "Gelu": [{}, {"approximate": "tanh"}],
    "HardSigmoid": [{}, {"alpha": 1 / 6, "beta": 0.5}, {"alpha": -0.3, "beta": 0.2}],
    "HardSwish": [{}],
    "LeakyRelu": [{}, {"alpha": 0.3}, {"alpha": -2.0}],
    "Mish": [{}],
    "Relu": [{}],
    "Selu": [{}, {"alpha": 0.4, "gamma": 2.0}],
    "Shrink": [{}, {"lambd": 1.0, "bias": 0.7}, {"lambd": 0.1, "bias": -0.4}],
    "Sigmoid": [{}],
    "Softplus": [{}],
    "Softsign": [{}],
    "Tanh": [{}],
    "ThresholdedRelu": [{}, {"alpha": -0.5}],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_functions(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        Node(name, [floats(*shape)], attributes)
        for name, choices in ATTRIBUTES.items()
        for attributes in choices
        for shape in ((), (7,), (2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 2, 2, 2))
    ]
    agrees(nodes, layout, tmp_path, monkeypatch, atol=3e-7)


def test_nothing_overflows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = np.array([-1e6, -200.0, -100.0, -40.0, 40.0, 88.5, 100.0, 200.0, 1e6], np.float32)
    nodes = [Node(name, [large], attributes) for name, choices in ATTRIBUTES.items() for attributes in choices]
    agrees([each for each in nodes if each.operator != "Gelu"], "first", tmp_path, monkeypatch, atol=1e-16)
    # ONNX Runtime's own approximation by tanh is NaN where the cube overflows.
    moderate = np.clip(large, -200, 200)
    agrees(
        [Node("Gelu", [moderate]), Node("Gelu", [moderate], {"approximate": "tanh"})], "first", tmp_path, monkeypatch
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prelu(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((2, 3, 4, 5), (3, 1, 1)),
        ((2, 3, 4, 5), (1,)),
        ((2, 3, 4, 5), (2, 3, 4, 5)),
        ((2, 3, 4, 5), (5,)),
        ((2, 3, 4), (3, 1)),
        ((2, 3), (3,)),
        ((2, 3, 4, 2, 2), (3, 1, 1, 1)),
    ]
    nodes = [
        Node("PRelu", [floats(*data), floats(*slope, seed=2)], {}, held)
        for data, slope in shapes
        for held in ((), (1,))
    ]
    agrees(nodes, layout, tmp_path, monkeypatch)


def test_relu_of_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [Node("Relu", [integers(2, 3, 4, dtype=dtype)]) for dtype in ("int32", "int8")]
    agrees(nodes, "last", tmp_path, monkeypatch)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
def test_along_any_axis(operator: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(7,), (1,), (3, 4), (2, 3, 4), (2, 3, 1, 5), (2, 3, 4, 5), (2, 3, 2, 3, 2), (2, 3, 2, 1, 2, 2)]
    nodes = [
        Node(operator, [floats(*shape)], {"axis": axis})
        for shape in shapes
        for axis in (*range(len(shape)), -1, -len(shape))
    ]
    # XNNPACK takes 6 axes.
    nodes += [Node(operator, [floats(2, 1, 3, 2, 1, 2, 3)], {"axis": axis}) for axis in (1, 2, 6)]
    agrees(nodes, layout, tmp_path, monkeypatch)


def _rows(*rows: list[float]) -> Array:
    return np.array(rows, np.float32)


def test_softmax_of_masked_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inf, lowest = float("inf"), float(np.finfo(np.float32).min)
    data = _rows([1, -inf, 2, 3], [-inf, -inf, -inf, -inf], [1, lowest, 2, 3], [1000, 1001, 999, 0], [lowest] * 4)
    agrees([Node("Softmax", [data])], "first", tmp_path, monkeypatch)


def test_hardmax_takes_the_first_of_equals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _rows([1, 3, 3, 2], [0, 0, 0, 0])
    agrees([Node("Hardmax", [data], {"axis": axis}) for axis in (0, 1)], "first", tmp_path, monkeypatch)


def test_the_batch_stays_open_and_channels_last(tmp_path: Path) -> None:
    model = t.model("""g (float[N,3,8,8] x, float[6,3,3,3] w_a, float[6,1,1] w_b, float[4,6,3,3] w_c)
        => (float[N,4,4,4] y) {
        a = Conv(x, w_a) b = PRelu(a, w_b) c = Mish(b) d = Selu(c) e = HardSigmoid(d) f = Softplus(e)
        h = Softmax <axis = 1> (f) i = Hardmax <axis = 1> (h) j = Sum(h, i) y = Conv(j, w_c)
    }""")
    facts = t.emit("tflite", model, tmp_path)
    assert not facts.sizes
    # That of the image, and that of the result.
    assert one_node.operators(tmp_path).count("TRANSPOSE") == 2
    for size in (4, 1):
        feeds = t.feeds(model, size)
        t.assert_close(t.run("tflite", tmp_path, facts, feeds)["y"], t.oracle(model, feeds)["y"])
