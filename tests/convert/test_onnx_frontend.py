"""The ONNX frontend: files of every opset, with data outside, and files that must be refused. Oracle: ONNX Runtime."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from damage import damage
from onnx import TensorProto, helper, numpy_helper

from retarget import graph
from retarget.catalog import frontend, frontend_export, frontend_load
from retarget.compare import snr_db
from retarget.errors import RetargetError, Unsupported
from retarget.recognise import recognise
from retarget.session import Session
from retarget.source import Source
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds

EXPORT = frontend_export("onnx")
LOAD = frontend_load("onnx")
FLOAT = TensorProto.FLOAT
Nodes = Sequence[onnx.NodeProto]


def _source(path: Path, *inputs: str, outputs: tuple[str, ...] = ()) -> Source:
    return Source(path, tuple(map(TensorSpec.parse, inputs)), {}, outputs)


def _model(
    nodes: Nodes, inputs: dict[str, list[int | str]], outputs: Sequence[str], *, opset: int, **constants: object
) -> onnx.ModelProto:
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _convert(source: Source, tmp_path: Path) -> tuple[ir.Model, tuple[str, ...]]:
    exported = EXPORT.export(source, None, tmp_path)
    model = LOAD.load(tmp_path, source, exported)
    assert model.opset_imports[""] == graph.OPSET
    assert tuple(graph.value_spec(value) for value in model.graph.inputs) == exported.inputs
    assert tuple(value.name for value in model.graph.outputs) == exported.outputs
    return model, exported.notes


def _assert_same(source: Source, model: ir.Model, feeds: Feeds, tmp_path: Path) -> None:
    """The lifted model against the file itself, both without optimizations."""
    with EXPORT.reference(source, EXPORT.export(source, None, tmp_path)) as runner, Session(model) as session:
        expected, actual = runner.run(feeds), session.run(feeds)
    for name, value in expected.items():
        assert value.std() > 0
        assert snr_db(value, actual[name]) >= 100


def _node(op: str, inputs: str = "x", **attributes: object) -> list[onnx.NodeProto]:
    return [helper.make_node(op, inputs.split(), ["y"], op, **attributes)]  # type: ignore[arg-type]


def _f32(*values: float) -> Array:
    return np.array(values, "f4")


def _i64(*values: int) -> Array:
    return np.array(values, "i8")


IMAGE: dict[str, list[int | str]] = {"x": ["N", 4, 6, 6]}
CHANGED: dict[str, tuple[int, Nodes, dict[str, object]]] = {
    # What changed its form or meaning between opset 7 and 23.
    "BatchNormalization 7": (
        7,
        _node("BatchNormalization", "x s b m v"),
        dict.fromkeys("sbmv", np.arange(1, 5, dtype="f4")),
    ),
    "Upsample 7": (7, _node("Upsample", scales=[1.0, 1.0, 2.0, 2.0], mode="nearest"), {}),
    "Upsample 9 linear": (9, _node("Upsample", "x s", mode="linear"), {"s": _f32(1, 1, 2, 2)}),
    "Resize 10 nearest up": (10, _node("Resize", "x s", mode="nearest"), {"s": _f32(1, 1, 1.5, 2)}),
    "Resize 10 nearest down": (10, _node("Resize", "x s", mode="nearest"), {"s": _f32(1, 1, 0.6, 0.4)}),
    "Resize 10 linear": (10, _node("Resize", "x s", mode="linear"), {"s": _f32(1, 1, 0.5, 0.5)}),
    "Resize 11": (
        11,
        _node("Resize", "x r s", mode="linear", coordinate_transformation_mode="align_corners"),
        {"r": np.zeros(0, "f4"), "s": _f32(1, 1, 2, 2)},
    ),
    "Slice 1": (9, _node("Slice", starts=[1, 0], ends=[3, 4], axes=[1, 3]), {}),
    "Pad 2": (10, _node("Pad", pads=[0, 0, 1, 2, 0, 0, 0, 1], mode="reflect"), {}),
    "Clip 6": (10, _node("Clip", min=-0.5, max=0.25), {}),
    "Softmax 1": (12, _node("Softmax", axis=1), {}),
    "Hardmax 1": (12, _node("Hardmax", axis=2), {}),
    "LogSoftmax 11": (11, _node("LogSoftmax"), {}),
    "Dropout 7": (7, _node("Dropout", ratio=0.3), {}),
    "ReduceSum 11": (11, _node("ReduceSum", axes=[1, 2], keepdims=0), {}),
    "ReduceMean 13": (13, _node("ReduceMean", axes=[-1]), {}),
    "Squeeze 11": (
        11,
        [helper.make_node("Slice", ["x", "a", "b", "c"], ["z"]), helper.make_node("Squeeze", ["z"], ["y"], axes=[1])],
        {"a": _i64(0), "b": _i64(1), "c": _i64(1)},
    ),
    "Unsqueeze 9": (9, _node("Unsqueeze", axes=[0, 3]), {}),
    "TopK 1": (9, [helper.make_node("TopK", ["x"], ["y", "i"], axis=1, k=2)], {}),
    "Split 11": (
        11,
        [helper.make_node("Split", ["x"], ["a", "b"], axis=1, split=[1, 3]), helper.make_node("Relu", ["b"], ["y"])],
        {},
    ),
    "Split 13": (
        13,
        [helper.make_node("Split", ["x"], ["a", "b"], axis=1), helper.make_node("Mul", ["a", "b"], ["y"])],
        {},
    ),
    "Gemm 7": (
        7,
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w", "c"], ["y"])],
        {"w": np.linspace(-1, 1, 144 * 5, dtype="f4").reshape(144, 5), "c": np.ones(5, "f4")},
    ),
    "GroupNormalization 18": (
        18,
        _node("GroupNormalization", "x s b", num_groups=2, epsilon=0.3),
        {"s": _f32(1, 2), "b": _f32(0, 1)},
    ),
    "AveragePool 7": (7, _node("AveragePool", kernel_shape=[2, 2], pads=[1, 1, 0, 0]), {}),
}


@pytest.mark.parametrize("name", CHANGED)
def test_lifted_models_compute_the_same(name: str, tmp_path: Path) -> None:
    opset, nodes, constants = CHANGED[name]
    path = tmp_path / "m.onnx"
    onnx.save(_model(nodes, IMAGE, ["y"], opset=opset, **constants), path)
    source = _source(path)
    model, notes = _convert(source, tmp_path)
    assert f"opset {opset} was converted to {graph.OPSET}" in notes
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 4, 6, 6)).astype("f4")}
    _assert_same(source, model, feeds, tmp_path)


def test_a_newer_opset_is_relabelled_where_nothing_that_is_used_changed(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_model(_node("Softmax"), IMAGE, ["y"], opset=25), path)
    source = _source(path)
    model, _ = _convert(source, tmp_path)
    _assert_same(source, model, {"x": np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype("f4")}, tmp_path)

    onnx.save(_model(_node("Swish"), IMAGE, ["y"], opset=24), path)
    with pytest.raises(Unsupported, match=r"opset 24, newer than 23.*\n  Swish \(Swish\)"):
        _convert(source, tmp_path)


@pytest.mark.parametrize("opset", [17, 23])
def test_a_cycle_is_refused_and_another_order_is_not(opset: int, tmp_path: Path) -> None:
    """onnx's converter would call a cycle its own failure, and advise to export at a newer opset."""
    loop = [*_node("Add", "x b"), *_node("Relu", "y")]
    loop[1].output[:] = ["b"]
    onnx.save(_model(loop, {"x": ["N", 4]}, ["b"], opset=opset), tmp_path / "cycle.onnx")
    with pytest.raises(RetargetError, match=r"not a valid ONNX model \(.*cycle"):
        _convert(_source(tmp_path / "cycle.onnx"), tmp_path)

    late = [*_node("Relu", "a"), *_node("Neg", "x")]
    late[1].output[:] = ["a"]
    onnx.save(_model(late, {"x": ["N", 4]}, ["y"], opset=opset), tmp_path / "late.onnx")
    model, _ = _convert(_source(tmp_path / "late.onnx"), tmp_path)
    assert [node.op_type for node in model.graph] == ["Neg", "Relu"]


