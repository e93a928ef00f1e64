"""The report of a build: from the steps and how they ended to ``report.json``, and back.

``build`` only reads: the recipe, the plan, the outcomes and the manifests of the artifacts. Every judgement is in
``gates``; how it looks is in ``report_html``, ``report_markdown``, ``report_junit`` and ``terminal``.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from retarget import __version__, gates, processor
from retarget.errors import RetargetError
from retarget.facts import (
    BenchFacts,
    CalibrateFacts,
    ConvertFacts,
    EvaluateFacts,
    OptimizeFacts,
)
from retarget.figures import plain_text
from retarget.likeness import unlike
from retarget.report_artifacts import Done, artifact_rows, latency_row, measures
from retarget.report_int8 import unpaid
from retarget.report_schema import (
    ArtifactRow,
    ChangeRow,
    Difference,
    Environment,
    ErrorRow,
    ModelRow,
    OptimizeRow,
    Report,
    StepRow,
)

if TYPE_CHECKING:
    from retarget.plan import Plan
    from retarget.protocols import Outcome, Step, StepError

FILE = "report.json"
NAMES = (FILE, "report.html", "report.md", "junit.xml")
"""Every form of the report."""
EXCERPT_LINES = 20
EXCERPT_CHARACTERS = 4000


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
    done = Done(plan.steps, outcomes)
    source = done.only("convert", ConvertFacts)
    steps = tuple(_step(step, done.outcome(step)) for step in plan.steps)
    artifacts = artifact_rows(plan, done, source)
    changes = None if baseline is None else _difference(artifacts, environment, baseline)
    gate_rows = gates.evaluate(
        artifacts,
        plan.recipe.gates,
        plan.recipe.waivers,
        baseline=changes,
        today=date.fromisoformat(environment.built[:10]),
        measured=measures(plan),
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
        reference=None if reference is None else latency_row(reference),
        bench=None if bench is None else _sizes(bench),
        bench_together=bench is None or bench.together,
        warnings=tuple(dict.fromkeys((*warnings, *_warnings(done), *_misnamed(artifacts), *unpaid(artifacts)))),
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
        message=plain_text(error.message),
        hint=None if error.hint is None else plain_text(error.hint),
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
    lines = [line.rstrip() for line in plain_text(text).splitlines()]
    return "\n".join(lines[-EXCERPT_LINES:]).strip("\n") or None


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
        reference=source.reference or None,
        notes=source.notes,
    )


def _optimize(done: Done) -> Iterator[OptimizeRow]:
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
                notes=facts.notes,
            )


def _warnings(done: Done) -> Iterator[str]:
    """What a person should know of the data, whatever the figures say."""
    source = done.only("convert", ConvertFacts)
    if source is not None and source.origin == "generated":
        yield "parity was measured on generated inputs: give data.samples for the real thing"
    calibrated = done.only("calibrate", CalibrateFacts)  # another one has seen the same data
    evaluated = done.only("evaluate", EvaluateFacts)
    if calibrated is not None and calibrated.origin == "synthetic":
        yield "calibration ran on synthetic data: ranges of drawn values are not those of real inputs"
    elif (
        calibrated is not None and calibrated.data is not None and evaluated is not None and evaluated.data is not None
    ):
        yield from unlike(("calibration", calibrated.data), ("evaluation", evaluated.data))
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
    meant = {"fp32": "float32", "fp16": "float16", "int4_weights": "int4", "palette6": "palette6"}
    meant |= dict.fromkeys(("int8", "int16x8", "int8_dynamic", "int8_weights"), "int8")
    for row in artifacts:
        wanted = meant.get(row.requested)
        if row.precision is not None and wanted is not None and row.precision.weights not in (wanted, "none"):
            yield f"{row.name}: its weights are {row.precision.weights}, not {wanted}"


def _sizes(bench: BenchFacts) -> str:
    return ", ".join(f"{symbol}={size}" for symbol, size in bench.sizes.items()) or "the model's own shapes"


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
