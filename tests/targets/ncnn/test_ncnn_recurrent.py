"""LSTM, GRU and RNN, in ncnn's layers and step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
from ncnn_written import check, layers, refused
from node_models import Attribute, Node, floats, model

if TYPE_CHECKING:
    from retarget.protocols import Array

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, WIDTH, SIZE = 5, 4, 3


def recurrent(
    kind: str,
    batch: int,
    attributes: Mapping[str, Attribute] | None = None,
    *,
    lengths: Sequence[int] | None = None,
    hidden: bool = False,
    cell: bool = False,
    peepholes: bool = False,
    constants: Sequence[int] = (),
    outputs: int | None = None,
    steps: int = STEPS,
) -> Node:
    """Its weights, and the bias, are constant; of a GRU in ncnn's form if the attributes do not say otherwise."""
    own: dict[str, Attribute] = {"hidden_size": SIZE}
    if kind == "GRU":
        own["linear_before_reset"] = 1
    own |= dict(attributes or {})
    directions = 2 if own.get("direction") == "bidirectional" else 1
    gates = GATES[kind] * SIZE
    operands: list[Array | None] = [
        floats(steps, batch, WIDTH, scale=1.0),
        floats(directions, gates, WIDTH, scale=0.5, seed=2),
        floats(directions, gates, SIZE, scale=0.5, seed=3),
        floats(directions, 2 * gates, scale=0.5, seed=4),
        None if lengths is None else np.array(lengths, np.int32),
        floats(directions, batch, SIZE, scale=0.5, seed=5) if hidden else None,
        *([floats(directions, batch, SIZE, scale=0.5, seed=6) if cell else None] if kind == "LSTM" else []),
        *([floats(directions, 3 * SIZE, scale=0.5, seed=7)] if peepholes else []),
    ]
    while operands[-1] is None:
        del operands[-1]
    count = (3 if kind == "LSTM" else 2) if outputs is None else outputs
    return Node(kind, operands, own, (1, 2, 3, 4, 7, *constants), count)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", GATES)
def test_one_layer(kind: str, direction: str, batch: int) -> None:
    attributes = {"direction": direction}
    nodes = [
        recurrent(kind, batch, attributes),
        recurrent(kind, batch, attributes, hidden=True, cell=True),
        recurrent(kind, batch, attributes, hidden=True),
        recurrent(kind, batch, attributes, hidden=True, constants=[5], lengths=[STEPS] * batch),
        recurrent(kind, batch, attributes, outputs=1),
        recurrent(kind, batch, attributes, steps=1),
    ]
    made, feeds = model(*nodes)
    check(made, feeds)
    written = layers(made)
    assert written.count(kind) == len(nodes)
    assert "InnerProduct" not in written


def test_at_batch_1_nothing_is_moved() -> None:
    made, _ = model(recurrent("LSTM", 1, outputs=1))
    assert set(layers(made)) == {"LSTM", "Reshape"}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_a_gru_that_resets_in_front_of_the_product(direction: str, batch: int) -> None:
    attributes: Mapping[str, Attribute] = {"direction": direction, "linear_before_reset": 0}
    made, feeds = model(recurrent("GRU", batch, attributes), recurrent("GRU", batch, attributes, hidden=True))
    check(made, feeds)
    assert "GRU" not in layers(made)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_sequences_that_end_early(kind: str, direction: str) -> None:
    check(*model(recurrent(kind, 3, {"direction": direction}, lengths=[2, 5, 0], hidden=True)))


@pytest.mark.parametrize("batch", [1, 3])
def test_an_lstm_of_other_forms(batch: int) -> None:
    check(
        *model(
            recurrent("LSTM", batch, peepholes=True, hidden=True, cell=True),
            recurrent("LSTM", batch, {"direction": "bidirectional"}, peepholes=True),
            recurrent("LSTM", batch, {"clip": 0.3}),
            recurrent("LSTM", batch, {"input_forget": 1}),
        )
    )


FUNCTIONS: list[dict[str, Attribute]] = [
    {"activations": ["Relu"]},
    {"activations": ["LeakyRelu"], "activation_alpha": [0.1]},
    {"activations": ["Affine"], "activation_alpha": [0.3], "activation_beta": [0.1]},
    {"activations": ["ScaledTanh"], "activation_alpha": [0.8], "activation_beta": [0.7]},
    {"activations": ["HardSigmoid"], "activation_alpha": [0.3], "activation_beta": [0.4]},
    {"activations": ["HardSigmoid"], "activation_alpha": [-0.3], "activation_beta": [0.4]},
    {"activations": ["HardSigmoid"], "activation_alpha": [0.0], "activation_beta": [0.4]},
    {"activations": ["Elu"], "activation_alpha": [0.7]},
    {"activations": ["Softsign"]},
    {"activations": ["Softplus"]},
    {"activations": ["Sigmoid", "Tanh"], "direction": "bidirectional"},
]


def test_other_functions() -> None:
    check(*model(*(recurrent("RNN", 2, attributes, hidden=True) for attributes in FUNCTIONS)))
    check(*model(recurrent("GRU", 2, {"activations": ["HardSigmoid", "Relu"], "clip": 0.4})))


def test_what_is_refused() -> None:
    made, _ = model(recurrent("RNN", 1, {"activations": ["ThresholdedRelu"]}))
    assert "ThresholdedRelu" in refused(made)
    made, _ = model(recurrent("GRU", 1, {"linear_before_reset": 0}, steps=300))
    assert "300 steps" in refused(made)
    node = recurrent("LSTM", 2, lengths=[2, 5])
    made, _ = model(Node(node.operator, node.operands, node.attributes, (1, 2, 3), 3))
    assert "computed" in refused(made)
