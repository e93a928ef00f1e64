"""Activation functions of Core ML, and the transcendental ones, against ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import written
from agreement import agrees
from node_models import Attribute, Node, floats, integers, of_text

from retarget.errors import Unsupported

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.coreml import DeploymentTarget

STEPS = np.geomspace(1e-6, 1, 40).astype(np.float32)
NEAR = np.concatenate([np.linspace(-9, 9, 91), STEPS, -STEPS]).astype(np.float32)
FAR = np.concatenate([NEAR, np.geomspace(1, 1e30, 50), -np.geomspace(1, 1e30, 50)]).astype(np.float32)
NOT_FINITE = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.5, -2.5, 3e38, -3e38, 20, -20, 90, -90], np.float32)

PARAMETERS: list[tuple[str, dict[str, Attribute]]] = [
    ("Celu", {"alpha": 0.4}),
    ("Celu", {"alpha": 3.0}),
    ("Elu", {"alpha": 2.0}),
    ("Gelu", {"approximate": "tanh"}),
    ("HardSigmoid", {"alpha": 0.1, "beta": 0.3}),
    ("LeakyRelu", {"alpha": 0.3}),
    ("LeakyRelu", {"alpha": -0.3}),
    ("LeakyRelu", {"alpha": 1.3}),
    ("Selu", {"alpha": 2.0, "gamma": 3.0}),
    ("Shrink", {"lambd": 1.0, "bias": 0.5}),
    ("ThresholdedRelu", {"alpha": -0.6}),
]
ACTIVATIONS = (
    *("Celu", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Relu", "Selu", "Shrink", "Sigmoid"),
    *("Softplus", "Softsign", "Tanh", "ThresholdedRelu"),
)


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_activations(target: DeploymentTarget) -> None:
    nodes = [Node(name, [NEAR]) for name in ACTIVATIONS]
    nodes += [Node(name, [NEAR], attributes) for name, attributes in PARAMETERS]
    # What is at the threshold does not pass.
    nodes.append(Node("ThresholdedRelu", [np.array([0.5, 1, 1.5], np.float32)]))
    nodes.append(Node("Relu", [integers(3, 4)]))
    agrees(*nodes, target=target, rtol=2e-6, atol=1e-7)


def test_activations_of_what_is_not_finite() -> None:
    agrees(*(Node(name, [NOT_FINITE]) for name in ACTIVATIONS))


def test_softplus_and_mish_of_float16_do_not_overflow() -> None:
    """``exp(12)`` is more than a float16 holds."""
    large = np.array([-30, -12, -1, 0, 1, 11, 12, 30], np.float16)
    agrees(*(Node(name, [large]) for name in ("Softplus", "Mish")), rtol=4e-3, atol=1e-5)


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_transcendental_functions(target: DeploymentTarget) -> None:
    inside = NEAR[np.abs(NEAR) < 1]
    nodes = [Node(name, [NEAR]) for name in ("Sin", "Cos", "Tan", "Sinh", "Cosh", "Erf", "Exp")]
    nodes += [Node(name, [inside]) for name in ("Asin", "Acos", "Atanh")]
    nodes += [Node(name, [FAR]) for name in ("Atan", "Asinh", "Acosh")]
    nodes.append(Node("Acosh", [(1 + np.geomspace(1e-6, 10, 60)).astype(np.float32)]))
    agrees(*nodes, target=target, rtol=2e-6, atol=0)


def test_transcendental_functions_of_what_is_not_finite() -> None:
    names = ("Sin", "Cos", "Sinh", "Cosh", "Erf", "Asin", "Acos", "Atan", "Asinh", "Acosh", "Atanh")
    agrees(*(Node(name, [NOT_FINITE]) for name in names))


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_slopes_of_prelu(kind: str) -> None:
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((2, 3, 4), (3, 1)),
        ((2, 3, 4), ()),
        ((2, 3, 4), (4,)),
        ((2, 3, 4, 5), (3, 1, 1)),
        ((2, 3, 4, 5), (1, 3, 1, 1)),
        ((2, 3, 3, 3), (3,)),
        ((2, 3, 2, 2, 2), (3, 1, 1, 1)),
        ((5,), (5,)),
    ]
    agrees(
        *(
            Node("PRelu", [floats(*shape).astype(kind), floats(*slope, seed=3).astype(kind)], {}, held)
            for shape, slope in shapes
            for held in ((), (1,))
        ),
        rtol=1e-5 if kind == "float32" else 2e-3,
    )


def ties(*shape: int) -> Array:
    return integers(*shape, low=0, high=3).astype(np.float32)


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
def test_along_an_axis(operator: str) -> None:
    nodes = [Node(operator, [floats(2, 3, 4, 5)], {"axis": axis}) for axis in (-4, -1, 1, 2)]
    nodes += [Node(operator, [floats(*shape)]) for shape in ((5,), (2, 3, 4, 1, 2))]
    nodes += [Node(operator, [ties(4, 6)], {"axis": axis}) for axis in (0, 1)]
    nodes.append(Node(operator, [np.array([[100, -100, 3], [-1e30, 0, 1e30]], np.float32)]))
    agrees(*nodes)
    agrees(Node(operator, [floats(3, 8).astype(np.float16)]), rtol=4e-3, atol=1e-3)


@pytest.mark.parametrize("node", ["Softmax(x)", "Hardmax <axis = 1> (x)", "LogSoftmax <axis = 1> (x)", "Mish(x)"])
def test_open_dimensions_stay_open(node: str) -> None:
    written.check_open(of_text("float[N,S,3] x", node), 2, 5)


def test_celu_of_a_negative_alpha_is_refused() -> None:
    with pytest.raises(Unsupported, match="alpha=-1"):
        written.interpreted(of_text("float[3] x", "Celu <alpha = -1.0> (x)"), {"x": floats(3)})
