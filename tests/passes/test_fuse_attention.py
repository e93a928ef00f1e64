from __future__ import annotations

import numpy as np
import pytest
from pass_testing import run_pass

from retarget.passes.fuse_attention import FuseAttention

TRIANGLE = np.triu(np.full((5, 5), -1e9, "f"), 1)
TURN = "t = Transpose <perm = [0, 1, 3, 2]> (k)"


def graph(body: str, inputs: str = "", outputs: str = "float[N,2,5,4] y", keys: str = "float[N,2,5,4] k") -> str:
    return f"g (float[N,2,5,4] q, {keys}, float[N,2,5,4] v{inputs}) => ({outputs}) {{ {body} }}"


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        (f"{TURN} a = MatMul(q, t) s = Softmax(a) y = MatMul(s, v)", ""),
        (f"{TURN} a = MatMul(q, t) b = Mul(a, scale) s = Softmax(b) y = MatMul(s, v)", ""),
        (f"{TURN} a = MatMul(q, t) b = Add(a, triangle) s = Softmax(b) y = MatMul(s, v)", ""),
        (f"{TURN} a = MatMul(q, t) b = Add(m, a) s = Softmax <axis = -1> (b) y = MatMul(s, v)", ", float[N,1,5,5] m"),
        (f"{TURN} a = MatMul(q, t) b = Mul(a, scale) c = Add(b, m) s = Softmax(c) y = MatMul(s, v)", ", float[5,5] m"),
    ],
)
def test_fused(body: str, inputs: str) -> None:
    constants = {"scale": np.array(0.25, "f"), "triangle": TRIANGLE}
    ran = run_pass(FuseAttention(), graph(body, inputs), {k: v for k, v in constants.items() if k in body})
    assert ran.ops == ["Attention"]
    assert ran.error < 1e-5


def test_keys_that_are_turned_already() -> None:
    body = "a = MatMul(q, k) s = Softmax(a) y = MatMul(s, v)"
    ran = run_pass(FuseAttention(), graph(body, keys="float[N,2,4,5] k"))
    assert ran.ops == ["Transpose", "Attention"]
    assert ran.error < 1e-5


def test_heads_split_and_turned_at_once() -> None:
    body = "t = Transpose <perm = [0, 2, 3, 1]> (k) a = MatMul(q, t) s = Softmax(a) y = MatMul(s, v)"
    ran = run_pass(FuseAttention(), graph(body, keys="float[N,5,2,4] k"))
    assert ran.ops == ["Transpose", "Attention"]
    assert ran.error < 1e-5


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (
            "read elsewhere",
            graph(f"{TURN} a = MatMul(q, t) s = Softmax(a) y = MatMul(s, v)", "", "float[N,2,5,4] y, float[N,2,5,5] s"),
        ),
        ("another axis", graph(f"{TURN} a = MatMul(q, t) s = Softmax <axis = 2> (a) y = MatMul(s, v)")),
        ("not a product", graph(f"{TURN} a = MatMul(q, t) r = Relu(a) s = Softmax(r) y = MatMul(s, v)")),
        (
            "the mask does not widen",
            graph(f"{TURN} a = MatMul(q, t) b = Add(a, m) s = Softmax(b) y = MatMul(s, v)", ", float[N,1,1,5] m"),
        ),
        (
            "differ in heads",
            graph(f"{TURN} a = MatMul(q, t) s = Softmax(a) y = MatMul(s, v)", keys="float[N,1,5,4] k"),
        ),
    ],
)
def test_refused(reason: str, text: str) -> None:
    one = FuseAttention()
    assert not run_pass(one, text).modified
    assert reason in one.refused[0][1]
