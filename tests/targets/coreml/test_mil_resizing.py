"""Resize for Core ML against ONNX Runtime: by which operator, and at several sizes of what is open."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import node_models
import numpy as np
import onnx_ir as ir
import pytest
import target_testing as t
import written
from node_models import Node

from retarget.errors import Unsupported
from retarget.targets.coreml.emit import FILE
from retarget.targets.coreml.executed import executed

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.coreml import DeploymentTarget

COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
ROUNDING = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")


def by_scales(x: Array, scales: list[float], **attributes: str | float | list[int]) -> Node:
    return Node("Resize", [x, None, np.asarray(scales, np.float32)], attributes, (2,))


def by_sizes(x: Array, sizes: list[int], **attributes: str | float | list[int]) -> Node:
    return Node("Resize", [x, None, None, np.asarray(sizes, np.int64)], attributes, (3,))


def opened(shape: str, scales: list[float], **attributes: str | float) -> ir.Model:
    """A Resize of ``shape``, such as ``[N,3,H,W]``, by ``scales``."""
    texts = {name: f'"{each}"' if isinstance(each, str) else f"{each}" for name, each in attributes.items()}
    listed = ", ".join(f"{name} = {text}" for name, text in texts.items())
    return t.model(f"""g (float{shape} x) => (float[] y) {{
        s = Constant <value_floats = {scales}> ()
        y = Resize <{listed}> (x, , s)
    }}""")


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_coordinates(target: DeploymentTarget) -> None:
    """Twice as large, which operators do, and by factors that no operator has."""
    x = node_models.floats(2, 3, 5, 6)
    nodes = [
        by_scales(x, [1.0, 1.0, *scales], mode=mode, coordinate_transformation_mode=coordinates)
        for mode in ("nearest", "linear", "cubic")
        for coordinates in COORDINATES
        for scales in ([2.0, 3.0], [2.0, 2.3], [0.6, 1.0])
    ]
    written.check(*node_models.model(*nodes), target=target)


def test_rounding() -> None:
    x = node_models.floats(1, 2, 4, 6)
    nodes = [
        by_scales(
            x, [1.0, 1.0, *scales], mode="nearest", nearest_mode=rounding, coordinate_transformation_mode=coordinates
        )
        for rounding, coordinates in itertools.product(ROUNDING, ("half_pixel", "asymmetric"))
        for scales in ([2.0, 3.0], [0.5, 2.5])
    ]
    written.check(*node_models.model(*nodes), atol=0)


def test_axes_and_ranks() -> None:
    nodes = [
        by_scales(node_models.floats(5), [2.5], mode="nearest"),
        by_scales(node_models.floats(4, 5), [2.0, 3.0], mode="linear"),
        by_scales(node_models.floats(2, 3, 5), [1.0, 1.0, 2.0], mode="linear"),
        by_scales(node_models.floats(2, 3, 5), [1.0, 1.0, 2.0], mode="nearest"),
        by_scales(node_models.floats(2, 3, 5), [2.0, 1.5, 1.0], mode="linear"),
        by_scales(node_models.floats(2, 3, 4, 5, 3), [1.0, 1.0, 2.0, 1.5, 2.0], mode="linear"),
        by_scales(node_models.floats(2, 3, 4, 5, 3), [1.0, 1.0, 2.0, 2.0, 2.0], mode="nearest"),
        by_sizes(node_models.floats(2, 3, 4, 5), [7, 3], mode="cubic", axes=[3, 2]),
        by_sizes(node_models.floats(2, 3, 4, 5), [1, 1], mode="linear", axes=[2, 3]),
        by_sizes(node_models.floats(2, 3, 4, 5), [8], mode="linear", axes=[2]),
    ]
    written.check(*node_models.model(*nodes))


def test_what_weights_can_be() -> None:
    x = node_models.floats(1, 2, 6, 9)
    nodes = [
        by_scales(x, [1.0, 1.0, 0.6, 0.5], mode="linear", antialias=1),
        by_scales(x, [1.0, 1.0, 0.6, 0.5], mode="cubic", antialias=1),
        by_scales(x, [1.0, 1.0, 0.6, 1.5], mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5),
        by_sizes(x, [7, 8], mode="linear", axes=[2, 3], keep_aspect_ratio_policy="not_larger"),
        by_sizes(x, [7, 8], mode="nearest", axes=[2, 3], keep_aspect_ratio_policy="not_smaller"),
    ]
    written.check(*node_models.model(*nodes))


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_parts(mode: str) -> None:
    """What lies outside has a value of its own."""
    roi = np.asarray([0, 0, -0.3, 0.2, 1, 1, 0.8, 1.6], np.float32)
    attributes = {"mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.5}
    operands = [node_models.floats(2, 3, 5, 6), roi, None, np.asarray([2, 3, 7, 8], np.int64)]
    written.check(*node_models.model(Node("Resize", operands, attributes, (1, 3))))  # type: ignore[arg-type]


def test_integers_and_truths_are_moved() -> None:
    nodes = [
        by_scales(node_models.integers(1, 2, 3, 4, dtype=dtype), [1.0, 1.0, 2.0, 1.5], mode="nearest")
        for dtype in ("int32", "uint8", "int8")
    ]
    written.check(*node_models.model(*nodes))


HALF, CORNERS = "half_pixel", "align_corners"
BILINEAR, UPSAMPLED, NEAREST = "resize_bilinear", "upsample_bilinear", "upsample_nearest_neighbor"


@pytest.mark.parametrize(
    ("shape", "scales", "mode", "coordinates", "operator"),
    [
        ("[N,3,6,6]", [2.0, 1.5], "linear", HALF, BILINEAR),
        ("[N,3,6,6]", [0.5, 2.0], "linear", "pytorch_half_pixel", BILINEAR),
        ("[N,3,6,6]", [2.0, 1.5], "linear", CORNERS, BILINEAR),
        ("[N,3,6,6]", [2.0, 1.5], "linear", "asymmetric", BILINEAR),
        ("[N,3,H,W]", [2.0, 3.0], "linear", HALF, UPSAMPLED),
        ("[N,3,H,W]", [2.0, 3.0], "linear", CORNERS, UPSAMPLED),
        ("[N,3,H,W]", [2.0, 3.0], "nearest", "asymmetric", "gather"),
        ("[N,3,H,W]", [2.0, 3.0], "nearest", HALF, NEAREST),
        ("[N,3,H,6]", [2.0, 1.0], "nearest", HALF, NEAREST),
        ("[N,3,6,6]", [2.0, 3.0], "nearest", HALF, NEAREST),
        ("[N,3,6,6]", [2.0, 3.5], "nearest", HALF, "gather"),
        ("[N,3,6,7]", [1.0, 1.5], "linear", HALF, "matmul"),
        ("[N,3,L]", [2.0], "linear", HALF, UPSAMPLED),
        ("[N,3,L]", [2.0], "nearest", HALF, NEAREST),
    ],
)
def test_operators(shape: str, scales: list[float], mode: str, coordinates: str, operator: str, tmp_path: Path) -> None:
    """An operator where it does the same, at all sizes; and the sizes stay open where it is."""
    model = opened(shape, [1.0, 1.0, *scales], mode=mode, coordinate_transformation_mode=coordinates)
    facts = written.written(model, tmp_path)
    found = executed(tmp_path / FILE).operators
    assert operator in found
    assert bool(facts.sizes) == (operator == "gather" and "H" in shape)
    for size in (4, 1, 7) if not facts.sizes else (4,):
        feeds = t.feeds(model, size)
        t.assert_close(t.run("coreml", tmp_path, facts, feeds)["y"], t.oracle(model, feeds)["y"])


def test_sizes_of_open_images() -> None:
    """To one size, whatever the size was."""
    text = """g (float[N,3,H,W] x) => (float[] y) {{
        s = Constant <value_ints = [5, 9]> ()
        y = Resize <mode = "linear", axes = [2, 3], coordinate_transformation_mode = "{}"> (x, , , s)
    }}"""
    for coordinates in ("half_pixel", "align_corners"):
        written.check_open(t.model(text.format(coordinates)), 4, 7, 8)


def test_computed_sizes() -> None:
    """Those of open dimensions: by the operator that takes them, and fixed where there is none."""
    model = t.model("""g (float[N,3,H,W] x, float[N,3,P,Q] like) => (float[N,3,P,Q] y) {
        s = Shape(like)
        y = Resize <mode = "linear"> (x, , , s)
    }""")
    feeds = {"x": node_models.floats(2, 3, 4, 5), "like": node_models.floats(2, 3, 7, 3)}
    other = {"x": node_models.floats(1, 3, 6, 2), "like": node_models.floats(1, 3, 3, 8)}
    written.check(model, feeds, other)


def test_sums_of_integers_are_refused() -> None:
    model = node_models.model(by_scales(node_models.integers(1, 2, 3, 4), [1.0, 1.0, 2.0, 2.0], mode="linear"))[0]
    with pytest.raises(Unsupported, match="mode=linear of integers"):
        written.interpreted(model)


def test_sizes_that_are_joined_from_an_open_batch_and_numbers_leave_it_open(tmp_path: Path) -> None:
    """As PyTorch writes `interpolate` to a size."""
    model = t.model("""g (float[N,3,6,8] x) => (float[N,3,12,20] y) {
        sizes = Shape (x)
        begin = Constant <value_ints = [0]> ()
        end = Constant <value_ints = [2]> ()
        front = Slice (sizes, begin, end)
        plane = Constant <value_ints = [12, 20]> ()
        wanted = Concat <axis = 0> (front, plane)
        y = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (x, , , wanted)
    }""")
    facts = written.written(model, tmp_path)
    assert not facts.sizes
    for size in (1, 5):
        feeds = t.feeds(model, size)
        t.assert_close(t.run("coreml", tmp_path, facts, feeds)["y"], t.oracle(model, feeds)["y"])
