"""Every target on ONNX's own node tests: what does not pass is listed with its reason, and nothing is wrong."""

from __future__ import annotations

import execute
import expected
import pytest
import suite
import support_table

from retarget.catalog import TARGETS, target

NAMES = sorted(path.stem for path in expected.FOLDER.glob("*.yaml"))


def test_every_target_has_expectations() -> None:
    """TensorRT's are those of TensorRT-RTX: one package of ours, and only the latter can be installed here."""
    assert set(NAMES) == set(TARGETS) - {"tensorrt"}


def test_the_suite_is_as_large_as_it_was() -> None:
    cases = suite.cases()
    assert len(cases) >= 840
    assert len({case.op for case in cases}) >= 150
    assert len({case.name for case in cases}) == len(cases)


@pytest.mark.parametrize("name", NAMES)
def test_conformance(name: str) -> None:
    if (reason := target(name).unavailable()) is not None:
        pytest.skip(reason[0])
    results = execute.execute(name, [case.name for case in suite.cases()])
    assert len(results) == len(suite.cases())
    surprises = expected.surprises(results.values(), expected.load(name))
    assert not surprises, "\n".join(surprises)


def test_a_crash_is_the_failure_of_one_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(execute.CRASH, "test_acos")
    results = execute.execute("onnxruntime", ["test_abs", "test_acos", "test_add"])
    assert {name: result.end for name, result in results.items()} == {
        "test_abs": "passed",
        "test_acos": "failed",
        "test_add": "passed",
    }
    assert results["test_acos"].detail == "the process was ended by SIGSEGV"


def test_expectations_are_strict() -> None:
    groups = (expected.Group("known", "refused", ("test_a", "test_gone")),)
    results = (execute.Result("test_a", "passed"), execute.Result("test_b", "wrong", "off by 1"))
    assert expected.surprises(results, groups) == [
        "test_a: expected refused, it passed: ",
        "test_b: expected passed, it wrong: off by 1",
        "test_gone: expected, but the suite has no such case",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_support_page_is_current(name: str) -> None:
    page = support_table.PAGES / f"support-{name}.md"
    assert page.read_text() == support_table.render(name), "run `make docs`"
