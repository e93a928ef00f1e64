from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from pass_testing import feeds_for, outputs, parse, run_pass

from retarget.compare import snr_db
from retarget.passes.smooth_outliers import SmoothOutliers, smoothable

RNG = np.random.default_rng(0)
Floats = NDArray[np.float32]

NORM = """
g (float[N,7,16] x) => (float[N,7,4] q, float[N,7,8] k) {
  n = LayerNormalization <axis = -1> (x, scale, bias)
  q = MatMul(n, wq)
  k = MatMul(n, wk)
}
"""


def norm(outliers: float = 60.0) -> dict[str, Floats]:
    """Constants of ``NORM``: two channels of the normalization are ``outliers`` times as large as the others."""
    by = np.ones(16)
    by[[3, 11]] = outliers
    return {
        "scale": (RNG.uniform(0.5, 2, 16) * by).astype(np.float32),
        "bias": (RNG.normal(0, 0.5, 16) * by).astype(np.float32),
        "wq": (RNG.normal(0, 0.25, (16, 4)) / by[:, None]).astype(np.float32),
        "wk": (RNG.normal(0, 0.25, (16, 8)) / by[:, None]).astype(np.float32),
    }


def seen(text: str, constants: dict[str, Floats]) -> dict[str, NDArray[np.float64]]:
    """Largest magnitudes of all that can be smoothed, by ONNX Runtime."""
    model = parse(text, constants)
    values = smoothable(model)
    feeds = feeds_for(model, {"N": 64})
    proto = ir.to_proto(model)
    del proto.graph.output[:]
    proto.graph.output.extend(one for one in proto.graph.value_info if one.name in values)
    arrays = outputs(ir.from_proto(proto), feeds)
    return {
        one.name: np.abs(np.moveaxis(array.astype(float), values[one.name], 0))
        .reshape(array.shape[values[one.name]], -1)
        .max(axis=1)
        for one, array in zip(proto.graph.output, arrays, strict=True)
    }


def rounded(array: NDArray[np.generic], axis: int | None = None) -> NDArray[np.float64]:
    """``array`` on 255 levels: one scale, or one for each entry of ``axis``."""
    real = array.astype(float)
    others = None if axis is None else tuple(other for other in range(real.ndim) if other != axis)
    step = np.abs(real).max(axis=others, keepdims=True) / 127
    result: NDArray[np.float64] = np.round(real / step) * step
    return result


def int8_snr(model: ir.Model, text_output: str, weight: str) -> float:
    """Of a MatMul of ``n`` by ``weight``, both rounded to int8, in numpy."""
    proto = ir.to_proto(model)
    del proto.graph.output[:]
    proto.graph.output.extend(one for one in proto.graph.value_info if one.name == text_output)
    (value,) = outputs(ir.from_proto(proto), feeds_for(model, {"N": 64}))
    tensor = model.graph.initializers[weight].const_value
    assert tensor is not None
    matrix = tensor.numpy()
    return snr_db(value.astype(float) @ matrix.astype(float), rounded(value) @ rounded(matrix, axis=1))


def test_normalization_before_and_after() -> None:
    constants = norm()
    one = SmoothOutliers(seen(NORM, constants))
    ran = run_pass(one, NORM, constants)
    assert ran.modified
    assert ran.ops == ["LayerNormalization", "MatMul", "MatMul"]
    assert ran.error < 1e-4
    before, after = parse(NORM, constants), ran.model
    for weight in ("wq", "wk"):
        assert int8_snr(before, "n", weight) < 22
        assert int8_snr(after, "n", weight) > 37


def test_gain_that_is_told_is_the_gain_that_is_there() -> None:
    constants = norm()
    one = SmoothOutliers(seen(NORM, constants))
    model = parse(NORM, constants)
    before = int8_snr(model, "n", "wk")
    one(model)
    assert one.gains_db["n"] == pytest.approx(int8_snr(model, "n", "wk") - before, abs=6)


def test_the_best_alpha_is_no_worse_than_a_fixed_one() -> None:
    constants = norm()
    found: list[float] = []
    for alpha in (None, 0.0, 0.5, 1.0):
        one = SmoothOutliers(seen(NORM, constants), alpha)
        one(parse(NORM, constants))
        found.append(one.gains_db["n"])
    assert found[0] >= max(found[1:])


def test_healthy_channels_stay() -> None:
    constants = norm(1)
    ran = run_pass(SmoothOutliers(seen(NORM, constants)), NORM, constants)
    assert not ran.modified


