"""Quantized models against ONNX Runtime, which computes in floats between the roundings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ncnn_written
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import target_testing as t
from simulated import simulation, whole

from retarget.compare import snr_db
from retarget.schemes import NCNN
from retarget.spec import DimRange
from retarget.targets.ncnn import files
from retarget.targets.ncnn.emit import PARAM
from retarget.targets.ncnn.int8 import NO_WINOGRAD

if TYPE_CHECKING:
    from retarget.facts import EmitFacts
    from retarget.protocols import Array, Feeds

SCALE = 0.03
"""Of activations."""


# ---- one node


def node(text: str, codes: Array, axis: int, shape: str, *, each: bool = True, bias: bool = True) -> ir.Model:
    """``text``, one node that gives ``y`` of ``x`` and ``w``, both rounded, and ``b`` where it has a ``bias``.

    ``each``: a scale for each channel of the weight along ``axis``.
    """
    source = f"""<ir_version: 10, opset_import: ["" : 23]>
    m (float[{shape}] x) => (float[{", ".join("ABCDE"[: shape.count(",") + 1])}] y) {{
        scale = Constant <value_float = {SCALE}> ()
        zero = Constant <value = int8 {{0}}> ()
        a = QuantizeLinear (x, scale, zero)
        x_dq = DequantizeLinear (a, scale, zero)
        w_dq = DequantizeLinear <axis = {axis}> (codes, scales)
        y = {text}(x_dq, w_dq{", b" if bias else ""})
    }}"""
    rng = np.random.default_rng(2)
    count = codes.shape[axis]
    scales = np.asarray(rng.uniform(0.001, 0.002, count if each else ()), np.float32)
    constants = {"codes": codes, "scales": scales, "b": rng.standard_normal((count,)).astype(np.float32)}
    proto = onnx.parser.parse_model(source)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in constants.items() if name != "b" or bias
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def drawn(*shape: int, seed: int = 0) -> Array:
    """Codes of a weight."""
    codes: Array = np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)
    return codes


def on_codes(*shape: int, seed: int = 1) -> Array:
    """Floats in the middle of what is rounded to one code, beyond those that there are too."""
    codes: Array = np.random.default_rng(seed).integers(-127, 150, shape)
    return codes.astype(np.float32) * np.float32(SCALE)


def one(model: ir.Model, out: Path, **shapes: DimRange) -> files.Line:
    """The only layer with weights that is written."""
    ncnn_written.written(model, out, "int8", **shapes)
    (line,) = [
        each for each in files.read(out / PARAM) if each.type.startswith(("Convolution", "InnerProduct", "Gemm"))
    ]
    return line


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize(
    ("text", "weight", "shape"),
    [
        ("Conv", (5, 3, 1, 1), (3, 6, 6)),
        ("Conv <pads = [1, 1, 1, 1]>", (16, 16, 3, 3), (16, 9, 9)),
        ("Conv <pads = [0, 1, 2, 0], strides = [2, 1]>", (8, 12, 3, 2), (12, 9, 8)),
        ("Conv <dilations = [2, 2]>", (12, 8, 3, 3), (8, 11, 11)),
        ('Conv <auto_pad = "SAME_LOWER", strides = [2, 2]>', (8, 4, 3, 3), (4, 9, 10)),
        ("Conv <pads = [2, 1], strides = [2]>", (7, 6, 5), (6, 20)),
        ('Conv <auto_pad = "SAME_UPPER", strides = [2]>', (7, 6, 5), (6, 20)),
        ("Conv", (16, 8, 1), (8, 13)),
    ],
)
def test_convolutions_are_exact(
    text: str, weight: tuple[int, ...], shape: tuple[int, ...], each: bool, tmp_path: Path
) -> None:
    model = node(text, drawn(*weight), 0, f"N,{','.join(map(str, shape))}", each=each, bias=each)
    layer = one(model, tmp_path)
    assert (layer.type, layer.integer(8)) == ("Convolution", 2)
    ncnn_written.check(model, *({"x": on_codes(n, *shape)} for n in (1, 3)))


@pytest.mark.parametrize(
    ("shape", "turned"), [("N,40", False), ("N,40", True), ("N,5,40", False), ("N,2,3,40", False), ("40", False)]
)
def test_products_are_exact(shape: str, turned: bool, tmp_path: Path) -> None:
    """InnerProduct takes several times as long in int8 as what is written."""
    text = "Gemm <transB = 1>" if turned else "MatMul"
    codes = drawn(24, 40) if turned else drawn(40, 24)
    model = node(text, codes, 0 if turned else 1, shape, bias=turned)
    layer = one(model, tmp_path)
    assert (layer.type, layer.integer(8)) == ("Convolution", 2)
    sizes = [int(size) for size in shape.split(",")[1:]]
    fed = [{"x": on_codes(n, *sizes)} for n in (1, 3)] if "N" in shape else [{"x": on_codes(40)}]
    ncnn_written.check(model, *fed)


def test_depthwise_convolutions_have_a_scale_for_each_channel(tmp_path: Path) -> None:
    model = node("Conv <group = 16, pads = [1, 1, 1, 1]>", drawn(16, 1, 3, 3), 0, "N,16,7,7")
    layer = one(model, tmp_path)
    assert (layer.type, layer.integer(8)) == ("ConvolutionDepthWise", 1)
    # The kernel for AVX has 12 bits of the reciprocal of its scales.
    ncnn_written.check(model, *({"x": on_codes(n, 16, 7, 7)} for n in (1, 3)), atol=5e-4)


@pytest.mark.parametrize(
    ("text", "weight", "shape"),
    [
        ("Conv <group = 2>", (32, 16, 3, 3), (32, 6, 6)),
        ("Conv <group = 8>", (16, 1, 3, 3), (8, 6, 6)),
        ("Conv", (8, 4, 3, 3, 3), (4, 5, 5, 5)),
    ],
)
def test_what_has_no_right_kernel_is_computed_in_floats(
    text: str, weight: tuple[int, ...], shape: tuple[int, ...], tmp_path: Path
) -> None:
    """ConvolutionDepthWise of several channels a group gives in int8 what was in memory."""
    model = node(text, drawn(*weight), 0, f"N,{','.join(map(str, shape))}")
    assert one(model, tmp_path).integer(8) == 0
    ncnn_written.check(model, *({"x": on_codes(n, *shape)} for n in (1, 3)))


@pytest.mark.parametrize(("channels", "is_told"), [(16, False), (64, True)])
def test_sums_of_the_largest_codes_stay_in_int32(channels: int, is_told: bool, tmp_path: Path) -> None:
    """Winograd's are 576 times as large as those of the convolution."""
    codes = np.full((16, channels, 3, 3), 127, np.int8)
    codes[::2] = -127
    model = node("Conv <pads = [1, 1, 1, 1]>", codes, 0, f"N,{channels},14,14")
    assert one(model, tmp_path).integer(31) == (NO_WINOGRAD if is_told else 0)
    ncnn_written.check(model, {"x": np.full((1, channels, 14, 14), 127 * SCALE, np.float32)})


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16"])
def test_rounded_values_are_read_by_layers_of_floats(kind: str) -> None:
    """Also what was moved since it was rounded, in other types and around another zero, as other tools write it."""
    model = t.model(f"""g (float[N,3,4] x) => (float[N,3,4] y, float[N,4,3] z, float[N,3,4] u) {{
        scale = Constant <value_float = 0.02> ()
        scales = Constant <value_floats = [0.5, 0.25, 0.02]> ()
        zero = Constant <value = {kind} {{3}}> ()
        zeros = Constant <value = {kind}[3] {{1, 0, 2}}> ()
        [round] a = QuantizeLinear (x, scale, zero)
        [back] b = DequantizeLinear (a, scale, zero)
        [max] y = Relu(b)
        [move] c = Transpose <perm = [0, 2, 1]> (a)
        [moved] z = DequantizeLinear (c, scale, zero)
        [each] d = QuantizeLinear <axis = 1> (x, scales, zeros)
        [each_back] u = DequantizeLinear <axis = 1> (d, scales, zeros)
    }}""")
    ncnn_written.check(model, *({"x": 3 * t.normal(n, 3, 4)} for n in (1, 2, 5)))


