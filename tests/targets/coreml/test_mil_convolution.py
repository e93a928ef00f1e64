"""Convolutions for Core ML against ONNX Runtime, at several sizes of what is open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import node_models
import numpy as np
import onnx_ir as ir
import pytest
import target_testing as t
import written

from retarget.errors import Unsupported
from retarget.spec import DimRange

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.coreml import DeploymentTarget

CASES = {
    "line": ("[N,4,9] x, float[6,4,3] w_k, float[6] w_b", "Conv <strides = [2], pads = [1, 0]> (x, w_k, w_b)"),
    "line of channels alone": ("[N,4,9] x, float[8,1,3] w_k", "Conv <group = 4, dilations = [2]> (x, w_k)"),
    "pads, strides and dilations of each axis": (
        "[N,4,9,8] x, float[6,4,3,2] w_k",
        "Conv <pads = [2, 0, 1, 1], strides = [2, 3], dilations = [1, 2]> (x, w_k)",
    ),
    "pads by name": ("[N,4,8,9] x, float[6,4,3,2] w_k", 'Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w_k)'),
    "strides that leave elements over": (
        "[N,4,8,9] x, float[6,4,1,1] w_k",
        'Conv <auto_pad = "SAME_UPPER", strides = [3, 4]> (x, w_k)',
    ),
    "several results of each channel, other strides of each axis": (
        "[N,4,8,8] x, float[12,1,3,3] w_k, float[12] w_b",
        "Conv <group = 4, strides = [2, 1], dilations = [1, 2]> (x, w_k, w_b)",
    ),
    "computed weights": ("[N,4,6,6] x, float[6,4,3,3] k", "Conv(x, k)"),
    "computed weights and bias, in groups": ("[N,4,6,6] x, float[6,2,3,3] k, float[6] b", "Conv <group = 2> (x, k, b)"),
    "volume in groups": (
        "[N,4,4,5,6] x, float[6,2,2,3,2] w_k, float[6] w_b",
        "Conv <group = 2, pads = [1, 0, 0, 1, 1, 2], dilations = [1, 2, 3], strides = [1, 2, 1]> (x, w_k, w_b)",
    ),
    "transposed line": ("[N,4,5] x, float[4,6,3] w_k, float[6] w_b", "ConvTranspose <strides = [2]> (x, w_k, w_b)"),
    "transposed, with computed weights and bias": (
        "[N,4,5,6] x, float[4,6,3,3] k, float[6] b",
        "ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]> (x, k, b)",
    ),
    "transposed, results that nothing adds to": (
        "[N,4,5,6] x, float[4,6,1,2] w_k, float[6] w_b",
        "ConvTranspose <strides = [3, 3], output_padding = [2, 2]> (x, w_k, w_b)",
    ),
    "transposed to a size": (
        "[N,4,5,6] x, float[4,6,3,3] w_k",
        "ConvTranspose <strides = [2, 2], output_shape = [10, 12]> (x, w_k)",
    ),
    "transposed, pads by name": (
        "[N,4,5,6] x, float[4,6,3,3] w_k",
        'ConvTranspose <strides = [2, 2], auto_pad = "SAME_UPPER"> (x, w_k)',
    ),
    "transposed, pads by another name": (
        "[N,4,5,6] x, float[4,6,3,2] w_k",
        'ConvTranspose <strides = [2, 3], auto_pad = "SAME_LOWER"> (x, w_k)',
    ),
    "transposed in groups, with dilations": (
        "[N,4,5,6] x, float[4,3,3,3] w_k, float[6] w_b",
        "ConvTranspose <strides = [2, 1], group = 2, dilations = [2, 3], pads = [1, 0, 0, 2]> (x, w_k, w_b)",
    ),
    "transposed volume in groups": (
        "[N,4,3,4,5] x, float[4,2,2,3,2] w_k",
        "ConvTranspose <strides = [2, 1, 2], group = 2, pads = [0, 1, 1, 1, 1, 0]> (x, w_k)",
    ),
    "columns to an image": (
        "[N,8,12] x",
        "Col2Im <strides = [1, 2], pads = [0, 1, 0, 1]> (x, [5, 5], [2, 2])",
    ),
    "columns to an image, dilations": ("[N,8,4] x", "Col2Im <dilations = [2, 3]> (x, [4, 5], [2, 2])"),
    "columns to a volume": ("[N,8,12] x", "Col2Im <strides = [1, 2, 1]> (x, [4, 5, 3], [2, 2, 2])"),
}


@pytest.mark.parametrize("name", CASES)
def test_convolutions(name: str) -> None:
    inputs, node = CASES[name]
    written.check_open(node_models.of_text(f"float{inputs}", node), 4, 2)


@pytest.mark.parametrize("target", written.TARGETS)
def test_targets(target: DeploymentTarget) -> None:
    model = t.model("""g (float[N,4,7,6] x, float[6,4,3,3] w_k, float[6] w_b, float[6,2,4,4] w_t) => (float[] y) {
        c = Conv <auto_pad = "SAME_LOWER", strides = [2, 1]> (x, w_k, w_b)
        y = ConvTranspose <strides = [2, 2], group = 3, output_padding = [1, 0]> (c, w_t)
    }""")
    written.check_open(model, 4, 1, target=target)


def test_computed_weights_of_transposed_convolutions_are_refused_for_old_targets() -> None:
    model = node_models.of_text("float[N,4,5,6] x, float[4,6,3,3] k", "ConvTranspose(x, k)")
    with pytest.raises(Unsupported, match="computed weights needs minimum_deployment_target iOS17"):
        written.check_open(model, 4, target="iOS16")


def test_dilations_with_computed_weights_are_refused() -> None:
    model = node_models.of_text("float[N,4,6,6] x, float[6,4,3,3] k", "Conv <dilations = [2, 2]> (x, k)")
    with pytest.raises(Unsupported, match=r"dilations=\[2, 2\] with computed weights"):
        written.check_open(model, 4)


def test_volumes_of_columns_with_dilations_are_refused() -> None:
    model = node_models.of_text("float[N,8,16] x", "Col2Im <dilations = [1, 1, 2]> (x, [4, 5, 3], [2, 2, 2])")
    with pytest.raises(Unsupported, match="ONNX Runtime differs from ONNX"):
        written.check_open(model, 4)


IMAGES = {
    "pads": ("Conv <pads = [1, 0, 2, 1], strides = [2, 3]> (x, w_k)", ()),
    "same": ('Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w_k)', ()),
    "same, lower": ('Conv <auto_pad = "SAME_LOWER", strides = [2, 3]> (x, w_k)', ("iOS15",)),
    "same, one element on": ('Conv <auto_pad = "SAME_LOWER"> (x, w_k)', ()),
    "transposed": ("ConvTranspose <pads = [1, 1, 1, 1], strides = [2, 2], output_padding = [1, 1]> (x, w_k)", ()),
    "transposed to a size": (
        "ConvTranspose <strides = [2, 2], output_shape = [16, 16]> (x, w_k)",
        written.TARGETS,
    ),
}


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("name", IMAGES)
def test_images_of_all_sizes(name: str, target: DeploymentTarget) -> None:
    """Also of odd sizes; where pads hang on what Core ML cannot find itself, the size is fixed and said."""
    node, closed = IMAGES[name]
    model = node_models.of_text("float[1,4,H,W] x, float[4,4,3,3] w_k", node)
    if target not in closed:
        written.check_open(model, 8, 7, 11, 12, target=target, H=DimRange(6, 8, 12), W=DimRange(6, 8, 12))
        return
    written.check(model, t.feeds(model, 8), target=target, H=DimRange(6, 8, 12), W=DimRange(6, 8, 12))
    with pytest.raises(AssertionError, match="must have one size"):
        written.check_open(model, 8, target=target, H=DimRange(6, 8, 12), W=DimRange(6, 8, 12))


@pytest.mark.parametrize("zero_point", [0, 3])
@pytest.mark.parametrize(("node", "axis"), [("Conv", 0), ("ConvTranspose", 1)])
def test_weights_stay_integers(node: str, axis: int, zero_point: int) -> None:
    rng = np.random.default_rng(0)
    model = t.model(f"""g (float[N,4,6,6] x, int8[4,4,3,3] k, float[4] s, int8[4] z, float[4] w_b) => (float[] y) {{
        w = DequantizeLinear <axis = {axis}> (k, s, z)
        y = {node} <pads = [1, 1, 1, 1]> (x, w, w_b)
    }}""")
    arrays: dict[str, Array] = {
        "k": rng.integers(-127, 127, (4, 4, 3, 3)).astype(np.int8),
        "s": (rng.random(4) / 100 + 0.001).astype(np.float32),
        "z": np.full(4, zero_point, np.int8),
    }
    for value in list(model.graph.inputs):
        if (array := arrays.get(value.name or "")) is not None:
            value.const_value = ir.Tensor(array, name=value.name)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
    for target in written.TARGETS[1:]:
        written.check_open(model, 4, 2, target=target)


def test_halves() -> None:
    model = t.model("""g (float16[N,4,8,8] x, float16[6,4,3,3] w_k, float16[6] w_b, float16[6,2,2,2] w_t)
        => (float16[] y, float16[] p) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w_k, w_b)
        y = ConvTranspose <strides = [2, 2], output_padding = [1, 1]> (c, w_t)
        p = LpPool <kernel_shape = [2, 2], p = 3> (y)
    }""")
    written.check_open(model, 4, 2, atol=4e-3)
