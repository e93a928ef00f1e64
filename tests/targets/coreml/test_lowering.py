"""The walk over a graph: names, borders, what is refused, and which dimensions stay open."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import target_testing as t
import written

from retarget import catalog
from retarget.errors import RetargetError, Unsupported
from retarget.spec import DimRange
from retarget.targets.coreml import DeploymentTarget, Options
from retarget.targets.coreml.interpreter.program import read
from retarget.targets.coreml.library import ct

TWO: tuple[DeploymentTarget, ...] = ("iOS17", "iOS18")


def values(artifact: Path) -> dict[str, str]:
    """Names in the package → ONNX values."""
    tensors = json.loads((artifact / "tensors.json").read_text())["tensors"]
    return {each["name"]: each["value"] for each in tensors}


def test_every_value_keeps_a_name_of_its_own(tmp_path: Path) -> None:
    model = t.model("""g (float[N,4] x) => (float[N,4] y) {
        a = Sigmoid(x)
        b = Tanh(a)
        c = Relu(b)
        y = Add(c, a)
    }""")
    for old, new in {"a": "/net/0.weight", "b": "_net_0_weight", "c": "sigmoid_0", "x": "1x", "y": "out/put:0"}.items():
        next(value for value in values_of(model) if value.name == old).name = new
    facts = written.written(model, tmp_path)
    assert facts.inputs[0].artifact_name == "_1x"
    assert facts.outputs[0].artifact_name == "out_put_0"
    assert values(tmp_path) == {
        "_1x": "1x",
        "_net_0_weight": "/net/0.weight",
        "_net_0_weight__1": "_net_0_weight",
        "sigmoid_0": "sigmoid_0",
        "out_put_0": "out/put:0",
    }
    feeds = t.feeds(model, 3)
    found, right = t.run("coreml", tmp_path, facts, feeds), t.oracle(model, feeds)
    t.assert_close(found["out/put:0"], right["out/put:0"])


def values_of(model: ir.Model) -> list[ir.Value]:
    return [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]


@pytest.mark.parametrize("target", written.TARGETS)
def test_a_border_may_be_anything_that_onnx_has(target: DeploymentTarget) -> None:
    model = t.model("""g (float[N,3] x, int64[N] i, bool[N,3] m, float s, bool f) =>
        (float[N,3] passed, bool[N,3] turned, float[2] fixed, float[N,3] twice, int64[N] sum, float one, bool no) {
        passed = Identity(x)
        turned = Not(m)
        fixed = Constant <value_floats = [1.5, 2.5]> ()
        twice = Mul(x, s)
        sum = Add(i, i)
        one = Neg(s)
        no = Not(f)
    }""")
    fed = [{name: np.asarray(array) for name, array in t.feeds(model, size).items()} for size in (2, 5)]
    written.check(model, *fed, target=target)


def test_all_nodes_that_cannot_be_written_are_named_behind_others_too() -> None:
    model = t.model("""g (float[2,3] x) => (float[2,3] y, float[2,3,3] z) {
        [first] a = Bernoulli(x)
        [fine] b = Relu(a)
        [second] y = Multinomial(b)
        [third] z = StringNormalizer(b)
    }""")
    refused = catalog.target_emit("coreml").check(model, written.job(model))
    assert [name for name, _, _ in refused] == ["first", "second", "third"]


def test_inputs_that_core_ml_does_not_have_are_refused_with_the_others(tmp_path: Path) -> None:
    model = t.model("""g (double[2] d, float16[2] h, float[1,1,1,1,1,2] wide, string[2] s) => (float[2] y) {
        a = Cast <to = 1> (d)
        b = Cast <to = 1> (h)
        y = Add(a, b)
    }""")
    with pytest.raises(Unsupported) as caught:
        written.written(model, tmp_path, "iOS15")
    assert str(caught.value).splitlines()[1:4] == [
        "  h (input): inputs of float16 need minimum_deployment_target iOS16 or newer, and iOS15 is asked for",
        "  wide (input): it has 6 axes, and Core ML has at most 5",
        "  s (input): Core ML has no inputs of string",
    ]


def test_a_dimension_that_must_be_known_is_fixed_and_the_others_stay_open(tmp_path: Path) -> None:
    model = t.model("""g (float[N,3,5,S] x) => (float[N,3,10,T] y) {
        scales = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()
        [grow] y = Resize <mode = "cubic"> (x, , scales)
    }""")
    facts = written.written(model, tmp_path, S=DimRange(2, 6, 8))
    assert facts.sizes == {"S": 6}
    assert any(note.startswith("S is 6 in the package: Resize 'grow'") for note in facts.notes)
    (function,) = read(tmp_path / "model.mlpackage").functions.values()
    assert [str(kind) for kind in function.inputs.values()] == ["float32[?, 3, 5, 6]"]
    for size in (1, 5):
        feeds = {"x": t.normal(size, 3, 5, 6)}
        t.assert_close(t.run("coreml", tmp_path, facts, feeds)["y"], t.oracle(model, feeds)["y"])


@pytest.mark.parametrize("way", ["ranges", "enumerated"])
def test_open_dimensions_are_described_as_the_option_says(tmp_path: Path, way: str) -> None:
    model = t.model("g (float[N,S] x) => (float[N,S] y) { y = Relu(x) }")
    job = written.job(model, N=DimRange(1, 2, 8), S=DimRange(4, 4, 16))
    options = Options(flexible_shapes=way)  # type: ignore[arg-type]
    catalog.target_emit("coreml").emit(model, replace(job, options=options), tmp_path)
    (told,) = ct.models.MLModel(str(tmp_path / "model.mlpackage"), skip_model_load=True).get_spec().description.input
    array = told.type.multiArrayType
    assert list(array.shape) == [2, 4]
    if way == "ranges":
        bounds = [(each.lowerBound, each.upperBound) for each in array.shapeRange.sizeRanges]
        assert bounds == [(1, 8), (4, 16)]
    else:
        assert [list(each.shape) for each in array.enumeratedShapes.shapes] == [[2, 4], [1, 4], [8, 16]]


def test_shapes_of_several_inputs_are_enumerated_from_ios18_on(tmp_path: Path) -> None:
    model = t.model("g (float[N,4] x, float[N,4] y) => (float[N,4] z) { z = Add(x, y) }")
    emit = catalog.target_emit("coreml").emit
    older, newer = (
        replace(written.job(model), options=Options(minimum_deployment_target=target, flexible_shapes="enumerated"))
        for target in TWO
    )
    with pytest.raises(RetargetError, match="x, y have open dimensions, and iOS17 has enumerated shapes for one input"):
        emit(model, older, tmp_path)
    facts = emit(model, newer, tmp_path)
    feeds = t.feeds(model, 8)
    t.assert_close(t.run("coreml", tmp_path, facts, feeds)["z"], t.oracle(model, feeds)["z"])


def test_a_wrong_package_is_caught(tmp_path: Path) -> None:
    """A weight that is not what it should be, in the file: the interpreter reads it from there."""
    model = t.model("g (float[N,64] x, float[64,64] w_fc) => (float[N,64] y) { y = MatMul(x, w_fc) }")
    facts = written.written(model, tmp_path)
    weights = next(tmp_path.rglob("weight.bin"))
    data = bytearray(weights.read_bytes())
    last = np.frombuffer(data, np.float32)[-1]
    data[-4:] = np.float32(last + 5).tobytes()
    weights.write_bytes(data)
    feeds = t.feeds(model, 3)
    found, right = t.run("coreml", tmp_path, facts, feeds)["y"], t.oracle(model, feeds)["y"]
    assert not np.allclose(found, right, atol=0.5)
