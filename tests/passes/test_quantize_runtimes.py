"""What the runtimes make of the quantizer's graphs: their own executed graphs and numbers are the oracle."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
from quantizing import RESIDUAL, RESIDUAL_WEIGHTS, Quantized, drawn, executed, run

from retarget import graph
from retarget.compare import snr_db
from retarget.protocols import EmitJob
from retarget.schemes import OPENVINO, TENSORRT, U8S8
from retarget.spec import DimRange, symbols

if TYPE_CHECKING:
    from retarget.protocols import Array

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
needs_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is for Linux"
)

TRANSFORMER = """m (float[4,6,16] x) => (float[4,6,16] y) {
    n = LayerNormalization(x, g)
    q0 = MatMul(n, wq)
    q = Add(q0, bq)
    k0 = MatMul(n, wk)
    k = Transpose<perm = [0,2,1]>(k0)
    s = MatMul(q, k)
    p = Softmax(s)
    v = MatMul(n, wv)
    a = MatMul(p, v)
    o = MatMul(a, wo)
    r = Add(x, o)
    m = LayerNormalization(r, g)
    u0 = MatMul(m, wu)
    u1 = Add(u0, bu)
    u = Gelu(u1)
    d = MatMul(u, wd)
    y = Add(r, d)
}"""
TRANSFORMER_WEIGHTS = {
    "g": drawn(16, seed=1),
    **{f"w{name}": drawn(16, 16, seed=2 + at, scale=0.25) for at, name in enumerate("qkvo")},
    "wu": drawn(16, 64, seed=8, scale=0.25),
    "wd": drawn(64, 16, seed=9, scale=0.25),
    "bq": drawn(16, seed=10),
    "bu": drawn(64, seed=11),
}

SILU = """m (float[N,4,8,8] x) => (float[N,4,8,8] y) {
    a = Conv(x, w0)
    s = Sigmoid(a)
    m = Mul(a, s)
    b = Conv(m, w1)
    c = Concat<axis = 1>(b, m)
    y = Conv(c, w2)
}"""
SILU_WEIGHTS = {"w0": drawn(4, 4, 1, 1), "w1": drawn(4, 4, 1, 1, seed=1), "w2": drawn(4, 8, 1, 1, seed=2)}

FLOAT_PRODUCTS = {"Conv", "FusedConv", "Gemm", "FusedGemm"}


def static(text: str) -> str:
    return text.replace("float[N,", "float[3,")


def test_onnxruntime_computes_a_residual_network_in_integers(tmp_path: Path) -> None:
    found = Quantized(RESIDUAL, U8S8, RESIDUAL_WEIGHTS)
    ops = executed(found.model, tmp_path)
    assert [op for op in ops if op not in ("Transpose", "Flatten", "NhwcMaxPool", "MaxPool")] == [
        "QuantizeLinear", "QLinearConv", "QLinearConv", "QLinearConv", "QLinearAdd", "QLinearConv",
        "QLinearGlobalAveragePool", "QGemm",
    ]  # fmt: skip


def test_onnxruntime_computes_gated_activations_in_integers(tmp_path: Path) -> None:
    found = Quantized(SILU, U8S8, SILU_WEIGHTS)
    ops = executed(found.model, tmp_path)
    assert [ops.count(op) for op in ("QLinearConv", "QLinearSigmoid", "QLinearMul", "QLinearConcat")] == [3, 1, 1, 1]
    assert not {"Sigmoid", "Mul", "Concat"} & set(ops)
    assert abs(found.optimized_snr - found.snr) < 1


@pytest.mark.parametrize(
    ("op", "kernel"),
    [
        ("AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(a)", "QLinearAveragePool"),
        ("AveragePool<kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1>(a)", "QLinearAveragePool"),
        ("AveragePool<kernel_shape = [3,3], strides = [2,2], ceil_mode = 1>(a)", "QLinearAveragePool"),
        ("GlobalAveragePool(a)", "QLinearGlobalAveragePool"),
        ("MaxPool<kernel_shape = [3,3], pads = [1,1,1,1]>(a)", "MaxPool"),
        ("LeakyRelu<alpha = 0.2>(a)", "QLinearLeakyRelu"),
        ("Sigmoid(a)", "QLinearSigmoid"),
        ("Mul(a, k)", "QLinearMul"),
        ("Add(a, k)", "QLinearAdd"),
        ("Concat<axis = 2>(a, e)", "QLinearConcat"),
        ('Resize<mode = "nearest">(a, , scales)', "Resize"),
        ("Slice(a, one, four, one)", "Slice"),
        ("DepthToSpace<blocksize = 1>(a)", "DepthToSpace"),
    ],
)
def test_onnxruntime_computes_what_the_graph_means(op: str, kernel: str, tmp_path: Path) -> None:
    """Of values of both signs, whose zero point is in the middle."""
    text = f"""m (float[N,4,8,8] x) => (float[N,4,H,W] y) {{
        a = Conv(x, w0)
        e = Exp(x)
        m = {op}
        y = Conv(m, w1)
    }}"""
    constants: dict[str, Array] = {
        "w0": drawn(4, 4, 1, 1),
        "w1": drawn(4, 4, 1, 1, seed=1),
        "k": drawn(4, 1, 1, seed=2),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "one": np.array([2], np.int64),
        "four": np.array([6], np.int64),
    }
    found = Quantized(
        text, U8S8, {name: array for name, array in constants.items() if name[0] == "w" or f", {name}" in op}
    )
    ops = executed(found.model, tmp_path)
    assert ops.count("QLinearConv") == 2
    assert any(kernel in op for op in ops)
    optimized = run(found.model, found.feeds, optimize=True)["y"]
    assert snr_db(found.outputs["y"], optimized) > found.snr + 10


@pytest.mark.parametrize(
    "behind", ["[it] y = Conv(p, w1)", "t = Transpose<perm = [0,1,3,2]>(p)\n [it] y = Conv(t, w1)"]
)
def test_onnxruntime_computes_a_softmax_between_convolutions_in_float(behind: str, tmp_path: Path) -> None:
    """In integers it would sum along another axis than the graph says: 2 dB in place of 40."""
    text = f"m (float[N,4,8,8] x) => (float[N,4,8,8] y) {{ a = Conv(x, w0)\n p = Softmax<axis = 1>(a)\n {behind} }}"
    found = Quantized(text, U8S8, {"w0": drawn(4, 4, 1, 1), "w1": drawn(4, 4, 1, 1, seed=1)})
    ops = executed(found.model, tmp_path)
    assert (ops.count("Softmax"), ops.count("QLinearSoftmax")) == (1, 0)
    assert found.kept["it"] == "it is behind a Softmax, whose result u8s8 does not round"
    assert abs(found.optimized_snr - found.snr) < 1


def test_onnxruntime_computes_squeeze_and_excitation_in_integers(tmp_path: Path) -> None:
    text = """m (float[N,4,8,8] x) => (float[N,4,8,8] y) {
        a = Conv(x, w0)
        g = GlobalAveragePool(a)
        s = Conv(g, w1)
        h = HardSigmoid(s)
        m = Mul(a, h)
        y = Conv(m, w2)
    }"""
    weights = {f"w{at}": drawn(4, 4, 1, 1, seed=at) for at in range(3)}
    found = Quantized(text, U8S8, weights)
    ops = executed(found.model, tmp_path)
    assert [ops.count(op) for op in ("QLinearConv", "QLinearGlobalAveragePool", "QLinearMul", "Mul")] == [3, 1, 1, 0]
    assert abs(found.optimized_snr - found.snr) < 1


@pytest.mark.parametrize("clip", [(0.0, 6.0), (-1.0, 1.0), (0.0, 0.7)])
def test_onnxruntime_computes_clipped_convolutions_in_integers(clip: tuple[float, float], tmp_path: Path) -> None:
    """It removes a Clip only where the rounding cuts off no later, and computes in float where it stays."""
    text = "m (float[N,4,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w)\n b = Clip(a, lo, hi)\n y = Conv(b, w) }"
    bounds = {name: np.array(value, np.float32) for name, value in zip(("lo", "hi"), clip, strict=True)}
    found = Quantized(text, U8S8, {"w": drawn(4, 4, 1, 1, scale=3), **bounds})
    assert executed(found.model, tmp_path).count("QLinearConv") == 2
    assert abs(found.optimized_snr - found.snr) < 1


@pytest.mark.parametrize("batch", ["N", "4"])
@pytest.mark.parametrize("bias", ["", "[bias] c = Add(a, b)\n"])
def test_onnxruntime_computes_products_in_integers(bias: str, batch: str, tmp_path: Path) -> None:
    """With sizes that are known it makes a Gemm of a MatMul and an Add: one with a float bias runs in float."""
    last = "c" if bias else "a"
    text = f"m (float[{batch},3,8] x) => (float[{batch},3,6] y) {{ a = MatMul(x, w)\n {bias} y = Gelu({last}) }}"
    found = Quantized(text, U8S8, {"w": drawn(8, 6)} | ({"b": drawn(6, seed=3)} if bias else {}))
    ops = executed(found.model, tmp_path)
    assert "QGemm" in ops or "MatMulIntegerToFloat" in ops
    assert not {"MatMul", "FusedMatMul", *FLOAT_PRODUCTS} & set(ops)
    assert abs(found.optimized_snr - found.snr) < 1


def test_onnxruntime_computes_the_weights_of_a_transformer_in_integers(tmp_path: Path) -> None:
    found = Quantized(TRANSFORMER, U8S8, TRANSFORMER_WEIGHTS)
    ops = executed(found.model, tmp_path)
    assert ops.count("QGemm") + ops.count("MatMulIntegerToFloat") == 6
    assert ops.count("QuantizeLinear") == 4, "the input of a MatMul each, but that of q, k and v is one"
    assert found.snr > 35
    assert abs(found.optimized_snr - found.snr) < 1


def openvino_run(model: ir.Model, feeds: dict[str, Array], path: Path) -> tuple[dict[str, Array], list[str]]:
    """Outputs, and the types that convolutions and products are computed in."""
    from retarget.targets.openvino.runtime import core

    ir.save(model, path)
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core().compile_model(core().read_model(path), "CPU", settings)
    found = compiled.create_infer_request().infer(feeds)
    outputs = {port.any_name: np.array(found[port]) for port in compiled.outputs}
    types = [
        node.get_input_element_type(0).get_type_name()
        for node in compiled.get_runtime_model().get_ordered_ops()
        if node.get_rt_info()["layerType"].astype(str) in ("Convolution", "Deconvolution", "FullyConnected")
    ]
    return outputs, types


@needs_openvino
@pytest.mark.parametrize(
    ("text", "constants", "count"),
    [(static(RESIDUAL), RESIDUAL_WEIGHTS, 5), (TRANSFORMER, TRANSFORMER_WEIGHTS, 6), (static(SILU), SILU_WEIGHTS, 3)],
    ids=["residual", "transformer", "silu"],
)
def test_openvino_computes_in_integers_what_is_simulated(
    text: str, constants: dict[str, Array], count: int, tmp_path: Path
) -> None:
    found = Quantized(text, OPENVINO, constants)
    outputs, types = openvino_run(found.model, found.feeds, tmp_path / "model.onnx")
    assert types == ["u8"] * count
    simulated = Quantized(text, OPENVINO.simulated, constants)
    expected = snr_db(found.expected["y"], simulated.outputs["y"])
    assert abs(snr_db(found.expected["y"], outputs["y"]) - expected) < 1
    assert snr_db(simulated.outputs["y"], outputs["y"]) > expected


@needs_openvino
def test_openvino_computes_a_transposed_convolution_in_integers(tmp_path: Path) -> None:
    text = """m (float[1,8,16,16] x) => (float[1,8,18,18] y) {
        p = Exp(x)
        [it] y = ConvTranspose(VALUE, w, b)
    }"""
    constants = {"w": drawn(8, 8, 3, 3), "b": drawn(8, seed=1)}
    found = Quantized(text.replace("VALUE", "p"), OPENVINO, constants)
    outputs, types = openvino_run(found.model, found.feeds, tmp_path / "model.onnx")
    assert types == ["u8"]
    assert snr_db(found.outputs["y"], outputs["y"]) > 100
    signed = Quantized(text.replace("VALUE", "x").replace("p = Exp(x)", ""), OPENVINO, constants, modified=False)
    assert signed.kept == {"it": "openvino has no int8 ConvTranspose of values below zero, and those of 'x' are"}


@needs_tensorrt
@pytest.mark.parametrize(
    ("text", "constants", "share"),
    [(RESIDUAL, RESIDUAL_WEIGHTS, 1.0), (TRANSFORMER, TRANSFORMER_WEIGHTS, 0.9), (SILU, SILU_WEIGHTS, 1.0)],
    ids=["residual", "transformer", "silu"],
)
def test_tensorrt_builds_an_engine_of_these_types(
    text: str, constants: dict[str, Array], share: float, tmp_path: Path
) -> None:
    """Emit raises where the library says that it changed a type."""
    from retarget.targets.tensorrt_rtx import Options, emit

    found = Quantized(text, TENSORRT, constants)
    inputs = tuple(graph.value_spec(value) for value in found.model.graph.inputs)
    job = EmitJob(
        precision="int8",
        inputs=inputs,
        outputs=tuple(graph.value_spec(value) for value in found.model.graph.outputs),
        shapes={symbol: DimRange(1, 4, 8) for symbol in symbols(inputs)},
        options=Options(compute_capability=("8.9",)),
    )
    facts = emit.emit(found.model, job, tmp_path)
    assert (facts.precision.weights, facts.precision.activations, facts.precision.io) == ("int8", "int8", "float32")
    assert facts.precision.low_precision_share is not None
    assert facts.precision.low_precision_share >= share


def test_the_simulated_scheme_is_that_of_the_runtime() -> None:
    assert U8S8.simulated is U8S8
    assert OPENVINO.simulated.residual == "skip"
    assert OPENVINO.simulated.simulated == OPENVINO.simulated
