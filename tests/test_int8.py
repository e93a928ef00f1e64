"""int8 inside the quantize step on a trained CNN, and whole builds of it, from the recipe to the report."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from digits_net import CALIBRATION, EVALUATION, digits_model, rows

from retarget import build as builds
from retarget import recipe as recipes
from retarget.budget import Batch
from retarget.calibration.observers import observe
from retarget.engine import Limits
from retarget.errors import RetargetError
from retarget.int8 import Data, is_held_out, named, quantize
from retarget.metrics import open_metric
from retarget.options import DataOptions, Int8Options
from retarget.plan import Invocation
from retarget.schemes import OPENVINO, TENSORRT, TFLITE, TFLITE_16X8, U8S8, QuantScheme
from retarget.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from retarget.facts import QuantizeFacts
    from retarget.protocols import Array
    from retarget.report_schema import ArtifactRow, Report

COARSE = msgspec.structs.replace(U8S8, name="coarse", low=0, high=7)
"""Activations of 3 bits: an int8 bad enough to change answers."""

# ---- in this process


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return ir.from_proto(digits_model())


def batches(path: Path, *starts: int) -> list[dict[str, Array]]:
    return [rows(path, start, start + 16) for start in starts]


@pytest.fixture(scope="module")
def data(model: ir.Model) -> Data:
    given = batches(CALIBRATION, 0, 16, 32)
    return Data(
        ranges=observe(model, given),
        calibration=lambda: iter(given),
        judged_on=[Batch(one) for one in batches(CALIBRATION, 48, 64)],
        words="rows held out",
        metric=None,
    )


@pytest.fixture(scope="module")
def labelled(data: Data) -> Data:
    judged = [Batch(one, one.pop("label")) for one in batches(EVALUATION, *range(0, 128, 16))]
    return Data(data.ranges, data.calibration, judged, "rows of the selection data", partial(open_metric, "top1"))


def options(**changes: object) -> Int8Options:
    plain = Int8Options(
        scheme=U8S8,
        method="mse",
        percentile=99.99,
        max_drop=None,
        min_snr_db=None,
        correct_bias=False,
        keep=(),
        rest="fp32",
        data=DataOptions(origin="calibration", limit=None),
        selection=None,
    )
    return msgspec.structs.replace(plain, **changes)


def logits(model: ir.Model, feeds: Mapping[str, Array]) -> Array:
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), settings)
    found: Array = session.run(["logits"], {"image": feeds["image"]})[0]
    return found


def decibels(reference: Array, found: Array) -> float:
    return float(10 * np.log10(np.square(reference).sum() / np.square(np.subtract(found, reference)).sum()))


def judged_db(model: ir.Model, changed: ir.Model, data: Data) -> float:
    """What ``QuantizeFacts.int8.snr_db`` must be, without our own code."""
    all_rows = {"image": np.concatenate([batch.feeds["image"] for batch in data.judged_on])}
    return decibels(logits(model, all_rows), logits(changed, all_rows))


def int8_nodes(model: ir.Model) -> set[str]:
    """Names of the nodes with a weight that is dequantized."""
    found = set()
    for node in model.graph:
        weight = node.inputs[1].producer() if len(node.inputs) > 1 and node.inputs[1] is not None else None
        if node.op_type in ("Conv", "Gemm") and weight is not None and weight.op_type == "DequantizeLinear":
            found.add(node.name or "")
    return found


def float_nodes(facts: QuantizeFacts) -> set[str]:
    """What has weights and is said to be kept; what stands beside it is kept too, as int8 would gain nothing there."""
    return {one.name for one in facts.kept if one.op in ("Conv", "Gemm")}


@pytest.fixture(scope="module")
def plain(model: ir.Model, data: Data) -> tuple[ir.Model, QuantizeFacts]:
    return quantize(model, options(), data)


@pytest.mark.parametrize("scheme", [U8S8, TENSORRT, TFLITE, TFLITE_16X8], ids=lambda scheme: scheme.name)
def test_what_it_says_of_itself_is_measured_on_the_rows_to_judge_on(
    model: ir.Model, data: Data, scheme: QuantScheme
) -> None:
    changed, facts = quantize(model, options(scheme=scheme), data)
    assert facts.int8 is not None
    assert facts.int8.snr_db == pytest.approx(judged_db(model, changed, data), abs=0.05)
    assert facts.int8.snr_db > 25
    assert facts.precision == ("int16x8" if scheme is TFLITE_16X8 else "int8")
    assert facts.int8.judged_on == "32 rows held out"
    assert facts.int8.budget is None
    assert float_nodes(facts) == set()
    assert int8_nodes(changed) == {node.name for node in model.graph if node.op_type in ("Conv", "Gemm")}


def test_the_ends_are_integers_where_that_is_asked(model: ir.Model, data: Data) -> None:
    changed, facts = quantize(model, options(scheme=TFLITE, integer_io=True), data)
    assert [user.op_type for user, _ in changed.graph.inputs[0].uses()] == ["QuantizeLinear"]
    maker = changed.graph.outputs[0].producer()
    assert maker is not None
    assert maker.op_type == "DequantizeLinear"
    assert facts.int8 is not None
    assert facts.int8.snr_db == pytest.approx(judged_db(model, changed, data), abs=0.05)


def test_all_of_the_range_suits_int16_best(model: ir.Model, data: Data) -> None:
    found = {}
    for method in ("minmax", "mse", "percentile"):
        _, facts = quantize(model, options(scheme=TFLITE_16X8, method=method), data)
        assert facts.int8 is not None
        found[method] = facts.int8.snr_db
    assert found["minmax"] >= max(found.values()) - 0.3


def test_a_runtime_that_leaves_out_roundings_is_judged_without_them(model: ir.Model, data: Data) -> None:
    changed, facts = quantize(model, options(scheme=OPENVINO), data)
    simulated, _ = quantize(model, options(scheme=OPENVINO.simulated), data)
    assert facts.int8 is not None
    assert facts.int8.snr_db == pytest.approx(judged_db(model, simulated, data), abs=0.05)
    assert facts.int8.snr_db > judged_db(model, changed, data)


@pytest.mark.parametrize("samples", [16, 48])
def test_the_method_that_measures_better_is_taken(model: ir.Model, data: Data, samples: int) -> None:
    fewer = dataclasses.replace(data, ranges=observe(model, batches(CALIBRATION, *range(0, samples, 16))))
    scores = {}
    for method in ("mse", "minmax"):
        changed, _ = quantize(model, options(method=method), fewer)
        scores[method] = judged_db(model, changed, fewer)
    chosen, facts = quantize(model, options(method="auto"), fewer)
    assert facts.int8 is not None
    assert facts.int8.method == max(scores, key=lambda method: scores[method])
    assert judged_db(model, chosen, fewer) == pytest.approx(max(scores.values()), abs=1e-6)


def test_a_budget_that_holds_costs_nothing(model: ir.Model, data: Data) -> None:
    _, facts = quantize(model, options(min_snr_db=20.0), data)
    assert facts.int8 is not None
    budget = facts.int8.budget
    assert budget is not None
    assert (budget.goal, budget.returned, budget.macs_share) == ("min_snr_db 20", (), 0)
    assert budget.tried == 1
    assert budget.latency_ratio is None
    assert budget.before == budget.after == pytest.approx(facts.int8.snr_db)


def test_a_budget_in_decibels_returns_nodes_to_float(
    model: ir.Model, data: Data, plain: tuple[ir.Model, QuantizeFacts]
) -> None:
    assert plain[1].int8 is not None
    goal = plain[1].int8.snr_db + 4
    changed, facts = quantize(model, options(min_snr_db=goal), data)
    assert facts.int8 is not None
    budget = facts.int8.budget
    assert budget is not None
    assert budget.before == pytest.approx(plain[1].int8.snr_db)
    assert budget.after >= goal
    assert judged_db(model, changed, data) >= goal - 0.05
    returned = {one.name for one in budget.returned}
    assert returned
    assert int8_nodes(plain[0]) - int8_nodes(changed) == returned
    assert float_nodes(facts) == returned
    assert all(one.reason.startswith("returned to float: ") for one in facts.kept if one.name in returned)
    assert 0 < budget.macs_share < 1
    assert budget.latency_ratio is not None
    assert facts.int8.notes == ()


def test_a_budget_that_cannot_be_met_says_what_was_found(model: ir.Model, data: Data) -> None:
    with pytest.raises(RetargetError) as missed:
        quantize(model, options(min_snr_db=150.0), data)
    words = missed.value.message
    assert words.startswith("min_snr_db 150 cannot be met in u8s8 int8: the best that was found has ")
    assert "\n" not in words
    assert " dB with 10 nodes " in words
    assert missed.value.hint is not None
    assert "fp16" in missed.value.hint


def test_a_drop_is_judged_by_labels(model: ir.Model, labelled: Data) -> None:
    coarse, _ = quantize(model, options(scheme=COARSE), labelled)
    changed, facts = quantize(model, options(scheme=COARSE, max_drop=0.01), labelled)

    def accuracy(model: ir.Model) -> float:
        right = [logits(model, one.feeds).argmax(1) == one.labels for one in labelled.judged_on]
        return float(np.concatenate(right).mean())

    assert facts.int8 is not None
    budget = facts.int8.budget
    assert budget is not None
    assert budget.before == pytest.approx(accuracy(model) - accuracy(coarse))
    assert budget.before > 0.01
    assert budget.after == pytest.approx(accuracy(model) - accuracy(changed))
    assert budget.after <= 0.01
    assert budget.returned
    assert facts.int8.notes == ()
    assert facts.int8.judged_on == "128 rows of the selection data"


def test_without_labels_a_drop_is_of_the_float_models_own_answers(model: ir.Model, labelled: Data) -> None:
    unlabelled = Data(
        labelled.ranges, labelled.calibration, [Batch(one.feeds) for one in labelled.judged_on], "rows", None
    )
    changed, facts = quantize(model, options(scheme=COARSE, max_drop=0.02), unlabelled)
    same = [logits(model, one.feeds).argmax(1) == logits(changed, one.feeds).argmax(1) for one in unlabelled.judged_on]
    assert facts.int8 is not None
    budget = facts.int8.budget
    assert budget is not None
    assert budget.after == pytest.approx(1 - float(np.concatenate(same).mean()))
    assert budget.after <= 0.02 < budget.before
    (note,) = facts.int8.notes
    assert "no labels" in note


def test_without_class_scores_a_drop_is_refused(data: Data) -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[N,1,32,32] image) => (float[N] y) <int64[3] axes = {1, 2, 3}> { y = ReduceMean<keepdims = 0>(image, axes) }
    """
    with pytest.raises(RetargetError, match=r"max_drop needs class scores \[rows, classes\], output 'y' has"):
        quantize(ir.from_proto(onnx.parser.parse_model(text)), options(max_drop=0.01), data)


