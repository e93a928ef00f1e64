from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from pass_testing import parse, run_pass

from retarget.passes.remove_noops import RemoveNoops

CONSTANTS = {
    "zero": np.zeros((), "f"),
    "one": np.ones((), "f"),
    "ones": np.ones(4, "f"),
    "zeros": np.zeros((1, 4), "f"),
    "wide": np.zeros((2, 3, 4), "f"),
    "tall": np.zeros((3, 1), "f"),
    "half": np.array(0.5, "f"),
    "same": np.array([0, 4], np.int64),
    "axes": np.array([0, 1], np.int64),
    "starts": np.array([0], np.int64),
    "first": np.array([1], np.int64),
    "far": np.array([2**63 - 1], np.int64),
    "none": np.zeros(4, np.int64),
    "twice": np.array([1, 1], np.int64),
    "order": np.arange(4),
    "swapped": np.array([1, 0, 2, 3]),
    "true": np.array(True),
    "shape": np.array([3, 4], np.int64),
}


def graph(body: str, *, sizes: str = "N,4") -> tuple[str, dict[str, np.ndarray]]:
    """A model in which ``y`` is made of ``x`` by ``body``, between two nodes that stay."""
    text = f"g (float[{sizes}] input) => (float[{sizes}] output) {{ x = Relu(input) {body} output = Sigmoid(y) }}"
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return text, {name: array for name, array in CONSTANTS.items() if name in words}


@pytest.mark.parametrize(
    "body",
    [
        "y = Identity(x)",
        "y = Dropout(x)",
        "y, mask = Dropout(x, half)",
        "y = Cast <to = 1> (x)",
        "y = Transpose <perm = [0, 1]> (x)",
        "y = Reshape(x, same)",
        "y = Expand(x, twice)",
        "y = Tile(x, twice)",
        "y = Pad(x, none)",
        "y = Slice(x, starts, far)",
        "y = Slice(x, starts, far, starts, first)",
        "y = Gather <axis = 1> (x, order)",
        "y = Add(x, zero)",
        "y = Add(zeros, x)",
        "y = Sub(x, zero)",
        "y = Mul(ones, x)",
        "y = Div(x, one)",
        "y = Pow(x, one)",
        "y = Concat <axis = 0> (x)",
        "y = Sum(x)",
        "y = Max(x)",
        "y = Where(true, x, zero)",
        "w = Where(true, zeros, half) e = Expand(w, twice) y = Add(x, e)",
    ],
)
def test_removed(body: str) -> None:
    ran = run_pass(RemoveNoops(), *graph(body))
    assert ran.ops == ["Relu", "Sigmoid"]
    assert ran.error == 0
    assert not ran.model.graph.initializers


@pytest.mark.parametrize(
    "body",
    [
        "y = Sub(zero, x)",
        "y = Div(one, x)",
        "y = Pow(one, x)",
        "y = Add(x, half)",
        "y = Mul(x, zero)",
        "y = Gather <axis = 1> (x, swapped)",
        "i = Cast <to = 7> (x) y = Cast <to = 1> (i)",
    ],
)
def test_kept(body: str) -> None:
    assert not run_pass(RemoveNoops(), *graph(body)).modified


def test_constant_that_widens_the_shape() -> None:
    text = "g (float[1,4] x) => (float[3,4] y) { y = Add(x, tall) }"
    one = RemoveNoops()
    assert not run_pass(one, text, {"tall": CONSTANTS["tall"]}).modified
    assert one.refused[0][1] == "the constant may widen the shape"


def test_constant_of_higher_rank() -> None:
    text = "g (float[3,4] x) => (float[2,3,4] y) { y = Add(x, wide) }"
    assert not run_pass(RemoveNoops(), text, {"wide": CONSTANTS["wide"]}).modified


def test_expand_that_widens() -> None:
    text = "g (float[1,4] x) => (float[3,4] y) { y = Expand(x, shape) }"
    assert not run_pass(RemoveNoops(), text, {"shape": CONSTANTS["shape"]}).modified


def test_slice_that_cuts() -> None:
    text = "g (float[N,4] x) => (float[N,3] y) { y = Slice(x, first, far, first) }"
    assert not run_pass(RemoveNoops(), text, {name: CONSTANTS[name] for name in ("first", "far")}).modified


def test_transpose_that_moves_axes() -> None:
    text = "g (float[4,4] x) => (float[4,4] y) { y = Transpose <perm = [1, 0]> (x) }"
    assert not run_pass(RemoveNoops(), text).modified


def test_dropout_in_training() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { y = Dropout(x, zero, true) }"
    one = RemoveNoops()
    assert not run_pass(one, text, {name: CONSTANTS[name] for name in ("zero", "true")}).modified
    assert one.refused[0][1] == "training mode is not known to be off"


def test_a_chain_goes_at_once() -> None:
    ran = run_pass(RemoveNoops(), *graph("a = Identity(x) b = Add(a, zero) c = Identity(b) y = Mul(c, one)"))
    assert ran.ops == ["Relu", "Sigmoid"]


def test_outputs_keep_their_names() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { a = Relu(x) y = Identity(a) }"
    ran = run_pass(RemoveNoops(), text)
    assert ran.ops == ["Relu"]
    assert ran.model.graph.outputs[0].name == "y"


