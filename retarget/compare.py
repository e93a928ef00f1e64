"""Outputs of two runners held against each other: metrics, tolerances, the batch check.

Values are compared in float64, a chunk at a time, so an output of any size costs a few megabytes. All numbers
of a ``Comparison`` are finite: what is not a number is counted, and reported in words.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from retarget.errors import RetargetError
from retarget.facts import Comparison
from retarget.tolerance import Tolerance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from retarget.protocols import Array, Feeds, Outputs

SNR_CAP = 300.0
"""Decibels that stand for no difference at all; the negative stands for a signal that is lost entirely."""

_CHUNK = 1 << 18
_CONSTANT = 1e-6
"""A reference whose standard deviation is a smaller share of its root mean square counts as constant."""

_LOW_DB = 60.0
"""Below it, it is told which case has most of the error."""
_APART_DB = 10.0
"""So much better the rest must be without that case."""

_Floats: TypeAlias = NDArray[np.float64]


def snr_db(reference: Array, actual: Array) -> float:
    """10·log10(Σ reference² / Σ (reference - actual)²) in decibels, within ±``SNR_CAP``.

    ``SNR_CAP`` when nothing differs, ``-SNR_CAP`` when a value is finite in one and not in the other.
    Raises ``ValueError`` when the shapes differ.
    """
    if reference.shape != actual.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {actual.shape}")
    sums = _Sums()
    sums.add(reference, actual)
    return sums.snr_db


def compare_outputs(
    reference: Mapping[str, Outputs], actual: Mapping[str, Outputs], tolerance: Tolerance
) -> tuple[Comparison, ...]:
    """Each output of ``reference`` over all cases, both given as case → output → array.

    A case or an output that ``actual`` lacks, another shape or dtype fail with a reason. Raises ``RetargetError``
    when there is nothing to compare: that must not look like a pass.
    """
    outputs = dict.fromkeys(name for case in reference.values() for name in case)
    if not outputs:
        raise RetargetError("there are no outputs to compare", "the reference holds no parity cases")
    return tuple(_compare(output, reference, actual, tolerance) for output in outputs)


def _compare(
    output: str, reference: Mapping[str, Outputs], actual: Mapping[str, Outputs], tolerance: Tolerance
) -> Comparison:
    sums = _Sums()
    problems: list[str] = []
    errors: dict[str, tuple[float, float]] = {}
    for case, expected in reference.items():
        if output not in expected:
            continue
        found = actual.get(case, {}).get(output)
        problem = _mismatch(expected[output], found)
        if problem is None:
            assert found is not None
            signal, noise = sums.signal, sums.noise
            sums.add(expected[output], found)
            errors[case] = sums.signal - signal, sums.noise - noise
        elif case not in actual:
            problems.append(f"case '{case}' was not run")
        else:
            problems.append(f"case '{case}': {problem}")
    comparison = sums.comparison(output)
    problems += sums.problems() + _broken(comparison, tolerance, discrete=sums.discrete)
    notes = problems + sums.notes()
    if not sums.discrete and comparison.snr_db < _LOW_DB:
        notes += _apart(errors, comparison.snr_db)
    return msgspec.structs.replace(comparison, passed=not problems, reason="; ".join(notes) or None)


def _apart(errors: Mapping[str, tuple[float, float]], snr_db: float) -> list[str]:
    """The one case of ``errors``, signal and noise by case, without which ``snr_db`` were far better."""
    if len(errors) < 2:
        return []
    worst = max(errors, key=lambda case: errors[case][1])
    signal = sum(one for case, (one, _) in errors.items() if case != worst)
    noise = sum(one for case, (_, one) in errors.items() if case != worst)
    if signal <= 0:
        return []
    rest = _decibels(signal, noise)
    return [f"case '{worst}' has most of the error: {rest:.1f} dB without it"] if rest >= snr_db + _APART_DB else []


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:  # exact, or squares that underflow
        return SNR_CAP
    return min(SNR_CAP, max(-SNR_CAP, 10 * (math.log10(signal) - math.log10(noise))))


def _mismatch(expected: Array, found: Array | None) -> str | None:
    if found is None:
        return "the output is missing"
    if found.dtype != expected.dtype:
        return f"dtype {found.dtype.name} instead of {expected.dtype.name}"
    if found.shape != expected.shape:
        return f"shape {list(found.shape)} instead of {list(expected.shape)}"
    return None


def _broken(comparison: Comparison, tolerance: Tolerance, *, discrete: bool) -> list[str]:
    """The bounds that do not hold, in words."""
    agreement = comparison.top1_agreement
    if discrete:
        bound = tolerance.top1_agreement
        if comparison.exact or (bound is not None and agreement is not None and agreement >= bound):
            return []
        share = "" if agreement is None else f": {agreement:.4%} are equal"
        return [f"integer or boolean values differ{share}"]
    broken = [
        f"{name} {value:.4g} > {bound:.4g}"
        for name, value, bound in (
            ("max_abs", comparison.max_abs, tolerance.max_abs),
            ("mean_abs", comparison.mean_abs, tolerance.mean_abs),
        )
        if bound is not None and value > bound
    ]
    broken += [
        f"{name} {value:.4g} < {bound:.4g}"
        for name, value, bound in (
            ("snr_db", comparison.snr_db, tolerance.snr_db),
            ("cosine", comparison.cosine, tolerance.cosine),
            ("top1_agreement", agreement, tolerance.top1_agreement),
        )
        if bound is not None and value is not None and value < bound
    ]
    return broken


@dataclass
class _Sums:
    """Everything that the metrics need of one output, added up over chunks and cases."""

    elements: int = 0
    """Values that are finite in both, or equal where they are discrete or infinite."""
    samples: int = 0
    discrete: bool = False
    equal: int = 0
    max_abs: float = 0.0
    sum_abs: float = 0.0
    noise: float = 0.0
    """Σ (reference - actual)² over the values that are finite in both; ``signal``, ``power``, ``dot`` likewise."""
    signal: float = 0.0
    power: float = 0.0
    dot: float = 0.0
    finite: int = 0
    nan_count: int = 0
    """In the actual output, as ``inf_count``."""
    inf_count: int = 0
    nan_only_here: int = 0
    nan_only_there: int = 0
    inf_differs: int = 0
    nan_in_both: int = 0
    rows: int = 0
    rows_agreed: int = 0
    mean: float = 0.0
    spread: float = 0.0
    """Σ (reference - mean)² by Chan's update, so that a large mean does not eat a small spread."""

    def add(self, reference: Array, actual: Array) -> None:
        self.samples += reference.shape[0] if reference.ndim else 1
        self.elements += reference.size
        kind = reference.dtype.kind
        if kind in "OSU":
            self.discrete = True
            self.equal += int(np.count_nonzero(reference == actual))
            return
        self.discrete = self.discrete or kind in "iub"
        for expected, found in _chunks(reference, actual):
            # Equality before the conversion: neighbouring int64 beyond 2**53 are one float64.
            self.equal += int(np.count_nonzero(expected == found))
            with np.errstate(over="ignore", invalid="ignore"):
                self._add(expected.astype(np.float64), found.astype(np.float64))
        if not self.discrete and reference.ndim >= 2 and reference.shape[-1] > 1:
            self._add_top1(reference, actual)

    def _add(self, reference: _Floats, actual: _Floats) -> None:
        finite = np.isfinite(reference) & np.isfinite(actual)
        if not finite.all():
            self._add_not_finite(reference, actual)
            reference, actual = reference[finite], actual[finite]
        if not reference.size:
            return
        difference = np.abs(reference - actual)
        self.max_abs = max(self.max_abs, _bounded(difference.max()))
        self.sum_abs = _bounded(self.sum_abs + difference.sum())
        self.noise = _bounded(self.noise + np.dot(difference, difference))
        self.signal = _bounded(self.signal + np.dot(reference, reference))
        self.power = _bounded(self.power + np.dot(actual, actual))
        self.dot = _bounded(self.dot + np.dot(reference, actual))
        size, mean = reference.size, float(reference.mean())
        total, shift = self.finite + size, mean - self.mean
        self.spread += float(np.square(reference - mean).sum()) + shift * shift * self.finite * size / total
        self.mean += shift * size / total
        self.finite = total

    def _add_not_finite(self, reference: _Floats, actual: _Floats) -> None:
        nan_there, nan_here = np.isnan(reference), np.isnan(actual)
        inf_there, inf_here = np.isinf(reference), np.isinf(actual)
        self.nan_count += int(nan_here.sum())
        self.inf_count += int(inf_here.sum())
        self.nan_in_both += int((nan_here & nan_there).sum())
        self.nan_only_here += int((nan_here & ~nan_there).sum())
        self.nan_only_there += int((nan_there & ~nan_here).sum())
        infinite = (inf_there | inf_here) & ~nan_there & ~nan_here
        self.inf_differs += int((infinite & (reference != actual)).sum())

    def _add_top1(self, reference: Array, actual: Array) -> None:
        width = reference.shape[-1]
        for expected, found in _chunks(reference, actual, width):
            chosen = found.reshape(-1, width).argmax(axis=1)
            expected = expected.reshape(-1, width)
            rows = np.arange(len(expected))
            # Any of the places that share the reference's maximum is as good as the first one.
            best = expected[rows, expected.argmax(axis=1)]
            taken = expected[rows, chosen]
            self.rows_agreed += int(((taken == best) | ((taken != taken) & (best != best))).sum())
            self.rows += len(rows)

    @property
    def differs_in_kind(self) -> bool:
        return bool(self.nan_only_here or self.nan_only_there or self.inf_differs)

    @property
    def exact(self) -> bool:
        if self.discrete:
            return self.equal == self.elements
        return self.noise == 0 and self.max_abs == 0 and not self.differs_in_kind

    @property
    def snr_db(self) -> float:
        if self.exact:
            return SNR_CAP
        if self.differs_in_kind or self.signal == 0:
            return -SNR_CAP
        return _decibels(self.signal, self.noise)

    @property
    def cosine(self) -> float:
        if self.exact:
            return 1.0
        lengths = math.sqrt(self.signal) * math.sqrt(self.power)
        return min(1.0, max(-1.0, self.dot / lengths)) if lengths else 0.0

    @property
    def top1_agreement(self) -> float | None:
        """Share of rows with the same largest value; of equal values where they are integers (class numbers)."""
        if self.discrete:
            return self.equal / self.elements if self.elements else None
        return self.rows_agreed / self.rows if self.rows else None

    def problems(self) -> list[str]:
        found = (
            (self.nan_only_here, "NaN where the reference has none"),
            (self.nan_only_there, "numbers where the reference is NaN"),
            (self.inf_differs, "infinities that only one side has"),
        )
        return [f"{count} {what}" for count, what in found if count]

    def notes(self) -> list[str]:
        """What takes from the worth of a match."""
        notes = []
        if self.nan_in_both:
            notes.append(f"{self.nan_in_both} NaN in both")
        if not self.elements:
            notes.append("no values to compare")
        elif not self.discrete and self.finite > 1:
            rms, deviation = math.sqrt(self.signal / self.finite), math.sqrt(self.spread / self.finite)
            if deviation <= _CONSTANT * rms:
                notes.append(f"the reference is nearly constant at {self.mean:.4g}: a match proves little")
        return notes

    def comparison(self, output: str) -> Comparison:
        return Comparison(
            output=output,
            max_abs=self.max_abs,
            mean_abs=self.sum_abs / self.finite if self.finite else 0.0,
            snr_db=self.snr_db,
            exact=self.exact,
            cosine=self.cosine,
            top1_agreement=self.top1_agreement,
            nan_count=self.nan_count,
            inf_count=self.inf_count,
            samples=self.samples,
            passed=False,
        )