def test_what_the_user_keeps_stays_float(model: ir.Model, data: Data) -> None:
    changed, facts = quantize(model, options(keep=("stem.0", "Gemm")), data)
    every = {node.name for node in model.graph if node.op_type in ("Conv", "Gemm")}
    assert int8_nodes(changed) == every - {"stem.0", "head"}
    assert float_nodes(facts) == {"stem.0", "head"}


def test_keep_knows_names_and_operators_and_asks_after_others(model: ir.Model) -> None:
    assert named(model, ("Gemm", "down.0")) == {"head", "down.0"}
    with pytest.raises(RetargetError, match=r"keep: no node or operator 'Gem' in the optimized model") as wrong:
        named(model, ("Gem",))
    assert wrong.value.hint == "did you mean 'Gemm'?"


def test_a_budget_returns_none_of_what_the_user_keeps(
    model: ir.Model, data: Data, plain: tuple[ir.Model, QuantizeFacts]
) -> None:
    assert plain[1].int8 is not None
    _, facts = quantize(model, options(min_snr_db=plain[1].int8.snr_db + 6, keep=("stem.0",)), data)
    assert facts.int8 is not None
    assert facts.int8.budget is not None
    assert facts.int8.budget.returned
    assert "stem.0" not in {one.name for one in facts.int8.budget.returned}


