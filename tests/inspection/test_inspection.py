"""Inspection: every kind of file on one known model, and what is damaged or unknown."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from retarget.calibration.observers import Observer
from retarget.calibration.ranges import Ranges
from retarget.errors import RetargetError
from retarget.facts import EmitFacts, IoEntry, Precision
from retarget.inspection import Inspection, inspect
from retarget.spec import TensorSpec
from retarget.store import FileEntry, Manifest

IMAGE = TensorSpec("image", "float32", ("N", 3, 8, 8))


def model(dtype: type[np.generic] = np.float32, batch: int | str = "N") -> onnx.ModelProto:
    """3x3 convolution to 4 channels without padding, flattened, times a [144, 10] matrix."""
    rng = np.random.default_rng(0)
    code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = {"w": (4, 3, 3, 3), "fc": (144, 10)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w"], ["c"], "conv"),
            helper.make_node("Relu", ["c"], ["r"], "relu"),
            helper.make_node("Flatten", ["r"], ["f"], "flat"),
            helper.make_node("MatMul", ["f", "fc"], ["logits"], "fc"),
        ],
        "g",
        [helper.make_tensor_value_info("image", code, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", code, [batch, 10])],
        [numpy_helper.from_array(rng.standard_normal(shape).astype(dtype), name) for name, shape in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10, producer_name="a test")


PARAMETERS = 4 * 27 + 144 * 10
MACS = 27 * 4 * 36 + 144 * 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(model(), tmp_path / "some.onnx")
    return tmp_path


def test_an_onnx_model(folder: Path) -> None:
    seen = inspect(folder / "some.onnx")

    assert seen.what == "ONNX model"
    assert seen.version == "opset 23, IR 10, made by a test"
    assert seen.bytes == (folder / "some.onnx").stat().st_size
    assert seen.inputs == (IMAGE,)
    assert seen.outputs == (TensorSpec("logits", "float32", ("N", 10)),)
    assert seen.nodes == 4
    assert seen.ops == {"Conv": 1, "Flatten": 1, "MatMul": 1, "Relu": 1}
    assert seen.parameters == PARAMETERS
    assert seen.weights == {"float32": 4 * PARAMETERS}
    assert (seen.macs, seen.macs_at) == (MACS, {"N": 1})
    assert seen.compute == {"float32": MACS}
    assert seen.notes == ()


def test_the_same_in_float16_with_external_data(tmp_path: Path) -> None:
    onnx.save(
        model(np.float16), tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    seen = inspect(tmp_path / "m.onnx")

    assert seen.weights == {"float16": 2 * PARAMETERS}
    assert seen.compute == {"float16": MACS}
    assert seen.bytes == sum((tmp_path / name).stat().st_size for name in ("m.onnx", "weights.bin"))


def test_a_batch_without_a_name_is_counted_as_well(tmp_path: Path) -> None:
    proto = model()
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].Clear()
    onnx.save(proto, tmp_path / "m.onnx")
    seen = inspect(tmp_path / "m.onnx")

    assert seen.inputs[0].shape == ("image_dim0", 3, 8, 8)
    assert (seen.macs, seen.macs_at) == (MACS, {"image_dim0": 1})


def test_quantized_compute_is_that_of_the_codes(tmp_path: Path) -> None:
    codes = [
        numpy_helper.from_array(np.ones((16, 4), np.int8), "w"),
        numpy_helper.from_array(np.array(0.5, np.float32), "s"),
        numpy_helper.from_array(np.array(0, np.uint8), "zx"),
        numpy_helper.from_array(np.array(0, np.int8), "zw"),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "zx"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "zx"], ["dx"]),
            helper.make_node("DequantizeLinear", ["w", "s", "zw"], ["dw"]),
            helper.make_node("MatMul", ["dx", "dw"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        codes,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), tmp_path / "q.onnx")
    seen = inspect(tmp_path / "q.onnx")

    assert seen.compute == {"uint8": 2 * 16 * 4}
    assert next(iter(seen.weights)) == "int8"


def test_quantized_compute_in_openvino_is_that_of_the_integers(tmp_path: Path) -> None:
    """One product of dequantized factors, and one whose other factor is float."""
    from retarget.targets.openvino.runtime import openvino

    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[2,8] x) => (float[2,4] y, float[2,6] z)
          <float s = {0.1}, uint8 zero = {100}, float ws = {0.01}, int8 wzero = {0}> {
          q = QuantizeLinear(x, s, zero)
          d = DequantizeLinear(q, s, zero)
          wd = DequantizeLinear(w, ws, wzero)
          y = MatMul(d, wd)
          z = MatMul(d, v)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, array in (
        ("w", rng.integers(-127, 128, (8, 4)).astype("i1")),
        ("v", rng.normal(size=(8, 6)).astype("f")),
    ):
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "m.onnx")
    openvino.save_model(openvino.Core().read_model(tmp_path / "m.onnx"), tmp_path / "m.xml", compress_to_fp16=False)
    found = inspect(tmp_path / "m.xml")
    assert found.compute == {"float32": 2 * 8 * 6, "uint8": 2 * 8 * 4}


def test_an_openvino_model_says_the_same(folder: Path) -> None:
    from retarget.targets.openvino.runtime import openvino

    for name, compress in (("fp32", False), ("fp16", True)):
        ir = openvino.Core().read_model(folder / "some.onnx")
        openvino.save_model(ir, folder / name / "m.xml", compress_to_fp16=compress)
    plain, small = inspect(folder / "fp32/m.xml"), inspect(folder / "fp16/m.xml")

    assert plain.what == "OpenVINO model"
    assert plain.version == "IR 11"
    assert plain.inputs == (TensorSpec("image", "float32", ("dim0", 3, 8, 8)),)
    assert plain.outputs == (TensorSpec("logits", "float32", ("dim0", 10)),)
    assert plain.ops["Convolution"] == plain.ops["MatMul"] == 1
    assert (plain.macs, plain.macs_at) == (MACS, {"dim0": 1})
    assert plain.weights["float32"] == 4 * PARAMETERS
    assert plain.bytes == sum(path.stat().st_size for path in (folder / "fp32").iterdir())
    # Stored in half of the bytes, and still computed in float32 as far as the file says.
    assert small.weights["float16"] == 2 * PARAMETERS
    assert small.compute == {"float32": MACS}

    (folder / "fp32/m.bin").unlink()
    assert "its weights are missing: there is no m.bin beside it" in inspect(folder / "fp32/m.xml").notes


def safetensors(path: Path, tensors: dict[str, tuple[str, list[int], int]], *, cut: int = 0) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset - cut))


def test_a_safetensors_file_lists_its_tensors_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safetensors(path, {"fc.weight": ("F16", [10, 4], 80), "fc.bias": ("F32", [10], 40), "step": ("I64", [], 8)})
    seen = inspect(path)

    assert seen.what == "PyTorch checkpoint (safetensors)"
    assert seen.parameters == 51
    assert seen.weights == {"float16": 80, "float32": 40, "int64": 8}
    assert [str(spec) for spec in seen.tensors] == ["fc.weight=float16[10,4]", "fc.bias=float32[10]", "step=int64[]"]
    assert any("--factory" in note for note in seen.notes)


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    safetensors(tmp_path / "model.safetensors", {"w": ("BF16", [2, 3], 12)})
    seen = inspect(tmp_path)

    assert seen.what == "PyTorch checkpoint (Hugging Face folder)"
    assert seen.weights == {"bfloat16": 12}
    assert seen.notes == ("model type: bert", "architecture: BertModel")


def test_a_pickled_module_is_told_from_a_state_dict_and_neither_is_unpickled(tmp_path: Path) -> None:
    import torch

    layer = torch.nn.Linear(2, 2)
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    torch.save(layer, tmp_path / "module.pt")

    assert inspect(tmp_path / "state.pt").what == "PyTorch checkpoint (state dict)"
    seen = inspect(tmp_path / "module.pt")
    assert seen.what == "PyTorch checkpoint (pickled module)"
    assert any("--trust" in note for note in seen.notes)


def test_an_engine_without_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.engine").write_bytes(b"vtrt" + bytes(60))
    (tmp_path / "b.plan").write_bytes(b"else" + bytes(60))

    assert inspect(tmp_path / "a.engine").what == "TensorRT-RTX engine"
    assert inspect(tmp_path / "b.plan").what == "TensorRT engine"
    assert inspect(tmp_path / "a.engine").inputs == ()


# ---- artifacts


def artifact(folder: Path) -> Path:
    """An emitted engine with its manifest, as the store writes it."""
    out = folder / "tensorrt_rtx/fp16"
    out.mkdir(parents=True)
    content = b"vtrt" + bytes(100)
    (out / "model.engine").write_bytes(content)
    facts = EmitFacts(
        target="tensorrt_rtx",
        variant_precision="fp16",
        inputs=(IoEntry(name="image", artifact_name="__image", spec=IMAGE, artifact_dtype="float32"),),
        outputs=(
            IoEntry(
                name="y",
                artifact_name="y",
                spec=TensorSpec.parse("y=float32[N,3,4,4]"),
                artifact_dtype="float32",
                permutation=(0, 2, 3, 1),
            ),
        ),
        sizes={"N": 8},
        precision=Precision(weights="float16", activations="float16", io="float32", low_precision_share=0.97),
        notes=("Runs on compute capabilities 8.9 only.",),
    )
    manifest = Manifest(
        schema=1,
        key="0" * 64,
        kind="emit",
        id="emit tensorrt_rtx/fp16",
        versions={"tensorrt_rtx": "1.7.1"},
        files={"model.engine": FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))},
        facts=msgspec.to_builtins(facts),
    )
    (out / "manifest.json").write_bytes(msgspec.json.encode(manifest.sealed()))
    return out


@pytest.mark.parametrize("name", [".", "model.engine"])
def test_an_artifact_says_what_its_manifest_knows(name: str, tmp_path: Path) -> None:
    seen = inspect(artifact(tmp_path) / name)

    assert seen.what == "TensorRT-RTX engine, artifact of emit"
    assert seen.inputs == (IMAGE,)
    assert "step: emit tensorrt_rtx/fp16" in seen.notes
    assert "made by: tensorrt_rtx 1.7.1" in seen.notes
    assert "Runs on compute capabilities 8.9 only." in seen.notes
    assert "'image' is called '__image' and is float32 in the artifact" in seen.notes
    assert "'y' is called 'y' and is float32 in the artifact, its axes are 0, 2, 3, 1 of the given ones" in seen.notes
    assert "takes N=8 alone" in seen.notes
    assert any("weights float16" in note and "97.0 % of the compute below float32" in note for note in seen.notes)


def test_a_damaged_artifact_is_called_damaged(tmp_path: Path) -> None:
    out = artifact(tmp_path)
    (out / "model.engine").write_bytes(b"vtrt")
    assert inspect(out).notes[1] == f"DAMAGED: {out / 'model.engine'}: has 4 bytes, not 104"


# ---- what cannot be inspected


def test_bad_files_are_one_clear_line(folder: Path) -> None:
    whole = (folder / "some.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.xml").write_text('<?xml version="1.0"?>\n<net name="g"><layers>')
    (folder / "other.xml").write_text("<html/>")
    (folder / "bomb.xml").write_text('<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "aaa">]><net>&a;</net>')
    safetensors(folder / "cut.safetensors", {"w": ("F32", [10], 40)}, cut=1)
    (folder / "header.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{")
    (folder / "what.bin").write_bytes(b"nothing")
    for name, said in {
        "cut.onnx": "not a readable ONNX model",
        "cut.xml": "not readable XML",
        "other.xml": "not OpenVINO IR",
        "bomb.xml": "declares a document type",
        "cut.safetensors": "tensor 'w' lies outside the file",
        "header.safetensors": "the header needs",
        "what.bin": "no frontend knows this file",
        "absent.onnx": "no such file",
    }.items():
        with pytest.raises(RetargetError) as failure:
            inspect(folder / name)
        assert failure.value.message.startswith(f"{folder / name}: ")
        assert said in failure.value.message
        assert "\n" not in failure.value.message


def test_a_whole_build_leads_to_its_artifacts(tmp_path: Path) -> None:
    out = artifact(tmp_path)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(RetargetError) as failure:
        inspect(tmp_path)
    assert failure.value.hint == f"inspect one of them: retarget inspect {out}"


# ---- how it is shown


def test_rows_leave_out_what_is_not_known_and_shorten_what_is_long() -> None:
    tensors = tuple(TensorSpec(f"t{index}", "float32", (index + 1,)) for index in range(30))
    seen = Inspection(path="m", what="x", bytes=14_500_000, tensors=tensors, compute={"float16": 971, "float32": 29})
    rows = dict(seen.rows())

    assert rows["size"] == "14.5 MB"
    assert rows["computed in"] == "float16 97.1 %, float32 2.9 %"
    assert rows["tensors"].splitlines()[-1] == "and 6 more (--json shows all)"
    assert "nodes" not in rows
    assert msgspec.json.decode(msgspec.json.encode(seen))["tensors"][29] == {
        "name": "t29",
        "dtype": "float32",
        "shape": [30],
    }


# ---- ranges


def test_ranges(tmp_path: Path) -> None:
    observer = Observer()
    observer.add(np.arange(-100, 101, dtype=np.float32))
    odd = Observer()
    odd.add(np.array([np.nan, np.inf, 2], np.float32))
    Ranges({"image": observer.result(), "c": odd.result()}, samples=5).save(tmp_path)
    for path in (tmp_path, tmp_path / "ranges.json"):
        found = inspect(path)
        assert found.what == "ranges of 2 tensors over 5 samples"
        assert (found.ranges["image"].min, found.ranges["image"].max) == (-100, 100)
        assert (found.ranges["c"].nan_count, found.ranges["c"].inf_count, found.ranges["c"].elements) == (1, 1, 1)
        assert found.notes == ("NaN or infinities arise in c",)
        text = dict(found.rows())["ranges"]
        assert text.startswith("image  -100 to 100 (0.1 %: -100 ")
        assert text.endswith("99.99 %: 2), 1 NaN, 1 infinite")


def test_damaged_ranges(tmp_path: Path) -> None:
    (tmp_path / "ranges.json").write_text("{")
    with pytest.raises(RetargetError, match="not readable ranges"):
        inspect(tmp_path)
