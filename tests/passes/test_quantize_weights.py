from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from retarget import graph
from retarget.compare import snr_db
from retarget.errors import RetargetError
from retarget.passes.pick_codes import PickCodes
from retarget.passes.quantize_weights import QuantizeWeights, block_scales
from retarget.session import Session

Floats = NDArray[np.float32]

PRODUCT = "g (float[N,64] x, float[64,48] w) => (float[N,48] y) { [product] y = MatMul(x, w) }"
TURNED = """g (float[N,64] x, float[48,64] w, float[48] b) => (float[N,48] y) {
    [product] y = Gemm <transB = 1> (x, w, b)
}"""
TABLE = "g (int64[N,T] ids, float[97,48] w) => (float[N,T,48] y) { [table] y = Gather(w, ids) }"
TIED = """g (int64[N,T] ids, float[64,64] w, int64[2] shape) => (float[N,T,64] y, float[a,64] z) {
    [table] h = Gather(w, ids)
    [head] y = MatMul(h, w)
    [again] r = Reshape(h, shape)
    [third] z = Gemm <transB = 1> (r, w)
}"""


def model(text: str, scale: float = 1.0, **constants: NDArray[np.int64]) -> ir.Model:
    """The graph of ``text``; its float inputs but ``x`` become random initializers."""
    parsed = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {graph.OPSET}]>\n{text}')
    rng = np.random.default_rng(0)
    for value in list(parsed.graph.inputs):
        name = value.name or ""
        if name in constants or name in ("w", "b", "v"):
            shape = graph.static_shape(value, {})
            assert shape is not None
            drawn = (rng.standard_normal(shape) * scale / 4).astype(np.float32)
            value.const_value = ir.tensor(constants.get(name, drawn), name=name)
            parsed.graph.inputs.remove(value)
            parsed.graph.register_initializer(value)
    return parsed


def run(model: ir.Model, optimize: bool = False, **feeds: NDArray[np.generic]) -> dict[str, Floats]:
    with Session(model, optimize=optimize) as session:
        return {name: np.asarray(array, np.float32) for name, array in session.run(feeds).items()}


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def normal(*shape: int) -> Floats:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("text", [PRODUCT, TURNED])
@pytest.mark.parametrize(("bits", "block", "bound"), [(8, 16, 43), (8, 64, 41), (4, 16, 20), (4, 64, 18)])
def test_a_product_keeps_its_output_as_far_as_the_bits_go(text: str, bits: int, block: int, bound: float) -> None:
    before = model(text)
    after = before.clone()
    quantize = QuantizeWeights(8 if bits == 8 else 4, block)
    assert quantize(after).modified
    assert quantize.quantized == ("product",)
    assert quantize.kept == ()
    assert operators(after) == ["DequantizeLinear", "MatMul" if text is PRODUCT else "Gemm"]
    made = after.graph[0]
    # One block is a scale a column.
    assert made.attributes.get_int("block_size", 64) == block
    assert {name: value.dtype for name, value in after.graph.initializers.items() if name != "b"} == {
        f"w_int{bits}": ir.DataType.INT8 if bits == 8 else ir.DataType.INT4,
        "w_scales": ir.DataType.FLOAT,
    }
    x = normal(5, 64)
    assert snr_db(run(before, x=x)["y"], run(after, x=x)["y"]) > bound
    again = QuantizeWeights(8 if bits == 8 else 4, block)
    assert not again(after).modified
    assert again.quantized == ()


def test_onnx_runtime_multiplies_by_the_codes(tmp_path: Path) -> None:
    for text in (PRODUCT, TURNED):
        small = model(text)
        QuantizeWeights(4, 32)(small)
        Session(small, optimize=True, save_optimized=tmp_path / "model.onnx").close()
        assert "DequantizeLinear" not in operators(graph.load(tmp_path / "model.onnx"))


