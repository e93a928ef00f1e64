"""Shapes and the order of axes for ncnn against ONNX Runtime, with the batch as rows and without."""

from __future__ import annotations

import itertools

import ncnn_written as written
import node_models
import numpy as np
import pytest
import target_testing
from node_models import Node, floats, integers, truths


def ints(*numbers: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize("batch", [1, 3])
def test_reshapes(batch: int) -> None:
    x = floats(batch, 4, 6, 2)
    nodes = [
        Node("Reshape", [x, ints(*shape)], constants=(1,))
        for shape in ([0, -1], [-1], [0, 2, 2, 3, 2, 2], [-1, 2], [0, 48, 1, 1], [1, -1, 4], [2, -1])
    ]
    nodes += [Node("Flatten", [x], {"axis": axis}) for axis in (0, 1, 3, -1)]
    nodes += [
        Node("Unsqueeze", [x, ints(1, -1)], constants=(1,)),
        Node("Unsqueeze", [x, ints(0)], constants=(1,)),
        Node("Squeeze", [floats(batch, 1, 6, 1), ints(1, -1)], constants=(1,)),
        Node("Identity", [x]),
        Node("Reshape", [integers(batch, 4), ints(-1, 2)], constants=(1,)),
        Node("Reshape", [truths(batch, 4), ints(0, 2, 2)], constants=(1,)),
    ]
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds)


def test_a_shape_that_keeps_rows_moves_none() -> None:
    model, _ = node_models.model(Node("Reshape", [floats(3, 4, 6), ints(0, 2, 2, 6)], constants=(1,)))
    assert written.layers(model) == ["Reshape"]  # that of the output's own dims


@pytest.mark.parametrize("shape", [[3, 4], [1, 4, 3], [3, 4, 5], [3, 4, 1, 5], [1, 2, 4, 3], [3, 2, 4, 5]])
def test_all_orders_of_axes(shape: list[int]) -> None:
    x = floats(*shape)
    model, feeds = node_models.model(
        *(Node("Transpose", [x], {"perm": list(perm)}) for perm in itertools.permutations(range(len(shape))))
    )
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_orders_of_many_axes(batch: int) -> None:
    rng = np.random.default_rng(3)
    nodes = [Node("Transpose", [floats(batch, 2, 3, 2, 3, 2)], {"perm": [0, 1, 3, 2, 4, 5]})]
    nodes += [
        Node("Transpose", [floats(*shape)], {"perm": [int(axis) for axis in order]})
        for shape in ([batch, 2, 3, 4, 5], [batch, 2, 3, 2, 3, 2], [batch, 2, 1, 3, 2, 2, 3])
        for order in (rng.permutation(len(shape)) for _ in range(12))
    ]
    nodes += [Node("Transpose", [floats(batch, 2, 3, 4, 5, 2, 2)], {"perm": [0, 6, 5, 4, 3, 2, 1]})]
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds)


def test_permutes_are_few() -> None:
    def permutes(perm: list[int], *shape: int) -> int:
        model, _ = node_models.model(Node("Transpose", [floats(*shape)], {"perm": perm}))
        return written.layers(model).count("Permute")

    assert permutes([0, 1, 3, 2, 4, 5], 3, 2, 3, 2, 3, 2) == 1
    assert permutes([0, 1, 4, 2, 5, 3], 3, 2, 3, 2, 3, 2) == 2
    assert permutes([4, 3, 2, 1, 0], 2, 3, 4, 5, 2) == 2
    assert permutes([1, 0, 2], 1, 3, 4) == 0


def test_sizes_are_known() -> None:
    x = floats(3, 4, 5)
    model, feeds = node_models.model(
        Node("Shape", [x]),
        Node("Shape", [x], {"start": -2, "end": 9}),
        Node("Size", [x]),
        Node("EyeLike", [floats(3, 4)], {"k": 1}),
        Node("EyeLike", [floats(3, 4)], {"k": -1, "dtype": 7}),
    )
    written.check(model, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_codes_are_moved(batch: int) -> None:
    """What was rounded, and constants of integers with a scale for each row."""
    model = target_testing.model(
        f"""g (float[{batch},4,6] x) => (float[] y, float[] z, float[] u, float[] v) {{
            s = Constant <value_float = 0.05> () zero = Constant <value = int8 {{0}}> ()
            q = QuantizeLinear(x, s, zero) d = DequantizeLinear(q, s, zero)
            all = Constant <value_ints = [0, -1]> ()
            y = Transpose <perm = [0, 2, 1]> (d) z = Reshape(d, all) a, u = Split <axis = 1, num_outputs = 2> (d)
            c = Constant <value = int8[2, 6] {{1, 2, 3, 4, 5, 6, -7, 8, 9, -10, 11, 12}}> ()
            t = Constant <value = float[2] {{0.5, 0.25}}> () zeros = Constant <value = int8[2] {{0, 0}}> ()
            w = DequantizeLinear <axis = 0> (c, t, zeros)
            first = Constant <value_ints = [0]> () ends = Constant <value_ints = [1]> ()
            l = Unsqueeze(w, first) m = Squeeze(l, first) n = Transpose(m) o = MatMul(x, n)
            p = Slice(w, first, ends) r = Concat <axis = 0> (p, w) e = Transpose(r) k = MatMul(x, e)
            v = Concat <axis = -1> (o, k)
        }}"""
    )
    written.check(model, {"x": floats(batch, 4, 6, scale=1.0)})
