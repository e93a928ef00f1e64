from __future__ import annotations

import numpy as np
import pytest
from pass_testing import run_pass

from retarget.passes.fuse_gemm import FuseGemm

RNG = np.random.default_rng(0)
W = RNG.normal(0, 0.3, (8, 6)).astype("f")
B = RNG.normal(0, 1, 6).astype("f")


def text(body: str, x: str = "float[N,8]", outputs: str = "float[N,6] y") -> str:
    return f"g ({x} x) => ({outputs}) {{ {body} }}"


@pytest.mark.parametrize("body", ["m = MatMul(x, w) y = Add(m, b)", "m = MatMul(x, w) y = Add(b, m)"])
@pytest.mark.parametrize("bias", [B, B.reshape(1, 6), B[:1], B[0]], ids=lambda array: str(array.shape))
def test_fused(body: str, bias: np.ndarray) -> None:
    ran = run_pass(FuseGemm(), text(body), {"w": W, "b": np.asarray(bias)})
    assert ran.ops == ["Gemm"]
    assert ran.error < 1e-5


@pytest.mark.parametrize(
    ("reason", "graph", "bias"),
    [
        ("not matrices", text("m = MatMul(x, w) y = Add(m, b)", "float[N,3,8]", "float[N,3,6] y"), B),
        ("read elsewhere", text("m = MatMul(x, w) y = Add(m, b) z = Relu(m)", outputs="float[N,6] y, float[N,6] z"), B),
        ("read elsewhere", text("m = MatMul(x, w) y = Add(m, b)", outputs="float[N,6] y, float[N,6] m"), B),
        ("not a row", text("m = MatMul(x, w) y = Add(m, b)", "float[2,8]", "float[2,6] y"), np.ones((2, 6), "f")),
        ("not a row", text("m = MatMul(x, w) y = Add(m, b)", outputs="float[1,N,6] y"), np.ones((1, 1, 6), "f")),
    ],
)
def test_refused(reason: str, graph: str, bias: np.ndarray) -> None:
    one = FuseGemm()
    assert not run_pass(one, graph, {"w": W, "b": bias}).modified
    assert reason in one.refused[0][1]


def test_integers() -> None:
    one = FuseGemm()
    graph = "g (int32[N,8] x) => (int32[N,6] y) { m = MatMul(x, w) y = Add(m, b) }"
    ran = run_pass(one, graph, {"w": np.ones((8, 6), np.int32), "b": np.ones(6, np.int32)})
    assert not ran.modified
    assert one.refused[0][1] == "not known to be float"


def test_bias_that_is_computed() -> None:
    graph = "g (float[N,8] x, float[6] b) => (float[N,6] y) { m = MatMul(x, w) y = Add(m, b) }"
    assert not run_pass(FuseGemm(), graph, {"w": W}).modified


BETWEEN = """
r = Reshape(x, before)
m = MatMul(r, w)
a = Add(m, b)
y = Reshape(a, after)
"""
SHAPES = {"before": np.array([-1, 5, 8]), "after": np.array([0, 0, 2, 3])}


def test_between_reshapes() -> None:
    graph = f"g (float[N,5,2,4] x) => (float[N,5,2,3] y) {{ {BETWEEN} }}"
    ran = run_pass(FuseGemm(), graph, {"w": W, "b": B, **SHAPES, "after": np.array([-1, 5, 2, 3])})
    assert ran.ops == ["Reshape", "Gemm", "Reshape"]
    assert ran.error < 1e-5


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (BETWEEN, "float[N,5,2,3] y, float[N,5,6] a"),
        (BETWEEN, "float[N,5,2,3] y, float[N,5,8] r"),
        (BETWEEN + "z = Relu(a)", "float[N,5,2,3] y, float[N,5,6] z"),
        (BETWEEN + "z = Relu(r)", "float[N,5,2,3] y, float[N,5,8] z"),
        (BETWEEN.replace("Reshape(x, before)", "Relu(v)"), "float[N,5,2,3] y"),
    ],
)
def test_between_reshapes_that_others_read(body: str, outputs: str) -> None:
    graph = f"g (float[N,5,2,4] x, float[N,5,8] v) => ({outputs}) {{ {body} }}"
    constants = {"w": W, "b": B, **{name: array for name, array in SHAPES.items() if f"{name})" in body}}
    assert not run_pass(FuseGemm(), graph, constants).modified
