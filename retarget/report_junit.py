"""``junit.xml``: each artifact and each gate a test case, so that any CI system shows them."""

from __future__ import annotations

import xml.etree.ElementTree as ET  # writes only: nothing is parsed
from typing import TYPE_CHECKING

from retarget.figures import count_text

if TYPE_CHECKING:
    from retarget.report_schema import ArtifactRow, GateRow, Report, StepRow


def render(report: Report) -> str:
    """A suite of artifacts and one of gates. What could not be verified or judged is ``skipped``, never a success."""
    root = ET.Element("testsuites", name=f"retarget {report.name}")
    steps = {step.id: step for step in report.steps}
    artifacts = [_artifact(row, steps.get(f"emit {row.name}")) for row in report.artifacts]
    gates = [_gate(row) for row in report.gates]
    for name, cases in (("artifacts", artifacts), ("gates", gates)):
        suite = ET.SubElement(root, "testsuite", name=name, timestamp=report.environment.built)
        suite.set("tests", str(len(cases)))
        for kind, plural in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            suite.set(plural, str(sum(case.find(kind) is not None for case in cases)))
        suite.extend(cases)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _artifact(row: ArtifactRow, step: StepRow | None) -> ET.Element:
    case = ET.Element("testcase", classname=f"artifacts.{_clean(row.target)}", name=_clean(row.name))
    if step is not None:
        case.set("time", f"{step.seconds:.3f}")
    if row.status == "failed":
        error = ET.SubElement(case, "error", message=_clean(row.reason or ""))
        if step is not None and step.error is not None:
            parts = (step.error.message, step.error.hint and f"hint: {step.error.hint}", step.error.excerpt)
            error.text = _clean("\n\n".join(part for part in parts if part))
    elif row.status == "skipped":
        ET.SubElement(case, "skipped", message=_clean(f"not built: {row.reason}"))
    elif row.verified == "not verified":
        ET.SubElement(case, "skipped", message=_clean(f"not verified: {row.reason}"))
    elif broken := [parity for parity in row.parity if not parity.passed]:
        message = f"{count_text(len(broken), 'output')} out of tolerance"
        text = "\n".join(f"{parity.output}: {parity.reason}" for parity in broken)
        ET.SubElement(case, "failure", message=message).text = _clean(text)
    if row.status == "built" and row.verified == "interpreted":
        ET.SubElement(case, "system-out").text = _clean(f"interpreted: {row.reason}")
    return case


def _gate(row: GateRow) -> ET.Element:
    case = ET.Element("testcase", classname=f"gates.{_clean(row.gate)}", name=_clean(f"{row.gate} {row.subject}"))
    if row.status == "failed":
        expired = f"\nwaiver expired {row.waiver.expires}: {row.waiver.reason}" if row.waiver is not None else ""
        ET.SubElement(case, "failure", message=_clean(row.detail)).text = _clean(row.detail + expired)
    elif row.status == "waived" and row.waiver is not None:
        message = f"waived until {row.waiver.expires}: {row.waiver.reason} ({row.detail})"
        ET.SubElement(case, "skipped", message=_clean(message))
    elif row.status in ("skipped", "unchecked"):
        ET.SubElement(case, "skipped", message=_clean(row.detail))
    return case


def _clean(text: str) -> str:
    """``text`` without the characters that XML 1.0 cannot hold, even escaped."""
    return "".join(character for character in text if character in "\t\n\r" or _legal(ord(character)))


def _legal(code: int) -> bool:
    return 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or 0x10000 <= code <= 0x10FFFF
