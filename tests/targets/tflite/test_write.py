"""Files that are written of programs. Oracles: LiteRT's interpreter, and the classes that come with it."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from retarget.inspection import tflite
from retarget.targets.tflite import write as module
from retarget.targets.tflite.program import Constant, Operator, Options, Program, Quantization, Tensor
from retarget.targets.tflite.write import write, write_map

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retarget.protocols import Array

F4, I4, I1 = (np.dtype(name) for name in ("float32", "int32", "int8"))
KERNELS = [OpResolverType.BUILTIN, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, OpResolverType.BUILTIN_REF]


def tensor(array: Array, **given: Any) -> Tensor:
    return Tensor(array.shape, array.dtype, constant=Constant.of(array), **given)


def ints(*numbers: int) -> Tensor:
    return tensor(np.array(numbers, np.int32))


@pytest.fixture(params=["inside", "outside"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Constants as part of the flatbuffer, or behind it, as in files beyond the limit."""
    if request.param == "outside":
        monkeypatch.setattr(module, "LIMIT", 64)
    return str(request.param)


class Dense:
    """y = relu(x · wᵀ + b) · 0.5, called by names that no tensor has."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.weight = rng.standard_normal((4, 8)).astype("f4")
        self.bias = rng.standard_normal(4).astype("f4")
        x = Tensor((2, 8), F4, "x", value="x", open_axes=(0,))
        y = Tensor((2, 4), F4, "x", value="h", open_axes=(0,))
        z = Tensor((2, 4), F4, value="z", open_axes=(0,))
        options = Options("FullyConnectedOptions", {"fusedActivationFunction": "RELU"})
        operators = [
            Operator("FULLY_CONNECTED", (x, tensor(self.weight), tensor(self.bias)), (y,), options, "dense"),
            Operator("MUL", (y, tensor(np.array(0.5, "f4"))), (z,), Options("MulOptions"), "halve"),
        ]
        self.program = Program(operators, {"in put": x}, {"out": z})

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(np.maximum(x @ self.weight.T + self.bias, 0) / 2, np.float32)


@pytest.mark.parametrize("kernels", KERNELS)
def test_file_computes_what_the_program_says(place: str, kernels: object, tmp_path: Path) -> None:
    dense, path = Dense(), tmp_path / "m.tflite"
    write(dense.program, path, description="test")
    interpreter = Interpreter(str(path), num_threads=1, experimental_op_resolver_type=kernels)
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["in put"], "outputs": ["out"]}}
    for rows in (2, 3, 1):
        x = np.random.default_rng(rows).standard_normal((rows, 8)).astype("f4")
        (found,) = interpreter.get_signature_runner()(**{"in put": x}).values()
        np.testing.assert_allclose(found, dense(x), rtol=1e-5, atol=1e-6)


def _model(path: Path) -> Any:
    return generated.ModelT.InitFromPackedBuf(path.read_bytes())


def test_tables_say_what_the_program_says(place: str, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    write(Dense().program, path, description="made by a test")
    model = _model(path)
    assert (model.version, model.description, path.read_bytes()[4:8]) == (3, b"made by a test", b"TFL3")
    (graph,) = model.subgraphs
    assert [list(each.shape) for each in graph.tensors if each.name in (b"in put", b"out")] == [[2, 8], [2, 4]]
    assert [list(each.shapeSignature) for each in graph.tensors if each.shapeSignature is not None] == [
        [-1, 8],
        [-1, 4],
        [-1, 4],
    ]
    assert all(each.hasRank for each in graph.tensors)
    assert [(code.deprecatedBuiltinCode, code.builtinCode, code.version) for code in model.operatorCodes] == [
        (9, 9, 1),
        (18, 18, 1),
    ]
    assert graph.operators[0].builtinOptions.fusedActivationFunction == generated.ActivationFunctionType.RELU
    (metadata,) = model.metadata
    assert metadata.name == b"min_runtime_version"
    assert bytes(model.buffers[metadata.buffer].data) == b"1.5.0".ljust(16, b"\0")


def test_inspection_reads_what_is_written(place: str, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    write(Dense().program, path, description="test")
    found = tflite.inspect(path)
    assert found.parameters == 4 * 8 + 4 + 1
    assert [(spec.name, spec.shape[1:]) for spec in (*found.inputs, *found.outputs)] == [
        ("in put", (8,)),
        ("out", (4,)),
    ]
    assert found.ops == {"FULLY_CONNECTED": 1, "MUL": 1}


def _places(path: Path) -> Iterator[tuple[int, int]]:
    """Where in the file the bytes of each buffer begin, and how many there are."""
    content = path.read_bytes()
    model = generated.Model.GetRootAs(content)
    for index in range(1, model.BuffersLength() - 1):
        buffer = model.Buffers(index)
        if buffer.Offset():
            yield buffer.Offset(), buffer.Size()
        else:
            yield buffer._tab.Vector(buffer._tab.Offset(4)), buffer.DataLength()


def test_constants_are_aligned_and_stored_once(place: str, tmp_path: Path) -> None:
    arrays = [np.arange(size, dtype="f4") + size for size in (3, 5, 64)]
    shared = Constant.of(arrays[2])
    tensors = [tensor(arrays[0]), tensor(arrays[1]), *(Tensor((64,), F4, constant=shared) for _ in range(2))]
    outs = [Tensor(each.shape, F4) for each in tensors]
    operators = [Operator("RELU", (each,), (out,)) for each, out in zip(tensors, outs, strict=True)]
    path = tmp_path / "m.tflite"
    write(Program(operators, {}, {str(index): out for index, out in enumerate(outs)}), path, description="")
    places = list(_places(path))
    content = path.read_bytes()
    assert [at % 16 for at, _ in places] == [0, 0, 0]
    assert [content[at : at + size] for at, size in places] == [array.tobytes() for array in arrays]
    assert places[-1][0] + places[-1][1] == len(content)


def _kept(array: Array) -> Callable[[], Array]:
    return lambda: array


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "int16", "int32", "int64", "bool", "float64"])
def test_constants_of_every_type_and_size_come_back(place: str, dtype: str, tmp_path: Path) -> None:
    """Single bytes too, and none, which positions outside of the flatbuffer cannot say."""
    arrays = [np.ones(shape, dtype) for shape in ((), (1,), (3,), (2, 5), (0,))]
    x = Tensor((1,), np.dtype(dtype), "x")
    held = [tensor(array, name=f"c{index}") for index, array in enumerate(arrays)]
    y = Tensor((1,), np.dtype(dtype))
    path = tmp_path / "m.tflite"
    operator = Operator("CUSTOM", (x, *held), (y,), custom="Test", custom_options=b"\1\2")
    write(Program([operator], {"x": x}, {"y": y}), path, description="")
    interpreter = Interpreter(str(path))
    details = {each["name"]: each for each in interpreter.get_tensor_details()}
    for index, array in enumerate(arrays):
        assert details[f"c{index}"]["dtype"] == array.dtype.type
        assert tuple(details[f"c{index}"]["shape"]) == array.shape
        if array.size:
            np.testing.assert_array_equal(interpreter.get_tensor(details[f"c{index}"]["index"]), array)
    (code,) = _model(path).operatorCodes
    assert (code.builtinCode, code.customCode) == (generated.BuiltinOperator.CUSTOM, b"Test")
    assert bytes(_model(path).subgraphs[0].operators[0].customOptions) == b"\1\2"


def test_constants_are_made_one_at_a_time(place: str, tmp_path: Path) -> None:
    alive: weakref.WeakSet[Held] = weakref.WeakSet()
    most = 0

    def make(index: int) -> Array:
        nonlocal most
        made = np.full(1000, index, "f4").view(Held)
        alive.add(made)
        most = max(most, len(alive))
        return made

    held = [Constant((1000,), F4, index, partial(make, index)) for index in range(8)]
    tensors = [Tensor((1000,), F4, constant=constant) for constant in held]
    outs = [Tensor((1000,), F4) for _ in held]
    operators = [Operator("RELU", (each,), (out,)) for each, out in zip(tensors, outs, strict=True)]
    write(Program(operators, {}, {str(i): out for i, out in enumerate(outs)}), tmp_path / "m.tflite", description="")
    assert most == 1


class Held(np.ndarray):
    """An array that can be told to be there still."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def test_names_are_unique_and_the_users_come_first(tmp_path: Path) -> None:
    x, y = Tensor((2,), F4, "same"), Tensor((2,), F4, "out")
    middle = [Tensor((2,), F4, name) for name in ("same", "out", "", "", "same:1")]
    operators = [Operator("RELU", (one,), (two,)) for one, two in zip([x, *middle], [*middle, y], strict=True)]
    path = tmp_path / "m.tflite"
    write(Program(operators, {"same": x}, {"out": y}), path, description="")
    names = [each.name.decode() for each in _model(path).subgraphs[0].tensors]
    assert names == ["same", "same:2", "out:1", "value", "value:1", "same:1", "out"]


