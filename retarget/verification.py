"""A runner held against what the source framework itself gave: the parity cases, and rows together and alone.

An artifact may have some symbolic dimensions at one size only. It is held against the recorded cases of that size, and
what was left out is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retarget import reference
from retarget.adapt import NO_SIZES
from retarget.compare import check_batch, compare_outputs
from retarget.facts import Case, CompareFacts, Comparison, ConvertFacts, DataOrigin
from retarget.figures import sizes_text
from retarget.spec import batch_symbol, batched_inputs
from retarget.tolerance import Tolerance

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs, Runner
    from retarget.spec import DimRange, TensorSpec


@dataclass(frozen=True)
class Recorded:
    """What the convert step recorded: its folder and its facts."""

    folder: Path
    facts: ConvertFacts


def verify(
    runner: Runner,
    source: Recorded,
    tolerance: Tolerance,
    sizes: Mapping[str, int] = NO_SIZES,
    *,
    interpreted: str | None = None,
) -> CompareFacts:
    """Parity and the batch check of ``runner``, which has the dimensions in ``sizes`` at one size only.

    ``interpreted``: why it is an interpreter rather than the runtime; None for the runtime.
    """
    others = tuple(_named(case) for case in source.facts.cases if not fits(case, sizes))
    if len(others) == len(source.facts.cases):
        return CompareFacts(
            verified="not verified",
            reason=f"the artifact takes {sizes_text(sizes)} alone, and no parity case has that size",
            settings=runner.settings,
            parity=(),
            left_out=others,
        )
    batch, passed = _check_batch(runner, source, tolerance, sizes)
    return CompareFacts(
        verified="executed" if interpreted is None else "interpreted",
        reason=None if interpreted is None else f"in numpy on this machine, not executed: {interpreted}",
        settings=runner.settings,
        parity=parity(runner, source, tolerance, sizes),
        tolerance=tolerance.bounds(),
        left_out=others,
        batch=batch,
        batch_passed=passed,
    )


def parity(
    runner: Runner, source: Recorded, tolerance: Tolerance, sizes: Mapping[str, int] = NO_SIZES
) -> tuple[Comparison, ...]:
    """Each output over all cases that fit ``sizes``; there must be one."""
    mixed = len({case.origin for case in source.facts.cases}) > 1
    fitting = {
        case.name: _named(case, case.origin if mixed else None) for case in source.facts.cases if fits(case, sizes)
    }
    expected: dict[str, Outputs] = {}
    actual: dict[str, Outputs] = {}
    for recorded in reference.read(source.folder):
        if (named := fitting.get(recorded.case)) is not None:
            expected[named] = recorded.outputs
            actual[named] = runner.run(recorded.feeds)
    return compare_outputs(expected, actual, tolerance)


def fits(case: Case, sizes: Mapping[str, int]) -> bool:
    """Whether ``case`` can be fed to what has the dimensions in ``sizes`` at one size only."""
    return all(case.sizes.get(symbol, size) == size for symbol, size in sizes.items())


def _named(case: Case, origin: DataOrigin | None = None) -> str:
    said = [text for text in (sizes_text(case.sizes), origin) if text]
    return f"{case.name} ({', '.join(said)})" if said else case.name


# ---- rows together and alone


@dataclass(frozen=True)
class BatchCase:
    """What the batch check runs: the case with most rows, and the inputs that have rows."""

    case: str
    inputs: tuple[str, ...]


def batch_case(
    cases: Iterable[Case],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    shapes: Mapping[str, DimRange],
    sizes: Mapping[str, int] = NO_SIZES,
) -> tuple[BatchCase | None, str]:
    """None, and why, where rows cannot run both alone and together. One of the ``cases`` fits ``sizes``."""
    symbol = batch_symbol(inputs, outputs)
    if symbol is None:
        return None, "inputs and outputs share no symbolic first dimension"
    extent = shapes[symbol]
    if extent.min > 1 or extent.max < 2:
        return None, f"{symbol} is {extent}, so rows cannot run both alone and together"
    if symbol in sizes:
        return None, f"the artifact takes {symbol}={sizes[symbol]} alone, so rows cannot run both alone and together"
    largest = max((case for case in cases if fits(case, sizes)), key=lambda case: case.sizes[symbol])
    if largest.sizes[symbol] < 2:
        return None, f"the artifact takes {sizes_text(sizes)} alone, and the parity cases of that size have one row"
    return BatchCase(largest.name, batched_inputs(inputs, symbol)), ""


def rows_depend(runner: Runner, feeds: Feeds, batched: Sequence[str], tolerance: Tolerance) -> str | None:
    """How far the source's outputs for rows together and alone lie apart; None where they agree."""
    check = check_batch(runner.run, feeds, tolerance, batched=batched)
    return None if check.passed else check.words


def _check_batch(
    runner: Runner, source: Recorded, tolerance: Tolerance, sizes: Mapping[str, int]
) -> tuple[str, bool | None]:
    """Rows together and alone must agree; in words, and None where the check makes no sense."""
    facts = source.facts
    batch, reason = batch_case(facts.cases, facts.inputs, facts.outputs, facts.shapes, sizes)
    if batch is None:
        return f"skipped: {reason}", None
    if facts.rows_depend is not None:
        # Parity is held on whole batches: it says whether they depend on each other in the same way.
        return f"skipped: rows of the source itself depend on each other ({facts.rows_depend})", None
    feeds = next(recorded.feeds for recorded in reference.read(source.folder) if recorded.case == batch.case)
    check = check_batch(runner.run, feeds, tolerance, batched=batch.inputs)
    return check.words, check.passed
