from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
import quantized
from target_testing import CNN, assert_close, emit, job, model, normal, oracle, run

from retarget import catalog, graph, schemes
from retarget.calibration.observers import observe
from retarget.compare import snr_db
from retarget.errors import RetargetError, ToolchainFailure, Unsupported
from retarget.passes.quantize import Quantize
from retarget.spec import DimRange
from retarget.targets import machine, openvino

if (missing := openvino.unavailable()) is not None:
    pytest.skip(missing[0], allow_module_level=True)

from retarget.targets.openvino.emit import check
from retarget.targets.openvino.executed import at, executed
from retarget.targets.openvino.runtime import core

if TYPE_CHECKING:
    from retarget.protocols import Array

TARGET = "openvino"


@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-5), ("fp16", 5e-3)])
def test_an_artifact_computes_what_the_graph_says(tmp_path: Path, precision: str, atol: float) -> None:
    cnn = model(CNN.format(t="float"))
    facts = emit(TARGET, cnn, tmp_path, precision)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    for batch in (1, 3, 8):
        feeds = {"image": normal(batch, 4, 8, 8)}
        outputs = run(TARGET, tmp_path, facts, feeds)
        assert_close(outputs["logits"], oracle(cnn, feeds)["logits"], atol)
        assert outputs["label"].dtype == np.int64


def test_types_are_read_back(tmp_path: Path) -> None:
    cnn = model(CNN.format(t="float"))
    sizes = {}
    for precision, weights in (("fp32", "float32"), ("fp16", "float16")):
        out = tmp_path / precision
        out.mkdir()
        facts = emit(TARGET, cnn, out, precision)
        assert facts.precision.weights == weights
        assert facts.precision.activations == "float32"
        assert facts.precision.io == "float32, int64"
        sizes[precision] = (out / "model.bin").stat().st_size
    assert sizes["fp16"] < 0.7 * sizes["fp32"]


def test_inputs_and_outputs_are_float16_on_demand(tmp_path: Path) -> None:
    small = model(CNN.format(t="float"))
    asked = dataclasses.replace(job(TARGET, small, "fp16"), io="float16")
    facts = catalog.target_emit(TARGET).emit(small, asked, tmp_path)
    assert facts.precision.io == "float16, int64"
    ports = core().read_model(tmp_path / "model.xml")
    types = [port.get_element_type().get_type_name() for port in (*ports.inputs, *ports.outputs)]
    assert types == ["f16", "f16", "i64"]
    # The user's feeds stay float32: the runner casts at the border.
    feeds = {"image": normal(3, 4, 8, 8)}
    outputs = run(TARGET, tmp_path, facts, feeds)
    assert_close(outputs["logits"], oracle(small, feeds)["logits"], 2e-2)
    assert outputs["label"].dtype == np.int64


def test_the_share_is_that_of_this_machine(tmp_path: Path) -> None:
    facts = emit(TARGET, model(CNN.format(t="float")), tmp_path, "fp16")
    hint = core().compile_model(tmp_path / "model.xml", "CPU").get_property("INFERENCE_PRECISION_HINT")
    low = hint.get_type_name() != "f32"
    assert facts.precision.low_precision_share == (1 if low else 0)
    assert ("by default" if low else "saves storage here, not time") in facts.notes[0].lower()


def test_open_dimensions_are_not_bounded(tmp_path: Path) -> None:
    """A bound is not checked: OpenVINO gives no rows for a batch beyond it, and crashes at the next."""
    cnn = model(CNN.format(t="float"))
    facts = emit(TARGET, cnn, tmp_path)
    written = core().read_model(tmp_path / "model.xml")
    assert str(written.inputs[0].get_partial_shape()) == "[?,4,8,8]"
    for batch in (9, 16):
        feeds = {"image": normal(batch, 4, 8, 8)}
        assert_close(run(TARGET, tmp_path, facts, feeds)["logits"], oracle(cnn, feeds)["logits"])


