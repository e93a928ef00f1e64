from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from pass_testing import HEADER, ops, outputs, parse, run_pass

from retarget.passes.library import (
    DeduplicateConstants,
    FixNames,
    FoldConstants,
    InferShapes,
    InlineFunctions,
    LiftConstants,
    MergeEqualNodes,
    RemoveUnused,
    RewriteKnownPatterns,
    snapshot,
)

RNG = np.random.default_rng(0)


def test_functions_are_inlined() -> None:
    text = HEADER.replace("]>", ', "own" : 1]>') + (
        "g (float[N,4] x) => (float[N,4] y) { y = own.twice(x) }\n"
        '<domain: "own", opset_import: ["" : 23]> twice (a) => (c) { b = Relu(a) c = Add(b, b) }\n'
        '<domain: "own", opset_import: ["" : 23]> idle (a) => (b) { b = Relu(a) }'
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    assert InlineFunctions()(model).modified
    assert ops(model) == ["Relu", "Add"]
    assert not model.functions
    assert not InlineFunctions()(model).modified


def test_constants_are_lifted() -> None:
    text = "g (float[N] x) => (float[N] y) { c = Constant <value_float = 2.5> () y = Mul(x, c) }"
    ran = run_pass(LiftConstants(), text)
    assert ran.ops == ["Mul"]
    assert ran.error == 0


def test_constants_of_subgraphs_are_lifted() -> None:
    text = """
    g (bool c, float[N] x) => (float[N] y) {
      y = If (c) <
        then_branch = t () => (float[N] a) { k = Constant <value_float = 2.5> () a = Mul(x, k) },
        else_branch = e () => (float[N] a) { a = Relu(x) }
      >
    }
    """
    ran = run_pass(LiftConstants(), text)
    assert ran.ops == ["If", "Mul", "Relu"]
    assert len(ran.model.graph.initializers) == 1


def test_folding() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { a = Add(c, d) b = Sqrt(a) y = Mul(x, b) }"
    ran = run_pass(FoldConstants(), text, {"c": np.full(4, 2, "f"), "d": np.arange(4, dtype="f")})
    assert ran.ops == ["Mul"]
    assert len(ran.model.graph.initializers) == 1
    assert ran.error < 1e-6


@pytest.mark.parametrize("weights", [(4, 4), (300, 300)])
def test_folding_never_eats_quantization(weights: tuple[int, int]) -> None:
    rows, columns = weights
    text = f"""
    g (float[N,{rows}] x) => (float[N,{columns}] y) {{
      q = QuantizeLinear(w, s, z)
      d = DequantizeLinear(q, s, z)
      y = MatMul(x, d)
    }}
    """
    constants = {"w": RNG.standard_normal(weights).astype("f"), "s": np.array(0.1, "f"), "z": np.array(0, np.int8)}
    ran = run_pass(FoldConstants(), text, constants)
    assert not ran.modified
    assert ran.ops == ["QuantizeLinear", "DequantizeLinear", "MatMul"]


@pytest.mark.parametrize(("limit", "left"), [(1 << 20, ["Mul"]), (1 << 10, ["Expand", "Mul"])])
def test_folding_leaves_large_results(limit: int, left: list[str]) -> None:
    text = "g (float[64,64] x) => (float[64,64] y) { e = Expand(c, s) y = Mul(x, e) }"
    constants = {"c": np.ones((1, 64), "f"), "s": np.array([64, 64])}
    assert run_pass(FoldConstants(limit=limit), text, constants).ops == left


def test_folding_lets_go_of_the_branch_not_taken() -> None:
    """Its nodes are gone, and with them the use of its weights."""
    text = """
    g (float[N,4] x) => (float[N,4] y) <bool yes = {1}> {
      y = If (yes) <
        then_branch = t () => (float[N,4] a) { a = MatMul(x, w) },
        else_branch = e () => (float[N,4] b) { s = Neg(v) b = MatMul(x, s) }
      >
    }
    """
    constants = {name: RNG.standard_normal((4, 4), dtype="f") for name in "wv"}
    ran = run_pass(FoldConstants(), text, constants)
    assert ran.ops == ["MatMul"]
    assert list(ran.model.graph.initializers) == ["w"]
    assert ran.error == 0


def test_unused_nodes_and_constants() -> None:
    text = "g (float[N] x) => (float[N] y) { a = Mul(x, c) b = Relu(a) y = Abs(x) }"
    ran = run_pass(RemoveUnused(), text, {"c": np.array(2, "f"), "d": np.array(3, "f")})
    assert ran.ops == ["Abs"]
    assert not ran.model.graph.initializers


def test_equal_constants() -> None:
    text = "g (float[4] x) => (float[4] y) { a = Mul(x, c) b = Add(a, d) e = Sub(b, i) y = Mul(e, f) }"
    constants = {"c": np.ones(4, "f"), "d": np.ones(4, "f"), "i": np.full(4, 2, "f"), "f": np.ones((1, 4), "f")[0]}
    ran = run_pass(DeduplicateConstants(), text, constants)
    assert sorted(ran.model.graph.initializers) == ["c", "i"]
    assert ran.error == 0


def test_large_constants_of_one_tensor() -> None:
    text = "g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, w) b = MatMul(a, v) y = MatMul(b, u) }"
    weight = RNG.normal(0, 0.1, (64, 64)).astype("f")
    model = parse(text, {"w": weight, "v": weight, "u": weight + 1})
    initializers = model.graph.initializers
    initializers["v"].const_value = initializers["w"].const_value
    assert DeduplicateConstants()(model).modified
    assert sorted(initializers) == ["u", "w"]
    assert not DeduplicateConstants()(model).modified


def test_equal_nodes() -> None:
    text = "g (float[N] x) => (float[N] y) { a = Relu(x) b = Relu(x) c = Abs(x) d = Add(a, b) y = Add(d, c) }"
    ran = run_pass(MergeEqualNodes(), text)
    assert ran.counts == {"Relu": 1, "Abs": 1, "Add": 2}
    assert ran.error == 0


def test_equal_nodes_that_are_outputs_keep_their_names() -> None:
    text = "g (float[N] x) => (float[N] y, float[N] z) { y = Relu(x) z = Relu(x) }"
    ran = run_pass(MergeEqualNodes(), text)
    assert [value.name for value in ran.model.graph.outputs] == ["y", "z"]


def test_shapes_are_inferred() -> None:
    text = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { a = Conv(x, w) y = Relu(a) }"
    model = parse(text, {"w": np.ones((4, 3, 3, 3), "f")})
    for node in model.graph:
        node.outputs[0].shape = None
    assert InferShapes()(model).modified
    assert [str(node.outputs[0].shape) for node in model.graph] == ["[N,4,6,6]", "[N,4,6,6]"]
    assert not InferShapes()(model).modified


def test_shapes_inside_subgraphs_are_inferred() -> None:
    text = """
    g (bool c, float[N,4] x) => (float[N,4] y) {
      y = If (c) <
        then_branch = t () => (float[N,4] a) { b = Relu(x) a = Abs(b) },
        else_branch = e () => (float[N,4] a) { a = Neg(x) }
      >
    }
    """
    model = parse(text)
    relu = next(node for graph in model.graphs() for node in graph if node.op_type == "Relu")
    relu.outputs[0].shape = relu.outputs[0].type = None
    assert InferShapes()(model).modified
    assert (str(relu.outputs[0].shape), relu.outputs[0].dtype) == ("[N,4]", ir.DataType.FLOAT)


def test_inference_does_not_read_weights() -> None:
    model = parse("g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", {"w": np.ones((64, 64), "f")})

    def read() -> ir.TensorProtocol:
        raise AssertionError("read")

    value = model.graph.initializers["w"]
    held = value.const_value = ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape([64, 64]))
    InferShapes()(model)
    assert value.const_value is held