def test_scales_may_be_computed() -> None:
    model = t.model("""g (float[N,3,4] x, float s, uint8 z, float[3] each, int8[3] zeros, int8[N,3,4] given)
        => (uint8[N,3,4] a, float[N,3,4] b, float[N,3,4] c) {
        [round] a = QuantizeLinear (x, s, z)
        [back] b = DequantizeLinear (a, s, z)
        [each_back] c = DequantizeLinear <axis = 1> (given, each, zeros)
    }""")
    levels: dict[str, Array] = {
        "s": np.array(0.03, np.float32),
        "z": np.array(120, np.uint8),
        "each": np.array([0.5, 0.25, 2], np.float32),
        "zeros": np.array([1, 0, -2], np.int8),
    }
    for n in (1, 2):
        ncnn_written.check(model, {"x": t.normal(n, 3, 4), "given": drawn(n, 3, 4), **levels})


# ---- several


BLOCKS = """g (float[N,3,10,10] x, float[16,3,3,3] w_a, float[16] w_b, float[16,16,1,1] w_c, float[16,1,3,3] w_d)
    => (float[N,16,10,10] y) {
    [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w_a, w_b)
    [relu] b = Relu(a)
    [second] c = Conv(b, w_c)
    [deep] d = Conv <pads = [1, 1, 1, 1], group = 16> (c, w_d)
    [third] e = Conv(d, w_c)
    [clip] f = HardSwish(e)
    [last] h = Conv(f, w_c)
    [sum] y = Add(f, h)
}"""


