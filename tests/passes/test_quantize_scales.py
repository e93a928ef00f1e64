"""Scales that several values share, or that the scheme gives. Oracles: the definition in numpy, and ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pass_testing as testing
import pytest
from numpy.typing import NDArray
from quantizing import RESIDUAL, RESIDUAL_WEIGHTS, Quantized, drawn, f32, min_max

from retarget.schemes import TFLITE, TFLITE_16X8, U8S8, QuantScheme

# ---- scales that are shared or given


def test_what_moves_values_shares_their_scale() -> None:
    found = Quantized(RESIDUAL, TFLITE, RESIDUAL_WEIGHTS)
    assert found.ranges["m"] == found.ranges["r2"]
    assert found.ranges["f"] == found.ranges["g"] != found.ranges["c3"], "the average of all has a scale of its own"
    elsewhere = Quantized(RESIDUAL, U8S8, RESIDUAL_WEIGHTS)
    assert elsewhere.ranges["g"] != elsewhere.ranges["c3"]


CONCAT = """m (float[N,4,6,6] x) => (float[N,4,6,6] y) {
    [left] a = Conv(x, w0)
    [right] b = Conv(x, w1)
    [both] c = Concat<axis = 1>(a, b)
    [next] y = Conv(c, w2)
}"""
CONCAT_WEIGHTS = {
    "w0": drawn(4, 4, 1, 1),
    "w1": drawn(4, 4, 1, 1, seed=1, scale=9),
    "w2": drawn(4, 8, 1, 1, seed=2),
}


def test_a_concat_has_the_union_of_its_inputs_where_the_scheme_says_so() -> None:
    unified = Quantized(CONCAT, TFLITE, CONCAT_WEIGHTS)
    assert unified.ranges["a"] == unified.ranges["b"] == unified.ranges["c"]
    choose = min_max(testing.parse(CONCAT, CONCAT_WEIGHTS), [unified.feeds])
    ranges = [found for name in "abc" if (found := choose(name, TFLITE.grid)) is not None]
    expected = (max(high for _, high in ranges) - min(low for low, _ in ranges)) / 255
    assert unified.ranges["a"][0] == pytest.approx(expected, rel=1e-6)
    own = Quantized(CONCAT, U8S8, CONCAT_WEIGHTS)
    assert own.ranges["a"][0] * 2 < own.ranges["b"][0]


@pytest.mark.parametrize(
    ("scheme", "sigmoid", "tanh", "snr"),
    [(TFLITE, (1 / 256, -128), (1 / 128, 0), 28), (TFLITE_16X8, (1 / 32768, 0), None, 38)],
    ids=["int8", "int16"],
)
def test_sigmoid_and_tanh_have_fixed_scales_in_tflite(
    scheme: QuantScheme, sigmoid: tuple[float, int], tanh: tuple[float, int] | None, snr: float
) -> None:
    """With 16 bits a Tanh stays in float: the kernel of integers is up to three steps off."""
    text = """m (float[N,4,8] x) => (float[N,4,4] z, float[N,4,4] u) {
        [first] a = MatMul(x, w)
        s = Sigmoid(a)
        t = Transpose<perm = [0,2,1]>(s)
        z = MatMul(t, v)
        [bent] h = Tanh(a)
        u = MatMul(h, v)
    }"""
    found = Quantized(text, scheme, {"w": drawn(8, 4), "v": drawn(4, 4, seed=1)})
    assert found.ranges["s"] == found.ranges["t"] == sigmoid
    if tanh is None:
        assert found.kept == {"bent": "tflite_16x8 has no int16 Tanh"}
    else:
        assert found.ranges["h"] == tanh
    assert found.snr > snr


def test_softmax_stays_float_in_tflite_and_its_result_has_the_scale_of_its_range() -> None:
    text = """m (float[N,4,8] x) => (float[N,4,4] y) {
        [first] a = MatMul(x, w)
        [shares] p = Softmax(a)
        y = MatMul(p, v)
    }"""
    found = Quantized(text, TFLITE, {"w": drawn(8, 4, scale=0.1), "v": drawn(4, 4, seed=1)})
    assert found.kept == {"shares": "tflite has no int8 Softmax"}
    assert found.ranges["p"][0] < 1 / 256


# ---- one scale around what needs it


def scales_around(node: ir.Node) -> set[tuple[float, int]]:
    """Scale and zero point of every integer that the node takes and gives, behind an activation function too."""
    around: list[ir.Node] = []
    for value in node.inputs:
        maker = value.producer() if value is not None else None
        if maker is not None and maker.op_type == "DequantizeLinear":
            around.append(maker)
    for output in node.outputs:
        users = [user for user, _ in output.uses()]
        if len(users) == 1 and users[0].op_type in ("Relu", "Clip"):
            users = [user for user, _ in users[0].outputs[0].uses()]
        around += [user for user in users if user.op_type == "QuantizeLinear"]
    found = set()
    for one in around:
        scale, zero = (value.const_value for value in one.inputs[1:3] if value is not None)
        assert scale is not None
        assert zero is not None
        found.add((float(scale.numpy()), int(zero.numpy())))
    return found


def assert_one_scale_each(found: Quantized, scheme: QuantScheme, *, ops: set[str]) -> None:
    """That every node in integers which needs it has one scale around it; ``ops``: which of them there are."""
    needy = [one for one in found.model.graph if one.op_type in {*scheme.moving, *scheme.same_scale}]
    seen = {one.op_type for one in needy if scales_around(one)}
    assert seen == ops
    for one in needy:
        assert len(scales_around(one)) <= 1, one.name


SAME = """m (float[N,4,8,8] x) => (float[N,8,18,18] y, float[N,8,4,4] pooled) {
    [left] a = Conv(x, w0)
    r = Relu(a)
    [right] b = Conv(x, w1)
    p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(r)
    q = AveragePool<kernel_shape = [2,2], strides = [2,2]>(b)
    pooled = Concat<axis = 1>(p, q)
    z = Resize<mode = "nearest">(pooled, , scales)
    d = Pad(z, pads)
    [again] e = Conv<pads = [1,1,1,1]>(d, w2)
    [sum] f = Add(e, d)
    u = Resize<mode = "linear">(f, , scales)
    t = Slice(u, starts, ends, axes)
    [last] y = Conv(t, w3)
}"""
SAME_WEIGHTS: dict[str, NDArray[np.generic]] = {
    "w0": drawn(4, 4, 1, 1),
    "w1": drawn(4, 4, 1, 1, seed=1, scale=9),
    "w2": drawn(8, 8, 3, 3, seed=2, scale=0.2),
    "w3": drawn(8, 8, 1, 1, seed=3),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    "starts": np.array([1, 1], np.int64),
    "ends": np.array([19, 19], np.int64),
    "axes": np.array([2, 3], np.int64),
}


def test_a_chain_and_a_diamond_of_what_needs_one_scale_have_one() -> None:
    found = Quantized(SAME, TFLITE, SAME_WEIGHTS)
    ops = {"MaxPool", "AveragePool", "Concat", "Resize", "Pad", "Slice"}
    assert_one_scale_each(found, TFLITE, ops=ops)
    chain = {found.ranges[name] for name in ("r", "b", "p", "q", "pooled", "z", "d")}
    assert len(chain) == 1
    scale, _ = chain.pop()
    seen = min_max(testing.parse(SAME, SAME_WEIGHTS), [found.feeds])
    widest = [one for name in "rb" if (one := seen(name, TFLITE.grid)) is not None]
    assert scale * 255 >= max(high for _, high in widest) - min(low for low, _ in widest) - 1e-5
    assert found.compute.count("QuantizeLinear") == 0
    assert found.snr > 28


def test_linear_resize_stays_float_in_int16() -> None:
    found = Quantized(SAME, TFLITE_16X8, SAME_WEIGHTS)
    assert_one_scale_each(found, TFLITE_16X8, ops={"MaxPool", "AveragePool", "Concat", "Resize", "Pad", "Slice"})
    assert "tflite_16x8 has no int16 linear Resize" in found.kept.values()
    assert found.snr > 38


def test_parts_of_what_is_rounded_already_keep_its_scale() -> None:
    text = """m (float[N,4] x) => (float[N,4] y, float[N,4] z) {
        [first] a = MatMul(x, w)
        r = Reshape(a, shape)
        p, q = Split<axis = 2, num_outputs = 2>(r)
        s = Reshape(p, flat)
        [second] y = MatMul(s, v)
        t = Reshape(q, flat)
        z = Exp(t)
    }"""
    weights = {"w": drawn(4, 8), "v": drawn(4, 4, seed=1)}
    sizes: dict[str, NDArray[np.generic]] = {"shape": np.array([-1, 4, 2]), "flat": np.array([-1, 4])}
    found = Quantized(text, TFLITE, {**weights, **sizes})
    assert_one_scale_each(found, TFLITE, ops={"Reshape", "Split"})
    assert {found.ranges[name] for name in "arpqs"} == {found.ranges["a"]}


@pytest.mark.parametrize("scheme", [TFLITE, TFLITE_16X8], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("other", ["Identity(x)", "LeakyRelu(a)"])
def test_what_has_a_fixed_scale_is_rounded_again_for_a_concat(scheme: QuantScheme, other: str) -> None:
    text = f"""m (float[N,4] x) => (float[N,4] y, float[N,4] z) {{
        [first] a = MatMul(x, w)
        s = Sigmoid(a)
        t = {other}
        [both] c = Concat<axis = 1>(s, t)
        [next] y = MatMul(c, v)
        [beside] z = MatMul(s, w)
    }}"""
    found = Quantized(text, scheme, {"w": drawn(4, 4), "v": drawn(8, 4, seed=1)})
    assert "both" not in found.kept
    assert scales_around(found.node("c")) == {found.ranges["c"]} == {found.ranges["t"]}
    assert found.ranges["s"] == scheme.fixed["Sigmoid"], "the other reader takes it as it is"
    again = found.node("c").inputs[0]
    names = []
    while again is not None and (maker := again.producer()) is not None:
        names.append(maker.op_type)
        again = maker.inputs[0]
    assert names[:5] == ["DequantizeLinear", "QuantizeLinear", "DequantizeLinear", "QuantizeLinear", "Sigmoid"]
    assert found.snr > (28 if scheme is TFLITE else 38)


def test_a_concat_of_fixed_scales_that_are_equal_keeps_them() -> None:
    text = """m (float[N,4] x) => (float[N,4] y) {
        [first] a = MatMul(x, w)
        [second] b = MatMul(x, u)
        s = Sigmoid(a)
        t = Sigmoid(b)
        c = Concat<axis = 1>(s, k, t)
        [next] y = MatMul(c, v)
    }"""
    constants = {"w": drawn(4, 4), "u": drawn(4, 4, seed=3), "v": drawn(12, 4, seed=1)}
    within = Quantized(text, TFLITE, {**constants, "k": np.full((3, 4), 0.5, np.float32)})
    assert within.ranges["c"] == (1 / 256, -128)
    np.testing.assert_array_equal(within.constant("k_q"), np.zeros((3, 4), np.int8))
    beyond = Quantized(text, TFLITE, {**constants, "k": np.full((3, 4), 2, np.float32)})
    assert beyond.ranges["c"][0] * 255 >= 2 - 1e-6
    assert_one_scale_each(beyond, TFLITE, ops={"Concat"})
    assert beyond.snr > 28


def test_a_constant_does_not_tie_the_scales_of_its_readers_together() -> None:
    text = """m (float[N,4,6,6] x) => (float[N,4,6,6] y) {
        [first] a = Conv(x, w)
        m = Max(a, zero)
        [second] b = Conv(m, u)
        n = Max(b, zero)
        [third] y = Conv(n, w)
    }"""
    found = Quantized(text, TFLITE, {"w": drawn(4, 4, 1, 1), "u": drawn(4, 4, 1, 1, scale=40), "zero": f32(0)})
    assert_one_scale_each(found, TFLITE, ops={"Max"})
    assert found.ranges["n"][0] > 10 * found.ranges["m"][0]
    assert found.snr > 28


def test_a_bound_beyond_all_values_leaves_their_scale() -> None:
    text = """m (float[N,4,6,6] x) => (float[N,4,6,6] y) {
        [first] a = Conv(x, w)
        m = Min(a, bound)
        [second] y = Conv(m, w)
    }"""
    found = Quantized(text, TFLITE, {"w": drawn(4, 4, 1, 1), "bound": f32(1e6)})
    assert found.ranges["m"][0] < 1
    assert found.snr > 30
