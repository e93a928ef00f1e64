from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from made_build import ENVIRONMENT, full_build, interpreted, made_recipe, of_one_size

from retarget import report, report_html
from retarget.facts import Int8Facts
from retarget.report_schema import Report

HOSTILE = "</style></script><script>alert(1)</script><img src=x onerror=alert(1)> \"'`{{ 7*7 }}{% raw %}&amp;"
VOID = {"meta", "br", "line", "rect", "path", "img"}


class Page(HTMLParser):
    """Elements and attributes of a page; that every element is closed in order is checked while it is read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def made(tmp_path: Path) -> Report:
    build = full_build(tmp_path)
    return report.build(build.plan(made_recipe()), build.outcomes, environment=ENVIRONMENT)


def test_every_element_is_closed_and_every_link_leads_somewhere(made: Report) -> None:
    page = Page(report_html.render(made))
    anchors = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(anchors) == len(set(anchors))
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert links
    assert {link for link in links if link} <= {f"#{anchor}" for anchor in anchors}


def test_the_page_needs_nothing_but_itself(made: Report) -> None:
    text = report_html.render(made)
    page = Page(text)
    assert not [tag for tag, _ in page.elements if tag in ("script", "link", "img", "iframe", "object", "base", "form")]
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text, re.IGNORECASE)


def test_names_from_outside_are_text(made: Report) -> None:
    hostile = _hostile(made)
    page = Page(report_html.render(hostile))
    assert not [tag for tag, _ in page.elements if tag in ("script", "img")]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert HOSTILE in "".join(page.words)
    assert "{{ 7*7 }}" in page.text
    assert [tag for tag, _ in page.elements].count("style") == 1


def _hostile(made: Report) -> Report:
    """The same report with every free text replaced by markup."""
    kept = {
        "status",
        "kind",
        "verdict",
        "verified",
        "dtype",
        "built",
        "schema",
        "data",
        "expires",
        "step",
        "gate",
        "target",
    }

    def poison(value: object, key: str = "") -> object:
        if isinstance(value, dict):
            return {name: poison(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [poison(item, key) for item in value]
        return HOSTILE if isinstance(value, str) and key not in kept else value

    return msgspec.convert(poison(msgspec.to_builtins(made)), Report)


def test_a_sign_and_a_word_stand_beside_every_colour(made: Report) -> None:
    page = Page(report_html.render(made))
    tags = [
        attributes
        for tag, attributes in page.elements
        if tag == "span" and "tag" in (attributes.get("class") or "").split()
    ]
    assert tags
    assert all(attributes.get("data-sign") for attributes in tags)
    for word in ("Fail", "executed", "not verified", "skipped", "not checked", "waived", "passed"):
        assert word in page.text


def test_what_matters_is_on_the_page(made: Report) -> None:
    text = Page(report_html.render(made)).text
    for piece in (
        made.headline,
        "openvino was killed by SIGSEGV",
        "Segmentation fault (core dumped)",
        "118.4 dB",
        "exact",
        "lost",
        "0.9806",
        "3.10 ms",
        "22.7 MB",
        "no NVIDIA GPU on this machine",
        "waiver expired 2026-11-20: the known NaN of the box head",
        "waived until 2026-12-31",
        "output 'boxes' moved to 31.2 dB",
        "its output reaches 41200, near float16's limit of 65504",
        "retarget build recipe.yaml --locked --only openvino/fp16",
        "boxes/sink_port_0",
        "AMD EPYC 9354 32-Core Processor",
        str(made.model.sha256),
        "21 November 2026, 10:15 UTC",
    ):
        assert piece in text, piece


def test_a_build_of_which_nothing_came_still_has_a_page(made: Report) -> None:
    nothing = msgspec.structs.replace(
        made,
        verdict="incomplete",
        artifacts=(),
        gates=(),
        optimize=(),
        reference=None,
        bench=None,
        model=msgspec.structs.replace(made.model, sha256=None, form=None, inputs=(), outputs=(), shapes={}),
    )
    text = Page(report_html.render(nothing)).text
    assert "Incomplete" in text
    assert "no artifact was asked for" in text


def test_a_budget_chart_keeps_within_its_frame(made: Report) -> None:
    for chart in report_html._budgets(made.artifacts):
        for bar in chart.bars:
            assert isinstance(bar, report_html.BudgetBar)
            assert bar.length >= 0
            assert bar.spent >= 0
            assert bar.x + bar.length + bar.spent <= chart.width - 100


def test_how_latency_was_taken_is_said(made: Report) -> None:
    assert "artifacts taking turns in one run" in report_html.render(made)
    apart = report_html.render(msgspec.structs.replace(made, bench_together=False))
    assert "each artifact taking turns with the reference alone" in apart
    assert "artifacts taking turns in one run" not in apart


def test_what_the_check_of_the_passes_left_out_is_said(made: Report) -> None:
    note = "not tried with ONNX Runtime's optimizations on: they copy the 900 MB of weights"
    (optimize, *others) = made.optimize
    noted = msgspec.structs.replace(optimize, notes=(note,))
    assert note not in Page(report_html.render(made)).text
    assert note in Page(report_html.render(msgspec.structs.replace(made, optimize=(noted, *others)))).text


def test_a_page_of_ranges_is_linked(made: Report) -> None:
    int8 = Int8Facts(scheme="u8s8", method="mse", judged_on="24 rows", snr_db=31.5)
    row, *others = made.artifacts
    page = "calibration/equalized/ranges.html"
    linked = msgspec.structs.replace(row, int8=int8, ranges=page)
    found = Page(report_html.render(msgspec.structs.replace(made, artifacts=(linked, *others))))
    assert page in {attributes.get("href") for tag, attributes in found.elements if tag == "a"}
    assert "31.5 dB against the float model" in found.text


def test_latency_bars_are_in_proportion(made: Report) -> None:
    chart = report_html._latency(made)
    assert chart is not None
    bars = {bar.label: bar for bar in chart.bars}
    assert bars["ncnn/fp16"].length / bars["openvino/fp16"].length == pytest.approx(14.2 / 3.0, rel=0.01)
    assert chart.limit == pytest.approx(bars["reference"].x + bars["reference"].length)


def test_a_baseline_has_its_section(made: Report) -> None:
    page = Page(report_html.render(msgspec.structs.replace(made, baseline=report.difference(made, made))))
    assert "Against detector of 2026-11-21T10:15:00+00:00, on the same machine" in page.text


def test_parity_cases_that_were_left_out_are_said(made: Report) -> None:
    said = "Parity: not held against max (N=32): it takes N=8 alone"
    assert said not in Page(report_html.render(made)).text
    assert said in Page(report_html.render(of_one_size(made, "openvino/fp32", ("max (N=32)",)))).text


def test_what_was_interpreted_is_said(made: Report) -> None:
    text = Page(report_html.render(interpreted(made, "openvino/fp32", "there is no Mac here"))).text
    assert "interpreted there is no Mac here" in " ".join(text.replace("≈", "").split())


def test_how_inputs_stand_in_the_artifact_is_said(made: Report) -> None:
    row, *others = made.artifacts
    turned = msgspec.structs.replace(row.inputs[0], permutation=(0, 2, 3, 1), scale=0.0078125, zero_point=-3)
    changed = msgspec.structs.replace(row, inputs=(turned, *row.inputs[1:]))
    text = Page(report_html.render(msgspec.structs.replace(made, artifacts=(changed, *others)))).text
    assert "its axes are 0, 2, 3, 1 of the given ones" in text
    assert "value = 0.0078125 * (code - -3)" in text
