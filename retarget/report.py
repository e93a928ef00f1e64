"""The report of a build: from the steps and how they ended to ``report.json``, and back.

``build`` only reads: the recipe, the plan, the outcomes and the manifests of the artifacts. Every judgement is in
``gates``; how it looks is in ``report_html``, ``report_markdown``, ``report_junit`` and ``terminal``.
"""

from __future__ import annotations

import math
import os
import platform
import re
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from retarget import __version__, gates, processor
from retarget.errors import RetargetError
from retarget.facts import (
    BenchEntry,
    BenchFacts,
    CalibrateFacts,
    CompareFacts,
    Comparison,
    ConvertFacts,
    EmitFacts,
    EvaluateFacts,
    Fact,
    KeptNode,
    Latency,
    OptimizeFacts,
    QuantizeFacts,
)
from retarget.figures import CAP_DB, first_line
from retarget.report_schema import (
    NOT_MEASURED,
    AccuracyRow,
    ArtifactRow,
    ChangeRow,
    Difference,
    Environment,
    ErrorRow,
    LatencyRow,
    ModelRow,
    OptimizeRow,
    ParityRow,
    Report,
    StageRow,
    StepRow,
)
from retarget.store import read_manifest

if TYPE_CHECKING:
    from retarget.plan import Plan
    from retarget.protocols import Outcome, Step, StepError
    from retarget.recipe import Recipe
    from retarget.store import Manifest

FILE = "report.json"
NAMES = (FILE, "report.html", "report.md", "junit.xml")
"""Every form of the report."""
EXCERPT_LINES = 20
EXCERPT_CHARACTERS = 4000

F = TypeVar("F", bound=Fact)

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


def build(
    plan: Plan,
    outcomes: Sequence[Outcome],
    *,
    environment: Environment,
    warnings: Sequence[str] = (),
    baseline: Report | None = None,
) -> Report:
    """Everything that a build did and measured. A step of ``plan`` without an outcome was not reached.

    Waivers are held against the day of ``environment.built``.
    """
    done = _Done(plan.steps, outcomes)
    source = done.only("convert", ConvertFacts)
    steps = tuple(_step(step, done.outcome(step)) for step in plan.steps)
    artifacts = _artifacts(plan, done, source)
    changes = None if baseline is None else _difference(artifacts, environment, baseline)
    gate_rows = gates.evaluate(
        artifacts,
        plan.recipe.gates,
        plan.recipe.waivers,
        baseline=changes,
        today=date.fromisoformat(environment.built[:10]),
        measured=_measures(plan),
    )
    judged = gates.verdict(artifacts, gate_rows, steps)
    bench = done.only("bench", BenchFacts)
    reference = next((entry.latency for entry in done.bench if entry.subject == "reference"), None)
    return Report(
        name=plan.recipe.name,
        verdict=judged.verdict,
        headline=judged.headline,
        reasons=(*judged.failed, *judged.unfinished),
        unfinished=bool(judged.unfinished),
        steps=steps,
        artifacts=artifacts,
        gates=gate_rows,
        model=_model(plan, source),
        environment=msgspec.structs.replace(
            environment, versions=dict(sorted({**plan.versions, **done.versions}.items()))
        ),
        optimize=tuple(_optimize(done)),
        reference=None if reference is None else _latency(reference),
        bench=None if bench is None else _sizes(bench),
        bench_together=bench is None or bench.together,
        warnings=tuple(dict.fromkeys((*warnings, *_warnings(done), *_misnamed(artifacts)))),
        baseline=changes,
    )


def exit_code(report: Report) -> int:
    """What the process ends with: 3 a bug, 1 something was not built or checked, 4 a gate failed, 0 neither."""
    if any(step.error is not None and step.error.bug for step in report.steps):
        return 3
    return 1 if report.unfinished else 4 if report.verdict == "fail" else 0


def difference(report: Report, baseline: Report) -> Difference:
    """What changed in the artifacts of ``report`` since ``baseline``: latency, accuracy, size, parity."""
    return _difference(report.artifacts, report.environment, baseline)


def environment() -> Environment:
    """This machine and this retarget, now."""
    import psutil

    return Environment(
        retarget=__version__,
        python=platform.python_version(),
        os=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        cpu=processor.name(),
        cores=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        host=platform.node(),
        built=datetime.now(UTC).isoformat(timespec="seconds"),
    )


# ---- files


