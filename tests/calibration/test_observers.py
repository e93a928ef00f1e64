"""The oracles are numpy over all values at once, and ONNX Runtime's own values of each tensor."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx_ir.passes.common import ShapeInferencePass

from retarget.calibration import observers
from retarget.calibration.observers import Observer, observable, observe
from retarget.calibration.ranges import Ranges, TensorRange, bin_values, summed
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
    opened: list[object] = []

    class Counted(Session):
        def __init__(self, *args: object, **options: object) -> None:
            opened.append(options["extra_outputs"])
            super().__init__(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(observers, "Session", Counted)
    monkeypatch.setattr(observers, "GROUP_BYTES", 40)
    grouped = observe(model, batches(), threads=1)
    assert opened == [["x", "row"], ["sum", "y"]]
    assert list(grouped) == list(whole)
    assert all(same(grouped[name], whole[name]) for name in whole)


def test_with_little_memory_rows_and_values_are_computed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ShapeInferencePass()(ir.from_onnx_text(MODEL)).model
    whole = observe(model, batches(), threads=1)
    ran: list[tuple[int, object]] = []
    run = Session.run

    def counted(self: Session, feeds: Feeds, outputs: list[str]) -> object:
        ran.append((len(feeds["x"]), outputs))
        return run(self, feeds, outputs)

    monkeypatch.setattr(Session, "run", counted)
    pieces = observe(model, batches(), threads=1, memory_bytes=1)
    assert ran == [(1, [name]) for _ in range(6) for name in ("x", "row", "sum", "y")]
    assert (pieces.samples, pieces.batches) == (whole.samples, whole.batches)
    assert all(same(pieces[name], whole[name]) for name in whole)
    ran.clear()
    monkeypatch.setattr(observers, "PIECE_BYTES", 2 * 4 * 16)
    observe(model, batches(), threads=1, memory_bytes=64 << 30)
    assert [rows for rows, _ in ran] == [2, 2, 1, 1]


def test_a_choice_of_values_and_no_samples() -> None:
    model = ir.from_onnx_text(MODEL)
    assert list(observe(model, batches(), values=["sum"])) == ["sum"]
    with pytest.raises(RetargetError, match="no samples"):
        observe(model, [])


FOLLOWING = """<ir_version: 10, opset_import: ["": 23]>
net (float[N, 4, 5] x, float high) => (float[N, 4, 5] y, float[N, 20] z, float[N, 4, 5] w) {
    low = Constant <value = float {-0.3}> ()
    six = Constant <value = float {0.7}> ()
    shape = Constant <value = int64[2] {0, -1}> ()
    sum = Add(x, x)
    clip = Clip(sum, low, six)
    turned = Transpose <perm = [0, 2, 1]> (clip)
    relu = Relu(turned)
    y = Transpose <perm = [0, 2, 1]> (relu)
    flat = Reshape(sum, shape)
    z = Relu(flat)
    w = Clip(y, low, high)
}"""


def many(count: int, size: int = 3) -> list[Feeds]:
    rng = np.random.default_rng(3)
    feeds: list[Feeds] = []
    for _ in range(count):
        x = rng.standard_normal((size, 4, 5), dtype=np.float32)
        x[0, 0, :3] = [0.15, 0.35, -0.15]
        feeds.append({"x": x, "high": np.array(0.4, np.float32)})
    return feeds


def test_statistics_that_follow_are_those_of_the_values_themselves() -> None:
    model = ShapeInferencePass()(ir.from_onnx_text(FOLLOWING)).model
    ranges = observe(model, many(4), threads=1)
    assert list(ranges) == ["x", "high", "sum", "clip", "turned", "relu", "y", "flat", "z", "w"]
    with Session(model, extra_outputs=list(ranges)) as session:
        values = [session.run(feeds) for feeds in many(4)]
    for name, found in ranges.items():
        assert same(found, seen(*(value[name] for value in values))), name


@pytest.mark.parametrize(
    ("values", "computed"),
    [
        (["y", "z"], ["y", "z"]),
        (["flat", "z", "y"], ["flat", "y"]),
        (["y", "relu", "sum"], ["sum"]),
        (["w", "y"], ["w", "y"]),
    ],
)
def test_what_follows_is_not_computed(values: list[str], computed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = ShapeInferencePass()(ir.from_onnx_text(FOLLOWING)).model
    whole = observe(model, many(2), threads=1)
    opened: list[object] = []

    class Counted(Session):
        def __init__(self, *args: object, **options: object) -> None:
            opened.append(options["extra_outputs"])
            super().__init__(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(observers, "Session", Counted)
    chosen = observe(model, many(2), values=values, threads=1)
    assert opened == [computed]
    assert list(chosen) == values
    assert all(same(chosen[name], whole[name]) for name in values)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)), st.floats(width=32), st.floats(width=32))
def test_clipping_is_exact(values: list[float], low: float, high: float) -> None:
    if np.isnan(low) or np.isnan(high):
        return
    array = np.array(values, np.float32)
    clipped = seen(array).clipped(low, high)
    expected = seen(np.minimum(np.maximum(array, np.float32(low)), np.float32(high)))
    if expected.inf_count:
        return
    assert same(_without_signs_of_zero(clipped), _without_signs_of_zero(expected))


def _without_signs_of_zero(tensor: TensorRange) -> TensorRange:
    bins, counts = summed(np.where(tensor.bins == 0x8000, np.uint16(0), tensor.bins), tensor.counts)
    return TensorRange(tensor.min, tensor.max, tensor.nan_count, tensor.inf_count, bins, counts)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_shards_merge_to_what_one_run_sees(shard_of: list[int]) -> None:
    model = ShapeInferencePass()(ir.from_onnx_text(FOLLOWING)).model
    feeds = many(6)
    shards = [[one for one, shard in zip(feeds, shard_of, strict=True) if shard == index] for index in range(4)]
    merged: Ranges | None = None
    for shard in shards:
        if shard:
            part = observe(model, shard, threads=1)
            merged = part if merged is None else merged.merged(part)
    assert merged is not None
    whole = observe(model, feeds, threads=1)
    assert (merged.samples, merged.batches) == (whole.samples, whole.batches)
    assert list(merged) == list(whole)
    assert all(same(merged[name], whole[name]) for name in whole)


# ---- checkpoints


class Stopped(Exception):
    pass


def stopping(feeds: list[Feeds], after: int) -> Iterator[Feeds]:
    for index, one in enumerate(feeds):
        if index == after:
            raise Stopped
        yield one


def test_a_stopped_run_goes_on_and_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "CHECKPOINT_S", 0.0)
    model = ir.from_onnx_text(MODEL)
    rng = np.random.default_rng(5)
    feeds: list[Feeds] = [
        {"x": rng.standard_normal((2, 4), dtype=np.float32), "ids": rng.integers(0, 3, 2)} for _ in range(6)
    ]
    checkpoint = tmp_path / "counted.npz"
    with pytest.raises(Stopped):
        observe(model, stopping(feeds, 4), threads=1, checkpoint=checkpoint)
    assert Ranges.load(checkpoint).batches == 4
    ran: list[int] = []
    run = Session.run

    def counted(self: Session, *arguments: object) -> object:
        ran.append(1)
        return run(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "run", counted)
    resumed = observe(model, feeds, threads=1, checkpoint=checkpoint)
    assert len(ran) == 2
    whole = observe(model, feeds, threads=1)
    assert (resumed.samples, resumed.batches) == (whole.samples, whole.batches) == (12, 6)
    assert list(resumed) == list(whole)
    assert all(same(resumed[name], whole[name]) for name in whole)
    # All of it was counted and only the end is missing.
    assert observe(model, feeds, threads=1, checkpoint=checkpoint).samples == 12


def test_a_checkpoint_of_other_batches_or_a_broken_one_is_not_taken(tmp_path: Path) -> None:
    model = ir.from_onnx_text(MODEL)
    checkpoint = tmp_path / "counted.npz"
    feeds: Feeds = {"x": np.ones((2, 4), np.float32), "ids": np.zeros(2, np.int64)}
    with checkpoint.open("wb") as file:
        observe(model, [{"x": np.ones((3, 4), np.float32), "ids": np.zeros(3, np.int64)}], threads=1).write(file)
    assert observe(model, [feeds], threads=1, checkpoint=checkpoint).samples == 2
    checkpoint.write_bytes(b"PK\x03\x04 cut short")
    assert observe(model, [feeds], threads=1, checkpoint=checkpoint).samples == 2


def test_what_arises_inside_the_model_is_recorded() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 23]>
        net (float[N] x) => (float[N] y) { log = Log(x) y = Exp(x) }"""
    )
    ranges = observe(model, [{"x": np.array([-1, 0, 1, 100], np.float32)}], threads=1)
    assert (ranges["log"].nan_count, ranges["log"].inf_count, ranges["log"].elements) == (1, 1, 2)
    assert (ranges["y"].nan_count, ranges["y"].inf_count, ranges["y"].elements) == (0, 1, 3)


def test_memory_does_not_grow_with_the_data() -> None:
    model = ir.from_onnx_text(MODEL)

    def feeds(count: int) -> Iterator[Feeds]:
        for _ in range(count):
            yield {"x": np.ones((4000, 4), np.float32), "ids": np.zeros(4000, np.int64)}

    peaks = []
    for count in (2, 2, 40):
        tracemalloc.start()
        observe(model, feeds(count), threads=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] <= 1.05 * peaks[1]
