"""Pooling for Core ML against ONNX Runtime, at several sizes of what is open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import node_models
import numpy as np
import pytest
import target_testing as t
import written

from retarget.errors import Unsupported
from retarget.spec import DimRange

if TYPE_CHECKING:
    from retarget.targets.coreml import DeploymentTarget

LINE = (
    "kernel_shape = [3], strides = [2], pads = [1, 1]",
    "kernel_shape = [3], strides = [2], ceil_mode = 1",
)
IMAGE = (
    "kernel_shape = [3, 3], pads = [1, 1, 1, 1]",
    "kernel_shape = [3, 2], strides = [2, 3], pads = [1, 0, 2, 1]",
    'kernel_shape = [3, 2], strides = [2, 2], auto_pad = "SAME_LOWER"',
    'kernel_shape = [3, 2], strides = [2, 2], auto_pad = "SAME_UPPER"',
    "kernel_shape = [3, 2], strides = [2, 2], ceil_mode = 1",
    # The last window would start in the pads.
    "kernel_shape = [3, 3], strides = [3, 3], pads = [1, 1, 1, 1], ceil_mode = 1",
    "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 0, 1, 2], ceil_mode = 1",
    "kernel_shape = [3, 2], dilations = [2, 3], strides = [2, 1], pads = [1, 1, 1, 1]",
)
VOLUME = (
    "kernel_shape = [3, 2, 2], strides = [2, 1, 2], pads = [1, 1, 1, 0, 1, 0]",
    "kernel_shape = [2, 2, 2], dilations = [2, 1, 2], strides = [2, 1, 1]",
    "kernel_shape = [2, 3, 2], strides = [2, 2, 2], ceil_mode = 1",
)
SHAPES = {"[N,3,9]": LINE, "[N,3,8,9]": IMAGE, "[N,3,5,6,7]": VOLUME}
OPERATORS = ("MaxPool <", "AveragePool <", "AveragePool <count_include_pad = 1, ", "LpPool <", "LpPool <p = 3, ")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_windows(operator: str, shape: str) -> None:
    calls = [f"{operator}{attributes}> (x)" for attributes in SHAPES[shape]]
    written.check_open(node_models.side_by_side(f"float{shape} x", *calls), 4, 1)


@pytest.mark.parametrize("target", written.TARGETS)
def test_targets(target: DeploymentTarget) -> None:
    calls = [f"{operator}{IMAGE[at]}> (x)" for operator, at in zip(OPERATORS, (2, 6, 6, 1, 3), strict=True)]
    written.check_open(node_models.side_by_side("float[N,3,8,9] x", *calls), 4, 2, target=target)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_that_there_is(shape: str) -> None:
    model = node_models.side_by_side(f"float{shape} x", "GlobalAveragePool(x)", "GlobalMaxPool(x)")
    written.check_open(model, 4, 2)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_powers_of_all(power: int) -> None:
    """ONNX Runtime has none of these."""
    model = node_models.of_text("float[N,3,8,9] x", f"GlobalLpPool <p = {power}> (x)")
    feeds = t.feeds(model, 4)
    (found,) = written.interpreted(model, feeds)
    right = (np.abs(feeds["x"].astype(np.float64)) ** power).sum((2, 3), keepdims=True) ** (1 / power)
    t.assert_close(found["y"], right, 1e-5 * float(right.max()))


OPEN = (
    "MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x)",
    "MaxPool <kernel_shape = [3, 2], ceil_mode = 1, strides = [2, 2]> (x)",
    "MaxPool <kernel_shape = [2, 2], dilations = [2, 2], strides = [2, 2], pads = [1, 0, 0, 1]> (x)",
    'AveragePool <kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER"> (x)',
    "AveragePool <kernel_shape = [4, 4], strides = [2, 3], pads = [1, 1, 1, 0], ceil_mode = 1> (x)",
    "AveragePool <kernel_shape = [4, 4], strides = [2, 3], pads = [1, 1, 1, 0], ceil_mode = 1,count_include_pad=1> (x)",
    "LpPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x)",
    "GlobalAveragePool(x)",
)


def test_images_of_all_sizes() -> None:
    model = node_models.side_by_side("float[N,3,H,W] x", *OPEN)
    written.check_open(model, 8, 7, 12, 13, N=DimRange(1, 4, 13), H=DimRange(6, 8, 13), W=DimRange(6, 8, 13))


@pytest.mark.parametrize(
    "node",
    [
        # Whether there is one window more hangs on the size.
        "MaxPool <kernel_shape = [2, 2], ceil_mode = 1, strides = [3, 3]> (x)",
        # By how many elements a sum is divided does.
        "AveragePool <kernel_shape = [2, 2], dilations = [2, 2], pads = [1, 1, 1, 1]> (x)",
        'LpPool <kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER"> (x)',
    ],
)
def test_sizes_that_must_be_known_are_fixed(node: str) -> None:
    model = node_models.of_text("float[N,3,H,8] x", node)
    written.check(model, t.feeds(model, 8), H=DimRange(6, 8, 13), N=DimRange(1, 8, 8))
    with pytest.raises(AssertionError, match="must have one size"):
        written.check_open(model, 8, H=DimRange(6, 8, 13))


def test_pads_are_never_the_largest() -> None:
    calls = [f"MaxPool <kernel_shape = [3, 3], dilations = [{step}, 1], pads = [1, 1, 0, 0]> (x)" for step in (1, 2)]
    model = node_models.side_by_side("float[N,3,8,9] x", *calls)
    feeds = {name: -1 - np.abs(array) for name, array in t.feeds(model, 4).items()}
    written.check(model, feeds, atol=0)


@pytest.mark.parametrize(
    "attributes", ["storage_order = 1", "dilations = [2, 1]", "pads = [1, 1, 0, 1], ceil_mode = 1"]
)
@pytest.mark.parametrize("shape", ["[2,3,5,6]", "[N,3,5,6]"])
def test_places_of_the_maxima(shape: str, attributes: str) -> None:
    """Of equal ones the first."""
    model = node_models.of_text(f"float{shape} x", f"MaxPool <kernel_shape = [2, 3], {attributes}> (x)", "y, int64 z")
    rng = np.random.default_rng(1)
    fed = [
        {"x": rng.integers(-2, 3, (size, 3, 5, 6)).astype(np.float32)} for size in ((2, 1) if "N" in shape else (2,))
    ]
    written.check(model, *fed)


def test_what_was_pooled_goes_back() -> None:
    model = t.model("""g (float[2,3,4,6] x) => (float[] y) {
        p, i = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
        y = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (p, i)
    }""")
    written.check(model, t.feeds(model, 2))


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ('MaxPool <kernel_shape = [2, 2], dilations = [2, 2], auto_pad = "SAME_UPPER"> (x)', "with dilations"),
        ('AveragePool <kernel_shape = [1, 1], strides = [1, 4], auto_pad = "SAME_UPPER"> (x)', "leave elements"),
        ("MaxPool <kernel_shape = [2, 2], pads = [2, 0, 0, 0]> (x)", "pads as wide as the window"),
    ],
)
def test_refusals(node: str, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        written.check_open(node_models.of_text("float[N,3,8,8] x", node), 4)
