"""The oracle is the textbook formula on whole arrays, in longdouble."""

from __future__ import annotations

import math
import tracemalloc
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retarget.compare import check_batch, compare_outputs, snr_db
from retarget.errors import RetargetError
from retarget.facts import Comparison
from retarget.tolerance import DEFAULT_TOLERANCE, Tolerance

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds, Outputs


ANYTHING = Tolerance(snr_db=-np.inf)


def compare(reference: Array, actual: Array, tolerance: Tolerance | None = None) -> Comparison:
    (result,) = compare_outputs({"case": {"y": reference}}, {"case": {"y": actual}}, tolerance or ANYTHING)
    return result


def drawn(*shape: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("size", [1, 7, (1 << 18) + 3])
@pytest.mark.parametrize("noise", [1e-6, 1e-2, 3.0])
def test_metrics_are_the_textbook_ones(size: int, noise: float) -> None:
    reference = drawn(size)
    actual = (reference + noise * drawn(size, seed=1)).astype(np.float32)
    r, a = reference.astype(np.longdouble), actual.astype(np.longdouble)
    result = compare(reference, actual)
    assert result.max_abs == pytest.approx(float(np.abs(r - a).max()))
    assert result.mean_abs == pytest.approx(float(np.abs(r - a).mean()))
    assert result.snr_db == pytest.approx(float(10 * np.log10((r * r).sum() / ((r - a) ** 2).sum())))
    assert result.cosine == pytest.approx(float((r * a).sum() / np.sqrt((r * r).sum() * (a * a).sum())))
    assert snr_db(reference, actual) == result.snr_db
    assert not result.exact


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5))
def test_cases_add_up_as_one_array_would(seed: int, one: int, two: int) -> None:
    reference, actual = drawn(one + two, 4, seed=seed), drawn(one + two, 4, seed=seed + 1)
    (apart,) = compare_outputs(
        {"a": {"y": reference[:one]}, "b": {"y": reference[one:]}},
        {"a": {"y": actual[:one]}, "b": {"y": actual[one:]}},
        ANYTHING,
    )
    whole = compare(reference, actual)
    assert apart.samples == whole.samples == one + two
    assert apart.max_abs == whole.max_abs
    assert apart.top1_agreement == whole.top1_agreement
    assert apart.snr_db == pytest.approx(whole.snr_db)
    assert apart.cosine == pytest.approx(whole.cosine)


@pytest.mark.parametrize(
    ("noise", "told"),
    [((1e-2, 1e-2, 0.3), True), ((0.1, 0.1, 0.2), False), ((0.0, 0.0, 0.1), True), ((1e-6, 1e-6, 1e-4), False)],
    ids=["one is far worse", "alike", "the rest is exact", "all are good"],
)
def test_the_one_case_that_the_error_is_in_is_told(noise: tuple[float, ...], *, told: bool) -> None:
    names = ("data0", "data1", "max")
    reference: dict[str, Outputs] = {}
    actual: dict[str, Outputs] = {}
    for place, (name, each) in enumerate(zip(names, noise, strict=True)):
        right = drawn(4, 50, seed=place)
        reference[name] = {"y": right}
        actual[name] = {"y": (right + each * drawn(4, 50, seed=9)).astype(np.float32)}
    (result,) = compare_outputs(reference, actual, ANYTHING)
    assert result.passed
    rest = [np.concatenate([each[name]["y"] for name in names[:2]]) for each in (reference, actual)]
    said = f"case 'max' has most of the error: {snr_db(*rest):.1f} dB without it"
    assert result.reason == (said if told else None)


def test_no_difference_is_exact_and_capped() -> None:
    result = compare(drawn(3, 4), drawn(3, 4))
    assert (result.snr_db, result.exact, result.cosine, result.max_abs) == (300.0, True, 1.0, 0.0)


