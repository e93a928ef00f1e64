"""What LiteRT's kernels would write over too early is right, by every set of kernels."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import numpy as np
import one_node
import pytest
import target_testing as t


@pytest.mark.parametrize(
    ("first", "second", "kind"), list(itertools.product(("Add", "Mul"), ("Add", "Sub"), ("int32", "float")))
)
def test_a_value_outlives_what_is_computed_of_its_reshape(first: str, second: str, kind: str, tmp_path: Path) -> None:
    model = t.model(f"""g ({kind}[2,9] x) => ({kind}[18] y, {kind}[2,9] z) {{
        flat = Constant <value = int64[1] {{18}}> () three = Constant <value = {kind}[1] {{3}}> ()
        a = Neg(x) b = {first}(a, three) c = Reshape(b, flat) d = {second}(c, three) y = Neg(d) z = Neg(b)
    }}""")
    facts = t.emit("tflite", model, tmp_path)
    feeds = t.feeds(model, 1)
    right = t.oracle(model, feeds)
    for kernels in one_node.KERNELS:
        chosen = msgspec.structs.replace(facts, settings={**facts.settings, "kernels": kernels})
        for name, array in t.run("tflite", tmp_path, chosen, feeds).items():
            np.testing.assert_array_equal(array, right[name], err_msg=f"{name} by {kernels}")


def test_a_reshape_outlives_what_is_computed_of_its_own_reshape(tmp_path: Path) -> None:
    model = t.model("""g (float[N,3] x) => (float[N,6,1] y) {
        axis = Constant <value_ints = [2]> () low = Constant <value_float = -1.0> ()
        a = Clip(x, low) b = Unsqueeze(a, axis) c = Softmax <axis = 1> (b) y = Concat <axis = 1> (b, c)
    }""")
    facts = t.emit("tflite", model, tmp_path)
    for size in (1, 4):
        one_node.assert_same(model, t.feeds(model, size), tmp_path, facts)


def test_what_is_read_once_is_not_copied(tmp_path: Path) -> None:
    model = t.model("""g (float[2,9] x) => (float[18] y) {
        flat = Constant <value = int64[1] {18}> () b = Add(x, x) c = Reshape(b, flat) y = Mul(c, c)
    }""")
    t.emit("tflite", model, tmp_path)
    assert one_node.operators(tmp_path) == ["ADD", "RESHAPE", "MUL"]
