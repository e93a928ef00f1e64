"""Write ``docs/reference/support-<target>.md``: which operators a target takes, from the suite and what is expected.

``python tests/conformance/support_table.py``; it runs no target, as the conformance test holds the expectations.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import expected
import suite

PAGES = Path(__file__).parents[2] / "docs" / "reference"

INTRODUCTION = """\
# What the target `{target}` takes

<!-- Written by tests/conformance/support_table.py; do not edit. -->

{passed} of {total} of ONNX's own node tests, {full} of {operators} operators whole. A test counts when the model is
written and, where it can be executed or interpreted here, its outputs agree with those that ONNX stores. What does not
pass is refused before anything is written, with the reason below. Tests whose operands no deployed model could hold
(sequences, strings, empty tensors, rare types) are left out.

| operator | tests | what is refused, and why |
|---|---:|---|
"""


def render(target: str) -> str:
    """The page of ``target``."""
    reasons = {name: group.reason for group in expected.load(target) for name in group.cases}
    total: Counter[str] = Counter()
    refused: dict[str, Counter[str]] = defaultdict(Counter)
    for case in suite.cases():
        total[case.op] += 1
        if case.name in reasons:
            refused[case.op][reasons[case.name]] += 1
    rows = []
    for op in sorted(total):
        passed = total[op] - refused[op].total()
        why = "; ".join(f"{reason} ({count})" for reason, count in sorted(refused[op].items()))
        rows.append(f"| {op} | {passed}/{total[op]} | {why.replace('|', '/')} |")
    introduction = INTRODUCTION.format(
        target=target,
        passed=total.total() - len(reasons),
        total=total.total(),
        full=sum(not refused[op] for op in total),
        operators=len(total),
    )
    return introduction + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGES.mkdir(parents=True, exist_ok=True)
    for file in sorted(expected.FOLDER.glob("*.yaml")):
        (PAGES / f"support-{file.stem}.md").write_text(render(file.stem))