def test_a_dimension_of_one_size_is_fixed(tmp_path: Path) -> None:
    cnn = model(CNN.format(t="float"))
    fixed = dataclasses.replace(job(TARGET, cnn), shapes={"N": DimRange(2, 2, 2)})
    facts = catalog.target_emit(TARGET).emit(cnn, fixed, tmp_path)
    written = core().read_model(tmp_path / "model.xml")
    assert str(written.inputs[0].get_partial_shape()) == "[2,4,8,8]"
    with pytest.raises(ToolchainFailure, match="OpenVINO failed on the model: "):
        run(TARGET, tmp_path, facts, {"image": normal(3, 4, 8, 8)})


def test_artifacts_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        out = tmp_path / name
        out.mkdir()
        emit(TARGET, model(CNN.format(t="float")), out, "fp16")
        written.append([(out / file).read_bytes() for file in ("model.xml", "model.bin")])
    assert written[0] == written[1]
    assert str(tmp_path).encode() not in written[0][0]


def test_values_beyond_float16_are_not_clamped(tmp_path: Path) -> None:
    """OpenVINO's own compression makes 65504 of them."""
    wide = model(
        """g (float[N,3] x, float[3,64] w_a) => (float[N,3] y, float[N,64] z) {
            factor = Constant <value = float[3] {1e6, 0.1, -3e38}> ()
            y = Mul(x, factor)
            z = MatMul(x, w_a)
        }"""
    )
    facts = emit(TARGET, wide, tmp_path, "fp16")
    assert facts.precision.weights == "float16"
    assert facts.notes[-1] == "Stored as float32, for values that OpenVINO would clamp to float16's range: factor."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    kinds = [
        node.get_element_type().get_type_name()
        for node in core().read_model(tmp_path / "model.xml").get_ordered_ops()
        if node.get_type_name() == "Constant"
    ]
    assert sorted(kinds) == ["f16", "f32"]
    feeds = {"x": np.ones((1, 3), np.float32)}
    assert run(TARGET, tmp_path, facts, feeds)["y"].tolist() == [np.array([1e6, 0.1, -3e38], np.float32).tolist()]


def test_values_that_are_not_finite_are_not_clamped(tmp_path: Path) -> None:
    strange = model(
        """g (float[N,4] x) => (float[N,4] y) {
            c = Constant <value = float[4] {inf, -inf, nan, 2.0}> ()
            y = Mul(x, c)
        }"""
    )
    facts = emit(TARGET, strange, tmp_path, "fp16")
    outputs = run(TARGET, tmp_path, facts, {"x": np.ones((1, 4), np.float32)})
    np.testing.assert_array_equal(outputs["y"], np.array([[np.inf, -np.inf, np.nan, 2]], np.float32))


BODIES = """
    g (bool c, float[3,4] x, float[4,4] w_a, float[4,4] w_b) => (float[3,4] y, int64[3,2] i) {
        y, i = If (c) <
            then_branch = t () => (float[3,4] ty, int64[3,2] ti) {
                big = Constant <value = float[4] {1e6, 1.0, 2.0, 3.0}> ()
                two = Constant <value = int64[1] {2}> ()
                p = MatMul(x, w_a)
                ty = Mul(p, big)
                zero = Sub(p, p)
                tv, ti = TopK(zero, two)
            },
            else_branch = e () => (float[3,4] ey, int64[3,2] ei) {
                big = Constant <value = float[4] {-2e6, 1.0, 2.0, 3.0}> ()
                two = Constant <value = int64[1] {2}> ()
                p = MatMul(x, w_b)
                ey = Mul(p, big)
                zero = Sub(p, p)
                ev, ei = TopK <largest = 0> (zero, two)
            }
        >
    }
"""


def test_bodies_are_written_and_read_back_as_the_rest(tmp_path: Path) -> None:
    """Constants beyond float16, ties, names and the types of weights, where one name means two things."""
    source = model(BODIES)
    assert emit(TARGET, source, tmp_path, "fp32").precision.weights == "float32"
    facts = emit(TARGET, source, tmp_path, "fp16")
    assert facts.precision.weights == "float16"
    x = normal(3, 4)
    for flag in (True, False):
        feeds = {"c": np.array(flag), "x": x}
        expected, outputs = oracle(source, feeds), run(TARGET, tmp_path, facts, feeds)
        assert_close(outputs["y"], expected["y"], 5e3)
        np.testing.assert_array_equal(outputs["i"], expected["i"])


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_nothing_is_said_of_float16_where_there_is_none(tmp_path: Path, target: str) -> None:
    bare = model("g (float[N,4] x) => (float[N,4] y) { y = Softmax(x) }")
    assert not emit(target, bare, tmp_path, "fp16").notes


