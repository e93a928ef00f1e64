"""Gathers, scatters, TopK and NonMaxSuppression in TFLite against ONNX Runtime, with all kernels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import one_node
import onnx_ir as ir
import pytest
import target_testing as t

from retarget.errors import Unsupported

if TYPE_CHECKING:
    from retarget.protocols import Array

CASES = {
    "gather": ("float[N,8,3] x, int64[2,2] i", "Gather <axis = 1> (x, i)"),
    "gather one": ("float[N,8,3] x, int64 i", "Gather <axis = 1> (x, i)"),
    "gather of int64, int32 indices": ("int64[N,8] x, int32[3] i", "Gather <axis = -1> (x, i)"),
    "gather of bool": ("bool[8,N] x, int64[3] i", "Gather(x, i)"),
    "gather by constants": ("float[N,5,6,7] x", "Gather <axis = 2> (x, [-1, 0, -6])"),
    "elements of rows": ("float[N,3,8] x, int64[N,3,5] i", "GatherElements <axis = -1> (x, i)"),
    "elements of columns": ("float[8,4] x, int64[2,3] i", "GatherElements(x, i)"),
    "elements between": ("int64[3,8,2] x, int64[2,5,2] i", "GatherElements <axis = 1> (x, i)"),
    "gather places": ("float[8,8,N] x, int64[5,2] i", "GatherND(x, i)"),
    "gather elements by places": ("bool[8,8] x, int64[4,3,2] i", "GatherND(x, i)"),
    "gather places of a batch": ("float[N,8,3] x, int64[N,4,1] i", "GatherND <batch_dims = 1> (x, i)"),
    "gather places of two axes of a batch": ("float[2,3,8,8,2] x, int64[2,3,2] i", "GatherND <batch_dims = 2> (x, i)"),
    "add at places": ("float[8,3] x, int64[N,1] i, float[N,3] u", 'ScatterND <reduction = "add"> (x, i, u)'),
    "multiply at places": ("float[8,3] x, int64[5,1] i, float[5,3] u", 'ScatterND <reduction = "mul"> (x, i, u)'),
    "largest at places": ("float[8,8] x, int64[5,2] i, float[5] u", 'ScatterND <reduction = "max"> (x, i, u)'),
    "smallest of integers": ("int64[8,8] x, int64[9,2] i, int64[9] u", 'ScatterND <reduction = "min"> (x, i, u)'),
    "add elements": ("float[8,3] x, int64[4,2] i, float[4,2] u", 'ScatterElements <reduction = "add"> (x, i, u)'),
    "largest elements": (
        "float[3,8] x, int64[2,4] i, float[2,4] u",
        """ScatterElements
        <axis = 1, reduction = "max"> (x, i, u)""",
    ),
    "reversed": ("float[9,N,3] x, int64[N] n", "ReverseSequence(x, n)"),
    "reversed, batch in front": ("float[N,9] x, int64[N] n", "ReverseSequence <batch_axis = 0, time_axis = 1> (x, n)"),
}


@pytest.mark.parametrize("name", CASES)
def test_indices(name: str, tmp_path: Path) -> None:
    """Indices below the size, some counted from the end."""
    model = one_node.model(*CASES[name])
    facts = one_node.emitted(model, tmp_path)
    feeds = t.feeds(model, 4)
    if "i" in feeds and "bool" not in name:
        indices = feeds["i"].astype(np.int64)
        feeds = {**feeds, "i": np.asarray(indices - 8 * (indices % 2), feeds["i"].dtype)}
    if "n" in feeds:
        feeds = {**feeds, "n": feeds["n"].astype(np.int64) + 1}
    one_node.assert_same(model, feeds, tmp_path, facts)


def test_no_operator_where_indices_cannot_be_negative(tmp_path: Path) -> None:
    model = t.model("""g (float[N,8] x, float[8,3] w_a) => (float[N,3] y) {
        i = ArgMax <axis = 1, keepdims = 0> (x) y = Gather(w_a, i) }""")
    facts = one_node.emitted(model, tmp_path)
    assert "FLOOR_MOD" not in one_node.operators(tmp_path)
    one_node.assert_same(model, t.feeds(model, 4), tmp_path, facts)


@pytest.mark.parametrize("operator", ["ScatterND", "ScatterElements"])
@pytest.mark.parametrize("kind", ["float", "int64", "bool"])
def test_written_places(operator: str, kind: str, tmp_path: Path) -> None:
    """Places that are computed and named once, some from the end; what is written need not be finite."""
    if operator == "ScatterND":
        model = one_node.model(f"{kind}[4,6] x, int64[2,1] i, {kind}[2,6] u", "ScatterND(x, i, u)")
        places = np.array([[-1], [1]])
    else:
        model = one_node.model(f"{kind}[4,6] x, int64[3,2] i, {kind}[3,2] u", "ScatterElements <axis = 1> (x, i, u)")
        places = np.array([[0, -1], [3, 2], [-6, 1]])
    facts = one_node.emitted(model, tmp_path)
    feeds = {**t.feeds(model, 4), "i": places}
    if kind == "float":
        feeds["u"][0], feeds["x"][1] = np.nan, -np.inf
    one_node.assert_same(model, feeds, tmp_path, facts)


@pytest.mark.parametrize("reduction", ["max", "min"])
def test_reduced_into_infinite_data(reduction: str, tmp_path: Path) -> None:
    text = f'ScatterND <reduction = "{reduction}"> (x, i, u)'
    model = one_node.model("float[6] x, int64[4,1] i, float[4] u", text)
    infinite = np.float32(np.inf if reduction == "min" else -np.inf)
    feeds = {
        "x": np.array([infinite, infinite, 1, 2, -infinite, infinite], np.float32),
        "i": np.array([[1], [1], [4], [-1]]),
        "u": np.array([3, 4, 5, infinite], np.float32),
    }
    one_node.assert_same(model, feeds, tmp_path, one_node.emitted(model, tmp_path))


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("kind", ["float", "int32", "int64"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_first_of_equal_ones(axis: int, kind: str, largest: int, tmp_path: Path) -> None:
    model = one_node.model(f"{kind}[5,6,5] x", f"TopK <axis = {axis}, largest = {largest}> (x, [3])", "y, int64 i")
    x = np.random.default_rng(0).integers(-2, 3, (5, 6, 5)).astype("float32" if kind == "float" else kind)
    if kind != "float":
        x[0, 0, :2] = -(2**31), 2**31 - 1
    one_node.assert_same(model, {"x": x}, tmp_path, one_node.emitted(model, tmp_path))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot_of_what_is_out_of_bounds(axis: int, tmp_path: Path) -> None:
    model = t.model(f"""g (int64[2,4] x) => (float[] y) {{
        d = Constant <value_int = 3> () v = Constant <value_floats = [-1.0, 2.0]> ()
        y = OneHot <axis = {axis}> (x, d, v) }}""")
    feeds = {"x": np.array([[0, 2, -1, -3], [3, -4, 1, 7]])}
    one_node.assert_same(model, feeds, tmp_path, one_node.emitted(model, tmp_path))


# ---- boxes


def boxes(images: int, classes: int, count: int, seed: int) -> dict[str, Array]:
    """Corners of overlapping boxes, some of them twice, and scores among which many are equal."""
    rng = np.random.default_rng(seed)
    corner = rng.random((images, count, 2)) * 2
    found = np.concatenate([corner, corner + rng.random((images, count, 2))], -1).astype(np.float32)
    found[:, count // 2 :] = found[:, : count - count // 2]
    return {"b": found, "s": (rng.integers(0, 5, (images, classes, count)) / 4).astype(np.float32)}


def suppression(
    images: int = 1,
    classes: int = 1,
    count: int = 20,
    *,
    most: int = 10,
    overlap: float = 0.5,
    least: float = 0.3,
    centre: int = 0,
    behind: str = "",
    results: str = "int64[n,3] r",
) -> ir.Model:
    """``behind``: what follows the selection ``r``."""
    return t.model(f"""g (float[{images},{count},4] b, float[{images},{classes},{count}] s) => ({results}) {{
        m = Constant <value_int = {most}> () o = Constant <value_float = {overlap}> ()
        l = Constant <value_float = {least}> ()
        r = NonMaxSuppression <center_point_box = {centre}> (b, s, m, o, l) {behind} }}""")  # fmt: skip


@pytest.mark.parametrize(("images", "classes"), [(1, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize(
    ("most", "overlap", "least"), [(3, 0.5, 0.3), (100, 0.0, -1.0), (100, 0.7, 0.5), (100, 0.5, 2.0)]
)
def test_suppression(images: int, classes: int, most: int, overlap: float, least: float, tmp_path: Path) -> None:
    """As many rows as are selected, also none, in ONNX's order."""
    model = suppression(images, classes, most=most, overlap=overlap, least=least, centre=int(most == 3))
    facts = one_node.emitted(model, tmp_path)
    for seed in range(3):
        one_node.assert_same(model, boxes(images, classes, 20, seed), tmp_path, facts)


