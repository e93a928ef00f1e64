from __future__ import annotations

import io
import sys
from pathlib import Path

import msgspec
import pytest
from made_build import ENVIRONMENT, MadeBuild, full_build, interpreted, made_recipe, of_one_size
from rich.console import Console

from retarget import report, report_markdown, terminal
from retarget.engine import Event
from retarget.protocols import Outcome, StepError
from retarget.report_schema import Report


@pytest.fixture
def build(tmp_path: Path) -> MadeBuild:
    return full_build(tmp_path)


@pytest.fixture
def made(build: MadeBuild) -> Report:
    return report.build(
        build.plan(made_recipe()), build.outcomes, environment=ENVIRONMENT, warnings=("[bold]N[/bold]",)
    )


def a_console(width: int = 200, *, terminal: bool = False, encoding: str = "utf-8") -> tuple[Console, io.BytesIO]:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    console = Console(file=stream, width=width, force_terminal=terminal, markup=False, highlight=False, emoji=False)
    return console, raw


def shown(made: Report, width: int = 200, encoding: str = "utf-8") -> tuple[str, str]:
    out, out_raw = a_console(width, encoding=encoding)
    err, err_raw = a_console(width, encoding=encoding)
    terminal.show(made, place="build/detector/report.html", out=out, err=err)
    return out_raw.getvalue().decode(encoding), err_raw.getvalue().decode(encoding)


def test_data_goes_to_stdout_and_words_to_stderr(made: Report) -> None:
    out, err = shown(made)
    rows = {line.split()[0]: line for line in out.splitlines() if "/" in line}
    assert list(rows) == [row.name for row in made.artifacts]
    assert "63.1 dB" in rows["openvino/fp16"]
    assert "1 waived, 3 passed" in rows["openvino/fp16"]
    assert "not verified" in rows["tensorrt_rtx/fp16"]
    assert made.headline not in out
    assert f"fail: {made.headline}" in err
    assert "report: build/detector/report.html" in err
    assert "tensorrt_rtx/fp16 not verified: no NVIDIA GPU on this machine" in err
    assert "warning: [bold]N[/bold]" in err


def test_what_was_interpreted_is_not_called_executed(made: Report) -> None:
    out, err = shown(interpreted(made, "openvino/fp32", "there is no Mac here"))
    (row,) = (line for line in out.splitlines() if "openvino/fp32" in line)
    assert row.split()[1] == "interpreted"
    assert "openvino/fp32 interpreted: there is no Mac here" in err


@pytest.mark.parametrize("width", [60, 80, 100])
def test_names_and_verdicts_are_whole_on_a_narrow_terminal(made: Report, width: int) -> None:
    out, _ = shown(made, width)
    assert "…" not in out
    for row in made.artifacts:
        assert row.name in out
    assert "not verified" in out
    assert "passed" in out


def test_latency_that_was_left_out_is_said(made: Report) -> None:
    steps = tuple(step for step in made.steps if step.kind != "bench")
    for one, said in ((made, False), (msgspec.structs.replace(made, steps=steps), True)):
        assert ("latency: not measured (--no-bench)" in shown(one)[1]) is said
        assert ("Latency: not measured (--no-bench)." in report_markdown.render(one)) is said


def test_a_sign_for_unstable_latency_is_explained(made: Report) -> None:
    for stable in (True, False):
        rows = tuple(
            row
            if row.latency is None
            else msgspec.structs.replace(row, latency=msgspec.structs.replace(row.latency, stable=stable))
            for row in made.artifacts
        )
        out, err = shown(msgspec.structs.replace(made, artifacts=rows))
        assert (" ~" in out) is not stable
        assert ("~ its latency was not stable" in err) is not stable


def test_a_pipe_gets_no_terminal_codes(made: Report) -> None:
    out, err = shown(made)
    assert "\x1b" not in out + err