def test_the_rest_in_float16_leaves_no_node_called_float32(model: ir.Model, data: Data) -> None:
    changed, facts = quantize(model, options(keep=("down.0",), rest="fp16"), data)
    weight = changed.graph.node("down.0").inputs[1]
    assert weight is not None
    assert weight.dtype == ir.DataType.FLOAT16
    assert "down.0" not in {one.name for one in facts.kept}
    whole, _ = quantize(model, options(keep=("down.0",)), data)
    assert judged_db(model, changed, data) == pytest.approx(judged_db(model, whole, data), abs=0.5)


def test_corrected_biases_are_kept_only_with_a_gain(model: ir.Model, data: Data) -> None:
    before, _ = quantize(model, options(scheme=COARSE), data)
    changed, facts = quantize(model, options(scheme=COARSE, correct_bias=True), data)
    assert facts.int8 is not None
    gain = judged_db(model, changed, data) - judged_db(model, before, data)
    assert gain == pytest.approx(facts.int8.bias_gain_db or 0.0, abs=0.05)
    assert gain >= 0


def test_one_batch_of_five_is_held_out() -> None:
    assert [index for index in range(12) if is_held_out(index)] == [4, 9]


# ---- whole builds

RECIPE = """
version: 1
name: digits
model: {path: digits.onnx, shapes: {N: {min: 1, opt: 8, max: 16}}}
data:
  calibration: {path: calibration.npz, samples: 40}
  evaluation: {path: evaluation.npz, samples: 64}
variants:
  - int8
  - int8-kept: {precision: int8, keep: [stage2.0.pointwise, Gemm], method: minmax, correct_bias: false}
targets:
  - onnxruntime
  - openvino
  - tensorrt_rtx: {variants: [int8], compute_capability: ["8.9"], optional: true}
gates: {parity: {int8: {snr_db: 20}}}
"""