def test_an_input_may_be_an_output(tmp_path: Path) -> None:
    passing = model(
        """g (float[N,4] x, float[N,4] z) => (float[N,4] same, float[N,4] y) {
            same = Identity(x)
            y = Relu(z)
        }"""
    )
    facts = emit(TARGET, passing, tmp_path)
    feeds = {"x": normal(2, 4), "z": normal(2, 4, seed=2)}
    outputs = run(TARGET, tmp_path, facts, feeds)
    np.testing.assert_array_equal(outputs["same"], feeds["x"])
    np.testing.assert_array_equal(outputs["y"], np.maximum(feeds["z"], np.float32(0)))


def test_a_bare_input_that_is_an_output(tmp_path: Path) -> None:
    """The reader drops the only node, and with it the input's name."""
    bare = model("g (float[N,4] x) => (float[N,4] y) { y = Dropout(x) }")
    facts = emit(TARGET, bare, tmp_path)
    assert [(entry.name, entry.artifact_name) for entry in facts.inputs] == [("x", "y")]
    feeds = {"x": normal(2, 4)}
    np.testing.assert_array_equal(run(TARGET, tmp_path, facts, feeds)["y"], feeds["x"])


def test_outputs_outlive_the_next_run(tmp_path: Path) -> None:
    facts = emit(TARGET, model(CNN.format(t="float")), tmp_path)
    with catalog.target_run(TARGET).open(tmp_path, facts, parity=True, threads=1) as runner:
        first = runner.run({"image": normal(2, 4, 8, 8)})["logits"]
        kept = first.copy()
        runner.run({"image": normal(2, 4, 8, 8, seed=2)})
    np.testing.assert_array_equal(first, kept)


def test_settings_say_how_it_runs(tmp_path: Path) -> None:
    facts = emit(TARGET, model(CNN.format(t="float")), tmp_path)
    with catalog.target_run(TARGET).open(tmp_path, facts, parity=True, threads=2) as runner:
        assert runner.settings == "OpenVINO, CPU, float32, 2 threads"
    with catalog.target_run(TARGET).open(tmp_path, facts, parity=False, threads=1) as runner:
        assert runner.settings.endswith(", 1 thread")


def test_integers_beyond_int32_are_refused(tmp_path: Path) -> None:
    facts = emit(TARGET, model("g (int64[N] x) => (int64[N] y) { y = Add(x, x) }"), tmp_path)
    assert "computes int64 in int32" in " ".join(facts.notes)
    assert run(TARGET, tmp_path, facts, {"x": np.array([2**20, -5])})["y"].tolist() == [2**21, -10]
    with pytest.raises(RetargetError, match=f"'x' holds {2**40}, and OpenVINO's CPU plugin computes in int32"):
        run(TARGET, tmp_path, facts, {"x": np.array([1, 2**40])})


def test_all_nodes_that_it_cannot_take_are_named(tmp_path: Path) -> None:
    strange = model(
        """g (float[N,4,8,8] x) => (float[a,b] y, float[N,4,9,9] z) {
            scales = Constant <value_floats = [1.0, 1.0, 0.5, 0.5]> ()
            [fine] a = Relu(x)
            [first] y = made.up.Twist(a)
            [second] z = Resize <mode = "linear", antialias = 1> (a, , scales)
        }""",
        "made.up",
    )
    reasons = {
        ("first", "made.up::Twist", "OpenVINO has no conversion for it"),
        ("second", "Resize", "antialias=1: OpenVINO does not filter, and says nothing"),
    }
    assert set(check(strange, job(TARGET, strange))) == reasons
    with pytest.raises(Unsupported) as caught:
        emit(TARGET, strange, tmp_path)
    assert "openvino cannot take 2 nodes" in caught.value.message
    assert not list(tmp_path.iterdir())


