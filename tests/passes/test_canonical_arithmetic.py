from __future__ import annotations

import numpy as np
import pytest
from pass_testing import run_pass

from retarget.passes.canonical_arithmetic import CanonicalArithmetic

CONSTANTS = {
    "two": np.array(2, "f"),
    "three": np.array([3, 7, 11, 13], "f"),
    "half": np.array(0.5, "f"),
    "minus": np.array(-1, "f"),
    "zero": np.array([1, 0, 1, 1], "f"),
    "tiny": np.array(1e-42, "f"),
    "wide": np.full((1, 1, 4), 2, "f"),
}


def graph(body: str) -> tuple[str, dict[str, np.ndarray]]:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return f"g (float[N,4] input, float[N,4] z) => (float[N,4] y) {{ x = Exp(input) {body} }}", {
        name: array for name, array in CONSTANTS.items() if name in words
    }


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("y = Div(x, two)", ["Mul"]),
        ("y = Div(x, three)", ["Mul"]),
        ("y = Sub(x, three)", ["Add"]),
        ("r = Reciprocal(z) y = Mul(x, r)", ["Div"]),
        ("r = Reciprocal(x) y = Mul(r, z)", ["Div"]),
        ("y = Pow(x, two)", ["Mul"]),
        ("y = Pow(x, half)", ["Sqrt"]),
        ("y = Pow(x, minus)", ["Reciprocal"]),
        ("y = Mul(three, x)", ["Mul"]),
        ("y = Add(three, x)", ["Add"]),
    ],
)
def test_canonical_form(body: str, left: list[str]) -> None:
    ran = run_pass(CanonicalArithmetic(), *graph(body))
    assert ran.modified
    assert ran.ops == ["Exp", *left]
    assert ran.error < 1e-4
    assert all(not value.is_initializer() for value in [ran.model.graph.node(1).inputs[0]] if value is not None)


@pytest.mark.parametrize(
    "body",
    [
        "y = Div(two, x)",
        "y = Sub(two, x)",
        "y = Div(x, zero)",
        "y = Div(x, tiny)",
        "y = Pow(x, three)",
        "y = Mul(x, three)",
    ],
)
def test_kept(body: str) -> None:
    assert not run_pass(CanonicalArithmetic(), *graph(body)).modified


def test_reciprocal_that_others_read() -> None:
    text = "g (float[N,4] x) => (float[N,4] y, float[N,4] r) { e = Exp(x) r = Reciprocal(e) y = Mul(x, r) }"
    assert not run_pass(CanonicalArithmetic(), text).modified


def test_integers_are_not_inverted() -> None:
    text = "g (int64[N] x) => (int64[N] y) { y = Div(x, two) }"
    assert not run_pass(CanonicalArithmetic(), text, {"two": np.array(2)}).modified


def test_exponent_that_widens() -> None:
    text = "g (float[N,4] x) => (float[1,N,4] y) { y = Pow(x, wide) }"
    assert not run_pass(CanonicalArithmetic(), text, {"wide": CONSTANTS["wide"]}).modified
    text = "g (float[4] x) => (float[1,1,4] y) { y = Pow(x, one) }"
    assert not run_pass(CanonicalArithmetic(), text, {"one": np.full((1, 1, 1), 2, "f")}).modified