def build(folder: Path, text: str) -> Report:
    (folder / "recipe.yaml").write_text(text)
    store = Store(folder / "store")
    try:
        return builds.build(
            recipes.load(folder / "recipe.yaml"),
            store,
            folder / "out",
            invocation=Invocation(threads=1, bench=False),
            limits=Limits(memory_bytes=None, seconds=None),
            jobs=2,
            display=lambda steps, found: nullcontext(lambda event: None),
        ).report
    finally:
        store.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    onnx.save(digits_model(), folder / "digits.onnx")
    for path in (CALIBRATION, EVALUATION):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> Report:
    return build(folder, RECIPE)


def row(report: Report, name: str) -> ArtifactRow:
    return next(one for one in report.artifacts if one.name == name)


def smallest(report: Report, name: str) -> float:
    worst = row(report, name).worst
    assert worst is not None
    return worst.snr_db


def simulated(report: Report, name: str, scheme: str) -> float:
    """The SNR of the quantized graph that the artifact was made of, on the same inputs."""
    (stage,) = (one for one in row(report, name).budget if one.step == f"quantize {row(report, name).variant}/{scheme}")
    return stage.snr_db


@pytest.mark.timeout(300)
def test_what_calibration_recorded_is_beside_the_report(made: Report, folder: Path) -> None:
    linked = {row.ranges for row in made.artifacts if row.int8 is not None}
    assert linked == {"calibration/equalized/ranges.html"}
    page = (folder / "out" / "calibration/equalized/ranges.html").read_text()
    assert all(f">{name}<" in page for name in ("image", "logits"))


def test_one_calibration_serves_every_target(made: Report) -> None:
    assert made.verdict == "pass", made.reasons
    ran = [step.id for step in made.steps if step.kind in ("calibrate", "quantize") or step.id == "equalize"]
    assert sorted(ran) == sorted(
        [
            "equalize",
            "calibrate equalized",
            *(f"quantize int8/{name}" for name in ("u8s8", "openvino", "tensorrt")),
            *(f"quantize int8-kept/{name}" for name in ("u8s8", "openvino")),
        ]
    )
    int8 = row(made, "onnxruntime/int8").int8
    assert int8 is not None
    assert int8.judged_on == "8 rows held out of the calibration data"


@pytest.mark.parametrize("variant", ["int8", "int8-kept"])
@pytest.mark.parametrize(("target", "scheme"), [("onnxruntime", "u8s8"), ("openvino", "openvino")])
def test_an_artifact_computes_what_its_scheme_says(made: Report, target: str, scheme: str, variant: str) -> None:
    name = f"{target}/{variant}"
    assert row(made, name).verified == "executed"
    found, written = smallest(made, name), simulated(made, name, scheme)
    # OpenVINO leaves out roundings that are written in its graph, so it may be better than that.
    assert written - 1.0 <= found <= written + (3.0 if scheme == "openvino" else 1.0)


