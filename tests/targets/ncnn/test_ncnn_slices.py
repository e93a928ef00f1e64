"""Parts, joins and repeats for ncnn against ONNX Runtime, with the batch as rows and without."""

from __future__ import annotations

import ncnn_written as written
import node_models
import numpy as np
import pytest
from node_models import Node, floats, integers, truths

from retarget.spec import DimRange

FAR = np.iinfo(np.int64).max


def ints(*numbers: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array(numbers, np.int64)


def sliced(x: object, starts: list[int], ends: list[int], axes: list[int], steps: list[int] | None = None) -> Node:
    operands = [np.asarray(x), ints(*starts), ints(*ends), ints(*axes)]
    operands += [] if steps is None else [ints(*steps)]
    return Node("Slice", operands, constants=(1, 2, 3, 4))


@pytest.mark.parametrize("batch", [1, 3])
def test_slices(batch: int) -> None:
    x, long, deep = floats(batch, 4, 7, 6), floats(batch, 700), floats(batch, 3, 4, 5, 3, 4)
    model, feeds = node_models.model(
        sliced(x, [1], [3], [1]),
        sliced(x, [-3], [-1], [-1]),
        sliced(x, [-3], [FAR], [2]),
        sliced(x, [-99], [2], [2]),
        sliced(x, [0, 1, 2], [1, 3, -1], [0, 1, 3]),
        sliced(x, [1, 1, 1], [3, 3, 3], [1, 2, 3]),
        sliced(long, [-233], [FAR], [1]),
        sliced(long, [-234], [-233], [1]),
        sliced(deep, [1, 1, 1, 1, 1], [3, 3, 3, 3, 3], [1, 2, 3, 4, 5]),
        sliced(deep, [1, 1, 1], [3, 3, 3], [1, 3, 5]),
        sliced(integers(batch, 4, high=1 << 24), [2], [9], [1]),
        sliced(truths(batch, 4), [2], [9], [1]),
        sliced(floats(batch, 5, 1), [0], [1], [2]),
        sliced(floats(5), [1], [3], [0]),
    )
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_steps(batch: int) -> None:
    x, deep = floats(batch, 4, 7, 6), floats(batch, 3, 4, 5, 3, 4)
    nodes = [
        sliced(x, [start], [FAR], [axis], [step]) for axis in (1, 2, 3) for start in (0, 1, 2) for step in (2, 3, 9)
    ]
    nodes += [sliced(x, [-1], [-FAR], [axis], [step]) for axis in (1, 2, 3) for step in (-1, -2, -3)]
    nodes += [
        sliced(x, [0, 1], [FAR, 5], [2, 3], [2, 2]),
        sliced(x, [-2, -1, 3], [-FAR, 0, 0], [1, 2, 3], [-1, -1, -1]),
        sliced(x, [4, 1, 4], [1, 9, 0], [2, 1, 3], [-2, 1, -1]),
        sliced(deep, [-1] * 5, [-FAR] * 5, [1, 2, 3, 4, 5], [-1, -1, -2, -1, -1]),
        sliced(x, [0], [FAR], [0], [2]),
        sliced(x, [-1], [-FAR], [0], [-1]),
    ]
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds)


def test_an_empty_part_is_refused() -> None:
    """Parts of two: of five elements there is one for the third, and none for the fourth."""
    model = node_models.of_text("float[1,5] x", "Split <axis = 1, num_outputs = 4> (x)", "a, b, c, d")
    assert "the last is empty" in written.refused(model)


def test_an_empty_slice_is_refused() -> None:
    model, _ = node_models.model(sliced(floats(3, 4), [2], [2], [1]))
    assert "no empty blobs" in written.refused(model)


@pytest.mark.parametrize("batch", [1, 3])
def test_splits(batch: int) -> None:
    x = floats(batch, 4, 7, 6)
    model, feeds = node_models.model(
        Node("Split", [x], {"axis": 1, "num_outputs": 2}, outputs=2),
        Node("Split", [x], {"axis": 2, "num_outputs": 3}, outputs=3),
        Node("Split", [x, ints(1, 2, 3)], {"axis": -1}, (1,), 3),
        Node("Split", [floats(batch, 6, 2, 3, 2, 2)], {"axis": 1, "num_outputs": 3}, outputs=3),
        Node("Split", [floats(batch, 2, 3, 2, 6, 2)], {"axis": 4, "num_outputs": 3}, outputs=3),
        Node("Split", [floats(batch, 1, 6)], {"axis": 1, "num_outputs": 1}),
        Node("Split", [integers(batch, 6)], {"axis": 1, "num_outputs": 2}, outputs=2),
        Node("Split", [floats(6)], {"axis": 0, "num_outputs": 2}, outputs=2),
    )
    written.check(model, feeds)


