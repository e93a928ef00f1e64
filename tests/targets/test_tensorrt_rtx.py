"""Engines of TensorRT-RTX, built here without a GPU: what is written, what is said of it, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import quantized

from retarget import graph
from retarget.errors import MissingToolchain, RetargetError, ToolchainFailure, Unsupported
from retarget.passes.fp16 import CastFloat16
from retarget.protocols import EmitJob
from retarget.spec import DimRange, symbols
from retarget.targets import tensorrt_rtx
from retarget.targets.tensorrt_rtx import Options

if TYPE_CHECKING:
    from retarget.protocols import Array

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is for Linux")

from retarget.targets.tensorrt.build import Builder
from retarget.targets.tensorrt.flavour import TENSORRT_RTX
from retarget.targets.tensorrt.network import library_log, load_library
from retarget.targets.tensorrt_rtx import emit, run

MAGIC = b"vtrt"
"""How every engine of TensorRT-RTX 1.x starts, portable or not: no build could be taken for another file."""

MLP = """g ({t}[N,16] x, {t}[16,32] w1, {t}[32,4] w2) => ({t}[N,4] y) {{
    [first] h = MatMul(x, w1)
    [act] a = Relu(h)
    [second] y = MatMul(a, w2)
}}"""

CNN = """g ({t}[N,3,16,16] image, {t}[8,3,3,3] w, {t}[8] b, {t}[8,10] fc) => ({t}[N,10] logits) {{
    [conv] c = Conv <pads = [1, 1, 1, 1]> (image, w, b)
    [relu] r = Relu(c)
    [pool] p = GlobalAveragePool(r)
    [flat] f = Flatten(p)
    [fc] logits = Gemm(f, fc)
}}"""

MIXED = """g (float[N,16] x, float16[16,32] w1, float[32,4] w2) => (float[N,4] y) {
    [down] half = Cast <to = 10> (x)
    [first] product = MatMul(half, w1)
    [up] h = Cast <to = 1> (product)
    [second] y = MatMul(h, w2)
}"""


def model(text: str, *, domains: tuple[str, ...] = ()) -> ir.Model:
    """The graph of ``text``, shapes inferred; inputs called ``w…``, ``b`` or ``fc`` become random initializers."""
    imports = ", ".join(f'"{domain}" : {version}' for domain, version in (("", 23), *((name, 1) for name in domains)))
    parsed = ir.from_onnx_text(f"<ir_version: 10, opset_import: [{imports}]>\n{text}")
    rng = np.random.default_rng(0)
    for value in list(parsed.graph.inputs):
        name = value.name or ""
        if name[0] == "w" or name in ("b", "fc"):
            assert value.shape is not None
            assert value.dtype is not None
            shape = tuple(int(dim) for dim in value.shape if isinstance(dim, int))
            value.const_value = ir.tensor((rng.standard_normal(shape) / 4).astype(value.dtype.numpy()), name=name)
            parsed.graph.inputs.remove(value)
            parsed.graph.register_initializer(value)
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(parsed)))


def job(model: ir.Model, options: Options | None = None, precision: str = "fp32") -> EmitJob:
    inputs = tuple(graph.value_spec(value) for value in model.graph.inputs)
    return EmitJob(
        precision=precision,
        inputs=inputs,
        outputs=tuple(graph.value_spec(value) for value in model.graph.outputs),
        shapes={symbol: DimRange(1, 8, 32) for symbol in symbols(inputs)},
        options=options or Options(),
    )


@pytest.mark.parametrize("text", [MLP, CNN])
@pytest.mark.parametrize(("element", "name", "share"), [("float", "float32", 0.0), ("float16", "float16", 1.0)])
def test_an_engine_is_written_and_its_types_are_read_back(
    text: str, element: str, name: str, share: float, tmp_path: Path
) -> None:
    small = model(text.format(t=element))
    assert emit.check(small, job(small)) == []

    facts = emit.emit(small, job(small), tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["model.engine"]
    assert (tmp_path / "model.engine").read_bytes().startswith(MAGIC)
    assert facts.target == "tensorrt_rtx"
    assert (facts.precision.weights, facts.precision.activations, facts.precision.io) == (name, name, name)
    assert facts.precision.low_precision_share == share
    assert [entry.artifact_dtype for entry in facts.inputs + facts.outputs] == [name, name]
    assert [entry.name for entry in facts.inputs + facts.outputs] == [
        value.name for value in (*small.graph.inputs, *small.graph.outputs)
    ]


def test_a_mixed_model_says_its_share_by_the_work_of_its_layers(tmp_path: Path) -> None:
    mixed = model(MIXED)
    facts = emit.emit(mixed, job(mixed, precision="fp16"), tmp_path)

    assert facts.precision.low_precision_share == pytest.approx(16 * 32 / (16 * 32 + 32 * 4))
    assert facts.precision.activations == "float16"
    assert facts.precision.io == "float32"


def test_our_own_float16_is_what_the_engine_computes_in(tmp_path: Path) -> None:
    cnn = model(CNN.format(t="float"))
    CastFloat16()(cnn)
    facts = emit.emit(cnn, job(cnn, precision="fp16"), tmp_path)

    assert (facts.precision.weights, facts.precision.activations, facts.precision.io) == (
        "float16",
        "float16",
        "float32",
    )
    assert facts.precision.low_precision_share == 1.0


@pytest.mark.parametrize("text", [quantized.CNN, quantized.MLP])
def test_int8_is_read_back_and_no_type_is_warned_of(text: str, tmp_path: Path) -> None:
    signed = quantized.model(text, signed=True)
    assert emit.check(signed, job(signed, precision="int8")) == []
    facts = emit.emit(signed, job(signed, precision="int8"), tmp_path)

    precision = facts.precision
    assert (precision.weights, precision.activations, precision.io) == ("int8", "int8", "float32")
    assert precision.low_precision_share == 1
    assert library_log(load_library(TENSORRT_RTX)).messages == []


def test_what_stays_float_beside_int8_is_not_called_int8(tmp_path: Path) -> None:
    mixed = quantized.model(quantized.CNN, signed=True, only=("Gemm",))
    facts = emit.emit(mixed, job(mixed, precision="int8"), tmp_path)

    fc, spatial = 32 * 10, 16 * 16
    convolutions = spatial * (16 * 27 + 16 * 9 + 32 * 16 + 32 * 32 * 9)
    assert facts.precision.low_precision_share == pytest.approx(fc / (fc + convolutions))
    assert (facts.precision.weights, facts.precision.activations) == ("float32", "float32")


def test_codes_with_a_zero_point_are_refused() -> None:
    unsigned = quantized.model(quantized.CNN)
    reasons = emit.check(unsigned, job(unsigned, precision="int8"))
    assert "Non-zero zero point is not supported" in reasons[0][2]


def test_weights_in_few_bits_are_kept_in_them(tmp_path: Path) -> None:
    """There is no activation in int8, so there is no work in it."""
    sizes = {}
    for bits, element, axes, shape in (
        (4, "int4", "axis = 0, block_size = 64", "4,256"),
        (8, "int8", "axis = 1", "256"),
    ):
        product = model(
            f"""g (float[N,256] x, {element}[256,256] wq, float[{shape}] ws) => (float[N,256] y) {{
                [dq] d = DequantizeLinear <{axes}> (wq, ws)
                [product] y = MatMul(x, d)
            }}"""
        )
        scales = product.graph.initializers["ws"]
        assert scales.const_value is not None
        scales.const_value = ir.tensor(np.abs(scales.const_value.numpy()), name="ws")
        out = tmp_path / element
        out.mkdir()
        facts = emit.emit(product, job(product, precision=f"int{bits}_weights"), out)
        assert (facts.precision.weights, facts.precision.activations) == (element, "float32")
        assert facts.precision.low_precision_share == 0
        sizes[bits] = (out / "model.engine").stat().st_size
    assert 256 * 256 / 2 < sizes[4] < sizes[8] < 256 * 256 * 4


def test_a_type_that_the_builder_changes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = model(MLP.format(t="float"))
    said = "Missing scale for tensor h, expect fall back to non-int8 implementation"
    # The log is cleared before the parser, so what is said first comes from the builder.
    configure = emit._BUILDER.configure
    log = library_log(load_library(TENSORRT_RTX))

    def noisy(library: ModuleType, config: object, options: Options) -> tuple[str, ...]:
        log.messages.append(("WARNING", said))
        return configure(library, config, options)

    monkeypatch.setattr(emit, "_BUILDER", dataclasses.replace(emit._BUILDER, configure=noisy))
    with pytest.raises(ToolchainFailure, match="built another model: Missing scale for tensor h"):
        emit.emit(small, job(small), tmp_path)


def test_what_was_asked_for_is_not_what_is_reported(tmp_path: Path) -> None:
    plain = model(MLP.format(t="float"))
    facts = emit.emit(plain, job(plain, precision="fp16"), tmp_path)

    assert facts.variant_precision == "fp16"
    assert facts.precision.weights == "float32"
    assert facts.precision.low_precision_share == 0.0


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    small = model(CNN.format(t="float"))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        emit.emit(small, job(small), tmp_path / folder)

    assert (tmp_path / "one/model.engine").read_bytes() == (tmp_path / "two/model.engine").read_bytes()


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    small = model("g (float[N,4] x) => (float[N,4] y) { a = Relu(x) y = Relu(a) }")
    before = ir.to_proto(small).SerializeToString()
    emit.emit(small, job(small), tmp_path)

    assert ir.to_proto(small).SerializeToString() == before


def test_the_profile_is_that_of_the_shapes(tmp_path: Path) -> None:
    small = model(MLP.format(t="float"))
    facts = emit.emit(small, job(small), tmp_path)

    assert "Input x takes N from 1 to 32, and is tuned for N = 8." in facts.notes


def test_a_static_model_needs_no_profile(tmp_path: Path) -> None:
    static = model(MLP.replace("[N,", "[2,").format(t="float"))
    facts = emit.emit(static, job(static), tmp_path)

    assert not any(note.startswith("Input") for note in facts.notes)


def test_a_dimension_without_a_range_is_named(tmp_path: Path) -> None:
    small = model(MLP.format(t="float"))
    inputs = job(small).inputs
    with pytest.raises(RetargetError, match="input 'x': dimension N has no range") as failure:
        emit.emit(small, EmitJob("fp32", inputs, job(small).outputs, {}, Options()), tmp_path)
    assert failure.value.hint == "give it with --shape N=1:8:32"


# ---- options


def test_capabilities_make_different_engines(tmp_path: Path) -> None:
    small = model(MLP.format(t="float"))
    engines = set()
    for index, capabilities in enumerate([(), ("8.9",), ("8.0", "12.0")]):
        out = tmp_path / str(index)
        out.mkdir()
        facts = emit.emit(small, job(small, Options(compute_capability=capabilities)), out)
        engines.add((out / "model.engine").read_bytes())
        said = f"Runs on compute capabilities {', '.join(capabilities) or '8.0 and later'}"
        assert any(note.startswith(said) for note in facts.notes)
    assert len(engines) == 3


@pytest.mark.parametrize("capability", ["9.0", "current", "89", ""])
def test_an_unknown_capability_is_refused_with_the_legal_ones(capability: str, tmp_path: Path) -> None:
    small = model(MLP.format(t="float"))
    with pytest.raises(RetargetError) as failure:
        emit.emit(small, job(small, Options(compute_capability=(capability,))), tmp_path)

    assert failure.value.message.startswith(f"compute_capability: '{capability}' is not one that TensorRT-RTX")
    assert failure.value.hint == "legal values: 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"
    assert list(tmp_path.iterdir()) == []


def test_turing_takes_no_float32_product_and_all_are_listed(tmp_path: Path) -> None:
    turing = Options(compute_capability=("8.9", "7.5"))
    single = model(MLP.format(t="float"))
    refused = [(name, "MatMul", "compute capability 7.5 has no float32 product") for name in ("first", "second")]
    assert emit.check(single, job(single, turing)) == refused
    with pytest.raises(Unsupported, match=r"cannot take 2 nodes:\n  first .*\n  second "):
        emit.emit(single, job(single, turing), tmp_path)

    half = model(MLP.format(t="float16"))
    assert emit.check(half, job(half, turing)) == []
    emit.emit(half, job(half, turing), tmp_path)


def test_a_node_that_the_builder_names_is_refused_by_its_name(tmp_path: Path) -> None:
    small = model(MLP.format(t="float"))
    unguarded = Builder(TENSORRT_RTX, emit.configure, lambda network, options: [])
    with pytest.raises(Unsupported, match=r"  first \(MatMul\): .*'first' for Turing \(SM75\): FP32 GEMM"):
        unguarded.emit(small, job(small, Options(compute_capability=("7.5",))), tmp_path)


def test_turing_takes_float32_convolutions(tmp_path: Path) -> None:
    conv = model("g (float[N,3,8,8] x, float[4,3,3,3] w) => (float[N,4,6,6] y) { [conv] y = Conv(x, w) }")
    turing = job(conv, Options(compute_capability=("7.5",)))
    assert emit.check(conv, turing) == []
    emit.emit(conv, turing, tmp_path)


def test_float32_is_float32_unless_tf32_is_asked_for(tmp_path: Path) -> None:
    small = model(MLP.format(t="float"))
    said = {}
    for name, options in (("strict", Options()), ("tf32", Options(tf32=True))):
        (tmp_path / name).mkdir()
        facts = emit.emit(small, job(small, options), tmp_path / name)
        said[name] = any("TF32" in note for note in facts.notes)

    assert said == {"strict": False, "tf32": True}
    assert (tmp_path / "strict/model.engine").read_bytes() != (tmp_path / "tf32/model.engine").read_bytes()


def test_too_little_workspace_fails_with_the_builder_s_words(tmp_path: Path) -> None:
    small = model(MLP.format(t="float"))
    with pytest.raises(ToolchainFailure, match=r"could not build an engine: .*within workspace limit"):
        emit.emit(small, job(small, Options(workspace_mib=1)), tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- refusals


def test_every_node_that_the_parser_refuses_is_listed() -> None:
    bad = model(
        """g (float[2,4,4] x) => (float[2] y, float[k] u) {
            [det] a = Det(x)
            b = Relu(a)
            c = com.microsoft.FusedMatMul(b, b)
            [unique] u = Unique(x)
            [strange] y = Foo(c)
        }""",
        domains=("com.microsoft",),
    )
    unknown = "the parser does not know this operator, and there is no plugin of its name"
    assert emit.check(bad, job(bad)) == [
        ("det", "Det", "the parser does not take this operator"),
        ("FusedMatMul_2", "FusedMatMul", unknown),
        ("unique", "Unique", "the parser does not take this operator"),
        ("strange", "Foo", unknown),
    ]


def test_an_importer_s_own_error_is_given_to_the_node_that_it_imported() -> None:
    bad = model(
        """g (float[4] x, int64[2] i, float[2] u) => (float[4] y) {
            [scatter] y = ScatterElements <reduction = "mul"> (x, i, u)
        }"""
    )
    assert emit.check(bad, job(bad)) == [
        ("scatter", "ScatterElements", "Unsupported reduction type [UNSUPPORTED_NODE_ATTR]")
    ]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            "IBuilder::build: Error Code 4: API Usage Error (x is missing. In validate at /a/b.cpp:81)",
            "x is missing",
        ),
        (
            "IBuilder::build: Error Code 1: Myelin ([pass.cpp:337: check] Cannot compile 'mm'. In compile at /c.cpp:2)",
            "Cannot compile 'mm'",
        ),
        ('(a == "b" || false) && "only a, b and " "c are taken"', "only a, b and c are taken"),
        ("Assertion failed: f(g) == 3: plugin 1 was not found.", "plugin 1 was not found."),
        ("onnxOpImporters.cpp:1980: Defaulting to INT8 instead.", "Defaulting to INT8 instead."),
    ],
)
def test_messages_are_made_readable(raw: str, said: str) -> None:
    from retarget.targets.tensorrt.network import readable

    assert readable(raw) == said


def test_emit_refuses_what_check_refuses(tmp_path: Path) -> None:
    bad = model("g (float[2,4,4] x) => (float[2] y) { [det] y = Det(x) }")
    with pytest.raises(Unsupported, match=r"tensorrt_rtx cannot take 1 node:\n  det \(Det\): the parser does not take"):
        emit.emit(bad, job(bad), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_operators_that_crash_or_fail_in_the_builder_are_refused_before_it() -> None:
    attention = model(
        "g (float[N,2,8,16] q) => (float[N,2,8,16] y) { [att] a = Attention(q, q, q) y = Attention(a, a, a) }"
    )
    reasons = emit.check(attention, job(attention))
    # A node without a name is called after its output.
    assert [(name, op) for name, op, _ in reasons] == [("att", "Attention"), ("y", "Attention")]
    assert all("crashes" in reason for _, _, reason in reasons)


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("g (int16[N,4] x) => (int16[N,4] y) { y = Identity(x) }", "x", "no counterpart in TensorRT"),
        ("g (uint8[N,4] x) => (uint8[N,4] y) { [mul] y = Mul(x, x) }", "mul", "type is UInt8"),
        ("g (float[4,4] x, int64[2] s) => (float[a,b] y) { y = Reshape(x, s) }", "s", "its values are a shape"),
        ("g (float[N,4] x) => (float8e4m3fn[N,4] y) { y = Cast <to = 17> (x) }", "y", "output cannot be float8"),
    ],
)
def test_inputs_and_types_that_no_engine_can_have(text: str, place: str, reason: str) -> None:
    bad = model(text)
    reasons = emit.check(bad, job(bad))
    assert [(name, reason in why) for name, _, why in reasons] == [(place, True)]


def test_uint8_codes_are_not_silently_taken_for_int8() -> None:
    quantized = model(
        """g (float[N,4] x) => (float[N,4] y) {
            s = Constant <value = float {0.1}> ()
            z = Constant <value = uint8 {0}> ()
            [q] c = QuantizeLinear(x, s, z)
            [dq] y = DequantizeLinear(c, s, z)
        }"""
    )
    reasons = emit.check(quantized, job(quantized))
    assert [(name, op) for name, op, _ in reasons] == [("q", "QuantizeLinear"), ("dq", "DequantizeLinear")]
    assert all("Defaulting to INT8" in reason for _, _, reason in reasons)


def test_float64_is_said_to_be_computed_in_float32(tmp_path: Path) -> None:
    double = model("g (double[N,4] x) => (double[N,4] y) { y = Relu(x) }")
    facts = emit.emit(double, job(double), tmp_path)

    assert [entry.artifact_dtype for entry in facts.inputs + facts.outputs] == ["float32", "float32"]
    assert any("float64 is computed in float32" in note for note in facts.notes)


def test_an_input_that_is_an_output_keeps_the_user_s_name(tmp_path: Path) -> None:
    through = model("g (float[N,4] x, float[N,2] unused) => (float[N,4] y, float[N,4] x) { y = Relu(x) }")
    facts = emit.emit(through, job(through), tmp_path)

    assert [entry.name for entry in facts.inputs] == ["x", "unused"]
    assert [entry.name for entry in facts.outputs] == ["y", "x"]
    names = [entry.artifact_name for entry in facts.inputs + facts.outputs]
    assert len(set(names)) == 4


def test_weights_beyond_the_inline_limit_go_through_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = model(CNN.format(t="float"))
    (tmp_path / "inline").mkdir()
    (tmp_path / "file").mkdir()
    emit.emit(small, job(small), tmp_path / "inline")
    monkeypatch.setattr(graph, "INLINE_LIMIT", 16)
    facts = emit.emit(small, job(small), tmp_path / "file")

    assert facts.precision.weights == "float32"
    assert [path.name for path in (tmp_path / "file").iterdir()] == ["model.engine"]
    assert (tmp_path / "inline/model.engine").read_bytes() == (tmp_path / "file/model.engine").read_bytes()


# ---- execution


@pytest.mark.skipif(tensorrt_rtx.not_executable() is None, reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_executed(tmp_path: Path) -> None:
    small = model(MLP.format(t="float"))
    facts = emit.emit(small, job(small), tmp_path)

    assert tensorrt_rtx.not_executable() == "no NVIDIA GPU on this machine"
    with pytest.raises(MissingToolchain, match="no NVIDIA GPU on this machine"):
        run.open(tmp_path, facts, parity=True, threads=1)


@pytest.mark.gpu
@pytest.mark.skipif(tensorrt_rtx.not_executable() is not None, reason=str(tensorrt_rtx.not_executable()))
@pytest.mark.parametrize(("element", "tolerance"), [("float", 1e-5), ("float16", 2e-2)])
def test_with_a_gpu_an_engine_computes_what_onnx_runtime_does(element: str, tolerance: float, tmp_path: Path) -> None:
    from retarget.session import Session

    small = model(CNN.format(t=element))
    facts = emit.emit(small, job(small), tmp_path)
    rng = np.random.default_rng(1)
    dtype = facts.inputs[0].artifact_dtype
    with run.open(tmp_path, facts, parity=True, threads=1) as engine, Session(small) as reference:
        for batch in (1, 8, 32, 3):
            feeds: dict[str, Array] = {"image": rng.standard_normal((batch, 3, 16, 16)).astype(dtype)}
            expected = reference.run(feeds)["logits"].astype("float32")
            actual = engine.run(feeds)["logits"]
            assert actual.shape == (batch, 10)
            np.testing.assert_allclose(actual.astype("float32"), expected, atol=tolerance)
        with pytest.raises(ToolchainFailure, match="does not take the shape"):
            engine.run({"image": rng.standard_normal((33, 3, 16, 16)).astype(dtype)})
