"""Packages as `retarget inspect` shows them, of a model whose counts are known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import onnx_ir as ir
import pytest
import target_testing

from retarget import catalog
from retarget.errors import RetargetError
from retarget.inspection import inspect
from retarget.protocols import EmitJob
from retarget.spec import DimRange, TensorSpec
from retarget.targets.coreml import Classifier, Image, Metadata, Options

MODEL = """g (float[N,3,8,8] image, float[4,3,3,3] w_c, float[144,40] w_fc) => (float[N,40] logits) {
    c = Conv (image, w_c)
    r = Relu(c)
    f = Flatten(r)
    logits = MatMul(f, w_fc)
}"""
WEIGHTS = 4 * 27 + 144 * 40
MACS = 27 * 4 * 36 + 144 * 40


def emitted(out: Path, options: Options, size: DimRange = DimRange(1, 4, 8), precision: str = "fp32") -> Path:  # noqa: B008
    model: ir.Model = target_testing.model(MODEL)
    out.mkdir(exist_ok=True)
    made: EmitJob = target_testing.job("coreml", model, precision)
    catalog.target_emit("coreml").emit(model, dataclasses.replace(made, options=options, shapes={"N": size}), out)
    return out / "model.mlpackage"


def test_a_package_says_what_is_in_it(tmp_path: Path) -> None:
    path = emitted(tmp_path, Options(metadata=Metadata(author="A. Person", description="Finds animals.")))
    seen = inspect(path)
    assert seen.what == "Core ML package"
    assert seen.version == "ML Program for iOS17, specification 8"
    assert seen.inputs == (TensorSpec("image", "float32", ("dim0", 3, 8, 8)),)
    assert seen.outputs == (TensorSpec("logits", "float32", ("dim0", 40)),)
    assert seen.shapes == {"dim0": DimRange(1, 4, 8)}
    assert seen.bytes == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert seen.ops["conv"] == 1
    assert "const" not in seen.ops
    assert seen.nodes == sum(seen.ops.values())
    # A matrix product with a constant may become a layer with a bias.
    assert seen.parameters in (WEIGHTS, WEIGHTS + 40, WEIGHTS + 4, WEIGHTS + 44)
    assert seen.weights == {"float32": 4 * seen.parameters}
    assert (seen.macs, seen.macs_at, seen.compute) == (MACS, {"dim0": 1}, {"float32": MACS})
    assert {"says: Finds animals.", "author: A. Person"} <= set(seen.notes)


def test_images_labels_and_listed_shapes_are_said(tmp_path: Path) -> None:
    options = Options(
        images={"image": Image(color_layout="BGR")}, classifier=Classifier(labels=tuple(map(str, range(40))))
    )
    seen = inspect(emitted(tmp_path / "one", options))
    assert seen.inputs == (TensorSpec("image", "float32", (1, 3, 8, 8)),)
    assert {spec.name: spec.dtype for spec in seen.outputs} == {
        "classLabel": "string",
        "classLabel_probs": "dictionary",
    }
    assert {"'image' is an image, BGR", "a classifier: 'classLabel' is the label"} <= set(seen.notes)
    seen = inspect(emitted(tmp_path / "two", Options(flexible_shapes="enumerated")))
    (listed,) = (note for note in seen.notes if "takes the shapes" in note)
    assert all(f"[{size}, 3, 8, 8]" in listed for size in (1, 4, 8))


def test_compressed_weights_have_the_bits_that_they_take(tmp_path: Path) -> None:
    seen = inspect(emitted(tmp_path / "int8", Options(), precision="int8_weights"))
    whole = inspect(emitted(tmp_path / "fp32", Options()))
    assert seen.parameters is not None
    assert seen.weights["int8"] >= 144 * 40
    assert sum(seen.weights.values()) < sum(whole.weights.values()) / 2


def test_what_is_damaged_or_of_an_older_kind_is_one_clear_line(tmp_path: Path) -> None:
    path = emitted(tmp_path, Options())
    manifest = json.loads((path / "Manifest.json").read_text())
    (path / "Manifest.json").write_text(json.dumps({**manifest, "rootModelIdentifier": "none"}))
    with pytest.raises(RetargetError, match=r"Manifest.json: it does not name the model's specification"):
        inspect(path)
    (path / "Manifest.json").unlink()
    with pytest.raises(RetargetError, match=r"Manifest.json: No such file"):
        inspect(path)
    (tmp_path / "old.mlmodel").write_bytes(b"\x08\x01")
    with pytest.raises(RetargetError, match=r"old.mlmodel: a Core ML model of one file holds no ML Program"):
        inspect(tmp_path / "old.mlmodel")
