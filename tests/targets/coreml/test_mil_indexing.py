"""Elements taken, cut, put and sorted for Core ML against ONNX Runtime; sizes open, indices from both ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import node_models
import numpy as np
import pytest
import target_testing as t
import written

from retarget.errors import Unsupported
from retarget.spec import DimRange

if TYPE_CHECKING:
    import onnx_ir as ir

    from retarget.protocols import Array
    from retarget.targets.coreml import DeploymentTarget

RANDOM = np.random.default_rng(0)
INT64 = np.iinfo(np.int64)


def floats(*shape: int) -> Array:
    array: Array = RANDOM.standard_normal(shape).astype(np.float32)
    return array


def truths(*shape: int) -> Array:
    array: Array = RANDOM.random(shape) < 0.5
    return array


def numbers(size: int, *shape: int) -> Array:
    """Indices of an axis of ``size``, from both ends."""
    array: Array = RANDOM.integers(-size, size, shape)
    return array


def several(size: int, rows: int, count: int) -> Array:
    """Of each row some places of an axis of ``size``, from both ends, none twice."""
    places = np.stack([RANDOM.permutation(size)[:count] for _ in range(rows)])
    return np.where(RANDOM.random(places.shape) < 0.5, places, places - size)


# ---- cuts

SLICES = {
    "from the second on": (1, INT64.max, 1),
    "without the last": (0, -1, 1),
    "the first": (0, 1, 1),
    "the last": (-1, INT64.max, 1),
    "more than there may be": (0, 5, 1),
    "more than there may be, from the end": (-5, 100, 1),
    "all": (0, 8, 1),
    "every other": (0, 100, 2),
    "from the end, every third": (-4, INT64.max, 3),
    "the other way around": (-1, INT64.min, -1),
    "the other way around, every other": (INT64.max, INT64.min, -2),
    "the other way around, without the first": (-1, 0, -1),
    "the other way around, from the third": (2, INT64.min, -1),
    "the other way around, a part": (-2, -4, -1),
}


@pytest.mark.parametrize("name", SLICES)
def test_cuts_of_open_axes(name: str) -> None:
    start, end, step = SLICES[name]
    model = node_models.of_text("float[N,S,3] x", f"Slice(x, [{start}], [{end}], [1], [{step}])")
    sizes = DimRange(4, 6, 8)
    written.check_open(model, 4, 5, 8, N=sizes, S=sizes)


@pytest.mark.parametrize(
    ("start", "end", "step"),
    [(5, -100, -2), (1, 6, 3), (-3, INT64.max, 1), (INT64.max, INT64.min, -1), (-100, 100, 1), (-100, -50, -1)],
)
def test_cuts_of_known_axes(start: int, end: int, step: int) -> None:
    model = node_models.of_text("bool[N,7,3] x", f"Slice(x, [{start}], [{end}], [1], [{step}])")
    written.check_open(model, 4, 1, 2)


COMPUTED = {
    "end": ("l = Shape <start = 1, end = 2> (z)", "Slice(x, zero, l, one)"),
    "start": ("l = Shape <start = 1, end = 2> (z) e = Constant <value_ints = [100]> ()", "Slice(x, l, e, one)"),
    "from the end": (
        "s = Shape <start = 1, end = 2> (z) l = Neg(s) e = Constant <value_ints = [100]> ()",
        "Slice(x, l, e, one)",
    ),
    "its own": ("l = Shape <start = 1, end = 2> (x)", "Slice(x, zero, l, one)"),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_cuts(name: str) -> None:
    before, node = COMPUTED[name]
    text = f"""g (float[N,9,3] x, float[N,S] z) => (float[] y) {{
        zero = Constant <value_ints = [0]> () one = Constant <value_ints = [1]> () {before} y = {node}
    }}"""
    written.check_open(t.model(text), 4, 1, 8)


@pytest.mark.parametrize("target", written.TARGETS)
def test_fed_cuts(target: DeploymentTarget) -> None:
    model = node_models.of_text("float[2,S,3] x, int64[1] a, int64[1] b", "Slice(x, a, b, [1])")
    fed = [
        {"x": floats(2, 6, 3), "a": np.array([start]), "b": np.array([end])}
        for start, end in ((0, 3), (-4, -1), (-100, 100), (2, 1000))
    ]
    written.check(model, *fed, target=target)


def test_computed_cuts_backwards_are_refused() -> None:
    model = node_models.of_text("float[2,S,3] x, int64[1] a, int64[1] b", "Slice(x, a, b, [1], [-1])")
    with pytest.raises(Unsupported, match="step of -1 between computed bounds"):
        written.check_open(model, 4)


def test_what_is_empty_is_refused() -> None:
    with pytest.raises(Unsupported, match="its result is empty"):
        written.check_open(node_models.of_text("float[N,7] x", "Slice(x, [5], [2], [1])"), 4)


# ---- taken


@pytest.mark.parametrize("index", [-1, -3, 2])
def test_one_place_leaves_no_axis(index: int) -> None:
    text = (
        f"""g (float[N,3] x) => (float[N] y) {{ i = Constant <value_int = {index}> () y = Gather <axis = 1> (x, i) }}"""
    )
    written.check_open(t.model(text), 4, 1)


@pytest.mark.parametrize("target", written.TARGETS)
def test_embeddings(target: DeploymentTarget) -> None:
    model = node_models.of_text("int64[N,S] x, float[7,3] w_t", "Gather(w_t, x)", "float y")
    written.check(model, *({"x": numbers(7, size, 3)} for size in (4, 1, 2)), target=target)


TAKEN = {
    "the last of an open axis": ("float[N,S,3] x", "i = Constant <value_int = -1> ()", "Gather <axis = 1> (x, i)"),
    "both ends of an open axis": (
        "float[N,S,3] x",
        "i = Constant <value_ints = [-1, 0]> ()",
        "Gather <axis = 1> (x, i)",
    ),
    "of truths": ("bool[N,S,3] x", "i = Constant <value_ints = [-1, 1]> ()", "Gather <axis = 2> (x, i)"),
    "what is not zero": ("float[N,S,3] x", "", "NonZero(x)"),
    "what is true": ("bool[N,S,3] x", "", "NonZero(x)"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_taken(name: str) -> None:
    inputs, before, node = TAKEN[name]
    kind = "int64" if "NonZero" in node else inputs.partition("[")[0]
    written.check_open(t.model(f"g ({inputs}) => ({kind}[] y) {{ {before} y = {node} }}"), 4, 1, 2)


def feeds_of(name: str, size: int) -> dict[str, Array]:
    match name:
        case "many axes of indices":
            return {"x": floats(7, 3, 2), "i": numbers(7, size, 3, 2, 2)}
        case "along an axis" | "along an axis, with fewer rows":
            return {"x": floats(size, 5, 4), "i": numbers(4, size, 2 if "fewer" in name else 5, 3)}
        case "along an axis, with an open number of fewer rows":
            return {"x": floats(5, 5, 4), "i": numbers(4, size, 2, 3)}
        case "at places":
            return {
                "x": floats(size, 5, 4),
                "i": np.concatenate([numbers(size, 3, 1), numbers(5, 3, 1)], axis=1),
            }
        case "at places of each row":
            return {"x": floats(size, 5, 4), "i": numbers(5, size, 3, 1)}
        case "truths at places of each row":
            return {"x": truths(size, 5, 4), "i": numbers(5, size, 3, 1)}
        case _:
            return {"x": floats(4, size, 2), "i": RANDOM.integers(0, 5, size)}


INDEXED = {
    "many axes of indices": ("float[7,3,2] x, int64[N,S,2,2] i", "Reshape(g, [0, 0, 24])", "Gather(x, i)"),
    "along an axis": ("float[N,5,4] x, int64[N,5,3] i", "", "GatherElements <axis = -1> (x, i)"),
    "along an axis, with fewer rows": ("float[N,5,4] x, int64[N,2,3] i", "", "GatherElements <axis = 2> (x, i)"),
    "along an axis, with an open number of fewer rows": (
        "float[S,5,4] x, int64[N,2,3] i",
        "",
        "GatherElements <axis = 2> (x, i)",
    ),
    "at places": ("float[N,5,4] x, int64[P,2] i", "", "GatherND(x, i)"),
    "at places of each row": ("float[N,5,4] x, int64[N,3,1] i", "", "GatherND <batch_dims = 1> (x, i)"),
    "truths at places of each row": ("bool[N,5,4] x, int64[N,3,1] i", "", "GatherND <batch_dims = 1> (x, i)"),
    "the first of each, turned around": ("float[4,N,2] x, int64[N] i", "", "ReverseSequence(x, i)"),
}


@pytest.mark.parametrize("name", INDEXED)
def test_computed_indices(name: str) -> None:
    inputs, after, node = INDEXED[name]
    kind = inputs.partition("[")[0]
    body = f"y = {node}"
    if after:
        before, after = node_models.constants(after)
        body = f"g = {node} {before} y = {after}"
    model = t.model(f"g ({inputs}) => ({kind}[] y) {{ {body} }}")
    written.check(model, *(feeds_of(name, size) for size in (4, 1, 2)))


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
@pytest.mark.parametrize("indices", ["N,S,3,1", "N,S,2", "N,3"])
def test_places_of_each_row(indices: str, target: DeploymentTarget) -> None:
    """Also one place of each, and of each of several rows."""
    batch = 2 if indices == "N,S,3,1" else 1
    model = node_models.of_text(f"float[N,S,5,4] x, int64[{indices}] i", f"GatherND <batch_dims = {batch}> (x, i)")
    for size in (3, 1):
        shape = [size if axis in ("N", "S") else int(axis) for axis in indices.split(",")]
        fed = {"x": floats(size, size, 5, 4), "i": numbers(size, *shape)}
        written.check(model, fed, target=target)


ONE_HOT = {
    "floats on the last axis": ("float", "[-1.5, 2.5]", -1),
    "integers between the axes": ("int64", "[3, -2]", 1),
}


@pytest.mark.parametrize("name", ONE_HOT)
def test_one_hot(name: str) -> None:
    """Of indices from the end, and of others that are nowhere."""
    kind, values, axis = ONE_HOT[name]
    text = f"""g (int64[N,3] x) => ({kind}[] y) {{
        d = Constant <value_int = 5> () v = Constant <value = {kind}[2] {{{values[1:-1]}}}> ()
        y = OneHot <axis = {axis}> (x, d, v)
    }}"""
    written.check(t.model(text), *({"x": RANDOM.integers(-6, 7, (size, 3))} for size in (4, 1, 2)))


def test_one_hot_of_a_computed_depth() -> None:
    model = t.model("""g (int64[N,3] x, float[S,2] z) => (float[] y) {
        d = Shape <start = 0, end = 1> (z) v = Constant <value = float[2] {0, 1}> () y = OneHot(x, d, v)
    }""")
    written.check_open(model, 4, 8, 1)


# ---- put

REDUCTIONS = ("none", "add", "mul", "max", "min")


def scattered(kind: str, reduction: str) -> ir.Model:
    return t.model(f"""g ({kind}[N,5] x, int64[N,3] i, {kind}[N,3] u, {kind}[4,5] a, int64[2,3] j, {kind}[2,3] b,
                          {kind}[S,5,2] c, int64[P,2] k, {kind}[P,2] d) => ({kind}[] y0, {kind}[] y1, {kind}[] y2) {{
        y0 = ScatterElements <axis = 1, reduction = "{reduction}"> (x, i, u)
        y1 = ScatterElements <axis = -1, reduction = "{reduction}"> (a, j, b)
        y2 = ScatterND <reduction = "{reduction}"> (c, k, d)
    }}""")


@pytest.mark.parametrize("kind", ["float", "int64"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scatter(reduction: str, kind: str) -> None:
    def of(*shape: int) -> Array:
        return (floats(*shape) * 9).astype(np.float32 if kind == "float" else np.int64)

    def fed(size: int) -> dict[str, Array]:
        places = np.concatenate([several(3, 1, 2).T, several(5, 1, 2).T], axis=1)
        return {"x": of(size, 5), "i": several(5, size, 3), "u": of(size, 3), "a": of(4, 5), "j": several(5, 2, 3)} | {
            "b": of(2, 3),
            "c": of(3, 5, 2),
            "k": places,
            "d": of(2, 2),
        }

    written.check(scattered(kind, reduction), *(fed(size) for size in (4, 1, 2)))


@pytest.mark.parametrize("target", written.TARGETS)
def test_scatter_of_several_to_one_place(target: DeploymentTarget) -> None:
    fed = {"x": floats(2, 5), "i": np.array([[1, 1, -4], [0, -5, 4]]), "u": floats(2, 3)}
    model = node_models.of_text(
        "float[N,5] x, int64[N,3] i, float[N,3] u", 'ScatterElements <axis = 1, reduction = "add"> (x, i, u)'
    )
    written.check(model, fed, target=target)


def test_scatter_of_truths() -> None:
    model = node_models.of_text("bool[N,5] x, int64[N,3] i, bool[N,3] u", "ScatterElements <axis = 1> (x, i, u)")
    fed = [{"x": truths(n, 5), "i": several(5, n, 3), "u": truths(n, 3)} for n in (4, 1, 2)]
    written.check(model, *fed)


# ---- sorted


@pytest.mark.parametrize("target", written.TARGETS)
@pytest.mark.parametrize("largest", [0, 1])
def test_top_of_equal_elements(largest: int, target: DeploymentTarget) -> None:
    text = f"""g (float[N,9,2] x, int64[N,9,2] z) => (float[] y0, int64[] i0, int64[] y1, int64[] i1) {{
        k = Constant <value_ints = [4]> () y0, i0 = TopK <axis = 1, largest = {largest}> (x, k)
        y1, i1 = TopK <axis = -2, largest = {largest}> (z, k)
    }}"""
    fed = [
        {"x": RANDOM.integers(-2, 3, (size, 9, 2)).astype(np.float32), "z": numbers(3, size, 9, 2)}
        for size in (4, 1, 2)
    ]
    written.check(t.model(text), *fed, target=target)


@pytest.mark.parametrize("node", ["Compress <axis = 1> (x, c)", "Compress <axis = -1> (x, d)"])
def test_compress(node: str) -> None:
    model = t.model(f"g (float[N,5,3] x, bool[4] c, bool[3] d) => (float[] y) {{ u = Cast <to = 1> (c) y = {node} }}")
    asked = {"c": np.array([True, False, True, True]), "d": np.array([False, True, True])}
    fed = [{"x": floats(size, 5, 3), **asked} for size in (4, 1, 2)]
    written.check(model, *fed)


def test_compress_of_all_elements() -> None:
    model = node_models.of_text("float[N,5] x, bool[4] c", "Compress(x, c)")
    fed = [{"x": floats(size, 5), "c": np.array([True, False, True, True])} for size in (4, 1, 2)]
    written.check(model, *fed)


# ---- detected


@pytest.mark.parametrize("target", written.TARGETS)
@pytest.mark.parametrize("attribute", ["", "<center_point_box = 1>"])
def test_suppressed_boxes(attribute: str, target: DeploymentTarget) -> None:
    """Corners in any order, boxes without an area, equal scores, and classes of which no box is good."""
    text = f"""g (float[2,9,4] x, float[2,3,9] s) => (int64[P,3] y) {{
        n = Constant <value_int = 4> () o = Constant <value_float = 0.3> () l = Constant <value_float = 0.2> ()
        y = NonMaxSuppression {attribute} (x, s, n, o, l)
    }}"""
    fed = []
    for _ in range(6):
        boxes = RANDOM.integers(0, 6, (2, 9, 4)).astype(np.float32)
        scores = np.round(RANDOM.random((2, 3, 9)) * np.array([[1], [0.1], [1]]), 1).astype(np.float32)
        fed.append({"x": boxes, "s": scores})
    written.check(t.model(text), *fed, target=target)


# ---- refused

REFUSED = {
    "SequenceConstruct(x, x)": "a sequence holds tensors of many shapes",
    "RandomNormalLike(x)": "it is random",
    "Unique(x)": "it sorts what is there",
}


@pytest.mark.parametrize("node", REFUSED)
def test_refused(node: str) -> None:
    after = "n = SequenceLength(y) z = Cast <to = 1> (n)" if "Sequence" in node else "z = Relu(y)"
    model = t.model(f"g (float[N,3] x) => (float[] z) {{ y = {node} {after} }}")
    with pytest.raises(Unsupported, match=REFUSED[node]):
        written.check_open(model, 4)


@pytest.mark.parametrize("place", [0, 2, -1])
def test_one_place_of_five_axes_leaves_all_others_open(place: int) -> None:
    """As the queries of BLOOM are taken out of what is fused."""
    model = t.model(f"""g (float[N,T,4,3,8] x) => (float[N,T,4,8] y) {{
        place = Constant <value_int = {place}> ()
        y = Gather <axis = 3> (x, place)
    }}""")
    written.check_open(model, 1, 3)
