from __future__ import annotations

from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import pytest
from pass_testing import run_pass

from retarget.passes.remove_noops import RemoveNoops
from retarget.passes.unsigned_activations import UnsignedActivations

RNG = np.random.default_rng(0)
Model: TypeAlias = tuple[str, dict[str, np.ndarray]]
CONSTANTS = {
    "s": np.array(0.05, "f"),
    "z": np.array(-7, np.int8),
    "low": np.array(-128, np.int8),
    "u": np.array(3, np.uint8),
    "ws": np.linspace(0.01, 0.02, 4, dtype="f"),
    "wz": np.zeros(4, np.int8),
    "w": RNG.integers(-127, 128, (4, 3, 1, 1)).astype(np.int8),
    "six": np.array(6, "f"),
    "none": np.array(0, "f"),
    "small": np.array(6 / 255, "f"),
}


def graph(body: str, inputs: str = "float[N,3,4,4] x", outputs: str = "float[N,3,4,4] y") -> Model:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return f"g ({inputs}) => ({outputs}) {{ {body} }}", {k: v for k, v in CONSTANTS.items() if k in words}


def types(model: ir.Model) -> set[str]:
    """Of what activations are quantized to."""
    return {str(node.outputs[0].dtype) for node in model.graph if node.op_type == "QuantizeLinear"}


def test_codes_move_and_numbers_do_not() -> None:
    ran = run_pass(UnsignedActivations(), *graph("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)"))
    assert types(ran.model) == {"UINT8"}
    assert ran.error == 0


def test_what_moves_codes_moves_with_them() -> None:
    body = (
        "a = QuantizeLinear(x, s, z) r = Relu(x) b = QuantizeLinear(r, s, z) c = Concat <axis = 1> (a, b)"
        " m = MaxPool <kernel_shape = [2, 2]> (c) y = DequantizeLinear(m, s, z)"
    )
    ran = run_pass(UnsignedActivations(), *graph(body, outputs="float[N,6,3,3] y"))
    assert types(ran.model) == {"UINT8"}
    assert ran.error == 0


def test_weights_keep_their_type() -> None:
    body = (
        "q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z) v = DequantizeLinear <axis = 0> (w, ws, wz)"
        " y = Conv(a, v)"
    )
    ran = run_pass(UnsignedActivations(), *graph(body, outputs="float[N,4,4,4] y"))
    assert types(ran.model) == {"UINT8"}
    assert ran.model.graph.initializers["w"].dtype == ir.DataType.INT8
    assert ran.error < 1e-5


def test_int8_input_is_quantized_again_where_it_is_computed_with() -> None:
    body = "a = DequantizeLinear(x, s, z) v = DequantizeLinear <axis = 0> (w, ws, wz) y = Conv(a, v)"
    ran = run_pass(UnsignedActivations(), *graph(body, "int8[N,3,4,4] x", "float[N,4,4,4] y"))
    assert ran.counts["QuantizeLinear"] == 1
    assert types(ran.model) == {"UINT8"}
    assert ran.error < 1e-5


@pytest.mark.parametrize(
    ("body", "inputs", "outputs"),
    [
        ("y = QuantizeLinear(x, s, z)", "float[N,3,4,4] x", "int8[N,3,4,4] y"),
        (
            "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Cast <to = 6> (q)",
            "float[N,3] x",
            "int32[N,3] y",
        ),
        ("q = QuantizeLinear(x, s, u) y = DequantizeLinear(q, s, u)", "float[N,3] x", "float[N,3] y"),
        ("a = DequantizeLinear(x, s, z) y = Relu(a)", "int8[N,3] x", "float[N,3] y"),
    ],
)
def test_stays(body: str, inputs: str, outputs: str) -> None:
    assert not run_pass(UnsignedActivations(), *graph(body, inputs, outputs)).modified


@pytest.mark.parametrize(
    ("clip", "scale", "goes"),
    [
        ("Relu(x)", "s, low", True),
        ("Relu(x)", "s, z", False),
        ("Clip(x, none, six)", "small, low", True),
        ("Clip(x, none, six)", "s, low", False),
    ],
)
def test_clipping_that_codes_do_anyway(clip: str, scale: str, goes: bool) -> None:
    body = f"c = {clip} q = QuantizeLinear(c, {scale}) y = DequantizeLinear(q, {scale})"
    ran = run_pass(RemoveNoops(), *graph(body), feeds={"x": RNG.normal(0, 8, (5, 3, 4, 4)).astype("f")})
    assert ran.modified == goes
    assert ran.error == 0
