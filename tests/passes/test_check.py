from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from pass_testing import feeds_for, ops, outputs, parse

from retarget.errors import ToolchainFailure
from retarget.passes import check, presets
from retarget.passes.check import execute, run_checked
from retarget.passes.presets import NamedPass
from retarget.spec import DimRange

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs

TEXT = "g (float[N,4] x) => (float[N,4] y, float[N,4] z) { a = Add(x, one) y = Relu(a) b = Mul(a, two) z = Tanh(b) }"
CONSTANTS = {"one": np.array(1, "f"), "two": np.array(2, "f")}


class Change(ir.passes.InPlacePass):
    """Does ``change`` to the graph."""

    def __init__(self, change: Callable[[ir.Graph], object]) -> None:
        super().__init__()
        self.change = change

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.change(model.graph)
        return ir.passes.PassResult(model, True)


def find(graph: ir.Graph, op: str) -> ir.Node:
    return next(node for node in graph if node.op_type == op)


def use(graph: ir.Graph, op: str, new: str) -> None:
    find(graph, op).op_type = new


def crash(graph: ir.Graph) -> None:
    use(graph, "Add", "Sub")
    raise KeyError("axis")


def rename(graph: ir.Graph) -> None:
    graph.outputs[0].name = "other"


def retype(graph: ir.Graph) -> None:
    graph.inputs[0].dtype = ir.DataType.DOUBLE


HARMLESS = NamedPass("harmless", Change(lambda graph: None))
WRONG = NamedPass("wrong", Change(lambda graph: use(graph, "Relu", "Sigmoid")))
NOT_LOADABLE = NamedPass("not_loadable", Change(lambda graph: use(graph, "Tanh", "Gemm")))
CRASHING = NamedPass("crashing", Change(crash))
RENAMING = NamedPass("renaming", Change(rename))
RETYPING = NamedPass("retyping", Change(retype))


def cases() -> dict[str, Feeds]:
    model = parse(TEXT, CONSTANTS)
    return {f"case{size}": feeds_for(model, {"N": size}) for size in (1, 5)}


def test_passes_that_keep_the_numbers() -> None:
    model = parse(TEXT, CONSTANTS)
    made, facts = run_checked(model, [HARMLESS], cases(), preset="mine")
    assert made is not model
    assert facts.checked
    assert (facts.preset, facts.snr_db, facts.reason) == ("mine", 300, None)
    assert [(fact.name, fact.status, fact.nodes_before, fact.nodes_after) for fact in facts.passes] == [
        ("harmless", "changed", 4, 4)
    ]
    assert facts.seconds_check > 0


