"""Attention and RotaryEmbedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pytest
from ncnn_written import check, executed, layers, refused
from node_models import Attribute, Node, floats, model, truths
from target_testing import assert_near

if TYPE_CHECKING:
    from retarget.protocols import Array

HEADS, QUERIES, KEYS, SIZE = 4, 3, 5, 8


def attention(
    batch: int,
    attributes: Mapping[str, Attribute] | None = None,
    *,
    mask: Array | None = None,
    groups: int = HEADS,
    past: int = 0,
    width: int = SIZE,
    constants: tuple[int, ...] = (),
    outputs: int = 1,
) -> Node:
    operands: list[Array | None] = [
        floats(batch, HEADS, QUERIES, SIZE, scale=1.0),
        floats(batch, groups, KEYS, SIZE, scale=1.0, seed=2),
        floats(batch, groups, KEYS, width, scale=1.0, seed=3),
        mask,
    ]
    if past:
        operands += [floats(batch, groups, past, SIZE, seed=4), floats(batch, groups, past, width, seed=5)]
    while operands[-1] is None:
        del operands[-1]
    return Node("Attention", operands, dict(attributes or {}), constants, outputs)


@pytest.mark.parametrize("batch", [1, 3])
def test_one_layer(batch: int) -> None:
    nodes = [
        attention(batch),
        attention(batch, {"scale": 0.3}),
        attention(batch, groups=2),
        attention(batch, width=6),
        attention(batch, {"is_causal": 1}),
        attention(batch, mask=floats(QUERIES, KEYS, seed=7)),
        attention(batch, mask=floats(QUERIES, KEYS, seed=7), constants=(3,)),
        attention(batch, mask=floats(batch, 1, QUERIES, KEYS, seed=7)),
        attention(batch, mask=floats(1, HEADS, QUERIES, KEYS, seed=7)),
        attention(batch, mask=floats(batch, HEADS, QUERIES, KEYS, seed=7), constants=(3,)),
        attention(batch, {"is_causal": 1}, mask=floats(QUERIES, KEYS, seed=7)),
        attention(batch, {"is_causal": 1}, mask=floats(QUERIES, KEYS, seed=7), constants=(3,)),
        attention(batch, past=2, outputs=3),
        attention(batch, {"is_causal": 1}, past=2, outputs=3),
    ]
    made, feeds = model(*nodes)
    check(made, feeds)
    written = layers(made)
    assert written.count("SDPA") == len(nodes)
    assert "Softmax" not in written


BLIND = truths(QUERIES, KEYS) | np.array([[False], [True], [False]])
BLIND[2] = False


@pytest.mark.parametrize("constants", [(), (3,)], ids=["computed", "constant"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_query_that_may_look_at_nothing_gets_zeros(batch: int, constants: tuple[int, ...]) -> None:
    infinite = np.where(BLIND, 0.5, -np.inf).astype(np.float32)
    check(
        *model(
            attention(batch, mask=BLIND, constants=constants),
            attention(batch, mask=np.broadcast_to(BLIND, (batch, 1, QUERIES, KEYS)).copy(), constants=constants),
            attention(batch, mask=infinite, constants=constants),
            attention(batch, {"softcap": 2.0}, mask=infinite, constants=constants),
        )
    )


def test_the_lowest_number_is_not_infinite() -> None:
    """As ONNX has it: all scores are the same then. ONNX Runtime takes it for infinite."""
    lowest = np.full((QUERIES, KEYS), np.finfo(np.float32).min, np.float32)
    made, feeds = model(attention(1, mask=lowest), attention(1, mask=lowest, constants=(3,)))
    (found,) = executed(made, feeds)
    for number, shown in enumerate(found.values()):
        means = np.mean(feeds[f"x{number}_2"].astype(np.float32), 2, keepdims=True)
        assert_near(shown, np.broadcast_to(means, shown.shape), 1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_step_by_step(batch: int) -> None:
    check(
        *model(
            attention(batch, {"softcap": 2.0}),
            attention(batch, {"softcap": 2.0}, groups=2),
            attention(batch, past=2, outputs=4),
            attention(batch, {"qk_matmul_output_mode": 3}, mask=floats(QUERIES, KEYS + 2), past=2, outputs=4),
        )
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_heads_side_by_side(batch: int) -> None:
    operands = [floats(batch, count, HEADS * SIZE, scale=1.0, seed=count) for count in (QUERIES, KEYS, KEYS)]
    check(*model(Node("Attention", operands, {"q_num_heads": HEADS, "kv_num_heads": HEADS})))


def test_what_is_refused() -> None:
    made, _ = model(attention(1, {"softcap": 2.0}, past=2, outputs=4))
    assert "softcap" in refused(made)


# ---- RotaryEmbedding


def rotary(
    batch: int, attributes: Mapping[str, Attribute], *shape: int, width: int = SIZE, places: Array | None
) -> Node:
    count = (batch, shape[-2]) if places is None else (7,)
    operands: list[Array | None] = [
        floats(batch, *shape),
        np.cos(floats(*count, width // 2, seed=2)),
        np.sin(floats(*count, width // 2, seed=2)),
        places,
    ]
    return Node("RotaryEmbedding", operands[: 3 if places is None else 4], attributes, (1, 2))


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("batch", [1, 3])
def test_rotary_embedding(batch: int, interleaved: int) -> None:
    own: dict[str, Attribute] = {"interleaved": interleaved}
    places = np.array([[0, 2, 1], [3, 4, 5], [6, 5, 0]])[:batch]
    nodes = [
        rotary(batch, own, HEADS, QUERIES, SIZE, places=places),
        rotary(batch, own, HEADS, QUERIES, SIZE, places=None),
        rotary(
            batch, own | {"rotary_embedding_dim": 4, "num_heads": HEADS}, HEADS, QUERIES, SIZE, width=4, places=places
        ),
        rotary(batch, own | {"num_heads": HEADS}, QUERIES, HEADS * SIZE, places=places),
    ]
    nodes += [
        Node(node.operator, node.operands, node.attributes, (1, 2, 3)) for node in nodes if len(node.operands) > 3
    ]
    nodes += [Node(node.operator, node.operands, node.attributes) for node in nodes]
    made, feeds = model(*nodes)
    check(made, feeds)
    assert layers(made).count("RotaryEmbed") == len(nodes)