def test_operators_of_large_numbers_keep_a_placeholder_in_the_old_field(tmp_path: Path) -> None:
    x, y = Tensor((2,), F4), Tensor((2,), F4)
    write(
        Program([Operator("GELU", (x,), (y,), Options("GeluOptions"))], {"x": x}, {"y": y}),
        tmp_path / "m",
        description="",
    )
    (code,) = _model(tmp_path / "m").operatorCodes
    assert (code.deprecatedBuiltinCode, code.builtinCode) == (127, generated.BuiltinOperator.GELU)


def test_options_of_the_second_kind(tmp_path: Path) -> None:
    x, y = Tensor((4,), F4), Tensor((2,), F4)
    options = Options("ReduceWindowOptions", {"reduceFunction": "MAXIMUM"})
    path = tmp_path / "m"
    write(Program([Operator("REDUCE_WINDOW", (x,), (y,), options)], {"x": x}, {"y": y}), path, description="")
    (operator,) = _model(path).subgraphs[0].operators
    assert operator.builtinOptions2Type == generated.BuiltinOptions2.ReduceWindowOptions
    assert operator.builtinOptions2.reduceFunction == generated.ReduceWindowFunction.MAXIMUM


@pytest.mark.parametrize(
    ("code", "options", "words"),
    [
        ("ADD", Options("AddOptions", {"activation": 1}), "AddOptions has no field activation"),
        ("ADD", Options("AddOptions", {"fusedActivationFunction": "GELU"}), "ActivationFunctionType has no GELU"),
        ("ADD", Options("NoOptions"), "there are no NoOptions"),
        ("SUM_UP", None, "BuiltinOperator has no SUM_UP"),
    ],
)
def test_what_the_schema_does_not_have_is_a_bug(code: str, options: Options | None, words: str, tmp_path: Path) -> None:
    x, y = Tensor((2,), F4), Tensor((2,), F4)
    with pytest.raises(AssertionError, match=words):
        write(Program([Operator(code, (x, x), (y,), options)], {"x": x}, {"y": y}), tmp_path / "m", description="")


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path: Path) -> None:
    def fail() -> Array:
        raise OSError("no such weights")

    y = Tensor((2,), F4)
    gone = Tensor((2,), F4, constant=Constant((2,), F4, "gone", fail))
    with pytest.raises(OSError, match="no such weights"):
        write(Program([Operator("RELU", (gone,), (y,))], {}, {"y": y}), tmp_path / "m", description="")
    assert not list(tmp_path.iterdir())


