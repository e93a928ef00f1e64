"""The rows of the report that are about artifacts, and the facts of the steps that they rest on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from retarget.facts import (
    BenchEntry,
    BenchFacts,
    CompareFacts,
    Comparison,
    ConvertFacts,
    EmitFacts,
    EvaluateFacts,
    Fact,
    Latency,
    QuantizeFacts,
)
from retarget.figures import CAP_DB, first_line, plain_text
from retarget.report_schema import NOT_MEASURED, AccuracyRow, ArtifactRow, LatencyRow, ParityRow, StageRow
from retarget.store import read_manifest

if TYPE_CHECKING:
    from retarget.plan import Plan
    from retarget.protocols import Outcome, Step
    from retarget.recipe import Recipe
    from retarget.store import Manifest

F = TypeVar("F", bound=Fact)


# ---- outcomes and the facts behind them


class Done:
    """How the steps of a plan ended, and the facts that their artifacts hold."""

    def __init__(self, steps: Sequence[Step], outcomes: Sequence[Outcome]) -> None:
        self.steps = steps
        self._outcomes = {outcome.step.id: outcome for outcome in outcomes}
        self._manifests = {
            outcome.step.id: read_manifest(outcome.artifact.path)
            for outcome in outcomes
            if outcome.artifact is not None
        }

    def outcome(self, step: Step) -> Outcome | None:
        return self._outcomes.get(step.id)

    def manifest(self, step: Step) -> Manifest | None:
        return self._manifests.get(step.id)

    def facts(self, step: Step, kind: type[F]) -> F | None:
        """The facts of ``step``, None if it made no artifact."""
        manifest = self._manifests.get(step.id)
        return None if manifest is None else manifest.facts_as(kind)

    def only(self, kind: str, facts: type[F]) -> F | None:
        """The facts of the one step of ``kind``."""
        step = next((step for step in self.steps if step.kind == kind), None)
        return None if step is None else self.facts(step, facts)

    def find(self, kind: str, target: str, variant: str) -> Step | None:
        """The step of ``kind`` that is about ``target/variant``."""
        return next(
            (
                step
                for step in self.steps
                if step.kind == kind and (step.options.get("target"), step.options.get("variant")) == (target, variant)
            ),
            None,
        )

    def compared(self, subject: Step) -> CompareFacts | None:
        """The comparison whose subject is the result of ``subject``."""
        for step in self.steps:
            if step.kind == "compare" and step.inputs["model"].id == subject.id:
                return self.facts(step, CompareFacts)
        return None

    @property
    def bench(self) -> Sequence[BenchEntry]:
        bench = self.only("bench", BenchFacts)
        return () if bench is None else bench.entries

    @property
    def versions(self) -> dict[str, str]:
        return {name: version for manifest in self._manifests.values() for name, version in manifest.versions.items()}


# ---- artifacts


def measures(plan: Plan) -> bool:
    return any(step.kind == "bench" for step in plan.steps)


def artifact_rows(plan: Plan, done: Done, source: ConvertFacts | None) -> tuple[ArtifactRow, ...]:
    """Every artifact that was asked for, in the recipe's order, those that this machine cannot build among them."""
    rows = [_artifact(step, done, plan, source) for step in plan.steps if step.kind == "emit"]
    rows += [
        ArtifactRow(
            target=left_out.target,
            variant=left_out.variant,
            path=None,
            bytes=None,
            precision=None,
            verified="not verified",
            reason=left_out.reason,
            hint=left_out.hint,
            requested=left_out.precision,
            status="skipped",
            optional=True,
        )
        for left_out in plan.left_out
    ]
    order = {f"{target.name}/{variant.name}": place for place, (target, variant) in enumerate(plan.recipe.requested())}
    return tuple(sorted(rows, key=lambda row: order[row.name]))


