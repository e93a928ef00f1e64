"""Whose a file is: told by content, whatever it is called, by exactly one frontend; and what is said of the rest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from every_form import FORMS, written

from retarget import catalog
from retarget.errors import RetargetError
from retarget.inspection import inspect
from retarget.recognise import recognise

pytestmark = pytest.mark.filterwarnings("ignore")  # of the frameworks, about each other

MISLEADING = ("", ".bin", ".onnx", ".pt", ".pb", ".h5", ".tflite", ".caffemodel", ".txt")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return dict(written(tmp_path_factory.mktemp("models")))


@pytest.mark.parametrize("name", FORMS)
def test_exactly_one_frontend_knows_it_under_any_name(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    path, wanted = models[name], FORMS[name]
    paths = [path]
    if path.is_file():
        paths += [Path(shutil.copy(path, tmp_path / f"file{suffix}")) for suffix in MISLEADING]
    for each in paths:
        known = {frontend: catalog.frontend(frontend).matches(each) for frontend in catalog.FRONTENDS}
        assert {frontend: form for frontend, form in known.items() if form} == {wanted.frontend: wanted.form}
        assert recognise(each) == recognise(each, wanted.frontend) == (wanted.frontend, wanted.form)


@pytest.mark.parametrize("name", FORMS)
def test_it_is_inspected_and_what_is_cut_short_is_one_line(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    path = models[name]
    if name == "caffe HDF5":
        with pytest.raises(RetargetError, match="weights in HDF5"):
            inspect(path)
        return
    seen = inspect(path)
    assert seen.bytes > 0
    # Weights of Caffe need a net, and the file of a SavedModel is not whole without its folder.
    assert bool(seen.inputs) == ((FORMS[name].says and name != "caffe weights") or name == "saved model's file")
    if path.is_dir():
        return
    content = path.read_bytes()
    cut = tmp_path / path.name
    for size in (len(content) // 2, len(content) - 1, 30, 3, 0):
        cut.write_bytes(content[:size])
        message = ""
        try:
            inspect(cut)
        except RetargetError as error:
            message = error.message
        assert "\n" not in message


def test_a_damaged_file_is_led_to_the_reader_of_its_suffix(tmp_path: Path) -> None:
    for frontend in catalog.FRONTENDS:
        suffixes = catalog.frontend(frontend).suffixes
        assert suffixes
        for suffix, form in suffixes.items():
            path = tmp_path / f"damaged{suffix.upper()}"
            path.write_bytes(b"\1\2\3 nothing that anybody wrote")
            assert catalog.frontend(frontend).matches(path) is None
            assert recognise(path) == (frontend, form)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.engine", b"ptrt....", "engine of TensorRT"),
        ("a", b"vtrt....", "engine of TensorRT-RTX"),
        ("model.xml", b'<?xml version="1.0"?>\n<net name="m" version="11">', "model of OpenVINO"),
        ("m.param", b"7767517\n3 3\n", "network of ncnn"),
        ("inference.pdmodel", b"\1\2", "paddle2onnx"),
        ("m-symbol.json", b'{\n  "nodes": [\n    {"op": "null", "name": "data"}]}', "MXNet"),
        ("m.params", b"\x12\1", "MXNet"),
        ("net.mlmodel", b"\x08\1\1", "Core ML"),
        ("yolo.weights", b"\0\0\0\0", "Darknet"),
        ("m.onnx.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        ("m.bin", b"<!DOCTYPE html><html>", "web page"),
        ("m.bin", b"", "it is empty"),
        ("m.zip", b"PK\x03\x04....", "unpack it"),
        ("m.pkl", b"\x80\x04\x95", "runs code"),
        ("config.json", b'{"model_type": "bert"}', "give the folder"),
        ("m.json", b'{"class_name": "Functional"}', "model.save"),
        ("solver.prototxt", None, "solver"),
        ("recipe.yaml", b"version: 1", "retarget build"),
        ("notes.xyz", b"hello", "retarget list frontends"),
    ],
)
def test_what_nobody_knows_is_told_apart(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content if content is not None else b'net: "train.prototxt"\nbase_lr: 0.1\n')
    if path.suffix == ".prototxt":  # the suffix leads to Caffe's reader
        path = path.rename(tmp_path / "solver.txt")
        said = "retarget list frontends"
    with pytest.raises(RetargetError, match=r"no frontend knows this file \(caffe, .* were tried\)") as caught:
        recognise(path)
    assert said in str(caught.value.hint)


def test_folders_that_nobody_knows(models: dict[str, Path], tmp_path: Path) -> None:
    empty, unfinished, build = (tmp_path / name for name in ("empty", "unfinished", "build"))
    for folder in (empty, unfinished, build):
        folder.mkdir()
    shutil.copytree(models["saved model"] / "variables", unfinished / "variables")
    (build / "report.json").write_text("{}")
    several = tmp_path / "several"
    several.mkdir()
    for name in ("onnx", "tflite"):
        shutil.copy(models[name], several)
    bare = tmp_path / "bare"
    shutil.copytree(models["hugging face"], bare)
    (bare / "config.json").unlink()
    for folder, said in {
        empty: "it is empty",
        unfinished: "without saved_model.pb",
        models["saved model"] / "variables": f"give the folder of the whole, {models['saved model']}",
        build: "what a build left",
        several: "give one of the models in it: m.onnx, m.tflite",
        bare: "give one of the models in it: model.safetensors",
    }.items():
        with pytest.raises(RetargetError, match="no frontend knows this folder") as caught:
            recognise(folder)
        assert said in str(caught.value.hint)


def test_what_two_know_is_not_guessed(models: dict[str, Path], tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(models["saved model"], both)
    shutil.copy(models["hugging face"] / "config.json", both)
    with pytest.raises(RetargetError, match=r"is Hugging Face folder .* and SavedModel .* at once"):
        recognise(both)
    assert recognise(both, "tensorflow") == ("tensorflow", "SavedModel")
