from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pytest
from pass_testing import run_pass

from retarget.passes.move_transposes import MoveTransposes

RNG = np.random.default_rng(0)
NHWC, NCHW = "Transpose <perm = [0, 2, 3, 1]>", "Transpose <perm = [0, 3, 1, 2]>"
Model: TypeAlias = tuple[str, dict[str, np.ndarray]]

CONSTANTS = {
    "channel": RNG.standard_normal(5).astype("f"),
    "full": RNG.standard_normal((1, 3, 4, 5)).astype("f"),
    "number": np.array(2, "f"),
    "spatial": np.array([1, 2]),
    "last": np.array([-1]),
    "low": np.array(-0.5, "f"),
    "pads": np.array([0, 1, 2, 0, 0, 0, 1, 0]),
    "crop": np.array([1, 1]),
    "ends": np.array([3, 4]),
    "hw": np.array([1, 2]),
    "halves": np.array([2, 3]),
    "order": np.array([4, 1, 0, 3, 2]),
    "scale": np.array(0.5, "f"),
    "zero": np.array(3, np.int8),
    "scales": np.linspace(0.1, 0.5, 5, dtype="f"),
    "zeros": np.arange(5, dtype=np.uint8),
    "blocks": np.full((1, 3, 4, 1), 0.5, "f"),
    "gate_shape": np.array([-1, 1, 1, 5]),
    "codes": RNG.integers(-127, 128, (60, 7)).astype(np.int8),
    "steps": np.linspace(0.1, 0.2, 7, dtype="f"),
    "offsets": np.zeros(7, np.int8),
    "many": np.linspace(0.1, 0.2, 60, dtype="f"),
    "origins": np.zeros(60, np.int8),
    "pair": np.array([[0, 1], [2, 0]]),
    "flat": np.array([-1, 60]),
    "dense": RNG.standard_normal((60, 7)).astype("f"),
    "rows": RNG.standard_normal((7, 60)).astype("f"),
    "other": np.array([-1, 30]),
    "halved": RNG.standard_normal((30, 7)).astype("f"),
}


def graph(body: str, outputs: str = "float[N,5,3,4] y", inputs: str = "float[N,5,3,4] x") -> Model:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return f"g ({inputs}) => ({outputs}) {{ {body} }}", {k: v for k, v in CONSTANTS.items() if k in words}


@pytest.mark.parametrize(
    "inner",
    [
        "b = Relu(a)",
        "b = Add(a, channel)",
        "b = Mul(full, a)",
        "b = Clip(a, low, number)",
        "c = Sigmoid(a) b = Mul(a, c)",
        "m = ReduceMean(a, spatial) s = Sigmoid(m) b = Mul(a, s)",
        "b = Softmax(a)",
        "b = Softmax <axis = 1> (a)",
        "c = Greater(a, channel) b = Where(c, a, low)",
        "c = Slice(a, crop, ends, hw) d = ReduceMax(c, hw) b = Sub(a, d)",
        "b = Gather <axis = -1> (a, order)",
        "q = QuantizeLinear(a, scale, zero) b = DequantizeLinear(q, scale, zero)",
        "q = QuantizeLinear <axis = 3> (a, scales, zeros) b = DequantizeLinear <axis = -1> (q, scales, zeros)",
    ],
)
def test_pairs_meet(inner: str) -> None:
    ran = run_pass(MoveTransposes(), *graph(f"a = {NHWC} (x) {inner} y = {NCHW} (b)"))
    assert ran.counts["Transpose"] == 0
    assert ran.error < 1e-6


def test_concat_and_pad() -> None:
    body = f"a = {NHWC} (x) p = Pad(a, pads) c = Concat <axis = 3> (p, p) y = {NCHW} (c)"
    ran = run_pass(MoveTransposes(), *graph(body, "float[N,10,4,7] y"))
    assert ran.ops == ["Pad", "Concat"]
    assert ran.error == 0


