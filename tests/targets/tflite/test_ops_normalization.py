"""Normalizations of TFLite against ONNX Runtime, and against double precision where means are large."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import one_node
import pytest
import target_testing as t
from many_nodes import LAYOUTS, agrees, channels_last, job
from node_models import Attribute, Node, floats, model

from retarget import catalog
from retarget.compare import snr_db
from retarget.targets.tflite import emit

if TYPE_CHECKING:
    from retarget.protocols import Array

SHAPES: list[tuple[int, ...]] = [(3, 4), (2, 4, 5), (2, 4, 3, 5), (2, 4, 3, 2, 2), (2, 4, 1, 2, 2, 2)]
HELD: list[tuple[int, ...]] = [(1, 2, 3, 4), ()]


def mixed(*shape: int) -> Array:
    """Values of another mean and spread for each channel."""
    array: Array = np.add(floats(*shape, scale=1), np.linspace(-2, 2, shape[-1]), dtype=np.float32)
    return array


@pytest.mark.parametrize("layout", LAYOUTS)
def test_over_the_last_axes(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = []
    for shape in SHAPES:
        for axis in sorted({0, 1, len(shape) // 2, -1}, reverse=True):
            data, over = mixed(*shape), shape[axis % len(shape) :]
            scale, bias = floats(*over, seed=2), floats(*over, seed=3)
            nodes.append(Node("RMSNormalization", [data, scale], {"axis": axis}, (1,)))
            nodes.append(Node("LayerNormalization", [data, scale, bias], {"axis": axis}, (1, 2), outputs=3))
        nodes.append(Node("RMSNormalization", [data, scale], {"axis": -1, "epsilon": 0.1}))
        nodes.append(Node("LayerNormalization", [data, scale], {"axis": -1, "epsilon": 0.1}))
    agrees(nodes, layout, tmp_path, monkeypatch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_channels(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = []
    for shape in SHAPES:
        data, (scale, bias, mean) = mixed(*shape), (floats(shape[1], seed=seed) for seed in (2, 3, 4))
        variance = np.abs(floats(shape[1], seed=5)) + np.float32(0.1)
        for held in HELD:
            if len(shape) > len("NC"):
                nodes.append(Node("InstanceNormalization", [data, scale, bias], {"epsilon": 1e-3}, held[:2]))
            nodes.append(Node("BatchNormalization", [data, scale, bias, mean, variance], {"epsilon": 1e-3}, held))
            nodes.append(
                Node(
                    "BatchNormalization",
                    [data, scale, bias, mean, variance],
                    {"training_mode": 1, "momentum": 0.7},
                    held,
                    outputs=3,
                )
            )
            nodes += [
                Node("GroupNormalization", [data, scale, bias], {"num_groups": groups}, held[:2])
                for groups in (1, 2, 4)
                if groups < shape[1] or len(shape) > len("NC")
            ]
    agrees(nodes, layout, tmp_path, monkeypatch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_by_norms(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        Node("LpNormalization", [data], {"axis": axis, "p": p})
        for shape in SHAPES
        for data in (mixed(*shape), np.zeros(shape, np.float32))
        for axis in (0, 1, -1)
        for p in (1, 2)
    ]
    agrees(nodes, layout, tmp_path, monkeypatch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("attributes", [{"axes": [0, 2, 3]}, {"axes": [0, 3]}])
def test_by_mean_and_variance(
    attributes: dict[str, Attribute], layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node("MeanVarianceNormalization", [mixed(2, 4, 3, 5)], attributes)
    agrees([node], layout, tmp_path, monkeypatch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_over_neighbouring_channels(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = {"alpha": 0.3, "beta": 0.6, "bias": 1.5}
    nodes = [Node("LRN", [floats(2, 7, 3, 4)], {"size": size, **constants}) for size in (1, 3, 5, 9)]
    agrees(nodes, layout, tmp_path, monkeypatch)


LARGE = {
    "layer": Node("LayerNormalization", [floats(1, 50, 768), np.ones(768, np.float32)], {}, (1,)),
    "instance": Node(
        "InstanceNormalization", [floats(1, 4, 96, 96), np.ones(4, np.float32), np.zeros(4, np.float32)], {}, (1, 2)
    ),
    "group": Node(
        "GroupNormalization",
        [floats(1, 16, 48, 48), np.ones(16, np.float32), np.zeros(16, np.float32)],
        {"num_groups": 4},
        (1, 2),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LARGE)
def test_large_means_cost_few_digits(name: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean is 33 times the deviation, of as many elements as models have."""
    node = LARGE[name]
    (first, *rest) = node.operands
    assert first is not None
    data = np.asarray(first + 100, np.float32)
    made, feeds = model(Node(node.operator, [data, *rest], node.attributes, node.constants))
    wide = data.astype(np.float64)
    parts = wide.reshape({"layer": (50, 768), "instance": (4, -1), "group": (4, -1)}[name])
    centred = parts - parts.mean(1, keepdims=True)
    exact = (centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)).reshape(data.shape)
    if layout == "last":
        monkeypatch.setattr(emit, "arrange", channels_last)
    facts = emit.emit(made, job(made, {"y0_0": data}), tmp_path)
    with catalog.target_run("tflite").open(tmp_path, facts, parity=True, threads=1) as runner:
        assert snr_db(exact, runner.run(feeds)["y0_0"]) > 95


def test_the_batch_stays_open_and_channels_last(tmp_path: Path) -> None:
    chain = t.model("""g (float[N,3,8,8] x, float[6,3,3,3] w_a, float[6] w_b, float[6] w_c, float[4,6,3,3] w_d)
        => (float[N,4,4,4] y) <float[N,6,6,6] b> {
        a = Conv(x, w_a) b = GroupNormalization <num_groups = 2> (a, w_b, w_c) c = InstanceNormalization(b, w_b, w_c)
        d = LRN <size = 3> (c) e = LpNormalization <axis = 1> (d) y = Conv(e, w_d)
    }""")
    facts = t.emit("tflite", chain, tmp_path)
    assert not facts.sizes
    # That of the image, and that of the result.
    assert one_node.operators(tmp_path).count("TRANSPOSE") == 2
    for size in (4, 1):
        feeds = t.feeds(chain, size)
        # ONNX Runtime's own GroupNormalization loses digits.
        t.assert_close(t.run("tflite", tmp_path, facts, feeds)["y"], t.oracle(chain, feeds)["y"], atol=1e-4)
