from __future__ import annotations

import numpy as np
import pytest
from pass_testing import Ran, run_pass

from retarget.passes.fold_shapes import FoldShapes
from retarget.passes.rewriting import ints

SIZES = ({"N": 1, "S": 3}, {"N": 3, "S": 5})
CONSTANTS = {
    "i0": np.array(0),
    "i1": np.array(1),
    "v0": np.array([0]),
    "v1": np.array([1]),
    "v2": np.array([2]),
    "v3": np.array([3]),
    "v4": np.array([4]),
    "m1": np.array([-1]),
    "m2": np.array([-2]),
    "big": np.array([2**63 - 1]),
    "two": np.array(2),
    "cls": np.ones((1, 1, 8), "f"),
    "flat": np.array([-1, 8]),
    "split": np.array([0, 0, 2, 4]),
}


def used(text: str) -> dict[str, np.ndarray]:
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {name: array for name, array in CONSTANTS.items() if name in words}


def shape_of(ran: Ran) -> list[int] | None:
    (reshape,) = (node for node in ran.model.graph if node.op_type == "Reshape")
    return ints(reshape.inputs[1])


HEADS = """
g (float[N,S,8] x) => (float[N,S,2,4] y) {
  s = Shape(x)
  n = Gather(s, i0)
  m = Gather(s, i1)
  a = Unsqueeze(n, v0)
  b = Unsqueeze(m, v0)
  c = Concat <axis = 0> (a, b, v2, m1)
  y = Reshape(x, c)
}
"""


def test_computed_shape_of_a_reshape() -> None:
    ran = run_pass(FoldShapes(), HEADS, used(HEADS), sizes=SIZES)
    assert ran.ops == ["Reshape"]
    assert shape_of(ran) == [0, 0, 2, 4]
    assert ran.error == 0


def test_one_dimension_is_left() -> None:
    text = """
    g (float[N,S,8] x) => (float[M,8] y) {
      n = Shape <start = 0, end = 1> (x)
      m = Shape <start = 1, end = 2> (x)
      k = Mul(n, m)
      c = Concat <axis = 0> (k, m1)
      r = Relu(x)
      y = Reshape(r, c)
    }
    """
    ran = run_pass(FoldShapes(), text, used(text), sizes=SIZES)
    assert ran.ops == ["Relu", "Reshape"]
    assert shape_of(ran) == [-1, 8]


def test_two_dimensions_are_left() -> None:
    text = """
    g (float[N,S,8] x, float[P,Q] z) => (float[A,B,C] y) {
      n = Shape <start = 0, end = 1> (z)
      m = Shape <start = 1, end = 2> (z)
      c = Concat <axis = 0> (n, m, m1)
      y = Reshape(x, c)
    }
    """
    one = FoldShapes()
    ran = run_pass(one, text, used(text), sizes=({"N": 2, "S": 3, "P": 3, "Q": 2},))
    assert not ran.modified
    assert one.refused[-1][1] == "more than one dimension is neither a number nor its input's"


def test_a_copy_of_a_dimension_at_another_place() -> None:
    text = """
    g (float[N,S,8] x) => (float[S,N,8] y) {
      n = Shape <start = 0, end = 1> (x)
      m = Shape <start = 1, end = 2> (x)
      c = Concat <axis = 0> (m, n, m1)
      y = Reshape(x, c)
    }
    """
    assert not run_pass(FoldShapes(), text, used(text), sizes=SIZES).modified


@pytest.mark.parametrize(
    "vector",
    [
        "c = Slice(s, m2, big)",
        "c = Slice(s, v2, v4)",
        "a = Gather(s, m2) b = Gather(s, m1) c = Concat <axis = 0> (a, b)",
        "a = Gather(s, m1) b = Gather(s, v2) q = Mul(b, v2) r = Div(q, v2) c = Concat <axis = 0> (r, a)",
        "a = Gather(s, m1) b = Sub(a, v1) d = Add(b, v1) e = Cast <to = 7> (d) c = Concat <axis = 0> (v3, e)",
    ],
)
def test_vectors_of_numbers(vector: str) -> None:
    body = f"s = Shape(x) {vector} e1 = Expand(z, c) y = Relu(e1)"
    text = f"g (float[N,S,3,4] x, float[3,4] z) => (float[3,4] y) {{ {body} }}"
    ran = run_pass(FoldShapes(), text, used(text), sizes=SIZES)
    assert ran.counts["Shape"] == 0
    assert set(ran.ops) <= {"Expand", "Relu"}
    assert ran.error == 0


def test_expand_by_what_is_there() -> None:
    text = """
    g (float[N,S] x, float[N,1] z) => (float[N,8] y) {
      n = Shape <start = 0, end = 1> (x)
      m = Add(v4, v4)
      c = Concat <axis = 0> (n, m)
      y = Expand(z, c)
    }
    """
    ran = run_pass(FoldShapes(), text, used(text), sizes=SIZES)
    assert ran.ops == ["Expand"]
    assert ran.error == 0


