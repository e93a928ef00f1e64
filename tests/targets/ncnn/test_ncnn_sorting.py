"""What is largest for ncnn against ONNX Runtime, with the batch as rows and without."""

from __future__ import annotations

import ncnn_written as written
import node_models
import numpy as np
import pytest
import target_testing
from node_models import Node, floats, integers

BATCHES = pytest.mark.parametrize("batch", [1, 3])


def top(x: object, count: int, axis: int, *, largest: int = 1) -> Node:
    operands = [np.asarray(x), np.array([count], np.int64)]
    return Node("TopK", operands, {"axis": axis, "largest": largest}, (1,), 2)


@BATCHES
def test_the_largest(batch: int) -> None:
    x, many_equal = floats(batch, 4, 6), integers(batch, 4, 30, low=-2, high=3)
    with_infinities = floats(batch, 6)
    with_infinities[0, :2] = np.inf, -np.inf
    nodes = [top(x, 2, axis, largest=largest) for axis in (1, 2) for largest in (0, 1)]
    nodes += [top(many_equal, 9, -1, largest=largest) for largest in (0, 1)]
    nodes += [top(with_infinities, 6, 1), top(floats(7), 3, 0), top(x, 1, 0)]
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds)


@BATCHES
def test_parts_by_a_known_condition(batch: int) -> None:
    x = floats(batch, 4, 6)
    model, feeds = node_models.model(
        Node("Compress", [x, np.array([True, False, True])], {"axis": 1}, (1,)),
        Node("Compress", [x, np.array([False, True, True, True])], {"axis": 1}, (1,)),
        Node("Compress", [x, np.arange(24) % 5 == 0], {}, (1,)),
    )
    written.check(model, feeds)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (Node("NonZero", [floats(3)]), "depends on the data"),
        (Node("Unique", [floats(3)]), "depends on the data"),
        (Node("Compress", [floats(3), np.array([True, False, True])], {"axis": 0}), "depends on the data"),
        (Node("RandomUniformLike", [floats(3)]), "random"),
    ],
    ids=lambda each: each.operator if isinstance(each, Node) else "",
)
def test_what_is_refused(node: Node, reason: str) -> None:
    model, _ = node_models.model(node)
    assert reason in written.refused(model)


def test_what_hangs_on_a_refused_node_is_not_refused_for_it() -> None:
    """How large the places are that it would find is known as soon as it is another."""
    model = target_testing.model("""g (float[1,4000] x) => (int64[1,9] y) {
        count = Constant<value_ints = [9]>()  wide = Constant<value = int64 {20}>()
        values, places = TopK(x, count)
        y = Mul(places, wide)
    }""")
    said = written.refused(model)
    assert "comparing all pairs" in said
    assert "2^24" not in said
