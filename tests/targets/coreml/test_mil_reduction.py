"""Reductions, positions of extremes, running sums and determinants of Core ML against ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import target_testing as t
import written
from agreement import agrees
from node_models import Node, floats, integers, of_text, truths

from retarget.errors import Unsupported

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.coreml import DeploymentTarget

FLOATING = ("ReduceL2", "ReduceLogSum", "ReduceLogSumExp")
REDUCTIONS = (
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceSumSquare",
    *FLOATING,
)
SHAPES: list[tuple[int, ...]] = [(5,), (2, 3, 4), (2, 3, 2, 2, 2)]


def numbers(operator: str, kind: str, *shape: int) -> Array:
    array = floats(*shape, scale=1.5) if kind.startswith("float") else integers(*shape, low=-5, high=5)
    return (np.abs(array) if operator == "ReduceLogSum" else array).astype(kind)


def axes(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize("operator", REDUCTIONS)
def test_reductions(operator: str) -> None:
    kinds = ("float32",) if operator in FLOATING else ("float32", "int64")
    nodes = []
    for kind in kinds:
        for shape in SHAPES:
            data, last = numbers(operator, kind, *shape), len(shape) - 1
            nodes += [
                Node(operator, [data, axes(*chosen)], {"keepdims": keep}, (1,))
                for chosen, keep in (({-1}, 1), ({0, last}, 0), (set(range(len(shape))), 0))
            ]
        data = numbers(operator, kind, 2, 3)
        nodes += [
            Node(operator, [data]),
            Node(operator, [data, axes()], {}, (1,)),
            Node(operator, [data, axes()], {"noop_with_empty_axes": 1}, (1,)),
            Node(operator, [data], {"noop_with_empty_axes": 1}),
            Node(operator, [np.asarray(data[0, 0])]),
        ]
    agrees(*nodes)


@pytest.mark.parametrize("target", written.TARGETS)
def test_reductions_for_each_system(target: DeploymentTarget) -> None:
    agrees(*(Node(name, [numbers(name, "float32", 2, 3, 4), axes(1)], {}, (1,)) for name in REDUCTIONS), target=target)


def test_reductions_of_other_types() -> None:
    nodes = [Node(name, [truths(2, 3, 4), axes(1)], {}, (1,)) for name in ("ReduceMax", "ReduceMin")]
    nodes += [
        Node(name, [integers(3, 5, low=0, dtype=kind), axes(1)], {}, (1,))
        for name in ("ReduceMax", "ReduceMin")
        for kind in ("int8", "uint8")
    ]
    nodes += [Node(name, [numbers(name, "float16", 2, 3, 4), axes(1)], {}, (1,)) for name in REDUCTIONS]
    agrees(*nodes, rtol=4e-3, atol=1e-3)


def test_logarithms_of_sums_of_what_is_not_finite() -> None:
    data = np.array([[np.inf, 1], [-np.inf, -np.inf], [200, -200], [np.nan, 2]], np.float32)
    agrees(Node("ReduceLogSumExp", [data, axes(1)], {}, (1,)), Node("ReduceLogSum", [np.abs(data), axes(1)], {}, (1,)))


@pytest.mark.parametrize("operator", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
def test_positions_of_equal_extremes(operator: str, last: int) -> None:
    agrees(
        *(
            Node(
                operator,
                [integers(*shape, low=0, high=3).astype(kind)],
                {"axis": axis, "keepdims": keep, "select_last_index": last},
            )
            for kind in ("float32", "float16", "uint8")
            for shape in SHAPES[:2]
            for axis in (-1, 0)
            for keep in (0, 1)
        )
    )


def test_running_sums() -> None:
    agrees(
        *(
            Node(
                "CumSum", [numbers("", kind, *shape), axes(axis)[0]], {"exclusive": exclusive, "reverse": reverse}, (1,)
            )
            for kind in ("float32", "int64")
            for shape in SHAPES[:2]
            for axis in (0, -1)
            for exclusive in (0, 1)
            for reverse in (0, 1)
        )
    )


def test_determinants() -> None:
    shapes = ((2, 2), (3, 3), (2, 3, 3), (2, 2, 4, 4), (1, 1))
    agrees(*(Node("Det", [floats(*shape)]) for shape in shapes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attributes", ["axis = 1", "axis = 1, keepdims = 0, select_last_index = 1", "axis = 2"])
@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_positions_along_open_dimensions(attributes: str, target: DeploymentTarget) -> None:
    written.check_open(of_text("float[N,S,3] x", f"ArgMax <{attributes}> (x)", "int64 y"), 2, 5, target=target)


@pytest.mark.parametrize(
    "node",
    ["ReduceMean(x, [1])", "ReduceLogSumExp <keepdims = 0> (x, [-1])", "CumSum(x, [1])", "ReduceL2 <keepdims = 0> (x)"],
)
def test_open_dimensions_stay_open(node: str) -> None:
    written.check_open(of_text("float[N,S,3] x", node), 2, 5)


def test_integer_means_know_how_many_they_are_of() -> None:
    model = of_text("int32[N,3] x", "ReduceMean <keepdims = 0> (x, [0])")
    feeds = t.feeds(model, 4)
    (found,) = written.interpreted(model, feeds)
    np.testing.assert_array_equal(found["y"], t.oracle(model, feeds)["y"])


@pytest.mark.parametrize(
    ("inputs", "node", "reason"),
    [
        ("int32[3,4] x", "ReduceL2(x)", "int32 is not among"),
        ("float[5,5] x", "Det(x)", "5 rows"),
    ],
)
def test_refused(inputs: str, node: str, reason: str) -> None:
    model = of_text(inputs, node)
    with pytest.raises(Unsupported, match=reason):
        written.interpreted(model, t.feeds(model, 3))


def test_computed_axes_are_refused() -> None:
    model = t.model("g (float[3,4] x, int64[1] axes) => (float[3,1] y) { y = ReduceSum(x, axes) }")
    with pytest.raises(Unsupported, match="which axes it reduces is computed"):
        written.interpreted(model, t.feeds(model, 3))