def test_a_scale_is_that_of_the_smallest_error() -> None:
    """Against a search of the whole range, block by block."""
    blocks = np.random.default_rng(0).standard_t(4, (8, 32, 16)).astype(np.float32)

    def error(scales: Floats) -> Floats:
        codes = np.clip(np.rint(blocks / scales[:, None]), -8, 7)
        return np.asarray(np.square(codes * scales[:, None] - blocks).sum(1), np.float32)

    largest = np.abs(blocks).max(1)
    found = error(block_scales(blocks, 4))
    least = np.min([error(largest / divisor) for divisor in np.linspace(4, 16, 400, dtype=np.float32)], axis=0)
    assert found.sum() < 1.02 * least.sum()
    assert found.sum() < 0.9 * error(largest / np.float32(7)).sum()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_size_of_weights_does_not_matter(bits: int) -> None:
    for scale in (1e-30, 1e30):
        before = model(PRODUCT, scale)
        after = before.clone()
        QuantizeWeights(8 if bits == 8 else 4)(after)
        x = normal(3, 64)
        wanted, got = (run(each, x=x)["y"].astype(np.float64) / scale for each in (before, after))
        assert snr_db(wanted, got) > (41 if bits == 8 else 18)


def test_weights_of_zeros_stay_zeros() -> None:
    zeros = model(PRODUCT, 0.0)
    QuantizeWeights(4)(zeros)
    assert not run(zeros, x=normal(3, 64))["y"].any()


@pytest.mark.parametrize(("inner", "bits", "blocks"), [(48, 8, 3), (48, 4, 3), (40, 8, 0), (100, 8, 0)])
def test_blocks_divide_the_inner_axis(inner: int, bits: int, blocks: int) -> None:
    """A block of 32 becomes one of 16, and one scale a column where not even that divides."""
    text = PRODUCT.replace("64", str(inner))
    before = model(text)
    after = before.clone()
    QuantizeWeights(8 if bits == 8 else 4)(after)
    scales = after.graph.initializers["w_scales"].shape
    assert scales == ((blocks, 48) if blocks else (48,))
    x = normal(3, inner)
    assert snr_db(run(before, x=x)["y"], run(after, x=x)["y"]) > (40 if bits == 8 else 19)


def test_a_table_is_picked_from_before_it_is_dequantized() -> None:
    before = model(TABLE)
    after = before.clone()
    QuantizeWeights(4)(after)
    assert operators(after) == ["DequantizeLinear", "Gather"]
    assert after.graph.initializers["w_int8"].dtype == ir.DataType.INT8
    picked = after.clone()
    assert PickCodes()(picked).modified
    assert operators(picked) == ["Gather", "Gather", "DequantizeLinear", "Mul"]
    assert picked.graph.outputs[0].name == "y"
    ids = np.arange(97).reshape(1, 97)[:, ::-1]
    expected = run(before, ids=ids)["y"]
    assert snr_db(expected, run(after, ids=ids)["y"]) > 40
    np.testing.assert_allclose(run(picked, ids=ids)["y"], run(after, ids=ids)["y"], rtol=1e-6)
    assert not PickCodes()(picked).modified


@pytest.mark.parametrize(
    ("codes", "scales", "zero", "axis", "reason"),
    [
        ("int8[97,48]", "float[48]", None, 1, "not those of rows"),
        ("int8[97,48]", "float", None, 0, "not those of rows"),
        ("int8[97,48]", "float[97]", np.ones(97, np.int8), 0, "zero points"),
    ],
)
def test_a_table_with_other_scales_is_left(
    codes: str, scales: str, zero: NDArray[np.int8] | None, axis: int, reason: str
) -> None:
    zero_input, zero_operand = ("", "") if zero is None else (", int8[97] z", ", z")
    text = f"""g (int64[N] ids, {codes} c, {scales} s{zero_input}) => (float[N,48] y) {{
        d = DequantizeLinear <axis = {axis}> (c, s{zero_operand})
        y = Gather(d, ids)
    }}"""
    made = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {graph.OPSET}]>\n{text}')
    arrays = {"c": np.ones((97, 48), np.int8), "z": zero}
    for value in list(made.graph.inputs):
        if value.name != "ids":
            shape = graph.static_shape(value, {}) or ()
            array = arrays.get(value.name or "", np.ones(shape, np.float32))
            assert array is not None
            value.const_value = ir.tensor(array, name=value.name)
            made.graph.inputs.remove(value)
            made.graph.register_initializer(value)
    pick = PickCodes()
    assert not pick(made).modified
    assert reason in pick.refused[0][1]