def test_hollow_files_have_the_shapes_without_the_weights(place: str, tmp_path: Path) -> None:
    x, y = Tensor((2, 600), F4, open_axes=(0,)), Tensor((2, 700), F4, open_axes=(0,))

    def fail() -> Array:
        raise AssertionError("made, though nobody looks at it")

    large = Tensor((700, 600), F4, constant=Constant((700, 600), F4, "large", fail))
    operator = Operator("FULLY_CONNECTED", (x, large, None), (y,), Options("FullyConnectedOptions"))
    path = tmp_path / "m"
    write(Program([operator], {"x": x}, {"y": y}), path, description="", hollow=True)
    assert path.stat().st_blocks * 512 < 100_000 < path.stat().st_size
    interpreter = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], [5, 600], strict=True)
    interpreter.allocate_tensors()
    assert list(interpreter.get_output_details()[0]["shape"]) == [5, 700]


def test_state_is_kept_between_steps(tmp_path: Path) -> None:
    """A variable tensor, and operands that are not there."""
    rng = np.random.default_rng(0)
    x, h = Tensor((1, 3), F4), Tensor((1, 2), F4)
    state = Tensor((1, 2), F4, is_variable=True)
    weights = [tensor(rng.standard_normal(shape).astype("f4")) for shape in ((2, 3), (2, 2), (2,))]
    operator = Operator("RNN", (x, *weights, state), (h,), Options("RNNOptions", {"fusedActivationFunction": "TANH"}))
    path = tmp_path / "m"
    write(Program([operator], {"x": x}, {"h": h}), path, description="")
    run = Interpreter(str(path)).get_signature_runner()
    fed = np.ones((1, 3), "f4")
    first, second = (run(x=fed)["h"] for _ in range(2))
    w, r, b = (each.constant.array() for each in weights if each.constant is not None)
    np.testing.assert_allclose(first, np.tanh(fed @ w.T + b), rtol=1e-5)
    np.testing.assert_allclose(second, np.tanh(fed @ w.T + first @ r.T + b), atol=1e-6)


