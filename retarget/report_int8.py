"""int8 in the words of the report: how it was made, what its budget cost, and whether it pays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from retarget.figures import decibel_text, milliseconds_text

if TYPE_CHECKING:
    from retarget.facts import BudgetFacts, Int8Facts
    from retarget.report_schema import ArtifactRow

NOISE = 1.02
"""Two timings of the same thing differ by so much."""


def made(int8: Int8Facts) -> Iterator[str]:
    """How the model was brought to int8, a sentence each."""
    yield (
        f"Scheme {int8.scheme}, clipping ranges by {int8.method}: {decibel_text(int8.snr_db)} against the float model, "
        f"simulated in ONNX Runtime on {int8.judged_on}."
    )
    if int8.bias_gain_db is not None:
        yield f"Corrected biases gained {int8.bias_gain_db:.1f} dB."
    if int8.budget is not None:
        yield from _budget(int8.budget)
    yield from (f"{note[0].upper()}{note[1:]}." for note in int8.notes)


def _budget(budget: BudgetFacts) -> Iterator[str]:
    decibels = budget.goal.startswith("min_snr_db")
    before, after = (
        decibel_text(score) if decibels else f"a drop of {score:.4g}" for score in (budget.before, budget.after)
    )
    if not budget.returned:
        yield f"Budget {budget.goal}: met with every node in int8, at {after}."
        return
    nodes = len(budget.returned)
    yield (
        f"Budget {budget.goal}: {before} with every node in int8, {after} with {nodes} node{'s' if nodes > 1 else ''} "
        f"back in float, which {'have' if nodes > 1 else 'has'} {budget.macs_share:.1%} of the multiply-accumulates; "
        f"{budget.tried} models were judged."
    )
    if budget.latency_ratio is not None:
        yield (
            f"What went back to float makes a call {budget.latency_ratio:.2f} × as long, in ONNX Runtime on the "
            "machine that quantized it."
        )


def unpaid(artifacts: Sequence[ArtifactRow]) -> Iterator[str]:
    """A sentence for each int8 artifact that is slower than its target's own fp32, with the variant to take instead."""
    for row in artifacts:
        timed = [one for one in artifacts if one.target == row.target and one.latency is not None]
        full = next((one for one in timed if one.requested == "fp32"), None)
        if row.requested != "int8" or row.latency is None or full is None or full.latency is None:
            continue
        if row.latency.p50_ms <= NOISE * full.latency.p50_ms:
            continue
        best = min(timed, key=lambda one: one.latency.p50_ms if one.latency is not None else 0.0)
        steady = row.latency.stable and full.latency.stable
        yield (
            f"{row.name} does not pay here: {milliseconds_text(row.latency.p50_ms)} a call, "
            f"{full.name} takes {milliseconds_text(full.latency.p50_ms)}"
            f"{'' if steady else ' (the timings are not steady)'}; take {best.name}, the fastest for {row.target}, "
            "unless it is size that counts"
        )
