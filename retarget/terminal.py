"""A build on the terminal: steps as they run on stderr, the table at the end on stdout.

rich is imported inside the functions. It honours ``NO_COLOR`` and a dumb terminal; where stderr is not a terminal,
each step that ends is one plain line.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from retarget.figures import (
    NONE,
    bytes_text,
    count_text,
    decibel_text,
    drop_text,
    milliseconds_text,
    ratio_text,
    score_text,
    seconds_text,
)
from retarget.report_schema import CONSEQUENCE, NOT_MEASURED

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.text import Text

    from retarget.engine import Event
    from retarget.protocols import Outcome
    from retarget.report_schema import ArtifactRow, GateRow, Report

WIDE, MEDIUM = 110, 80
"""Columns below which the table leaves out what matters least, and then all but what was built and how well."""
PIPE_WIDTH = 240
"""Columns of a file or pipe, where nothing needs to be folded."""

_STYLE = {
    "pass": "bold green",
    "fail": "bold red",
    "incomplete": "bold yellow",
    "executed": "green",
    "interpreted": "yellow",
    "not verified": "yellow",
    "ran": "green",
    "cached": "dim",
    "failed": "red",
    "skipped": "yellow",
}
_SIGN = {"ran": "✓", "cached": "=", "failed": "✗", "skipped": "-"}
_ASCII_SIGN = {"ran": "ok", "cached": "=", "failed": "FAILED", "skipped": "-"}


def console(*, stderr: bool) -> Console:
    """A console that prints text as it is: no markup, no highlighting, and no folding where it is not a terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # a name that the terminal cannot show must not end a build
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False)


# ---- the end of a build


def show(report: Report, *, place: str | None = None, out: Console | None = None, err: Console | None = None) -> None:
    """The table of artifacts on stdout, then on stderr the verdict, why, and ``place``, where the report is."""
    from rich.text import Text

    out, err = out or console(stderr=False), err or console(stderr=True)
    _print_table(report, out)
    for warning in report.warnings:
        err.print(Text.assemble(("warning: ", "yellow"), warning))
    err.print(Text.assemble((report.verdict, _STYLE[report.verdict]), f": {report.headline}"))
    for reason in report.reasons:
        err.print(Text(f"  {reason}"))
    consequences = {step.id for step in report.steps if step.error is not None and not step.is_cause}
    for row in report.artifacts:
        if row.status == "built" and row.verified != "executed":
            err.print(Text(f"  {row.name} {row.verified}: {row.reason}", style="dim"))
        if row.unheld is not None:
            err.print(Text(f"  {row.name} {row.unheld}", style="dim"))
        elif row.status == "skipped" and f"emit {row.name}" not in consequences:
            err.print(Text(f"  {row.name} skipped: {row.reason}", style="dim"))
    for gate in report.gates:
        if gate.status == "waived" and gate.waiver is not None:
            note = f"waived until {gate.waiver.expires}: {gate.waiver.reason}"
            err.print(Text(f"  {gate.gate} {gate.subject}: {gate.detail} ({note})", style="dim"))
    if any(row.latency is not None and not row.latency.stable for row in report.artifacts):
        err.print(Text("  ~ its latency was not stable while it was measured", style="dim"))
    if not report.measured and any(row.status == "built" for row in report.artifacts):
        err.print(Text(f"  latency: {NOT_MEASURED}", style="dim"))
    if place is not None:
        err.print(Text(f"report: {place}"))


def _print_table(report: Report, out: Console) -> None:
    from rich import box
    from rich.table import Table

    shown = (
        {"accuracy", "p50", "ratio", "size"} if out.width >= WIDE else {"p50", "size"} if out.width >= MEDIUM else set()
    )
    table = Table(box=box.SIMPLE_HEAD if _unicode(out) else box.ASCII, pad_edge=False)
    table.add_column("artifact", no_wrap=True)
    table.add_column("verified", no_wrap=True)
    for name in ("parity", "accuracy", "p50", "ratio", "size"):
        if name == "parity" or name in shown:
            table.add_column(name, justify="right", no_wrap=True)
    table.add_column("gates", overflow="fold")
    gates: dict[str, list[GateRow]] = {}
    for gate in report.gates:
        gates.setdefault(gate.subject, []).append(gate)
    for row in report.artifacts:
        table.add_row(*_cells(row, gates.get(row.name, []), shown))
    out.print(table)


