"""Oracles: numpy for scales and integers, ONNX Runtime without optimizations for what the graph means."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx_ir as ir
import pass_testing as testing
import pytest
from numpy.typing import NDArray
from quantizing import RESIDUAL, RESIDUAL_WEIGHTS, Quantized, drawn, f32, min_max, run

from retarget import schemes
from retarget.compare import snr_db
from retarget.errors import RetargetError
from retarget.passes.library import FoldConstants
from retarget.passes.quantize import Quantize, candidates
from retarget.passes.quantize_rules import SUMMED
from retarget.schemes import COREML, NCNN, OPENVINO, TENSORRT, TFLITE, TFLITE_16X8, U8S8, QuantScheme

ALL = (U8S8, OPENVINO, TENSORRT, TFLITE, TFLITE_16X8, COREML, NCNN)

CONV = "m (float[N,4,9,9] x) => (float[N,8,9,9] y) { [conv] c = Conv<pads = [1,1,1,1]>(x, w, b)\n [act] y = Relu(c) }"
WEIGHTS = {"w": drawn(8, 4, 3, 3, scale=0.2), "b": drawn(8, seed=1)}


# ---- the graph


def test_a_convolution_is_quantized_in_front_of_it_and_behind_its_activation() -> None:
    found = Quantized(CONV, U8S8, WEIGHTS)
    assert found.ops == [
        "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv", "Relu", "QuantizeLinear",
        "DequantizeLinear",
    ]  # fmt: skip
    assert found.quantize.quantized == ("conv",)
    assert found.quantize.kept == ()
    assert found.snr > 38


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
def test_each_scheme_quantizes_a_residual_network(scheme: QuantScheme) -> None:
    found = Quantized(RESIDUAL, scheme, RESIDUAL_WEIGHTS)
    assert found.quantize.quantized == ("first", "inner", "last", "wide", "head")
    assert found.snr > 33
    assert abs(found.optimized_snr - found.snr) < 1


def test_integers_and_scales_are_those_of_the_definition() -> None:
    found = Quantized(CONV, U8S8, WEIGHTS)
    low, high = float(found.feeds["x"].min()), float(found.feeds["x"].max())
    scale, zero = found.ranges["x"]
    assert scale == pytest.approx((high - low) / 255, rel=1e-6)
    assert zero == round(-low / scale)
    absmax = np.abs(WEIGHTS["w"]).max(axis=(1, 2, 3))
    np.testing.assert_allclose(found.numbers("w_scale"), absmax / 127, rtol=1e-6)
    integers = np.rint(WEIGHTS["w"] / (absmax / 127).reshape(8, 1, 1, 1))
    np.testing.assert_array_equal(found.constant("w_q"), integers.astype(np.int8))
    bias_scale = np.float32(scale) * found.numbers("w_scale").astype(np.float32)
    np.testing.assert_array_equal(found.numbers("b_scale"), bias_scale)
    np.testing.assert_allclose(found.numbers("b_q") * bias_scale, WEIGHTS["b"], atol=float(bias_scale.max()))
    assert found.constant("b_q").dtype == np.int32
    assert "y" in found.ranges, "a result is known under the name that it had"
    assert found.ranges["y"][1] == 0, "nothing is below zero behind a Relu"


def test_float_biases_stay_as_they_are() -> None:
    found = Quantized(CONV, TENSORRT, WEIGHTS)
    assert found.node("c").inputs[2] is found.model.graph.initializers["b"]
    assert found.constant("w_q").dtype == np.int8
    scale, zero = found.ranges["x"]
    assert scale == pytest.approx(float(np.abs(found.feeds["x"]).max()) / 127, rel=1e-6)
    assert zero == 0
    assert "y" not in found.ranges, "its kernel gives floats"


def test_a_value_with_two_readers_is_quantized_once() -> None:
    text = """m (float[N,8] x) => (float[N,8] y, float[N,8] z) {
        [one] y = MatMul(x, v)
        [two] z = MatMul(x, w)
    }"""
    found = Quantized(text, U8S8, {"v": drawn(8, 8), "w": drawn(8, 8, seed=1)})
    assert found.ops.count("QuantizeLinear") == 1
    assert found.node("y").inputs[0] is found.node("z").inputs[0]


def test_a_float_reader_takes_the_float_where_there_is_one() -> None:
    text = """m (float[N,8] x) => (float[N,8] y) {
        t = Exp(x)
        [product] a = MatMul(t, w)
        y = Div(a, t)
    }"""
    found = Quantized(text, U8S8, {"w": drawn(8, 8)})
    assert found.is_rounded("a", 0)
    assert found.node("y").inputs[1] is found.node("t").outputs[0]
    assert found.kept["node_y" if "node_y" in found.kept else "y"] == "u8s8 has no int8 Div"


def test_the_sum_of_a_residual_network_is_quantized() -> None:
    found = Quantized(RESIDUAL, U8S8, RESIDUAL_WEIGHTS)
    assert found.is_rounded("s", 0)
    assert found.is_rounded("s", 1)
    assert found.node("s").inputs[1] is found.node("c1").inputs[0], "the branch is quantized once"


def test_tensorrt_adds_to_what_is_not_rounded_yet() -> None:
    found = Quantized(RESIDUAL, TENSORRT, RESIDUAL_WEIGHTS)
    assert not found.is_rounded("s", 0)
    assert found.is_rounded("s", 1)


def test_a_sum_in_front_of_float_stays_float() -> None:
    text = """m (float[N,8] x) => (float[N,8] y) {
        [product] a = MatMul(x, w)
        [sum] s = Add(a, x)
        [norm] n = LayerNormalization(s, g)
        [next] y = MatMul(n, w)
    }"""
    found = Quantized(text, U8S8, {"w": drawn(8, 8), "g": f32(*[1.0] * 8)})
    assert not found.is_rounded("s", 0)
    assert not found.is_rounded("s", 1)
    assert set(found.ranges) == {"x", "n"}
    assert found.kept == {
        "sum": "its neighbours compute in float32, int8 would gain nothing",
        "norm": "u8s8 has no int8 LayerNormalization",
    }


def test_a_bias_behind_a_product_belongs_to_it() -> None:
    text = """m (float[N,3,8] x) => (float[N,3,6] z) {
        [product] a = MatMul(x, w)
        [bias] y = Add(b, a)
        [next] z = MatMul(y, v)
    }"""
    constants = {"w": drawn(8, 6), "b": drawn(6, seed=3), "v": drawn(6, 6, seed=4)}
    found = Quantized(text, U8S8, constants)
    assert found.constant("b_q").dtype == np.int32
    assert "a" not in found.ranges
    assert found.kept == {}
    assert found.snr > 35


def test_an_activation_that_the_runtime_cannot_fuse_stands_behind_the_rounding() -> None:
    text = "m (float[N,4,9,9] x) => (float[N,8,9,9] y) { c = Conv<pads = [1,1,1,1]>(x, w, b)\n [act] y = HardSwish(c) }"
    there = Quantized(text, U8S8, WEIGHTS)
    assert "c" in there.ranges
    assert there.kept == {"act": "u8s8 has no int8 HardSwish"}
    inside = Quantized(text, OPENVINO, WEIGHTS)
    assert set(inside.ranges) == {"x"}
    assert inside.kept == {}


@pytest.mark.parametrize(
    ("function", "inside"),
    [("Relu(c)", True), ("Clip(c, zero, six)", True), ("Clip(c, zero, four)", False), ("Clip(c, , six)", False)],
)
def test_only_functions_that_a_kernel_knows_run_inside_of_it(function: str, inside: bool) -> None:
    text = (
        f"m (float[N,4,9,9] x) => (float[N,8,9,9] y) {{ c = Conv<pads = [1,1,1,1]>(x, w, b)\n [act] y = {function} }}"
    )
    bounds = {name: np.array(bound, np.float32) for name, bound in (("zero", 0), ("four", 4), ("six", 6))}
    found = Quantized(text, TFLITE, {**WEIGHTS, **{name: bounds[name] for name in bounds if name in function}})
    assert ("c" in found.ranges) != inside
    assert ("y" in found.ranges) == inside
    assert found.snr > 33


def test_only_kernels_that_have_functions_run_them() -> None:
    text = """m (float[N,4,6,6] x) => (float[N,4,6,6] y) {
        [left] a = Conv(x, w)
        c = Concat<axis = 1>(a, x)
        r = Relu(c)
        [next] y = Conv(r, v)
    }"""
    weights = {"w": drawn(4, 4, 1, 1), "v": drawn(4, 8, 1, 1, seed=1)}
    apart = Quantized(text, TFLITE, weights)
    assert apart.ranges["a"] == apart.ranges["x"] == apart.ranges["c"]
    assert apart.ranges["r"][1] == -128
    assert "c" not in Quantized(text, U8S8, weights).ranges
    product = "m (float[N,4,8] q, float[N,8,4] k) => (float[N,4,4] y) { s = MatMul(q, k)\n y = Relu(s) }"
    assert set(Quantized(product, TFLITE).ranges) == {"q", "k", "s"}


def test_what_calibration_did_not_see_has_room_in_int16() -> None:
    text = "m (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }"
    found = Quantized(text, TFLITE_16X8, {"w": drawn(4, 4)}, choose=lambda name, grid: (-1.0, 1.0))
    assert set(found.ranges.values()) == {(float(np.float32(2 / 32767)), 0)}


def test_products_of_activations_follow_the_scheme() -> None:
    text = """m (float[N,4,8] q, float[N,8,4] k) => (float[N,4,4] y) {
        [scores] s = MatMul(q, k)
        y = Softmax(s)
    }"""
    stays = Quantized(text, U8S8, modified=False)
    assert stays.kept["scores"] == "u8s8 leaves products of two activations in float32"
    there = Quantized(text, TFLITE)
    assert there.quantize.quantized == ("scores",)
    assert set(there.ranges) == {"q", "k", "s"}


def test_a_kernel_that_rounds_what_it_takes_leaves_other_readers_the_floats() -> None:
    """Of the inverted residual of a MobileNet, whose ends are read by a Conv and by a sum."""
    text = """m (float[N,4,8,8] x) => (float[N,4,8,8] y) {
        [first] c = Conv(x, w)
        [deep] d = Conv<group = 4, pads = [1,1,1,1]>(c, depthwise)
        [second] e = Conv(c, w)
        [volume] f = Unsqueeze(d, axes)
        [third] g = Conv(f, volume)
        h = Squeeze(g, axes)
        i = Add(c, e)
        y = Add(h, i)
    }"""
    constants: dict[str, NDArray[np.generic]] = {
        "w": drawn(4, 4, 1, 1, scale=0.4),
        "depthwise": drawn(4, 1, 3, 3, scale=0.4),
        "volume": drawn(4, 4, 1, 1, 1, scale=0.4),
        "axes": np.array([2], np.int64),
    }
    found = Quantized(text, NCNN, constants, feeds={"x": drawn(2, 4, 8, 8, seed=7)})
    assert found.quantize.quantized == ("first", "second")
    assert found.kept["deep"] == "ncnn leaves a Conv of several groups in float32, where it takes less time"
    assert found.kept["third"] == "ncnn has no int8 Conv along 3 axes"
    assert found.is_rounded("e", 0)
    assert not found.is_rounded("i", 0)
    assert not found.is_rounded("d", 0)


# ---- integers at the ends


def test_inputs_and_outputs_are_integers_where_that_is_asked() -> None:
    text = """m (float[N,4,6,6] x, float[N,4,6,6] z) => (float[N,4,6,6] y, float[N,4,6,6] p, int64[N,6,6] top) {
        n = Exp(x)
        a = Add(n, z)
        [first] c = Conv(a, w)
        y = Relu(c)
        p = Softmax<axis = 1>(y)
        top = ArgMax<axis = 1, keepdims = 0>(p)
    }"""
    model = testing.parse(text, {"w": drawn(4, 4, 1, 1)})
    feeds = testing.feeds_for(model, {"N": 3})
    expected = run(model, feeds)
    quantize = Quantize(TFLITE, min_max(model, [feeds]), integer_io=True)
    assert quantize(model).modified
    for value in model.graph.inputs:
        assert [user.op_type for user, _ in value.uses()] == ["QuantizeLinear"]
    makers = [value.producer() for value in model.graph.outputs]
    assert [maker and maker.op_type for maker in makers] == ["DequantizeLinear", "DequantizeLinear", "ArgMax"]
    assert [value.name for value in model.graph.outputs] == ["y", "p", "top"]
    assert {"x", "z", "y", "p"} <= set(quantize.ranges)
    found = run(model, feeds)
    assert min(snr_db(expected[name], found[name]) for name in "yp") > 28
    assert not Quantize(TFLITE, min_max(model, [feeds]), integer_io=True)(model).modified


def test_integers_at_the_ends_need_no_kernel_in_between() -> None:
    model = testing.parse("m (float[N,4] x) => (float[N,4] y) { y = Exp(x) }")
    assert Quantize(TFLITE, lambda name, grid: (-1.0, 3.0), integer_io=True)(model).modified
    assert testing.ops(model) == ["QuantizeLinear", "DequantizeLinear", "Exp", "QuantizeLinear", "DequantizeLinear"]


def test_an_end_without_a_range_cannot_be_integers() -> None:
    model = testing.parse("m (float[N,4] x) => (float[N,4] y) { y = Exp(x) }")
    with pytest.raises(RetargetError, match="cannot be integers: no range of 'y'"):
        Quantize(TFLITE, lambda name, grid: {"x": (-1.0, 1.0)}.get(name), integer_io=True)(model)


def test_constants_of_arithmetic_are_quantized() -> None:
    text = """m (float[N,4,6,6] x) => (float[N,4,6,6] y) {
        a = Conv(x, w)
        [scaled] m = Mul(a, k)
        [shifted] s = Add(h, m)
        y = Conv(s, w)
    }"""
    constants = {"w": drawn(4, 4, 1, 1), "k": f32(0.5, 0, 2, -1).reshape(4, 1, 1), "h": f32(3.25)}
    found = Quantized(text, U8S8, constants)
    assert found.is_rounded("m", 1)
    assert found.is_rounded("s", 0)
    np.testing.assert_array_equal(found.constant("k_q").ravel(), [127, 85, 255, 0])
    assert found.constant("h_q") == 255
    assert found.snr > 30


# ---- traps


def test_ranges_of_one_sign_still_hold_zero() -> None:
    found = Quantized(CONV, U8S8, WEIGHTS, choose=lambda name, grid: {"x": (2.0, 5.0), "y": (-4.0, -1.0)}.get(name))
    assert found.ranges["x"] == pytest.approx((5 / 255, 0))
    # Behind a Relu nothing is negative, whatever was chosen.
    assert found.ranges["y"][1] == 0
    signed = CONV.replace("Relu", "Identity").replace("c = Conv", "y = Conv").replace("\n [act] y = Identity(c)", "")
    below = Quantized(signed, U8S8, WEIGHTS, choose=lambda name, grid: {"x": (2.0, 5.0), "y": (-4.0, -1.0)}.get(name))
    assert below.ranges["y"] == pytest.approx((4 / 255, 255))


@pytest.mark.parametrize("value", [0.0, 2.5, -2.5])
@pytest.mark.parametrize("scheme", [U8S8, TENSORRT, TFLITE], ids=lambda scheme: scheme.name)
def test_a_constant_activation_keeps_its_value(value: float, scheme: QuantScheme) -> None:
    feeds = {"x": np.full((2, 4, 9, 9), value, np.float32)}
    found = Quantized(CONV, scheme, WEIGHTS, feeds=feeds)
    scale, zero = found.ranges["x"]
    assert scale > 0
    integer = np.clip(round(value / scale) + zero, scheme.low, scheme.high)
    assert (integer - zero) * scale == pytest.approx(value, rel=1e-5)
    error = np.abs(found.outputs["y"].astype(np.float64) - found.expected["y"].astype(np.float64))
    assert error.max() < 0.03 * float(found.expected["y"].max())


def test_the_scale_of_a_relu6_does_not_reach_beyond_six() -> None:
    text = "m (float[N,4,9,9] x) => (float[N,8,9,9] y) { c = Conv<pads = [1,1,1,1]>(x, w, b)\n y = Clip(c, lo, hi) }"
    constants = {**WEIGHTS, "lo": np.float32(0), "hi": np.float32(6), "w": drawn(8, 4, 3, 3, scale=5)}
    found = Quantized(text, U8S8, {name: np.asarray(array) for name, array in constants.items()})
    scale, zero = found.ranges["y"]
    assert zero == 0
    assert 5.99999 < float(np.float32(scale) * np.float32(255)) <= 6


@pytest.mark.parametrize("clip", ["Clip(c)", "Clip(c, , hi)", "Clip(c, lo)"])
def test_a_clip_with_a_side_open(clip: str) -> None:
    text = f"m (float[N,4,9,9] x) => (float[N,8,9,9] y) {{ c = Conv<pads = [1,1,1,1]>(x, w, b)\n y = {clip} }}"
    bounds = {name: np.asarray(value, np.float32) for name, value in (("lo", -0.5), ("hi", 1.5)) if name in clip}
    found = Quantized(text, U8S8, {**WEIGHTS, **bounds})
    assert "c" in found.ranges
    assert found.snr > 35


def test_a_bias_beyond_the_accumulator_widens_the_scale_of_its_weight() -> None:
    constants = {"w": WEIGHTS["w"].copy(), "b": WEIGHTS["b"].copy()}
    constants["w"][0] *= 1e-9
    constants["w"][1] = 0
    constants["b"][:2] = 1000, -7
    found = Quantized(CONV, U8S8, constants, choose=lambda name, grid: {"x": (-4.0, 4.0), "y": (0.0, 1100.0)}.get(name))
    stored = found.numbers("b_q") * found.numbers("b_scale")
    np.testing.assert_allclose(stored[:2], [1000, -7], rtol=1e-6)
    assert np.abs(found.numbers("b_q")).max() <= 2**30 + 64
    assert found.numbers("w_scale")[2] == pytest.approx(float(np.abs(WEIGHTS["w"][2]).max()) / 127)


def test_tiny_ranges_give_scales_whose_products_are_numbers() -> None:
    constants = {"w": WEIGHTS["w"] * np.float32(1e-20), "b": np.zeros(8, np.float32)}
    found = Quantized(CONV, U8S8, constants, choose=lambda name, grid: (-1e-30, 1e-30))
    assert (found.numbers("b_scale") > np.finfo(np.float32).tiny).all()
    assert np.isfinite(found.outputs["y"]).all()


def test_shared_weights_are_quantized_once_for_each_axis() -> None:
    text = """m (float[N,8] x) => (float[N,8] y, float[N,8] u) {
        a = Gemm(x, w, b)
        y = Gemm(a, w, b)
        u = Gemm<transB = 1>(x, w)
    }"""
    found = Quantized(text, U8S8, {"w": drawn(8, 8, scale=0.4), "b": drawn(8, seed=1)})
    names = sorted(name for name, value in found.model.graph.initializers.items() if value.dtype == ir.DataType.INT8)
    assert names == ["int8_zeros_8", "w_q", "w_q_1"]
    assert found.node("a").inputs[1] is found.node("y").inputs[1]
    assert found.node("a").inputs[2] is not found.node("y").inputs[2], "the bias has the scale of the input"
    assert found.snr > 33


def test_inputs_and_outputs_of_other_sizes() -> None:
    found = Quantized(RESIDUAL, U8S8, RESIDUAL_WEIGHTS, sizes={"N": 2})
    other = testing.feeds_for(found.model, {"N": 5}, seed=4)
    expected = run(testing.parse(RESIDUAL, RESIDUAL_WEIGHTS), other)["y"]
    assert snr_db(expected, run(found.model, other)["y"]) > 25


def test_an_output_that_int8_nodes_read_too() -> None:
    text = """m (float[N,4,6,6] x) => (float[N,4,6,6] x2, float[N,4,6,6] y) {
        x2 = Conv(x, w)
        y = Conv(x2, v)
    }"""
    found = Quantized(text, U8S8, {"w": drawn(4, 4, 1, 1), "v": drawn(4, 4, 1, 1, seed=1)})
    assert found.ops.count("QuantizeLinear") == 3
    assert found.snr > 30


def test_subgraphs_stay_as_they_are() -> None:
    text = """m (float[N,8] x, bool flag) => (float[N,8] y) {
        [product] a = MatMul(x, w)
        y = If(flag) <then_branch = t () => (float[N,8] p) { p = MatMul(a, w) },
                      else_branch = e () => (float[N,8] q) { q = Neg(a) }>
    }"""
    found = Quantized(text, U8S8, {"w": drawn(8, 8)}, feeds={"x": drawn(3, 8, seed=2), "flag": np.array(True)})
    assert found.quantize.quantized == ("product",)
    assert "its subgraphs stay in float32" in found.kept.values()
    assert found.ops.count("MatMul") == 2


def test_quantization_of_the_models_own_is_kept() -> None:
    text = """m (float[N,8] x) => (float[N,8] y) <float s = {0.03}, uint8 z = {128}> {
        xq = QuantizeLinear(x, s, z)
        xd = DequantizeLinear(xq, s, z)
        [own] a = MatMul(xd, w)
        e = Exp(a)
        [new] y = MatMul(e, v)
    }"""
    found = Quantized(text, U8S8, {"w": drawn(8, 8, scale=0.1), "v": drawn(8, 8, seed=1)})
    assert found.quantize.quantized == ("new",)
    assert found.kept["own"] == "it is quantized already"
    assert found.node("a").inputs[1] is found.model.graph.initializers["w"]


def test_masks_are_no_values() -> None:
    text = """m (float[N,4,8] x, float[N,1,4] mask) => (float[N,4,4] y) {
        [scores] a = MatMul(x, w)
        [masked] s = Add(a, mask)
        p = Softmax(s)
        [next] y = MatMul(p, v)
    }"""
    feeds = {"x": drawn(2, 4, 8), "mask": np.where(drawn(2, 1, 4, seed=5) > 0, 0, -1e9).astype(np.float32)}
    found = Quantized(text, TFLITE, {"w": drawn(8, 4), "v": drawn(4, 4, seed=1)}, feeds=feeds)
    assert found.kept["masked"] == "the masks in its range would leave no levels for the values"
    assert found.snr > 25


EMBEDDING = """m (float[N,3,8,8] x) => (float[N,4,6] y) {
    [patches] c = Conv<strides = [4,4]>(x, w, b)
    [flat] f = Reshape(c, shape)
    [tokens] t = Transpose<perm = [0,2,1]>(f)
    [positions] s = Add(t, position)
    n = LayerNormalization(s, scale)
    [dense] d = MatMul(n, w2)
    y = Add(s, d)
}"""
EMBEDDING_WEIGHTS: dict[str, NDArray[np.generic]] = {
    "w": drawn(6, 3, 4, 4, scale=0.2),
    "b": drawn(6, seed=1),
    "shape": np.array([0, 6, 4], np.int64),
    "position": drawn(1, 4, 6, seed=2),
    "scale": np.ones(6, np.float32),
    "w2": drawn(6, 6, seed=3, scale=0.3),
}


def test_what_starts_a_residual_stream_is_not_rounded_for_its_own_kernel() -> None:
    feeds = {"x": drawn(2, 3, 8, 8, seed=7)}
    found = Quantized(EMBEDDING, U8S8, EMBEDDING_WEIGHTS, feeds=feeds)
    assert found.quantize.quantized == ("dense",)
    assert found.kept["patches"] == SUMMED
    assert not found.is_rounded("c", 0)
    # OpenVINO's kernel has float outputs: nothing is rounded that need not be.
    assert Quantized(EMBEDDING, OPENVINO, EMBEDDING_WEIGHTS, feeds=feeds).quantize.quantized == ("patches", "dense")


def test_a_sum_with_a_constant_between_convolutions_is_int8() -> None:
    text = """m (float[N,4,8,8] x) => (float[N,4,8,8] y) {
        [first] c = Conv(x, w)
        [sum] s = Add(c, offset)
        [second] y = Conv(s, w)
    }"""
    constants = {"w": drawn(4, 4, 1, 1, scale=0.4), "offset": drawn(4, 1, 1, seed=3)}
    found = Quantized(text, U8S8, constants, feeds={"x": drawn(2, 4, 8, 8, seed=7)})
    assert found.quantize.quantized == ("first", "second")


# ---- what stays, and why


@pytest.mark.parametrize(
    ("text", "constants", "reason"),
    [
        ("y = Conv(x, x)", {}, "its weight is not a constant"),
        ("y = Gemm<alpha = 0.5>(x, w)", {"w": drawn(8, 8)}, "its alpha or beta is not 1"),
        ("y = MatMul(w, x)", {"w": drawn(8, 8)}, "u8s8 leaves products of two activations in float32"),
        ("y = MatMul(x, w)", {"w": drawn(8)}, "its weight has fewer than two axes"),
        ("y = MatMul(x, w)", {"w": drawn(3, 8, 8)}, "its weight is a stack of matrices"),
        ("y = Gemm(x, w, x)", {"w": drawn(8, 8)}, "its bias is not a constant"),
        ("y = Gemm(x, w, b)", {"w": drawn(8, 8), "b": drawn(8, 8)}, "its bias has not one number for each channel"),
    ],
)
def test_reasons(
    text: str, constants: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]], reason: str
) -> None:
    shape = "8,8,1,1" if "Conv" in text else "8,8"
    rank = {"its weight has fewer than two axes": "8", "its weight is a stack of matrices": "3,8,8"}.get(reason, shape)
    found = Quantized(f"m (float[{shape}] x) => (float[{rank}] y) {{ [it] {text} }}", U8S8, constants, modified=False)
    assert found.kept == {"it": reason}


def test_a_node_without_a_range_stays() -> None:
    found = Quantized(CONV, U8S8, WEIGHTS, choose=lambda name, grid: None, modified=False)
    assert found.kept["conv"] == "no range of 'x' was recorded"
    found = Quantized(CONV, U8S8, WEIGHTS, choose=lambda name, grid: (0.0, np.inf), modified=False)
    assert found.kept["conv"] == "the range of 'x' is not finite"


@pytest.mark.parametrize("name", ["w", "b"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_stays(name: str, value: float) -> None:
    constants = {key: array.copy() for key, array in WEIGHTS.items()}
    constants[name].flat[3] = value
    found = Quantized(CONV, U8S8, constants, choose=lambda name, grid: (-1.0, 1.0), modified=False)
    assert found.kept["conv"] == "its weight or bias is not finite"


def test_nodes_can_be_asked_to_stay() -> None:
    found = Quantized(RESIDUAL, U8S8, RESIDUAL_WEIGHTS, keep=("inner", "sum"))
    assert found.quantize.quantized == ("first", "last", "wide", "head")
    assert found.kept["inner"] == found.kept["sum"] == "it was asked to stay in float32"
    assert not found.is_rounded("s", 0) or "c2" in found.ranges
    assert found.snr > 33
    model = testing.parse(RESIDUAL, RESIDUAL_WEIGHTS)
    assert candidates(model, U8S8) == ("first", "inner", "last", "wide", "head")


# ---- weights


def test_weights_are_rounded_when_they_are_read() -> None:
    text = "m (float[N,128] x) => (float[N,128] y) { y = MatMul(x, w) }"
    model = testing.parse(text, {"w": drawn(128, 128)})
    Quantize(U8S8, lambda name, grid: (-3.0, 3.0))(model)
    tensor = model.graph.initializers["w_q"].const_value
    assert isinstance(tensor, ir.LazyTensor)
    assert tensor.nbytes == 128 * 128
    scale = np.abs(drawn(128, 128)).max(axis=0) / np.float32(127)
    np.testing.assert_array_equal(tensor.numpy(), np.rint(drawn(128, 128) / scale))


@pytest.mark.parametrize("scheme", [OPENVINO, TFLITE], ids=lambda scheme: scheme.name)
def test_a_transposed_convolution_in_groups(scheme: QuantScheme) -> None:
    text = "m (float[N,4,5,5] x) => (float[N,6,6,6] y) { p = Abs(x)\n y = ConvTranspose<group = 2>(p, w, b) }"
    constants = {"w": drawn(4, 3, 2, 2) * np.array([1, 5, 25], np.float32).reshape(3, 1, 1), "b": drawn(6, seed=1)}
    found = Quantized(text, scheme, constants)
    assert found.constant("w_scale").shape == (3,)
    assert found.constant("b_q").shape == (6,)
    assert found.snr > 33


def test_folding_constants_leaves_quantized_weights() -> None:
    found = Quantized(CONV, U8S8, WEIGHTS)
    assert not FoldConstants()(found.model).modified


def test_schemes_are_plain_data() -> None:
    for scheme in ALL:
        assert msgspec.json.decode(msgspec.json.encode(scheme), type=QuantScheme) == scheme
    assert len({scheme.name for scheme in ALL}) == len(ALL)
    assert schemes.TENSORRT.grid == schemes.Grid(-128, 127, True)
