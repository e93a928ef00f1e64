from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from made_build import ENVIRONMENT, full_build, interpreted, made_recipe, of_one_size

from retarget import report, report_markdown
from retarget.figures import ratio_text
from retarget.report_schema import Report


@pytest.fixture
def made(tmp_path: Path) -> Report:
    build = full_build(tmp_path)
    return report.build(build.plan(made_recipe()), build.outcomes, environment=ENVIRONMENT)


def tables(text: str) -> list[list[list[str]]]:
    """Each table of ``text`` as rows of cells, split as GitHub splits them: at every pipe without a backslash."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def test_the_verdict_comes_first(made: Report) -> None:
    lines = report_markdown.render(made).splitlines()
    assert lines[0] == "## ❌ fail: detector"
    assert lines[2] == made.headline


def test_the_table_of_artifacts(made: Report) -> None:
    head, rule, *rows = tables(report_markdown.render(made))[0]
    assert head == ["Artifact", "Verified", "Parity (worst)", "Accuracy", "p50", "vs reference", "Size", "vs source"]
    assert rule[2] == "---:"
    assert len(rows) == len(made.artifacts)
    openvino = next(row for row in rows if row[0] == "**openvino** / fp16")
    assert openvino[1:3] == ["executed", "63.1 dB"]
    assert openvino[4:] == ["3.00 ms", ratio_text(3.0 / 8.4), "22.7 MB", ratio_text(0.502)]
    assert next(row for row in rows if row[0] == "**ncnn** / fp16")[2] == "lost"
    assert next(row for row in rows if row[0] == "**tensorrt** / fp16")[1] == "skipped: tensorrt is not installed"


def test_gates_that_passed_are_folded_away(made: Report) -> None:
    text = report_markdown.render(made)
    loud, _, quiet = text.partition("<details>")
    assert "❌ failed" in loud
    assert "✅ passed" not in loud
    assert "❌" not in quiet.partition("</details>")[0]
    assert "expired 2026-11-20" in loud


def test_names_from_outside_break_no_table_and_bring_no_markup(made: Report) -> None:
    evil = "a|b\n|c|<img src=x> [x](y) **z**"
    rows = tuple(msgspec.structs.replace(row, variant=evil, reason=evil) for row in made.artifacts)
    text = report_markdown.render(msgspec.structs.replace(made, artifacts=rows, name=evil))
    for table in tables(text):
        assert len({len(row) for row in table}) == 1
    assert "<img" not in text.replace("\\<img", "")
    assert not re.search(r"(?<!\\)\[x(?<!\\)\]", text)


def test_a_baseline_has_its_table(made: Report) -> None:
    text = report_markdown.render(msgspec.structs.replace(made, baseline=report.difference(made, made)))
    assert "### Since detector of 2026-11-21T10:15:00+00:00 (the same machine)" in text
    change = next(row for table in tables(text) for row in table if row[0] == "openvino / fp32")
    assert change[2] == ratio_text(1.0)


def test_what_was_interpreted_is_said(made: Report) -> None:
    text = report_markdown.render(interpreted(made, "openvino/fp32", "there is no Mac here"))
    assert "| interpreted: there is no Mac here |" in text


def test_parity_cases_that_were_left_out_are_said(made: Report) -> None:
    assert "not held against" not in report_markdown.render(made)
    fixed = of_one_size(made, "openvino/fp32", tuple(f"data{n} (N={n})" for n in range(5)))
    said = "- openvino/fp32: not held against data0 (N=0), data1 (N=1), data2 (N=2), 2 more: it takes N=8 alone"
    assert said in report_markdown.render(fixed).splitlines()