def test_types_are_read_back_from_the_artifacts(made: Report) -> None:
    for target in ("onnxruntime", "openvino"):
        whole, kept = row(made, f"{target}/int8").precision, row(made, f"{target}/int8-kept").precision
        assert whole is not None
        assert kept is not None
        assert (whole.weights, whole.activations, whole.io) == ("int8", "uint8", "float32")
        assert kept.low_precision_share is not None
        assert whole.low_precision_share is not None
        # 8 x 8 x 64 x 64 of 2,523,776 multiply-accumulates, and the head's 640.
        assert whole.low_precision_share - kept.low_precision_share == pytest.approx(0.104, abs=0.005)
        assert whole.low_precision_share > 0.95


TFLITE_RECIPE = (
    RECIPE.partition("variants:")[0]
    + """variants:
  - int8
  - int8-io: {precision: int8, io: int8}
  - int16x8: {io: int16}
  - int8_dynamic
targets: [tflite]
"""
)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("made")
def test_every_low_precision_of_tflite_computes_what_its_graph_says(folder: Path) -> None:
    report = build(folder, TFLITE_RECIPE)
    assert report.verdict == "pass", report.reasons
    types = {}
    for name in ("int8", "int8-io", "int16x8", "int8_dynamic"):
        found = row(report, f"tflite/{name}")
        assert found.verified == "executed"
        assert found.accuracy is not None
        assert found.accuracy.drop == pytest.approx(0, abs=0.02)
        assert found.precision is not None
        types[name] = found.precision.weights, found.precision.activations, found.precision.io
    assert types == {
        "int8": ("int8", "int8", "float32"),
        "int8-io": ("int8", "int8", "int8"),
        "int16x8": ("int8", "int16", "int16"),
        "int8_dynamic": ("int8", "float32", "float32"),
    }
    assert smallest(report, "tflite/int8") == pytest.approx(simulated(report, "tflite/int8", "tflite"), abs=0.5)
    assert smallest(report, "tflite/int8-io") == pytest.approx(simulated(report, "tflite/int8-io", "tflite"), abs=0.5)
    of_int16 = simulated(report, "tflite/int16x8", "tflite_16x8")
    assert smallest(report, "tflite/int16x8") == pytest.approx(of_int16, abs=0.5)
    assert smallest(report, "tflite/int8_dynamic") > 30
    assert not [step for step in report.steps if step.id.startswith("quantize") and step.status == "failed"]


# ---- what goes wrong, or is not as usual


def failed(report: Report, step: str) -> str:
    (found,) = (one for one in report.steps if one.id == step)
    assert found.status == "failed"
    assert found.error is not None
    return found.error.message


ONE = RECIPE.partition("variants:")[0] + "variants: [int8: {SETTINGS}]\ntargets: [onnxruntime]\n"


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("made")
def test_a_budget_that_cannot_be_met_fails_the_build(folder: Path) -> None:
    report = build(folder, ONE.replace("SETTINGS", "min_snr_db: 150"))
    assert failed(report, "quantize int8/u8s8").startswith("min_snr_db 150 cannot be met in u8s8 int8: the best")
    assert report.verdict == "incomplete"
    assert row(report, "onnxruntime/int8").status != "built"
    from retarget.report import exit_code

    assert exit_code(report) == 1


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("made")
def test_selection_data_judges_and_all_calibration_rows_give_ranges(folder: Path) -> None:
    text = ONE.replace("  evaluation:", "  selection: {path: evaluation.npz, samples: 32}\n  evaluation:")
    report = build(folder, text.replace("SETTINGS", "max_drop: 0.02"))
    int8 = row(report, "onnxruntime/int8").int8
    assert int8 is not None
    assert int8.judged_on == "32 rows of the selection data"
    assert int8.budget is not None
    assert int8.budget.goal == "max_drop 0.02"
    assert int8.notes == ()  # the labels were read


NET = """
<ir_version: 10, opset_import: ["" : 23]>
net (float[N,T,64] x, float[N,T,64] factor) => (float[N,T,4] y) <float[64,128] w1, float[128,4] w2> {
  masked = Mul(x, factor)
  h = MatMul(masked, w1)
  r = Relu(h)
  y = MatMul(r, w2)
}
"""

