"""LSTM, RNN and GRU of TFLite against ONNX Runtime: with all kernels, and at every call anew."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
import target_testing as t

from retarget import catalog
from retarget.errors import Unsupported
from retarget.protocols import EmitJob
from retarget.targets import tflite

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(op: str, *, directions: int = 1, attributes: str = "", state: bool = False, steps: int = 5) -> ir.Model:
    """A layer of 4 units on [steps, N, 3]; the initial state is an input where ``state``."""
    gates = GATES[op]
    states = "".join(f", float[{directions},N,4] {name}" for name in ("h", "c")[: 1 + (op == "LSTM")]) if state else ""
    operands = ", , h, c" if state and op == "LSTM" else ", , h" if state else ""
    results = {"Y": f"float[{steps},{directions},N,4]", "Y_h": f"float[{directions},N,4]"}
    if op == "LSTM":
        results["Y_c"] = f"float[{directions},N,4]"
    outputs = ", ".join(f"{kind} {name}" for name, kind in results.items())
    return t.model(
        f"g (float[{steps},N,3] x, float[{directions},{4 * gates},3] w_w, float[{directions},{4 * gates},4] w_r, "
        f"float[{directions},{8 * gates}] w_b{states}) => ({outputs}) {{ "
        f"{', '.join(results)} = {op} <hidden_size = 4{attributes}> (x, w_w, w_r, w_b{operands}) }}"
    )


BOTH = ', direction = "bidirectional"'

LAYERS = {
    "lstm": recurrent("LSTM"),
    "lstm with a state": recurrent("LSTM", state=True),
    "lstm from the end": recurrent("LSTM", attributes=', direction = "reverse"'),
    "lstm both ways, with a state": recurrent("LSTM", directions=2, attributes=BOTH, state=True),
    "rnn": recurrent("RNN"),
    "rnn with relu, both ways": recurrent("RNN", directions=2, attributes=f'{BOTH}, activations = ["Relu", "Tanh"]'),
    "rnn with a state": recurrent("RNN", state=True),
    "gru": recurrent("GRU"),
    "gru with a reset before the product": recurrent("GRU", attributes=", linear_before_reset = 1"),
    "gru both ways, with a state": recurrent("GRU", directions=2, attributes=BOTH, state=True),
}


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin", "reference"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, kernels: str, tmp_path: Path) -> None:
    """Several calls of one runner: what one leaves behind must not reach the next. The batch may change."""
    model = LAYERS[name]
    job = msgspec.structs.replace(t.job("tflite", model).options, kernels=kernels)
    facts = catalog.target_emit("tflite").emit(model, _with(t.job("tflite", model), job), tmp_path)
    assert not facts.sizes
    with catalog.target_run("tflite").open(tmp_path, facts, parity=True, threads=1) as runner:
        for size in (4, 4, 2):
            feeds = t.feeds(model, size)
            right = t.oracle(model, feeds)
            found = runner.run(feeds)
            for output, array in right.items():
                t.assert_close(found[output], array)


def test_a_long_gru_is_refused_with_the_option_that_allows_it(tmp_path: Path) -> None:
    model = recurrent("GRU", steps=70)
    with pytest.raises(Unsupported, match=r"70 steps.*`unroll` lets 64"):
        t.emit("tflite", model, tmp_path)
    facts = catalog.target_emit("tflite").emit(
        model, _with(t.job("tflite", model), tflite.Options(unroll=70)), tmp_path
    )
    feeds = t.feeds(model, 4)
    t.assert_close(t.run("tflite", tmp_path, facts, feeds)["Y"], t.oracle(model, feeds)["Y"])


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (", clip = 1.0", "clip"),
        (", input_forget = 1", "input_forget=1"),
        (', activations = ["Relu", "Tanh", "Tanh"]', "Relu"),
    ],
)
def test_what_the_kernel_has_not_is_refused(attributes: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=reason):
        t.emit("tflite", recurrent("LSTM", attributes=attributes), tmp_path)


def test_sequences_of_several_lengths_are_refused(tmp_path: Path) -> None:
    model = recurrent("LSTM")
    lengths = ir.Value(name="lengths", const_value=ir.tensor(np.array([5, 3, 4, 5], np.int32), name="lengths"))
    lengths.dtype, lengths.shape = ir.DataType.INT32, ir.Shape([4])
    model.graph.register_initializer(lengths)
    node = model.graph[0]
    node.resize_inputs(5)
    node.replace_input_with(4, lengths)
    with pytest.raises(Unsupported, match="several lengths"):
        t.emit("tflite", model, tmp_path)


def _with(job: EmitJob, options: msgspec.Struct) -> EmitJob:
    return EmitJob(job.precision, job.inputs, job.outputs, job.shapes, options)
