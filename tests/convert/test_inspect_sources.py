"""What ``inspect`` says of each source, held to what was written; no framework is asked, and no code is run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from caffe_files import field, varint
from every_form import FORMS
from keras_testing import keras

from retarget.convert.tensorflow.framework import quiet, tf
from retarget.errors import RetargetError
from retarget.inspection import Inspection, inspect

pytestmark = pytest.mark.filterwarnings("ignore")  # of the frameworks, about each other


def seen(name: str, folder: Path) -> Inspection:
    return inspect(FORMS[name].write(folder))


@pytest.mark.parametrize("name", ["keras", "keras HDF5"])
def test_a_keras_model(name: str, tmp_path: Path) -> None:
    found = seen(name, tmp_path)
    assert found.what == "Keras model"
    assert "of Keras 3." in (found.version or "")
    assert sorted(found.ops) == ["Conv2D", "Dense", "Embedding", "Flatten", "GlobalAveragePooling2D"]
    assert found.nodes == 5
    assert found.parameters == (9 * 3 * 4 + 4) + 5 * 2 + (8 * 2 + 2)
    assert found.weights == {"float32": 4 * found.parameters}
    assert [str(spec) for spec in found.inputs] == ["picture=float32[N,picture_h,picture_w,3]", "codes=int32[N,4]"]


def test_models_within_models_and_what_is_code(tmp_path: Path) -> None:
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.Dropout(0.5)])
    outer = keras.Sequential([keras.Input((4,), name="x"), inner, keras.layers.Lambda(lambda x: x + 1)])
    outer.compile("adam", "mse")
    outer.save(tmp_path / "m.keras")
    found = inspect(tmp_path / "m.keras")
    assert found.ops == {"Dense": 1, "Dropout": 1, "Lambda": 1}
    assert found.parameters == 10
    assert "its Lambda layers are code, which is run with --trust only" in found.notes


def test_keras_weights_alone(tmp_path: Path) -> None:
    found = seen("keras weights", tmp_path)
    assert (found.what, found.parameters, found.inputs) == ("Keras weights", 140, ())
    assert len(found.tensors) == 5
    assert "holds weights alone" in found.notes[0]


def test_a_saved_model(tmp_path: Path) -> None:
    found = seen("saved model", tmp_path)
    assert (found.what, found.parameters, found.weights) == ("SavedModel of TensorFlow 2", 48, {"float32": 192})
    assert {op: found.ops[op] for op in ("MatMul", "Tanh", "Mul")} == {"MatMul": 1, "Tanh": 1, "Mul": 1}
    assert found.version == f"TensorFlow {tf.__version__}"
    assert [str(spec) for spec in found.outputs] == ["y=float32[N,6]"]
    assert found.notes == ("signature 'serving_default': by=float32[], x=float32[?,8] → y=float32[?,6]",)
    assert found.bytes == sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())


def test_several_signatures_are_listed_and_none_is_guessed(tmp_path: Path) -> None:
    module = tf.Module()
    with quiet():
        one, two = (
            tf.function(lambda x, by=by: {"y": x * by}, input_signature=[tf.TensorSpec(None, tf.float32, name="x")])
            for by in (2.0, 3.0)
        )
        tf.saved_model.save(module, str(tmp_path / "m"), signatures={"one": one, "two": two})
    found = inspect(tmp_path / "m")
    assert found.inputs == ()
    assert found.notes[0] == "choose one; its signatures: one, two"
    assert "signature 'two': x=float32[…] → y=float32[…]" in found.notes


@pytest.mark.parametrize("name", ["frozen graph", "checkpoint"])
def test_a_graph(name: str, tmp_path: Path) -> None:
    found = seen(name, tmp_path)
    assert (found.parameters, found.weights) == (48, {"float32": 192})
    assert found.ops["MatMul"] == 1
    assert found.nodes == sum(found.ops.values())
    assert "no other node takes what these give: y" in found.notes
    if name == "frozen graph":
        assert [str(spec) for spec in found.inputs] == ["net/x=float32[N,8]", "by=float32[6]"]


def test_functions_that_call_each_other_end_in_an_error(tmp_path: Path) -> None:
    def text(number: int, value: str) -> bytes:
        return field(number, value.encode())

    def function(name: str, called: str) -> bytes:
        nodes = b"".join(field(3, text(1, f"{called}{at}") + text(2, called)) for at in range(100))
        return field(1, field(1, text(1, name)) + nodes)

    library = b"".join(function(f"f{at}", f"f{at + 1}") for at in range(8)) + function("f8", "Add")
    graph = field(1, text(1, "call") + text(2, "f0")) + field(2, library)
    meta = field(1, field(4, b"serve")) + field(2, graph)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "saved_model.pb").write_bytes(bytes([8]) + varint(1) + field(2, meta))
    with pytest.raises(RetargetError, match="call each other without an end"):
        inspect(tmp_path / "m")


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = keras.Input((6, 6, 2), name="image")
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(image, keras.layers.Conv2D(3, 3)(image)))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]

    def samples() -> Iterator[list[object]]:
        yield [np.linspace(-1, 1, 72, dtype=np.float32).reshape(1, 6, 6, 2)]

    converter.representative_dataset = samples
    path = tmp_path_factory.mktemp("int8") / "m.tflite"
    with quiet():
        path.write_bytes(converter.convert())
    return path


def test_a_tflite_file(tmp_path: Path, int8: Path) -> None:
    found = seen("tflite", tmp_path)
    assert found.what == "TFLite model"
    assert [str(spec) for spec in found.inputs] == ["image=float32[N,6,6,2]"]
    assert [str(spec) for spec in found.outputs] == ["output_0=float32[N,4,4,3]"]
    assert (found.ops, found.parameters) == ({"CONV_2D": 1}, 9 * 2 * 3 + 3)
    found = inspect(int8)
    assert found.weights == {"int8": 54, "int32": 12}
    assert found.ops == {"CONV_2D": 1, "DEQUANTIZE": 1, "QUANTIZE": 1}
    assert "its activations are quantized" in found.notes


def test_a_program(tmp_path: Path) -> None:
    found = seen("program", tmp_path)
    assert [str(spec) for spec in found.inputs] == ["x=float32[dim0,4]"]
    assert found.parameters
    assert found.weights["float32"] > 0
    assert ("sizes", "dim0 from 2 to 16") in found.rows()
    assert any(op.startswith("aten.") for op in found.ops)


def test_no_framework_is_imported(tmp_path: Path, int8: Path) -> None:
    files = [str(int8)]
    for name in ("keras", "saved model", "frozen graph", "program"):
        (tmp_path / name).mkdir()
        files.append(str(FORMS[name].write(tmp_path / name)))
    code = (
        "import sys, pathlib; from retarget.inspection import inspect\n"
        "for file in sys.argv[1:]: inspect(pathlib.Path(file))\n"
        "print({'tensorflow', 'keras', 'torch', 'tf2onnx', 'ai_edge_litert'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"


def test_json_comes_back(tmp_path: Path) -> None:
    found = seen("saved model", tmp_path)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Inspection) == found
