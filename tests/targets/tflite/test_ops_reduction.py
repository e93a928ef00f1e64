"""Reductions, positions of extremes, running sums and determinants of TFLite against ONNX Runtime."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import one_node
import pytest
import target_testing as t
from many_nodes import LAYOUTS, agrees
from node_models import Node, floats, integers, model, truths

from retarget.errors import Unsupported

SHAPES: list[tuple[int, ...]] = [(5,), (3, 4), (2, 3, 4), (2, 3, 4, 5), (1, 3, 1, 2, 4), (2, 1, 3, 2, 2, 2)]
AXES: dict[int, list[list[int]]] = {
    1: [[0], []],
    2: [[0], [-1], [0, 1]],
    3: [[0], [1], [2], [0, 2], [1, 2], [0, 1], [-1, -2, -3], []],
    4: [[0], [1], [2], [-1], [2, 3], [1, 2], [0, 2, 3], [1, 2, 3], [0, 1], [0, 1, 2, 3]],
    5: [[1], [4], [2, 3, 4], [0, 2, 4], [-4, -2]],
    6: [[1], [5], [2, 3, 4, 5], [0, 2, 4]],
}
INTEGERS = frozenset({"ReduceL1", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", [*sorted(INTEGERS), "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"])
def test_reductions(operator: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = []
    for keep, shape in itertools.product((0, 1), SHAPES):
        data = np.abs(floats(*shape, scale=1)) if operator == "ReduceLogSum" else floats(*shape, scale=1)
        whole = integers(*shape, low=-2, high=3)
        for axes in AXES[len(shape)]:
            chosen = np.array(axes, np.int64)
            nodes.append(Node(operator, [data, chosen], {"keepdims": keep}, (1,)))
            if operator in INTEGERS and len(shape) in (2, 4):
                nodes.append(Node(operator, [whole, chosen], {"keepdims": keep}, (1,)))
        nodes.append(Node(operator, [data], {"keepdims": keep}))
    nodes.append(Node(operator, [np.abs(floats())]))
    agrees(nodes, layout, tmp_path, monkeypatch, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_axes(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operators = [*sorted(INTEGERS), "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"]
    nodes = [
        Node(operator, [np.abs(floats(2, 3, 4)), np.zeros(0, np.int64)], {"noop_with_empty_axes": noop}, (1,))
        for operator in operators
        for noop in (0, 1)
    ]
    nodes += [Node(operator, [np.abs(floats(2, 3, 4))], {"noop_with_empty_axes": 1}) for operator in operators]
    agrees(nodes, layout, tmp_path, monkeypatch)


def test_extremes_of_truths_and_small_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        Node(operator, [data, np.array(axes)], {"keepdims": keep}, (1,))
        for operator in ("ReduceMax", "ReduceMin")
        for data in (truths(2, 3, 4), integers(2, 3, 4, dtype="int8"), integers(2, 3, 4, low=0, dtype="uint8"))
        for axes in ([1], [0, 2])
        for keep in (0, 1)
    ]
    agrees(nodes, "last", tmp_path, monkeypatch)


def test_means_of_integers_are_cut_towards_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.array([[-3, -4], [3, 4], [1, 0], [-1, 0]], np.int32)
    agrees([Node("ReduceMean", [data, np.array([1])], {}, (1,))], "first", tmp_path, monkeypatch)


def test_logarithms_of_sums_of_powers_do_not_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inf = np.inf
    data = np.array([[500, 501], [-500, -501], [-inf, 0], [-inf, -inf], [inf, 0]], np.float32)
    nodes = [Node("ReduceLogSumExp", [data, np.array([1])], {"keepdims": keep}, (1,)) for keep in (0, 1)]
    # Without XNNPACK what arithmetic makes is the largest finite number at most.
    agrees(nodes, "first", tmp_path, monkeypatch, kernels=("xnnpack",))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", ["ArgMax", "ArgMin"])
def test_positions_of_extremes(operator: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = []
    dtypes = itertools.cycle(["float32", "int32", "uint8", "float32", "int8"])
    for shape, keep, last in itertools.product(SHAPES, (0, 1), (0, 1)):
        for axis, dtype in zip((*range(min(len(shape), 4)), -1), dtypes, strict=False):
            attributes = {"axis": axis, "keepdims": keep, "select_last_index": last}
            nodes.append(Node(operator, [integers(*shape, low=0, high=3, dtype=dtype)], attributes))
    agrees(nodes, layout, tmp_path, monkeypatch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_running_sums(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        Node("CumSum", [integers(*shape, dtype=dtype), np.array(axis)], {"exclusive": exclusive, "reverse": back}, (1,))
        for shape in SHAPES[:5]
        for axis in (0, len(shape) // 2, -1)
        for dtype, (exclusive, back) in zip(
            ("float32", "int32", "float32", "int64"), itertools.product((0, 1), repeat=2), strict=True
        )
    ]
    agrees(nodes, layout, tmp_path, monkeypatch)


def test_determinants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        Node("Det", [floats(*batch, size, size, scale=1)]) for size in range(1, 5) for batch in ((), (3,), (2, 1, 3))
    ]
    agrees(nodes, "first", tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (Node("Det", [floats(5, 5)]), "its matrices have 5 rows: determinants of up to 4 are written out"),
        (Node("ReduceSum", [floats(1, 1, 1, 1, 1, 1, 2), np.array([6])], {}, (1,)), "its operand has 7 axes"),
        (Node("ReduceL2", [integers(3, 4), np.array([1])], {}, (1,)), "int32 is not among float32"),
    ],
)
def test_what_cannot_be_written_is_refused(node: Node, reason: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported) as refused:
        t.emit("tflite", model(node)[0], tmp_path)
    assert reason in refused.value.message


def test_the_batch_stays_open(tmp_path: Path) -> None:
    chain = t.model("""g (float[N,3,8,8] x, float[6,3,3,3] w_a) => (float[N,6] y, int64[N,6,6] z, float[N,1] s) {
        axes = Constant <value = int64[2] {2, 3}> () one = Constant <value = int64[1] {1}> ()
        c = Conv(x, w_a) a = ReduceL2 <keepdims = 1> (c, axes) b = Div(c, a) y = ReduceMean <keepdims = 0> (b, axes)
        z = ArgMax <axis = 1, keepdims = 0> (c) s = ReduceLogSumExp(y, one)
    }""")
    facts = t.emit("tflite", chain, tmp_path)
    assert not facts.sizes
    assert one_node.operators(tmp_path).count("TRANSPOSE") == 1
    for size in (4, 1):
        feeds = t.feeds(chain, size)
        actual, right = t.run("tflite", tmp_path, facts, feeds), t.oracle(chain, feeds)
        np.testing.assert_array_equal(actual["z"], right["z"])
        for name in ("y", "s"):
            left, wide = (each[name].astype(np.float64) for each in (actual, right))
            np.testing.assert_allclose(left, wide, rtol=1e-5, atol=1e-6)
