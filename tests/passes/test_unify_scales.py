"""Oracle: ONNX Runtime without optimizations before and after, and numpy for scales."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pass_testing as testing
import pytest
from numpy.typing import NDArray
from quantizing import Quantized, drawn, run

from retarget.compare import snr_db
from retarget.passes.library import LiftConstants
from retarget.passes.unify_scales import UnifyScales
from retarget.schemes import OPENVINO, TFLITE, TFLITE_16X8, U8S8, QuantScheme

Constants = dict[str, NDArray[np.generic]]


def rounded(given: str, made: str, scale: float, zero: int = 0, *, dtype: str = "int8") -> str:
    """``made``: ``given`` in integers and back."""
    integers = f"{made}_i = QuantizeLinear({given}, {made}_s, {made}_z)"
    return "\n".join([*_levels(made, scale, zero, dtype), integers, _floats(made)])


def dequantized(made: str, scale: float, zero: int = 0, *, dtype: str = "int8") -> str:
    """``made``: what the integers ``made_i`` mean."""
    return "\n".join([*_levels(made, scale, zero, dtype), _floats(made)])


def _levels(made: str, scale: float, zero: int, dtype: str) -> list[str]:
    return [
        f"{made}_s = Constant<value = float {{{scale!r}}}>()",
        f"{made}_z = Constant<value = {dtype} {{{zero}}}>()",
    ]


def held(levels: tuple[float, int]) -> tuple[float, int]:
    """As the model holds them: the scale a float32 number."""
    return float(np.float32(levels[0])), levels[1]


def _floats(made: str) -> str:
    return f"{made} = DequantizeLinear({made}_i, {made}_s, {made}_z)"


class Unified:
    """A model before and after the pass, held to what it owes."""

    def __init__(self, text: str, constants: Constants | None = None, *, modified: bool = True) -> None:
        self.model = testing.parse(text, constants)
        LiftConstants()(self.model)
        # Within all ranges: what was cut off before need not be any more.
        self.feeds = {
            name: array if array.dtype == np.int8 else np.multiply(np.clip(array, -1, 1), np.float32(0.9))
            for name, array in testing.feeds_for(self.model, {"N": 2}).items()
        }
        self.before = run(self.model, self.feeds)
        assert UnifyScales()(self.model).modified == modified
        onnx.checker.check_model(ir.to_proto(self.model), full_check=True)
        self.after = run(self.model, self.feeds)
        text_of = ir.to_proto(self.model).SerializeToString()
        assert not UnifyScales()(self.model).modified, "a second run changes something"
        assert ir.to_proto(self.model).SerializeToString() == text_of

    def error(self, name: str) -> float:
        difference = self.before[name].astype(np.float64) - self.after[name].astype(np.float64)
        return float(np.abs(difference).max())

    def levels(self, name: str) -> tuple[float, int]:
        """Scale and zero point of what ``name`` is dequantized with."""
        return levels_of(next(one for one in self.model.graph if one.outputs[0].name == name))

    def around(self, op: str) -> set[tuple[float, int]]:
        """Scales and zero points next to the nodes of that operator, behind a Relu too."""
        found = set()
        for one in self.model.graph:
            if one.op_type == op:
                makers = [value.producer() for value in one.inputs if value is not None]
                found |= {levels_of(maker) for maker in makers if maker and maker.op_type == "DequantizeLinear"}
                users = [user for output in one.outputs for user, _ in output.uses()]
                users += [user for each in users if each.op_type == "Relu" for user, _ in each.outputs[0].uses()]
                found |= {levels_of(user) for user in users if user.op_type == "QuantizeLinear"}
        return found


def levels_of(node: ir.Node) -> tuple[float, int]:
    scale, zero = (ir.convenience.get_const_tensor(value) for value in node.inputs[1:3] if value is not None)
    assert scale is not None
    assert zero is not None
    return float(scale.numpy()), int(zero.numpy())


CONCAT = f"""m (float[N,4] x, float[N,4] z) => (float[N,8] y) {{
    {rounded("x", "a", 0.01, 3)}
    {rounded("z", "b", 0.03, 5)}
    c = Concat<axis = 1>(a, b)
    {rounded("c", "y", 0.02, 0)}
}}"""


def test_a_concat_gets_the_widest_scale_of_what_it_takes_and_gives() -> None:
    found = Unified(CONCAT)
    assert found.around("Concat") == {held((0.03, 5))}
    assert found.error("y") <= 0.03 / 2 + 0.02 / 2 + 1e-6


def test_ranges_that_overlap_are_covered_at_both_ends() -> None:
    found = Unified(CONCAT.replace("0.03", "0.0100001").replace("int8 {5}", "int8 {-100}").replace("0.02", "0.001"))
    ((scale, zero),) = found.around("Concat")
    lowest, highest = -128 - 3, (127 + 100) * 1.00001
    assert (-128 - zero) * scale <= lowest * 0.01
    assert (127 - zero) * scale >= highest * 0.01
    assert scale == pytest.approx((highest - lowest) * 0.01 / 254, rel=1e-4)


def test_equal_scales_are_left() -> None:
    text = CONCAT.replace("0.01", "0.03").replace("0.02", "0.03").replace("int8 {3}", "int8 {5}")
    Unified(text.replace("int8 {0}", "int8 {5}"), modified=False)


def test_a_chain_and_a_diamond_have_one_scale() -> None:
    text = f"""m (float[N,2,8,8] x, float[N,2,4,4] z) => (float[N,4,10,10] y, float[N,4,8,8] v) {{
        {rounded("x", "a", 0.01, 3)}
        p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(a)
        {rounded("p", "b", 0.011, 2)}
        {rounded("z", "d", 0.03, -7)}
        e = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(d)
        {rounded("e", "f", 0.02, 1)}
        c = Concat<axis = 1>(b, f)
        r = Relu(c)
        {rounded("r", "g", 0.015, -128)}
        n = Resize<mode = "nearest">(g, , scales)
        {rounded("n", "v", 0.016, -128)}
        w = Pad(v, pads)
        {rounded("w", "y", 0.017, -128)}
    }}"""
    constants: Constants = {
        "scales": np.array([1, 1, 2, 2], np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    }
    found = Unified(text, constants)
    once = {levels for op in ("MaxPool", "AveragePool", "Concat", "Resize", "Pad") for levels in found.around(op)}
    ((scale, zero),) = once
    assert (127 - zero) * scale >= 255 * 0.017 * (1 - 1e-6), "the widest at the upper end"
    assert (-128 - zero) * scale <= (-128 + 7) * 0.03 * (1 - 1e-6), "and at the lower one"
    assert min(snr_db(found.before[name], found.after[name]) for name in "yv") > 25


def test_what_has_a_fixed_scale_keeps_it_and_is_rounded_again() -> None:
    text = f"""m (float[N,4] x, float[N,4] z) => (float[N,8] y, float[N,4] t) {{
        {rounded("x", "a", 0.02, 3)}
        s = Sigmoid(a)
        {rounded("s", "b", 1 / 256, -128)}
        {rounded("z", "d", 0.03, 5)}
        c = Concat<axis = 1>(b, d)
        {rounded("c", "y", 0.03, 5)}
        {rounded("b", "t", 1 / 256, -128)}
    }}"""
    found = Unified(text)
    assert found.levels("b") == (1 / 256, -128)
    assert found.around("Concat") == {held((0.03, 5))}
    assert found.error("t") == 0
    assert found.error("y") <= 0.03 / 2 + 1e-6


def test_a_fixed_scale_that_holds_all_is_everybodys() -> None:
    text = f"""m (float[N,4] x, float[N,4] z) => (float[N,8] y) {{
        {rounded("x", "a", 0.02, 3)}
        {rounded("z", "k", 0.02, 3)}
        s = Sigmoid(a)
        {rounded("s", "b", 1 / 256, -128)}
        t = Sigmoid(k)
        {rounded("t", "d", 1 / 256, -128)}
        c = Concat<axis = 1>(b, d)
        {rounded("c", "y", 0.0035, -128)}
    }}"""
    found = Unified(text)
    assert found.around("Concat") == {(1 / 256, -128)}
    assert testing.ops(found.model).count("QuantizeLinear") == 5


def test_integers_at_the_ends_of_a_model_keep_their_scales() -> None:
    text = f"""m (int8[N,4] a_i, float[N,4] z) => (int8[N,8] y_i) {{
        {dequantized("a", 0.02, 3)}
        {rounded("z", "d", 0.05, 5)}
        c = Concat<axis = 1>(a, d)
        y_s = Constant<value = float {{0.04}}>()
        y_z = Constant<value = int8 {{0}}>()
        y_i = QuantizeLinear(c, y_s, y_z)
    }}"""
    found = Unified(text)
    assert found.around("Concat") == {held((0.05, 5))}
    assert found.levels("a") == held((0.02, 3))
    difference = found.before["y_i"].astype(np.int32) - found.after["y_i"].astype(np.int32)
    assert np.abs(difference).max() <= 2


def test_a_constant_is_rounded_again() -> None:
    text = f"""m (float[N,2] x) => (float[N,4] y) {{
        {rounded("x", "a", 0.03, 5)}
        {dequantized("k", 0.01, -9)}
        c = Concat<axis = 1>(a, k)
        {rounded("c", "y", 0.03, 5)}
    }}"""
    found = Unified(text, {"k_i": np.array([[-128, 127], [5, 6]], np.int8)})
    assert found.around("Concat") == {held((0.03, 5))}
    assert (
        "QuantizeLinear"
        not in [
            maker.op_type
            for node in found.model.graph
            if node.op_type == "DequantizeLinear" and (value := node.inputs[0]) and (maker := value.producer())
        ][1:-1]
    )
    assert found.error("y") <= 0.03 / 2 + 1e-6


def test_a_bias_follows_its_input_and_weights_stay() -> None:
    text = f"""m (float[N,3,6,6] x, float[N,3,6,6] z) => (float[N,4,6,6] y) {{
        {rounded("x", "a", 0.01, 3)}
        {rounded("z", "d", 0.03, 5)}
        e = Max(a, d)
        {rounded("e", "f", 0.02, 4)}
        w = DequantizeLinear<axis = 0>(w_i, w_s)
        b = DequantizeLinear<axis = 0>(b_i, b_s)
        c = Conv(f, w, b)
        {rounded("c", "y", 0.05, 4)}
    }}"""
    scales = np.array([0.01, 0.02, 0.005, 0.03], np.float32)
    constants: Constants = {
        "w_i": np.random.default_rng(0).integers(-127, 128, (4, 3, 1, 1)).astype(np.int8),
        "w_s": scales,
        "b_i": np.array([1000, -2000, 3000, 40], np.int32),
        "b_s": scales * np.float32(0.02),
    }
    found = Unified(text, constants)
    conv = next(node for node in found.model.graph if node.op_type == "Conv")
    _, weight, bias = (value.producer() for value in conv.inputs if value is not None)
    assert weight is not None
    assert bias is not None
    assert weight.inputs[1] is found.model.graph.initializers["w_s"]
    arrays = [value.const_value.numpy() for value in bias.inputs if value is not None and value.const_value is not None]
    np.testing.assert_array_equal(arrays[1], scales * np.float32(0.03))
    np.testing.assert_array_equal(arrays[0], np.rint(constants["b_i"].astype(float) * 2 / 3))
    assert snr_db(found.before["y"], found.after["y"]) > 30


@pytest.mark.parametrize(
    "change",
    [
        ("c = Concat<axis = 1>(a, b)", "g = Exp(b)\n c = Concat<axis = 1>(a, g)"),
        ("Concat<axis = 1>(a, b)", "Add(a, b)"),
        ("b_z = Constant<value = int8 {5}>()", "b_z = Constant<value = uint8 {5}>()"),
    ],
    ids=["a float operand", "another operator", "another type"],
)
def test_what_does_not_compute_in_one_scale_is_left(change: tuple[str, str]) -> None:
    text = CONCAT.replace(*change)
    assert text != CONCAT
    if "Add" in text:
        text = text.replace("float[N,8] y", "float[N,4] y")
    Unified(text, modified=False)


def test_a_float_reader_leaves_the_scales() -> None:
    Unified(CONCAT.replace("=> (float[N,8] y)", "=> (float[N,8] y, float[N,8] c)"), modified=False)


@pytest.mark.parametrize("scheme", [U8S8, OPENVINO, TFLITE, TFLITE_16X8], ids=lambda scheme: scheme.name)
def test_a_model_of_another_scheme_becomes_one_that_tflite_computes(scheme: QuantScheme) -> None:
    text = """m (float[N,4,8,8] x) => (float[N,4,4,4] y) {
        a = Conv(x, w0)
        b = Conv(x, w1)
        p = AveragePool<kernel_shape = [2,2], strides = [2,2]>(a)
        q = MaxPool<kernel_shape = [2,2], strides = [2,2]>(b)
        c = Concat<axis = 1>(p, q)
        y = Conv(c, w2, k)
    }"""
    weights = {
        "w0": drawn(4, 4, 1, 1),
        "w1": drawn(4, 4, 1, 1, seed=1, scale=5),
        "w2": drawn(4, 8, 1, 1),
        "k": drawn(4),
    }
    found = Quantized(text, scheme, weights)
    wants = scheme in (U8S8, OPENVINO)
    assert UnifyScales()(found.model).modified == wants
    assert not UnifyScales()(found.model).modified
    after = run(found.model, found.feeds)
    assert snr_db(found.expected["y"], after["y"]) > 30