def _artifact(emit: Step, done: Done, plan: Plan, source: ConvertFacts | None) -> ArtifactRow:
    target, variant = str(emit.options["target"]), str(emit.options["variant"])
    requested = str(emit.options["precision"])
    outcome, manifest, facts = done.outcome(emit), done.manifest(emit), done.facts(emit, EmitFacts)
    if manifest is None or facts is None:
        failed = outcome is not None and outcome.status == "failed"
        return ArtifactRow(
            target=target,
            variant=variant,
            path=None,
            bytes=None,
            precision=None,
            verified="not verified",
            reason=_why(outcome),
            hint=outcome.error.hint if outcome is not None and outcome.error is not None else None,
            requested=requested,
            status="failed" if failed else "skipped",
            optional=emit.optional,
        )
    compare, evaluate = done.find("compare", target, variant), done.find("evaluate", target, variant)
    compared = None if compare is None else done.facts(compare, CompareFacts)
    entry = next((entry for entry in done.bench if entry.subject == f"{target}/{variant}"), None)
    return ArtifactRow(
        target=target,
        variant=variant,
        path=f"{target}/{variant}",
        bytes=manifest.bytes,
        precision=facts.precision,
        requested=requested,
        status="built",
        optional=emit.optional,
        verified="not verified" if compared is None else compared.verified,
        reason=_unverified(compare, compared, done),
        check_failed=compare is not None and compared is None,
        settings=None if compared is None else compared.settings or None,
        tolerance=(compared.tolerance if compared else {}) or ({} if compare is None else _tolerance(compare)),
        parity=() if compared is None else tuple(_parity(row) for row in compared.parity),
        parity_default=() if compared is None else tuple(_parity(row) for row in compared.parity_default),
        sizes=facts.sizes,
        left_out=() if compared is None else compared.left_out,
        batch=None if compared is None else compared.batch,
        batch_passed=None if compared is None else compared.batch_passed,
        accuracy=_accuracy(evaluate, done, plan.recipe),
        latency=None if entry is None or entry.latency is None else latency_row(entry.latency),
        latency_reason=(None if entry is None else entry.reason) if measures(plan) else NOT_MEASURED,
        ratio_to_source=manifest.bytes / source.bytes if source is not None and source.bytes else None,
        inputs=facts.inputs,
        outputs=facts.outputs,
        notes=facts.notes,
        budget=tuple(_budget(emit, done)),
        kept=tuple(node for facts in _quantized(emit, done) for node in facts.kept),
        int8=next((facts.int8 for facts in _quantized(emit, done)), None),
        ranges=_ranges(emit, done),
        files={name: file.sha256 for name, file in manifest.files.items()},
        reproduce=f"retarget build recipe.yaml --locked --only {target}/{variant}",
    )


def _unverified(compare: Step | None, compared: CompareFacts | None, done: Done) -> str | None:
    if compare is None:
        return "the build has no comparison of it"
    return _why(done.outcome(compare)) if compared is None else compared.reason


def _why(outcome: Outcome | None) -> str:
    """Why a step made nothing, in a line."""
    if outcome is None:
        return "the build ended before it"
    if outcome.error is None:
        return "a step before it failed"
    return first_line(plain_text(outcome.error.message))


def _tolerance(compare: Step) -> dict[str, float]:
    tolerance = compare.options["tolerance"]
    return {} if not isinstance(tolerance, dict) else msgspec.convert(tolerance, dict[str, float])


def _parity(row: Comparison) -> ParityRow:
    return ParityRow(
        output=row.output,
        max_abs=row.max_abs,
        mean_abs=row.mean_abs,
        snr_db=row.snr_db,
        exact=row.exact,
        nan_count=row.nan_count,
        inf_count=row.inf_count,
        cosine=row.cosine,
        top1_agreement=row.top1_agreement,
        samples=row.samples,
        passed=row.passed,
        reason=row.reason,
    )