def test_a_zero_reference() -> None:
    zeros = np.zeros((2, 2), np.float32)
    same = compare(zeros, zeros, DEFAULT_TOLERANCE["fp32"])
    assert same.exact
    assert same.passed
    assert same.reason is not None
    assert "nearly constant" in same.reason
    other = compare(zeros, np.full((2, 2), 1e-9, np.float32), DEFAULT_TOLERANCE["int8"])
    assert (other.snr_db, other.cosine, other.passed) == (-300.0, 0.0, False)


@pytest.mark.parametrize("value", [0.5, 1e6])
def test_a_constant_reference_is_said_to_prove_little(value: float) -> None:
    reference = np.full(1000, value, np.float32)
    result = compare(reference, reference + np.float32(value * 1e-5))
    assert result.reason is not None
    assert "nearly constant" in result.reason
    assert compare(drawn(1000), drawn(1000)).reason is None


def test_a_small_spread_on_a_large_mean_is_not_constant() -> None:
    reference = np.tile(np.array([1e4, 1e4 + 1], np.float64), 1 << 18)
    assert compare(reference, reference).reason is None


def test_nan_in_both_is_no_difference_but_is_counted() -> None:
    reference = np.array([1, np.nan, 3, -np.inf], np.float32)
    result = compare(reference, reference.copy(), Tolerance(snr_db=80))
    assert (result.passed, result.exact, result.nan_count, result.inf_count) == (True, True, 1, 1)
    assert result.reason == "1 NaN in both"


@pytest.mark.parametrize(
    ("reference", "actual", "words"),
    [
        ([1, 2], [1, np.nan], "1 NaN where the reference has none"),
        ([1, np.nan], [1, 2], "1 numbers where the reference is NaN"),
        ([1, np.inf], [1, 2], "1 infinities that only one side has"),
        ([1, 2], [1, np.inf], "1 infinities that only one side has"),
        ([1, np.inf], [1, -np.inf], "1 infinities that only one side has"),
        ([1, np.inf], [1, np.nan], "1 NaN where the reference has none"),
    ],
)
def test_what_is_not_finite_on_one_side_fails_without_any_bound(
    reference: list[float], actual: list[float], words: str
) -> None:
    left, right = np.array(reference, np.float32), np.array(actual, np.float32)
    result = compare(left, right)
    assert not result.passed
    assert not result.exact
    assert words in (result.reason or "")
    assert result.snr_db == snr_db(left, right) == -300.0
    # JSON has no infinity: what the report stores must come back.
    assert msgspec.json.decode(msgspec.json.encode(result), type=Comparison) == result


def test_huge_values_stay_finite() -> None:
    result = compare(np.array([1e300, -1e300]), np.array([-1e300, 1e300]))
    assert all(math.isfinite(value) for value in (result.max_abs, result.mean_abs, result.snr_db, result.cosine))
    assert not result.exact


def test_integers_must_be_equal() -> None:
    reference = np.array([[1, 2], [3, 2**62]])
    assert compare(reference, reference.copy()).passed
    # These two are the same float64.
    off = compare(reference, reference + np.array([[0, 0], [0, 1]]))
    assert not off.passed
    assert off.top1_agreement == 0.75
    assert "75.0000% are equal" in (off.reason or "")
    assert compare(reference, off_by_one(reference), Tolerance(top1_agreement=0.7, snr_db=200)).passed
    assert not compare(reference, off_by_one(reference), Tolerance(top1_agreement=0.8)).passed


