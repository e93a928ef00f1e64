from __future__ import annotations

from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import pytest
from pass_testing import run_pass

from retarget.passes.fold_scales import FoldScales

RNG = np.random.default_rng(0)
W, B = RNG.normal(0, 0.3, (8, 8)).astype("f"), RNG.normal(0, 1, 8).astype("f")
Model: TypeAlias = tuple[str, dict[str, np.ndarray]]

CONSTANTS = {
    "w": W,
    "b": B,
    "c": np.array(0.354, "f"),
    "d": np.array([2.5], "f"),
    "v": RNG.normal(1, 0.1, 8).astype("f"),
    "u": RNG.normal(1, 0.1, (1, 8)).astype("f"),
    "heads": np.array([0, 0, 2, 4]),
    "k": RNG.normal(0, 0.3, (8, 8, 1)).astype("f"),
}


def graph(body: str, outputs: str = "float[N,S,8] y", inputs: str = "float[N,S,8] x") -> Model:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return f"g ({inputs}) => ({outputs}) {{ {body} }}", {k: v for k, v in CONSTANTS.items() if k in words}


SIZES = ({"N": 2, "S": 3},)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("m = MatMul(x, w) y = Mul(m, c)", ["MatMul"]),
        ("m = MatMul(x, w) a = Add(m, b) y = Mul(c, a)", ["MatMul", "Add"]),
        ("m = MatMul(x, w) a = Add(b, m) z = Mul(a, c) y = Mul(z, d)", ["MatMul", "Add"]),
        ("r = Relu(x) a = Mul(r, c) y = Mul(a, v)", ["Relu", "Mul"]),
        ("r = Relu(x) a = Add(v, r) y = Add(a, u)", ["Relu", "Add"]),
        ("m = Conv(x, k) y = Mul(m, c)", ["Conv"]),
    ],
)
def test_folded(body: str, left: list[str]) -> None:
    inputs, outputs = ("float[N,8,8] x", "float[N,8,8] y") if "Conv" in body else ("float[N,S,8] x", "float[N,S,8] y")
    ran = run_pass(FoldScales(), *graph(body, outputs, inputs), sizes=SIZES)
    assert ran.ops == left
    assert ran.error < 1e-5


def test_through_reshape_and_transpose() -> None:
    body = """
    m = MatMul(x, w)
    a = Add(m, b)
    h = Reshape(a, heads)
    t = Transpose <perm = [0, 2, 1, 3]> (h)
    y = Mul(t, c)
    """
    ran = run_pass(FoldScales(), *graph(body, "float[N,2,S,4] y"), sizes=SIZES)
    assert ran.ops == ["MatMul", "Add", "Reshape", "Transpose"]
    assert ran.error < 1e-5


def test_gemm_and_its_bias() -> None:
    body = "m = Gemm(x, w, b) y = Mul(m, c)"
    ran = run_pass(FoldScales(), *graph(body, "float[N,8] y", "float[N,8] x"), sizes=SIZES)
    assert ran.ops == ["Gemm"]
    assert ran.error < 1e-5


def test_large_weights_stay_unread() -> None:
    text = "g (float[N,128] x) => (float[N,128] y) { m = MatMul(x, w) y = Mul(m, c) }"
    ran = run_pass(FoldScales(), text, {"w": RNG.normal(0, 0.1, (128, 128)).astype("f"), "c": CONSTANTS["c"]})
    assert isinstance(ran.model.graph.initializers["w_scaled"].const_value, ir.LazyTensor)
    assert ran.error < 1e-5


def test_large_weight_that_is_read_elsewhere_too() -> None:
    text = """
    g (float[N,128] x) => (float[N,128] y, float[N,128] z) {
      m = MatMul(x, w)
      y = Mul(m, c)
      z = MatMul(y, w)
    }
    """
    one = FoldScales()
    ran = run_pass(one, text, {"w": RNG.normal(0, 0.1, (128, 128)).astype("f"), "c": CONSTANTS["c"]})
    assert not ran.modified
    assert one.refused == [("", "the weight is read elsewhere too")]


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("m = MatMul(x, w) y = Mul(m, c)", "float[N,S,8] y, float[N,S,8] m"),
        ("m = MatMul(x, w) y = Mul(m, c) z = Relu(m)", "float[N,S,8] y, float[N,S,8] z"),
        ("m = MatMul(x, w) r = Relu(m) y = Mul(r, c)", "float[N,S,8] y"),
        ("m = MatMul(x, w) y = Mul(m, v)", "float[N,S,8] y"),
        ("a = Mul(x, c) m = Relu(a) y = Mul(m, c)", "float[N,S,8] y"),
        ("a = Add(x, c) y = Mul(a, c)", "float[N,S,8] y"),
        ("a = Mul(x, c) y = Mul(a, d)", "float[N,S,8] y, float[N,S,8] a"),
    ],
)
def test_kept(body: str, outputs: str) -> None:
    assert not run_pass(FoldScales(), *graph(body, outputs), sizes=SIZES).modified


def test_product_of_two_inputs() -> None:
    body = "m = MatMul(x, w) y = Mul(m, c)"
    text, constants = graph(body, "float[N,8] y", "float[N,8] x, float[8,8] w")
    constants.pop("w")
    assert not run_pass(FoldScales(), text, constants).modified
