"""Trigonometric and hyperbolic functions and Erf of TFLite against numpy in double precision."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from many_nodes import LAYOUTS, agrees
from node_models import Node

if TYPE_CHECKING:
    from collections.abc import Callable

    from retarget.protocols import Array

WIDE = np.concatenate([np.linspace(-9, 9, 203), [-1e-3, -1e-6, 1e-6, 1e-3, 0.0, 85.0, -85.0]])
UNIT = np.concatenate([np.linspace(-0.9999, 0.9999, 205), [-1e-3, -1e-6, 1e-6, 1e-3, 0.0]])
FUNCTIONS: dict[str, tuple[Callable[[Array], Array], Array, float]] = {
    # The error of each number against its size; sines and cosines near their zeros against 1.
    "Acos": (np.arccos, UNIT, 4e-7),
    "Acosh": (np.arccosh, np.concatenate([np.geomspace(1.001, 1e30, 210)]), 1e-5),
    "Asin": (np.arcsin, UNIT, 4e-7),
    "Asinh": (np.arcsinh, WIDE, 1e-6),
    "Atan": (np.arctan, WIDE, 4e-7),
    "Atanh": (np.arctanh, UNIT, 2e-6),
    "Cosh": (np.cosh, WIDE, 4e-6),
    "Erf": (np.vectorize(math.erf), WIDE, 1e-6),
    "Sinh": (np.sinh, WIDE, 4e-6),
    "Tan": (np.tan, UNIT, 1e-6),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_functions_are_as_accurate_as_float32_is(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (function, points, rtol) in FUNCTIONS.items():
        data = points.astype(np.float32).reshape(1, 2, 5, -1)
        expected = {"y0_0": function(data.astype(np.float64)).astype(np.float32)}
        agrees([Node(name, [data])], layout, tmp_path, monkeypatch, rtol=rtol, atol=0, expected=expected)


def test_sines_of_large_angles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.concatenate([WIDE, np.geomspace(10, 1e5, 200)]).astype(np.float32)
    expected = {"y0_0": np.sin(data.astype(np.float64)), "y1_0": np.cos(data.astype(np.float64))}
    right = {name: array.astype(np.float32) for name, array in expected.items()}
    agrees(
        [Node("Sin", [data]), Node("Cos", [data])], "first", tmp_path, monkeypatch, rtol=0, atol=6e-7, expected=right
    )


def test_the_ends_of_what_is_defined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = np.array([-1, 1], np.float32)
    nodes = [Node("Asin", [ends]), Node("Acos", [ends]), Node("Acosh", [ends[1:]]), Node("Atanh", [ends])]
    # Without XNNPACK what arithmetic makes is the largest finite number at most.
    agrees(nodes, "first", tmp_path, monkeypatch, kernels=("xnnpack",))
    far = np.array([-np.inf, np.inf, -50, 50], np.float32)
    agrees([Node("Atan", [far]), Node("Erf", [far])], "first", tmp_path, monkeypatch)
