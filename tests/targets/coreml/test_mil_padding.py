"""Pads and blocks for Core ML against ONNX Runtime, at several sizes of what is open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import node_models
import numpy as np
import pytest
import target_testing as t
import written
from node_models import Node

from retarget.errors import Unsupported
from retarget.spec import DimRange

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.coreml import DeploymentTarget

MODES = ("constant", "edge", "reflect", "wrap")


def pad(x: Array, pads: list[int], mode: str = "constant", value: object = None, axes: list[int] | None = None) -> Node:
    filler = None if value is None else np.asarray(value, x.dtype)
    named = None if axes is None else np.asarray(axes, np.int64)
    return Node("Pad", [x, np.asarray(pads, np.int64), filler, named], {"mode": mode}, (1, 2, 3))


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_modes(target: DeploymentTarget) -> None:
    """Of one to five axes, of the last ones and of others, and negative ones."""
    nodes = [
        node
        for mode in MODES
        for node in (
            pad(node_models.floats(5), [2, 3], mode),
            pad(node_models.floats(4, 5), [0, 2, 3, 0], mode),
            pad(node_models.floats(2, 3, 5, 6), [0, 0, 2, 3, 0, 0, 1, 5], mode),
            pad(node_models.floats(2, 3, 5, 6), [1, 2, 2, 3, 0, 1, 1, 4], mode),
            pad(node_models.floats(2, 3, 2, 4, 3), [0, 0, 1, 2, 0, 0, 0, 1, 1, 2], mode),
            pad(node_models.floats(2, 3, 5, 6), [-1, 2, 3, -2], mode, axes=[-1, 2]),
        )
    ]
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds, target=target, atol=0)


def test_values() -> None:
    nodes = [
        *(pad(node_models.floats(2, 3), [1, 0, 0, 2], value=value) for value in (1.5, -np.inf, np.nan)),
        *(
            pad(node_models.integers(2, 3, 4, dtype=dtype), [1, 0, 2, 0, 3, -1], value=7)
            for dtype in ("int32", "int64")
        ),
        pad(node_models.truths(2, 3, 4), [1, 0, 2, 0, 3, -1], value=True),
        *(pad(node_models.integers(2, 3, 4), [0, 1, 2, 0, 1, 3], mode) for mode in MODES),
        pad(node_models.truths(3, 4), [0, 1, 2, 3], "edge"),
    ]
    written.check(*node_models.model(*nodes), atol=0)


def test_open_axes() -> None:
    """The ends of an axis are all that is needed of it; wrapped and mirrored pads are less than the least size."""
    calls = [f'Pad <mode = "{mode}"> (x, [1, 2, 0, 2, 0, 1, 3, 1])' for mode in MODES]
    calls += ["Pad (x, [0, -1, 0, -2, 0, 0, -1, 2])", 'Pad <mode = "edge"> (x, [9, 9], , [2])']
    model = node_models.side_by_side("float[N,3,H,W] x", *calls)
    written.check_open(model, 8, 5, atol=0, N=DimRange(2, 8, 8), H=DimRange(5, 8, 8), W=DimRange(5, 8, 8))


def test_open_axes_of_integers() -> None:
    model = node_models.side_by_side("int32[N,3,W] x", "Pad(x, [1, 2, 0, 1, 0, 3])", kind="int32")
    written.check_open(model, 8, 5)


def test_more_than_an_open_axis_has_is_fixed() -> None:
    model = node_models.of_text("float[N,W] x", 'Pad <mode = "reflect"> (x, [0, 3, 0, 3])')
    written.check(model, t.feeds(model, 8), W=DimRange(3, 8, 8), N=DimRange(1, 8, 8))
    with pytest.raises(AssertionError, match="must have one size"):
        written.check_open(model, 8, W=DimRange(3, 8, 8))


def test_computed_pads_are_refused() -> None:
    with pytest.raises(Unsupported, match="the padding is computed"):
        written.check_open(node_models.of_text("float[N,4] x, int64[4] p", "Pad(x, p)"), 4)
    with pytest.raises(Unsupported, match="the value to pad with is computed"):
        written.check_open(node_models.of_text("float[N,4] x, float v", "Pad(x, [0, 1, 0, 1], v)"), 4)


def test_centers() -> None:
    calls = ["CenterCropPad <axes = [1, -1]> (x, [5, 4])", "CenterCropPad <axes = [2]> (x, [8])"]
    written.check_open(node_models.side_by_side("float[N,3,5,7] x", *calls), 4, 2, atol=0)


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_blocks(target: DeploymentTarget) -> None:
    calls = [
        "DepthToSpace <blocksize = 2> (x)",
        'DepthToSpace <blocksize = 2, mode = "CRD"> (x)',
        "DepthToSpace <blocksize = 1> (x)",
        "SpaceToDepth <blocksize = 2> (x)",
    ]
    model = node_models.side_by_side("float[N,8,H,6] x", *calls)
    written.check_open(model, 4, 2, target=target, atol=0)


@pytest.mark.parametrize("mode", ["reflect", "edge", "constant"])
def test_float16_is_padded_in_float16(mode: str) -> None:
    model = t.model(f"""g (float16[N,3,4,4] x) => (float16[N,3,6,6] y) {{
        pads = Constant <value_ints = [0, 0, 1, 1, 0, 0, 1, 1]> ()
        y = Pad <mode = "{mode}"> (x, pads)
    }}""")
    written.check(model, t.feeds(model, 2), t.feeds(model, 3))