def off_by_one(values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Array:
    changed = values.copy()
    changed[0, 0] += 1
    return changed


def test_booleans_and_strings_must_be_equal() -> None:
    flags = np.array([True, False])
    assert compare(flags, flags.copy()).passed
    assert not compare(flags, ~flags).passed
    words = np.array(["a", "b"], object)
    assert compare(words, words.copy()).exact
    assert not compare(words, np.array(["a", "c"], object)).passed


def test_top1_is_the_last_axis_and_ties_count() -> None:
    reference = np.array([[0, 1, 1], [3, 0, 0], [0, 0, 1], [5, 1, 0]], np.float32)
    actual = np.array([[0, 1, 2], [3, 0, 0], [1, 0, 0], [5, 1, 0]], np.float32)
    assert compare(reference, actual).top1_agreement == 0.75
    assert compare(reference[:, 0], actual[:, 0]).top1_agreement is None
    assert compare(reference[:, :1], actual[:, :1]).top1_agreement is None
    failed = compare(reference, actual, Tolerance(top1_agreement=0.9))
    assert failed.reason == "top1_agreement 0.75 < 0.9"


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        (Tolerance(max_abs=0.1), "max_abs 0.5 > 0.1"),
        (Tolerance(mean_abs=0.1), "mean_abs 0.25 > 0.1"),
        (Tolerance(snr_db=40), "snr_db 13.01 < 40"),
        (Tolerance(cosine=0.9999), "cosine 0.9839 < 0.9999"),
    ],
)
def test_each_bound_is_held(bound: Tolerance, words: str) -> None:
    result = compare(np.array([1, 2], np.float32), np.array([1.5, 2], np.float32), bound)
    assert (result.passed, result.reason) == (False, words)


def test_another_shape_or_dtype_fails_with_the_reason() -> None:
    shape = compare(drawn(2, 3), drawn(3, 2))
    assert (shape.passed, shape.reason) == (False, "case 'case': shape [3, 2] instead of [2, 3]; no values to compare")
    dtype = compare(drawn(2), drawn(2).astype(np.float16))
    assert not dtype.passed
    assert "dtype float16 instead of float32" in (dtype.reason or "")


def test_what_was_not_run_fails() -> None:
    y = drawn(2, 3)
    (missing_case,) = compare_outputs({"a": {"y": y}, "b": {"y": y}}, {"a": {"y": y}}, ANYTHING)
    assert (missing_case.passed, missing_case.reason) == (False, "case 'b' was not run")
    _, missing = compare_outputs({"a": {"y": y, "z": y}}, {"a": {"y": y}}, ANYTHING)
    assert (missing.output, missing.passed) == ("z", False)
    with pytest.raises(RetargetError, match="no outputs to compare"):
        compare_outputs({}, {}, ANYTHING)
    with pytest.raises(ValueError, match="shapes differ"):
        snr_db(drawn(2), drawn(3))


def test_memory_does_not_grow_with_the_output() -> None:
    reference = drawn(4 << 20)
    actual = reference + np.float32(1e-3)
    tracemalloc.start()
    compare(reference, actual)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20 < reference.nbytes * 2


def test_the_batch_check_finds_a_model_that_mixes_rows() -> None:
    def honest(feeds: Feeds) -> Outputs:
        return {"y": np.asarray(feeds["x"], np.float32) * np.asarray(feeds["scale"], np.float32)}

    def mixing(feeds: Feeds) -> Outputs:
        x = np.asarray(feeds["x"], np.float32)
        return {"y": x - x.mean(axis=0, keepdims=True)}

    feeds: dict[str, Array] = {"x": drawn(4, 3), "scale": np.array([2.0], np.float32)}
    good = check_batch(honest, feeds, DEFAULT_TOLERANCE["fp32"], batched=["x"])
    assert good.passed
    assert good.words == "4 rows together and one by one: SNR at least 300.0 dB"
    bad = check_batch(mixing, {"x": feeds["x"]}, DEFAULT_TOLERANCE["fp32"])
    assert not bad.passed
    assert "y: snr_db" in bad.words
    with pytest.raises(RetargetError, match="at least 2 rows"):
        check_batch(honest, {"x": drawn(1, 3), "scale": np.array([2.0], np.float32)}, ANYTHING, batched=["x"])


def test_a_failed_batch_row_shape_is_reported() -> None:
    def fixed(feeds: Feeds) -> Outputs:
        return {"y": np.zeros(3, np.float32)}

    assert not check_batch(fixed, {"x": drawn(3, 3)}, ANYTHING).passed
