"""``report.html``: one file that needs nothing else, for a screen, light or dark, and for paper.

The geometry of the charts is computed here and drawn by the template, which escapes all that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from retarget import report_int8
from retarget.figures import (
    CAP_DB,
    bytes_text,
    count_text,
    decibel_text,
    drop_text,
    first_line,
    milliseconds_text,
    percent_text,
    ratio_text,
    scientific_text,
    score_text,
    seconds_text,
    signed_text,
)

if TYPE_CHECKING:
    from retarget.report_schema import ArtifactRow, LatencyRow, Report

TEMPLATES = Path(__file__).parent / "templates"


def render(report: Report) -> str:
    """The whole page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        size=bytes_text,
        milliseconds=milliseconds_text,
        seconds=seconds_text,
        decibel=decibel_text,
        scientific=scientific_text,
        ratio=ratio_text,
        percent=percent_text,
        score=score_text,
        drop=drop_text,
        signed=signed_text,
        first_line=first_line,
        int8=report_int8.made,
    )
    loud = [row for row in report.gates if row.status != "passed"]
    failures = [step for step in report.steps if step.is_cause]
    budgets = _budgets(report.artifacts)
    latency = _latency(report)
    longest = max((step.seconds for step in report.steps), default=0.0) or 1.0
    return environment.get_template("report.html.j2").render(
        report=report,
        model=report.model,
        built=datetime.fromisoformat(report.environment.built).strftime("%-d %B %Y, %H:%M UTC"),
        verdict=VERDICTS[report.verdict],
        states=STATES,
        parity_data=PARITY_DATA,
        matrix=_matrix(report),
        loud=sorted(loud, key=lambda row: ATTENTION.index(row.status)),
        quiet=[row for row in report.gates if row.status == "passed"],
        failures=failures,
        budgets=budgets,
        latency=latency,
        steps=[(step, round(100 * step.seconds / longest, 1)) for step in report.steps],
        ran=_ran(report),
        sections=_sections(report, failures=bool(failures), budgets=bool(budgets), latency=latency is not None),
    )


# ---- words and signs


@dataclass(frozen=True)
class State:
    """A word, a sign and a tone, so that nothing hangs on colour alone."""

    word: str
    sign: str
    tone: str


STATES = {
    "executed": State("executed", "✓", "good"),
    "interpreted": State("interpreted", "≈", "warn"),
    "not verified": State("not verified", "○", "warn"),
    "passed": State("passed", "✓", "good"),
    "failed": State("failed", "✗", "bad"),
    "waived": State("waived", "~", "warn"),
    "skipped": State("skipped", "\N{EN DASH}", "flat"),
    "unchecked": State("not checked", "?", "warn"),
    "ran": State("ran", "✓", "good"),
    "cached": State("cached", "=", "flat"),
    "changed": State("changed", "✓", "good"),
    "unchanged": State("unchanged", "·", "flat"),
    "dropped": State("dropped", "!", "warn"),
}
VERDICTS = {
    "pass": State("Pass", "✓", "good"),
    "fail": State("Fail", "✗", "bad"),
    "incomplete": State("Incomplete", "○", "warn"),
}
ATTENTION = ("failed", "unchecked", "waived", "skipped", "passed")
"""Gates that need a look come first."""
PARITY_DATA = {
    "samples": "the recipe's samples",
    "calibration": "rows of the calibration data",
    "generated": "generated inputs",
    None: "none",
}


# ---- the table


@dataclass(frozen=True)
class MatrixRow:
    artifact: ArtifactRow
    anchor: str
    state: str
    remark: str | None
    gates: Sequence[tuple[str, int]]


def _matrix(report: Report) -> list[tuple[str, list[MatrixRow]]]:
    """Target to its variants, each with its state and how many of its gates ended how."""
    rows = []
    for number, artifact in enumerate(report.artifacts):
        statuses = [gate.status for gate in report.gates if gate.subject == artifact.name]
        state = artifact.verified if artifact.status == "built" else artifact.status
        counted = [(status, statuses.count(status)) for status in ATTENTION if status in statuses]
        remark = artifact.reason or artifact.settings
        rows.append(MatrixRow(artifact, f"artifact-{number}", state, remark, counted))
    return [(target, list(group)) for target, group in groupby(rows, key=lambda row: row.artifact.target)]


def _ran(report: Report) -> str:
    counted = [(status, sum(step.status == status for step in report.steps)) for status in STATES]
    words = ", ".join(f"{count} {status}" for status, count in counted if count)
    return f"{count_text(len(report.steps), 'step')}: {words}" if words else "No step"


def _sections(report: Report, *, failures: bool, budgets: bool, latency: bool) -> Iterator[tuple[str, str]]:
    yield "artifacts", "Artifacts"
    if failures:
        yield "failures", "Failures"
    yield "gates", "Gates"
    if budgets:
        yield "budget", "Error budget"
    if latency:
        yield "latency", "Latency"
    if report.baseline is not None:
        yield "baseline", "Since the baseline"
    yield "details", "In detail"
    if report.optimize:
        yield "passes", "Passes"
    yield "steps", "Steps"
    yield "environment", "Environment"


