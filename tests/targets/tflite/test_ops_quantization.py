"""QuantizeLinear and DequantizeLinear of TFLite: what integers they may be of, and what is said of those in floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import one_node
import pytest
import target_testing as t

from retarget.errors import Unsupported

LEVELS = "s = Constant <value = float {0.05}> () z = Constant <value = int8 {3}> ()"

WIDE = f"""g (float[2,4] x) => (float[2,4] y) {{
    {LEVELS} c = Constant <value = int32[4] {{100000, -5, 3, -70000}}> ()
    cs = Constant <value = float {{0.00001}}> () cz = Constant <value = int32 {{0}}> ()
    q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) k = DequantizeLinear(c, cs, cz)
    [sum] a = Add(d, k)
    qa = QuantizeLinear(a, s, z) y = DequantizeLinear(qa, s, z)
}}"""

FUNCTIONS = f"""g (float[2,4,4] x) => (float[2,4,2] y) {{
    {LEVELS} q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
    other = Constant <value = float {{0.02}}> ()
    [first] a = Softmax(d)
    qa = QuantizeLinear(a, s, z) da = DequantizeLinear(qa, s, z)
    [second] b = AveragePool <kernel_shape = [2], strides = [2]> (da)
    qb = QuantizeLinear(b, other, z) y = DequantizeLinear(qb, other, z)
}}"""


@pytest.mark.parametrize(
    ("text", "named"), [(WIDE, "Add 'sum'"), (FUNCTIONS, "AveragePool 'second'")], ids=["constant", "functions"]
)
def test_what_is_quantized_and_computed_in_floats_is_named(text: str, named: str, tmp_path: Path) -> None:
    """Integers of 32 bits are none that an ADD takes. A Softmax is not meant to compute with integers."""
    model = t.model(text)
    feeds = t.feeds(model, 1)
    facts = t.emit("tflite", model, tmp_path, "int8")
    (*_, note) = facts.notes
    assert note.startswith("quantized, but computed in float32")
    assert note.endswith(named)
    np.testing.assert_array_equal(t.run("tflite", tmp_path, facts, feeds)["y"], t.oracle(model, feeds)["y"])


@pytest.mark.parametrize(
    ("zero", "scale", "precision", "reason"),
    [
        ("int16 {0}", 0.001, "int8", "it rounds to int16, and activations of this precision are int8"),
        ("int8 {0}", 0.001, "int16x8", "it rounds to int8, and activations of this precision are int16"),
        ("int16 {5}", 0.001, "int16x8", "its zero point is not 0: the kernels of int16 have no other"),
        ("int8 {0}", 0.002, "int8", "its scale or zero point is not that of the QuantizeLinear in front of it"),
    ],
)
def test_other_integers_are_refused(zero: str, scale: float, precision: str, reason: str, tmp_path: Path) -> None:
    text = f"""g (float[2,4] x) => (float[2,4] y) {{
        s = Constant <value = float {{0.001}}> () z = Constant <value = {zero}> ()
        back = Constant <value = float {{{scale}}}> ()
        q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, back, z)
    }}"""
    with pytest.raises(Unsupported) as caught:
        t.emit("tflite", t.model(text), tmp_path, precision)
    assert reason in str(caught.value)


def test_constants_that_are_rounded(tmp_path: Path) -> None:
    """Where nothing but the sizes of the model makes them known."""
    text = f"""g (float[2,4] x) => (float[2,4] y) {{
        {LEVELS} shape = Shape(x) ones = ConstantOfShape <value = float[1] {{1.234}}> (shape)
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        qo = QuantizeLinear(ones, s, z) do = DequantizeLinear(qo, s, z)
        a = Add(d, do)
        qa = QuantizeLinear(a, s, z) y = DequantizeLinear(qa, s, z)
    }}"""
    model, feeds = t.model(text), {"x": t.normal(2, 4)}
    facts = t.emit("tflite", model, tmp_path, "int8")
    assert one_node.operators(tmp_path) == ["QUANTIZE", "ADD", "DEQUANTIZE"]
    np.testing.assert_array_equal(t.run("tflite", tmp_path, facts, feeds)["y"], t.oracle(model, feeds)["y"])


def test_integers_are_turned_rather_than_floats(tmp_path: Path) -> None:
    text = f"""g (float[2,4,5,6] x) => (float[2,4,2,3] y) {{
        {LEVELS} q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        a = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (d)
        qa = QuantizeLinear(a, s, z) y = DequantizeLinear(qa, s, z)
    }}"""
    model = t.model(text)
    feeds = t.feeds(model, 1)
    facts = t.emit("tflite", model, tmp_path, "int8")
    assert one_node.operators(tmp_path) == ["QUANTIZE", "TRANSPOSE", "MAX_POOL_2D", "TRANSPOSE", "DEQUANTIZE"]
    np.testing.assert_array_equal(t.run("tflite", tmp_path, facts, feeds)["y"], t.oracle(model, feeds)["y"])