def test_map_agrees_with_the_runtime(tmp_path: Path) -> None:
    x = Tensor((1, 4, 4, 2), F4, "x", value="x", layout="last")
    code = Tensor((1, 4, 4, 2), I1, value="x", layout="last", quantization=Quantization.of(0.1, 3))
    weight = Tensor((3, 1, 1, 2), I1, quantization=Quantization((0.5, 0.25, 2.0), (0, 0, 0)))
    weight.constant = Constant.of(np.ones((3, 1, 1, 2), np.int8))
    bias = tensor(np.zeros(3, np.int32), quantization=Quantization((0.05, 0.025, 0.2), (0, 0, 0)))
    y = Tensor((1, 4, 4, 3), I1, value="y", layout="last", quantization=Quantization.of(0.5, -7))
    options = Options("Conv2DOptions", {"strideW": 1, "strideH": 1, "padding": "VALID"})
    operators = [
        Operator("QUANTIZE", (x,), (code,), Options("QuantizeOptions")),
        Operator("CONV_2D", (code, weight, bias), (y,), options, "conv"),
    ]
    program = Program(operators, {"x": x}, {"y": y})
    write(program, tmp_path / "m.tflite", description="")
    write_map(program, tmp_path / "m.json")
    told = json.loads((tmp_path / "m.json").read_text())
    details = Interpreter(str(tmp_path / "m.tflite")).get_tensor_details()
    assert told["schema"] == 1
    assert len(told["tensors"]) == len(operators) + 1  # the input and what each makes, no constants
    for each in told["tensors"]:
        detail = details[each["index"]]
        assert (each["index"], each["name"], each["shape"]) == (detail["index"], detail["name"], list(detail["shape"]))
        assert np.dtype(each["dtype"]) == detail["dtype"]
        scales = np.atleast_1d(each.get("scale", [])).astype("f4")
        np.testing.assert_array_equal(scales, detail["quantization_parameters"]["scales"])
    by_name = {each["name"]: each for each in told["tensors"]}
    assert by_name["y"] == {
        "index": by_name["y"]["index"],
        "name": "y",
        "value": "y",
        "layout": "last",
        "dtype": "int8",
        "shape": [1, 4, 4, 3],
        "scale": 0.5,
        "zero_point": -7,
        "operator": 1,
        "code": "CONV_2D",
        "node": "conv",
    }
    assert "operator" not in by_name["x"]
    assert [each["value"] for each in told["tensors"]].count("x") == 2


@pytest.mark.stress
def test_file_above_two_gigabytes_is_loaded_and_run(tmp_path: Path) -> None:
    """Two tables of 1.2 GB, each made when it is written; rows of both are read."""
    rows = 300_000_000

    def table(last: float) -> Tensor:
        def make() -> Array:
            array = np.zeros((rows, 1), "f4")
            array[-1] = last
            return array

        return Tensor((rows, 1), F4, constant=Constant((rows, 1), F4, last, make))

    x = Tensor((2,), I4)
    found = [Tensor((2, 1), F4) for _ in range(2)]
    y = Tensor((2, 1), F4)
    operators = [
        *(Operator("GATHER", (table(n + 1.0), x), (out,), Options("GatherOptions")) for n, out in enumerate(found)),
        Operator("SUB", tuple(found), (y,), Options("SubOptions")),
    ]
    path = tmp_path / "m.tflite"
    write(Program(operators, {"x": x}, {"y": y}), path, description="")
    assert path.stat().st_size > 1 << 31
    for kernels in KERNELS:
        interpreter = Interpreter(str(path), num_threads=1, experimental_op_resolver_type=kernels)
        made = interpreter.get_signature_runner()(x=np.array([0, rows - 1], np.int32))
        np.testing.assert_array_equal(made["y"], [[0], [-1]])
    assert tflite.inspect(path).parameters == 2 * rows
