"""Shapes, joins and parts for Core ML against ONNX Runtime, every open dimension of several sizes in one package."""

from __future__ import annotations

from typing import TYPE_CHECKING

import node_models
import numpy as np
import pytest
import target_testing as t
import written

from retarget.errors import Unsupported

if TYPE_CHECKING:
    from retarget.targets.coreml import DeploymentTarget

CASES = {
    "reshape, batch and length as they are": ("float[N,S,12] x", "Reshape(x, [0, 0, 3, -1])"),
    "reshape, what is left is known": ("float[N,S,12] x", "Reshape(x, [0, -1, 4, 3])"),
    "reshape, two open sizes in one": ("int64[N,S,12] x", "Reshape(x, [-1, 12])"),
    "reshape, two open sizes kept and one made": ("float[N,S,T,4] x", "Reshape(x, [0, 0, -1])"),
    "flatten": ("float[N,S,3] x", "Flatten(x)"),
    "flatten, sizes that must be computed": ("float[N,S,T,3] x", "Flatten <axis = 2> (x)"),
    "flatten to one row": ("float[N,S,3] x", "Flatten <axis = 0> (x)"),
    "flatten from the end": ("float[N,S,2,3] x", "Flatten <axis = -2> (x)"),
    "squeeze": ("bool[N,1,S,1] x", "Squeeze(x, [1, -1])"),
    "unsqueeze": ("bool[N,S] x", "Unsqueeze(x, [-1, 0])"),
    "transpose": ("bool[N,S,3] x", "Transpose(x)"),
    "transpose, axes in order": ("float[N,S,3] x", "Transpose <perm = [0, 1, 2]> (x)"),
    "concat": ("float[N,S,3] x, float[N,2,3] z", "Concat <axis = -2> (x, z)"),
    "concat of truths": ("bool[N,S,3] x, bool[N,2,3] z", "Concat <axis = 1> (x, z)"),
    "expand": ("float[N,1,3] x", "Expand(x, [1, 4, 1])"),
    "expand by axes before": ("int64[N,1] x", "Expand(x, [2, 1, 5])"),
    "expand what is so already": ("float[N,S,3] x", "Expand(x, [1, 1, 3])"),
    "expand truths": ("bool[N,1] x", "Expand(x, [1, 5])"),
    "tile": ("float[N,1,S] x", "Tile(x, [2, 3, 1])"),
    "lower triangle": ("float[N,5,4] x", "Trilu <upper = 0> (x, [1])"),
    "upper triangle of open sizes": ("float[N,S,T] x", "Trilu(x, [-1])"),
    "triangle of truths": ("bool[S,T] x", "Trilu(x)"),
    "diagonal of open sizes": ("float[S,T] x", "EyeLike <k = 1> (x)"),
}


@pytest.mark.parametrize("name", CASES)
def test_open_sizes(name: str) -> None:
    inputs, node = CASES[name]
    written.check_open(node_models.of_text(inputs, node), 4, 1, 2)


