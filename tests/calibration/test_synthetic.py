from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from retarget.calibration.cases import parity_cases
from retarget.calibration.synthetic import SyntheticSamples
from retarget.errors import RetargetError
from retarget.spec import DimRange, TensorSpec

BERT = """
<ir_version: 10, opset_import: ["" : 23]>
g (int64[N,T] tokens, float[N,3] extra, float[] scale) => (float[N,T,2] out)
<float[5,2] table = {0,1,2,3,4,5,6,7,8,9}>
{
  rows = Gather(table, tokens)
  two = Constant<value_ints = [2]>()
  one = Constant<value_ints = [1]>()
  zero = Constant<value_ints = [0]>()
  some = Slice(extra, zero, one, one)
  wide = Unsqueeze(some, two)
  sum = Add(rows, wide)
  out = Mul(sum, scale)
}
"""
SPECS = [TensorSpec.parse(text) for text in ("tokens=int64[N,T]", "extra=float32[N,3]", "scale=float32[]")]
SHAPES = {"N": DimRange(1, 4, 8), "T": DimRange(1, 6, 9)}


def samples(count: int = 10) -> SyntheticSamples:
    return SyntheticSamples(ir.from_onnx_text(BERT), SPECS, SHAPES, count)


def test_as_many_as_were_asked_for_at_opt() -> None:
    batches = list(samples().batches(4))
    assert [batch["tokens"].shape for batch in batches] == [(4, 6), (4, 6), (2, 6)]
    assert [batch["extra"].shape for batch in batches] == [(4, 3), (4, 3), (2, 3)]
    assert all(batch["scale"].shape == () for batch in batches)
    assert len(list(samples().batches(None))) == 3
    assert samples().count == 10


def test_integers_lie_within_the_table_and_floats_are_normal() -> None:
    batches = list(samples(400).batches(4))
    tokens = np.concatenate([batch["tokens"] for batch in batches])
    assert set(tokens.ravel().tolist()) == set(range(5))
    extra = np.concatenate([batch["extra"] for batch in batches]).astype(np.float64)
    assert extra.mean() == pytest.approx(0, abs=0.1)
    assert extra.std() == pytest.approx(1, abs=0.1)
    assert len(np.unique(extra)) > 1000  # no batch is another one again


def test_the_same_each_time_and_not_those_of_parity() -> None:
    first, again = list(samples().batches(4)), list(samples().batches(4))
    for one, two in zip(first, again, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    cases = parity_cases(ir.from_onnx_text(BERT), SPECS, SHAPES, None, "generated")
    opt = next(feeds for case, feeds in cases if case.name == "opt")
    assert not np.array_equal(opt["extra"], first[0]["extra"])


def test_without_a_batch_each_is_a_whole_input() -> None:
    specs = [TensorSpec.parse("a=float32[2,T]")]
    text = '<ir_version: 10, opset_import: ["" : 23]> g (float[2,T] a) => (float[2,T] out) { out = Relu(a) }'
    drawn = SyntheticSamples(ir.from_onnx_text(text), specs, {"T": DimRange(1, 3, 9)}, 5)
    assert [batch["a"].shape for batch in drawn.batches(4)] == [(2, 3)] * 5


def test_none_are_refused() -> None:
    with pytest.raises(RetargetError, match="0 samples were asked for"):
        samples(0)
