from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest
from made_build import ENVIRONMENT, NO_GPU, full_build, interpreted, made_recipe

from retarget import report, report_junit
from retarget.report_schema import Report


@pytest.fixture
def made(tmp_path: Path) -> Report:
    build = full_build(tmp_path)
    return report.build(build.plan(made_recipe()), build.outcomes, environment=ENVIRONMENT)


def case(root: ET.Element, name: str) -> ET.Element:
    (found,) = (element for element in root.iter("testcase") if element.get("name") == name)
    return found


def test_each_artifact_and_each_gate_is_a_case(made: Report) -> None:
    root = ET.fromstring(report_junit.render(made))
    suites = {suite.get("name"): suite for suite in root.findall("testsuite")}
    assert len(suites["artifacts"].findall("testcase")) == len(made.artifacts)
    assert len(suites["gates"].findall("testcase")) == len(made.gates)
    for suite in suites.values():
        cases = suite.findall("testcase")
        assert suite.get("tests") == str(len(cases))
        for kind, plural in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert suite.get(plural) == str(sum(found.find(kind) is not None for found in cases))


def test_only_what_was_verified_is_a_success(made: Report) -> None:
    root = ET.fromstring(report_junit.render(made))
    assert list(case(root, "openvino/fp32")) == []
    skipped = case(root, "tensorrt_rtx/fp16").find("skipped")
    assert skipped is not None
    assert skipped.get("message") == f"not verified: {NO_GPU}"
    assert case(root, "tensorrt/fp16").find("skipped") is not None
    assert case(root, "parity tensorrt_rtx/fp16").find("skipped") is not None
    assert case(root, "accuracy ncnn/fp16").find("skipped") is not None


def test_what_was_interpreted_is_said(made: Report) -> None:
    root = ET.fromstring(report_junit.render(interpreted(made, "openvino/fp32", "there is no Mac here")))
    assert [(said.tag, said.text) for said in case(root, "openvino/fp32")] == [
        ("system-out", "interpreted: there is no Mac here")
    ]


def test_a_failure_says_what_and_why(made: Report) -> None:
    root = ET.fromstring(report_junit.render(made))
    broken = case(root, "ncnn/fp16").find("failure")
    assert broken is not None
    assert broken.text == "boxes: 12 NaN where the reference has none; snr_db -300 < 40"
    gate = case(root, "parity ncnn/fp16").find("failure")
    assert gate is not None
    assert "waiver expired 2026-11-20: the known NaN of the box head" in (gate.text or "")
    crashed = case(root, "openvino/int8").find("error")
    assert crashed is not None
    assert "hint: build this target alone" in (crashed.text or "")
    assert "Segmentation fault" in (crashed.text or "")


def test_a_waived_gate_is_skipped_with_its_reason(made: Report) -> None:
    root = ET.fromstring(report_junit.render(made))
    skipped = case(root, "accuracy openvino/fp16").find("skipped")
    assert skipped is not None
    assert (skipped.get("message") or "").startswith("waived until 2026-12-31: bf16 accumulates")


def test_characters_that_xml_cannot_hold_are_left_out(made: Report) -> None:
    evil = "a\x00b\x1bc\ufffe<d>&\"'"
    rows = tuple(msgspec.structs.replace(row, detail=evil) for row in made.gates)
    root = ET.fromstring(report_junit.render(msgspec.structs.replace(made, gates=rows)))
    failure = case(root, "parity ncnn/fp16").find("failure")
    assert failure is not None
    assert failure.get("message") == "abc<d>&\"'"
