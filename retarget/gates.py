"""Gates: the bounds of a recipe held against what was measured, and the verdict that follows.

The rules are in ``docs/concepts/verdict.md``. In short: a gate that could not be judged never counts as passed; it is
``unchecked`` (and the build ``incomplete``) where something failed on the way, and ``skipped`` where there was nothing
to judge: an artifact that this machine cannot execute, a baseline that was not given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import msgspec

from retarget.figures import count_text, decibel_text, first_line, ratio_text, scientific_text, score_text
from retarget.report_schema import NOT_MEASURED, ArtifactRow, ChangeRow, Difference, GateRow, GateStatus, WaiverRow

if TYPE_CHECKING:
    from retarget.recipe import Gates, Waiver
    from retarget.report_schema import StepRow, Verdict


PARITY_DEFAULT = "parity (default)"
"""The parity gate where the recipe sets no tolerance for a variant or its precision."""
PARITY_BATCH = "parity (batch)"
"""A sample's outputs do not depend on the samples beside it."""


# ---- the gates of a build


def evaluate(
    artifacts: Sequence[ArtifactRow],
    gates: Gates,
    waivers: Sequence[Waiver],
    *,
    baseline: Difference | None,
    today: date,
    measured: bool = True,
) -> tuple[GateRow, ...]:
    """Every gate of every artifact, waivers applied, in the order of ``artifacts``.

    ``measured``: the build was to measure latency.
    Parity was judged where it was measured, by the compare step, whose tolerance is part of its key.
    """
    rows: list[GateRow] = []
    changes = {(change.target, change.variant): change for change in baseline.changes} if baseline else {}
    for artifact in artifacts:
        in_recipe = artifact.variant in gates.parity or artifact.requested in gates.parity
        rows.append(_parity(artifact, "parity" if in_recipe else PARITY_DEFAULT))
        rows += _batch(artifact)
        if gates.accuracy is not None:
            rows.append(_accuracy(artifact, gates.accuracy.max_drop))
        if gates.latency is not None:
            change = changes.get((artifact.target, artifact.variant))
            rows.append(
                _latency(artifact, gates.latency.max_ratio, baseline, change)
                if measured
                else _row(artifact, "latency", "skipped", NOT_MEASURED)
            )
        if artifact.target in gates.verified:
            rows.append(_verified(artifact))
    return tuple(_waive(row, waivers, today) for row in rows)


def _row(artifact: ArtifactRow, gate: str, status: GateStatus, detail: str) -> GateRow:
    passed = {"passed": True, "failed": False}.get(status)
    return GateRow(
        gate=gate,
        target=artifact.target,
        variant=artifact.variant,
        passed=passed,
        status=status,
        detail=detail,
    )


def _unjudged(artifact: ArtifactRow, gate: str) -> GateRow:
    """A gate on an artifact that was not executed: skipped where this machine cannot, else unchecked."""
    if artifact.status == "built":
        broken = artifact.check_failed
        return _row(
            artifact, gate, "unchecked" if broken else "skipped", f"not verified: {artifact.reason or 'no reason'}"
        )
    tolerated = artifact.optional and artifact.status == "skipped"
    status: GateStatus = "skipped" if tolerated else "unchecked"
    return _row(artifact, gate, status, f"not built: {artifact.reason or 'no reason'}")


def _parity(artifact: ArtifactRow, gate: str) -> GateRow:
    if artifact.verified == "not verified":
        return _unjudged(artifact, gate)
    failed = [row for row in artifact.parity if not row.passed]
    if failed:
        return _row(artifact, gate, "failed", "; ".join(f"{row.output}: {row.reason}" for row in failed))
    worst = artifact.worst
    if worst is None or not artifact.tolerance:
        return _row(artifact, gate, "unchecked", "no output was held against a tolerance")
    detail = (
        f"{worst.output}: {decibel_text(worst.snr_db, exact=worst.exact)}, max abs {scientific_text(worst.max_abs)}"
    )
    others = len(artifact.parity) - 1
    return _row(
        artifact, gate, "passed", f"{detail}; {count_text(others, 'other output')} no worse" if others else detail
    )


def _batch(artifact: ArtifactRow) -> Iterator[GateRow]:
    if artifact.batch_passed is not None:
        yield _row(artifact, PARITY_BATCH, "passed" if artifact.batch_passed else "failed", artifact.batch or "")


def _accuracy(artifact: ArtifactRow, max_drop: float) -> GateRow:
    accuracy = artifact.accuracy
    if accuracy is None or accuracy.drop is None:
        if artifact.verified == "not verified":
            return _unjudged(artifact, "accuracy")
        reason = accuracy.reason if accuracy is not None else None
        return _row(artifact, "accuracy", "unchecked", reason or "no evaluation was made")
    held = accuracy.drop <= max_drop
    sign = "≤" if held else ">"
    detail = (
        f"{accuracy.metric} {score_text(accuracy.value)} of {score_text(accuracy.reference)}: "
        f"drop {accuracy.drop:.4f} {sign} {max_drop:g}"
    )
    return _row(artifact, "accuracy", "passed" if held else "failed", detail)