def test_split() -> None:
    body = f"a = {NHWC} (x) s, t = Split <axis = -1> (a, halves) r = Relu(s) y = {NCHW} (r) z = {NCHW} (t)"
    ran = run_pass(MoveTransposes(), *graph(body, "float[N,2,3,4] y, float[N,3,3,4] z"))
    assert ran.ops == ["Split", "Relu"]
    assert [value.name for value in ran.model.graph.outputs] == ["y", "z"]
    assert ran.error == 0


def test_residual_of_two_branches() -> None:
    body = f"a = {NHWC} (x) b = Relu(a) c = {NCHW} (b) d = Tanh(c) e = {NHWC} (d) f = Add(a, e) y = {NCHW} (f)"
    ran = run_pass(MoveTransposes(), *graph(body))
    assert ran.counts == {"Relu": 1, "Tanh": 1, "Add": 1}
    assert ran.error == 0


def test_reduction_that_drops_its_axes() -> None:
    body = f"a = {NHWC} (x) b = Relu(a) y = ReduceMean <keepdims = 0> (b, spatial)"
    ran = run_pass(MoveTransposes(), *graph(body, "float[N,5] y"))
    assert ran.ops == ["Relu", "ReduceMean"]
    assert ran.error < 1e-6


@pytest.mark.parametrize(
    ("shape", "size"), [("Shape", 4), ("Shape <start = 1, end = -1>", 2), ("Shape <start = -1>", 1)]
)
def test_transpose_that_is_only_measured(shape: str, size: int) -> None:
    ran = run_pass(MoveTransposes(), *graph(f"a = {NHWC} (x) y = {shape} (a)", f"int64[{size}] y"))
    assert ran.ops == ["Shape", "Gather"]
    assert ran.error == 0


STEPS = "Transpose <perm = [1, 0, 2]>"
LOOP = """
    a = %s (x) %s
    shape = Shape <start = 1, end = 2> (x) axis = Constant <value_ints = [0]> () count = Squeeze(shape, axis)
    last, y = Loop(count, , h) <body = step (int64 i, bool c, float[N,4] h) => (bool c2, float[N,4] h2, float[N,4] o) {
        c2 = Identity(c) now = Gather(b, i) sum = Add(h, now) h2 = Tanh(sum) o = Identity(h2)
    }>
"""
"""A loop that takes a step at a time of sequences."""


@pytest.mark.parametrize(
    ("body", "outputs", "left"),
    [
        ("y = Gather (a, place)", "float[N,4] y", 0),
        ("y = Gather <axis = -1> (a, place)", "float[T,N] y", 1),
        ("y = Gather <axis = 1> (a, place)", "float[T,4] y", 0),
        ("y = Gather (a, places)", "float[2,N,4] y", 1),
        ("y = Gather (a, place) z = Relu(a)", "float[N,4] y, float[T,N,4] z", 1),
        ("r = Relu(a) y = Gather (r, place)", "float[N,4] y", 0),
    ],
)
def test_one_place_is_taken_without_a_transpose(body: str, outputs: str, left: int) -> None:
    text, _ = graph(f"a = {STEPS} (x) {body}", outputs, "float[N,T,4] x")
    constants = {"place": np.array(1), "places": np.array([2, 0])}
    used = {name: value for name, value in constants.items() if f"{name})" in body}
    ran = run_pass(MoveTransposes(), text, used, sizes=({"N": 3, "T": 5}, {"N": 2, "T": 3}))
    assert ran.counts["Transpose"] == left
    assert ran.error == 0


