"""Elements picked by index for ncnn against ONNX Runtime, with the batch as rows and without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ncnn_written as written
import node_models
import numpy as np
import pytest
import target_testing
from node_models import Attribute, Node, floats, integers, truths

from retarget import graph
from retarget.spec import DimRange
from retarget.targets.ncnn import files
from retarget.targets.ncnn.emit import PARAM
from retarget.targets.ncnn.program import MASK, NO_HALF

if TYPE_CHECKING:
    from pathlib import Path

    from retarget.protocols import Array

BATCHES = pytest.mark.parametrize("batch", [1, 3])


def places(*shape: int, size: int, low: int = 0, seed: int = 1) -> Array:
    return integers(*shape, low=low, high=size, dtype="int64", seed=seed)


def unordinary(*shape: int) -> Array:
    """Floats with infinities and NaN among them."""
    array = floats(*shape)
    array.reshape(-1)[::5] = np.inf
    array.reshape(-1)[1::7] = -np.inf
    array.reshape(-1)[2::11] = np.nan
    return array


def gathered(
    x: Array, at: Array | list[int] | list[list[int]] | int, axis: int, *, constants: tuple[int, ...] = (1,)
) -> Node:
    return Node("Gather", [x, np.asarray(at, np.int64)], {"axis": axis}, constants)


@BATCHES
def test_known_indices(batch: int) -> None:
    x = unordinary(batch, 9, 4, 3)
    nodes = [gathered(x, 0, axis) for axis in range(4)]
    nodes += [gathered(x, -1, axis) for axis in range(4)]
    nodes += [gathered(x, [[0, 2], [2, 1]], axis) for axis in (1, 2, 3)]
    nodes += [
        gathered(x, [0, 1, 2, 5, 6], 1),
        gathered(x, [8, 6, 4, 2, 0], 1),
        gathered(x, list(range(9)), 1),
        gathered(x, [0, 8, 1, 7, 3, 6, 5, 5, 2, 1, 8], 1),
        gathered(x, [0, 2, 1, 0, 0, 2, 1, 1, 2, 2, 0, 1], 3),
        gathered(x, [0] * 9, 2),
        gathered(x, [0, 0], 0),
        gathered(integers(batch, 5, low=-(1 << 24), high=1 << 24), [0, 3], 1),
        gathered(truths(batch, 5), [0, 3], 1),
        gathered(floats(batch, 2, 3, 2, 3, 2), [1, 0], 3),
    ]
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds)


@BATCHES
def test_tables_looked_up_by_inputs(batch: int) -> None:
    table = floats(7, 5)
    model, feeds = node_models.model(
        gathered(table, places(batch, 4, size=7), 0, constants=(0,)),
        gathered(table, places(batch, 2, 3, size=7), 0, constants=(0,)),
        gathered(floats(7, 2, 3), places(batch, size=7), 0, constants=(0,)),
        gathered(integers(7, 2), places(batch, 2, size=7), 0, constants=(0,)),
        gathered(floats(7), places(batch, 4, size=7), 0, constants=(0,)),
    )
    written.check(model, feeds)
    assert written.layers(model).count("Embed") == 5


def test_ids_that_are_reshaped_are_looked_up_as_they_are_fed() -> None:
    model = target_testing.model(
        """g (int64[3,4] x, float[7,5] w_table) => (float[1,3,4,5] y, float[12,5] z) {
            zero = Constant <value_ints = [0]> () all = Constant <value_ints = [-1]> ()
            u = Unsqueeze(x, zero) y = Gather <axis = 0> (w_table, u)
            f = Reshape(x, all) z = Gather <axis = 0> (w_table, f)
        }"""
    )
    written.check(model, {"x": places(3, 4, size=7)})
    assert written.layers(model).count("Embed") == 2


@BATCHES
@pytest.mark.parametrize("low", [0, -9])
def test_computed_indices(batch: int, low: int) -> None:
    """Of computed data, or along another axis than the first of a constant, indices are floats."""
    x = unordinary(batch, 9, 4, 3)
    at = places(batch, 2, size=9, low=low)
    nodes = [
        gathered(x, at, 1, constants=()),
        gathered(x, np.clip(at, -3, 2), 3, constants=()),
        gathered(x, np.clip(at, -batch, batch - 1), 0, constants=()),
        gathered(unordinary(4, 9, 3), at, 1, constants=(0,)),
        gathered(floats(batch, 9), places(batch, 40, size=9, low=low), 1, constants=()),
    ]
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds)


@BATCHES
def test_indices_that_other_nodes_compute(batch: int) -> None:
    model = target_testing.model(
        f"""g (float[{batch},4,9] x, float[9,5] w_table, int64[9,3] w_numbers) => (float[] y, int64[] z) {{
            i = ArgMax <axis = 2, keepdims = 0> (x)
            y = Gather <axis = 0> (w_table, i)
            z = Gather <axis = 0> (w_numbers, i)
        }}"""
    )
    written.check(model, {"x": floats(batch, 4, 9)})


def test_places_are_not_computed_in_halves(tmp_path: Path) -> None:
    model, _ = node_models.model(gathered(floats(3, 9), places(3, 4, size=9, low=-9), 1, constants=()))
    written.written(model, tmp_path)
    lines = [line for line in files.read(tmp_path / PARAM) if line.type in ("BinaryOp", "Clip", "Concat", "GridSample")]
    assert len(lines) == 8
    assert {line.integer(MASK) for line in lines} == {NO_HALF}


def elements(x: Array, at: Array, axis: int, *, constants: tuple[int, ...] = ()) -> Node:
    return Node("GatherElements", [x, at], {"axis": axis}, constants)


@BATCHES
@pytest.mark.parametrize("constants", [(), (1,)])
def test_elements(batch: int, constants: tuple[int, ...]) -> None:
    x = unordinary(batch, 5, 4)
    nodes = [
        elements(x, places(batch, 5, 2, size=4, low=-4), 2, constants=constants),
        elements(x, places(batch, 7, 4, size=5, low=-5), 1, constants=constants),
        elements(x, places(batch, 7, 2, size=5), -2, constants=constants),
        elements(x, places(batch, 5, 4, size=batch, low=-batch), 0, constants=constants),
        elements(floats(batch, 5), places(batch, 3, size=5), 1, constants=constants),
        elements(floats(5), places(3, size=5), 0, constants=constants),
    ]
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds)


def nd(x: Array, at: Array, batch_dims: int = 0, *, constants: tuple[int, ...] = ()) -> Node:
    return Node("GatherND", [x, at], {"batch_dims": batch_dims}, constants)


@BATCHES
@pytest.mark.parametrize("constants", [(), (1,)])
def test_places_of_many_axes(batch: int, constants: tuple[int, ...]) -> None:
    x = unordinary(batch, 3, 4, 2)
    many = np.stack([places(batch, 5, size=size, low=-size, seed=size) for size in (batch, 3, 4)], -1)
    nodes = [
        nd(x, many, constants=constants),
        nd(x, many[..., :2], constants=constants),
        nd(x, many[..., :1], constants=constants),
        nd(x, many[..., 1:], 1, constants=constants),
        nd(x, many[..., 1:2], 1, constants=constants),
        nd(x, places(batch, 3, 1, size=4, low=-4), 2, constants=constants),
        nd(x, places(batch, 3, 6, 2, size=2, low=-2), 2, constants=constants),
    ]
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds)


def one_hot(at: Array, depth: int, values: list[float], axis: int = -1) -> Node:
    attributes: dict[str, Attribute] = {"axis": axis}
    operands = [at, np.array([depth], np.int64), np.array(values, np.float32)]
    return Node("OneHot", operands, attributes, (1, 2))


@BATCHES
def test_one_hot(batch: int) -> None:
    at = places(batch, 4, size=8, low=-8)
    model, feeds = node_models.model(
        one_hot(at, 5, [0, 1]),
        one_hot(at, 5, [0, 2.5]),
        one_hot(at, 5, [0.1, 1e8], 1),
        one_hot(at, 5, [-3, 7], 0),
        one_hot(places(batch, size=5), 5, [0, 1]),
    )
    written.check(model, feeds)


def test_a_constant_that_neither_runtime_computes() -> None:
    """ONNX Runtime has no such kernel, and ONNX's evaluator takes no depth of one axis."""
    at, values = np.array([1, 0], np.int64), np.array([False, True])
    made, _ = node_models.model(Node("OneHot", [at, np.array([3], np.int64), values], {}, (0, 1, 2)))
    (found,) = written.executed(made, {})
    np.testing.assert_array_equal(found["y0_0"], np.eye(3, dtype=bool)[at])