def test_ties_in_non_maximum_suppression_are_kept(tmp_path: Path) -> None:
    """The second box overlaps the first by exactly the threshold: ONNX drops only what overlaps by more."""
    suppression = model(
        """g (float[1,2,4] boxes, float[1,1,2] scores) => (int64[k,3] kept) {
            most = Constant <value = int64[1] {2}> ()
            overlap = Constant <value = float[1] {0.5}> ()
            kept = NonMaxSuppression(boxes, scores, most, overlap)
        }"""
    )
    facts = emit(TARGET, suppression, tmp_path)
    boxes = np.array([[[0, 0, 1, 2], [0, 0, 1, 1]]], np.float32)
    feeds = {"boxes": boxes, "scores": np.array([[[0.9, 0.8]]], np.float32)}
    assert oracle(suppression, feeds)["kept"].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert run(TARGET, tmp_path, facts, feeds)["kept"].tolist() == [[0, 0, 0], [0, 0, 1]]


def test_the_first_of_equals_is_the_largest(tmp_path: Path) -> None:
    hardmax = model("g (float[N,6] x) => (float[N,6] y) { y = Hardmax(x) }")
    facts = emit(TARGET, hardmax, tmp_path)
    feeds = {"x": np.array([[0, 3, 1, 3, 2, 3]], np.float32)}
    assert run(TARGET, tmp_path, facts, feeds)["y"].tolist() == [[0, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_puts_the_lower_index_first_among_equals(tmp_path: Path, largest: int) -> None:
    top = model(
        f"""g (float[N,50] x) => (float[N,20] values, int64[N,20] indices) {{
            k = Constant <value_ints = [20]> ()
            values, indices = TopK <axis = 1, largest = {largest}> (x, k)
        }}"""
    )
    facts = emit(TARGET, top, tmp_path)
    feeds = {"x": np.random.default_rng(0).integers(0, 4, (3, 50)).astype(np.float32)}
    outputs, expected = run(TARGET, tmp_path, facts, feeds), oracle(top, feeds)
    np.testing.assert_array_equal(outputs["values"], expected["values"])
    np.testing.assert_array_equal(outputs["indices"], expected["indices"])


@pytest.mark.parametrize("shape", ["N,M,5", "N,5,5", "N,4,5"])
def test_a_prelu_slope_of_one_axis_is_for_the_last(tmp_path: Path, shape: str) -> None:
    prelu = model(f"g (float[{shape}] x, float[5] w_slope) => (float[a,b,c] y) {{ y = PRelu(x, w_slope) }}")
    facts = emit(TARGET, prelu, tmp_path)
    feeds = {"x": normal(3, 5 if "5,5" in shape else 4, 5)}
    assert_close(run(TARGET, tmp_path, facts, feeds)["y"], oracle(prelu, feeds)["y"])


def test_what_cannot_be_compiled_with_open_dimensions_is_named(tmp_path: Path) -> None:
    """At the sizes at which the work is counted, the plugin takes it."""
    boxes = model(
        """g (float[1,N,M] boxes, float[1,1,N] scores) => (int64[k,3] kept) {
            most = Constant <value = int64[1] {2}> ()
            [nms] kept = NonMaxSuppression(boxes, scores, most)
        }"""
    )
    with pytest.raises(Unsupported, match=r"nms \(NonMaxSuppression\): .*unsupported 'boxes' input 3rd dimension"):
        emit(TARGET, boxes, tmp_path)


POOL = "g (float[1,2,{size},{size}] x) => (float[a,b,c,d] y) {{ [pool] y = {op} <ceil_mode = 1, {attributes}> (x) }}"


@pytest.mark.parametrize(
    ("op", "size", "attributes", "refused"),
    [
        ("MaxPool", "2", "kernel_shape = [1, 1], strides = [2, 2]", True),
        ("MaxPool", "6", "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]", False),
        ("MaxPool", "7", "kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 1, 1]", True),
        ("MaxPool", "S", "kernel_shape = [3, 3], strides = [2, 2]", False),
        ("MaxPool", "S", "kernel_shape = [2, 2], strides = [3, 3]", True),
        ("AveragePool", "2", "kernel_shape = [1, 1], strides = [2, 2]", False),
        ("AveragePool", "6", "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]", False),
        (
            "AveragePool",
            "6",
            "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1",
            True,
        ),
        (
            "AveragePool",
            "5",
            "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1",
            False,
        ),
        ("AveragePool", "6", "kernel_shape = [3, 3], strides = [2, 2], count_include_pad = 1", False),
        (
            "AveragePool",
            "S",
            "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1",
            True,
        ),
    ],
)
def test_pools_are_refused_exactly_where_they_would_be_wrong(
    tmp_path: Path, op: str, size: str, attributes: str, refused: bool
) -> None:
    pool = model(POOL.format(op=op, size=size, attributes=attributes))
    if refused:
        with pytest.raises(Unsupported, match=f"pool \\({op}\\): ceil_mode=1"):
            emit(TARGET, pool, tmp_path)
        return
    facts = emit(TARGET, pool, tmp_path)
    for sizes in [range(3, 9)] if size == "S" else [[int(size)]]:
        for side in sizes:
            feeds = {"x": normal(1, 2, side, side)}
            assert_close(run(TARGET, tmp_path, facts, feeds)["y"], oracle(pool, feeds)["y"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            """g (float[1,2,4,4] x) => (float[a,b,c,d] y) {
                s = Constant <value_floats = [1.0, 1.0, 0.6, 0.6]> ()
                [n] y = Resize <mode = "cubic", exclude_outside = 1> (x, , s) }""",
            "exclude_outside=1",
        ),
        (
            """g (float[1,2,4,6] x) => (float[a,b,c,d] y) {
                s = Constant <value_ints = [7, 8]> ()
                [n] y = Resize <axes = [2, 3], keep_aspect_ratio_policy = "not_larger"> (x, , , s) }""",
            "keep_aspect_ratio_policy=not_larger",
        ),
        (
            """g (float[3,1,2] x, float[1,12,2] w_w, float[1,12,3] w_r, float[1,24] w_b, float[1,9] w_p)
                => (float[a,b,c,d] y) { [n] y = LSTM <hidden_size = 3> (x, w_w, w_r, w_b, , , , w_p) }""",
            "peephole weights",
        ),
        (
            """g (float[1,6,2] x) => (float[a,b,c] y) {
                axis = Constant <value_int = 1> ()
                [n] y = DFT <inverse = 1, onesided = 1> (x, , axis) }""",
            "inverse=1 with onesided=1",
        ),
        (
            "g (float[1,6,1] x, int64 axis) => (float[a,b,c] y) { [n] y = DFT (x, , axis) }",
            "an axis that is computed",
        ),
        (
            "g (float[2,N,1] x) => (float[a,b,c] y) { [n] y = DFT <onesided = 1> (x) }",
            "onesided=1 over an open axis",
        ),
        (
            """g (float[N,1,3,3] x, float[1,2,3,3] w_a) => (float[a,b,c,d] y) {
                [n] y = ConvTranspose <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w_a) }""",
            "auto_pad=SAME with open dimensions",
        ),
        (
            "g (float[N,3,5] x, float[5] slope) => (float[a,b,c] y) { [n] y = PRelu(x, slope) }",
            "a computed slope of one axis",
        ),
    ],
)
def test_what_openvino_ignores_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(Unsupported, match=says):
        emit(TARGET, model(text), tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        """g (float[1,2,4,6] x) => (float[a,b,c,d] y) {
            s = Constant <value_ints = [7, 8]> ()
            y = Resize <mode = "linear", axes = [2, 3], keep_aspect_ratio_policy = "stretch"> (x, , , s) }""",
        """g (float[2,1,3,3] x, float[1,2,3,3] w_a) => (float[a,b,c,d] y) {
            y = ConvTranspose <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w_a) }""",
        """g (float[3,1,2] x, float[1,12,2] w_w, float[1,12,3] w_r, float[1,24] w_b) => (float[a,b,c,d] y) {
            y = LSTM <hidden_size = 3> (x, w_w, w_r, w_b) }""",
        """g (float[1,6,1] x) => (float[a,b,c] y) {
            axis = Constant <value_int = 1> ()
            y = DFT(x, , axis) }""",
    ],
)
def test_their_neighbours_are_taken(tmp_path: Path, text: str) -> None:
    neighbour = model(text)
    facts = emit(TARGET, neighbour, tmp_path)
    spec = facts.inputs[0].spec
    feeds = {"x": normal(*spec.at({}))}
    assert_close(run(TARGET, tmp_path, facts, feeds)["y"], oracle(neighbour, feeds)["y"])


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize(("axis", "length"), [(0, 3), (1, 4), (2, 6), (-2, 8), (2, None)])
def test_dft_goes_along_its_axis(tmp_path: Path, onesided: int, axis: int, length: int | None) -> None:
    constants = f"axis = Constant <value_int = {axis}> ()"
    if length is not None:
        constants += f"\nlength = Constant <value_int = {length}> ()"
    transform = model(
        f"""g (float[4,5,6,1] x) => (float[a,b,c,d] y) {{
            {constants}
            y = DFT <onesided = {onesided}> (x, {"length" if length else ""}, axis) }}"""
    )
    facts = emit(TARGET, transform, tmp_path)
    feeds = {"x": normal(4, 5, 6, 1)}
    assert_close(run(TARGET, tmp_path, facts, feeds)["y"], oracle(transform, feeds)["y"], 1e-5)


