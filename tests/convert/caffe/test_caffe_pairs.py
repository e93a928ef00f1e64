"""Which files are Caffe's, and which of them belong together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from caffe_files import Saved, Version, blob, caffemodel, inputs, layer, write
from onnx import TensorProto, helper

from retarget.convert import caffe
from retarget.convert.caffe import files, network
from retarget.errors import RetargetError

PRELU: Saved = ("p", "PReLU", [np.ones(2, np.float32)])
NET = inputs(data=(1, 2)) + layer("p", "PReLU", "data")


@pytest.mark.parametrize(
    "written",
    [
        NET,
        "# a comment\n\n" + NET,
        "\ufeff" + NET,
        'name: "n"\ninput: "data" input_dim: 1\nlayers { layer { name: "a" } }',
        "name: 'n' force_backward: true state { phase: TEST }\nlayers { bottom: 'a' type: RELU }",
        "my_fork { x [{ y: 1 }] } input_dim: [1, 3]\nlayer: < name: 'a' >",
        'layer {\n  top: "data"\n',  # cut short
        "layer { batch_norm_param { } }",
    ],
)
def test_nets_are_told_by_their_content(written: str, tmp_path: Path) -> None:
    path = tmp_path / "test.pt"
    path.write_text(written)
    assert caffe.matches(path) == "Caffe prototxt"


@pytest.mark.parametrize(
    "written",
    [
        "",
        "layer",
        "some words of text { } about a layer { }",
        json.dumps({"layer": {"name": "a"}, "layers": [{"type": "ReLU"}]}),
        "name: net\nlayers:\n  - type: ReLU\n    name: a\n",
        "version: 1\nmodel:\n  path: net.onnx\n",
        "name: net\nlayer: {}\n",
        'node { name: "a" op: "Placeholder" }\nversions { producer: 1 }',
        "model { ssd { num_classes: 3 } }\ntrain_config { batch_size: 4 }",
        "def layer(name): pass",
        'item { name: "cat" id: 1 }',
        'name: "n" op { type: "Conv" }',
        "layer { color: 1 }",
    ],
)
def test_other_texts_are_none(written: str, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text(written)
    assert caffe.matches(path) is None


@pytest.mark.parametrize("version", [0, 1, 2])
def test_weights_are_told_by_their_content(version: Version, tmp_path: Path) -> None:
    path = tmp_path / "iter_1000"
    path.write_bytes(caffemodel([("conv", "Convolution", PRELU[2])], version=version))
    assert caffe.matches(path) == "caffemodel"


def test_other_files_are_none(tmp_path: Path) -> None:
    path = tmp_path / "file"
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    for content in (
        b"",
        b"\0" * 100,
        b"\x80\x02}q\x00.",
        b"PK\x03\x04" + b"\0" * 50,
        onnx.helper.make_model(graph).SerializeToString(),
        graph.SerializeToString(),
        blob(PRELU[2][0]),  # a mean is no model
        b"\n\x05hello",
        b"\n\x02\x01\x02\x12\x02\x08\x01",
    ):
        path.write_bytes(content)
        assert caffe.matches(path) is None
    assert caffe.matches(tmp_path / "missing") is None
    assert caffe.matches(tmp_path) is None


def test_any_file_is_looked_at_without_an_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "file"
    whole = caffemodel([PRELU]) + NET.encode()
    for _ in range(300):
        content = np.frombuffer(whole, np.uint8).copy()
        content[rng.integers(len(content), size=4)] = rng.integers(256, size=4)
        path.write_bytes(content[rng.integers(len(content)) :].tobytes())
        assert caffe.matches(path) in (None, "caffemodel", "Caffe prototxt")


# ---- pairs


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(caffemodel([PRELU]) if name.endswith(".caffemodel") else NET.encode())


@pytest.mark.parametrize(
    ("beside", "path", "found"),
    [
        (["net.caffemodel", "other.caffemodel"], "net.prototxt", {"weights": "net.caffemodel"}),
        (["other.caffemodel"], "net.prototxt", {"weights": "other.caffemodel"}),
        (["a.caffemodel", "b.caffemodel"], "net.prototxt", {}),
        ([], "net.prototxt", {}),
        (["net.prototxt", "deploy.prototxt"], "net.caffemodel", {"net": "net.prototxt"}),
        (["deploy.prototxt", "train_val.prototxt", "solver.prototxt"], "net.caffemodel", {"net": "deploy.prototxt"}),
        (["only.prototxt", "my_solver.prototxt"], "net.caffemodel", {"net": "only.prototxt"}),
        (["a.prototxt", "b.prototxt"], "net.caffemodel", {}),
        ([], "net.caffemodel", {}),
    ],
)
def test_the_other_file_is_found(beside: list[str], path: str, found: dict[str, str], tmp_path: Path) -> None:
    touch(tmp_path, path, *beside)
    parts = caffe.parts(tmp_path / path)
    assert {role: file.name for role, file in parts.items()} == found
    if path.endswith("prototxt"):
        assert files.pair(tmp_path / path, parts.get("weights")) == (tmp_path / path, parts.get("weights"))
    elif found:
        assert files.pair(tmp_path / path, None) == (parts["net"], tmp_path / path)
        assert network.read(tmp_path / path, None).outputs == ("p",)


def test_damaged_files_find_each_other(tmp_path: Path) -> None:
    touch(tmp_path, "net.prototxt", "net.caffemodel")
    (tmp_path / "net.prototxt").write_text("lay")
    assert set(caffe.parts(tmp_path / "net.prototxt")) == {"weights"}
    (tmp_path / "net.caffemodel").write_bytes(b"\x03")
    assert set(caffe.parts(tmp_path / "net.caffemodel")) == {"net"}


def test_weights_without_a_net_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "net.caffemodel")
    with pytest.raises(RetargetError) as caught:
        network.read(tmp_path / "net.caffemodel", None)
    assert caught.value.message == (
        "net.caffemodel: these are weights; the layers stand in a prototxt, and there is none beside it"
    )
    assert caught.value.hint == "give both: `NET.prototxt,net.caffemodel`"
    touch(tmp_path, "a.prototxt", "b.prototxt")
    with pytest.raises(RetargetError, match=r"there are several beside it: a\.prototxt, b\.prototxt"):
        network.read(tmp_path / "net.caffemodel", None)


def test_weights_to_choose_from_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, "net.prototxt", "a.caffemodel", "b.caffemodel")
    with pytest.raises(RetargetError, match=r"there are several beside it: a\.caffemodel, b\.caffemodel"):
        network.read(tmp_path / "net.prototxt", None)


def test_a_pair_the_other_way_round(tmp_path: Path) -> None:
    text, weights = write(tmp_path, NET, [PRELU])
    assert weights is not None
    assert network.read(weights, text).outputs == ("p",)
    with pytest.raises(RetargetError, match=r"'net\.caffemodel' and 'net\.caffemodel' are both no prototxt"):
        network.read(weights, weights)


def test_a_folder_of_both(tmp_path: Path) -> None:
    touch(tmp_path, "deploy.prototxt", "train_val.prototxt", "net.caffemodel")
    assert caffe.matches(tmp_path) == "folder of a Caffe net"
    assert caffe.parts(tmp_path) == {}
    assert network.read(tmp_path, None).place == "deploy.prototxt:1"
    touch(tmp_path, "more.caffemodel")
    with pytest.raises(RetargetError, match=r"several caffemodels: more\.caffemodel, net\.caffemodel"):
        network.read(tmp_path, None)


def test_options_are_plain() -> None:
    assert caffe.Options() == caffe.Options(stages=[], level=None)
    assert (caffe.requires, caffe.extra, caffe.layout, caffe.takes_weights) == ((), None, "nchw", True)
