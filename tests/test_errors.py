from __future__ import annotations

import pytest

from retarget.errors import did_you_mean, unsupported
from retarget.recipe import PRECISIONS


def test_a_refusal_lists_each_node_and_says_what_can_be_typed_without_a_checkout() -> None:
    error = unsupported("ncnn", [("a", "Loop", "no loops"), ("b", "Det", "no layer")], "or unroll it")
    assert error.message.splitlines() == ["ncnn cannot take 2 nodes:", "  a (Loop): no loops", "  b (Det): no layer"]
    assert error.hint is not None
    assert "`retarget check MODEL --to TARGET`" in error.hint
    assert error.hint.endswith("; or unroll it")
    assert "docs/" not in error.hint
    assert "\n" not in error.hint


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("int4", "int4_weights"), ("int8_w", "int8_weights"), ("fp61", "fp16"), ("palete6", "palette6"), ("int", "int8")],
)
def test_what_begins_with_the_word_is_meant_rather_than_what_is_as_long(typed: str, meant: str) -> None:
    assert did_you_mean(typed, PRECISIONS) == f"did you mean '{meant}'?"


def test_a_letter_alone_is_no_beginning() -> None:
    assert did_you_mean("N", ["Ns", "batch"]) == "did you mean 'Ns'?"
    assert did_you_mean("b", ["batch", "T"]) == "known: T, batch"