NET_RECIPE = """
version: 1
name: net
model: {path: net.onnx, shapes: {N: {min: 1, opt: 2, max: 4}, T: {min: 1, opt: 5, max: 9}}}
data: {calibration: DATA}
variants: [int8]
targets: [onnxruntime, openvino]
"""


def save_net(folder: Path) -> None:
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(NET)
    for name, shape in (("w1", (64, 128)), ("w2", (128, 4))):
        array = rng.normal(0, 0.1, shape).astype("f")
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, folder / "net.onnx")


@pytest.mark.timeout(300)
def test_one_sample_of_two_inputs_with_dynamic_sizes(tmp_path: Path) -> None:
    save_net(tmp_path)
    rng = np.random.default_rng(1)
    x, factor = rng.normal(size=(1, 6, 64)).astype("f"), rng.uniform(0, 1, (1, 6, 64)).astype("f")
    np.savez(tmp_path / "one.npz", x=x, factor=factor)
    report = build(tmp_path, NET_RECIPE.replace("DATA", "one.npz"))
    assert report.verdict == "pass", report.reasons
    int8 = row(report, "onnxruntime/int8").int8
    assert int8 is not None
    assert int8.judged_on.endswith("those that gave the ranges: there are too few to hold some out")
    for target in ("onnxruntime", "openvino"):
        assert {one.samples for one in row(report, f"{target}/int8").parity} == {1 + 1 + 2 + 4 + 4}
        assert smallest(report, f"{target}/int8") > 20


@pytest.mark.timeout(300)
def test_weights_alone_need_no_data(tmp_path: Path) -> None:
    save_net(tmp_path)
    text = NET_RECIPE.replace("data: {calibration: DATA}\n", "")
    report = build(tmp_path, text.replace("[int8]", "[int8_weights, {int4_weights: {block: 16}}]"))
    assert report.verdict == "pass", report.reasons
    assert not [step for step in report.steps if step.kind == "calibrate"]
    for target in ("onnxruntime", "openvino"):
        for name, weights in (("int8_weights", "int8"), ("int4_weights", "int4")):
            made = row(report, f"{target}/{name}")
            assert made.int8 is None
            assert made.precision is not None
            assert (made.precision.weights, made.precision.activations) == (weights, "float32")
        assert smallest(report, f"{target}/int8_weights") > smallest(report, f"{target}/int4_weights") + 10


@pytest.mark.timeout(300)
def test_drawn_data_marks_the_report(tmp_path: Path) -> None:
    save_net(tmp_path)
    text = NET_RECIPE.replace("DATA", "{synthetic: normal, samples: 20}").replace(", openvino", "")
    report = build(tmp_path, text)
    assert any("synthetic data" in warning for warning in report.warnings), report.warnings
    precision = row(report, "onnxruntime/int8").precision
    assert precision is not None
    assert precision.weights == "int8"


@pytest.mark.timeout(300)
def test_quantization_that_is_in_the_model_is_kept(tmp_path: Path) -> None:
    """The scales of a model that was trained with them are the user's."""
    save_net(tmp_path)
    text = NET.replace(
        "h = MatMul(masked, w1)", "q = QuantizeLinear(masked, s, z)\n d = DequantizeLinear(q, s, z)\n h = MatMul(d, w1)"
    )
    model = onnx.parser.parse_model(text.replace("w2>", "w2, float s = {0.037}, uint8 z = {101}>"))
    known = {one.name for one in model.graph.initializer}
    for initializer in onnx.load(tmp_path / "net.onnx").graph.initializer:
        if initializer.name not in known:
            model.graph.initializer.append(initializer)
    onnx.save(model, tmp_path / "net.onnx")
    report = build(tmp_path, NET_RECIPE.replace("DATA", "{synthetic: normal, samples: 20}").replace(", openvino", ""))
    assert report.verdict == "pass", report.reasons
    emitted = onnx.load(tmp_path / "out" / "onnxruntime" / "int8" / "model.onnx")
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in emitted.graph.initializer}
    quantizers = [node for node in emitted.graph.node if node.op_type == "QuantizeLinear"]
    scales = {(float(arrays[node.input[1]]), int(arrays[node.input[2]])) for node in quantizers}
    assert (float(np.float32(0.037)), 101) in scales
