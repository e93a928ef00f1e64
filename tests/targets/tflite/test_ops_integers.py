"""Element-wise operators, activations and reductions of TFLite on the integers of quantized values."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import one_node
import pytest
import target_testing as t

HELD = """two = Constant <value = int64[2] {2, 3}> () one = Constant <value = int64[1] {1}> ()
    ci = Constant <value = int8[4,1,1] {10, 20, 30, -40}> () cs = Constant <value = float {0.01}> ()
    c = DequantizeLinear(ci, cs) number = Constant <value = float[1] {1.5}> ()
    zero = Constant <value = float {0.0}> () six = Constant <value = float {6.0}> ()
    three = Constant <value = float {3.0}> ()"""

COMPUTED = {
    # The operator, the scale and zero point of its result, its shape, and the kernel that does it.
    "Abs(a)": (0.04, -128, "1,4,6,6", "ABS"),
    "Add(a, c)": (0.05, 0, "1,4,6,6", "ADD"),
    "Clip(a, zero, six)": (0.03, -128, "1,4,6,6", "RELU6"),
    "Elu(a)": (0.04, -20, "1,4,6,6", "ELU"),
    "Gelu(a)": (0.04, -100, "1,4,6,6", "GELU"),
    "HardSwish(a)": (0.04, -100, "1,4,6,6", "HARD_SWISH"),
    "LeakyRelu <alpha = 0.2> (a)": (0.04, -20, "1,4,6,6", "LEAKY_RELU"),
    "LogSoftmax(a)": (0.0625, 127, "1,4,6,6", "LOG_SOFTMAX"),
    "Max(a, a)": (0.05, 3, "1,4,6,6", "MAXIMUM"),
    "Mul(a, c)": (0.02, 0, "1,4,6,6", "MUL"),
    "PRelu(a, c)": (0.04, -20, "1,4,6,6", "PRELU"),
    "ReduceMax <keepdims = 0> (a, one)": (0.05, 3, "1,6,6", "REDUCE_MAX"),
    "ReduceMean <keepdims = 0> (a, one)": (0.02, 0, "1,6,6", "MEAN"),
    "ReduceMean(a, two)": (0.02, 0, "1,4,1,1", "MEAN"),
    "Relu(a)": (0.04, -128, "1,4,6,6", "RELU"),
    "Sigmoid(a)": (1 / 256, -128, "1,4,6,6", "LOGISTIC"),
    "Softmax <axis = 1> (a)": (1 / 256, -128, "1,4,6,6", "SOFTMAX"),
    "Softmax <axis = 2> (a)": (1 / 256, -128, "1,4,6,6", "SOFTMAX"),
    "Sub(c, a)": (0.05, 0, "1,4,6,6", "SUB"),
    "Tanh(a)": (1 / 128, 0, "1,4,6,6", "TANH"),
}
FLOAT = {
    # Between a DEQUANTIZE and a QUANTIZE: the kernels are wrong, have another scale, or the operand has no integers.
    "Add(a, number)": (0.05, 0, "1,4,6,6"),
    "Clip(a, zero, three)": (0.03, -128, "1,4,6,6"),
    "Div(a, number)": (0.05, 0, "1,4,6,6"),
    "Elu <alpha = 0.5> (a)": (0.04, -20, "1,4,6,6"),
    "Max(a, c)": (0.05, 0, "1,4,6,6"),
    "Neg(a)": (0.05, 0, "1,4,6,6"),
    "PRelu(a, number)": (0.04, -20, "1,4,6,6"),
    "ReduceSum <keepdims = 0> (a, one)": (0.2, 3, "1,6,6"),
    "Sigmoid(a)": (0.005, -100, "1,4,6,6"),
}


def quantized(expression: str, scale: float, zero_point: int, shape: str) -> str:
    return f"""g (float[1,4,6,6] x) => (float[{shape}] y) {{
        {HELD} s = Constant <value = float {{0.05}}> () z = Constant <value = int8 {{3}}> ()
        so = Constant <value = float {{{scale}}}> () zo = Constant <value = int8 {{{zero_point}}}> ()
        i = QuantizeLinear(x, s, z) a = DequantizeLinear(i, s, z)
        r = {expression} j = QuantizeLinear(r, so, zo) y = DequantizeLinear(j, so, zo)
    }}"""


@pytest.mark.parametrize("expression", COMPUTED)
def test_kernels_on_integers_are_right_within_a_step(expression: str, tmp_path: Path) -> None:
    scale, zero_point, shape, code = COMPUTED[expression]
    done = assert_right(quantized(expression, scale, zero_point, shape), scale, tmp_path)
    assert code in done
    assert done.count("DEQUANTIZE") == 1


@pytest.mark.parametrize("expression", FLOAT)
def test_what_kernels_do_wrong_is_done_in_float(expression: str, tmp_path: Path) -> None:
    scale, zero_point, shape = FLOAT[expression]
    done = assert_right(quantized(expression, scale, zero_point, shape), scale, tmp_path)
    assert done.count("DEQUANTIZE") == 2


def assert_right(text: str, scale: float, out: Path) -> list[str]:
    """Hold the model against ONNX Runtime, by all kernels that there are; returns the file's operators."""
    model = t.model(text)
    facts = t.emit("tflite", model, out, "int8")
    feeds = {"x": np.asarray(t.normal(1, 4, 6, 6) * 2, np.float32)}
    right = t.oracle(model, feeds)["y"].astype(np.float64)
    done = one_node.operators(out)
    for kernels in ("xnnpack", "builtin", *(() if "ELU" in done else ("reference",))):
        chosen = msgspec.structs.replace(facts, settings={**facts.settings, "kernels": kernels})
        actual = t.run("tflite", out, chosen, feeds)["y"].astype(np.float64)
        assert np.abs(actual - right).max() < 1.01 * scale, kernels
    return done


def test_positions_are_those_of_the_integers(tmp_path: Path) -> None:
    model = t.model("""g (float[1,4,6,6] x) => (int64[1,6,6] y) {
        s = Constant <value = float {0.05}> () z = Constant <value = int8 {3}> ()
        i = QuantizeLinear(x, s, z) a = DequantizeLinear(i, s, z)
        y = ArgMax <axis = 1, keepdims = 0, select_last_index = 1> (a)
    }""")
    facts = t.emit("tflite", model, tmp_path, "int8")
    assert "DEQUANTIZE" not in one_node.operators(tmp_path)
    feeds = {"x": t.normal(1, 4, 6, 6)}
    np.testing.assert_array_equal(t.run("tflite", tmp_path, facts, feeds)["y"], t.oracle(model, feeds)["y"])
