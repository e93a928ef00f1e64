"""``report.md``: the verdict and the figures as GitHub renders them in a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from retarget import report_int8
from retarget.figures import (
    NONE,
    bytes_text,
    decibel_text,
    drop_text,
    milliseconds_text,
    ratio_text,
    score_text,
    seconds_text,
    signed_text,
)
from retarget.report_schema import NOT_MEASURED

if TYPE_CHECKING:
    from retarget.report_schema import ArtifactRow, Report

VERDICT = {"pass": "✅ pass", "fail": "❌ fail", "incomplete": "⚠️ incomplete"}
GATE = {
    "passed": "✅ passed",
    "failed": "❌ failed",
    "waived": "⏸️ waived",
    "skipped": "⏭️ skipped",
    "unchecked": "⚠️ not checked",
}

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~&])")


def render(report: Report) -> str:
    """The whole text; everything that comes from outside is escaped."""
    lines = [f"## {VERDICT[report.verdict]}: {_text(report.name)}", "", _text(report.headline), ""]
    lines += [f"- {_text(reason)}" for reason in report.reasons]
    lines += ["", *_artifacts(report)]
    lines += ["", *_gates(report)]
    lines += _baseline(report)
    lines += _int8(report)
    lines += _failures(report)
    lines += _warnings(report)
    lines += ["", _footer(report)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _artifacts(report: Report) -> Iterator[str]:
    head = ("Artifact", "Verified", "Parity (worst)", "Accuracy", "p50", "vs reference", "Size", "vs source")
    yield from _table(head, [_artifact(row) for row in report.artifacts], right=frozenset({2, 3, 4, 5, 6, 7}))
    if not report.measured and any(row.status == "built" for row in report.artifacts):
        yield from ("", f"Latency: {NOT_MEASURED}.")
    if unheld := [f"- {_text(row.name)}: {_text(row.unheld)}" for row in report.artifacts if row.unheld]:
        yield from ("", "Parity:", "", *unheld)


def _artifact(row: ArtifactRow) -> Sequence[str]:
    worst, accuracy, latency = row.worst, row.accuracy, row.latency
    state = row.verified if row.status == "built" else row.status
    scored = accuracy is not None and accuracy.value is not None
    return (
        f"**{_text(row.target)}** / {_text(row.variant)}",
        _text(state if state == "executed" else f"{state}: {row.reason}" if row.reason else state),
        NONE if worst is None else decibel_text(worst.snr_db, exact=worst.exact),
        f"{score_text(accuracy.value)} ({drop_text(accuracy.drop)})" if accuracy is not None and scored else NONE,
        milliseconds_text(None if latency is None else latency.p50_ms)
        + ("" if latency is None or latency.stable else " ~"),
        ratio_text(None if latency is None else latency.ratio_to_reference),
        bytes_text(row.bytes),
        ratio_text(row.ratio_to_source),
    )


def _gates(report: Report) -> Iterator[str]:
    """Gates that need a look stand open; those that passed are folded away."""
    loud = [row for row in report.gates if row.status != "passed"]
    quiet = [row for row in report.gates if row.status == "passed"]
    for title, rows in ((None, loud), (f"{len(quiet)} gates passed", quiet)):
        if not rows:
            continue
        cells = [
            (
                GATE[row.status],
                _text(row.gate),
                _text(row.subject),
                _text(row.detail)
                + (
                    f" ({'expired' if row.waiver.expired else 'waived until'} {row.waiver.expires}: "
                    f"{_text(row.waiver.reason)})"
                    if row.waiver is not None
                    else ""
                ),
            )
            for row in rows
        ]
        if title is not None:
            yield from ("", f"<details><summary>{title}</summary>", "")
        yield from _table(("", "Gate", "Artifact", "Detail"), cells)
        if title is not None:
            yield from ("", "</details>")


def _baseline(report: Report) -> Iterator[str]:
    if report.baseline is None:
        return
    machine = (
        "the same machine" if report.baseline.same_machine else "another machine: latency relative to the reference"
    )
    yield from ("", f"### Since {_text(report.baseline.name)} of {report.baseline.built} ({machine})", "")
    cells = [
        (
            f"{_text(row.target)} / {_text(row.variant)}",
            row.status if row.status != "same" else " → ".join(row.verified) if row.verified else "",
            ratio_text(row.latency_ratio),
            signed_text(row.accuracy_change, 4),
            NONE if row.snr_change_db is None else f"{signed_text(row.snr_change_db, 1)} dB",
            ratio_text(row.bytes_ratio),
        )
        for row in report.baseline.changes
    ]
    head = ("Artifact", "", "Latency", "Accuracy", "SNR", "Size")
    yield from _table(head, cells, right=frozenset({2, 3, 4, 5}))


def _int8(report: Report) -> Iterator[str]:
    """How each int8 artifact was made, folded away."""
    for row in report.artifacts:
        if row.int8 is not None:
            yield from ("", f"<details><summary>{_text(row.name)}: how it was made</summary>", "")
            yield from (f"- {_text(sentence)}" for sentence in report_int8.made(row.int8))
            yield from ("", "</details>")


def _failures(report: Report) -> Iterator[str]:
    failures = [step for step in report.steps if step.is_cause]
    if failures:
        yield from ("", "### Failures", "")
    for step in failures:
        assert step.error is not None
        yield f"- **{_text(step.id)}** {step.status}: {_text(step.error.message)}"
        if step.error.hint:
            yield f"  hint: {_text(step.error.hint)}"


def _warnings(report: Report) -> Iterator[str]:
    if report.warnings:
        yield from ("", "### Warnings", "")
        yield from (f"- {_text(warning)}" for warning in report.warnings)


def _footer(report: Report) -> str:
    machine = report.environment
    digest = f" `{report.model.sha256[:12]}`" if report.model.sha256 else ""
    total = seconds_text(sum(step.seconds for step in report.steps))
    return (
        f"<sub>{_text(report.model.path)}{digest} · retarget {_text(machine.retarget)} · "
        f"{_text(machine.cpu)} · {total} of steps · {machine.built}</sub>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---:' if column in right else '---' for column in range(len(head)))} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _text(text: str) -> str:
    """``text`` on one line, shown as it is."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