@BATCHES
def test_triangles(batch: int) -> None:
    x = unordinary(batch, 2, 5, 4)
    nodes = [
        Node("Trilu", [x, np.array(k, np.int64)], {"upper": upper}, (1,)) for k in (-2, 0, 1, 9) for upper in (0, 1)
    ]
    nodes += [
        Node("Trilu", [unordinary(batch, 3, 3)]),
        Node("Trilu", [unordinary(batch, 3)], {"upper": 0}),
        Node("Trilu", [integers(batch, 3, 3)]),
        Node("Trilu", [truths(batch, 3, 3)]),
        Node("Trilu", [floats(batch, 1, 3)]),
        Node("Trilu", [unordinary(batch, 4, 1, 1), np.array(1, np.int64)], {"upper": 1}, (1,)),
        Node("Trilu", [floats(batch, 2, 2, 3, 3)]),
    ]
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds)


@BATCHES
def test_sequences_turned_around(batch: int) -> None:
    lengths = np.array([4, 1, 3][:batch], np.int64)
    model, feeds = node_models.model(
        Node("ReverseSequence", [unordinary(batch, 5, 2), lengths], {"batch_axis": 0, "time_axis": 1}, (1,)),
        Node("ReverseSequence", [floats(4, batch, 2), lengths], {"batch_axis": 1, "time_axis": 0}, (1,)),
        Node("ReverseSequence", [unordinary(batch, 5, 2), lengths], {"batch_axis": 0, "time_axis": 1}),
        Node("ReverseSequence", [floats(4, batch, 2, 2), lengths], {"batch_axis": 1, "time_axis": 0}),
    )
    written.check(model, feeds)