def test_nothing_is_sent_anywhere(tmp_path: Path) -> None:
    """Importing openvino alone sends an event to a server, unless it is kept from doing so."""
    script = textwrap.dedent(
        """
        import sys
        def watch(event, arguments):
            if event.startswith("socket."):
                print(event, arguments, flush=True)
        sys.addaudithook(watch)
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from target_testing import CNN, emit, model, normal, run
        facts = emit("openvino", model(CNN.format(t="float")), Path(sys.argv[2]))
        run("openvino", Path(sys.argv[2]), facts, {"image": normal(1, 4, 8, 8)})
        """
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parents[1]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""


@pytest.mark.parametrize("signed", [False, True])
def test_int8_is_what_the_plugin_computes(tmp_path: Path, signed: bool) -> None:
    cnn = quantized.model(quantized.CNN, signed=signed)
    facts = emit(TARGET, cnn, tmp_path, "int8")
    assert facts.precision.weights == "int8"
    assert facts.precision.activations == ("int8" if signed else "uint8")
    assert facts.precision.io == "float32"
    assert facts.precision.low_precision_share == 1
    assert [note for note in facts.notes if "saturate" not in note] == []
    feeds = {"image": normal(2, 3, 16, 16)}
    if not machine.saturates():
        assert snr_db(oracle(cnn, feeds)["logits"], run(TARGET, tmp_path, facts, feeds)["logits"]) > 25


def test_work_in_int8_is_counted_as_that_in_float32_is(tmp_path: Path) -> None:
    counted = []
    for each in (quantized.model(quantized.CNN), model(quantized.CNN)):
        emit(TARGET, each, tmp_path)
        done = executed(at(tmp_path / "model.xml", job(TARGET, each).inputs, {"N": 2})).work
        counted.append({dtype: count for dtype, count in done.items() if count})
    assert counted[0]["uint8"] == sum(counted[1].values())


def test_what_stays_float_is_told(tmp_path: Path) -> None:
    facts = emit(TARGET, quantized.model(quantized.RECURRENT), tmp_path, "int8")
    recurrence, product = 6 * 4 * 36 * (16 + 12), 6 * 4 * 12 * 64
    assert facts.precision.low_precision_share == pytest.approx(product / (recurrence + product))
    assert facts.notes[0].startswith("OpenVINO's multiply-accumulates on this machine, by type: 57% ")


def test_a_cpu_that_saturates_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "saturates", lambda: True)
    assert "large ones saturate" in emit(TARGET, quantized.model(quantized.CNN), tmp_path, "int8").notes[-1]


