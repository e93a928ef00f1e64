from __future__ import annotations

import platform
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import quantized
from target_testing import CNN, assert_close, emit, job, model, normal, oracle, run

from retarget import graph
from retarget.compare import snr_db
from retarget.errors import ToolchainFailure, Unsupported
from retarget.targets import machine
from retarget.targets.onnxruntime.emit import check
from retarget.targets.onnxruntime.executed import Executed, executed

TARGET = "onnxruntime"


def test_an_artifact_computes_what_the_graph_says(tmp_path: Path) -> None:
    cnn = model(CNN.format(t="float"))
    facts = emit(TARGET, cnn, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    feeds = {"image": normal(3, 4, 8, 8)}
    expected = oracle(cnn, feeds)
    for parity in (True, False):
        outputs = run(TARGET, tmp_path, facts, feeds, parity=parity)
        assert_close(outputs["logits"], expected["logits"])
        np.testing.assert_array_equal(outputs["label"], expected["label"])


def test_types_are_read_back(tmp_path: Path) -> None:
    facts = emit(TARGET, model(CNN.format(t="float")), tmp_path)
    assert facts.precision.weights == "float32"
    assert facts.precision.activations == "float32"
    assert facts.precision.io == "float32, int64"
    assert facts.precision.low_precision_share == 0
    assert [(entry.name, entry.artifact_name, entry.artifact_dtype) for entry in facts.outputs] == [
        ("logits", "logits", "float32"),
        ("label", "label", "int64"),
    ]
    assert facts.notes == ()


def test_float16_says_what_the_machine_makes_of_it(tmp_path: Path) -> None:
    half = model(CNN.format(t="float16"))
    facts = emit(TARGET, half, tmp_path, "fp16")
    assert facts.precision.weights == "float16"
    assert facts.precision.activations == "float16"
    assert facts.precision.io == "float16, int64"
    assert facts.precision.low_precision_share is not None
    assert bool(facts.notes) == (facts.precision.low_precision_share < 1)
    if platform.machine() == "x86_64":
        # There are no float16 kernels: casts are inserted, and all of the work is float32.
        assert facts.precision.low_precision_share == 0
        assert "100% of the multiply-accumulates in float32" in facts.notes[0]


def test_artifacts_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        out = tmp_path / name
        out.mkdir()
        emit(TARGET, model(CNN.format(t="float")), out)
        written.append((out / "model.onnx").read_bytes())
    assert written[0] == written[1]


def test_large_weights_stand_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "INLINE_LIMIT", 100)
    cnn = model(CNN.format(t="float"))
    facts = emit(TARGET, cnn, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    feeds = {"image": normal(1, 4, 8, 8)}
    assert_close(run(TARGET, tmp_path, facts, feeds)["logits"], oracle(cnn, feeds)["logits"])


def test_what_exporters_note_on_nodes_stays_behind(tmp_path: Path) -> None:
    cnn = model(CNN.format(t="float"))
    cnn.metadata_props["author"] = "a person"
    for node in cnn.graph:
        node.metadata_props["stack_trace"] = "/home/somebody/model.py"
        node.doc_string = "/home/somebody/model.py"
    emit(TARGET, cnn, tmp_path)
    written = onnx.load(tmp_path / "model.onnx")
    assert b"somebody" not in written.SerializeToString()
    assert [(prop.key, prop.value) for prop in written.metadata_props] == [("author", "a person")]
    assert next(iter(cnn.graph)).metadata_props, "the caller's model is unchanged"


def test_all_nodes_that_it_cannot_run_are_named(tmp_path: Path) -> None:
    strange = model(
        """g (float[N,4] x) => (float[N,4] y, float[N,4] z) {
            [fine] a = Relu(x)
            [first] y = made.up.Twist(a)
            [second] z = made.up.Turn(a)
        }""",
        "made.up",
    )
    refused = check(strange, job(TARGET, strange))
    assert [(name, op) for name, op, _ in refused] == [("first", "made.up::Twist"), ("second", "made.up::Turn")]
    with pytest.raises(Unsupported) as caught:
        emit(TARGET, strange, tmp_path)
    assert "onnxruntime cannot take 2 nodes" in caught.value.message
    assert "first (made.up::Twist)" in caught.value.message
    assert "second (made.up::Turn)" in caught.value.message


CONTRADICTION = """g (float[2,4] x, float[3,3] w_m) => (float[A,B] y) {{
    nine = Constant <value = float[2] {{9, 9}}> () zero = Constant <value_int = 0> () two = Constant <value_int = 2> ()
    shape = Shape(x) size = Gather(shape, zero) long = Greater(size, two)
    [choice] y = If(long) <
        then_branch = whole () => (float[C,D] t) {{
            root = Sqrt(nine) sides = Cast <to = 7> (root) m = Reshape(w_m, sides) [product] t = MatMul({factors})
        }},
        else_branch = short () => ({other}[E,F] e) {{ e = {otherwise}(x) }}
    >
}}"""


@pytest.mark.parametrize(
    ("factors", "other", "otherwise", "optimizations", "reason"),
    [
        ("m, x", "float", "Neg", "on", "(MatMul) [ShapeInferenceError] Incompatible dimensions"),  # found when folding
        ("x, x", "int64", "Cast <to = 7> ", "off", "Node (choice) Op (If)"),  # no node alone is wrong
    ],
    ids=["shapes", "types"],
)
def test_a_graph_that_contradicts_itself(
    tmp_path: Path, factors: str, other: str, otherwise: str, optimizations: str, reason: str
) -> None:
    text = CONTRADICTION.format(factors=factors, other=other, otherwise=otherwise)
    if optimizations == "off":
        text = text.replace("[2,4]", "[4,4]")
    with pytest.raises(ToolchainFailure) as caught:
        emit(TARGET, model(text), tmp_path)
    assert caught.value.message.startswith(f"ONNX Runtime, its optimizations {optimizations}, cannot load model.onnx: ")
    assert reason in caught.value.message
    assert caught.value.hint is not None
    assert "`optimize: none`" in caught.value.hint


DEADLY = """
import sys, pathlib
from target_testing import emit, model
half = model('''g (float16[N,3,4,5] x, float16[1,5,6] w_m) => (float16[A,B,C,D] y) {
    t = Transpose <perm = [1, 2, 0, 3]> (x) y = MatMul(t, w_m)
}''')
emit("onnxruntime", half, pathlib.Path(sys.argv[1]), "fp16")
"""


def test_what_kills_onnxruntime_at_its_defaults_kills_this_step(tmp_path: Path) -> None:
    """Not a later one: the pass `delay_transposes` avoids what we know of, all but products with stacks of matrices."""
    died = subprocess.run(
        [sys.executable, "-c", DEADLY, str(tmp_path)], cwd=Path(__file__).parents[1], capture_output=True, check=False
    )
    assert died.returncode == -signal.SIGSEGV, died.stderr.decode()
    assert (tmp_path / "model.onnx").exists()


def test_a_legal_model_has_nothing_to_refuse() -> None:
    cnn = model(CNN.format(t="float"))
    assert check(cnn, job(TARGET, cnn)) == []


def test_work_is_counted_in_the_executed_graph(tmp_path: Path) -> None:
    mixed = model(
        """g (float[N,4,8,8] x, float[8,4,3,3] w_a, float[8] w_b, float[8,6,2,2] w_c, float[16,3] w_d,
              float[1,20,4] w_e, float[1,20,5] w_f, float[6,12,4] seq) => (float[N,3] y, float[a,b,c,d] h) {
            c = Conv(x, w_a, w_b)
            r = Relu(c)
            t = ConvTranspose <strides = [2, 2]> (r, w_c)
            shape = Constant <value_ints = [-1, 16]> ()
            f = Reshape(t, shape)
            g = Gemm(f, w_d)
            y = Sigmoid(g)
            h = LSTM <hidden_size = 5> (seq, w_e, w_f)
        }"""
    )
    path = tmp_path / "model.onnx"
    graph.save(mixed, path)
    conv = 4 * 9 * (2 * 8 * 36)
    transposed = 6 * 4 * (2 * 8 * 36)
    gemm = 16 * (2 * 6 * 12 * 12 // 16) * 3
    lstm = 6 * 12 * (20 * 4 + 20 * 5)
    done = executed(path, {"N": 2})
    assert isinstance(done, Executed)
    assert done.work == {"float32": conv + transposed + gemm + lstm}


def test_a_graph_that_ones_do_not_fit_has_no_share(tmp_path: Path) -> None:
    picky = model(
        """g (float[N,4] x, int64[2] shape, float[4,4] w_a) => (float[a,b] y) {
            r = Reshape(x, shape)
            y = MatMul(r, w_a)
        }"""
    )
    facts = emit(TARGET, picky, tmp_path)
    assert facts.precision.low_precision_share is None
    assert "could not be read back: a run on inputs of ones failed" in facts.notes[0]


def test_a_graph_without_products_has_no_share(tmp_path: Path) -> None:
    facts = emit(TARGET, model("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"), tmp_path)
    assert facts.precision.low_precision_share is None
    assert facts.precision.weights == "none"
    assert facts.precision.activations == "float32"
    assert facts.notes == ()


def test_bfloat16_inputs_are_run(tmp_path: Path) -> None:
    brain = model("g (bfloat16[N,4] x) => (float[N,4] y) { y = Cast <to = 1> (x) }")
    facts = emit(TARGET, brain, tmp_path)
    feeds = {"x": normal(2, 4).astype(ir.DataType.BFLOAT16.numpy())}
    np.testing.assert_array_equal(run(TARGET, tmp_path, facts, feeds)["y"], feeds["x"].astype(np.float32))


def test_int8_is_what_the_integer_kernels_compute(tmp_path: Path) -> None:
    cnn = quantized.model(quantized.CNN)
    facts = emit(TARGET, cnn, tmp_path, "int8")
    assert facts.precision.weights == "int8"
    assert facts.precision.activations == "uint8"
    assert facts.precision.io == "float32"
    assert facts.precision.low_precision_share == 1
    assert [note for note in facts.notes if "saturate" not in note] == []
    feeds = {"image": normal(2, 3, 16, 16)}
    expected = oracle(cnn, feeds)["logits"]
    assert_close(run(TARGET, tmp_path, facts, feeds)["logits"], expected)
    if not machine.saturates():
        assert snr_db(expected, run(TARGET, tmp_path, facts, feeds, parity=False)["logits"]) > 25


@pytest.mark.parametrize("text", [quantized.CNN, quantized.MLP])
def test_work_in_int8_is_counted_as_that_in_float32_is(tmp_path: Path, text: str) -> None:
    counted = []
    for each in (quantized.model(text), model(text)):
        graph.save(each, tmp_path / "model.onnx")
        done = executed(tmp_path / "model.onnx", {"N": 2})
        assert isinstance(done, Executed)
        counted.append({dtype: count for dtype, count in done.work.items() if count})
    assert counted == [{"uint8": counted[1]["float32"]}, {"float32": counted[0]["uint8"]}]


def test_a_recurrence_that_stays_in_float32_is_told(tmp_path: Path) -> None:
    facts = emit(TARGET, quantized.model(quantized.RECURRENT), tmp_path, "int8")
    recurrence, product = 6 * 4 * 36 * (16 + 12), 6 * 4 * 12 * 64
    assert facts.precision.low_precision_share == pytest.approx(product / (recurrence + product))
    assert "ONNX Runtime's multiply-accumulates on this machine, by type: 57% float32, 43% uint8." in facts.notes


def test_the_dialect_of_another_target_runs_in_float32_and_is_told(tmp_path: Path) -> None:
    """TensorRT wants biases in float32, and ONNX Runtime then has no integer kernel for a convolution."""
    facts = emit(TARGET, quantized.model(quantized.CNN, signed=True), tmp_path, "int8")
    assert (facts.precision.weights, facts.precision.activations) == ("int8", "int8")
    assert facts.precision.low_precision_share is not None
    assert facts.precision.low_precision_share < 0.1
    assert any(note.startswith("ONNX Runtime expands") for note in facts.notes)


def test_a_cpu_that_saturates_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "saturates", lambda: True)
    said = "session.x64quantprecision"
    assert said in emit(TARGET, quantized.model(quantized.CNN), tmp_path, "int8").notes[-1]
    assert emit(TARGET, model(CNN.format(t="float")), tmp_path).notes == ()