def encode(report: Report) -> bytes:
    """``report.json``, indented."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def read(path: Path) -> Report:
    """The report in ``path``, or in ``path/report.json`` if it is a folder. Raises ``RetargetError``."""
    file = path / FILE if path.is_dir() else path
    try:
        return msgspec.json.decode(file.read_bytes(), type=Report)
    except OSError as error:
        raise RetargetError(
            f"{file}: {error.strerror or error}", "give a build's folder or its report.json, as `retarget build` leaves"
        ) from error
    except msgspec.DecodeError as error:
        raise RetargetError(
            f"{file}: not a report that this version reads: {error}", "make it again with `retarget build`"
        ) from error


def files(report: Report) -> Iterator[tuple[str, str]]:
    """Every form of the report as (file name, text)."""
    from retarget import report_html, report_junit, report_markdown

    texts = (
        encode(report).decode(),
        report_html.render(report),
        report_markdown.render(report),
        report_junit.render(report),
    )
    yield from zip(NAMES, texts, strict=True)


def write(report: Report, folder: Path) -> None:
    """Write every form of the report into ``folder``: all of them, or none. Raises ``RetargetError``."""
    texts = dict(files(report))
    try:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as staged:
            for name, text in texts.items():
                Path(staged, name).write_text(text, encoding="utf-8")
            for name in texts:
                Path(staged, name).replace(folder / name)
    except OSError as error:
        raise RetargetError(
            f"{folder}: the report cannot be written: {error.strerror or error}",
            "give another folder with -o, or free some space",
        ) from error


# ---- outcomes and the facts behind them


class _Done:
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


# ---- rows


def _step(step: Step, outcome: Outcome | None) -> StepRow:
    if outcome is None:
        unreached = ErrorRow(
            kind="Unreached", message="the build ended before it", hint=None, bug=False, log=None, excerpt=None
        )
        return StepRow(
            id=step.id,
            kind=step.kind,
            status="skipped",
            seconds=0.0,
            peak_rss_bytes=None,
            optional=step.optional,
            error=unreached,
        )
    return StepRow(
        id=step.id,
        kind=step.kind,
        status=outcome.status,
        seconds=outcome.seconds,
        peak_rss_bytes=outcome.peak_rss,
        peak_anonymous_bytes=outcome.peak_anonymous,
        optional=step.optional,
        error=None if outcome.error is None else _error(outcome.error),
    )


def _error(error: StepError) -> ErrorRow:
    return ErrorRow(
        kind=error.kind,
        message=_plain(error.message),
        hint=None if error.hint is None else _plain(error.hint),
        bug=error.bug,
        log=None if error.log is None else str(error.log),
        excerpt=None if error.log is None else _excerpt(error.log),
    )


def _excerpt(log: Path) -> str | None:
    """The last lines of a log, without terminal codes; None if there is none to read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - EXCERPT_CHARACTERS))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return None  # the log is a courtesy: the error's message stands without it
    lines = [line.rstrip() for line in _plain(text).splitlines()]
    return "\n".join(lines[-EXCERPT_LINES:]).strip("\n") or None