def _accuracy(evaluate: Step | None, done: Done, recipe: Recipe) -> AccuracyRow | None:
    if evaluate is None:
        return None
    facts = done.facts(evaluate, EvaluateFacts)
    source = next((step for step in done.steps if step.kind == "evaluate" and step.options.get("target") is None), None)
    reference = None if source is None else done.facts(source, EvaluateFacts)
    expected = None if reference is None else _finite(reference.value)
    if facts is None:
        return AccuracyRow(
            metric=str(evaluate.options["metric"]),
            reference=expected,
            value=None,
            drop=None,
            passed=None,
            reason=_why(done.outcome(evaluate)),
        )
    value = _finite(facts.value)
    drop = None if value is None or expected is None else expected - value
    reason = facts.reason
    if reason is None and drop is None:
        reason = "the source has no value" if value is not None else f"the metric is {facts.value}"
    bound = recipe.gates.accuracy
    return AccuracyRow(
        metric=facts.metric,
        reference=expected,
        value=value,
        drop=drop,
        passed=None if drop is None or bound is None else drop <= bound.max_drop,
        samples=facts.samples,
        settings=facts.settings or None,
        reason=reason,
    )


def _finite(value: float | None) -> float | None:
    """``value``, or None where it is NaN or infinite: a user's metric may be."""
    return value if value is not None and math.isfinite(value) else None


def latency_row(latency: Latency) -> LatencyRow:
    return LatencyRow(
        p50_ms=latency.p50_ms,
        p90_ms=latency.p90_ms,
        p99_ms=latency.p99_ms,
        throughput_per_s=latency.throughput_per_s,
        ratio_to_reference=latency.ratio_to_reference,
        stable=latency.stable,
        calls=latency.calls,
        settings=latency.settings,
    )


# ---- the way from the source to an artifact


def _chain(emit: Step) -> list[Step]:
    """The steps whose results became the artifact, the source first, the emit step last."""
    chain = [emit]
    while (before := chain[-1].inputs.get("model")) is not None:
        chain.append(before)
    return chain[::-1]


def _budget(emit: Step, done: Done) -> Iterator[StageRow]:
    """How far the artifact's worst output had moved after each step, and what share of the error each one added.

    Error power relative to the signal's is 10^(-snr/10); a step added what it has more than the step before. Errors of
    two steps may cancel: a step that brings the outputs nearer added nothing.
    """
    compared = [(step, facts) for step in _chain(emit) if (facts := done.compared(step)) is not None and facts.parity]
    if not compared or compared[-1][0].id != emit.id:
        return
    worst = min(compared[-1][1].parity, key=lambda row: row.snr_db).output
    stages = [(step, row.snr_db) for step, facts in compared for row in facts.parity if row.output == worst]
    powers = [0.0 if snr_db >= CAP_DB else 10 ** (-snr_db / 10) for _, snr_db in stages]
    added = [max(0.0, now - before) for before, now in zip([0.0, *powers], powers, strict=False)]
    total = sum(added)
    for (step, snr_db), power in zip(stages, added, strict=True):
        yield StageRow(step=step.id, output=worst, snr_db=snr_db, share=power / total if total else None)


CALIBRATION = "calibration"
"""The folder of a build that holds what calibration recorded."""


def ranges_folder(calibrate: Step) -> str:
    """Where a build places the ranges that a step plotted: ``calibration/equalized``."""
    return f"{CALIBRATION}/{calibrate.id.split()[-1]}"


def _ranges(emit: Step, done: Done) -> str | None:
    for step in _chain(emit):
        calibrate = step.inputs.get("ranges")
        if calibrate is not None and calibrate.options.get("plot") and done.manifest(calibrate) is not None:
            return f"{ranges_folder(calibrate)}/ranges.html"
    return None


def _quantized(emit: Step, done: Done) -> Iterator[QuantizeFacts]:
    """What the quantize steps on the way did."""
    for step in _chain(emit):
        if step.kind == "quantize" and (facts := done.facts(step, QuantizeFacts)) is not None:
            yield facts
