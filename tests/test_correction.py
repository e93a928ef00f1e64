from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from retarget import graph
from retarget.compare import snr_db
from retarget.correction import WORTH_DB, corrected
from retarget.session import Session

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds

HEADER = '<ir_version: 10, opset_import: ["" : 23]>'
TEXT = """
g (float[N,3,6,6] x) => (float[N,5,2,2] z) {
  a = Conv(x, w1, b1)
  r = Relu(a)
  z = Conv(r, w2)
}
"""


def rows(seed: int, mean: float = 1.0) -> dict[str, Array]:
    """Inputs with a mean: without one, rounded weights make no mean error."""
    return {"x": np.random.default_rng(seed).normal(mean, 0.5, (32, 3, 6, 6)).astype("f")}


def rounded(model: ir.Model) -> ir.Model:
    """A copy with weights of 4 bits: an int8 whose errors are large enough to tell."""
    copy = graph.clone(model)
    for name in ("w1", "w2"):
        value = copy.graph.initializers[name]
        assert value.const_value is not None
        array = value.const_value.numpy()
        step = np.abs(array).max() / 7
        value.const_value = ir.Tensor((np.round(array / step) * step).astype("f"), name=name)
    return copy


@pytest.fixture
def model() -> ir.Model:
    proto = onnx.parser.parse_model(HEADER + TEXT)
    rng = np.random.default_rng(0)
    for name, shape in (("w1", (8, 3, 3, 3)), ("b1", (8,)), ("w2", (5, 8, 3, 3))):
        array = rng.normal(0, 0.2, shape).astype("f")
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def output(model: ir.Model, feeds: Feeds) -> Array:
    with Session(model) as session:
        return session.run(feeds)["z"]


def judge(model: ir.Model, held_out: Feeds) -> Callable[[ir.Model], float]:
    expected = output(model, held_out)
    return lambda other: snr_db(expected, output(other, held_out))


def feeds(mean: float = 1.0) -> Iterator[Feeds]:
    return iter([rows(1, mean), rows(2, mean)])


def test_gains_on_data_that_it_has_not_seen(model: ir.Model) -> None:
    measure = judge(model, rows(9))
    before = measure(rounded(model))
    result, gain = corrected(model, rounded, feeds, measure)
    assert gain is not None
    assert gain > 3
    assert measure(rounded(result)) == pytest.approx(before + gain)


def test_the_float_model_stays(model: ir.Model) -> None:
    before = output(model, rows(9))
    corrected(model, rounded, feeds, judge(model, rows(9)))
    np.testing.assert_array_equal(output(model, rows(9)), before)


def test_dropped_where_it_hurts(model: ir.Model) -> None:
    """Means of data that is not like what the model meets."""
    measure = judge(model, rows(9, -1.0))
    result, gain = corrected(model, rounded, lambda: feeds(3.0), measure)
    assert gain is None
    assert result is model


def test_a_gain_that_may_be_chance_is_none(model: ir.Model) -> None:
    scores = iter([20.0, 20.0 + WORTH_DB / 2])
    assert corrected(model, rounded, feeds, lambda _: next(scores))[1] is None


def test_rounds_go_on_while_they_help(model: ir.Model) -> None:
    scores = iter([20.0, 22.0, 23.0, 22.5])
    assert corrected(model, rounded, feeds, lambda _: next(scores))[1] == pytest.approx(3.0)


def test_nothing_to_correct() -> None:
    text = HEADER + "g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }"
    assert corrected(ir.from_proto(onnx.parser.parse_model(text)), graph.clone, feeds, lambda _: 300.0)[1] is None