def test_expand_to_a_size_that_is_elsewhere() -> None:
    text = """
    g (float[N,S,8] x) => (float[N,1,8] y) {
      n = Shape <start = 0, end = 1> (x)
      c = Concat <axis = 0> (n, v1, v1)
      y = Expand(cls, c)
    }
    """
    assert not run_pass(FoldShapes(), text, used(text), sizes=SIZES).modified


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Reshape(x, flat) b = Relu(a)", ["Reshape", "Relu"]),
        ("a = Unsqueeze(x, v1) b = Squeeze(a, v1)", []),
        ("a = Unsqueeze(x, v3) b = Unsqueeze(a, v3)", ["Reshape"]),
        ("a = Flatten(x) b = Unsqueeze(a, v2)", ["Reshape"]),
        ("a = Reshape(x, split) r = Relu(a) b = Reshape(r, split)", ["Reshape", "Relu"]),
    ],
)
def test_chains_of_reshapes(body: str, left: list[str]) -> None:
    text = f"g (float[N,S,8] x) => (float y) {{ {body} k = Abs(b) y = ReduceSum <keepdims = 0> (k) }}"
    ran = run_pass(FoldShapes(), text, used(text), sizes=SIZES)
    assert ran.ops == [*left, "Abs", "ReduceSum"]
    assert ran.error == 0


def test_two_reshapes_back_to_the_first_shape() -> None:
    text = """
    g (float[N,8] x) => (float[N,8] y) {
      a = Reshape(x, split2)
      b = Reshape(a, flat)
      y = Relu(b)
    }
    """
    ran = run_pass(FoldShapes(), text, {"split2": np.array([-1, 2, 4]), "flat": np.array([0, 8])}, sizes=SIZES)
    assert ran.ops == ["Relu"]


def test_transpose_between_reshapes() -> None:
    text = """
    g (float[N,2,S,4] x) => (float[N,2,4,S] y) {
      s = Shape(x)
      h = Slice(s, v0, v2)
      a = Slice(s, v2, v3)
      b = Slice(s, v3, v4)
      c = Concat <axis = 0> (m1, a, b)
      p = Reshape(x, c)
      q = Transpose <perm = [0, 2, 1]> (p)
      d = Concat <axis = 0> (h, b, a)
      y = Reshape(q, d)
    }
    """
    ran = run_pass(FoldShapes(), text, used(text), sizes=SIZES)
    assert ran.ops == ["Transpose"]
    assert ran.model.graph.node(0).attributes.get_ints("perm") == (0, 1, 3, 2)
    assert ran.error == 0


def test_transpose_that_moves_what_the_reshape_joined() -> None:
    text = """
    g (float[2,3,4,5] x) => (float[4,5,2,3] y) {
      p = Reshape(x, joined)
      q = Transpose <perm = [1, 2, 0]> (p)
      y = Reshape(q, wanted)
    }
    """
    constants = {"joined": np.array([6, 4, 5]), "wanted": np.array([4, 5, 2, 3])}
    assert not run_pass(FoldShapes(), text, constants).modified


def test_reduction_that_keeps_axes_which_are_dropped_next() -> None:
    text = "g (float[N,4,5,6] x) => (float[N,4] y) { a = ReduceMean(x, axes) y = Reshape(a, flat) }"
    ran = run_pass(FoldShapes(), text, {"axes": np.array([-1, 2]), "flat": np.array([-1, 4])}, sizes=SIZES)
    assert ran.ops == ["ReduceMean"]
    assert ran.model.graph.node(0).attributes.get_int("keepdims") == 0
    assert ran.error == 0


def test_reduction_that_others_read() -> None:
    text = """
    g (float[N,4,5,6] x) => (float[N,4] y, float[N,4,1,1] z) {
      a = ReduceMean(x, axes)
      y = Reshape(a, flat)
      z = Relu(a)
    }
    """
    constants = {"axes": np.array([3, 2]), "flat": np.array([-1, 4])}
    assert not run_pass(FoldShapes(), text, constants, sizes=SIZES).modified


def test_zero_sizes_are_not_copied() -> None:
    text = "g (float[N,0,8] x) => (float[N,0,8] y) { s = Shape(x) y = Reshape <allowzero = 1> (x, s) }"
    ran = run_pass(FoldShapes(), text, sizes=SIZES)
    assert ran.error == 0


def test_shapes_that_are_outputs_stay() -> None:
    text = "g (float[3,4] x) => (int64[2] y) { y = Shape(x) }"
    one = FoldShapes()
    assert not run_pass(one, text).modified
    assert one.refused == [("", "a graph output is not replaced by a constant")]
