from __future__ import annotations

import numpy as np
import onnx_ir as ir
from pass_testing import run_pass

from retarget.passes.fold_weights import FoldWeights

RNG = np.random.default_rng(0)


def weight(*shape: int) -> np.ndarray:
    return RNG.normal(0, shape[0] ** -0.5, shape).astype("f")


def test_small_weight_is_folded_at_once() -> None:
    text = "g (float[N,8] x) => (float[N,6] y) { t = Transpose <perm = [1, 0]> (w) y = MatMul(x, t) }"
    ran = run_pass(FoldWeights(), text, {"w": weight(6, 8)})
    assert ran.ops == ["MatMul"]
    assert ran.error == 0
    (value,) = ran.model.graph.initializers.values()
    assert isinstance(value.const_value, ir.Tensor)


def test_large_weight_is_read_when_it_is_needed() -> None:
    text = "g (float[N,128] x) => (float[N,64] y) { t = Transpose(w) y = MatMul(x, t) }"
    ran = run_pass(FoldWeights(), text, {"w": weight(64, 128)})
    (value,) = ran.model.graph.initializers.values()
    assert isinstance(value.const_value, ir.LazyTensor)
    assert value.shape == ir.Shape([128, 64])
    assert ran.error == 0


def test_chain() -> None:
    text = """
    g (float[N,6] x) => (float[N,8] y) {
      r = Reshape(w, shape)
      t = Transpose(r)
      y = MatMul(x, t)
    }
    """
    ran = run_pass(FoldWeights(), text, {"w": weight(2, 4, 6), "shape": np.array([8, 6])})
    assert ran.ops == ["MatMul"]
    assert ran.error == 0


def test_float16_weight() -> None:
    text = "g (float[N,8] x) => (float[N,6] y) { c = Cast <to = 1> (w) y = MatMul(x, c) }"
    ran = run_pass(FoldWeights(), text, {"w": weight(8, 6).astype(np.float16)})
    assert ran.ops == ["MatMul"]
    assert ran.error == 0


def test_cast_that_loses() -> None:
    text = "g (float16[N,8] x) => (float16[N,6] y) { c = Cast <to = 10> (w) y = MatMul(x, c) }"
    one = FoldWeights()
    assert not run_pass(one, text, {"w": weight(8, 6)}).modified
    assert one.refused[0][1] == "a Cast that loses something or depends on rounding"


def test_weight_that_is_needed_in_both_forms() -> None:
    text = """
    g (int64[N,S] i) => (float[N,S,99] y) {
      x = Gather(w, i)
      t = Transpose(w)
      y = MatMul(x, t)
    }
    """
    one = FoldWeights()
    ran = run_pass(one, text, {"w": weight(99, 64)}, sizes=({"N": 2, "S": 3},))
    assert not ran.modified
    assert one.refused[0][1] == "the weight is read in its own form too, and would have to be kept twice"


def test_weight_that_a_feed_may_override() -> None:
    text = "g (float[N,8] x, float[6,8] w) => (float[N,6] y) { t = Transpose(w) y = MatMul(x, t) }"
    w = weight(6, 8)
    assert not run_pass(FoldWeights(), text, {"w": w}, feeds={"x": weight(2, 8), "w": w}).modified


def test_weight_that_is_an_output() -> None:
    text = "g (float[N,8] x) => (float[8,6] t, float[N,6] y) { t = Transpose(w) y = MatMul(x, t) }"
    assert not run_pass(FoldWeights(), text, {"w": weight(6, 8)}).modified


def test_quantized_weight_stays() -> None:
    text = "g (float[N,8] x) => (float[N,6] y) { d = DequantizeLinear(w, s) y = MatMul(x, d) }"
    constants = {"w": RNG.integers(-9, 9, (8, 6)).astype(np.int8), "s": np.array(0.1, "f")}
    assert not run_pass(FoldWeights(), text, constants).modified
