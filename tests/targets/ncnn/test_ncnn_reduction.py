"""Reductions, positions of extremes and running sums of ncnn against ONNX Runtime."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
import target_testing
from ncnn_written import check, executed, layers, refused
from node_models import Node, floats, integers, model, of_text, truths

from retarget.spec import DimRange

SHAPES: list[tuple[int, ...]] = [(5,), (3, 17), (2, 3, 16), (2, 3, 4, 5), (1, 3, 1, 2, 4), (2, 3, 3, 2, 2, 2)]
AXES: dict[int, list[list[int]]] = {
    1: [[0], []],
    2: [[0], [-1], [0, 1]],
    3: [[0], [1], [2], [0, 2], [1, 2], [0, 1], [-1, -2, -3], []],
    4: [[0], [1], [2], [-1], [2, 3], [1, 2], [0, 2, 3], [1, 2, 3], [0, 1], [0, 2], [1, 3], [0, 1, 2, 3]],
    5: [[1], [4], [2, 3, 4], [0, 2, 4], [-4, -2]],
    6: [[1], [5], [2, 3, 4, 5], [0, 2, 4], [1, 3, 5], [0, 3, 5]],
}
INTEGERS = frozenset({"ReduceMax", "ReduceMin"})
OPERATORS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
             "ReduceProd", "ReduceSum", "ReduceSumSquare")  # fmt: skip


@pytest.mark.parametrize("operator", OPERATORS)
def test_reductions(operator: str) -> None:
    nodes = []
    for keep, shape in itertools.product((0, 1), SHAPES):
        data = np.abs(floats(*shape, scale=1)) if operator == "ReduceLogSum" else floats(*shape, scale=1)
        whole = integers(*shape, low=-2, high=3)
        for axes in AXES[len(shape)]:
            chosen = np.array(axes, np.int64)
            nodes.append(Node(operator, [data, chosen], {"keepdims": keep}, (1,)))
            if operator in INTEGERS:
                nodes.append(Node(operator, [whole, chosen], {"keepdims": keep}, (1,)))
        nodes.append(Node(operator, [data], {"keepdims": keep}))
    nodes.append(Node(operator, [np.abs(floats())]))
    check(*model(*nodes), atol=2e-6)


@pytest.mark.parametrize("operator", OPERATORS)
def test_reductions_of_rows(operator: str) -> None:
    """No row is mixed with another, but by the last ones."""
    data = np.abs(floats(3, 4, 5, 6, scale=1))
    chosen = [[1], [2], [3], [1, 2], [2, 3], [1, 2, 3], [1, 3]]
    nodes = [Node(operator, [data, np.array(axes)], {"keepdims": keep}, (1,)) for axes in chosen for keep in (0, 1)]
    check(*model(*nodes), atol=2e-6)
    nodes += [
        Node(operator, [data, np.array(axes)], {"keepdims": keep}, (1,)) for axes in ([0], [0, 2]) for keep in (0, 1)
    ]
    check(*model(*nodes), atol=2e-6)


def test_a_reduction_is_one_layer_whose_rows_stay() -> None:
    assert layers(of_text("float[3,4,5,6] x", "ReduceMean<keepdims=1>(x, [2, 3])", "float y")) == ["Reduction"]
    assert layers(of_text("float[3,4,5,6] x", "ReduceSum<keepdims=0>(x, [-1])", "float y")) == ["Reduction"]


def test_without_axes() -> None:
    nodes = [
        Node(operator, [np.abs(floats(2, 3, 4)), np.zeros(0, np.int64)], {"noop_with_empty_axes": noop}, (1,))
        for operator in OPERATORS
        for noop in (0, 1)
    ]
    nodes += [Node(operator, [np.abs(floats(2, 3, 4))], {"noop_with_empty_axes": 1}) for operator in OPERATORS]
    check(*model(*nodes), atol=2e-6)


def test_extremes_of_truths_and_small_integers() -> None:
    nodes = [
        Node(operator, [data, np.array(axes)], {"keepdims": keep}, (1,))
        for operator in ("ReduceMax", "ReduceMin")
        for data in (truths(2, 3, 4), integers(2, 3, 4, dtype="int8"), integers(2, 3, 4, low=0, dtype="uint8"))
        for axes in ([1], [0, 2])
        for keep in (0, 1)
    ]
    check(*model(*nodes))


def test_sums_of_integers_that_floats_do_not_hold_are_refused() -> None:
    assert "2^24" in refused(of_text("int32[4,5] x", "ReduceSum(x, [1])", "int32 y"))
    assert "wrap around" in refused(of_text("int64[2,99] x", "ReduceProd(x, [1])", "int64 y"))


def test_logarithms_of_sums_of_powers_do_not_overflow() -> None:
    inf = np.inf
    data = np.array([[500, 501], [-500, -501], [-inf, 0], [-inf, -inf], [inf, 0]], np.float32)
    check(*model(*(Node("ReduceLogSumExp", [data, np.array([1])], {"keepdims": keep}, (1,)) for keep in (0, 1))))


def test_extremes_of_infinities() -> None:
    inf = np.inf
    data = np.array([[1, inf, 2], [-inf, 3, 4], [inf, -inf, 0], [inf, inf, inf], [-inf, -inf, -inf]], np.float32)
    check(*model(*(Node(f"Reduce{name}", [data, np.array([1])], {}, (1,)) for name in ("Max", "Min"))))


@pytest.mark.parametrize("operator", ["ArgMax", "ArgMin"])
def test_positions(operator: str) -> None:
    nodes = [
        Node(
            operator,
            [integers(*shape, low=-2, high=3, dtype="float32")],
            {"axis": axis, "keepdims": keep, "select_last_index": last},
        )
        for shape in SHAPES
        for axis in range(len(shape))
        for keep, last in ((0, 0), (1, 0), (0, 1))
    ]
    nodes += [Node(operator, [integers(3, 4)], {"axis": 1}), Node(operator, [floats(3, 4)])]
    inf = np.inf
    odd = np.array([[1, inf, inf], [-inf, -inf, -inf], [inf, inf, inf], [-inf, 0, -inf]], np.float32)
    nodes += [Node(operator, [odd], {"axis": 1, "select_last_index": last}) for last in (0, 1)]
    check(*model(*nodes))
    check(*model(*(Node(operator, [floats(3, 4, 5)], {"axis": axis}) for axis in (1, 2))))


def test_running_sums() -> None:
    nodes = [
        Node("CumSum", [floats(*shape), np.array(axis)], {"exclusive": exclusive, "reverse": reverse}, (1,))
        for shape in [*SHAPES, (3, 1, 2)]
        for axis in (*range(len(shape)), -1)
        for exclusive, reverse in itertools.product((0, 1), (0, 1))
    ]
    check(*model(*nodes), atol=1e-6)
    rows = [
        Node("CumSum", [floats(3, 4, 5), np.array(axis)], {"exclusive": exclusive}, (1,))
        for axis in (1, 2)
        for exclusive in (0, 1)
    ]
    check(*model(*rows), atol=1e-6)


@pytest.mark.parametrize("reverse", [0, 1])
def test_running_sums_along_an_open_axis(reverse: int) -> None:
    made = target_testing.model(f"""g (float[N,S,4] x) => (float[N,S,4] y) {{
        axis = Constant <value_int = 1> () y = CumSum <exclusive = 1, reverse = {reverse}> (x, axis)
    }}""")
    fed = [{"x": floats(rows, size, 4)} for rows, size in ((2, 5), (3, 9), (2, 1))]
    check(made, *fed, N=DimRange(1, 2, 4), S=DimRange(1, 5, 9))


def test_positions_along_an_open_axis() -> None:
    made = of_text("float[N,S,4] x", "ArgMax<axis=1>(x)", "int64 y")
    fed = [{"x": integers(rows, size, 4, low=0, high=3, dtype="float32")} for rows, size in ((2, 5), (3, 9), (1, 2))]
    check(made, *fed, N=DimRange(1, 2, 4), S=DimRange(2, 5, 9))


def test_the_mean_of_an_image_is_a_pool() -> None:
    image = target_testing.model("""g (float[N,3,5,4] x) => (float[N,3] y) {
        axes = Constant <value_ints = [2, 3]> ()
        y = ReduceMean <keepdims = 0> (x, axes)
    }""")
    check(image, *(target_testing.feeds(image, size) for size in (1, 4)))
    assert layers(image) == ["Pooling"]


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_short_floats_are_no_integers(kind: str) -> None:
    """ONNX Runtime has no such layers of bfloat16: these numbers are the same in float32."""
    made = target_testing.model(f"""g (float[3,4] x) => (float[3,1] y, float[3] z, bool[3,4] same) {{
        axes = Constant <value_ints = [1]> () short = Cast <to = {ir.DataType[kind.upper()].value}> (x)
        mean = ReduceMean(short, axes) y = Cast <to = 1> (mean)
        most = ReduceMax <keepdims = 0> (short, axes) z = Cast <to = 1> (most) same = Equal(short, short)
    }}""")
    x = np.array([[1, 0.5, 2, -1], [0.25, 0.5, 0.5, 0.25], [-np.inf] * 4], np.float32)
    (found,) = executed(made, {"x": x})
    np.testing.assert_array_equal(found["y"], x.mean(1, keepdims=True))
    np.testing.assert_array_equal(found["z"], x.max(1))
    assert found["same"].all()


@pytest.mark.parametrize("count", [2, 3, 7])
def test_means_of_large_integers(count: int) -> None:
    """Their sums are up to 2^24, of which the quotients are as exact as those of others."""
    most = 2**24 // count
    made = target_testing.model(f"""g (int32[40,{count}] x) => (int32[40,1] y) {{
        low = Constant <value = int32 {{{-most}}}> () high = Constant <value = int32 {{{most}}}> ()
        bounded = Clip(x, low, high) axes = Constant <value_ints = [1]> () y = ReduceMean(bounded, axes)
    }}""")
    x = integers(20, count, low=most - 5, high=most + 1)
    check(made, {"x": np.concatenate([x, np.negative(x)])}, atol=0)