def test_boxes_are_taken_by_what_is_selected(tmp_path: Path) -> None:
    """The usual end of a detector: its outputs have as many rows as boxes are selected."""
    behind = """two = Constant <value_ints = [2]> () one = Constant <value_ints = [1]> ()
        zero = Constant <value_ints = [0]> () c = Gather <axis = 1> (r, two) i = Squeeze(c, one) flat = Squeeze(b, zero)
        taken = Gather(flat, i) h = Constant <value_floats = [0.5]> () y = Mul(taken, h)"""
    model = suppression(behind=behind, results="float[n,4] y, int64[n] i")
    facts = one_node.emitted(model, tmp_path)
    for seed in range(3):
        one_node.assert_same(model, boxes(1, 1, 20, seed), tmp_path, facts)


@pytest.mark.parametrize("behind", ["y = Shape(r)", "y = ReduceMax <keepdims = 0> (r)", "y = Gather(r, m)"])
def test_what_needs_the_number_of_rows_is_refused(behind: str, tmp_path: Path) -> None:
    model = suppression(behind=behind, results="int64[] y")
    with pytest.raises(Unsupported, match="must know how many rows it has"):
        one_node.emitted(model, tmp_path)


BRANCHES = """g (float[N,3] x, {input}) => (float[N,3] y) {{ {before}
    y = If <then_branch = a () => (float[N,3] p) {{ p = Relu(x) }},
        else_branch = b () => (float[N,3] q) {{ s = {operator}(x) q = Abs(s) }}> (c) }}"""


