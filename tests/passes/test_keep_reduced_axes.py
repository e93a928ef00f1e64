from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from pass_testing import run_pass

from retarget.compare import snr_db
from retarget.passes.keep_reduced_axes import KeepReducedAxes
from retarget.session import Session
from retarget.targets.openvino.runtime import core

ROUND = "q = QuantizeLinear(m, s, z) d = DequantizeLinear(q, s, z)"
SCALES = {"s": np.array(0.02, "f"), "z": np.array(128, "u1")}


def reduced(attributes: str, shape: str = "N,5,4", behind: str = ROUND) -> str:
    body = f"m = ReduceMean <{attributes}> (x, axes) {behind} y = ReduceSum <keepdims = 0> (d)"
    return f"g (float[{shape}] x) => (float y) {{ {body} }}"


@pytest.mark.parametrize("axes", [[1], [-2], [0, 2]])
def test_axes_are_kept_then_squeezed(axes: list[int]) -> None:
    ran = run_pass(KeepReducedAxes(), reduced("keepdims = 0"), {"axes": np.array(axes), **SCALES})
    assert ran.ops == ["ReduceMean", "Squeeze", "QuantizeLinear", "DequantizeLinear", "ReduceSum"]
    assert ran.error == 0


@pytest.mark.parametrize(
    "text",
    [
        reduced("keepdims = 1"),
        reduced("keepdims = 0", behind="d = Relu(m)"),
        reduced("keepdims = 0", shape="N,3,5,4").replace("axes", "space"),
    ],
    ids=["kept already", "not rounded", "of an image"],
)
def test_others_stay(text: str) -> None:
    ran = run_pass(KeepReducedAxes(), text, {"axes": np.array([1]), "space": np.array([2, 3]), **SCALES})
    assert "Squeeze" not in ran.ops


MEAN = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[N,39,32] x) => (float[N,6] y) <float sx = {0.025}, uint8 zx = {118}, float sm = {0.0155}, uint8 zm = {133},
                                        int64[1] axes = {1}, float sv = {0.005}, int8 zv = {0}> {
  xq = QuantizeLinear(x, sx, zx)
  xd = DequantizeLinear(xq, sx, zx)
  wd = DequantizeLinear <axis = 1> (w, sw, zw)
  h = MatMul(xd, wd)
  m = ReduceMean <keepdims = 0> (h, axes)
  mq = QuantizeLinear(m, sm, zm)
  md = DequantizeLinear(mq, sm, zm)
  vd = DequantizeLinear(v, sv, zv)
  y = MatMul(md, vd)
}
"""


def test_openvino_then_rounds_a_mean_over_time_right(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(MEAN)
    arrays = {
        "w": rng.integers(-127, 128, (32, 32)).astype("i1"),
        "sw": np.exp(rng.uniform(-7, -5, 32)).astype("f"),
        "zw": np.zeros(32, "i1"),
        "v": rng.integers(-127, 128, (32, 6)).astype("i1"),
    }
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    feeds = {"x": (rng.normal(size=(4, 39, 32)) + rng.normal(size=32)).astype("f")}
    with Session(model) as session:
        expected = session.run(feeds)["y"]
    lowered = KeepReducedAxes()(model)
    assert lowered.modified
    ir.save(lowered.model, tmp_path / "mean.onnx")
    compiled = core().compile_model(str(tmp_path / "mean.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (found,) = compiled(feeds).values()
    assert snr_db(expected, found) > 40
