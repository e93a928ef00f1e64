from __future__ import annotations

from pathlib import Path

from retarget.errors import unsupported

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"


def test_a_refusal_lists_each_node_and_where_to_look() -> None:
    error = unsupported("ncnn", [("a", "Loop", "no loops"), ("b", "Det", "no layer")], "or unroll it")
    assert error.message.splitlines() == ["ncnn cannot take 2 nodes:", "  a (Loop): no loops", "  b (Det): no layer"]
    assert error.hint == "docs/reference has a table of what each target takes; or unroll it"
    assert len(list(REFERENCE.glob("support-*.md"))) >= 6