@pytest.mark.parametrize(
    "between", ["b = Identity(a)", "b = Slice(a, back, end, first, back)"], ids=["forwards", "backwards"]
)
def test_loops_take_their_steps_without_a_transpose(between: str) -> None:
    text, _ = graph(LOOP % (STEPS, between), "float[N,4] last, float[T,N,4] y", "float[N,T,4] x, float[N,4] h")
    constants = {"back": np.array([-1]), "end": np.array([np.iinfo(np.int64).min]), "first": np.array([0])}
    used = constants if "back" in between else {}
    ran = run_pass(MoveTransposes(), text, used, sizes=({"N": 3, "T": 5}, {"N": 2, "T": 3}))
    assert ran.counts["Transpose"] == 0
    assert ran.counts["Loop"] == 1
    assert ran.error == 0


def test_transpose_that_is_measured_and_read_stays() -> None:
    body = f"a = {NHWC} (x) y = Shape (a) r = Relu(a) z = Concat <axis = 3> (r, full)"
    ran = run_pass(MoveTransposes(), *graph(body, "int64[4] y, float[N,3,4,10] z", "float[1,5,3,4] x"))
    assert ran.counts["Shape"] == 1
    assert ran.error == 0


def test_states_between_recurrent_layers() -> None:
    """Of Keras: each layer turns batch and steps, and asks its input for the batch."""
    steps = "Transpose <perm = [1, 0, 2]>"
    body = f"a = {steps} (x) b = LpNormalization (a) c = {steps} (b) s = Shape(c) d = {steps} (c) e = Expand(number, s)"
    ran = run_pass(
        MoveTransposes(), *graph(f"{body} y = LpNormalization (d)", "float[6,N,3] y, float[N,6,3] e", "float[N,6,3] x")
    )
    assert ran.counts == {"Transpose": 1, "LpNormalization": 2, "Shape": 1, "Gather": 1, "Expand": 1}
    assert ran.error == 0


def test_two_in_a_row_become_one() -> None:
    body = f"a = {NHWC} (x) y = Transpose <perm = [0, 2, 1, 3]> (a)"
    ran = run_pass(MoveTransposes(), *graph(body, "float[N,4,3,5] y"))
    assert ran.ops == ["Transpose"]
    assert ran.error == 0


def test_a_channels_last_network() -> None:
    weights = {
        "w": RNG.normal(0, 0.2, (4, 5, 3, 3)).astype("f"),
        "v": RNG.normal(0, 0.3, (4, 4, 3, 3)).astype("f"),
        "bias": RNG.standard_normal(4).astype("f"),
        "axes": np.array([1, 2]),
    }

    def conv(name: str, source: str, weight: str) -> str:
        return f"""
        {name}_a = {NCHW} ({source})
        {name}_b = Conv <pads = [1, 1, 1, 1]> ({name}_a, {weight})
        {name}_c = {NHWC} ({name}_b)
        {name}_d = Add({name}_c, bias)
        {name} = Relu({name}_d)
        """

    body = conv("p", "x", "w") + conv("q", "p", "v") + conv("r", "q", "v")
    body += "s = Add(p, r) y = ReduceMean <keepdims = 0> (s, axes)"
    ran = run_pass(MoveTransposes(), f"g (float[N,6,6,5] x) => (float[N,4] y) {{ {body} }}", weights)
    assert ran.counts["Transpose"] == 1, "the input's own layout"
    assert ran.error < 1e-5


@pytest.mark.parametrize(
    "body",
    [
        f"a = {NHWC} (x) y = Relu(a)",
        f"a = {NHWC} (x) b = Relu(a) y = Reshape(b, shape)",
        f"a = {NHWC} (x) y = Add(a, z)",
        f"a = {NHWC} (x) b = MatMul(a, w) y = {NCHW} (b)",
    ],
)
def test_nothing_to_gain(body: str) -> None:
    text, constants = graph(body, "float y", "float[N,5,3,4] x, float[N,3,4,5] z")
    if "shape" in body:
        constants["shape"] = np.array([-1, 60])
        text = text.replace("float y", "float[N,60] y")
    elif "MatMul" in body:
        constants["w"] = RNG.standard_normal((5, 5)).astype("f")
        text = text.replace("float y", "float[N,5,3,4] y")
    else:
        text = text.replace("float y", "float[N,3,4,5] y")
    assert not run_pass(MoveTransposes(), text, constants).modified


