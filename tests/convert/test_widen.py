"""Widening against the model as it was, and against the arithmetic of numpy in float32.

The model as it was is run by the reference evaluator of ONNX, which rounds to float16 after each node: ONNX Runtime
computes what it has no float16 kernel for in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest

from retarget.compare import snr_db
from retarget.convert.normal_form import normal_form
from retarget.convert.onnx import export, load
from retarget.convert.onnx.widen import HALF, half_type, unknown_domains, widen
from retarget.graph import all_nodes, initializers
from retarget.session import Session
from retarget.source import Source
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs

HEADER = '<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1, "acme": 1]>\n'
RNG = np.random.default_rng(5)
X = RNG.normal(size=(3, 8)).astype(np.float16)
W = (RNG.normal(size=(8, 4)) / 3).astype(np.float16)

# 14336 are the bits of 0.5: so the parser reads float16.
NET = """net (float16[N, 8] x) => (float16[N, 4] y, float[N, 4] z, int64[N] best) <float16[8, 4] w> {
  h = MatMul(x, w)
  half = Constant <value = float16 {14336}> ()
  scaled = Mul(h, half)
  y = Tanh(scaled)
  wide = Cast <to = 1> (scaled)
  z = Sigmoid(wide)
  best = ArgMax <axis = 1, keepdims = 0> (y)
}"""


def parse(text: str, **weights: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Model:
    proto = onnx.parser.parse_model(HEADER + text)
    for name, value in weights.items():
        proto.graph.initializer.append(ir.to_proto(ir.tensor(value, name=name)))
    return normal_form(ir.from_proto(proto), "the model")


def as_it_was(model: ir.Model, feeds: Feeds) -> Outputs:
    with np.errstate(over="ignore"):
        values = onnx.reference.ReferenceEvaluator(ir.to_proto(model)).run(None, dict(feeds))
    return {value.name or "": array for value, array in zip(model.graph.outputs, values, strict=True)}


def types_within(model: ir.Model) -> set[ir.DataType | None]:
    """Types of all values but those at the border."""
    border = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    found = {value.dtype for node in all_nodes(model) for value in node.outputs if value.name not in border}
    return found | {value.const_value.dtype for value in initializers(model) if value.const_value is not None}


def test_within_is_float32_and_the_border_stays() -> None:
    model = parse(NET, w=W)
    before = as_it_was(model, {"x": X})
    assert half_type(model) == ir.DataType.FLOAT16
    widen(model)
    assert half_type(model) is None
    assert not types_within(model) & HALF
    assert [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)] == [
        ("x", ir.DataType.FLOAT16),
        ("y", ir.DataType.FLOAT16),
        ("z", ir.DataType.FLOAT),
        ("best", ir.DataType.INT64),
    ]
    with Session(model) as session:
        after = session.run({"x": X})
    assert [array.dtype for array in after.values()] == [array.dtype for array in before.values()]
    for name in ("y", "z"):
        assert snr_db(before[name], after[name]) > 50
    exact = X.astype(np.float32) @ W.astype(np.float32) * np.float32(0.5)
    expected = 1 / (1 + np.exp(-exact))
    assert snr_db(expected, after["z"]) > 120
    assert snr_db(expected, before["z"]) < 90  # the source did round to float16


def test_what_float16_lost_is_not_lost_any_more() -> None:
    text = """big (float16[N, 8] x) => (float16[N, 8] y) <float16 up> {
      high = Mul(x, up)
      higher = Add(high, high)
      y = Div(higher, up)
    }"""
    model = parse(text, up=np.array(60000, np.float16))
    feeds = {"x": np.full((1, 8), 0.875, np.float16)}
    assert np.isinf(as_it_was(model, feeds)["y"]).all()
    widen(model)
    with Session(model) as session:
        np.testing.assert_array_equal(session.run(feeds)["y"], np.full((1, 8), 1.75, np.float16))


def test_bodies_of_conditions_are_widened() -> None:
    text = """choice (float16[N, 8] x, bool which) => (float16[N, 8] y) <float16[8] w> {
      y = If(which) <
        then_branch = then_graph () => (float16[N, 8] t) { t = Mul(x, w) },
        else_branch = else_graph () => (float16[N, 8] e) { c = Cast <to = 10> (w)  e = Add(x, c) }
      >
    }"""
    w = RNG.normal(size=8).astype(np.float16)
    model = parse(text, w=w)
    widen(model)
    assert not types_within(model) & HALF
    with Session(model) as session:
        for which, expected in ((True, X * w), (False, X + w)):
            found = session.run({"x": X, "which": np.array(which)})["y"]
            np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=2e-3)


def test_bfloat16_is_widened_though_onnx_runtime_cannot_run_it() -> None:
    text = "net (bfloat16[N, 8] x) => (bfloat16[N, 4] y) <bfloat16[8, 4] w> { y = MatMul(x, w) }"
    weight = W.astype(ml_dtypes.bfloat16)
    model = parse(text, w=weight)
    widen(model)
    x = X.astype(ml_dtypes.bfloat16)
    with Session(model) as session:
        found = session.run({"x": x})["y"]
    exact = x.astype(np.float32) @ weight.astype(np.float32)
    np.testing.assert_array_equal(found.astype(np.float32), exact.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize(
    ("text", "half"),
    [
        ("m (float16[N] x) => (float16[N] y) { y = Relu(x) }", "FLOAT16"),
        ("m (float[N] x) => (float[N] y) { h = Cast <to = 10> (x) r = Exp(h) y = Cast <to = 1> (r) }", "FLOAT16"),
        ("m (float16[N] x) => (float[N] y) { f = Cast <to = 1> (x) y = Relu(f) }", None),
        ("m (float[N] x) => (float16[N] y) { r = Relu(x) y = Cast <to = 10> (r) }", None),
        ("m (float[N] x) => (float[N] y) { y = Relu(x) }", None),
    ],
)
def test_half_precision_at_the_border_alone_is_no_half_precision(text: str, half: str | None) -> None:
    found = half_type(parse(text))
    assert (None if found is None else found.name) == half


def test_a_model_with_operators_that_nobody_knows_stays_as_it_is(tmp_path: Path) -> None:
    text = "m (float16[N, 4] x) => (float16[N, 4] y) { h = acme.Twist(x) y = Relu(h) }"
    path = tmp_path / "net.onnx"
    onnx.save(onnx.parser.parse_model(HEADER + text), path)
    assert unknown_domains(ir.load(path)) == ["acme"]
    source = Source(path, (TensorSpec.parse("x=float16[N,4]"),), {})
    exported = export.export(source, None, tmp_path)
    assert exported.narrow is None
    assert half_type(load.load(tmp_path, source, exported)) == ir.DataType.FLOAT16


def test_a_large_weight_is_not_held_twice(tmp_path: Path) -> None:
    weight = RNG.normal(size=(512, 512)).astype(np.float16)
    model = parse("m (float16[N, 512] x) => (float16[N, 512] y) <float16[512, 512] w> { y = MatMul(x, w) }", w=weight)
    widen(model)
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.LazyTensor)
    assert tensor.nbytes == 512 * 512 * 4
    ir.save(model, tmp_path / "wide.onnx", external_data="wide.data")
    saved = ir.load(tmp_path / "wide.onnx").graph.initializers["w"].const_value
    assert saved is not None
    np.testing.assert_array_equal(saved.numpy(), weight.astype(np.float32))