def _chunks(reference: Array, actual: Array, multiple: int = 1) -> Iterator[tuple[Array, Array]]:
    """Flat pieces of both, each a multiple of ``multiple`` long."""
    size = max(_CHUNK // multiple, 1) * multiple
    left, right = reference.reshape(-1), actual.reshape(-1)
    for start in range(0, left.size, size):
        yield left[start : start + size], right[start : start + size]


def _bounded(value: np.floating | float) -> float:
    """``value``, or the largest float64 of its sign where it overflowed."""
    return float(min(max(float(value), -sys.float_info.max), sys.float_info.max))


# ---- batch consistency


@dataclass(frozen=True)
class BatchCheck:
    """Whether rows computed alone and together agree; ``words`` for the report."""

    passed: bool
    words: str
    comparisons: tuple[Comparison, ...]


def check_batch(
    run: Callable[[Feeds], Outputs], feeds: Feeds, tolerance: Tolerance, *, rows: int = 8, batched: Sequence[str] = ()
) -> BatchCheck:
    """Run the first ``rows`` of ``feeds`` together and one by one and compare.

    ``batched`` names the inputs whose axis 0 is the batch (default: all); all outputs have it as their axis 0.
    Raises ``RetargetError`` when there are fewer than two rows: that proves nothing.
    """
    names = set(batched or feeds)
    size = min(len(feeds[name]) for name in names)
    if size < 2:
        raise RetargetError("the batch check needs at least 2 rows", "let the batch dimension's max be 2 or more")
    rows = min(rows, size)

    def part(start: int, stop: int) -> Outputs:
        cut = {name: array[start:stop] if name in names else array for name, array in feeds.items()}
        return run(cut)

    together = part(0, rows)
    alone = [part(row, row + 1) for row in range(rows)]
    expected = {f"row {row}": outputs for row, outputs in enumerate(alone)}
    actual = {
        f"row {row}": {name: array[row : row + 1] if array.ndim else array for name, array in together.items()}
        for row in range(rows)
    }
    comparisons = compare_outputs(expected, actual, tolerance)
    failed = [f"{one.output}: {one.reason}" for one in comparisons if not one.passed]
    worst = min(one.snr_db for one in comparisons)
    words = f"{rows} rows together and one by one: " + ("; ".join(failed) if failed else f"SNR at least {worst:.1f} dB")
    return BatchCheck(not failed, words, comparisons)