@pytest.mark.parametrize(
    ("guilty", "reason"),
    [
        (WRONG, "broke 'y' (snr_db"),
        (NOT_LOADABLE, "made a model that does not run"),
        (CRASHING, "crashed: KeyError: 'axis'"),
        (RENAMING, "changed output 'y' (FLOAT, rank 2) to output 'other' (FLOAT, rank 2)"),
        (RETYPING, "changed input 'x' (FLOAT, rank 2) to input 'x' (DOUBLE, rank 2)"),
    ],
    ids=lambda value: value.name if isinstance(value, NamedPass) else "",
)
@pytest.mark.parametrize("place", range(4))
def test_the_guilty_pass_is_dropped_and_named(guilty: NamedPass, reason: str, place: int) -> None:
    model = parse(TEXT, CONSTANTS)
    passes = [HARMLESS] * 3
    passes.insert(place, guilty)
    made, facts = run_checked(model, passes, cases())
    assert [fact.status for fact in facts.passes] == [
        "dropped" if index == place else "changed" for index in range(len(passes))
    ]
    dropped = facts.passes[place]
    assert dropped.name == guilty.name
    assert dropped.reason is not None
    assert dropped.reason.startswith(reason)
    assert facts.checked
    feeds = cases()["case5"]
    for left, right in zip(outputs(model, feeds), outputs(made, feeds), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_crash_on_what_an_earlier_pass_broke() -> None:
    victim = NamedPass("victim", Change(lambda graph: find(graph, "Relu")))
    _, facts = run_checked(parse(TEXT, CONSTANTS), [HARMLESS, WRONG, HARMLESS, victim], cases())
    assert [fact.status for fact in facts.passes] == ["changed", "dropped", "changed", "changed"]


def test_several_guilty_passes() -> None:
    also_wrong = NamedPass("also_wrong", Change(lambda graph: use(graph, "Tanh", "Sin")))
    passes = [HARMLESS, WRONG, HARMLESS, also_wrong, CRASHING, HARMLESS]
    _, facts = run_checked(parse(TEXT, CONSTANTS), passes, cases())
    assert [fact.name for fact in facts.passes if fact.status == "dropped"] == ["wrong", "also_wrong", "crashing"]
    assert facts.snr_db == 300


@pytest.mark.parametrize("guilty", [WRONG, CRASHING], ids=lambda one: str(one.name))
def test_strict(guilty: NamedPass) -> None:
    with pytest.raises(ToolchainFailure, match=f"pass '{guilty.name}' (broke|crashed)") as caught:
        run_checked(parse(TEXT, CONSTANTS), [HARMLESS, guilty], cases(), strict=True)
    assert caught.value.hint is not None


def test_replays_are_few() -> None:
    runs: list[list[str]] = []

    def counted(model: ir.Model, feeds: Mapping[str, Feeds]) -> dict[str, Outputs]:
        runs.append(ops(model))
        return execute(model, feeds)

    run_checked(parse(TEXT, CONSTANTS), [HARMLESS] * 16, cases(), run=counted)
    assert len(runs) == 2, "one run before, one after"
    runs.clear()
    run_checked(parse(TEXT, CONSTANTS), [*[HARMLESS] * 11, WRONG, *[HARMLESS] * 4], cases(), run=counted)
    assert len(runs) <= 2 + 2 + 4 + 1, "before, after, all, nothing, four halvings of 16, without the guilty one"


def test_a_model_that_does_not_run_is_not_checked() -> None:
    model = parse(TEXT, CONSTANTS)
    use(model.graph, "Tanh", "Gemm")
    _, facts = run_checked(model, [HARMLESS], cases())
    assert not facts.checked
    assert facts.snr_db is None
    assert facts.reason is not None
    assert facts.reason.startswith("the model before the passes does not run")


def test_without_feeds_nothing_is_checked() -> None:
    _, facts = run_checked(parse(TEXT, CONSTANTS), [WRONG], {})
    assert (facts.checked, facts.reason) == (False, "there are no inputs to check with")


def test_a_model_that_never_repeats_itself_blames_no_pass() -> None:
    runs = 0

    def unsteady(model: ir.Model, feeds: Mapping[str, Feeds]) -> dict[str, Outputs]:
        nonlocal runs
        runs += 1
        return {
            case: {name: array + runs for name, array in found.items()} for case, found in execute(model, feeds).items()
        }

    _, facts = run_checked(parse(TEXT, CONSTANTS), [HARMLESS], cases(), run=unsteady)
    assert facts.passes[0].status == "changed"
    assert not facts.checked
    assert facts.reason is not None
    assert "gives other outputs when it runs again" in facts.reason


def test_tensors_are_shared() -> None:
    model = parse(TEXT, CONSTANTS)
    made, _ = run_checked(model, [HARMLESS], cases())
    assert made.graph.initializers["one"].const_value is model.graph.initializers["one"].const_value


def test_presets_run_checked() -> None:
    made, facts = run_checked(parse(TEXT, CONSTANTS), presets.build("default", {}), cases(), preset="default")
    assert facts.checked
    assert not [fact for fact in facts.passes if fact.status == "dropped"]
    assert [value.name for value in made.graph.outputs] == ["y", "z"]


BRANCHES = """g (float[N,4] x) => (float[A,B] y) {
    shape = Shape(x) size = Gather(shape, zero) long = Greater(size, two)
    y = If(long) <
        then_branch = whole () => (float[C,D] t) {
            root = Sqrt(nine) sides = Cast <to = 7> (root) m = Reshape(w, sides) t = MatMul(m, x)
        },
        else_branch = short () => (float[E,F] e) { e = Neg(x) }
    >
}"""
"""`m` is [3,3], which only folding finds out: for an `x` of two rows the branch that is not taken is wrong."""
BRANCHES_CONSTANTS = {
    "zero": np.array(0),
    "two": np.array(2),
    "nine": np.array([9, 9], "f"),
    "w": np.ones((3, 3), "f"),
}
FIXING: list[tuple[str, dict[str, object]]] = [("fix_dimensions", {}), ("infer_shapes", {})]
TWO_ROWS = {"N": DimRange(2, 2, 2)}


def loads_by_default(model: ir.Model) -> bool:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    except ort.capi.onnxruntime_pybind11_state.Fail:
        return False
    return True


def test_a_pass_after_which_onnxruntime_cannot_optimize_is_dropped() -> None:
    model = parse(BRANCHES, BRANCHES_CONSTANTS)
    feeds = {"case": feeds_for(model, {"N": 2})}
    fixed = model.clone()
    for one in presets.build(FIXING, TWO_ROWS):
        fixed = one.run(fixed).model
    assert loads_by_default(model)
    assert not loads_by_default(fixed)
    np.testing.assert_array_equal(outputs(fixed, feeds["case"])[0], np.negative(feeds["case"]["x"]))

    made, facts = run_checked(model, presets.build(FIXING, TWO_ROWS), feeds)
    assert [fact.status == "dropped" for fact in facts.passes] == [True, False]
    reason = facts.passes[0].reason
    assert reason is not None
    assert reason.startswith("made a model that runs only with ONNX Runtime's optimizations off")
    assert "MatMul" in reason
    assert facts.checked
    assert facts.notes == ()
    assert loads_by_default(made)

    with pytest.raises(ToolchainFailure, match="pass 'fix_dimensions' made a model that runs only"):
        run_checked(model, presets.build(FIXING, TWO_ROWS), feeds, strict=True)


def test_no_pass_is_blamed_for_what_onnxruntime_refused_before() -> None:
    model = parse(BRANCHES.replace("float[N,4]", "float[2,4]"), BRANCHES_CONSTANTS)
    assert not loads_by_default(model)
    _, facts = run_checked(model, [HARMLESS], {"case": feeds_for(model, {})})
    assert facts.passes[0].status == "changed"
    assert facts.checked
    assert len(facts.notes) == 1
    assert facts.notes[0].startswith("ONNX Runtime's optimizations refuse the model before the passes: ")


def test_large_weights_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "COPY_LIMIT", 10)
    model = parse(BRANCHES, BRANCHES_CONSTANTS)
    _, facts = run_checked(model, presets.build(FIXING, TWO_ROWS), {"case": feeds_for(model, {"N": 2})})
    assert [fact.status for fact in facts.passes] == ["changed"] * 2
    assert facts.notes == ("not tried with ONNX Runtime's optimizations on: they copy the 0 MB of weights",)
