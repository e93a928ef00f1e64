from __future__ import annotations

import numpy as np
from pass_testing import run_pass

from retarget.passes.simplify import Simplify

TEXT = "g (float[N,4] x) => (float[N,4] y) { a = Add(c, d) b = Sqrt(a) e = Cos(b) y = Mul(x, e) }"
CONSTANTS = {"c": np.full(4, 2, "f"), "d": np.arange(4, dtype="f")}


def test_folds_by_execution() -> None:
    ran = run_pass(Simplify(), TEXT, CONSTANTS)
    assert ran.ops == ["Mul"]
    assert ran.error < 1e-6
    assert str(ran.model.graph.inputs[0].shape) == "[N,4]"


def test_nothing_to_do() -> None:
    assert not run_pass(Simplify(), "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }").modified


def test_large_models_are_left_alone() -> None:
    one = Simplify(limit=10)
    assert not run_pass(one, TEXT, CONSTANTS).modified
    assert one.refused == [("", "32 bytes of weights are more than a protobuf holds")]


def test_quantized_models_are_left_alone() -> None:
    body = "q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) y = Mul(x, d)"
    text = f"g (float[N,4] x) => (float[N,4] y) {{ {body} }}"

    one = Simplify()
    constants = {"w": np.arange(4, dtype="f"), "s": np.array(0.1, "f"), "z": np.array(0, np.int8)}
    assert not run_pass(one, text, constants).modified
    assert "QuantizeLinear" in one.refused[0][1]
