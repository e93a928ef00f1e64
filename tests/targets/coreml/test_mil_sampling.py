"""Images sampled at any places for Core ML against ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import node_models
import numpy as np
import onnx_ir as ir
import pytest
import target_testing as t
import written
from node_models import Attribute, Node

from retarget.errors import Unsupported

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.coreml import DeploymentTarget

PADDINGS = ("zeros", "border", "reflection")


def grid(*shape: int) -> Array:
    """Places inside and outside, some of them half-way between two elements of an axis of 4 or 5."""
    rng = np.random.default_rng(2)
    return np.where(rng.random(shape) < 0.5, rng.integers(-6, 7, shape) / 4, rng.uniform(-2.5, 2.5, shape)).astype(
        np.float32
    )


def sampled(mode: str, padding: str, corners: int) -> str:
    return f'GridSample <mode = "{mode}", padding_mode = "{padding}", align_corners = {corners}> (x, g)'


@pytest.mark.parametrize("target", written.TARGETS)
def test_grids(target: DeploymentTarget) -> None:
    """Of images whose sizes are open."""
    nodes = [sampled(mode, each, corners) for mode in ("linear", "nearest") for each in PADDINGS for corners in (0, 1)]
    _check_open(*nodes, target=target)


def test_cubic_grids() -> None:
    _check_open(*(sampled("cubic", padding, corners) for padding, corners in (("zeros", 0), ("reflection", 1))))


def _check_open(*nodes: str, target: DeploymentTarget = "iOS17") -> None:
    model = node_models.side_by_side("float[N,3,H,W] x, float[N,P,Q,2] g", *nodes)
    fed = [
        {"x": node_models.floats(2, 3, 4, 5), "g": grid(2, 6, 7, 2)},
        {"x": node_models.floats(1, 3, 5, 4), "g": grid(1, 3, 2, 2)},
    ]
    written.check(model, *fed, target=target)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_grids_of_volumes(mode: str) -> None:
    nodes = [sampled(mode, padding, corners) for padding, corners in zip(PADDINGS, (0, 1, 1), strict=True)]
    model = node_models.side_by_side("float[N,2,3,4,5] x, float[N,2,3,4,3] g", *nodes)
    fed = [{"x": node_models.floats(n, 2, 3, 4, 5), "g": grid(n, 2, 3, 4, 3)} for n in (2, 1)]
    written.check(model, *fed)


def test_grids_of_affine_maps() -> None:
    nodes = [f"AffineGrid <align_corners = {corners}> (m, [2, 3, 4, 5])" for corners in (0, 1)]
    # The result says how many there are.
    model = node_models.side_by_side("float[2,2,3] m", *nodes)
    written.check(model, t.feeds(model, 2))
    model = node_models.of_text("float[2,3,4] m", "AffineGrid(m, [2, 3, 4, 5, 6])")
    written.check(model, t.feeds(model, 2))


def test_an_axis_of_one_element_has_no_corners() -> None:
    model = node_models.of_text("float[2,2,3] m", "AffineGrid <align_corners = 1> (m, [2, 3, 1, 5])")
    with pytest.raises(Unsupported, match="align_corners=1 along an axis of one element"):
        written.interpreted(model)


BOXES = np.array([[0, 0, 5, 6], [2, 1, 4.5, 3], [-3, -4, 20, 9], [6, 5, 6.2, 5.1]], np.float32)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("transformation", ["half_pixel", "output_half_pixel"])
def test_boxes(transformation: str, images: int) -> None:
    """Inside and outside of the image, and smaller than an element."""
    model = node_models.of_text(
        f"float[{images},3,8,9] x, float[R,4] b, int64[R] i",
        f"RoiAlign <output_height = 2, output_width = 3, sampling_ratio = 2, spatial_scale = 0.75,"
        f' coordinate_transformation_mode = "{transformation}"> (x, b, i)',
    )
    fed = [
        {"x": node_models.floats(images, 3, 8, 9), "b": BOXES[:count], "i": np.arange(count) % images}
        for count in (4, 1)
    ]
    found = written.interpreted(model, *fed)
    # ONNX Runtime has it of older opsets.
    proto = ir.to_proto(model)
    proto.opset_import[0].version = 20
    for feeds, outputs in zip(fed, found, strict=True):
        t.assert_close(outputs["y"], t.oracle(ir.from_proto(proto), feeds)["y"])


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [("sampling_ratio = 0", "hangs on the size"), ('mode = "max", sampling_ratio = 2', "mode=max")],
)
def test_boxes_that_are_refused(attributes: str, reason: str) -> None:
    model = node_models.of_text("float[1,3,8,9] x, float[R,4] b, int64[R] i", f"RoiAlign <{attributes}> (x, b, i)")
    with pytest.raises(Unsupported, match=reason):
        written.interpreted(model)


def test_deformed_convolutions() -> None:
    """Weights that the model holds and computed ones, a mask and groups of offsets."""
    x, weight = node_models.floats(2, 4, 6, 7), node_models.floats(6, 4, 3, 2)
    attributes: dict[str, Attribute] = {"strides": [2, 1], "pads": [1, 0, 1, 1], "dilations": [1, 2], "offset_group": 2}
    offsets, mask, bias = grid(2, 24, 3, 6), np.abs(node_models.floats(2, 12, 3, 6, scale=1.0)), node_models.floats(6)
    grouped = node_models.floats(6, 2, 3, 2)
    nodes = [
        Node("DeformConv", [x, weight, offsets, bias, mask], attributes, (1, 3)),
        Node("DeformConv", [x, weight, offsets, bias], attributes),
        Node("DeformConv", [x, grouped, offsets], {**attributes, "group": 2}, (1,)),
    ]
    written.check(*node_models.model(*nodes))


def test_deformed_convolutions_of_open_batches() -> None:
    model = node_models.of_text("float[N,4,6,6] x, float[6,4,3,3] w_k, float[N,18,4,4] o", "DeformConv(x, w_k, o)")
    written.check_open(model, 4, 1)


def test_halves() -> None:
    model = t.model("""g (float16[N,3,6,6] x, float16[N,4,4,2] g) => (float16[] y, float16[] z) {
        y = GridSample <mode = "linear"> (x, g)
        s = Constant <value_floats = [1.0, 1.0, 1.5, 2.5]> ()
        z = Resize <mode = "cubic"> (x, , s)
    }""")
    fed = {"x": node_models.floats(2, 3, 6, 6).astype(np.float16), "g": grid(2, 4, 4, 2).astype(np.float16)}
    (found,) = written.interpreted(model, fed)
    wide = t.model("""g (float[N,3,6,6] x, float[N,4,4,2] g) => (float[] y, float[] z) {
        y = GridSample <mode = "linear"> (x, g)
        s = Constant <value_floats = [1.0, 1.0, 1.5, 2.5]> ()
        z = Resize <mode = "cubic"> (x, , s)
    }""")
    right = t.oracle(wide, {name: each.astype(np.float32) for name, each in fed.items()})
    for name in ("y", "z"):
        t.assert_close(found[name], right[name], 2e-2)
