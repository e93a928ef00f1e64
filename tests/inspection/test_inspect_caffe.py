"""What ``retarget inspect`` says of Caffe's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from caffe_files import inputs, layer, write

from retarget.convert import caffe as caffe_frontend
from retarget.convert.caffe import files
from retarget.errors import RetargetError
from retarget.inspection import caffe, inspect
from retarget.spec import TensorSpec

NET = (
    inputs(data=(1, 3, 8, 8))
    + layer("conv", "Convolution", "data", "conv", "convolution_param { num_output: 4 bias_term: false }")
    + layer("relu", "ReLU", "conv", "conv")
    + layer("relu2", "ReLU", "conv", "out")
)
WEIGHT = np.ones((4, 3, 1, 1), np.float32)


def test_a_net_with_its_weights(tmp_path: Path) -> None:
    text, weights = write(tmp_path, NET, [("conv", "Convolution", [WEIGHT])])
    assert weights is not None
    for path in (text, tmp_path):
        said = caffe.inspect(path, files.NET if path == text else files.FOLDER, caffe_frontend.parts(path))
        assert (said.what, said.version, said.nodes, said.parameters) == ("Caffe net", "V2", 3, 12)
        assert said.inputs == (TensorSpec("data", "float32", (1, 3, 8, 8)),)
        assert said.ops == {"ReLU": 2, "Convolution": 1}
        assert said.bytes == text.stat().st_size + weights.stat().st_size
        assert said.notes == ("weights in net.caffemodel", "makes out")


def test_a_net_without_weights_and_shapes(tmp_path: Path) -> None:
    text, _ = write(tmp_path, 'input: "data"\n' + NET[NET.index("layer", 10) :], None)
    said = caffe.inspect(text, files.NET, {})
    assert (said.inputs, said.parameters) == ((), None)
    assert said.notes == (
        "weights are missing of conv",
        "makes out",
        "net.prototxt:1: layer 'data' (Input): the file says no shape of 'data'",
    )


def test_weights(tmp_path: Path) -> None:
    text, weights = write(tmp_path, NET, [("conv", "Convolution", [WEIGHT]), ("relu", "ReLU", [])], version=1)
    assert weights is not None
    said = caffe.inspect(weights, files.WEIGHTS, {})
    assert (said.what, said.version, said.parameters) == ("Caffe weights", "V1", 12)
    assert said.tensors == (TensorSpec("conv[0]", "float32", (4, 3, 1, 1)),)
    assert said.notes == ("its layers stand in net.prototxt",)
    text.unlink()
    assert caffe.inspect(weights, files.WEIGHTS, {}).notes == ("the layers stand in a prototxt, and none is beside it",)


def test_two_files_that_are_named(tmp_path: Path) -> None:
    text, weights = write(tmp_path, NET, [("conv", "Convolution", [WEIGHT])])
    assert weights is not None
    (tmp_path / "elsewhere").mkdir()
    weights = weights.rename(tmp_path / "elsewhere" / "w.caffemodel")
    assert inspect(text).parameters is None
    for pair in ((text, weights), (weights, text)):
        assert inspect(*pair).parameters == 12
    assert inspect(text, weights).inputs == (TensorSpec("data", "float32", (1, 3, 8, 8)),)
    onnx = tmp_path / "m.onnx"
    onnx.write_bytes(b"?")
    with pytest.raises(RetargetError, match="ONNX has no second file"):
        inspect(onnx, weights)
