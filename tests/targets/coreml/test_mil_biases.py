"""What is added behind convolutions and products: biases where they can be, and never another result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import target_testing as t
import written

from retarget.targets.coreml.emit import FILE
from retarget.targets.coreml.executed import executed

CONV = "float[N,4,6,6] x, float[4,4,1,1] w_a"
PRODUCT = "float[N,4] x, float[4,3] w_a"
SQUARE = "float[4,4] x, float[4,4] w_a"

JOINED = {
    "channels": (f"{CONV}, float[4,1,1] w_k", "c = Conv(x, w_a) y = Add(c, w_k)"),
    "from the left": (f"{CONV}, float[1,4,1,1] w_k", "c = Conv(x, w_a) y = Add(w_k, c)"),
    "taken away, and read by others": (
        f"{CONV}, float[4,1,1] w_h",
        "w_k = Add(w_h, w_h) c = Conv(x, w_a) d = Sub(c, w_k) e = Relu(d) y = Mul(e, w_k)",
    ),
    "beside a bias": (f"{CONV}, float[4] w_b, float[1] w_k", "c = Conv(x, w_a, w_b) y = Sub(c, w_k)"),
    "groups": (
        "float[N,4,6,6] x, float[4,3,2,2] w_a, float[1] w_k",
        "c = ConvTranspose <strides = [2, 2], group = 2> (x, w_a) y = Add(c, w_k)",
    ),
    "product": (f"{PRODUCT}, float[3] w_k", "c = MatMul(x, w_a) y = Add(c, w_k)"),
    "one number": (PRODUCT, "k = Constant <value_float = 0.5> () c = Gemm(x, w_a) y = Sub(c, k)"),
    "one column": ("float[N,4] x, float[4,1] w_a, float w_k", "c = MatMul(x, w_a) y = Add(c, w_k)"),
}

APART = {
    "more axes": (f"{CONV}, float[1,1,4,1,1] w_k", "c = Conv(x, w_a) y = Add(c, w_k)"),
    "more axes of a product": (f"{PRODUCT}, float[1,1,3] w_k", "c = MatMul(x, w_a) y = Add(c, w_k)"),
    "more channels": ("float[N,4,6,6] x, float[1,4,1,1] w_a, float[4,1,1] w_k", "c = Conv(x, w_a) y = Add(c, w_k)"),
    "another axis": ("float[N,4,6,4] x, float[4,4,1,1] w_a, float[4] w_k", "c = Conv(x, w_a) y = Add(c, w_k)"),
    "the constant on the left": (f"{SQUARE}, float[4] w_k", "c = MatMul(w_a, x) y = Add(c, w_k)"),
    "a product taken away": (f"{SQUARE}, float[4] w_k", "c = MatMul(w_a, x) y = Sub(w_k, c)"),
    "a layer taken away": (f"{PRODUCT}, float[3] w_k", "c = MatMul(x, w_a) y = Sub(w_k, c)"),
    "read twice": (f"{PRODUCT}, float[3] w_k", "c = MatMul(x, w_a) d = Add(c, w_k) y = Mul(c, d)"),
    "to itself": (PRODUCT, "c = MatMul(x, w_a) y = Add(c, c)"),
}


@pytest.mark.parametrize("name", [*JOINED, *APART])
def test_biases(name: str, tmp_path: Path) -> None:
    inputs, nodes = (JOINED | APART)[name]
    model = t.model(f"g ({inputs}) => (float[] y) {{ {nodes} }}")
    facts = written.written(model, tmp_path)
    for size in (1, 3):
        feeds = t.feeds(model, size)
        right = t.oracle(model, feeds)["y"]
        found = t.run("coreml", tmp_path, facts, feeds)["y"]
        assert found.shape == right.shape
        np.testing.assert_allclose(
            found.astype(np.float64), right.astype(np.float64), rtol=0, atol=1e-5 * np.abs(right).max()
        )
    operators = executed(tmp_path / FILE).operators
    assert (operators["add"] + operators["sub"] == 0) == (name in JOINED)


def test_what_is_an_output_stays(tmp_path: Path) -> None:
    model = t.model(f"g ({PRODUCT}, float[3] w_k) => (float[] c, float[] y) {{ c = MatMul(x, w_a) y = Add(c, w_k) }}")
    facts = written.written(model, tmp_path)
    feeds = t.feeds(model, 3)
    found = t.run("coreml", tmp_path, facts, feeds)
    for output, right in t.oracle(model, feeds).items():
        t.assert_close(found[output], right)