def test_large_tables_are_told_apart() -> None:
    """Places at the far end of what GridSample is used for."""
    size = 1 << 20
    x = np.arange(size, dtype=np.float32).reshape(1, size)
    at = np.array([[0, 1, size - 1, size - 2, size // 2, size // 2 + 1, 77777, 524289, 1000001]], np.int64)
    model, feeds = node_models.model(Node("GatherElements", [x, at], {"axis": 1}))
    written.check(model, feeds, atol=0)
    model, _ = node_models.model(Node("GatherElements", [np.zeros((1, size + 1), np.float32), at], {"axis": 1}))
    assert "GridSample" in written.refused(model)


OPEN = {
    "one from the end": """g (float[N,S,4] x) => (float[N,4] y) {
        m = Constant <value_int = -1> () y = Gather <axis = 1> (x, m)
    }""",
    "of an open axis": "g (float[N,S,4] x, int64[11] i) => (float[N,11,4] y) { y = Gather <axis = 1> (x, i) }",
    "of a constant": """g (float[N,S,4] x, float[4,5] w_t) => (float[N,S,5] y) {
        i = ArgMax <axis = 2, keepdims = 0> (x) y = Gather <axis = 0> (w_t, i)
    }""",
    "looked up": "g (int64[N,S] i, float[9,4] w_t) => (float[N,S,4] y) { y = Gather <axis = 0> (w_t, i) }",
    "elements": "g (float[N,S,4] x, int64[N,2,4] i) => (float[N,2,4] y) { y = GatherElements <axis = 1> (x, i) }",
    "places": "g (float[N,S,4] x, int64[N,1] i) => (float[N,4] y) { y = GatherND <batch_dims = 1> (x, i) }",
    "turned around": """g (float[N,S,4] x, int64[N] i) => (float[N,S,4] y) {
        y = ReverseSequence <batch_axis = 0, time_axis = 1> (x, i)
    }""",
}


@pytest.mark.parametrize("name", OPEN)
def test_open_sizes(name: str) -> None:
    model = target_testing.model(OPEN[name])
    fed = []
    for batch, size in ((4, 6), (3, 5), (1, 4), (2, 7)):
        sizes = {"N": batch, "S": size}
        feeds: dict[str, Array] = {}
        for value in model.graph.inputs:
            spec = graph.value_spec(value)
            shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape]
            feeds[spec.name] = places(*shape, size=4) if spec.name == "i" else floats(*shape)
        fed.append(feeds)
    written.check(model, *fed, N=DimRange(1, 4, 8), S=DimRange(2, 6, 9))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_integers_are_looked_up_as_they_are(precision: str) -> None:
    small, large = integers(6, 4, low=-128, high=128, dtype="int8"), integers(6, 4, high=1 << 23, dtype="int64")
    ids = places(1, 5, size=6)
    model, feeds = node_models.model(*(Node("Gather", [table, ids], {}, (0,)) for table in (small, large)))
    (found,) = written.executed(model, feeds, precision=precision)
    for name, right in target_testing.oracle(model, feeds).items():
        np.testing.assert_array_equal(found[name], right)