def test_opset_6_is_refused(tmp_path: Path) -> None:
    onnx.save(_model(_node("Relu"), IMAGE, ["y"], opset=6), tmp_path / "m.onnx")
    with pytest.raises(RetargetError, match="opset 6 is older than 7") as caught:
        _convert(_source(tmp_path / "m.onnx"), tmp_path)
    assert "export the model again" in str(caught.value.hint)


def test_weights_come_through_the_skeleton(tmp_path: Path) -> None:
    """Weights too large for the skeleton are put back after the lift, and subgraphs keep theirs."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 64)).astype("f4")
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inner"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", FLOAT, None)],
        [numpy_helper.from_array(weight.T.copy(), "inner")],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", FLOAT, None)]
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["either"], then_branch=branch, else_branch=other),
        helper.make_node("MatMul", ["either", "w"], ["y"]),
    ]
    path = tmp_path / "m.onnx"
    onnx.save(_model(nodes, {"x": ["N", 64]}, ["y"], opset=11, w=weight, zero=np.float32(0)), path)
    source = _source(path)
    model, _ = _convert(source, tmp_path)
    x = rng.standard_normal((2, 64)).astype("f4")
    for feed in (x, -x):
        _assert_same(source, model, {"x": feed}, tmp_path)


def test_functions_are_inlined_and_custom_domains_kept(tmp_path: Path) -> None:
    function = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        helper.make_node("Twice", ["x"], ["t"], domain="mine"),
        helper.make_node("FusedGelu", ["t"], ["y"], domain="com.example"),
    ]
    model = _model(nodes, IMAGE, ["y"], opset=17)
    model.functions.append(function)
    model.opset_import.extend([helper.make_opsetid("mine", 1), helper.make_opsetid("com.example", 1)])
    onnx.save(model, tmp_path / "m.onnx")
    converted, notes = _convert(_source(tmp_path / "m.onnx"), tmp_path)
    assert [node.op_type for node in converted.graph] == ["Add", "FusedGelu"]
    assert not converted.functions
    assert any("com.example" in note and "1 FusedGelu" in note for note in notes)
    assert not any("mine" in note for note in notes)


# ---- inputs, outputs, dimensions


def test_specs_name_and_fix_dimensions(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["y"]), helper.make_node("Relu", ["b"], ["z"])]
    shapes: dict[str, list[int | str]] = {"a": ["batch", "len"], "b": ["batch", "len"]}
    onnx.save(_model(nodes, shapes, ["y", "z"], opset=17), tmp_path / "m.onnx")
    path = tmp_path / "m.onnx"

    assert EXPORT.export(_source(path), None, tmp_path).inputs == (
        TensorSpec("a", "float32", ("batch", "len")),
        TensorSpec("b", "float32", ("batch", "len")),
    )
    model, _ = _convert(_source(path, "a=float32[N,8]", "b=float32[N,8]", outputs=("z", "y")), tmp_path)
    assert [graph.value_spec(value).type for value in model.graph.outputs] == ["float32[N,8]", "float32[N,8]"]

    for inputs, message in (
        (["a=float32[N,8]"], "input 'b' is not named"),
        (["a=float32[N,8]", "c=float32[N,8]"], "has no input 'c'"),
        (["a=float32[N,8]", "b=int64[N,8]"], "input 'b': int64 was given"),
        (["a=float32[N,8]", "b=float32[N]"], "input 'b': 1 dimensions were given"),
        (["a=float32[N,8]", "b=float32[N,9]"], "'9' was given, but"),
    ):
        with pytest.raises(RetargetError, match=message.replace("[", r"\[")) as caught:
            EXPORT.export(_source(path, *inputs), None, tmp_path)
        assert caught.value.hint
    with pytest.raises(RetargetError, match="has no output 'q'"):
        EXPORT.export(_source(path, outputs=("q",)), None, tmp_path)


def test_a_fixed_dimension_does_not_become_symbolic(tmp_path: Path) -> None:
    onnx.save(_model(_node("Relu"), {"x": [1, 4]}, ["y"], opset=17), tmp_path / "m.onnx")
    with pytest.raises(RetargetError, match=r"dimension 0: 'N' was given, .* has it fixed at 1"):
        EXPORT.export(_source(tmp_path / "m.onnx", "x=float32[N,4]"), None, tmp_path)


def test_odd_symbols_become_names(tmp_path: Path) -> None:
    onnx.save(_model(_node("Relu"), {"x": ["past + 1", "2x", ""]}, ["y"], opset=17), tmp_path / "m.onnx")
    exported = EXPORT.export(_source(tmp_path / "m.onnx"), None, tmp_path)
    assert exported.inputs[0].shape == ("past_1", "dim_2x", "x_dim2")
    _convert(_source(tmp_path / "m.onnx"), tmp_path)


def test_a_dimension_of_minus_one_is_open(tmp_path: Path) -> None:
    onnx.save(_model(_node("Tanh"), {"x": [-1, 4]}, ["y"], opset=17), tmp_path / "m.onnx")
    unnamed = EXPORT.export(_source(tmp_path / "m.onnx"), None, tmp_path)
    assert [isinstance(dim, str) for dim in unnamed.inputs[0].shape] == [True, False]
    source = _source(tmp_path / "m.onnx", "x=float32[N,4]")
    model, _ = _convert(source, tmp_path)
    assert graph.value_spec(model.graph.outputs[0]).shape == ("N", 4)
    _assert_same(source, model, {"x": np.linspace(-1, 1, 8, dtype="f4").reshape(2, 4)}, tmp_path)


def test_initializers_that_are_inputs_are_constants(tmp_path: Path) -> None:
    model = _model(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        {"x": ["N", 4], "w": [4]},
        ["y"],
        opset=8,
        w=np.arange(4, dtype="f4"),
    )
    model.ir_version = 3
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    converted, _ = _convert(_source(path), tmp_path)
    assert [value.name for value in converted.graph.inputs] == ["x"]
    _assert_same(
        _source(path), converted, {"x": np.random.default_rng(0).standard_normal((2, 4)).astype("f4")}, tmp_path
    )

    converted, notes = _convert(_source(path, "x=float32[N,4]", "w=float32[4]"), tmp_path)
    assert [value.name for value in converted.graph.inputs] == ["x", "w"]
    assert not converted.graph.initializers
    assert any("'w' has a default" in note for note in notes)


def test_what_is_no_tensor_is_refused(tmp_path: Path) -> None:
    model = _model(_node("Relu"), IMAGE, ["y"], opset=17)
    model.graph.input.append(helper.make_tensor_sequence_value_info("s", FLOAT, None))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(Unsupported, match="input 's' is a sequence"):
        EXPORT.export(_source(tmp_path / "m.onnx"), None, tmp_path)


# ---- external data


def _external(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = _model(nodes, {"x": ["N", 64]}, ["y"], opset=13, w=rng.standard_normal((64, 32)).astype("f4"))
    path = folder / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    return path


def test_external_data_stays_mapped(tmp_path: Path) -> None:
    source = _source(_external(tmp_path))
    model, _ = _convert(source, tmp_path)
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
    _assert_same(source, model, {"x": np.random.default_rng(1).standard_normal((2, 64)).astype("f4")}, tmp_path)


def test_missing_and_short_data_files_are_named(tmp_path: Path) -> None:
    path = _external(tmp_path)
    data = tmp_path / "m.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(RetargetError, match=r"tensor 'w' needs 8192 bytes at 0 of .*m.data, which has 8191"):
        EXPORT.export(_source(path), None, tmp_path)
    data.unlink()
    with pytest.raises(RetargetError, match=r"tensor 'w': its data file .*m.data does not exist"):
        EXPORT.export(_source(path), None, tmp_path)


@pytest.mark.parametrize("location", ["../secret", "sub/../../secret", "/etc/passwd", "", "link"])
def test_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(8192))
    (folder / "link").symlink_to(tmp_path / "secret")
    path = _external(folder)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(RetargetError, match="outside the model's folder"):
        EXPORT.export(_source(path), None, tmp_path)


@pytest.mark.stress
def test_more_than_2_gb(tmp_path: Path) -> None:
    """A sparse file: 2.7 GB of weights, of which one row is not zero."""
    rows, columns = 1 << 20, 640
    path = tmp_path / "m.onnx"
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[rows, columns], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", str(rows * columns * 4))):
        tensor.external_data.add(key=key, value=value)
    model = _model([helper.make_node("Gather", ["w", "i"], ["y"])], {}, ["y"], opset=11)
    model.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, ["N"]))
    model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    row = np.random.default_rng(0).standard_normal(columns).astype("f4")
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(rows * columns * 4)
        file.seek((rows - 1) * columns * 4)
        file.write(row.tobytes())
    source = _source(path)
    converted, _ = _convert(source, tmp_path)
    _assert_same(source, converted, {"i": np.array([0, rows - 1])}, tmp_path)


# ---- damaged files


def test_a_missing_file_and_a_factory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RetargetError, match="no such file"):
        EXPORT.export(_source(tmp_path / "none.onnx"), None, tmp_path)
    path = _external(tmp_path)
    with pytest.raises(RetargetError, match="needs no factory"):
        EXPORT.export(Source(path, (), {}, factory=(path, "build")), None, tmp_path)


def _is_refused(source: Source, tmp_path: Path) -> bool:
    try:
        LOAD.load(tmp_path, source, EXPORT.export(source, None, tmp_path))
    except RetargetError as error:
        return bool(error.hint) and ("\n" not in error.message or isinstance(error, Unsupported))
    return False


@pytest.mark.parametrize("kind", ["cut", "flip", "drop", "repeat"])
def test_damaged_files_never_end_in_a_traceback(kind: str, tmp_path: Path) -> None:
    """Either a clear error or, where the damage is in a name or a weight, a model; each with the same content."""
    opset, nodes, constants = CHANGED["Gemm 7"]
    content = _model(nodes, IMAGE, ["y"], opset=opset, **constants).SerializeToString()
    path = tmp_path / "m.onnx"
    rng = random.Random(kind)
    refused = 0
    for _ in range(150):
        path.write_bytes(damage(content, kind, rng))
        refused += _is_refused(_source(path), tmp_path)
    assert refused > (100 if kind in ("cut", "drop") else 20)


def test_sizes_that_lie_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = _model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": ["N", 4]}, ["y"], opset=17, w=np.ones(4, "f4"))
    for dims, message in (([1 << 40, 1 << 20], "its shape needs"), ([-4], "impossible shape"), ([3], "has 16 bytes")):
        model.graph.initializer[0].dims[:] = dims
        path.write_bytes(model.SerializeToString())
        with pytest.raises(RetargetError, match=message):
            EXPORT.export(_source(path), None, tmp_path)


# ---- recognition


def test_files_are_recognised_by_content(tmp_path: Path) -> None:
    matches = frontend("onnx").matches
    path = _external(tmp_path)
    bare = tmp_path / "model.bin"
    bare.write_bytes(path.read_bytes())
    assert matches(bare) == "ONNX"
    (tmp_path / "broken.onnx").write_bytes(b"nonsense")
    assert matches(tmp_path / "broken.onnx") is None
    assert recognise(tmp_path / "broken.onnx") == ("onnx", "ONNX")
    for name, content in (
        ("a.pt", b"PK\x03\x04"),
        ("b.bin", b""),
        ("c.txt", b"\x08\x08hello"),
        ("d.bin", b"\x08\xff\xff\xff"),
    ):
        (tmp_path / name).write_bytes(content)
        assert matches(tmp_path / name) is None
    assert matches(tmp_path) is None


@pytest.mark.parametrize("name", ["onnx", "pytorch"])
def test_the_light_half_imports_nothing_heavy(name: str) -> None:
    code = (
        f"import sys, retarget.convert.{name} as f; f.matches(__import__('pathlib').Path('pyproject.toml'));"
        "print({'numpy', 'onnx', 'onnx_ir', 'torch', 'safetensors', 'transformers'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
