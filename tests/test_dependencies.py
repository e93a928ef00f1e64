"""A step's key must change with a file that only the step itself found out about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from retarget import plan, recipe
from retarget.engine import Limits, run
from retarget.plan import Invocation
from retarget.store import Store

RECIPE = """
version: 1
name: net
model: {path: net.onnx}
targets: [onnxruntime]
"""


def write_model(folder: Path, scale: float) -> None:
    weight = onnx.numpy_helper.from_array((np.eye(64) * scale).astype(np.float32), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["N", 64])],
        [onnx.helper.make_tensor_value_info("y", 1, ["N", 64])],
        [weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    (folder / "net.bin").unlink(missing_ok=True)
    onnx.save(model, folder / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=16)


def convert_key(folder: Path, *, build: bool) -> str:
    store = Store(folder / "store")
    made = plan.make(recipe.load(folder / "recipe.yaml"), store, Invocation())
    step = made.steps[0]
    assert step.id == "convert"
    if build:
        (outcome,) = run([step], store, jobs=1, limits=Limits(), progress=lambda event: None)
        assert outcome.artifact is not None, outcome.error
    store.close()
    return step.key


def test_external_data_counts_as_an_input(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    write_model(tmp_path, 1.0)
    proto = (tmp_path / "net.onnx").read_bytes()
    first = convert_key(tmp_path, build=True)
    assert convert_key(tmp_path, build=False) == first

    write_model(tmp_path, 2.0)
    assert (tmp_path / "net.onnx").read_bytes() == proto  # only the weights beside it are others
    assert convert_key(tmp_path, build=False) != first
    write_model(tmp_path, 1.0)
    assert convert_key(tmp_path, build=False) == first
