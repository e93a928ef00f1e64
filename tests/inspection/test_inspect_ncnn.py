"""Networks of ncnn as `retarget inspect` shows them, of a model whose counts are known."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import target_testing

from retarget import catalog
from retarget.errors import RetargetError
from retarget.inspection import inspect
from retarget.spec import TensorSpec

MODEL = """g (float[N,3,8,8] image, float[4,3,3,3] w_c, float[144,40] w_fc) => (float[N,40] logits) {
    c = Conv (image, w_c)
    r = Relu(c)
    f = Flatten(r)
    logits = MatMul(f, w_fc)
}"""
WEIGHTS = 4 * 27 + 144 * 40
MACS = 27 * 4 * 36 + 144 * 40


def emitted(out: Path, precision: str = "fp32") -> Path:
    model: ir.Model = target_testing.model(MODEL)
    catalog.target_emit("ncnn").emit(model, target_testing.job("ncnn", model, precision), out)
    return out / "model.ncnn.param"


def test_a_network_says_what_is_in_it(tmp_path: Path) -> None:
    path = emitted(tmp_path)
    seen = inspect(path)
    assert seen.what == "ncnn network"
    assert seen.version is not None
    assert seen.version.startswith("text param 7767517, for ncnn 1.")
    assert seen.inputs == (TensorSpec("image", "float32", ("N", 3, 8, 8)),)
    assert seen.outputs == (TensorSpec("logits", "float32", ("N", 40)),)
    assert seen.ops["Convolution"] == seen.ops["InnerProduct"] == 1
    assert seen.nodes == sum(seen.ops.values())
    assert (seen.parameters, seen.weights) == (WEIGHTS, {"float32": 4 * WEIGHTS})
    (size,) = seen.macs_at.values()
    assert (seen.macs, seen.macs_at, seen.compute) == (size * MACS, {"N": size}, {"float32": size * MACS})
    assert (
        f"multiply-accumulates are those of the blobs in tensors.json, at N={size}: `opt`, or a size near it that"
        " is told from other dims"
    ) in seen.notes
    assert (
        "'image' is the blob 'image', float32: n = N (axis 0), c = 3 (axis 1), h = 8 (axis 2), w = 8 (axis 3)"
        in seen.notes
    )
    assert seen.bytes == sum(
        (tmp_path / name).stat().st_size for name in ("model.ncnn.param", "model.ncnn.bin", "model.ncnn.json")
    )
    for other in (tmp_path, tmp_path / "model.ncnn.bin"):
        again = inspect(other)
        assert (again.ops, again.weights, again.inputs) == (seen.ops, seen.weights, seen.inputs)


def test_weights_of_16_bits_are_seen(tmp_path: Path) -> None:
    seen = inspect(emitted(tmp_path, "fp16"))
    assert seen.weights == {"float16": 2 * WEIGHTS}
    assert set(seen.compute) == {"float32"}


def test_files_that_retarget_did_not_write_say_what_they_do(tmp_path: Path) -> None:
    path = emitted(tmp_path)
    (tmp_path / "model.ncnn.json").unlink()
    (tmp_path / "tensors.json").unlink()
    seen = inspect(path)
    assert [spec.name for spec in seen.inputs] == ["image"]
    assert seen.outputs == (TensorSpec("logits", "float32", ()),)
    assert (seen.parameters, seen.macs) == (WEIGHTS, None)
    (tmp_path / "model.ncnn.bin").unlink()
    seen = inspect(path)
    assert seen.weights == {}
    assert seen.notes == ("its weights are missing: there is no model.ncnn.bin beside it",)


def test_what_is_damaged_is_one_clear_line(tmp_path: Path) -> None:
    path = emitted(tmp_path)
    weights = (tmp_path / "model.ncnn.bin").read_bytes()
    (tmp_path / "model.ncnn.bin").write_bytes(weights[:-100])
    with pytest.raises(
        RetargetError, match=r"not the weights of the param file: it ends within what '\S+' \(InnerProduct\)"
    ):
        inspect(path)
    (tmp_path / "model.ncnn.bin").write_bytes(weights + bytes(8))
    with pytest.raises(RetargetError, match="not the weights of the param file: 8 bytes are left over"):
        inspect(path)
    (tmp_path / "model.ncnn.bin").write_bytes(b"1234" + weights[4:])
    with pytest.raises(RetargetError, match=r"'\S+' \(Convolution\) finds the tag 0x34333231, which says of no type"):
        inspect(path)
    path.write_text(path.read_text().rsplit("\n", 2)[0] + "\n")
    with pytest.raises(RetargetError, match=r"not a text param file of ncnn: it has \d+ layers, and says \d+"):
        inspect(path)
    path.write_text("7767517\n2 x\nInput\n")
    with pytest.raises(RetargetError, match="not a text param file of ncnn"):
        inspect(path)
    path.write_bytes((7767517).to_bytes(4, "little") * 4)
    with pytest.raises(RetargetError, match="a binary param file, which has no names"):
        inspect(path)


@pytest.mark.parametrize(
    "line", ["Input x 0 0", "Input x 0 1 x 0=wide", "Input x 0 1 x 0=1.5", "Input x 0 1 x -23300=2,1,2"]
)
def test_an_input_that_is_none_is_one_clear_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "model.param"
    path.write_text(f"7767517\n1 1\n{line}\n")
    with pytest.raises(RetargetError, match=r"model\.param: an Input in it is not one of ncnn's"):
        inspect(path)