def test_values_that_were_not_seen_stay() -> None:
    assert not run_pass(SmoothOutliers({}), NORM, norm()).modified


def test_channel_that_is_always_zero() -> None:
    constants = norm()
    constants["scale"][5] = constants["bias"][5] = 0
    constants["wq"][6] = constants["wk"][6] = 0
    ran = run_pass(SmoothOutliers(seen(NORM, constants)), NORM, constants)
    assert ran.modified
    assert ran.error < 1e-4


BY = np.where(np.arange(16) % 7 == 3, 60, 1)


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        (
            """
            g (float[N,16] x) => (float[N,4] z) {
              n = RMSNormalization <axis = -1> (x, c)
              z = Gemm <transB = 1> (n, w)
            }
            """,
            {"c": BY.astype("f"), "w": (RNG.normal(0, 0.25, (4, 16)) / BY).astype("f")},
        ),
        (
            """
            g (float[N,16] x) => (float[N,4] z) {
              e = Tanh(x)
              m = Mul(c, e)
              n = Add(m, t)
              z = MatMul(n, w)
            }
            """,
            {
                "c": BY.astype("f"),
                "t": np.array(0.25, "f"),
                "w": (RNG.normal(0, 0.25, (16, 4)) / BY[:, None]).astype("f"),
            },
        ),
        (
            """
            g (float[N,16,4,4] x) => (float[N,4,4,4] z) {
              e = Tanh(x)
              n = Mul(e, c)
              z = Conv(n, w)
            }
            """,
            {
                "c": BY.reshape(16, 1, 1).astype("f"),
                "w": (RNG.normal(0, 0.25, (4, 16, 1, 1)) / BY[:, None, None]).astype("f"),
            },
        ),
        (
            """
            g (float[N,8] x) => (float[N,4] z) {
              h = MatMul(x, v)
              n = Relu(h)
              z = MatMul(n, w)
            }
            """,
            {
                "v": (RNG.normal(0, 0.3, (8, 16)) * BY).astype("f"),
                "w": (RNG.normal(0, 0.25, (16, 4)) / BY[:, None]).astype("f"),
            },
        ),
        (
            """
            g (float[N,3,16] x) => (float[N,4] z) {
              m = LayerNormalization <axis = -1> (x, c)
              n = Gather <axis = 1> (m, first)
              z = MatMul(n, w)
            }
            """,
            {
                "c": BY.astype("f"),
                "first": np.array(0),
                "w": (RNG.normal(0, 0.25, (16, 4)) / BY[:, None]).astype("f"),
            },
        ),
    ],
    ids=["RMSNormalization", "affine", "affine before Conv", "layer", "class token"],
)
def test_what_takes_the_factor(text: str, constants: dict[str, Floats]) -> None:
    absmax = seen(text, constants)
    ran = run_pass(SmoothOutliers(absmax), text, constants)
    assert ran.modified
    assert ran.error < 1e-3
    spread = {name: array.max() / np.median(array) for name, array in absmax.items()}
    assert set(spread) == {"n"}
    assert spread["n"] > 20
    after = ran.model.graph.initializers["w"].const_value
    assert after is not None
    held = np.abs(after.numpy())
    inputs = held.max(axis=tuple(axis for axis, size in enumerate(held.shape) if size != 16))
    assert inputs.max() / inputs.min() < 15, "the weights of the outliers are of the others' size now"


@pytest.mark.parametrize(
    "body",
    [
        "n = LayerNormalization <axis = -1> (x, c) r = Add(n, x) z = MatMul(n, w) y = MatMul(r, w2)",
        "n = LayerNormalization <axis = -1> (x, c) z = MatMul(n, w) y = Softmax(n)",
        "n = LayerNormalization <axis = -1> (x, d) z = MatMul(n, w) y = Relu(z)",
        "m = LayerNormalization <axis = -1> (x, c) n = Gelu(m) z = MatMul(n, w) y = Relu(z)",
    ],
    ids=["residual of BERT", "Softmax", "scale is an input", "not homogeneous"],
)
def test_kept(body: str) -> None:
    text = f"g (float[N,16] x, float[16] d) => (float[N,4] z, float[N,K] y) {{ {body} }}"
    constants = {"c": BY.astype("f"), "w": RNG.normal(0, 0.25, (16, 4)).astype("f")}
    if "w2" in body:
        constants["w2"] = RNG.normal(0, 0.25, (16, 4)).astype("f")
    if "(x, d)" in body:
        del constants["c"]
    assert smoothable(parse(text, constants)) == {}