RESULTS = {
    "split evenly": ("float[N,S,6] x", "Split <axis = -1, num_outputs = 2> (x)", "y, z"),
    "split, the last is shorter": ("int64[N,7] x", "Split <axis = 1, num_outputs = 3> (x)", "y, z, u"),
    "split as asked": ("bool[N,S,6] x", "Split <axis = 2> (x, [1, 5])", "y, z"),
    "shape": ("float[N,3,S] x", "Shape(x)", "int64 y"),
    "shape from the end": ("float[N,3,S] x", "Shape <start = -1> (x)", "int64 y"),
    "shape, a known part": ("float[N,3,S] x", "Shape <start = 1, end = 2> (x)", "int64 y"),
    "size": ("bool[N,3,S] x", "Size(x)", "int64 y"),
    "diagonal of another type": ("float[S,T] x", "EyeLike <dtype = 7, k = -1> (x)", "int64 y"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_other_results(name: str) -> None:
    inputs, node, outputs = RESULTS[name]
    written.check_open(node_models.of_text(inputs, node, outputs), 4, 1, 2)


BODIES = {
    "heads, sizes read off the ids": """g (float[N,S,12] x) => (float[N,3,S,4] y) {
        zero = Constant <value_int = 0> () one = Constant <value_int = 1> () first = Constant <value_ints = [0]> ()
        heads = Constant <value_ints = [3, 4]> ()
        s = Shape(x) n = Gather(s, zero) l = Gather(s, one) nu = Unsqueeze(n, first) lu = Unsqueeze(l, first)
        shape = Concat <axis = 0> (nu, lu, heads) r = Reshape(x, shape) y = Transpose <perm = [0, 2, 1, 3]> (r)
    }""",
    "keys repeated for groups of heads": """g (float[N,2,S,4] k) => (float[N,6,S,4] y) {
        two = Constant <value_ints = [2]> () three = Constant <value_ints = [3]> () six = Constant <value_ints = [6]> ()
        a = Shape <start = 0, end = 2> (k) b = Shape <start = 2> (k) n = Shape <start = 0, end = 1> (k)
        u = Unsqueeze(k, two) e = Concat <axis = 0> (a, three, b) x = Expand(u, e)
        shape = Concat <axis = 0> (n, six, b) y = Reshape(x, shape)
    }""",
    "a product of sizes": """g (float[N,S,12] x) => (float[P,12] y) {
        twelve = Constant <value_ints = [12]> () l = Shape <start = 1, end = 2> (x) n = Shape <start = 0, end = 1> (x)
        p = Mul(l, n) shape = Concat <axis = 0> (p, twelve) y = Reshape(x, shape)
    }""",
    "two products of sizes": """g (float[N,S,12] x) => (float[P,Q] y) {
        two = Constant <value_ints = [2]> () six = Constant <value_ints = [6]> ()
        n = Shape <start = 0, end = 1> (x) l = Shape <start = 1, end = 2> (x)
        a = Mul(n, six) b = Mul(l, two) shape = Concat <axis = 0> (a, b) y = Reshape(x, shape)
    }""",
    "expanded to a shape": """g (float[1,1,3] x, float[N,S] z) => (float[N,S,3] y) {
        three = Constant <value_ints = [3]> () s = Shape(z) shape = Concat <axis = 0> (s, three) y = Expand(x, shape)
    }""",
    "expanded where it is one alone": """g (float[N,S] x, float[S,T] z) => (float[P,Q] y) {
        s = Shape(z) p = Shape(x) m = Max(s, p) y = Expand(x, m)
    }""",
    "tiled as often as fed": """g (float[N,3] x, float[S,T] z) => (float[P,Q] y) { s = Shape(z) y = Tile(x, s) }""",
    "filled": """g (float[N,S] x) => (bool[N,S] y, int64[N,S] z) {
        s = Shape(x) y = ConstantOfShape <value = bool[1] {1}> (s) z = ConstantOfShape <value = int64[1] {7}> (s)
    }""",
    "counted": """g (float[N,S] x) => (int64[P] y) {
        one = Constant <value_int = 1> () two = Constant <value_int = -2> () s = Size(x) y = Range(s, two, two)
    }""",
    "windows": """g (float[N,4,6,5] x) => (float[M,2,3,5] y) {
        a = Constant <value_ints = [-1, 2, 2, 2, 3, 5]> () b = Constant <value_ints = [-1, 2, 3, 5]> ()
        r = Reshape(x, a) u = Transpose <perm = [0, 1, 3, 2, 4, 5]> (r) y = Reshape(u, b)
    }""",
    "windows put back, of truths": """g (bool[N,12,6] x) => (bool[N,6,12] y) {
        a = Constant <value_ints = [0, 3, 2, 2, 3, 2]> () b = Constant <value_ints = [0, 6, 12]> ()
        r = Reshape(x, a) u = Transpose <perm = [0, 4, 1, 5, 2, 3]> (r) y = Reshape(u, b)
    }""",
    "seven axes the other way around": """g (float[N,24,5] x) => (float[5,M] y) {
        a = Constant <value_ints = [0, 2, 2, 2, 3, 5, 1]> () b = Constant <value_ints = [5, -1]> ()
        r = Reshape(x, a) u = Transpose <perm = [6, 5, 4, 3, 2, 1, 0]> (r) y = Reshape(u, b)
    }""",
    "six axes split, dropped and joined": """g (float[N,12,6] x) => (float[N,24,3] y) {
        a = Constant <value_ints = [0, 3, 2, 2, 3, 2]> () b = Constant <value_ints = [0, 24, 3]> ()
        last = Constant <value_ints = [5]> () r = Reshape(x, a) p, q = Split <axis = -1, num_outputs = 2> (r)
        j = Concat <axis = 2> (q, p) s = Squeeze(j, last) u = Transpose <perm = [0, 2, 1, 3, 4]> (s) y = Reshape(u, b)
    }""",
    "six axes cut and taken of": """g (float[N,12,6] x) => (float[N,3,2,3] y) {
        a = Constant <value_ints = [0, 3, 2, 2, 3, 2]> () one = Constant <value_ints = [1]> ()
        two = Constant <value_ints = [2]> () last = Constant <value_int = -1> () r = Reshape(x, a)
        p = Gather <axis = 5> (r, last) s = Slice(p, one, two, two) y = Squeeze(s, two)
    }""",
}


@pytest.mark.parametrize("name", BODIES)
def test_sizes_that_are_computed(name: str) -> None:
    written.check_open(t.model(BODIES[name]), 4, 1, 2)


@pytest.mark.parametrize("target", written.TARGETS)
def test_targets(target: DeploymentTarget) -> None:
    for name in ("heads, sizes read off the ids", "keys repeated for groups of heads", "windows"):
        written.check_open(t.model(BODIES[name]), 4, 1, target=target)


def test_float16() -> None:
    model = t.model("""g (float16[N,S,12] x) => (float16[] y) {
        a = Constant <value_ints = [0, 0, 3, 4]> () r = Reshape(x, a)
        u = Transpose <perm = [0, 2, 1, 3]> (r) y = Trilu(u)
    }""")
    written.check_open(model, 4, 1)


def test_what_a_triangle_leaves_out_is_zero_whatever_it_was() -> None:
    model = node_models.of_text("float[S,S] x", "Trilu(x)")
    array = np.array([[1, -0.0, np.nan], [np.inf, 2, np.inf], [np.nan, -np.inf, -0.0]], np.float32)
    (found,) = written.interpreted(model, {"x": array})
    expected = np.array([[1, -0.0, np.nan], [0, 2, np.inf], [0, 0, -0.0]], np.float32)
    np.testing.assert_array_equal(found["y"], expected)
    np.testing.assert_array_equal(np.signbit(found["y"]), np.signbit(expected))


def test_an_open_axis_is_expanded_only_where_it_is_one() -> None:
    model = node_models.of_text("float[N,3] x", "Expand(x, [4, 3])")
    written.check_open(model, 4, 1)


def test_what_is_left_of_axes_that_may_be_one_is_fixed() -> None:
    model = t.model("""g (float[N,1,3] x) => (float[M,3] y) {
        a = Constant <value_ints = [-1, 3]> () z = Squeeze(x) y = Reshape(z, a)
    }""")
    with pytest.raises(AssertionError, match="more than one of its sizes is open"):
        written.check_open(model, 4)


def test_six_axes_are_not_computed_with() -> None:
    model = t.model("""g (float[N,24] x) => (float[] y) {
        a = Constant <value_ints = [-1, 2, 2, 2, 3, 1]> () r = Reshape(x, a) y = Relu(r)
    }""")
    with pytest.raises(Unsupported, match="has 6 axes, and Core ML has at most 5"):
        written.check_open(model, 4)
