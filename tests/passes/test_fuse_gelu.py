from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from pass_testing import run_pass

from retarget.passes.fuse_gelu import FuseGelu

CONSTANTS = {
    "half": np.array(0.5, "f"),
    "one": np.array(1, "f"),
    "two": np.array(2, "f"),
    "three": np.array(3, "f"),
    "root": np.array(math.sqrt(2), "f"),
    "inverse": np.array(1 / math.sqrt(2), "f"),
    "cubic": np.array(0.044715, "f"),
    "scale": np.array(math.sqrt(2 / math.pi), "f"),
}

EXACT = {
    "half last": "a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)",
    "half first": "a = Div(x, root) b = Erf(a) c = Add(one, b) d = Mul(half, x) y = Mul(d, c)",
    "half on the gate": "a = Mul(x, inverse) b = Erf(a) c = Add(b, one) d = Mul(c, half) y = Mul(x, d)",
}
CUBE = {
    "power": "p = Pow(x, three)",
    "products": "q = Mul(x, x) p = Mul(q, x)",
    "square": "q = Pow(x, two) p = Mul(x, q)",
}
TANH = "r = Mul(cubic, p) s = Add(x, r) t = Mul(s, scale) u = Tanh(t) v = Add(one, u) w = Mul(half, x) y = Mul(w, v)"


def graph(body: str, outputs: str = "float[N,8] y") -> str:
    return f"g (float[N,8] x) => ({outputs}) {{ {body} }}"


def used(text: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in CONSTANTS.items() if name in text}


@pytest.mark.parametrize("body", EXACT.values(), ids=EXACT.keys())
def test_exact(body: str) -> None:
    ran = run_pass(FuseGelu(), graph(body), used(body))
    assert ran.ops == ["Gelu"]
    assert ran.model.graph.node(0).attributes.get_string("approximate") == "none"
    assert ran.error < 1e-6
    assert not ran.model.graph.initializers


@pytest.mark.parametrize("cube", CUBE.values(), ids=CUBE.keys())
def test_tanh(cube: str) -> None:
    body = f"{cube} {TANH}"
    ran = run_pass(FuseGelu(), graph(body), used(body))
    assert ran.ops == ["Gelu"]
    assert ran.model.graph.node(0).attributes.get_string("approximate") == "tanh"
    assert ran.error < 1e-6


def test_x_that_is_a_product_itself() -> None:
    body = "k = Mul(x, three) a = Div(k, root) b = Erf(a) c = Add(b, one) d = Mul(k, c) y = Mul(d, half)"
    ran = run_pass(FuseGelu(), graph(body), used(body))
    assert ran.ops == ["Mul", "Gelu"]
    assert ran.error < 1e-6


def test_value_inside_that_is_an_output() -> None:
    body = EXACT["half last"]
    one = FuseGelu()
    ran = run_pass(one, graph(body, "float[N,8] y, float[N,8] b"), used(body))
    assert not ran.modified
    assert [why for _, why in one.refused] == ["a value inside the formula is read elsewhere too"]


def test_value_inside_that_others_read() -> None:
    body = EXACT["half last"] + " k = Relu(a)"
    assert not run_pass(FuseGelu(), graph(body, "float[N,8] y, float[N,8] k"), used(body)).modified


@pytest.mark.parametrize(
    ("old", "new"),
    [("root", "two"), ("half", "two"), ("b, one", "b, two"), ("Mul(x, c)", "Mul(b, c)"), ("Erf", "Tanh")],
)
def test_other_formulas(old: str, new: str) -> None:
    body = EXACT["half last"].replace(old, new)
    assert not run_pass(FuseGelu(), graph(body), used(body)).modified


@pytest.mark.parametrize(("old", "new"), [("scale", "half"), ("cubic", "half"), ("three", "two"), ("Add(x", "Add(p")])
def test_other_tanh_formulas(old: str, new: str) -> None:
    body = f"{CUBE['power']} {TANH}".replace(old, new)
    assert not run_pass(FuseGelu(), graph(body), used(body)).modified


@pytest.mark.parametrize("name", ["half", "one", "root", "scale", "cubic", "three"])
def test_constants_that_are_only_near(name: str) -> None:
    body = f"{CUBE['power']} {TANH}" if name in ("scale", "cubic", "three") else EXACT["half last"]
    constants = used(body)
    constants[name] = constants[name] * np.float32(1.0005)
    assert not run_pass(FuseGelu(), graph(body), constants).modified


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("is_inverse", [False, True])
def test_constants_that_were_rounded_to_16_bits(dtype: type[np.generic], is_inverse: bool) -> None:
    """As those of a widened model are, where a Div is a Mul by now, too."""
    body = EXACT["half last"].replace("Div", "Mul").replace("root", "inverse") if is_inverse else EXACT["half last"]
    rounded = {name: array.astype(dtype).astype(np.float32) for name, array in used(body).items()}
    if is_inverse:
        rounded["inverse"] = np.float32(1) / CONSTANTS["root"].astype(dtype).astype(np.float32)
    assert run_pass(FuseGelu(), graph(body), rounded).ops == ["Gelu"]
    body = f"{CUBE['products']} {TANH}"
    rounded = {name: array.astype(dtype).astype(np.float32) for name, array in used(body).items()}
    assert run_pass(FuseGelu(), graph(body), rounded).ops == ["Gelu"]


def test_constant_that_a_feed_may_override() -> None:
    body = EXACT["half last"]
    text = f"g (float[N,8] x, float half) => (float[N,8] y) {{ {body} }}"
    constants = used(body)
    ran = run_pass(FuseGelu(), text, constants, feeds={"x": np.ones((2, 8), "f"), "half": np.array(3, "f")})
    assert not ran.modified
