"""Activation functions of ncnn against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from ncnn_written import check, layers, refused
from node_models import Attribute, Node, floats, model, of_text

OPERATORS: list[tuple[str, dict[str, Attribute]]] = [
    ("Celu", {}),
    ("Celu", {"alpha": 2.5}),
    ("Elu", {}),
    ("Elu", {"alpha": 0.3}),
    ("Gelu", {}),
    ("Gelu", {"approximate": "tanh"}),
    ("HardSigmoid", {}),
    ("HardSigmoid", {"alpha": 0.4, "beta": 0.6}),
    ("HardSigmoid", {"alpha": -0.4, "beta": 0.6}),
    ("HardSigmoid", {"alpha": 0.0, "beta": 0.6}),
    ("HardSwish", {}),
    ("LeakyRelu", {}),
    ("LeakyRelu", {"alpha": 0.3}),
    ("LeakyRelu", {"alpha": -0.3}),
    ("LeakyRelu", {"alpha": 0.0}),
    ("Mish", {}),
    ("Relu", {}),
    ("Selu", {}),
    ("Selu", {"alpha": 2.0, "gamma": 0.5}),
    ("Shrink", {}),
    ("Shrink", {"bias": 0.7, "lambd": 1.5}),
    ("Sigmoid", {}),
    ("Softplus", {}),
    ("Softsign", {}),
    ("Tanh", {}),
    ("ThresholdedRelu", {}),
    ("ThresholdedRelu", {"alpha": 2.0}),
    ("ThresholdedRelu", {"alpha": -0.5}),
]


@pytest.mark.parametrize("shape", [(), (16,), (3, 19), (1, 2, 3, 7), (3, 16, 2, 5), (3, 2, 1, 2, 2, 3)])
def test_activations(shape: tuple[int, ...]) -> None:
    check(*model(*(Node(name, [floats(*shape)], attributes) for name, attributes in OPERATORS)), atol=1e-6)


def test_infinities_and_what_overflows() -> None:
    x = np.array([np.inf, -np.inf, 0, 90, -90, 100, -100, 1e20, 20, -20], np.float32)
    without = {"Gelu", "Mish", "HardSwish"}  # minus infinity times 0
    without |= {"Softsign"}  # infinity by infinity
    nodes = [
        Node(name, [x[2:7] if name in without or 0.0 in attributes.values() else x], attributes)
        for name, attributes in OPERATORS
    ]
    check(*model(*nodes), atol=1e-6)


def test_most_are_one_layer() -> None:
    for operator in ("Celu", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Relu", "Selu", "Shrink",
                     "Sigmoid", "Softplus", "Tanh"):  # fmt: skip
        assert len(layers(of_text("float[3,2,4,5] x", f"{operator}(x)"))) == 1, operator


def test_slopes() -> None:
    nodes = [
        Node("PRelu", [floats(*shape), floats(*slope, seed=2)], {}, held)
        for shape, slope in (
            ((2, 3, 4, 5), (3, 1, 1)),
            ((2, 3, 4, 5), (1, 3, 1, 1)),
            ((1, 3, 4, 5), (3, 1, 1)),
            ((2, 17, 5), (17, 1)),
            ((2, 16, 5), (16, 1)),
            ((2, 3), (3,)),
            ((1, 3), (3,)),
            ((2, 3, 4, 5), (1,)),
            ((2, 3, 4, 5), (5,)),
            ((2, 3, 4, 5), (4, 5)),
            ((2, 3, 4, 5), (2, 3, 4, 5)),
            ((2, 3, 2, 2, 5), (3, 1, 1, 1)),
            ((5,), (5,)),
            ((2, 1, 3), (1, 1)),
        )
        for held in ((), (1,))
    ]
    check(*model(*nodes), atol=1e-6)
    rows = [Node("PRelu", [floats(3, 4, 5, 6), floats(*slope)], {}, (1,)) for slope in ((4, 1, 1), (5, 6), (1, 1, 1))]
    check(*model(*rows), atol=1e-6)
    assert layers(model(rows[0])[0]) == ["PReLU"]


AXES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((5,), (0,)),
    ((3, 4), (0, 1)),
    ((3, 4, 17), (0, 1, 2)),
    ((3, 4, 16, 5), (0, 1, 2, -1)),
    ((1, 2, 3, 4, 5), (1, 2, 4)),
    ((2, 2, 3, 2, 2, 3), (0, 2, 5)),
    ((3, 1, 4), (1,)),
    ((2, 3, 1), (2,)),
]


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
def test_along_an_axis(operator: str) -> None:
    nodes = [Node(operator, [floats(*shape)], {"axis": axis}) for shape, axes in AXES for axis in axes]
    check(*model(*nodes), atol=1e-6)
    rows = [Node(operator, [floats(3, 4, 5, 6)], {"axis": axis}) for axis in (1, 2, 3)]
    rows += [Node(operator, [floats(3, 4)]), Node(operator, [floats(3, 2, 2, 4, 5)], {"axis": 3})]
    check(*model(*rows), atol=1e-6)
    whole = [Node(operator, [floats(3, 4, 5)], {"axis": 0}), Node("Relu", [floats(3, 4, 5)])]
    check(*model(*whole), atol=1e-6)


def test_a_softmax_is_one_layer_whose_rows_stay() -> None:
    assert layers(of_text("float[3,2,4,4] x", "Softmax<axis=-1>(x)")) == ["Softmax"]
    assert layers(of_text("float[1,12,7,7] x", "Softmax<axis=1>(x)")) == ["Softmax"]


def test_large_and_masked_elements() -> None:
    x = np.array([[100, 101, -np.inf], [-200, -201, 3e38], [-3e38, -3e38, -3e38], [-np.inf, 5, 5]], np.float32)
    check(*model(*(Node(operator, [x]) for operator in ("Softmax", "LogSoftmax", "Hardmax"))), atol=1e-6)


def test_first_of_equal_elements() -> None:
    x = np.array([[1, 3, 3, 0], [-np.inf, -np.inf, -np.inf, -np.inf], [np.inf, 0, np.inf, 1], [2, 2, 2, 2]], np.float32)
    check(*model(Node("Hardmax", [x]), Node("Hardmax", [x], {"axis": 0})), atol=0)


def test_a_celu_of_no_one_value_at_0_is_refused() -> None:
    assert "alpha" in refused(of_text("float[4] x", "Celu<alpha=-1.0>(x)"))


@pytest.mark.parametrize(("operator", "attribute"), [("LeakyRelu", "alpha"), ("Elu", "alpha"), ("Shrink", "lambd")])
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_params_that_a_file_cannot_hold_are_refused(operator: str, attribute: str, number: float) -> None:
    made, _ = model(Node(operator, [floats(4)], {attribute: number}))
    assert f"node0 ({operator}): {number:g} is a param of" in refused(made)