# ---- charts

ROW = 26
"""Height of one bar with its space, in pixels, as everything below."""
AXIS = 20


@dataclass(frozen=True)
class Tick:
    x: float
    label: str


@dataclass(frozen=True)
class BudgetBar:
    label: str
    x: float
    y: float
    length: float
    spent: float
    figure: str
    note: str
    broken: bool


@dataclass(frozen=True)
class LatencyBar:
    label: str
    x: float
    y: float
    length: float
    whisker: str
    """The path to p90 and p99, cut off where the scale ends."""
    figure: str
    ratio: str
    note: str
    reference: bool


@dataclass(frozen=True)
class Chart:
    """One drawing. ``limit`` is the x of the dashed line; ``words`` say the same to who cannot see it."""

    title: str
    output: str
    width: int
    height: int
    floor: int
    ticks: Sequence[Tick]
    bars: Sequence[BudgetBar | LatencyBar]
    limit: float | None
    words: str


def _budgets(artifacts: Sequence[ArtifactRow]) -> list[Chart]:
    """One chart an artifact, all on one scale, so that they can be held against each other."""
    shown = [artifact for artifact in artifacts if artifact.budget]
    finite = [stage.snr_db for artifact in shown for stage in artifact.budget if abs(stage.snr_db) < CAP_DB]
    top = max(100, 20 * math.ceil(max(finite, default=0) / 20))
    return [_budget(artifact, top) for artifact in shown]


def _budget(artifact: ArtifactRow, top: int) -> Chart:
    width, left, right = 480, 128, 124

    def x(snr_db: float) -> float:
        return round(left + (width - left - right) * min(max(snr_db, 0.0), top) / top, 1)

    bound = artifact.tolerance.get("snr_db")
    bars, before = [], float(top)
    for number, stage in enumerate(artifact.budget):
        kind, _, subject = stage.step.partition(" ")
        # Of `quantize int8/u8s8` the scheme is what the title does not say.
        scheme = subject.rpartition("/")
        label = f"{kind} {scheme[2]}" if kind == "quantize" and scheme[0] else kind
        bars.append(
            BudgetBar(
                label=_shortened(label, 20),
                x=left,
                y=number * ROW,
                length=round(x(stage.snr_db) - left, 1),
                spent=round(max(0.0, x(before) - x(stage.snr_db)), 1) if number else 0.0,
                figure=decibel_text(stage.snr_db),
                note="" if stage.share is None else percent_text(stage.share),
                broken=bound is not None and stage.snr_db < bound and stage is artifact.budget[-1],
            )
        )
        before = stage.snr_db
    floor = len(bars) * ROW
    return Chart(
        title=artifact.name,
        output=artifact.budget[-1].output,
        width=width,
        height=floor + AXIS,
        floor=floor,
        ticks=[Tick(x(db), f"{db}" if db else "0 dB") for db in range(0, top + 1, 40)],
        bars=bars,
        limit=None if bound is None else x(bound),
        words=f"{artifact.name}: " + ", ".join(f"{bar.label} {bar.figure}" for bar in bars),
    )


def _latency(report: Report) -> Chart | None:
    timed: list[tuple[str, LatencyRow]] = [("reference", report.reference)] if report.reference is not None else []
    timed += [(artifact.name, artifact.latency) for artifact in report.artifacts if artifact.latency is not None]
    if not timed:
        return None
    width, left, right = 1040, 170, 250
    slowest = max(latency.p50_ms for _, latency in timed)
    # A busy machine has tails of many times the median: they may leave the scale, the medians are what it is for.
    longest = max(slowest, min(slowest * 2, max(latency.p99_ms for _, latency in timed)))
    step = _nice(longest / 5)
    top = step * math.ceil(longest / step)

    def x(ms: float) -> float:
        return round(left + (width - left - right) * ms / top, 1)

    def whisker(latency: LatencyRow, y: float) -> str:
        ends = [f"M{x(ms)} {y + 6}v8" for ms in (latency.p90_ms, latency.p99_ms) if ms <= top]
        return f"M{x(latency.p50_ms)} {y + 10}H{x(min(latency.p99_ms, top))}{''.join(ends)}"

    bars = [
        LatencyBar(
            label=_shortened(name, 26),
            x=left,
            y=number * ROW,
            length=round(x(latency.p50_ms) - left, 1),
            whisker=whisker(latency, number * ROW),
            figure=milliseconds_text(latency.p50_ms),
            ratio=ratio_text(latency.ratio_to_reference),
            note="" if latency.stable else "unstable",
            reference=name == "reference",
        )
        for number, (name, latency) in enumerate(timed)
    ]
    floor = len(bars) * ROW
    return Chart(
        title="Latency",
        output="",
        width=width,
        height=floor + AXIS,
        floor=floor,
        ticks=[Tick(x(step * mark), f"{step * mark:g} ms") for mark in range(round(top / step) + 1)],
        bars=bars,
        limit=None if report.reference is None else x(report.reference.p50_ms),
        words=", ".join(f"{bar.label} {bar.figure}" for bar in bars),
    )


def _nice(value: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least ``value``."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * 0.999)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