def test_identity_from_input_to_output_stays() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { y = Identity(x) }"
    assert not run_pass(RemoveNoops(), text).modified


def test_one_value_as_two_outputs_stays() -> None:
    text = "g (float[N,4] x) => (float[N,4] y, float[N,4] z) { y = Relu(x) z = Identity(y) }"
    assert not run_pass(RemoveNoops(), text).modified


def test_inside_a_subgraph() -> None:
    text = """
    g (bool c, float[N,4] x) => (float[N,4] y) {
      y = If (c) <
        then_branch = t () => (float[N,4] a) { b = Relu(x) d = Add(b, zero) a = Identity(d) },
        else_branch = e () => (float[N,4] a) { a = Identity(x) }
      >
    }
    """
    ran = run_pass(RemoveNoops(), text, {"zero": CONSTANTS["zero"]})
    assert ran.ops == ["If", "Relu", "Identity"]
    assert ran.error == 0


def test_default_of_an_input_is_no_constant() -> None:
    text = "g (float[N,4] x, float zero) => (float[N,4] y) { y = Add(x, zero) }"
    feeds = {"x": np.ones((2, 4), "f"), "zero": np.array(3, "f")}
    assert not run_pass(RemoveNoops(), text, {"zero": CONSTANTS["zero"]}, feeds=feeds).modified


def test_an_attention_mask_that_hides_nothing_is_removed() -> None:
    """At the size that a vision transformer has, and unless it hides a single place."""
    text = "g (float[N,3,197,197] input) => (float[N,3,197,197] output) { y = Add(input, mask) output = Sigmoid(y) }"
    mask = np.zeros((1, 1, 197, 197), "f")
    assert run_pass(RemoveNoops(), text, {"mask": mask}).ops == ["Sigmoid"]
    mask[..., 100, 100] = -1.0
    assert run_pass(RemoveNoops(), text, {"mask": mask}).ops == ["Add", "Sigmoid"]


WRAPPED = "l = Less(i, none) m = Add(i, size) n = Where(l, m, i) y = Gather(table, n)"
WRAPPED_BY_TF2ONNX = """
f = Cast <to = 1> (i) l = Less(f, zero) o = Not(l) a = Cast <to = 7> (l) b = Cast <to = 7> (o)
m = Add(i, size) p = Mul(a, m) q = Mul(i, b) n = Add(p, q) y = Gather(table, n)
"""


def lookup(body: str, size: int = 6) -> tuple[str, dict[str, np.ndarray]]:
    table = np.random.default_rng(0).standard_normal((6, 3)).astype("f")
    constants = {"table": table, "size": np.array([size]), "none": np.array(0), "zero": np.zeros((), "f")}
    return f"g (int64[N,4] i) => (float[N,4,3] y) {{ {body} }}", {
        name: array for name, array in constants.items() if name in body
    }


@pytest.mark.parametrize("body", [WRAPPED, WRAPPED_BY_TF2ONNX], ids=["where", "tf2onnx"])
def test_gather_counts_from_the_end_itself(body: str) -> None:
    feeds = {"i": np.array([[0, -1, 5, -6], [-3, 2, -2, 1]])}
    ran = run_pass(RemoveNoops(), *lookup(body), feeds=feeds)
    assert ran.modified
    assert ran.error == 0
    assert producers_of_indices(ran.model) == []


@pytest.mark.parametrize(
    "body",
    [
        WRAPPED.replace("Where(l, m, i)", "Where(l, i, m)"),
        WRAPPED.replace("Less(i, none)", "Less(none, i)"),
        WRAPPED.replace("Less(i, none)", "Less(i, size)"),
        WRAPPED.replace("Add(i, size)", "Sub(i, size)"),
        WRAPPED_BY_TF2ONNX.replace("Mul(i, b)", "Mul(m, b)"),
        WRAPPED_BY_TF2ONNX.replace("Mul(i, b)", "Mul(i, a)"),
        WRAPPED_BY_TF2ONNX.replace("Cast <to = 1> (i)", "Cast <to = 1> (q)")
        .replace("q = Mul", "r = Mul")
        .replace("f =", "q = Add(i, size) f =")
        .replace("Add(p, q)", "Add(p, r)"),
    ],
)
def test_other_choices_of_rows(body: str) -> None:
    assert producers_of_indices(RemoveNoops()(parse(*lookup(body))).model) != []


@pytest.mark.parametrize("body", [WRAPPED, WRAPPED_BY_TF2ONNX], ids=["where", "tf2onnx"])
def test_a_shift_by_another_number(body: str) -> None:
    ran = run_pass(RemoveNoops(), *lookup(body, 4), feeds={"i": np.array([[0, -1, 5, -2]])})
    assert producers_of_indices(ran.model) != []


def producers_of_indices(model: ir.Model) -> list[str]:
    """The operator that makes what Gather takes; none where that is the model's input."""
    gather = next(node for node in model.graph if node.op_type == "Gather")
    assert gather.inputs[1] is not None
    made_by = gather.inputs[1].producer()
    return [] if made_by is None else [made_by.op_type]
