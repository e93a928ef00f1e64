"""Recurrent layers for Core ML against ONNX Runtime, at several lengths of sequences and batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import target_testing as t
import written

from retarget.errors import Unsupported
from retarget.targets.coreml.emit import FILE
from retarget.targets.coreml.executed import executed

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from retarget.protocols import Feeds
    from retarget.targets.coreml import DeploymentTarget

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
SIZE, WIDTH = 3, 2
OPERANDS = ("lengths", "hidden", "cell", "w_peephole")


def layer(kind: str, attributes: str = "", operands: str = "", element: str = "float") -> ir.Model:
    """Of open sequences and batches, with those of ``OPERANDS`` that are named."""
    given = operands.split()
    directions = 2 if "bidirectional" in attributes else 1
    state = f"{element}[{directions},N,{SIZE}]"
    rows = GATES[kind] * SIZE
    shapes = {
        "x": f"{element}[S,N,{WIDTH}]",
        "w_input": f"{element}[{directions},{rows},{WIDTH}]",
        "w_state": f"{element}[{directions},{rows},{SIZE}]",
        "w_bias": f"{element}[{directions},{2 * rows}]",
        "lengths": "int32[N]",
        "hidden": state,
        "cell": state,
        "w_peephole": f"{element}[{directions},{3 * SIZE}]",
    }
    signature = ", ".join(f"{shape} {name}" for name, shape in shapes.items() if name not in OPERANDS or name in given)
    call = ", ".join(["x", "w_input", "w_state", "w_bias", *(name if name in given else "" for name in OPERANDS)])
    results = {"y": f"{element}[S,{directions},N,{SIZE}]", "h": state} | ({"c": state} if kind == "LSTM" else {})
    shown = ", ".join(f"{shape} {name}" for name, shape in results.items())
    own = f"hidden_size = {SIZE}" + (f", {attributes}" if attributes else "")
    return t.model(f"g ({signature}) => ({shown}) {{ {', '.join(results)} = {kind} <{own}> ({call.rstrip(', ')}) }}")


def fed(model: ir.Model) -> list[Feeds]:
    """Sequences of 5 and 7 steps, of which some end early if their lengths are fed."""
    made: list[Feeds] = []
    for steps, batch in ((5, 2), (7, 3)):
        sizes = {"S": steps, "N": batch}
        rng = np.random.default_rng(steps)
        feeds = {}
        for value in model.graph.inputs:
            assert value.shape is not None
            shape = [dim if isinstance(dim, int) else sizes[str(dim.value)] for dim in value.shape]
            is_length = value.name == "lengths"
            numbers = rng.integers(1, steps + 1, shape) if is_length else rng.standard_normal(shape)
            assert value.dtype is not None
            feeds[value.name or ""] = numbers.astype(value.dtype.numpy())
        made.append(feeds)
    return made


@pytest.mark.parametrize("operands", ["hidden cell", "lengths hidden"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", GATES)
def test_directions(kind: str, direction: str, operands: str) -> None:
    given = operands if kind == "LSTM" else operands.replace("cell", "")
    model = layer(kind, f'direction = "{direction}"', given)
    written.check(model, *fed(model))


@pytest.mark.parametrize(
    ("kind", "attributes", "operands"),
    [
        ("LSTM", 'direction = "bidirectional"', "cell w_peephole"),
        ("LSTM", "clip = 0.3", "cell w_peephole"),
        ("LSTM", "input_forget = 1", "cell w_peephole"),
        ("LSTM", 'activations = ["Relu", "Sigmoid", "Softsign"]', ""),
        ("GRU", "linear_before_reset = 1", "hidden"),
        ("GRU", 'linear_before_reset = 1, direction = "bidirectional"', "lengths"),
        ("GRU", "linear_before_reset = 1, clip = 0.2", ""),
        (
            "GRU",
            'activations = ["HardSigmoid", "LeakyRelu"], activation_alpha = [0.3, 0.1], activation_beta = [0.4]',
            "",
        ),
        ("RNN", "clip = 0.2", ""),
        ("RNN", 'activations = ["Relu"]', ""),
        ("RNN", 'activations = ["Elu"]', ""),
        ("RNN", 'activations = ["Softplus"]', ""),
        ("RNN", 'activations = ["Affine"], activation_alpha = [0.5], activation_beta = [0.1]', ""),
        ("RNN", 'activations = ["ScaledTanh"], activation_alpha = [0.5], activation_beta = [1.1]', ""),
    ],
)
def test_attributes(kind: str, attributes: str, operands: str) -> None:
    model = layer(kind, attributes, operands)
    written.check(model, *fed(model))


@pytest.mark.parametrize("kind", GATES)
def test_a_sequence_of_no_step(kind: str) -> None:
    model = layer(kind, operands="lengths hidden")
    feeds = {**fed(model)[1], "lengths": np.array([0, 3, 7], np.int32)}
    written.check(model, feeds)


@pytest.mark.parametrize("target", ["iOS15", "iOS16", "iOS18"])
def test_deployment_targets(target: DeploymentTarget) -> None:
    for kind in GATES:
        model = layer(kind, 'direction = "bidirectional"')
        written.check(model, *fed(model), target=target)


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
@pytest.mark.parametrize("kind", GATES)
def test_float16(kind: str, target: DeploymentTarget) -> None:
    """ONNX Runtime has no such kernels: held against the same layer in float32."""
    half, single = layer(kind, operands="hidden", element="float16"), layer(kind, operands="hidden")
    (feeds, _) = fed(half)
    (found,) = written.interpreted(half, feeds, target=target)
    expected = t.oracle(single, {name: array.astype(np.float32) for name, array in feeds.items()})
    for name, right in expected.items():
        assert found[name].dtype == np.float16
        t.assert_close(found[name], right, atol=5e-3)


@pytest.mark.parametrize("kind", GATES)
def test_batch_first(kind: str) -> None:
    """ONNX Runtime does not take layout=1: held against the same layer with the steps in front."""
    rows = 3 * GATES[kind]
    model = t.model(
        f"g (float[N,S,2] x, float[1,{rows},2] w_input, float[1,{rows},3] w_state)"
        f" => (float[N,S,1,3] y, float[N,1,3] h)"
        f" {{ y, h = {kind} <hidden_size = 3, layout = 1> (x, w_input, w_state) }}"
    )
    feeds = {"x": 4 * t.normal(2, 5, 2)}
    (found,) = written.interpreted(model, feeds)
    other = t.model(
        f"g (float[S,N,2] x, float[1,{rows},2] w_input, float[1,{rows},3] w_state)"
        f" => (float[S,1,N,3] y, float[1,N,3] h) {{ y, h = {kind} <hidden_size = 3> (x, w_input, w_state) }}"
    )
    expected = t.oracle(other, {"x": feeds["x"].transpose(1, 0, 2)})
    t.assert_close(found["y"], expected["y"].transpose(2, 0, 1, 3))
    t.assert_close(found["h"], expected["h"].transpose(1, 0, 2))


@pytest.mark.parametrize(
    ("kind", "attributes", "operands", "operator"),
    [
        ("LSTM", "", "cell w_peephole", "lstm"),
        ("LSTM", "clip = 0.3", "", "while_loop"),
        ("LSTM", "", "lengths", "while_loop"),
        ("RNN", "", "", "rnn"),
        ("GRU", "", "", "while_loop"),
    ],
)
def test_operators(kind: str, attributes: str, operands: str, operator: str, tmp_path: Path) -> None:
    facts = written.written(layer(kind, attributes, operands), tmp_path)
    assert not facts.sizes
    assert executed(tmp_path / FILE).operators[operator] == 1


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ('activations = ["ThresholdedRelu"]', "activations=ThresholdedRelu: MIL has no such function"),
        ('activations = ["Affine"]', "activations=Affine: activation_alpha is not given"),
    ],
)
def test_refused(attributes: str, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        written.interpreted(layer("RNN", attributes))
