"""Custom operators: the file read back with the schema's own classes; LiteRT has no kernels for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import target_testing as t
from ai_edge_litert import schema_py_generated as generated
from flatbuffers import flexbuffers

from retarget import catalog
from retarget.errors import ToolchainFailure, Unsupported
from retarget.facts import EmitFacts
from retarget.targets.tflite import Options
from retarget.targets.tflite.emit import FILE, check

DRAWN = """g (float[N,4] x, float[4,4] w_a) => (float[N,4] y) {
    [first] a = MatMul(x, w_a)
    [draw] d = RandomNormalLike<seed = 1.0>(a)
    [last] y = Relu(d)
}"""
LENGTHS = "ai.example::Lengths"


def own() -> ir.Model:
    """An operator of the user's own domain behind a convolution, with attributes of every kind."""
    text = """<ir_version: 10, opset_import: ["": 23, "ai.example": 1]>
    g (float[N,3,4,4] x, float[8,3,1,1] w, int64[2] i) => (float[N,8] y, int32[N] n)
    <float[8] s = {1, 2, 3, 4, 5, 6, 7, 8}> {
        [conv] c = Conv(x, w)
        [own] y, n = ai.example.Lengths <ratio = 0.5, mode = "near", steps = [1, -2, 300], weights = [0.5, 2.0],
                                         names = ["a", "b"], count = 7> (c, , s, i)
    }"""
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    model = ir.from_proto(proto)
    for value in [each for each in model.graph.inputs if each.name in ("w", "i")]:
        assert value.shape is not None
        assert value.dtype is not None
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(np.ones(value.shape.numpy(), value.dtype.numpy()), name=value.name)
        model.graph.register_initializer(value)
    return model


def emitted(model: ir.Model, out: Path, *names: str, precision: str = "fp32") -> EmitFacts:
    job = replace(t.job("tflite", model, precision), options=Options(custom_ops=names))
    return catalog.target_emit("tflite").emit(model, job, out)


def read(out: Path) -> tuple[Any, list[tuple[str | None, Any]]]:
    """The graph, and each operator behind the name that it has where it is a custom one."""
    model = generated.ModelT.InitFromPackedBuf((out / FILE).read_bytes())
    codes = [code.customCode and code.customCode.decode() for code in model.operatorCodes]
    graph = model.subgraphs[0]
    return graph, [(codes[each.opcodeIndex], each) for each in graph.operators]


def test_an_operator_that_is_named_is_written_with_its_name_operands_and_attributes(tmp_path: Path) -> None:
    facts = emitted(own(), tmp_path, LENGTHS)
    graph, operators = read(tmp_path)
    ((name, operator),) = [each for each in operators if each[0]]
    assert name == LENGTHS
    assert flexbuffers.Loads(bytes(operator.customOptions)) == {
        "count": 7,
        "mode": "near",
        "names": ["a", "b"],
        "ratio": 0.5,
        "steps": [1, -2, 300],
        "weights": [0.5, 2.0],
    }
    # In ONNX's order of axes, behind a convolution that has the channels last; what is left out is -1.
    places = [int(index) for index in operator.inputs]
    assert places[1] == -1
    assert [list(graph.tensors[index].shape) for index in places if index >= 0] == [[4, 8, 4, 4], [8], [2]]
    assert graph.tensors[places[3]].type == generated.TensorType.INT32
    outputs = [graph.tensors[index] for index in operator.outputs]
    assert [(list(each.shape), each.type) for each in outputs] == [
        ([4, 8], generated.TensorType.FLOAT32),
        ([4], generated.TensorType.INT32),
    ]
    assert facts.sizes == {"N": 4}
    assert f"the runtime must bring custom operators: {LENGTHS}" in facts.notes


def test_nothing_is_custom_that_has_a_builtin_form(tmp_path: Path) -> None:
    emitted(t.model(DRAWN), tmp_path, "MatMul", "Relu", "RandomNormalLike")
    _, operators = read(tmp_path)
    assert [name for name, _ in operators if name] == ["RandomNormalLike"]
    assert len(operators) == 3


def test_the_interpreter_refuses_it_and_the_facts_say_so_before(tmp_path: Path) -> None:
    facts = emitted(own(), tmp_path, LENGTHS)
    assert facts.not_executable == f"no kernels for its custom operators are here: {LENGTHS}"
    with pytest.raises(ToolchainFailure, match="unresolved custom op"):
        t.run("tflite", tmp_path, facts, {"x": t.normal(4, 3, 4, 4)})
    whole = t.model("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    assert emitted(whole, tmp_path, LENGTHS).not_executable is None


def test_what_is_not_named_is_refused_and_the_hint_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"own \(ai\.example::Lengths\): there is no such operator") as caught:
        emitted(own(), tmp_path, "Lengths")
    assert "`custom_ops`" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("y = ai.example.Own <value = float[1] {1}> (x)", "value is a tensor, which a custom operator cannot have"),
        ("z = ai.example.Own(x) y = Relu(z)", "the model does not say the shape and type of its result 'z'"),
    ],
)
def test_what_has_no_form_is_refused(node: str, reason: str) -> None:
    text = f'<ir_version: 10, opset_import: ["": 23, "ai.example": 1]> g (float[N] x) => (float[N] y) {{ {node} }}'
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    job = replace(t.job("tflite", model), options=Options(custom_ops=("ai.example::Own",)))
    assert reason in [refusal[2] for refusal in check(model, job)]


def test_both_reasons_are_given_where_the_builtin_form_is_refused_as_well() -> None:
    loop = """g (float[3] x, int64 n, bool b) => (float[3] y) {
        [loop] y = Loop (n, b, x) <body = body (int64 i, bool on, float[3] a) => (bool go, float[3] c) {
            go = Identity(on) c = Add(a, a) }>
    }"""
    model = t.model(loop)
    job = replace(t.job("tflite", model), options=Options(custom_ops=("Loop",)))
    ((_, _, reason),) = check(model, job)
    assert reason.startswith("loops are not written: unroll it before the export (in Keras `unroll=True`, or no mask)")
    assert reason.endswith("; and as a custom operator: body is a graph, which a custom operator cannot have")