def test_rewrite_rules() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { a = Relu(x) y = Relu(a) }"
    assert run_pass(RewriteKnownPatterns(), text).ops == ["Relu"]
    text = "g (float[N,4,8,8] x) => (float[N,2,6,6] y) { y = Conv(x, w, b) }"
    ran = run_pass(RewriteKnownPatterns(), text, {"w": np.ones((2, 4, 3, 3), "f"), "b": np.zeros(2, "f")})
    assert len(ran.model.graph.node(0).inputs) == 2


def test_names_and_order() -> None:
    model = parse("g (float[N] x) => (float[N] y) { a = Relu(x) y = Abs(a) }")
    first, second = model.graph
    model.graph.remove(first)
    model.graph.append(first)
    assert FixNames()(model).modified
    assert ops(model) == ["Relu", "Abs"]
    assert second.name != first.name
    assert not FixNames()(model).modified


def test_one_value_as_two_outputs() -> None:
    model = parse("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    model.graph.outputs.append(model.graph.outputs[0])
    FixNames()(model)
    assert ops(model) == ["Relu", "Identity"]
    left, right = outputs(model, {"x": np.arange(3, dtype="f")})
    assert (left == right).all()


def test_snapshots_tell_change() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { a = Mul(x, c) y = LeakyRelu <alpha = 0.5> (a) }"
    one = parse(text, {"c": np.ones(4, "f")})
    before = snapshot(one)
    assert snapshot(one) == before
    constant = one.graph.initializers["c"].const_value
    one.graph.initializers["c"].const_value = ir.Tensor(np.ones(4, "f"), name="c")
    assert snapshot(one) != before
    one.graph.initializers["c"].const_value = constant
    assert snapshot(one) == before
    leaky = one.graph.node(1)
    leaky.attributes["alpha"] = ir.AttrFloat32("alpha", 0.25)
    assert snapshot(one) != before
    leaky.attributes["alpha"] = ir.AttrFloat32("alpha", 0.5)
    leaky.outputs[0].shape = None
    assert snapshot(one) != before