def _latency(artifact: ArtifactRow, max_ratio: float, baseline: Difference | None, change: ChangeRow | None) -> GateRow:
    if baseline is None:
        return _row(artifact, "latency", "skipped", "no baseline report was given")
    if artifact.latency is None:
        if artifact.verified == "not verified":
            return _unjudged(artifact, "latency")
        if artifact.verified == "interpreted":
            return _row(artifact, "latency", "skipped", f"interpreted: {artifact.reason}")
        return _row(artifact, "latency", "unchecked", artifact.latency_reason or "no latency was measured")
    if change is None or change.latency_ratio is None:
        return _row(artifact, "latency", "skipped", "the baseline has no latency of this artifact")
    held = change.latency_ratio <= max_ratio
    relative = (
        ", relative to the reference because the baseline is of another machine" if change.latency_relative else ""
    )
    detail = (
        f"{ratio_text(change.latency_ratio)} of the baseline {'≤' if held else '>'} {ratio_text(max_ratio)}{relative}"
    )
    if not held and not artifact.latency.stable:
        return _row(artifact, "latency", "unchecked", f"{detail}; the timings were not stable: measure again")
    return _row(artifact, "latency", "passed" if held else "failed", detail)


def _verified(artifact: ArtifactRow) -> GateRow:
    if artifact.verified == "executed":
        return _row(
            artifact, "verified", "passed", f"executed ({artifact.settings})" if artifact.settings else "executed"
        )
    if artifact.status == "built":
        status: GateStatus = "unchecked" if artifact.check_failed else "failed"
        detail = f"{artifact.verified}: {artifact.reason or 'no reason'}"
        if artifact.verified == "interpreted":
            detail += "; build where it is executed, or leave it out of `gates.verified`: parity is held without that"
        return _row(artifact, "verified", status, detail)
    tolerated = artifact.optional and artifact.status == "skipped"  # elsewhere, but here the gate demands it
    return _row(artifact, "verified", "failed" if tolerated else "unchecked", f"not built: {artifact.reason}")


# ---- waivers


def _waive(row: GateRow, waivers: Sequence[Waiver], today: date) -> GateRow:
    """A failed gate that a waiver names: waived until the end of the day that it expires, failed with a note after."""
    if row.status != "failed":
        return row
    matching = [waiver for waiver in waivers if _names(waiver, row)]
    if not matching:
        return row
    waiver = max(matching, key=lambda waiver: waiver.expires)
    expired = today > waiver.expires
    note = WaiverRow(reason=waiver.reason, expires=waiver.expires.isoformat(), expired=expired)
    return msgspec.structs.replace(row, waiver=note, status="failed" if expired else "waived")


def _names(waiver: Waiver, row: GateRow) -> bool:
    gate = row.gate.partition(" ")[0]
    return waiver.gate == gate and waiver.target == row.target and waiver.variant in (None, row.variant)


# ---- the verdict


@dataclass(frozen=True)
class Judgement:
    """The verdict, a sentence of what it rests on, and why it is not ``pass``."""

    verdict: Verdict
    headline: str
    failed: tuple[str, ...]
    """Gates that failed and are not waived."""
    unfinished: tuple[str, ...]
    """What was asked for and could not be built or checked."""


def verdict(artifacts: Sequence[ArtifactRow], gates: Sequence[GateRow], steps: Sequence[StepRow]) -> Judgement:
    """Gates that failed make it ``fail``; else anything unfinished makes it ``incomplete``."""
    failed = [f"{row.gate} {row.subject}: {row.detail}" for row in gates if row.status == "failed"]
    unfinished = [
        f"{step.id} {'failed' if step.status == 'failed' else 'was skipped'}: {first_line(step.error.message)}"
        for step in steps
        if step.error is not None
        and step.is_cause
        and (step.status == "failed" or (step.status == "skipped" and not step.optional))
    ]
    sound = {artifact.name for artifact in artifacts if artifact.status == "built" and not artifact.check_failed}
    unfinished += [
        f"{row.gate} {row.subject} could not be checked: {row.detail}"
        for row in gates
        if row.status == "unchecked" and row.subject in sound  # of the others a step said what is wrong
    ]
    required = [artifact for artifact in artifacts if not artifact.optional]
    if not unfinished and required and all(artifact.verified == "not verified" for artifact in artifacts):
        unfinished.append("no artifact was executed, so nothing is verified")
    word: Verdict = "fail" if failed else "incomplete" if unfinished else "pass"
    headline = _headline(word, artifacts, gates, len(failed), len(unfinished))
    return Judgement(word, headline, tuple(failed), tuple(unfinished))


def _headline(
    word: Verdict, artifacts: Sequence[ArtifactRow], gates: Sequence[GateRow], failed: int, unfinished: int
) -> str:
    judged = sum(row.status in ("passed", "failed", "waived") for row in gates)
    waived = sum(row.status == "waived" for row in gates)
    passed = sum(row.status == "passed" for row in gates)
    built = sum(artifact.status == "built" for artifact in artifacts)
    verified = sum(artifact.verified != "not verified" for artifact in artifacts)
    parts = {
        "pass": [f"{passed} of {count_text(judged, 'gate')} passed"],
        "fail": [f"{failed} of {count_text(judged, 'gate')} failed"],
        "incomplete": [f"{count_text(unfinished, 'thing')} could not be built or checked"],
    }[word]
    if skipped := sum(row.status == "skipped" for row in gates):
        parts.append(f"{skipped} skipped")
    if waived:
        parts.append(f"{waived} waived")
    interpreted = sum(artifact.verified == "interpreted" for artifact in artifacts)
    how = f", {interpreted} of these interpreted" if interpreted else ""
    whole = count_text(len(artifacts), "artifact")
    return f"{', '.join(parts)}; {built} of {whole} built, {verified} of them verified{how}"
