"""Programs of saved packages: rounding, feeds, what is declared and what is not so."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import packaged
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.errors import RetargetError, ToolchainFailure
from retarget.targets.coreml.interpreter.call import Call, Dictionary, NotInterpreted, Result
from retarget.targets.coreml.interpreter.declared import DictionaryType, ListType, TensorType
from retarget.targets.coreml.interpreter.evaluate import Interpreter
from retarget.targets.coreml.interpreter.ops import OPS
from retarget.targets.coreml.interpreter.program import read
from retarget.targets.coreml.library import Function, Program, Var, ct, mb, new_symbol, proto, types

if TYPE_CHECKING:
    from retarget.protocols import Array

X = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)


def package(path: Path, build: Callable[[Mapping[str, Var]], Var], **shapes: Any) -> Path:
    packaged.saved(path, {"x": X}, build, 17, shapes)
    return path


def tampered(path: Path, change: Callable[[Any], object]) -> Path:
    """``change`` is given the block of operations of the saved program."""
    place = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = proto.Model_pb2.Model.FromString(place.read_bytes())
    function = spec.mlProgram.functions["main"]
    change(function.block_specializations[function.opset])
    place.write_bytes(spec.SerializeToString())
    return path


def operation(block: Any, name: str) -> Any:
    """The operation that computes ``name``."""
    return next(each for each in block.operations if any(output.name == name for output in each.outputs))


# ---- precision


def chain(values: Mapping[str, Var]) -> Var:
    """Every step of it is rounded differently in float16."""
    half = mb.cast(x=values["x"], dtype="fp16", name="half")
    third = mb.real_div(x=half, y=np.float16(3), name="third")
    power = mb.exp(x=third, name="power")
    total = mb.add(x=power, y=np.float16(2048), name="total")
    mean = mb.reduce_mean(x=total, axes=[1], keep_dims=True, name="mean")
    scaled = mb.mul(x=mean, y=np.float16(40), name="scaled")
    return mb.cast(x=scaled, dtype="fp32", name="done")


def test_half_precision_is_rounded_at_every_step(tmp_path: Path) -> None:
    trace: dict[str, Array] = {}
    found = Interpreter(read(package(tmp_path / "m.mlpackage", chain))).run({"x": X}, trace)
    right = {"half": X.astype(np.float16)}
    right["third"] = (right["half"].astype(np.float32) / 3).astype(np.float16)
    right["power"] = np.exp(right["third"].astype(np.float32)).astype(np.float16)
    right["total"] = (right["power"].astype(np.float32) + 2048).astype(np.float16)
    right["mean"] = right["total"].astype(np.float64).mean(1, keepdims=True).astype(np.float32).astype(np.float16)
    with np.errstate(over="ignore"):
        right["scaled"] = (right["mean"].astype(np.float32) * 40).astype(np.float16)
    assert np.isinf(right["scaled"]).all()  # beyond what float16 holds
    for name, each in right.items():
        assert trace[name].dtype == np.float16
        np.testing.assert_array_equal(trace[name], each, err_msg=name)
    assert list(trace) == [*right, "done"]
    np.testing.assert_array_equal(found["done"], right["scaled"].astype(np.float32))


def test_full_precision_rounds_nothing(tmp_path: Path) -> None:
    trace: dict[str, Array] = {}
    found = Interpreter(read(package(tmp_path / "m.mlpackage", chain)), "fp32").run({"x": X}, trace)
    assert {each.dtype for each in trace.values()} == {np.dtype(np.float32)}
    right = (np.exp(X.astype(np.float64) / 3) + 2048).mean(1, keepdims=True) * 40
    np.testing.assert_allclose(found["done"].astype(np.float64), right, rtol=1e-6)


def test_half_precision_constants_are_not_kept_wide(tmp_path: Path) -> None:
    weight = np.linspace(0, 1, 12, dtype=np.float16).reshape(3, 4)

    def build(values: Mapping[str, Var]) -> Var:
        total = mb.add(x=mb.cast(x=values["x"], dtype="fp16"), y=weight, name="total")
        moved = mb.transpose(x=mb.const(val=weight, name="weight"), perm=[1, 0], name="moved")
        return mb.cast(x=mb.matmul(x=total, y=moved), dtype="fp32", name="done")

    trace: dict[str, Array] = {}
    Interpreter(read(package(tmp_path / "m.mlpackage", build))).run({"x": X}, trace)
    assert trace["moved"].dtype == np.float16
    assert not trace["moved"].flags.owndata  # still the file's


def test_float16_inputs_are_rounded(tmp_path: Path) -> None:
    program = Program()
    with Function({"x": mb.placeholder((3, 4), types.fp16, name="x")}, opset_version=ct.target.iOS16) as function:
        function.set_outputs([mb.relu(x=function.inputs["x"], name="done")])
    program.add_function("main", function)
    packaged.convert(program, 16).save(str(tmp_path / "m.mlpackage"))
    saved = read(tmp_path / "m.mlpackage")
    half = Interpreter(saved).run({"x": X / 3})["done"]
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, np.maximum(X / 3, 0).astype(np.float16))
    full = Interpreter(saved, "fp32").run({"x": X / 3})["done"]
    assert full.dtype == np.float32
    np.testing.assert_array_equal(full, np.maximum(X / 3, 0))


# ---- values and scopes


def test_values_are_freed_after_their_last_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    made: list[weakref.ref[Array]] = []

    def relu(call: Call) -> Result:
        gc.collect()
        alive.append(sum(each() is not None for each in made))
        result = call.array("x") + 1
        made.append(weakref.ref(result))
        return result

    monkeypatch.setattr("retarget.targets.coreml.interpreter.evaluate.OPS", {**OPS, "relu": relu})

    def build(values: Mapping[str, Var]) -> Var:
        value = values["x"]
        for _ in range(6):
            value = mb.relu(x=value)
        return mb.identity(x=value, name="done")

    found = Interpreter(read(package(tmp_path / "m.mlpackage", build))).run({"x": X})
    np.testing.assert_allclose(found["done"].astype(np.float64), X + 6, rtol=1e-6)
    assert alive == [0, 1, 1, 1, 1, 1]  # the operand of each, and no value before it


def test_an_output_is_not_what_was_fed(tmp_path: Path) -> None:
    path = package(tmp_path / "m.mlpackage", lambda values: mb.identity(x=values["x"], name="done"))
    fed = X.copy()
    found = Interpreter(read(path)).run({"x": fed})["done"]
    found[:] = 0
    np.testing.assert_array_equal(fed, X)


@pytest.mark.filterwarnings("ignore:Some dimensions in the input shape are unknown:UserWarning")
def test_unknown_sizes_are_taken_from_the_feeds(tmp_path: Path) -> None:
    def build(values: Mapping[str, Var]) -> Var:
        return mb.reshape(x=mb.mul(x=values["x"], y=np.float32(2)), shape=np.array([-1], np.int32), name="done")

    path = package(tmp_path / "m.mlpackage", build, x=(new_symbol(), 4))
    program = read(path)
    assert program.functions["main"].inputs == {"x": TensorType("float32", (None, 4))}
    for rows in (1, 2):
        x = np.ones((rows, 4), np.float32)
        np.testing.assert_array_equal(Interpreter(program).run({"x": x})["done"], np.full(rows * 4, 2, np.float32))
    with pytest.raises(ToolchainFailure, match=r"input 'x' is declared float32\[\?, 4\], it is fed float32\[2, 3\]"):
        Interpreter(program).run({"x": np.ones((2, 3), np.float32)})
    with pytest.raises(ToolchainFailure, match=r"input 'x' can be of \[1…2, 4…4\], it is fed float32\[5, 4\]"):
        Interpreter(program).run({"x": np.ones((5, 4), np.float32)})


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "input 'x' is not fed"),
        ({"x": X, "z": X}, "the program has no input 'z'"),
        ({"x": X[:2]}, r"input 'x' is declared float32\[3, 4\], it is fed float32\[2, 4\]"),
        ({"x": X.astype(np.int32)}, r"it is fed int32\[3, 4\]"),
    ],
)
def test_wrong_feeds(feeds: dict[str, Array], message: str, tmp_path: Path) -> None:
    path = package(tmp_path / "m.mlpackage", lambda values: mb.relu(x=values["x"], name="done"))
    with pytest.raises(ToolchainFailure, match=message):
        Interpreter(read(path)).run(feeds)


def test_strings_lists_and_dictionaries_are_read(tmp_path: Path) -> None:
    def build(values: Mapping[str, Var]) -> Var:
        return mb.gelu(x=values["x"], mode="TANH_APPROXIMATION", name="done")

    path = package(tmp_path / "m.mlpackage", build)
    operations = {each.type: each for each in read(path).functions["main"].block.operations}
    mode = operations["const"].value
    assert mode.type == TensorType("string", ())
    assert str(mode.read()) == "TANH_APPROXIMATION"
    assert operations["gelu"].place == "gelu 'done'"

    def add_list(block: Any) -> None:
        constant = block.operations[0]
        declared = constant.outputs[0].type.listType
        declared.type.tensorType.dataType = 2
        declared.length.constant.size = 2
        value = constant.attributes["val"]
        value.Clear()
        value.type.listType.CopyFrom(declared)
        for text in ("cat", "dog"):
            each = value.immediateValue.list.values.add()
            each.type.tensorType.dataType = 2
            each.immediateValue.tensor.strings.values.append(text)

    (constant, *_) = read(tampered(path, add_list)).functions["main"].block.operations
    assert constant.value.type == ListType(TensorType("string", ()), 2)
    found = constant.value.read()
    assert isinstance(found, list)
    assert [str(each) for each in found] == ["cat", "dog"]

    def add_dictionary(block: Any) -> None:
        value = block.operations[0].attributes["val"]
        value.Clear()
        value.type.dictionaryType.keyType.tensorType.dataType = 2
        value.type.dictionaryType.valueType.tensorType.dataType = 24
        for number, text in enumerate(("cat", "dog")):
            pair = value.immediateValue.dictionary.values.add()
            pair.key.type.tensorType.dataType, pair.value.type.tensorType.dataType = 2, 24
            pair.key.immediateValue.tensor.strings.values.append(text)
            pair.value.immediateValue.tensor.longInts.values.append(number)

    (constant, *_) = read(tampered(path, add_dictionary)).functions["main"].block.operations
    assert isinstance(constant.value.type, DictionaryType)
    found = constant.value.read()
    assert isinstance(found, Dictionary)
    assert (found.keys.tolist(), found.values.tolist()) == (["cat", "dog"], [0, 1])


# ---- programs that are not what they declare


def two(values: Mapping[str, Var]) -> Var:
    first = mb.relu(x=values["x"], name="first")
    return mb.reduce_sum(x=first, axes=[1], keep_dims=False, name="done")


def _resized(block: Any) -> None:
    operation(block, "first").outputs[0].type.tensorType.dimensions[0].constant.size = 5


def _retyped(block: Any) -> None:
    operation(block, "first").outputs[0].type.tensorType.dataType = 23


def _reordered(block: Any) -> None:
    operations = [*block.operations]
    del block.operations[:]
    block.operations.extend(sorted(operations, key=lambda each: each.type == "relu"))


def _twice(block: Any) -> None:
    block.operations.append(operation(block, "first"))


def _more_outputs(block: Any) -> None:
    extra = operation(block, "first").outputs.add()
    extra.CopyFrom(operation(block, "first").outputs[0])
    extra.name = "extra"


def _parameter(name: str) -> Callable[[Any], object]:
    return lambda block: operation(block, "done").inputs.pop(name)


def _constant(**changes: Any) -> Callable[[Any], None]:
    """The axes of the sum are another constant."""

    def change(block: Any) -> None:
        name = operation(block, "done").inputs["axes"].arguments[0].name
        constant = operation(block, name)
        value = constant.attributes["val"]
        value.immediateValue.tensor.Clear()
        if "kind" in changes:
            value.type.tensorType.dataType = changes["kind"]
        if changes.get("declared", True):
            constant.outputs[0].type.CopyFrom(value.type)
        value.immediateValue.tensor.ints.values.extend(changes.get("values", []))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_resized, r"relu 'first': output 'first' is declared float32\[5, 4\], got float32\[3, 4\]"),
        (_retyped, r"relu 'first': output 'first' is declared int32\[3, 4\], got float32\[3, 4\]"),
        (_reordered, r"reduce_sum 'done' reads 'first', which nothing in front of it computes"),
        (_twice, r"relu 'first' computes 'first', which exists already"),
        (_more_outputs, r"relu 'first': 2 outputs are declared, 1 are computed"),
        (_parameter("x"), r"reduce_sum 'done': parameter 'x' is missing"),
        (_parameter("axes"), r"is declared float32\[3\], got float32\[\]"),
        (_constant(values=[7]), r"reduce_sum 'done': parameter 'axes' is 7, of a tensor of 2 axes"),
        (_constant(values=[1, 1]), r"a constant declared int32\[1\] has 2 elements"),
        (_constant(values=[]), r"a constant declared int32\[1\] has no value|has 0 elements"),
        (_constant(values=[1], kind=11), r"reduce_sum 'done': parameter 'axes' is float32, integers is expected"),
        (_constant(values=[1], kind=99), r"a tensor is of type 99"),
        (_constant(values=[1], kind=22, declared=False), r"const '.*' is declared int32\[1\], it holds int16\[1\]"),
        (lambda block: block.outputs.append("nothing"), r"block output 'nothing' is computed by nothing"),
        (lambda block: operation(block, "first").inputs["x"].arguments[0].Clear(), "neither a name nor a value"),
    ],
)
def test_wrong_programs(change: Callable[[Any], object], message: str, tmp_path: Path) -> None:
    path = tampered(package(tmp_path / "m.mlpackage", two), change)
    with pytest.raises(ToolchainFailure, match=message):
        Interpreter(read(path)).run({"x": X})


def test_unknown_operations_are_told_at_once(tmp_path: Path) -> None:
    def change(block: Any) -> None:
        operation(block, "first").type = "frobnicate"
        operation(block, "done").type = "accumulate"

    program = read(tampered(package(tmp_path / "m.mlpackage", two), change))
    with pytest.raises(NotInterpreted, match="no interpretation of accumulate, frobnicate"):
        Interpreter(program)


def test_what_numpy_refuses_is_told_with_its_place(tmp_path: Path) -> None:
    def build(values: Mapping[str, Var]) -> Var:
        return mb.reshape(x=values["x"], shape=mb.cast(x=values["sizes"], dtype="int32"), name="done")

    path = tmp_path / "m.mlpackage"
    packaged.saved(path, {"x": X, "sizes": np.array([2, 6], np.int32)}, build, 17)
    with pytest.raises(ToolchainFailure, match="reshape 'done': cannot reshape array of size 12"):
        Interpreter(read(path)).run({"x": X, "sizes": np.array([5, 5], np.int32)})


@pytest.mark.parametrize(
    ("build", "x", "message"),
    [
        (lambda x: mb.cast(x=x, dtype="int32"), 3e9, "cast 'done': a float is outside of int32"),
        (lambda x: mb.cast(x=x, dtype="uint8"), -1, "a float is outside of uint8"),
        (lambda x: mb.cast(x=x, dtype="int32"), np.nan, "a float is outside of int32"),
        (lambda x: mb.real_div(x=mb.cast(x=x, dtype="int32"), y=np.int32(2)), 3, "how the quotient becomes one"),
        (lambda x: mb.pow(x=mb.cast(x=x, dtype="int32"), y=np.int32(-1)), 3, "to the power of a negative one"),
        (lambda x: mb.exp2(x=mb.cast(x=x, dtype="int32")), 3, "how the result becomes one is not documented"),
        (lambda x: mb.reduce_mean(x=mb.cast(x=x, dtype="int32"), keep_dims=True, axes=[0]), 3, "x is int32"),
        (lambda x: mb.clamped_relu(x=x, alpha=0.5, beta=-1.0), 3, "beta is -1.0"),
        (lambda x: mb.one_hot(indices=mb.cast(x=x, dtype="int32"), one_hot_vector_size=3), 3, "outside of 0 to 2"),
        (lambda x: mb.pad(x=x, pad=[2, 0], mode="replicate"), 3, "is more than there is"),
    ],
)
def test_what_is_not_certain_is_not_interpreted(
    build: Callable[[Var], Var], x: float, message: str, tmp_path: Path
) -> None:
    def named(values: Mapping[str, Var]) -> Var:
        made = build(values["x"])
        made.op.name = made.name = "done"
        return made

    path = tmp_path / "m.mlpackage"
    packaged.saved(path, {"x": np.zeros(1, np.float32)}, named, 17)
    with pytest.raises(NotInterpreted, match=message):
        Interpreter(read(path)).run({"x": np.array([x], np.float32)})


# ---- damage


def rich(values: Mapping[str, Var]) -> Var:
    """A bit of everything, one weight of each kind of storage."""
    x = mb.add(x=values["x"], y=np.arange(12, dtype=np.float32).reshape(3, 4))
    x = mb.transpose(x=mb.pad(x=x, pad=[1, 1], mode="reflect"), perm=[1, 0])
    x = mb.slice_by_index(x=x, begin=[0, 0], end=[4, 3], end_mask=[True, False], stride=[2, 1])
    left, right = mb.split(x=mb.tile(x=x, reps=[2, 1]), num_splits=2, axis=0)
    x = mb.concat(values=[left, mb.gelu(x=right, mode="TANH_APPROXIMATION")], axis=1)
    x = mb.select(cond=mb.greater(x=x, y=np.float32(0)), a=x, b=mb.exp(x=x))
    half = mb.mul(x=mb.cast(x=x, dtype="fp16"), y=np.linspace(0, 1, 18, dtype=np.float16).reshape(3, 6))
    values, places = mb.topk(x=mb.cast(x=half, dtype="fp32"), k=2, axis=1)
    hot = mb.one_hot(indices=places, one_hot_vector_size=6, on_value=np.float32(1), off_value=np.float32(0))
    return mb.reshape(x=mb.mul(x=hot, y=mb.expand_dims(x=values, axes=[-1])), shape=[0, -1], name="done")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Array]:
    path = package(tmp_path_factory.mktemp("healthy") / "m.mlpackage", rich)
    return path, Interpreter(read(path)).run({"x": X})["done"]


def _damage(block: Any, random: Random) -> None:
    """Change what an operation is, is given or declares."""
    chosen = random.choice(block.operations)
    declared = chosen.outputs[0].type.tensorType
    match random.choice(["type", "operand", "missing", "renamed", "size", "dtype", "number"]):
        case "type" if chosen.type != "const":
            chosen.type = random.choice(sorted(OPS))
        case "operand" if chosen.inputs:
            given = chosen.inputs[random.choice(sorted(chosen.inputs))].arguments
            given[0].name = random.choice([output.name for each in block.operations for output in each.outputs])
        case "missing" if chosen.inputs:
            del chosen.inputs[random.choice(sorted(chosen.inputs))]
        case "renamed" if chosen.inputs:
            kept = chosen.inputs[random.choice(sorted(chosen.inputs))]
            chosen.inputs[
                random.choice(["axes", "bias", "data", "indices", "mode", "pad", "scale", "weight"])
            ].CopyFrom(kept)
        case "size" if declared.dimensions:
            random.choice(declared.dimensions).constant.size = random.choice([0, 1, 2, 3, 7, 2**40, 2**63])
        case "dtype":
            declared.dataType = random.choice([1, 2, 10, 11, 21, 22, 23, 25, 31, 34, 39])
        case "number" if chosen.type == "const":
            held = chosen.attributes["val"].immediateValue.tensor.ints.values
            if held:
                held[0] = random.choice([0, 1, -1, 2, 5, -7, 100, 2**31 - 1, -(2**31)])
        case _:
            pass


def test_wrong_programs_of_any_kind_are_told(tmp_path: Path) -> None:
    path = package(tmp_path / "m.mlpackage", rich)
    place = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    content, told = place.read_bytes(), 0
    for seed in range(300):
        place.write_bytes(content)
        random = Random(seed)
        for _ in range(random.randint(1, 3)):
            tampered(path, lambda block, random=random: _damage(block, random))  # type: ignore[misc]
        try:
            Interpreter(read(path)).run({"x": X})
        except RetargetError:
            told += 1
    assert told > 100


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_bytes_are_told_or_change_numbers_only(healthy: tuple[Path, Array], data: st.DataObject) -> None:
    path, right = healthy
    place = data.draw(st.sampled_from(sorted(each for each in path.rglob("*") if each.is_file())))
    content = place.read_bytes()
    damaged = bytearray(content)
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    place.write_bytes(damaged)
    try:
        found = Interpreter(read(path)).run({"x": X})
        assert all(each.shape == right.shape for each in found.values())
    except RetargetError:
        pass  # it is told
    finally:
        place.write_bytes(content)