def _plain(text: str) -> str:
    """``text`` without terminal codes and control characters, which XML and terminals would choke on."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _model(plan: Plan, source: ConvertFacts | None) -> ModelRow:
    path = plan.recipe.model.path
    if source is None:
        return ModelRow(path=path.name, sha256=plan.inputs.get(path))
    return ModelRow(
        path=path.name,
        sha256=plan.inputs.get(path),
        frontend=source.frontend,
        form=source.form,
        rung=source.rung,
        inputs=source.inputs,
        outputs=source.outputs,
        shapes=source.shapes,
        nodes=source.nodes,
        parameters=source.parameters,
        bytes=source.bytes,
        data=source.origin,
        cases=len(source.cases),
        notes=source.notes,
    )


def _optimize(done: _Done) -> Iterator[OptimizeRow]:
    for step in done.steps:
        if step.kind == "optimize" and (facts := done.facts(step, OptimizeFacts)) is not None:
            yield OptimizeRow(
                step=step.id,
                preset=facts.preset,
                checked=facts.checked,
                reason=facts.reason,
                snr_db=facts.snr_db,
                seconds_passes=facts.seconds_passes,
                seconds_check=facts.seconds_check,
                passes=facts.passes,
            )


def _warnings(done: _Done) -> Iterator[str]:
    """What a person should know of the data, whatever the figures say."""
    source = done.only("convert", ConvertFacts)
    if source is not None and source.origin == "generated":
        yield "parity was measured on generated inputs: give data.samples for the real thing"
    kinds: tuple[tuple[str, type[CalibrateFacts | EvaluateFacts]], ...] = (
        ("calibrate", CalibrateFacts),
        ("evaluate", EvaluateFacts),
    )
    for kind, facts in kinds:
        for step in done.steps:
            known = done.facts(step, facts) if step.kind == kind else None
            yield from (f"{kind} data: {note}" for note in (known.notes if known else ()))


def _misnamed(artifacts: Sequence[ArtifactRow]) -> Iterator[str]:
    """Artifacts that are not in the precision that they are called by: the source is in another, or all was kept."""
    meant = {"fp32": "float32", "fp16": "float16"}
    for row in artifacts:
        wanted = meant.get(row.requested)
        if row.precision is not None and wanted is not None and row.precision.weights not in (wanted, "none"):
            yield f"{row.name}: its weights are {row.precision.weights}, not {wanted}"


def _measures(plan: Plan) -> bool:
    return any(step.kind == "bench" for step in plan.steps)


def _sizes(bench: BenchFacts) -> str:
    return ", ".join(f"{symbol}={size}" for symbol, size in bench.sizes.items()) or "the model's own shapes"


# ---- artifacts


def _artifacts(plan: Plan, done: _Done, source: ConvertFacts | None) -> tuple[ArtifactRow, ...]:
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


def _artifact(emit: Step, done: _Done, plan: Plan, source: ConvertFacts | None) -> ArtifactRow:
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
        batch=None if compared is None else compared.batch,
        batch_passed=None if compared is None else compared.batch_passed,
        accuracy=_accuracy(evaluate, done, plan.recipe),
        latency=None if entry is None or entry.latency is None else _latency(entry.latency),
        latency_reason=(None if entry is None else entry.reason) if _measures(plan) else NOT_MEASURED,
        ratio_to_source=manifest.bytes / source.bytes if source is not None and source.bytes else None,
        inputs=facts.inputs,
        outputs=facts.outputs,
        notes=facts.notes,
        budget=tuple(_budget(emit, done)),
        kept=_kept(emit, done),
        files={name: file.sha256 for name, file in manifest.files.items()},
        reproduce=f"retarget build recipe.yaml --locked --only {target}/{variant}",
    )


def _unverified(compare: Step | None, compared: CompareFacts | None, done: _Done) -> str | None:
    if compare is None:
        return "the build has no comparison of it"
    return _why(done.outcome(compare)) if compared is None else compared.reason


def _why(outcome: Outcome | None) -> str:
    """Why a step made nothing, in a line."""
    if outcome is None:
        return "the build ended before it"
    if outcome.error is None:
        return "a step before it failed"
    return first_line(_plain(outcome.error.message))


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


def _accuracy(evaluate: Step | None, done: _Done, recipe: Recipe) -> AccuracyRow | None:
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


def _latency(latency: Latency) -> LatencyRow:
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


def _budget(emit: Step, done: _Done) -> Iterator[StageRow]:
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


def _kept(emit: Step, done: _Done) -> tuple[KeptNode, ...]:
    """The nodes that a quantize step on the way left in float32."""
    return tuple(
        node
        for step in _chain(emit)
        if step.kind == "quantize" and (facts := done.facts(step, QuantizeFacts)) is not None
        for node in facts.kept
    )


# ---- the baseline


def _difference(artifacts: Sequence[ArtifactRow], here: Environment, baseline: Report) -> Difference:
    before = {artifact.name: artifact for artifact in baseline.artifacts if artifact.status == "built"}
    now = {artifact.name: artifact for artifact in artifacts if artifact.status == "built"}
    then = baseline.environment
    same = (here.host, here.cpu, here.cores) == (then.host, then.cpu, then.cores)
    changes = [_change(artifact, before.get(name), same_machine=same) for name, artifact in now.items()]
    changes += [
        ChangeRow(target=artifact.target, variant=artifact.variant, status="removed")
        for name, artifact in before.items()
        if name not in now
    ]
    return Difference(name=baseline.name, built=then.built, same_machine=same, changes=tuple(changes))


def _change(now: ArtifactRow, then: ArtifactRow | None, *, same_machine: bool) -> ChangeRow:
    if then is None:
        return ChangeRow(target=now.target, variant=now.variant, status="added")
    latency, relative = None, False
    if now.latency is not None and then.latency is not None:
        if same_machine:
            latency = now.latency.p50_ms / then.latency.p50_ms
        elif now.latency.ratio_to_reference and then.latency.ratio_to_reference:
            latency, relative = now.latency.ratio_to_reference / then.latency.ratio_to_reference, True
    accuracy = None
    if now.accuracy and then.accuracy and now.accuracy.value is not None and then.accuracy.value is not None:
        accuracy = now.accuracy.value - then.accuracy.value
    return ChangeRow(
        target=now.target,
        variant=now.variant,
        status="same",
        latency_ratio=latency,
        latency_relative=relative,
        accuracy_change=accuracy,
        bytes_ratio=now.bytes / then.bytes if now.bytes and then.bytes else None,
        snr_change_db=now.worst.snr_db - then.worst.snr_db if now.worst and then.worst else None,
        verified=None if now.verified == then.verified else (then.verified, now.verified),
    )
