"""The oracles are numpy over all values at once, and ONNX Runtime's own values of each tensor."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx_ir.passes.common import ShapeInferencePass

from retarget.calibration import observers
from retarget.calibration.observers import Observer, observable, observe
from retarget.calibration.ranges import TensorRange, bin_values
from retarget.errors import RetargetError
from retarget.session import Session

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds

arrays = npst.arrays(
    np.float32, npst.array_shapes(max_dims=2, max_side=20), elements=st.floats(width=32, allow_subnormal=True)
)


def seen(*parts: Array) -> TensorRange:
    observer = Observer()
    for part in parts:
        observer.add(part)
    return observer.result()


def same(one: TensorRange, two: TensorRange) -> bool:
    return (
        (one.min, one.max, one.nan_count, one.inf_count) == (two.min, two.max, two.nan_count, two.inf_count)
        and np.array_equal(one.bins, two.bins)
        and np.array_equal(one.counts, two.counts)
    )


@given(arrays)
def test_statistics_are_those_of_numpy(values: Array) -> None:
    flat = np.asarray(values, np.float32).reshape(-1)
    finite = flat[np.isfinite(flat)]
    result = seen(values)
    assert result.nan_count == np.isnan(flat).sum()
    assert result.inf_count == np.isinf(flat).sum()
    assert result.elements == finite.size
    assert (result.min, result.max) == ((finite.min(), finite.max()) if finite.size else (0.0, 0.0))
    bins, counts = np.unique(finite.view(np.uint32) >> 16, return_counts=True)
    np.testing.assert_array_equal(result.bins, bins)
    np.testing.assert_array_equal(result.counts, counts)


@given(st.lists(arrays, min_size=1, max_size=4), st.randoms())
def test_the_order_does_not_matter_and_merging_is_exact(parts: list[Array], random: object) -> None:
    whole = seen(*parts)
    assert same(seen(*reversed(parts)), whole)
    merged = Observer()
    for part in reversed(parts):
        one = Observer()
        one.add(part)
        merged.merge(one)
    assert same(merged.result(), whole)
    assert same(seen(np.concatenate([part.reshape(-1) for part in parts])), whole)


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_other_floats_are_counted_as_float32(dtype: str) -> None:
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    values = np.random.default_rng(0).standard_normal(1000).astype(kind)
    assert same(seen(values), seen(values.astype(np.float32)))


@pytest.mark.parametrize("q", [0.0, 0.1, 1, 25, 50, 99, 99.9, 100])
@pytest.mark.parametrize("draw", ["normal", "lognormal", "relu"])
def test_percentiles_are_right_to_a_bin(q: float, draw: str) -> None:
    rng = np.random.default_rng(1)
    values = {
        "normal": rng.standard_normal(20000),
        "lognormal": rng.lognormal(0, 3, 20000),
        "relu": np.maximum(rng.standard_normal(20000), 0),
    }[draw].astype(np.float32)
    expected = float(np.percentile(values, q, method="inverted_cdf"))
    assert seen(values).percentile(q) == pytest.approx(expected, rel=2**-7, abs=1e-30)


def test_magnitudes() -> None:
    result = seen(np.array([0, -3, 1e-20, 2], np.float32))
    assert result.absmax == 3
    assert result.absmin == pytest.approx(1e-20, rel=2**-7)
    assert result.absmin <= 1e-20
    assert seen(np.zeros(3, np.float32)).absmin == 0
    assert seen(np.array([np.inf], np.float32)).absmax == np.inf
    assert seen(np.array([np.nan, 1], np.float32)).absmax == np.inf
    assert seen(np.array([1e300])).absmax == np.inf


def test_the_middle_of_a_bin_lies_in_it() -> None:
    values = bin_values()
    bins = np.arange(1 << 16)
    finite = (bins & 0x7F80) != 0x7F80
    held = values.astype(np.float32).view(np.uint32) >> 16
    nonzero = finite & ((bins & 0x7FFF) != 0)
    np.testing.assert_array_equal(held[nonzero], bins[nonzero])


def test_memory_does_not_grow_with_the_samples() -> None:
    observer = Observer()
    rng = np.random.default_rng(0)
    observer.add(rng.standard_normal(1 << 16, dtype=np.float32))
    tracemalloc.start()
    for _ in range(20):
        observer.add(rng.standard_normal(1 << 16, dtype=np.float32))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert observer.result().elements == 21 << 16
    assert held < 64 << 10


MODEL = """<ir_version: 10, opset_import: ["": 23]>
net (float[N, 4] x, int64[N] ids) => (float[N, 4] y, int64[N] other) {
    table = Constant <value = float[3, 4] {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> ()
    row = Gather(table, ids)
    sum = Add(x, row)
    y = Exp(sum)
    other = Neg(ids)
}"""


def batches() -> Iterator[Feeds]:
    rng = np.random.default_rng(0)
    for size in (2, 3, 1):
        yield {"x": rng.standard_normal((size, 4), dtype=np.float32), "ids": rng.integers(0, 3, size)}


def test_every_float_tensor_of_a_model_is_observed() -> None:
    model = ir.from_onnx_text(MODEL)
    assert set(observable(model)) >= {"x", "row", "sum", "y"}
    ranges = observe(model, batches(), threads=1)
    assert list(ranges) == ["x", "row", "sum", "y"]
    assert ranges.samples == 6
    with Session(model, extra_outputs=["row", "sum"]) as session:
        values = [{**feeds, **session.run(feeds)} for feeds in batches()]
    for name, found in ranges.items():
        expected = seen(*(value[name] for value in values))
        assert found.elements == expected.elements
        assert found.min == pytest.approx(expected.min)
        assert found.max == pytest.approx(expected.max)


def test_many_tensors_are_observed_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ShapeInferencePass()(ir.from_onnx_text(MODEL)).model
    whole = observe(model, batches(), threads=1)
    monkeypatch.setattr(observers, "GROUP_BYTES", 100)
    opened: list[object] = []

    class Counted(Session):
        def __init__(self, *args: object, **options: object) -> None:
            opened.append(options["extra_outputs"])
            super().__init__(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(observers, "Session", Counted)
    grouped = observe(model, batches(), threads=1)
    assert opened == [["x", "row", "sum"], ["y"]]
    assert list(grouped) == list(whole)
    assert all(same(grouped[name], whole[name]) for name in whole)


def test_a_choice_of_values_and_no_samples() -> None:
    model = ir.from_onnx_text(MODEL)
    assert list(observe(model, batches(), values=["sum"])) == ["sum"]
    with pytest.raises(RetargetError, match="no samples"):
        observe(model, [])
