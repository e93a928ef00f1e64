"""A small real file of every form that a frontend knows, written by whoever writes such files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import caffe_files
import h5py
import numpy as np
import onnx
import torch
from google.protobuf import text_format
from keras_testing import keras, keras_2, save, save_weights
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from small_net import Net, save_program
from tensorflow_testing import save_checkpoint, save_function, save_graph, weights
from transformers import BertConfig, BertModel

from retarget.convert.tensorflow.framework import quiet, tf


@dataclass(frozen=True)
class Form:
    """What a writer leaves in a folder of its own. ``says``: whether the file says its inputs."""

    frontend: str
    form: str
    write: Callable[[Path], Path]
    says: bool = False


CAFFE = caffe_files.inputs(data=(1, 3, 8, 8)) + caffe_files.layer(
    "conv", "Convolution", "data", "conv", "convolution_param { num_output: 4 kernel_size: 1 bias_term: false }"
)
BLOBS = [("conv", "Convolution", [np.ones((4, 3, 1, 1), np.float32)])]


def _caffe(folder: Path) -> tuple[Path, Path]:
    text, model = caffe_files.write(folder, CAFFE, BLOBS)
    assert model is not None
    return text, model


def _caffe_hdf5(folder: Path) -> Path:
    with h5py.File(folder / "net.caffemodel.h5", "w") as file:
        file.create_dataset("data/conv/0", data=BLOBS[0][2][0])
    return folder / "net.caffemodel.h5"


def _onnx(folder: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["some batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "m.onnx")
    return folder / "m.onnx"


def _two_inputs(made: Any) -> Any:
    """Inputs in a nest, whose order is not that of their names; one of open sizes."""
    image, codes = made.Input((None, None, 3), name="picture"), made.Input((4,), name="codes", dtype="int32")
    x = made.layers.GlobalAveragePooling2D()(made.layers.Conv2D(4, 3)(image))
    y = made.layers.Dense(2, name="scores")(made.layers.Flatten()(made.layers.Embedding(5, 2)(codes)))
    return made.Model({"z": image, "a": codes}, [x, y])


def _sequence(made: Any) -> Any:
    return made.Sequential([made.layers.Dense(3, input_shape=(4,)), made.layers.ReLU()])


def _subclassed_weights(folder: Path) -> Path:
    save_weights(_two_inputs(keras), folder / "m.weights.h5")
    return folder / "m.weights.h5"


def _weights_by_layer(folder: Path) -> Path:
    save_weights(_sequence(keras_2()), folder / "w.h5")
    return folder / "w.h5"


def _pytorch(folder: Path, kind: str) -> Path:
    path = folder / "m.pt"
    net = Net().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        match kind:
            case "zip" | "legacy":
                torch.save(net.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
            case "module":
                torch.save(net, path)
            case "script":
                torch.jit.trace(net, torch.zeros(2, 4)).save(str(path))  # type: ignore[no-untyped-call]
            case "safetensors":
                save_file(net.state_dict(), path)
            case _:
                # PyTorch wants the suffix.
                path = path.with_suffix(".pt2")
                save_program(net, path, torch.zeros(2, 4), {"x": {0: torch.export.Dim("batch", min=2, max=16)}})
    return path


def _hugging_face(folder: Path) -> Path:
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(folder / "bert")
    return folder / "bert"


def _saved_model(folder: Path) -> Path:
    kernel = tf.Variable(weights(8, 6))
    specs = tf.TensorSpec([None, 8], tf.float32, name="x"), tf.TensorSpec([], tf.float32, name="by")
    return save_function(lambda x, by: {"y": tf.tanh(x @ kernel) * by}, folder / "m", *specs, kernel=kernel)


def _saved_model_file(folder: Path) -> Path:
    """Alone, as somebody may have copied it; it says no inputs that lead anywhere."""
    return _saved_model(folder).joinpath("saved_model.pb").rename(folder / "copied.pb")


def _saved_model_1(folder: Path) -> Path:
    v1 = tf.compat.v1
    with quiet(), tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 5, 8], name="x")
        y = x @ tf.constant(weights(8, 6))
        v1.saved_model.simple_save(session, str(folder / "m"), {"images": x}, {"scores": y})
    return folder / "m"


def _graph() -> None:
    v1 = tf.compat.v1
    v1.placeholder(tf.float32, [3], name="unused")
    x = v1.placeholder(tf.float32, [None, 8], name="net/x")
    by = v1.placeholder(tf.float32, [6], name="by")
    tf.multiply(tf.nn.tanh(x @ weights(8, 6)), by, name="y")


def _variables() -> None:
    x = tf.compat.v1.placeholder(tf.float32, [None, 8], name="x")
    kernel = tf.compat.v1.get_variable("kernel", initializer=weights(8, 6), use_resource=False)
    tf.nn.softmax(x @ kernel, name="y")


def _as_text(folder: Path) -> Path:
    with tf.Graph().as_default() as built:
        _graph()
    (folder / "m.pbtxt").write_text(text_format.MessageToString(built.as_graph_def()))
    return folder / "m.pbtxt"


def _tflite(folder: Path) -> Path:
    with quiet():
        image = keras.Input((6, 6, 2), name="image")
        model = keras.Model(image, keras.layers.Conv2D(3, 3, name="features")(image))
        (folder / "m.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    return folder / "m.tflite"


FORMS = {
    "caffe net": Form("caffe", "Caffe prototxt", lambda folder: _caffe(folder)[0], says=True),
    "caffe weights": Form("caffe", "caffemodel", lambda folder: _caffe(folder)[1], says=True),
    "caffe folder": Form("caffe", "folder of a Caffe net", lambda folder: _caffe(folder)[0].parent, says=True),
    "caffe HDF5": Form("caffe", "caffemodel", _caffe_hdf5),
    "keras": Form("keras", "Keras", lambda folder: save(_two_inputs(keras), folder / "m.keras"), says=True),
    "keras HDF5": Form("keras", "Keras HDF5", lambda folder: save(_two_inputs(keras), folder / "m.h5"), says=True),
    "keras 2": Form("keras", "Keras", lambda folder: save(_sequence(keras_2()), folder / "m.keras"), says=True),
    "keras 2 HDF5": Form("keras", "Keras HDF5", lambda folder: save(_sequence(keras_2()), folder / "m.h5"), says=True),
    "keras weights": Form("keras", "Keras HDF5", _subclassed_weights),
    "keras 2 weights": Form("keras", "Keras HDF5", _weights_by_layer),
    "onnx": Form("onnx", "ONNX", _onnx, says=True),
    "state dict": Form("pytorch", "state dict", lambda folder: _pytorch(folder, "zip")),
    "legacy state dict": Form("pytorch", "state dict", lambda folder: _pytorch(folder, "legacy")),
    "safetensors": Form("pytorch", "safetensors", lambda folder: _pytorch(folder, "safetensors")),
    "module": Form("pytorch", "pickled module", lambda folder: _pytorch(folder, "module")),
    "script": Form("pytorch", "TorchScript", lambda folder: _pytorch(folder, "script")),
    "program": Form("pytorch", "torch.export", lambda folder: _pytorch(folder, "program"), says=True),
    "hugging face": Form("pytorch", "Hugging Face folder", _hugging_face),
    "saved model": Form("tensorflow", "SavedModel", _saved_model, says=True),
    "saved model's file": Form("tensorflow", "SavedModel", _saved_model_file),
    "saved model 1": Form("tensorflow", "SavedModel", _saved_model_1, says=True),
    "frozen graph": Form("tensorflow", "frozen graph", lambda folder: save_graph(_graph, folder / "m.pb"), says=True),
    "graph as text": Form("tensorflow", "frozen graph", _as_text),
    "checkpoint": Form(
        "tensorflow",
        "TensorFlow 1 checkpoint",
        lambda folder: save_checkpoint(_variables, folder / "m" / "net"),
        says=True,
    ),
    "tflite": Form("tflite", "TFLite", _tflite, says=True),
}


def written(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name in `FORMS` and what was written, each in a folder of its own."""
    for name, form in FORMS.items():
        own = folder / name.replace(" ", "-").replace("'", "")
        own.mkdir()
        yield name, form.write(own)