def test_value_between_that_is_an_output() -> None:
    body = f"a = {NHWC} (x) b = Relu(a) y = {NCHW} (b)"
    ran = run_pass(MoveTransposes(), *graph(body, "float[N,5,3,4] y, float[N,3,4,5] b"))
    assert ran.counts["Transpose"] <= 2
    assert ran.error == 0


def test_gate_that_comes_from_a_dense_layer() -> None:
    """Squeeze and excitation: what has one pixel is reshaped, not transposed."""
    body = f"a = {NHWC} (x) r = Reshape(z, gate_shape) s = Sigmoid(r) b = Mul(a, s) y = {NCHW} (b)"
    ran = run_pass(MoveTransposes(), *graph(body, inputs="float[N,5,3,4] x, float[N,5] z"))
    assert ran.counts["Transpose"] == 0
    assert ran.error == 0


def test_gather_that_makes_other_axes_stays() -> None:
    body = f"a = {NHWC} (x) b = Gather <axis = 1> (a, pair) y = Relu(b)"
    assert not run_pass(MoveTransposes(), *graph(body, "float[N,2,2,4,5] y")).modified


def test_scales_of_blocks_stay() -> None:
    body = f"a = {NHWC} (x) b = QuantizeLinear <block_size = 5, axis = 3> (a, blocks) y = {NCHW} (b)"
    ran = run_pass(MoveTransposes(), *graph(body, "uint8[1,5,3,4] y", "float[1,5,3,4] x"))
    assert not ran.modified


@pytest.mark.parametrize("last", ["y = MatMul(f, dense)", "y = Gemm(f, dense)", "y = Gemm <transB = 1> (f, rows)"])
def test_flatten_in_front_of_a_dense_layer(last: str) -> None:
    """The weights take the order of what is flattened."""
    ran = run_pass(MoveTransposes(), *graph(f"a = {NHWC} (x) r = Relu(a) f = Reshape(r, flat) {last}", "float[N,7] y"))
    assert ran.counts["Transpose"] == 0
    assert ran.error < 1e-5


def test_flatten_in_front_of_a_quantized_dense_layer() -> None:
    body = (
        f"q = QuantizeLinear(x, scale, zero) a = {NHWC} (q) f = Reshape(a, flat) d = DequantizeLinear(f, scale, zero)"
        " w = DequantizeLinear <axis = 1> (codes, steps, offsets) y = MatMul(d, w)"
    )
    ran = run_pass(MoveTransposes(), *graph(body, "float[N,7] y"))
    assert ran.counts["Transpose"] == 0
    assert ran.error < 1e-4  # of sums of hundreds


def test_rows_that_have_scales_of_their_own_stay() -> None:
    body = (
        f"a = {NHWC} (x) f = Reshape(a, flat) w = DequantizeLinear <axis = 0> (codes, many, origins) y = MatMul(f, w)"
    )
    assert not run_pass(MoveTransposes(), *graph(body, "float[N,7] y")).modified


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (f"a = {NHWC} (x) f = Reshape(a, other) y = MatMul(f, halved)", "float[M,7] y"),
        (f"a = {NHWC} (x) f = Reshape(a, flat) y = MatMul(f, dense) z = Relu(f)", "float[N,7] y, float[N,60] z"),
        (f"a = {NHWC} (x) y = Reshape(a, flat)", "float[N,60] y"),
        ("a = Transpose <perm = [1, 0, 2, 3]> (x) f = Reshape(a, flat) y = MatMul(f, dense)", "float[N,7] y"),
    ],
)
def test_flatten_that_must_keep_its_order(body: str, outputs: str) -> None:
    assert not run_pass(MoveTransposes(), *graph(body, outputs)).modified