@pytest.mark.parametrize("condition", [0, 1])
def test_the_branch_of_a_constant_condition(condition: int, tmp_path: Path) -> None:
    before = f"c = Constant <value = bool {{{condition}}}> ()"
    model = t.model(BRANCHES.format(input="float z", before=before, operator="Neg"))
    facts = one_node.emitted(model, tmp_path)
    assert not facts.sizes
    one_node.assert_same(model, t.feeds(model, 3), tmp_path, facts)


def test_branches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="the condition is computed"):
        one_node.emitted(t.model(BRANCHES.format(input="bool c", before="", operator="Neg")), tmp_path)
    before = "c = Constant <value = bool {0}> ()"
    with pytest.raises(Unsupported, match="it is random"):
        one_node.emitted(t.model(BRANCHES.format(input="float z", before=before, operator="Bernoulli")), tmp_path)


COUNTED = {
    "places": ("float[4,5] x", "NonZero(x)", "int64 y"),
    "places in a row": ("bool[6] x", "NonZero(x)", "int64 y"),
    "rows": ("float[4,5] x, bool[3] c", "Compress <axis = 0> (x, c)", "y"),
    "columns": ("int64[4,5] x, bool[5] c", "Compress <axis = -1> (x, c)", "y"),
    "elements": ("bool[2,3] x, bool[6] c", "Compress(x, c)", "y"),
}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", COUNTED)
def test_as_many_as_the_data_make(name: str, share: float, tmp_path: Path) -> None:
    """Also none at all, and all."""
    model = one_node.model(*COUNTED[name])
    facts = one_node.emitted(model, tmp_path)
    feeds = t.feeds(model, 4)
    chosen = "c" if "c" in feeds else "x"
    kept = np.random.default_rng(0).random(feeds[chosen].shape) < share
    feeds = {**feeds, chosen: kept if chosen == "c" else (feeds["x"] * kept).astype(feeds["x"].dtype)}
    one_node.assert_same(model, feeds, tmp_path, facts)


REFUSED = {
    "too many classes": (suppression(classes=300), "more than 256"),
    "overlap of 1": (suppression(overlap=1.0), "iou_threshold=1"),
    "random": (one_node.model("float[N,3] x", "RandomNormalLike(x)"), "it is random"),
    "bool reduced": (
        one_node.model("bool[4] x, int64[2,1] i, bool[2] u", 'ScatterND <reduction = "max"> (x, i, u)'),
        "the kernels reduce float32 and int32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    model, reason = REFUSED[name]
    with pytest.raises(Unsupported, match=reason):
        one_node.emitted(model, tmp_path)
