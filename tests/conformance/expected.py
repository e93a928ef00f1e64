"""The expected ends of the cases that do not pass: ``expected/<target>.yaml``, a reason with each.

``python tests/conformance/expected.py TARGET`` runs the suite and prints a file to review: cases that end as the
present file says keep its reasons, the others are grouped under what the target said.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import execute
import msgspec
import suite
import yaml

FOLDER = Path(__file__).parent / "expected"


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cases that end in the same way for the same reason. Nothing may be expected to be wrong."""

    reason: str
    end: Literal["refused", "failed"]
    cases: tuple[str, ...]


def load(target: str) -> tuple[Group, ...]:
    """The groups of ``expected/<target>.yaml``, none before it is written; a case stands in one group only."""
    file = FOLDER / f"{target}.yaml"
    written = yaml.safe_load(file.read_text()) if file.exists() else None
    groups = msgspec.convert(written or [], tuple[Group, ...])
    names = [name for group in groups for name in group.cases]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"expected/{target}.yaml lists these cases twice: {', '.join(sorted(repeated))}")
    return groups


def surprises(results: Iterable[execute.Result], groups: Iterable[Group]) -> list[str]:
    """A line for each case that ends otherwise than expected, a better end included."""
    ends = {name: group.end for group in groups for name in group.cases}
    found = []
    for result in results:
        end = ends.pop(result.case, "passed")
        good = result.end in ("passed", "built") if end == "passed" else result.end == end
        if not good:
            found.append(f"{result.case}: expected {end}, it {result.end}: {result.detail}")
    found += [f"{name}: expected, but the suite has no such case" for name in sorted(ends)]
    return found


def _draft(target: str) -> str:
    results = execute.execute(target, [case.name for case in suite.cases()])
    known: dict[tuple[str, str], str]
    known = {(name, group.end): group.reason for group in load(target) for name in group.cases}
    grouped: dict[tuple[str, str], list[str]] = defaultdict(list)
    for result in results.values():
        if result.end not in ("passed", "built"):
            said = re.sub(r"^\s*\S* ?\(\w+\): ", "", result.detail.splitlines()[0]) if result.detail else ""
            grouped[result.end, known.get((result.case, result.end), said)].append(result.case)
    groups = [{"reason": reason, "end": end, "cases": cases} for (end, reason), cases in grouped.items()]
    return yaml.safe_dump(groups, sort_keys=False, width=120, allow_unicode=True) if groups else "[]\n"


if __name__ == "__main__":
    sys.stdout.write(_draft(sys.argv[1]))
