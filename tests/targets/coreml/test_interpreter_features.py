"""What packages tell of their inputs and outputs, beside what their programs declare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packaged
import pytest

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.call import NotInterpreted
from retarget.targets.coreml.interpreter.declared import StateType
from retarget.targets.coreml.interpreter.evaluate import Interpreter
from retarget.targets.coreml.interpreter.features import Sizes
from retarget.targets.coreml.interpreter.program import read
from retarget.targets.coreml.library import Function, Program, ct, mb, new_symbol, proto, types


def saved(path: Path, shape: tuple[Any, ...], kind: Any, classes: list[str] | None = None) -> Path:
    """``done = relu(x)``; a classifier's ``done`` are probabilities."""
    program = Program()
    with Function({"x": mb.placeholder(shape, types.fp32, name="x")}, opset_version=ct.target.iOS16) as function:
        function.set_outputs([mb.relu(x=function.inputs["x"], name="done")])
    program.add_function("main", function)
    ct.convert(
        program,
        convert_to="mlprogram",
        inputs=[kind],
        classifier_config=ct.ClassifierConfig(classes) if classes else None,
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    ).save(str(path))
    return path


pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize(
    ("shape", "kind", "sizes", "taken", "refused"),
    [
        ((2, 3), ct.TensorType("x", (2, 3)), "[2, 3]", [(2, 3)], [(2, 4), (3, 2)]),
        (
            ("n", 3),
            ct.TensorType("x", (ct.RangeDim(2, 5, 4), 3)),
            "[2…5, 3…3]",
            [(2, 3), (5, 3)],
            [(1, 3), (6, 3), (3, 4)],
        ),
        (
            ("n", "m"),
            ct.TensorType("x", ct.EnumeratedShapes([(1, 4), (2, 8)])),
            "[1, 4] or [2, 8]",
            [(1, 4), (2, 8)],
            [(1, 8), (2, 4)],
        ),
        (
            (1, 3, 4, 6),
            ct.ImageType("x", (1, 3, 4, 6), color_layout=ct.colorlayout.RGB),
            "[1, 3, 4, 6]",
            [(1, 3, 4, 6)],
            [(1, 3, 6, 4)],
        ),
        (
            (1, 1, "n", 6),
            ct.ImageType("x", (1, 1, ct.RangeDim(4, 9), 6), color_layout=ct.colorlayout.GRAYSCALE),
            "[1…1, 1…1, 4…9, 6…6]",
            [(1, 1, 4, 6), (1, 1, 9, 6)],
            [(1, 1, 10, 6), (1, 1, 4, 7)],
        ),
    ],
)
def test_only_shapes_that_are_told_are_taken(
    shape: tuple[Any, ...], kind: Any, sizes: str, taken: list[Any], refused: list[Any], tmp_path: Path
) -> None:
    symbols = tuple(new_symbol() if isinstance(size, str) else size for size in shape)
    program = read(saved(tmp_path / "m.mlpackage", symbols, kind))
    interpreter = Interpreter(program)
    assert str(program.functions["main"].sizes["x"]) == sizes
    for each in taken:
        np.testing.assert_array_equal(interpreter.run({"x": np.ones(each, np.float32)})["done"], np.ones(each))
    for each in refused:
        with pytest.raises(ToolchainFailure, match=r"input 'x' (can be of|is declared)"):
            interpreter.run({"x": np.ones(each, np.float32)})


def test_a_classifier_gives_its_label_and_probabilities(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.mlpackage", (1, 3), ct.TensorType("x", (1, 3)), ["cat", "dog", "fox"])
    found = Interpreter(read(path)).run({"x": np.array([[0.25, 0.5, 0.125]], np.float32)})
    assert str(found["classLabel"]) == "dog"
    assert found["classLabel_probs"].tolist() == [0.25, 0.5, 0.125]


def test_states_are_read_and_not_interpreted(tmp_path: Path) -> None:
    program = Program()
    state = mb.state_tensor_placeholder((2, 3), types.fp16)
    given = {"x": mb.placeholder((2, 3), types.fp16, name="x"), "kept": state}
    with Function(given, opset_version=ct.target.iOS18) as function:
        function.set_outputs(
            [mb.add(x=function.inputs["x"], y=mb.read_state(input=function.inputs["kept"]), name="done")]
        )
    program.add_function("main", function)
    packaged.convert(program, 18).save(str(tmp_path / "m.mlpackage"))
    read_back = read(tmp_path / "m.mlpackage")
    assert isinstance(read_back.functions["main"].inputs["kept"], StateType)
    with pytest.raises(NotInterpreted, match="input 'kept' is declared state<float16"):
        Interpreter(read_back).run({"x": np.ones((2, 3), np.float16), "kept": np.ones((2, 3), np.float16)})


def _input(description: Any) -> Any:
    return description.input[0].type.multiArrayType


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: _input(told).shape.append(1), r"'x' is described as float32 of \[2, 3, 1\], and declared"),
        (
            lambda told: setattr(_input(told), "dataType", 131104),
            r"'x' is described as int32 of \[2, 3\], and declared",
        ),
        (lambda told: setattr(told.input[0], "name", "z"), "'z' are described, and 'x' are declared"),
        (lambda told: told.output.pop(), "no values are described, and 'done' are declared"),
        (lambda told: told.input[0].type.Clear(), "'x' is described as None"),
        (lambda told: told.input[0].type.imageType.SetInParent(), r"'x' is described as an image of \[1, 0, 0, 0\]"),
        (lambda told: told.functions.add(name="other"), "function 'main' is not described"),
    ],
)
def test_descriptions_of_another_program(change: Callable[[Any], object], message: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.mlpackage", (2, 3), ct.TensorType("x", (2, 3)))
    place = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = proto.Model_pb2.Model.FromString(place.read_bytes())
    change(spec.description)
    place.write_bytes(spec.SerializeToString())
    with pytest.raises(ToolchainFailure, match=message):
        read(path)


def test_bounds_are_those_of_sizes_that_are_declared(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.mlpackage", (new_symbol(), 3), ct.TensorType("x", (ct.RangeDim(2, 5, 4), 3)))
    place = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = proto.Model_pb2.Model.FromString(place.read_bytes())
    _input(spec.description).shapeRange.sizeRanges[1].upperBound = 4
    place.write_bytes(spec.SerializeToString())
    with pytest.raises(
        ToolchainFailure, match=r"'x' is described as float32 of \[2…5, 3…4\], and declared float32\[\?, 3\]"
    ):
        read(path)


def test_no_bound_is_no_limit() -> None:
    assert str(Sizes(bounds=((1, None),))) == "[1…]"
    assert Sizes(bounds=((1, None),)).take((10**9,))
    assert not Sizes(bounds=((1, None),)).take((1, 1))
