"""Damaged TensorFlow files: recognised or not, but met with one line and never a traceback."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from damage import damage
from onnx import TensorProto, helper
from tensorflow_testing import converted, normal, save_checkpoint, save_function, save_graph, source_of, weights

from retarget.convert.onnx import matches as is_onnx
from retarget.convert.tensorflow import matches, parts
from retarget.convert.tensorflow.framework import tf
from retarget.errors import RetargetError
from retarget.recognise import recognise


def graph() -> None:
    x = tf.compat.v1.placeholder(tf.float32, [None, 8], name="x")
    tf.nn.softmax(tf.nn.tanh(x @ weights(8, 6)), name="y")


def variables() -> None:
    x = tf.compat.v1.placeholder(tf.float32, [None, 8], name="x")
    kernel = tf.compat.v1.get_variable("kernel", initializer=weights(8, 6), use_resource=False)
    tf.nn.softmax(x @ kernel, name="y")


def saved_model(folder: Path) -> Path:
    kernel = tf.Variable(weights(8, 6))
    spec = tf.TensorSpec([None, 8], tf.float32, name="x")
    return save_function(lambda x: {"y": tf.tanh(x @ kernel)}, folder, spec, kernel=kernel)


MAKERS: dict[str, Callable[[Path], Path]] = {
    "saved model": lambda folder: saved_model(folder / "m"),
    "frozen graph": lambda folder: save_graph(graph, folder / "m.pb"),
    "checkpoint": lambda folder: save_checkpoint(variables, folder / "m" / "net"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_damaged_model_is_met_with_an_error_or_is_still_one(kind: str, tmp_path: Path) -> None:
    model = MAKERS[kind](tmp_path)
    # The list of checkpoints is small and mostly of what nobody reads: damage to it is seldom seen.
    files = sorted(path for path in model.rglob("*") if path.is_file() and path.name != "checkpoint") or [model]
    messages = []
    for seed in range(12):
        rng = random.Random(f"{kind} {seed}")
        path, how = rng.choice(files), rng.choice(["cut", "flip", "drop", "repeat"])
        content = path.read_bytes()
        path.write_bytes(damage(content or b"\0", how, rng))
        try:
            converted(source_of(model), tmp_path / "out")
        except RetargetError as error:
            messages.append(error.message)
        path.write_bytes(content)
    assert len(messages) >= 6
    assert all(message.startswith(str(tmp_path)) and "Error" not in message.split(": ")[0] for message in messages)
    converted(source_of(model), tmp_path / "out")


@pytest.mark.parametrize("size", [0, 1, 7, 100])
def test_what_is_left_of_a_frozen_graph_is_still_for_its_reader(size: int, tmp_path: Path) -> None:
    path = save_graph(graph, tmp_path / "m.pb")
    path.write_bytes(path.read_bytes()[:size])
    assert recognise(path) == ("tensorflow", "frozen graph")
    with pytest.raises(RetargetError, match=r"m\.pb: "):
        converted(source_of(path), tmp_path / "out")


def test_weights_that_are_missing_or_of_another_model(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "m")
    data = folder / "variables" / "variables.data-00000-of-00001"
    data.unlink()
    with pytest.raises(RetargetError, match="not a readable SavedModel") as caught:
        converted(source_of(folder), tmp_path / "out")
    assert "damaged" in str(caught.value.hint)
    data.write_bytes(normal(500).tobytes())
    with pytest.raises(RetargetError, match="not a readable SavedModel"):
        converted(source_of(folder), tmp_path / "out")


# ---- what is whose


def test_onnx_and_tensorflow_do_not_take_each_others_files(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    border = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in "xy"]
    onnx.save_model(helper.make_model(helper.make_graph([node], "g", border[:1], border[1:])), tmp_path / "model.pb")
    assert recognise(tmp_path / "model.pb") == ("onnx", "ONNX")
    assert matches(tmp_path / "model.pb") is None
    for kind, make in MAKERS.items():
        (tmp_path / kind).mkdir()
        path = make(tmp_path / kind)
        assert recognise(path)[0] == "tensorflow"
        for file in [path, *path.rglob("*")]:
            assert is_onnx(file) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("net.caffemodel", b"\x0a\x07AlexNet\x12\x04data"),
        ("weights.bin", bytes(range(256))),
        ("model.tflite", b"\x1c\0\0\0TFL3" + bytes(64)),
        ("deploy.pbtxt", b'name: "net"\nlayer { name: "a" }\n'),
        ("net.index", b"not an index"),
    ],
)
def test_what_is_not_of_tensorflow(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert matches(tmp_path / name) is None
    assert matches(tmp_path) is None
    assert parts(tmp_path / name) == {}


def test_a_folder_that_was_moved_still_finds_its_checkpoint(tmp_path: Path) -> None:
    folder = save_checkpoint(variables, tmp_path / "m" / "net-3")
    (folder / "checkpoint").write_text(
        'model_checkpoint_path: "/gone/net-3"\nall_model_checkpoint_paths: "/gone/net-3"\n'
    )
    assert matches(folder) == "TensorFlow 1 checkpoint"
    assert sorted(parts(folder)) == ["data-00000-of-00001", "graph", "index"]
    assert converted(source_of(folder), tmp_path / "out")[0].outputs == ("y",)