def test_no_color_is_honoured(made: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out, out_raw = a_console(terminal=True)
    err, err_raw = a_console(terminal=True)
    terminal.show(made, out=out, err=err)
    codes = out_raw.getvalue() + err_raw.getvalue()
    assert b"\x1b[3" not in codes  # no foreground
    assert b"\x1b[9" not in codes  # nor a bright one


def test_a_narrow_terminal_keeps_every_artifact_on_one_line(made: Report) -> None:
    out, _ = shown(made, width=80)
    lines = [line for line in out.splitlines() if "/fp" in line or "/int8" in line]
    assert len(lines) == len(made.artifacts)
    assert max(map(len, out.splitlines())) <= 80


def test_a_latin_terminal_gets_words_for_signs(build: MadeBuild) -> None:
    err, raw = a_console(encoding="latin-1")
    with terminal.Display(3, "net.onnx: ONNX (onnx)", err=err) as display:
        display(Event("ended", build.steps[0], outcome=build.outcomes[0]))
    assert raw.getvalue().decode("latin-1") == "net.onnx: ONNX (onnx)\nok convert  6.2 s\n"


def test_what_a_terminal_cannot_show_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1", write_through=True))
    terminal.console(stderr=False).print("größer: \N{MINUS SIGN}1")
    assert raw.getvalue().decode("latin-1") == "größer: ?1\n"


def test_steps_that_end_are_lines_where_there_is_no_terminal(build: MadeBuild) -> None:
    err, raw = a_console()
    steps = {outcome.step.id: outcome for outcome in build.outcomes}
    after = StepError(kind="Skipped", message="'emit openvino/int8' failed")
    with terminal.Display(4, err=err) as display:
        display(Event("started", build.steps[0]))
        display(Event("progress", build.steps[0], 3, 10, "exporting"))
        for name in ("convert", "calibrate", "emit openvino/int8"):
            display(Event("ended", steps[name].step, outcome=steps[name]))
        display(Event("ended", build.steps[-1], outcome=Outcome(build.steps[-1], "skipped", 0.0, error=after)))
    assert raw.getvalue().decode().splitlines() == [
        "✓ convert  6.2 s",
        "✗ emit openvino/int8: openvino was killed by SIGSEGV",
        "  hint: build this target alone with `--only openvino/int8`, or raise --memory",
        f"  log: {build.folder / 'openvino-int8.txt'}",
        "1 step of 4 cached",
    ]


def test_a_terminal_shows_what_runs(build: MadeBuild, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    err, raw = a_console(terminal=True)
    with terminal.Display(2, err=err) as display:
        display(Event("started", build.steps[0]))
        display(Event("progress", build.steps[0], 3, 10, "exporting"))
        assert display._progress is not None
        display._progress.refresh()
        display(Event("ended", build.steps[0], outcome=build.outcomes[0]))
    text = raw.getvalue().decode()
    assert "exporting" in text
    assert "3/10" in text


def test_a_dumb_terminal_gets_plain_lines(build: MadeBuild, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    err, raw = a_console(terminal=True)
    with terminal.Display(1, err=err) as display:
        display(Event("started", build.steps[0]))
        display(Event("ended", build.steps[0], outcome=build.outcomes[0]))
    assert raw.getvalue().decode() == "✓ convert  6.2 s\n"


def test_parity_cases_that_were_left_out_are_said(made: Report) -> None:
    assert "not held against" not in shown(made)[1]
    fixed = of_one_size(made, "openvino/fp32", ("min (N=1)", "max (N=32)"))
    assert "openvino/fp32 not held against min (N=1), max (N=32): it takes N=8 alone" in shown(fixed)[1]


@pytest.mark.parametrize("where", ["file", "files", "package"])
def test_why_an_artifact_takes_one_size_alone_is_said(made: Report, where: str) -> None:
    why = f"N is 8 in the {where}: a table ends there"
    fixed = of_one_size(made, "openvino/fp32", ("max (N=32)",), (why, "other"))
    assert "not held against max (N=32): it takes N=8 alone, as a table ends there\n" in shown(fixed)[1]