WEIGHTS = """g (float[N,64] x, int8[64,{n}] w, float[{scales}] s) => (float[N,{n}] y) {{
    [expand] d = DequantizeLinear <axis = {axis}, block_size = {block}> (w, s)
    [product] y = MatMul(x, d)
}}"""


def with_constants(text: str, **constants: Array) -> ir.Model:
    """The graph of ``text`` with ``constants`` in place of the inputs of those names."""
    made = model(text)
    for value in list(made.graph.inputs):
        if value.name in constants:
            value.const_value = ir.tensor(constants[value.name], name=value.name)
            made.graph.inputs.remove(value)
            made.graph.register_initializer(value)
    return made


def codes(*shape: int) -> Array:
    return np.random.default_rng(0).integers(-127, 128, shape, np.int8)


def scales(*shape: int) -> Array:
    return np.random.default_rng(1).uniform(0.002, 0.004, shape).astype(np.float32)


@pytest.mark.parametrize("block", [0, 16, 32])
def test_compressed_weights_are_read_back_and_parity_is_that_of_float_activations(tmp_path: Path, block: int) -> None:
    """Block 0 is one scale a column."""
    shape = (64 // block, 48) if block else (48,)
    text = WEIGHTS.format(n=48, scales=",".join(map(str, shape)), axis=0 if block else 1, block=block)
    product = with_constants(text, w=codes(64, 48), s=scales(*shape))
    facts = emit(TARGET, product, tmp_path, "int8_weights")
    assert (facts.precision.weights, facts.precision.activations) == ("int8", "float32")
    feeds = {"x": normal(4, 64)}
    expected = oracle(product, feeds)["y"]
    assert_close(run(TARGET, tmp_path, facts, feeds)["y"], expected)
    # What the runtime does by default is what the artifact says of it.
    rounded = snr_db(expected, run(TARGET, tmp_path, facts, feeds, parity=False)["y"]) < 60
    assert rounded == any("rounds activations to int8" in note for note in facts.notes)
    assert rounded == (facts.precision.low_precision_share == 1)
    assert not any("expands" in note for note in facts.notes)


def test_compressed_weights_that_are_expanded_are_told(tmp_path: Path) -> None:
    """OpenVINO has no convolution with compressed weights."""
    kernel = with_constants(
        """g (float[N,8,9,9] x, int8[16,8,3,3] w, float[16] s) => (float[N,16,7,7] y) {
            d = DequantizeLinear <axis = 0> (w, s)
            y = Conv(x, d)
        }""",
        w=codes(16, 8, 3, 3),
        s=scales(16),
    )
    facts = emit(TARGET, kernel, tmp_path, "int8_weights")
    assert facts.precision.weights == "int8"
    assert any("expands 100% of the compressed weights" in note for note in facts.notes)
    feeds = {"x": normal(2, 8, 9, 9)}
    assert_close(run(TARGET, tmp_path, facts, feeds)["y"], oracle(kernel, feeds)["y"])


ENCODER = """g (float[N,6,32] x, float[32,32] w_q, float[32,32] w_k, float[32,32] w_v, float[32,64] w_o)
              => (float[N,6,64] y) {
    [query] q = MatMul(x, w_q)
    [key] k = MatMul(x, w_k)
    [value] v = MatMul(x, w_v)
    shape = Constant <value_ints = [0, 6, 4, 8]> ()
    back = Constant <value_ints = [0, 6, 32]> ()
    q4 = Reshape(q, shape)
    k4 = Reshape(k, shape)
    v4 = Reshape(v, shape)
    qt = Transpose <perm = [0, 2, 1, 3]> (q4)
    kt = Transpose <perm = [0, 2, 3, 1]> (k4)
    vt = Transpose <perm = [0, 2, 1, 3]> (v4)
    [scores] s = MatMul(qt, kt)
    p = Softmax(s)
    [mix] m = MatMul(p, vt)
    mt = Transpose <perm = [0, 2, 1, 3]> (m)
    h = Reshape(mt, back)
    [out] y = MatMul(h, w_o)
}"""


def test_shapes_are_given_without_losing_int8_and_attention_is_counted(tmp_path: Path) -> None:
    """``Model.reshape`` folds what lies between QuantizeLinear and DequantizeLinear, and most would run in float32."""
    encoder = model(ENCODER)
    spec = graph.value_spec(encoder.graph.inputs[0])
    ranges = observe(encoder, [{spec.name: normal(2, 6, 32)}])
    Quantize(schemes.OPENVINO, lambda name, _: (ranges[name].min, ranges[name].max) if name in ranges else None)(
        encoder
    )
    projections, attention = 6 * 32 * (3 * 32 + 64), 2 * 6 * 6 * 32
    for shapes in ({"N": DimRange(2, 2, 2)}, {"N": DimRange(1, 4, 8)}):
        facts = catalog.target_emit(TARGET).emit(
            encoder, dataclasses.replace(job(TARGET, encoder, "int8"), shapes=shapes), tmp_path
        )
        assert facts.precision.low_precision_share == pytest.approx(projections / (projections + attention))
