from __future__ import annotations

import onnx_ir as ir
from target_testing import model

from retarget.targets.legal import Rule, isolated, refused, refused_or_tried, tried

GRAPH = """g (float[N,4] x, int64[N,4] i, bool c, float[4,4] w_a) => (float[a,b] y, int64[N,4] j, float[N,4] z) {
    axes = Constant <value_ints = [1]> ()
    [first] a = MatMul(x, w_a)
    [second] b = MatMul(a, w_a)
    [sum] y = ReduceSum(b, axes)
    [int] j = Abs(i)
    [branch] z = If(c) <
        then_branch = t () => (float[N,4] p) { [inner] p = Abs(x) },
        else_branch = e () => (float[N,4] q) { q = Neg(x) }
    >
}"""


def test_a_rule_gives_its_reason_for_each_node() -> None:
    legal = {
        "Abs": Rule(dtypes=frozenset({"float32", "float16"})),
        "ReduceSum": Rule(when=lambda node: "no axes" if len(node.inputs) > 1 else None),
    }
    assert refused(model(GRAPH), legal, closed=False) == [
        ("sum", "ReduceSum", "no axes"),
        ("int", "Abs", "int64 is not among float16, float32"),
    ]


def test_a_closed_table_refuses_what_it_lacks() -> None:
    legal = {"Abs": Rule(), "MatMul": Rule(), "If": Rule(), "Constant": Rule(), "ReduceSum": Rule()}
    found = refused(model(GRAPH), legal, closed=True)
    assert [(op, reason) for _, op, reason in found] == [("Neg", "there is no such operator in the target")]


def test_nodes_are_tried_one_by_one_and_look_alikes_once() -> None:
    seen: list[str] = []

    def trial(alone: ir.Model) -> str | None:
        (node,) = alone.graph
        seen.append(node.op_type)
        return "not today" if node.op_type in ("MatMul", "Abs") else None

    found = tried(model(GRAPH), trial)
    assert [name for name, _, _ in found] == ["first", "second", "int", "inner"]
    # The two products look alike; the two Abs differ in type; the If is judged by what is in it.
    assert sorted(seen) == ["Abs", "Abs", "Constant", "MatMul", "Neg", "ReduceSum"]


def test_what_a_table_refuses_is_not_refused_again() -> None:
    legal = {"ReduceSum": Rule(when=lambda _: "wrong here")}
    found = refused_or_tried(model(GRAPH), legal, lambda alone: "no" if alone.graph[0].op_type == "ReduceSum" else None)
    assert found == [("sum", "ReduceSum", "wrong here")]


def test_a_node_alone_keeps_its_small_constants() -> None:
    whole = model(GRAPH)
    node = next(node for node in whole.graph if node.name == "sum")
    alone = isolated(node, whole.opset_imports)
    assert alone is not None
    assert [value.name for value in alone.graph.inputs] == ["b"]
    assert alone.graph.initializers["axes"].const_value is not None
    assert alone.graph.initializers["axes"].const_value.numpy().tolist() == [1]
    assert node.inputs[0] is not alone.graph.inputs[0], "the model itself is left as it was"


def test_a_node_whose_types_are_unknown_is_not_tried() -> None:
    strange = model("g (float[N] x) => (float[N] y) { h = made.up.Twist(x)  y = Relu(h) }", "made.up")
    assert [op for _, op, _ in tried(strange, lambda _: "no")] == ["made.up::Twist"]