def test_a_shared_weight_has_codes_for_each_way_it_is_read() -> None:
    before = model(TIED, shape=np.array([-1, 64]))
    after = before.clone()
    quantize = QuantizeWeights(8)
    quantize(after)
    assert quantize.quantized == ("table", "head", "third")
    assert "w" not in after.graph.initializers
    ids = np.arange(64).reshape(2, 32)
    wanted, got = run(before, ids=ids), run(after, ids=ids)
    assert all(snr_db(wanted[name], got[name]) > 30 for name in wanted)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PRODUCT.replace("64", "16"), "its weight is small: 768 elements"),
        (PRODUCT.replace("64", "40"), "its 40 inputs are no whole number of blocks"),
        (
            "g (float[N,64] x, float[3,64,48] w) => (float[3,N,48] y) { [product] y = MatMul(x, w) }",
            "its weight has 3 axes, not 2",
        ),
        (
            "g (float[48,N] x, float[64,48] w) => (float[64,N] y) { [product] y = MatMul(w, x) }",
            "its weight is the left operand",
        ),
        (
            "g (float[64,N] x, float[64,48] w) => (float[N,48] y) { [product] y = Gemm <transA = 1> (x, w) }",
            "its left operand is transposed",
        ),
        (
            "g (float16[N,64] x, float16[64,48] w) => (float16[N,48] y) { [product] y = MatMul(x, w) }",
            "its weight is not float32",
        ),
        (
            "g (int64[N] ids, float[64,48] w) => (float[64,N] y) { [product] y = Gather <axis = 1> (w, ids) }",
            "it picks columns, and scales are those of rows",
        ),
        (
            "g (float[N,8,9,9] x, float[16,8,3,3] w) => (float[N,16,7,7] y) { [product] y = Conv(x, w) }",
            "no runtime computes Conv with weights in few bits",
        ),
    ],
)
def test_what_stays_float_says_why(text: str, reason: str) -> None:
    small = model(text)
    if "float16" in text:
        weight = small.graph.initializers["w"]
        assert weight.const_value is not None
        weight.const_value = ir.tensor(weight.const_value.numpy().astype(np.float16), name="w")
    before = operators(small)
    quantize = QuantizeWeights(4)
    assert not quantize(small).modified
    assert [(kept.name, kept.reason) for kept in quantize.kept] == [("product", reason)]
    assert operators(small) == before


@pytest.mark.parametrize("keep", ["head", "MatMul"])
def test_what_is_to_be_kept_is_kept(keep: str) -> None:
    tied = model(TIED, shape=np.array([-1, 64]))
    quantize = QuantizeWeights(8, keep=[keep])
    quantize(tied)
    assert quantize.quantized == ("table", "third")
    assert [(kept.name, kept.reason) for kept in quantize.kept] == [("head", "it is to be kept")]
    assert "w" in tied.graph.initializers


def test_weights_without_constants_are_nobodys_business() -> None:
    text = "g (float[N,64] x, float[64,48] w2) => (float[N,48] y) { [product] y = MatMul(x, w2) }"
    quantize = QuantizeWeights(4)
    assert not quantize(model(text)).modified
    assert quantize.kept == ()


