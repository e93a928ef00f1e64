"""Normalizations and window functions of Core ML against ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
import target_testing as t
import written
from agreement import agrees
from node_models import Node, floats, of_text

from retarget.errors import Unsupported

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.coreml import DeploymentTarget

HELD: list[tuple[int, ...]] = [(1, 2, 3, 4), ()]
"""Scales and biases as constants, and computed."""


def channels(count: int, kind: str, *seeds: int) -> list[Array]:
    return [floats(count, seed=seed).astype(kind) for seed in seeds]


def by_channels(kind: str) -> list[Node]:
    nodes = []
    for shape in ((2, 6), (2, 6, 3, 4), (2, 6, 2, 3, 2)):
        data, statistics = floats(*shape).astype(kind), channels(6, kind, 2, 3, 4)
        variance = np.abs(channels(6, kind, 5)[0]) + np.asarray(0.1, kind)
        for held in HELD:
            nodes.append(Node("BatchNormalization", [data, *statistics, variance], {"epsilon": 1e-3}, held))
            nodes.append(
                Node("BatchNormalization", [data, *statistics, variance], {"training_mode": 1}, held, outputs=3)
            )
            if len(shape) > 2:
                nodes.append(Node("InstanceNormalization", [data, *statistics[:2]], {}, held[:2]))
                nodes += [
                    Node("GroupNormalization", [data, *statistics[:2]], {"num_groups": groups}, held[:2])
                    for groups in (1, 3)
                ]
    return nodes


def by_axes(kind: str, epsilon: float) -> list[Node]:
    nodes = []
    for shape, axis in (((5,), -1), ((2, 3, 4), 1), ((2, 3, 2, 2, 2), 3)):
        axis %= len(shape)
        normal, attributes = shape[axis:], {"axis": axis, "epsilon": epsilon}
        data, scale, bias = (floats(*each, seed=seed).astype(kind) for seed, each in enumerate((shape, normal, normal)))
        for held in HELD:
            nodes += [
                Node("LayerNormalization", [data, scale, bias], attributes, held[:2]),
                Node("LayerNormalization", [data, scale], attributes, held[:1]),
                # A scale that broadcasts.
                Node("LayerNormalization", [data, scale.reshape(-1)[: normal[-1]], bias], attributes, held[:2]),
                Node("RMSNormalization", [data, scale], attributes, held[:1]),
            ]
        nodes += [Node("LpNormalization", [data], {"axis": axis, "p": p}) for p in (1, 2)]
    return nodes


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_normalizations(target: DeploymentTarget) -> None:
    agrees(*by_channels("float32"), *by_axes("float32", 1e-5), target=target, rtol=2e-5)


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
def test_normalizations_of_float16(target: DeploymentTarget) -> None:
    """An epsilon of 1e-12 is 0 as a float16: of rows that are all alike the result would not be a number."""
    alike = np.full((2, 4), 3, np.float16)
    scale, bias = channels(4, "float16", 1, 2)
    rows = Node("LayerNormalization", [alike, scale, bias], {"epsilon": 1e-12}, (1, 2))
    nodes = [node for node in by_channels("float16") if "training_mode" not in node.attributes]
    agrees(rows, *nodes, *by_axes("float16", 1e-5), target=target, rtol=4e-3, atol=4e-3)


def test_rms_of_float16_is_computed_in_float32() -> None:
    """The squares of 300 and 0.0001 are no float16."""
    data = np.array([[300, -200, 100, 250], [1e-4, -2e-4, 3e-4, 1e-4]], np.float16)
    node = Node("RMSNormalization", [data, np.ones(4, np.float16)], {"epsilon": 1e-12}, (1,))
    agrees(node, rtol=2e-3)


def test_mean_and_deviation_beside_the_result() -> None:
    nodes = [
        Node("LayerNormalization", [floats(2, 3, 4), *channels(4, "float32", 1, 2)], {"axis": -1}, held[:2], outputs=3)
        for held in HELD
    ]
    agrees(*nodes)


def test_rows_of_zeros_stay_zero() -> None:
    data = floats(2, 3)
    data[0] = 0
    agrees(*(Node("LpNormalization", [data], {"p": p}) for p in (1, 2)))


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_mean_variance_and_local_response_normalization(target: DeploymentTarget) -> None:
    nodes = [Node("MeanVarianceNormalization", [floats(2, 3, 4, 5)], {"axes": axes}) for axes in ([0, 2, 3], [-1])]
    nodes += [
        Node("LRN", [floats(2, 5, 3, 4)], {"size": size, "alpha": 0.2, "beta": 0.6, "bias": 1.3}) for size in (1, 3, 5)
    ]
    agrees(*nodes, target=target)


def test_windows_of_the_size_that_the_model_says() -> None:
    for name in ("Hann", "Hamming", "Blackman"):
        for periodic in (0, 1):
            model = t.model(f"g (int32 size) => (float[10] y) {{ y = {name}Window <periodic = {periodic}> (size) }}")
            written.check(model, {"size": np.asarray(10, np.int32)})


@pytest.mark.parametrize(
    "node",
    [
        "LayerNormalization(x, w_scale, w_bias)",
        "InstanceNormalization(x, w_scale, w_bias)",
        "GroupNormalization <num_groups = 2> (x, w_scale, w_bias)",
        "BatchNormalization(x, w_scale, w_bias, w_bias, w_variance)",
        "LpNormalization <axis = 2> (x)",
        "RMSNormalization(x, w_scale)",
    ],
)
def test_open_dimensions_stay_open(node: str) -> None:
    axes = "N,S,4" if node.startswith(("Layer", "RMS")) else "N,4,S"
    weights = ", ".join(f"float[4] {name}" for name in ("w_scale", "w_bias", "w_variance") if name in node)
    text = f"g ({', '.join(filter(None, [f'float[{axes}] x', weights]))}) => (float[{axes}] y) {{ y = {node} }}"
    model = t.model(text)
    variance = model.graph.initializers.get("w_variance")
    if variance is not None and variance.const_value is not None:
        variance.const_value = ir.tensor(np.abs(variance.const_value.numpy()) + np.float32(0.1), name="w_variance")
    written.check_open(model, 2, 5)


@pytest.mark.parametrize(
    ("inputs", "node", "reason"),
    [
        ("float[2,6,3,3] x", "LRN <size = 2> (x)", "size=2"),
        ("float[2,6,3,3,3] x", "LRN <size = 3> (x)", "5 axes"),
        ("float[2,4] x, float[4] s, float[4] b", "InstanceNormalization(x, s, b)", "2 axes"),
    ],
)
def test_refused(inputs: str, node: str, reason: str) -> None:
    model = of_text(inputs, node)
    with pytest.raises(Unsupported, match=reason):
        written.interpreted(model, t.feeds(model, 3))