def test_only_int8_layers_are_given_int8(tmp_path: Path) -> None:
    model = t.model(BLOCKS)
    feeds = t.feeds(model, 2)
    simulated = simulation(model, [feeds], NCNN)
    facts = ncnn_written.written(simulated, tmp_path, "int8")
    assert [(line.type, line.integer(8), line.integer(9)) for line in files.read(tmp_path / PARAM)] == [
        ("Input", 0, 0),
        ("Convolution", 102, 1),  # to the second alone
        ("Convolution", 2, 0),  # to a depthwise one, which is faster in floats
        ("ConvolutionDepthWise", 0, 0),
        ("Convolution", 2, 6),  # to a sum, too
        ("Split", 0, 0),
        ("Convolution", 2, 0),
        ("BinaryOp", 0, 0),
    ]
    right = t.oracle(simulated, feeds)["y"]
    assert snr_db(right, t.run("ncnn", tmp_path, facts, feeds)["y"]) > 100


PERCEPTRON = """g (float[N,S,32] x, float[32,64] w_a, float[64] w_b, float[64,48] w_c, float[48,8] w_d)
    => (float[N,S,8] y) {
    [first] a = MatMul(x, w_a)
    [bias] b = Add(a, w_b)
    [gelu] c = Gelu(b)
    [second] d = MatMul(c, w_c)
    [relu] e = Relu(d)
    [third] y = MatMul(e, w_d)
}"""


@pytest.mark.parametrize(("function", "layer"), [("Gelu", "GELU"), ("Softplus", "BNLL")])
def test_axes_are_turned_once_on_each_side_of_products(function: str, layer: str, tmp_path: Path) -> None:
    model = t.model(PERCEPTRON.replace("Gelu", function))
    rng = np.random.default_rng(4)
    fed = [{"x": rng.standard_normal((n, s, 32)).astype(np.float32)} for n, s in ((2, 6), (1, 5), (3, 2))]
    simulated = simulation(model, fed, NCNN)
    shapes = {"N": DimRange(1, 2, 4), "S": DimRange(1, 6, 8)}
    assert ncnn_written.layers(simulated, "int8", **shapes) == [
        "Reshape", "Permute", "Convolution", layer, "Convolution", "Convolution", "Permute", "Reshape",
    ]  # fmt: skip
    facts = ncnn_written.written(simulated, tmp_path, "int8", **shapes)
    assert [line.integer(8) for line in files.read(tmp_path / PARAM) if line.type == "Convolution"] == [2, 102, 2]
    for feeds in fed:
        right = t.oracle(simulated, feeds)["y"]
        assert snr_db(right, t.run("ncnn", tmp_path, facts, feeds)["y"]) > 60


ATTENTION = """g (float[N,5,16] x, float[16,48] w_a, float[48] w_b, float[16,16] w_c) => (float[N,5,16] y) {
    sizes = Constant <value = int64[3] {16, 16, 16}> ()
    [all] a = MatMul(x, w_a)
    [bias] b = Add(a, w_b)
    [parts] q, k, v = Split <axis = 2> (b, sizes)
    [turn] t = Transpose <perm = [0, 2, 1]> (k)
    [scores] s = MatMul(q, t)
    [weights] p = Softmax(s)
    [mix] m = MatMul(p, v)
    [out] y = MatMul(m, w_c)
}"""


def test_products_are_cut(tmp_path: Path) -> None:
    model = t.model(ATTENTION)
    fed = [t.feeds(model, size) for size in (1, 3)]
    simulated = simulation(model, fed, NCNN)
    hold(model, simulated, {"N": DimRange(1, 3, 4)}, fed, tmp_path)
    layers = ncnn_written.layers(simulated, "int8", N=DimRange(1, 3, 4))
    assert layers[:5] == ["Reshape", "Permute", "Convolution", "Permute", "Slice"], "the bias is the layer's"


@pytest.mark.parametrize(
    "name",
    ["digits", "bert", *(pytest.param(name, marks=pytest.mark.stress) for name in ("resnet", "mobilenet_v2", "vit"))],
)
def test_models_are_as_near_as_their_simulation(name: str, tmp_path: Path) -> None:
    floats, shapes, feeds = whole(name, tmp_path / "source")
    hold(floats, simulation(floats, feeds, NCNN), shapes, feeds, tmp_path)


def hold(
    floats: ir.Model, model: ir.Model, shapes: Mapping[str, DimRange], feeds: Sequence[Feeds], out: Path
) -> EmitFacts:
    facts = ncnn_written.written(model, out, "int8", **shapes)
    assert facts.precision.weights == "int8"
    assert facts.precision.activations == "int8"
    for fed in feeds:
        found, right, unrounded = t.run("ncnn", out, facts, fed), t.oracle(model, fed), t.oracle(floats, fed)
        for output, expected in right.items():
            rounding = snr_db(unrounded[output], expected)
            assert rounding < 60
            # Sums in another order put a value across the edge of two codes now and then.
            assert abs(snr_db(unrounded[output], found[output]) - rounding) < 1
            assert snr_db(expected, found[output]) > rounding + 6
    return facts