def test_splits_of_the_batch() -> None:
    model, feeds = node_models.model(Node("Split", [floats(3, 4)], {"axis": 0, "num_outputs": 3}, outputs=3))
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_concats(batch: int) -> None:
    x, y, one = floats(batch, 4, 7, 6), floats(batch, 4, 7, 6, seed=2), floats(batch, 1, 6)
    deep = floats(batch, 2, 3, 2, 3, 2)
    nodes = [Node("Concat", [x, y, x], {"axis": axis}) for axis in (0, 1, 2, 3, -1)]
    nodes += [Node("Concat", [deep, deep], {"axis": axis}) for axis in range(6)]
    nodes += [
        Node("Concat", [one, floats(batch, 5, 6), one], {"axis": 1}),
        Node("Concat", [one, one], {"axis": 1}),
        Node("Concat", [one, floats(batch, 3, 6)], {"axis": 1}, (1,)),
        Node("Concat", [floats(batch, 3, 6), one], {"axis": 1}, (0,)),
        Node("Concat", [x, floats(2, 4, 7, 6)], {"axis": 0}, (1,)),
        Node("Concat", [integers(batch, 4), integers(batch, 2)], {"axis": 1}),
        Node("Concat", [truths(batch, 4), truths(batch, 2)], {"axis": 1}),
        Node("Concat", [floats(batch, 4)], {"axis": 1}),
    ]
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_repeats(batch: int) -> None:
    x, deep = floats(batch, 2, 1, 3), floats(batch, 2, 3, 2, 3, 2)
    nodes = [Node("Tile", [x, ints(*times)], constants=(1,)) for times in ([1, 2, 3, 1], [1, 1, 1, 2], [2, 1, 1, 1])]
    nodes += [Node("Tile", [deep, ints(*times)], constants=(1,)) for times in ([1, 2, 1, 2, 1, 2], [1, 2, 3, 2, 2, 3])]
    nodes += [
        Node("Tile", [floats(5), ints(3)], constants=(1,)),
        Node("Tile", [x, ints(1, 1, 1, 1)], constants=(1,)),
        Node("Tile", [x, ints(2, 3, 2, 2)], constants=(1,)),
    ]
    nodes += [
        Node("Expand", [x, ints(*shape)], constants=(1,)) for shape in ([1, 1, 4, 1], [2, 1, 2, 1, 1], [4, 3], [1])
    ]
    nodes += [
        Node("Expand", [floats(batch, 1, 1, 2, 1, 3, 1), ints(1, 2, 3, 1, 2, 1, 3)], constants=(1,)),
        Node("Expand", [floats(1), ints(2, 3)], constants=(1,)),
        Node("Expand", [np.array(2.5, np.float32), ints(2, 3)], constants=(1,)),
        Node("Expand", [truths(batch, 1), ints(1, 4)], constants=(1,)),
        Node("Expand", [integers(batch, 1, high=1 << 24), ints(1, 4)], constants=(1,)),
    ]
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_what_follows_finds_the_rows(batch: int) -> None:
    model = node_models.of_text(f"float[{batch},4,6] x, float[{batch},3,6] z", "Concat <axis = 1> (x, z)")
    feeds = {"x": floats(batch, 4, 6), "z": floats(batch, 3, 6)}
    written.check(model, feeds)
    assert written.layers(model) == ["Concat"]


@pytest.mark.parametrize(
    ("start", "end", "step"),
    [
        (1, FAR, 1),
        (0, -1, 1),
        (-1, FAR, 1),
        (0, 100, 2),
        (1, 4, 2),
        (-4, FAR, 3),
        (-1, -FAR, -1),
        (FAR, -FAR, -2),
        (-1, 0, -1),
        (2, -FAR, -1),
        (-2, -4, -1),
    ],
)
def test_cuts_of_open_axes(start: int, end: int, step: int) -> None:
    model = node_models.of_text("float[N,S,3] x", f"Slice(x, [{start}], [{end}], [1], [{step}])")
    fed = [{"x": floats(batch, size, 3)} for batch, size in ((6, 6), (4, 4), (5, 5), (8, 8), (4, 7))]
    written.check(model, *fed, N=DimRange(4, 6, 8), S=DimRange(4, 6, 8))
