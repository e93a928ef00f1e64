from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from pass_testing import feeds_for, outputs, parse

from retarget.passes.correct_bias import CorrectBias, correctable

RNG = np.random.default_rng(0)
Floats = NDArray[np.float32]


def weight(*shape: int) -> Floats:
    return RNG.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)


CASES: dict[str, tuple[str, int, dict[str, Floats]]] = {
    "Conv": ("float[N,3,5,5] x", 1, {"w": weight(6, 3, 3, 3), "b": weight(6)}),
    "Conv without bias": ("float[N,3,5,5] x", 1, {"w": weight(6, 3, 3, 3)}),
    "ConvTranspose": ("float[N,4,5,5] x", 1, {"w": weight(4, 3, 2, 2), "b": weight(6)}),
    "Gemm": ("float[N,4] x", 1, {"w": weight(4, 6), "b": np.array(0.5, np.float32)}),
    "Gemm without bias": ("float[N,4] x", 1, {"w": weight(6, 4)}),
    "MatMul": ("float[N,5,4] x", 2, {"w": weight(4, 6), "b": weight(6)}),
}
BODIES = {
    "Conv": "y = Conv(x, w, b)",
    "Conv without bias": "y = Conv(x, w)",
    "ConvTranspose": "y = ConvTranspose <group = 2> (x, w, b)",
    "Gemm": "y = Gemm <alpha = 2.0> (x, w, b)",
    "Gemm without bias": "y = Gemm <transB = 1> (x, w)",
    "MatMul": "m = MatMul(x, w) y = Add(b, m)",
}


@pytest.mark.parametrize("name", CASES)
def test_adds_what_is_missing(name: str) -> None:
    given, axis, constants = CASES[name]
    shape = {"float[N,3,5,5] x": "N,6,P,Q", "float[N,4,5,5] x": "N,6,P,Q", "float[N,5,4] x": "N,5,6"}.get(given, "N,6")
    model = parse(f"g ({given}) => (float[{shape}] y) {{ {BODIES[name]} }}", constants)
    assert correctable(model) == {"y": axis}
    feeds = feeds_for(model, {"N": 3})
    (before,) = outputs(model, feeds)
    mean, quantized = RNG.normal(0, 1, 6), RNG.normal(0, 1, 6)
    one = CorrectBias({"y": mean, "other": mean}, {"y": quantized})
    assert one(model).modified
    assert one.corrected == ("y",)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (after,) = outputs(model, feeds)
    missing = (mean - quantized).reshape(-1, *(1,) * (before.ndim - 1 - axis))
    np.testing.assert_allclose(after.astype(float), before.astype(float) + missing, rtol=1e-4, atol=1e-5)
    assert not one(model).modified, "a second run adds it again"


@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul(x, w)",
        "m = MatMul(x, w) y = Add(m, x)",
        "m = MatMul(x, w) r = Relu(m) y = Add(m, b) z = Add(r, y)",
        "m = MatMul(x, w) y = Add(m, matrix)",
        "y = Gemm <beta = 0.5> (x, w, b)",
        "y = Gemm (x, w, x)",
        "y = MatMul(x, v)",
    ],
)
def test_no_place_for_a_bias(body: str) -> None:
    more = ", float[4,4] z" if "z =" in body else ""
    text = f"g (float[4,4] x, float[4,4] v) => (float[4,4] y{more}) {{ {body} }}"
    constants = {"w": weight(4, 4), "b": weight(4), "matrix": weight(4, 4)}
    model = parse(text, {name: array for name, array in constants.items() if f", {name}" in body})
    assert correctable(model) == {}


def test_shared_bias_is_corrected_for_one_layer() -> None:
    text = """
    g (float[N,4] x) => (float[N,4] y, float[N,4] z) {
      y = Gemm(x, w, b)
      z = Gemm(y, w, b)
    }
    """
    model = parse(text, {"w": weight(4, 4), "b": weight(4)})
    feeds = feeds_for(model, {"N": 3})
    before = outputs(model, feeds)
    CorrectBias({"z": np.ones(4)}, {"z": np.zeros(4)})(model)
    after = outputs(model, feeds)
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_allclose(after[1].astype(float), before[1].astype(float) + 1, rtol=1e-5)


@pytest.mark.parametrize("mean", [np.zeros(4), np.array([0, np.nan, 0, 0])])
def test_nothing_to_add(mean: NDArray[np.float64]) -> None:
    model = parse("g (float[N,4] x) => (float[N,4] y) { y = Gemm(x, w, b) }", {"w": weight(4, 4), "b": weight(4)})
    assert not CorrectBias({"y": mean}, {"y": np.zeros(4)})(model).modified
