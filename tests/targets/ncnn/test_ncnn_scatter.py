"""Writing at known indices for ncnn against ONNX Runtime, with the batch as rows and without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ncnn_written as written
import node_models
import numpy as np
import pytest
import target_testing
from node_models import Attribute, Node, floats, integers

if TYPE_CHECKING:
    from retarget.protocols import Array

BATCHES = pytest.mark.parametrize("batch", [1, 3])
REDUCTIONS = pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])


def unordinary(*shape: int) -> Array:
    array = floats(*shape)
    array.reshape(-1)[::5] = np.inf
    array.reshape(-1)[2::11] = np.nan
    return array


def scattered(x: Array, at: Array, updates: Array, axis: int, reduction: str = "none") -> Node:
    attributes: dict[str, Attribute] = {"axis": axis, "reduction": reduction}
    return Node("ScatterElements", [x, at.astype(np.int64), updates], attributes, (1,))


@BATCHES
@REDUCTIONS
def test_elements(batch: int, reduction: str) -> None:
    x = floats(batch, 5, 4) if reduction != "none" else unordinary(batch, 5, 4)
    apart = np.broadcast_to(np.array([3, 0, -4])[:, None], (batch, 3, 4))
    again = np.broadcast_to(np.array([3, 0, 3, 3])[:, None], (batch, 4, 2))
    nodes = [
        scattered(x, apart, floats(batch, 3, 4, seed=2), 1, reduction),
        scattered(x, apart[:, :2, :1], floats(batch, 2, 1, seed=2), 2, reduction),
        scattered(x, np.zeros((1, 5, 4)), floats(1, 5, 4, seed=2), 0, reduction),
    ]
    if reduction != "none":  # which of two stands then is not said
        nodes.append(scattered(x, again, floats(batch, 4, 2, seed=2), 1, reduction))
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds)


def nd(x: Array, at: Array, updates: Array, reduction: str = "none") -> Node:
    return Node("ScatterND", [x, at.astype(np.int64), updates], {"reduction": reduction}, (1,))


@BATCHES
@REDUCTIONS
def test_places_of_many_axes(batch: int, reduction: str) -> None:
    x = floats(batch, 5, 4)
    inside = np.stack(np.meshgrid(range(batch), [1, 2, 3], indexing="ij"), -1)
    nodes = [
        nd(x, inside, floats(batch, 3, 4, seed=2), reduction),
        nd(x, np.array([[-1]]), floats(1, 5, 4, seed=2), reduction),
        nd(x, np.array([0, 2]), floats(4, seed=2), reduction),
        nd(x, np.array([[0, 2, 1], [0, -1, -1]]), floats(2, seed=2), reduction),
        nd(x[:, 0, 0], np.arange(batch)[::-1, None], floats(batch, seed=2), reduction),
    ]
    if reduction != "none":
        nodes.append(nd(x, np.array([[0, 1], [0, 2], [0, 1]]), floats(3, 4, seed=2), reduction))
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds)


def test_a_part_is_written_into_each_row() -> None:
    inside = np.stack(np.meshgrid(range(3), [1, 2, 3], indexing="ij"), -1)
    model, feeds = node_models.model(nd(floats(3, 5, 4), inside, floats(3, 3, 4, seed=2)))
    written.check(model, feeds)
    assert written.layers(model) == ["Concat", "Split", "Crop", "Crop", "Crop", "Concat"]


def test_parts_of_more_elements_than_are_told_apart() -> None:
    """Seven lines of an image are copied whole."""
    lines = np.array([[0, line] for line in range(1, 14, 2)])
    model, feeds = node_models.model(nd(floats(1, 16, 1 << 17), lines, floats(7, 1 << 17, seed=2)))
    written.check(model, feeds)


def computed(node: Node) -> Node:
    return Node(node.operator, node.operands, node.attributes)


@BATCHES
def test_computed_places(batch: int) -> None:
    x = unordinary(batch, 5, 4)
    apart = np.broadcast_to(np.array([3, 0, -4])[:, None], (batch, 3, 4))
    inside = np.stack(np.meshgrid(range(batch), [1, -2, 3], indexing="ij"), -1)
    nodes = [
        scattered(x, apart, floats(batch, 3, 4, seed=2), 1),
        scattered(x, apart[:, :2, :1], unordinary(batch, 2, 1), 2),
        scattered(x, np.full((1, 5, 4), -1), floats(1, 5, 4, seed=2), 0),
        nd(x, inside, floats(batch, 3, 4, seed=2)),
        nd(x, np.array([[-1]]), unordinary(1, 5, 4)),
        nd(x, np.array([[0, 2, 1], [0, -1, -1]]), floats(2, seed=2)),
        nd(integers(batch, 5), np.array([[0, 2]]), integers(1, seed=2)),
    ]
    model, feeds = node_models.model(*map(computed, nodes))
    written.check(model, feeds)


@BATCHES
@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
def test_reductions_at_computed_places(batch: int, reduction: str) -> None:
    x, updates = floats(batch, 5, 4), floats(batch, 5, 4, seed=2)
    x.reshape(-1)[:8:2] = -np.inf
    updates.reshape(-1)[1:6:2] = -np.inf
    again = np.broadcast_to(np.array([3, 0, 3, 3, -5])[:, None], (batch, 5, 4))
    nodes = [
        scattered(x, again, updates, 1, reduction),
        nd(x, np.array([[0, 1], [0, 2], [0, 1]]), updates[0, :3], reduction),
        nd(x, np.array([[0]]), updates[:1], reduction),
    ]
    model, feeds = node_models.model(*map(computed, nodes))
    written.check(model, feeds)


def test_what_is_refused() -> None:
    at = integers(3, 2, low=0, high=4, dtype="int64")
    many = integers(1, 3000, low=0, high=3000, dtype="int64")
    model, _ = node_models.model(computed(scattered(floats(1, 3000), many, floats(1, 3000), 1)))
    assert "too much" in written.refused(model)
    x = integers(3, 4, dtype="int64")
    model, _ = node_models.model(scattered(x, at, integers(3, 2, dtype="int64"), 1, "mul"))
    assert "larger than floats hold" in written.refused(model)


@pytest.mark.parametrize("reduction", ["none", "add"])
@pytest.mark.parametrize("indices", ["known", "computed"])
def test_integers_are_as_large_as_what_is_written(indices: str, reduction: str) -> None:
    """255 times 65,000 is below 2^24; a sum of three of them is above it, as any of the updates may be."""
    model = target_testing.model(f"""g (uint8[4] a, uint8[3] b, int64[3] x, int64[3] i) => (int64[4] y) {{
        small = Cast <to = 7> (a) added = Cast <to = 7> (b) j = Constant <value_ints = [1, 1, 3]> ()
        s = ScatterElements <axis = 0, reduction = "{reduction}"> (small, {"j" if indices == "known" else "i"},
            {"added" if reduction == "add" else "x"})
        k = Constant <value_int = 65000> () [product] y = Mul(s, k)
    }}""")
    assert "product (Mul): its integers may be beyond 2^24" in written.refused(model)