def test_codes_are_made_when_they_are_read_and_stored_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "INLINE_LIMIT", 1000)
    big = model(PRODUCT.replace("48", "4096"))
    graph.save(big, tmp_path / "float.onnx")
    mapped = graph.load(tmp_path / "float.onnx")
    QuantizeWeights(4, 32)(mapped)
    codes = mapped.graph.initializers["w_int4"].const_value
    assert isinstance(codes, ir.LazyTensor)
    graph.save(mapped, tmp_path / "int4.onnx")
    elements = 64 * 4096
    assert (tmp_path / "int4.onnx.data").stat().st_size < 1.1 * (elements / 2 + elements / 32 * 4)
    x = normal(3, 64)
    np.testing.assert_array_equal(run(graph.load(tmp_path / "int4.onnx"), x=x)["y"], run(mapped, x=x)["y"])
    assert snr_db(run(big, x=x)["y"], run(mapped, x=x)["y"]) > 19


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        (PRODUCT, 1),
        (TURNED, 1),
        ("g (float[N,16,9] x, float[32,8,5] w) => (float[N,32,5] y) { [product] y = Conv<group = 2>(x, w) }", 0),
        ("g (float[N,16,9,9] x, float[32,16,3,3] w, float[32] b) => (y) { [product] y = Conv(x, w, b) }", 0),
        ("g (float[N,16,9,9] x, float[64,1,5,5] w) => (y) { [product] y = Conv<group = 16>(x, w) }", 0),
        ("g (float[N,16,5,5] x, float[16,8,3,3] w) => (y) { [product] y = ConvTranspose<strides = [2,2]>(x, w) }", 1),
    ],
    ids=["MatMul", "Gemm", "Conv1d", "Conv2d", "depthwise", "ConvTranspose"],
)
def test_without_blocks_an_output_channel_has_a_scale(text: str, axis: int) -> None:
    before = model(text)
    weight = before.graph.initializers["w"].const_value
    assert weight is not None
    held = np.asarray(weight.numpy(), np.float32)
    turned = held.T if "transB" in text else held
    shape = graph.static_shape(before.graph.inputs[0], {"N": 2})
    assert shape is not None
    x = normal(*shape)
    expected = run(before, x=x)
    found = model(text)
    quantize = QuantizeWeights(8, None)
    assert quantize(found).modified
    assert quantize.quantized == ("product",)
    dequantize = found.graph[0]
    assert dequantize.op_type == "DequantizeLinear"
    assert dequantize.attributes.get_int("axis", 1) == axis
    assert "block_size" not in dequantize.attributes
    codes, scales = (value.const_value.numpy() for value in dequantize.inputs[:2] if value and value.const_value)
    others = tuple(at for at in range(turned.ndim) if at != axis)
    np.testing.assert_allclose(scales, np.abs(turned).max(others) / 127, rtol=1e-6)
    along = [-1 if at == axis else 1 for at in range(turned.ndim)]
    np.testing.assert_array_equal(codes, np.rint(turned / scales.reshape(along)).astype(np.int8))
    assert snr_db(expected["y"], run(found, x=x)["y"]) > 38
    assert not QuantizeWeights(8, None)(found).modified


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TABLE, "its rows are picked and not multiplied"),
        ("g (float[N,16,5,5,5] x, float[8,16,3,3,3] w) => (y) { y = Conv(x, w) }", "its weight has 5 axes, not 3 or 4"),
        (
            "g (float[N,16,5,5] x, float[16,16,3,3] w) => (y) { y = ConvTranspose<group = 2>(x, w) }",
            "it is a transposed convolution in groups",
        ),
        ("g (float[N,16,5,5] x, float[4,16,3,3] w) => (y) { y = Conv(x, w) }", "its weight is small: 576 elements"),
    ],
)
def test_without_blocks_what_no_kernel_takes_stays_float(text: str, reason: str) -> None:
    found = model(text)
    quantize = QuantizeWeights(8, None)
    assert not quantize(found).modified
    assert [one.reason for one in quantize.kept] == [reason]


@pytest.mark.parametrize(("bits", "block", "said"), [(5, 32, "5 bits"), (8, 24, "24 weights"), (4, 8, "8 weights")])
def test_options_that_no_runtime_has_are_refused(bits: int, block: int, said: str) -> None:
    with pytest.raises(RetargetError, match=said):
        QuantizeWeights(bits, block)  # type: ignore[arg-type]