def _cells(row: ArtifactRow, gates: list[GateRow], shown: set[str]) -> Iterator[Text]:
    from rich.text import Text

    worst, accuracy, latency = row.worst, row.accuracy, row.latency
    state = row.verified if row.status == "built" else row.status
    parity = NONE if worst is None else decibel_text(worst.snr_db, exact=worst.exact)
    yield Text(row.name)
    yield Text(state, style=_STYLE[state])
    yield Text(parity, style="" if all(output.passed for output in row.parity) else "red")
    if "accuracy" in shown:
        scored = accuracy is not None and accuracy.value is not None
        yield Text(f"{score_text(accuracy.value)} ({drop_text(accuracy.drop)})" if accuracy and scored else NONE)
    if "p50" in shown:
        unstable = "" if latency is None or latency.stable else " ~"
        yield Text(milliseconds_text(None if latency is None else latency.p50_ms) + unstable)
    if "ratio" in shown:
        yield Text(ratio_text(None if latency is None else latency.ratio_to_reference))
    if "size" in shown:
        yield Text(bytes_text(row.bytes))
    yield _gates(gates)


def _gates(gates: list[GateRow]) -> Text:
    """``3 passed, 1 failed``, the ones that need a look first."""
    from rich.text import Text

    styles = {"failed": "red", "unchecked": "yellow", "waived": "yellow", "skipped": "dim", "passed": "green"}
    parts: list[tuple[str, str]] = []
    for status, style in styles.items():
        if count := sum(gate.status == status for gate in gates):
            parts += [(", ", "")] if parts else []
            parts.append((f"{count} {status}", style))
    return Text.assemble(*parts) if parts else Text(NONE)


# ---- while steps run


class Display:
    """What runs and what has ended; call it with each event of the engine."""

    def __init__(self, steps: int, heading: str = "", *, err: Console | None = None) -> None:
        self._console = err or console(stderr=True)
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._signs = _SIGN if _unicode(self._console) else _ASCII_SIGN
        self._steps = steps
        self._heading = heading
        self._cached = 0
        self._tasks: dict[str, TaskID] = {}
        self._progress = self._bars() if self._live else None
        self._all = self._progress.add_task("all steps", total=steps, note="") if self._progress else None

    def __enter__(self) -> Self:
        if self._heading:
            self._print(self._heading, "")
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._cached:
            self._print(f"{count_text(self._cached, 'step')} of {self._steps} cached", "dim")

    def __call__(self, event: Event) -> None:
        """Show ``event``."""
        if event.kind == "ended" and event.outcome is not None:
            self._ended(event.outcome)
        elif self._progress is not None:
            task = self._tasks.get(event.step.id)
            if task is None:
                task = self._tasks[event.step.id] = self._progress.add_task(event.step.id, total=None, note="")
            self._progress.update(task, completed=event.done, total=event.total or None, note=event.text)

    def _ended(self, outcome: Outcome) -> None:
        if self._progress is not None:
            if (task := self._tasks.pop(outcome.step.id, None)) is not None:
                self._progress.remove_task(task)
            assert self._all is not None
            self._progress.advance(self._all)
        if outcome.status == "cached":
            self._cached += 1
            return
        if outcome.error is not None and outcome.error.kind == CONSEQUENCE:
            return  # the step that caused it has said so
        time = f"  {seconds_text(outcome.seconds)}" if outcome.status == "ran" else ""
        error = f": {outcome.error.message.strip()}" if outcome.error is not None else ""
        style = _STYLE[outcome.status]
        self._print(f"{self._signs[outcome.status]} {outcome.step.id}{time}{error}", style if error else "")
        if outcome.error is None:
            return
        if outcome.error.hint:
            self._print(f"  hint: {outcome.error.hint}", "")
        if outcome.error.log and (outcome.error.bug or outcome.error.kind == "ToolchainFailure"):
            # Of other errors the log tells no more than the message.
            self._print(f"  log: {outcome.error.log}", "dim")

    def _print(self, text: str, style: str) -> None:
        from rich.text import Text

        self._console.print(Text(text, style=style), soft_wrap=True)

    def _bars(self) -> Progress:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        spinner = SpinnerColumn("dots" if _unicode(self._console) else "line")
        return Progress(
            spinner,
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False, style="dim"),
            console=self._console,
            transient=True,
        )


def _unicode(console: Console) -> bool:
    return (console.encoding or sys.getdefaultencoding()).lower().replace("-", "").startswith("utf")
