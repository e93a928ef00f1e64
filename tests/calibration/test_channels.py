from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from retarget.calibration.channels import channel_absmax, channel_means
from retarget.errors import RetargetError

TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[N,3,4] x) => (float[N,3,4] z) {
  y = Neg(x)
  z = Relu(y)
}
"""


def test_statistics_over_batches_of_different_sizes() -> None:
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(TEXT)))
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (11, 3, 4)).astype("f")
    batches = [{"x": part} for part in (x[:2], x[2:3], x[3:])]
    values = {"x": 1, "y": 2, "z": 1}
    y = -x.astype(float)
    z = np.maximum(y, 0)

    most = channel_absmax(model, values, iter(batches))
    np.testing.assert_allclose(most["x"], np.abs(x).max(axis=(0, 2)))
    np.testing.assert_allclose(most["y"], np.abs(y).max(axis=(0, 1)))
    np.testing.assert_allclose(most["z"], z.max(axis=(0, 2)))

    means = channel_means(model, values, iter(batches))
    np.testing.assert_allclose(means["x"], x.mean(axis=(0, 2)), rtol=1e-5)
    np.testing.assert_allclose(means["y"], y.mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(means["z"], z.mean(axis=(0, 2)), rtol=1e-5)


def test_no_samples() -> None:
    model = ir.from_proto(onnx.parser.parse_model(TEXT))
    with pytest.raises(RetargetError, match="no samples"):
        channel_means(model, {"y": 1}, [])


def test_int8_codes_that_onnx_runtime_cannot_optimize() -> None:
    """It would make them uint8 (1.31), and leaves the old type at the QuantizeLinear that it puts behind Reshapes."""
    text = """
    <ir_version: 10, opset_import: ["" : 23]>
    g (float[N,4,2,2] x) => (float[N,4,1] z, float[N,4,2,2] y)
    <float s = {0.1}, int8 zero = {3}, int64[3] shape = {0, 4, 4}, int64[1] last = {-1}> {
      a = Relu(x)
      q = QuantizeLinear(a, s, zero)
      d = DequantizeLinear(q, s, zero)
      r = Reshape(d, shape)
      z = ReduceMean(r, last)
      t = Transpose <perm = [0, 1, 3, 2]> (d)
      p = QuantizeLinear(t, s, zero)
      y = DequantizeLinear(p, s, zero)
    }
    """
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    x = np.random.default_rng(0).normal(0, 2, (5, 4, 2, 2)).astype("f")
    codes = np.clip(np.rint(np.maximum(x, 0) / np.float32(0.1)) + 3, -128, 127)
    means = channel_means(model, {"z": 1}, [{"x": x}])
    np.testing.assert_allclose(means["z"], ((codes - 3) * 0.1).mean((0, 2, 3)), rtol=1e-5)
