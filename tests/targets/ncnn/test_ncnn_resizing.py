"""Resize and blocks for ncnn against ONNX Runtime, with the batch as rows and without."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import ncnn_written as written
import node_models
import numpy as np
import pytest
import target_testing
from node_models import Attribute, Node, floats, integers

from retarget.spec import DimRange

COORDINATES = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def resize(
    x: tuple[int, ...],
    how: Mapping[str, Attribute] | None = None,
    *,
    sizes: list[int] | None = None,
    scales: list[float] | None = None,
    roi: list[float] | None = None,
    **attributes: Attribute,
) -> Node:
    """Along the last axes; the others stay."""
    asked = sizes if sizes is not None else scales
    assert asked is not None
    axes = list(range(len(x) - len(asked), len(x)))
    operands = [
        floats(*x),
        None if roi is None else np.array(roi, np.float32),
        None if scales is None else np.array(scales, np.float32),
        None if sizes is None else np.array(sizes),
    ]
    return Node("Resize", operands, {"axes": axes, **(how or {}), **attributes}, constants=(1, 2, 3))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("batch", [1, 3])
def test_images(batch: int, mode: str) -> None:
    image = (batch, 4, 5, 6)
    nodes = []
    for coordinates in COORDINATES:
        how: dict[str, Attribute] = {"mode": mode, "coordinate_transformation_mode": coordinates}
        nodes += [
            resize(image, how, scales=[2, 2]),
            resize(image, how, scales=[1.3, 0.7]),
            resize(image, how, sizes=[7, 4]),
            resize(image, how, sizes=[5, 13]),
            resize((batch, 4, 1, 6), how, sizes=[7, 9]),
            resize((batch, 4, 1, 1), how, sizes=[7, 9]),
            resize((batch, 4, 5, 7), how, sizes=[1, 9]),
            resize((batch, 4, 2, 3), how, sizes=[5, 5]),
        ]
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds, atol=2e-6)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("batch", [1, 3])
def test_lines_and_volumes(batch: int, mode: str) -> None:
    nodes = []
    for coordinates in COORDINATES:
        how: dict[str, Attribute] = {"mode": mode, "coordinate_transformation_mode": coordinates}
        nodes += [
            resize((batch, 4, 5), how, sizes=[9]),
            resize((batch, 4, 5), how, scales=[3]),
            resize((batch, 2, 4, 5, 6), how, scales=[2, 1.5, 2]),
        ]
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds, atol=2e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_roundings(batch: int) -> None:
    nodes = [
        resize((batch, 3, 6, 8), sizes=sizes, coordinate_transformation_mode=coordinates, nearest_mode=rounding)
        for coordinates, rounding in itertools.product(COORDINATES, ROUNDINGS)
        for sizes in ([12, 4], [40, 3])
    ]
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds, atol=0)


@pytest.mark.parametrize("batch", [1, 3])
def test_other_kernels_and_parts(batch: int) -> None:
    image = (batch, 2, 8, 6)
    crop: dict[str, Attribute] = {
        "coordinate_transformation_mode": "tf_crop_and_resize",
        "extrapolation_value": 7.0,
    }
    roi = [0.1, -0.2, 0.8, 1.3]
    model, feeds = node_models.model(
        resize(image, sizes=[5, 4], mode="linear", antialias=1),
        resize(image, sizes=[5, 4], mode="cubic", antialias=1),
        resize(image, sizes=[9, 14], mode="cubic", exclude_outside=1),
        resize(image, sizes=[9, 14], mode="cubic", cubic_coeff_a=-0.5),
        resize(image, crop, sizes=[6, 7], roi=roi, mode="linear"),
        resize(image, crop, sizes=[6, 7], roi=roi, mode="nearest"),
        resize(image, sizes=[16, 16], mode="linear", keep_aspect_ratio_policy="not_larger"),
    )
    written.check(model, feeds, atol=2e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_blocks(batch: int) -> None:
    deep, wide = floats(batch, 12, 3, 4), floats(batch, 3, 4, 6)
    model, feeds = node_models.model(
        Node("DepthToSpace", [deep], {"blocksize": 2}),
        Node("DepthToSpace", [deep], {"blocksize": 2, "mode": "CRD"}),
        Node("SpaceToDepth", [wide], {"blocksize": 2}),
        Node("SpaceToDepth", [wide], {"blocksize": 1}),
    )
    written.check(model, feeds, atol=0)


@pytest.mark.parametrize("batch", [1, 3])
def test_integers(batch: int) -> None:
    x = integers(batch, 3, 4, 5)
    nodes = [Node("Resize", [x, None, np.array([1, 1, 2, 2], np.float32)], {"mode": "nearest"}, constants=(2,))]
    model, feeds = node_models.model(*nodes)
    written.check(model, feeds)


@pytest.mark.parametrize(
    ("node", "layers"),
    [
        (resize((1, 4, 5, 6), scales=[2, 2], mode="nearest"), ["Interp"]),
        (resize((1, 4, 5, 6), scales=[2, 2], mode="linear"), ["Interp"]),
        (resize((1, 4, 5, 6), sizes=[9, 8], mode="cubic"), ["Interp"]),
        (resize((1, 4, 1, 1), sizes=[9, 8], mode="linear"), ["Interp"]),
        (resize((1, 4, 5, 6), sizes=[9, 8], mode="linear", coordinate_transformation_mode="align_corners"), ["Interp"]),
        (resize((1, 4, 5), sizes=[9], mode="linear"), ["Interp"]),
        (resize((1, 4, 5), sizes=[9], mode="linear", coordinate_transformation_mode="asymmetric"), ["InnerProduct"]),
    ],
)
def test_layers(node: Node, layers: list[str]) -> None:
    model, _ = node_models.model(node)
    assert written.layers(model) == layers


@pytest.mark.parametrize("how", ['mode = "nearest"', 'mode = "linear"', 'mode = "cubic"'])
def test_factors_hold_for_open_sizes(how: str) -> None:
    model = target_testing.model(f"""g (float[N,3,H,W] x) => (float[N,3,P,Q] y) {{
        by = Constant <value_floats = [1.0, 1.0, 2.0, 3.0]> ()
        [resize] y = Resize <{how}> (x, , by)
    }}""")
    fed = [{"x": floats(batch, 3, *sizes)} for batch, sizes in ((1, (5, 6)), (1, (8, 4)), (3, (4, 9)))]
    for feeds in fed:
        batch = len(feeds["x"])
        written.check(model, feeds, N=DimRange(batch, batch, batch), H=DimRange(4, 6, 9), W=DimRange(4, 7, 9))


def test_what_is_pooled_fills_an_image_of_any_size() -> None:
    model = target_testing.model("""g (float[N,3,H,W] x) => (float[N,3,H,W] y) {
        [pool] p = GlobalAveragePool(x)
        [size] s = Shape <start = 2, end = 4> (x)
        [resize] y = Resize <axes = [2, 3], mode = "linear"> (p, , , s)
    }""")
    fed = [{"x": floats(1, 3, *sizes)} for sizes in ((5, 6), (8, 4))]
    written.check(model, *fed, N=DimRange(1, 1, 1), H=DimRange(4, 6, 9), W=DimRange(4, 7, 9))
    assert written.layers(model) == ["Split", "Pooling", "Interp"]


def test_refused() -> None:
    x = integers(1, 3, 4, 5)
    node = Node("Resize", [x, None, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}, constants=(2,))
    model, _ = node_models.model(node)
    assert "mode=linear of integers" in written.refused(model)
    model, _ = node_models.model(resize((1, 3, 5, 4), scales=[2.6, 1]))
    assert "said to be [1, 3, 12, 4]" in written.refused(model)


@pytest.mark.parametrize("beyond", [2.75, -2.75, 3e9, 1e8])
def test_integers_beside_what_stands_where_there_is_nothing(beyond: float) -> None:
    """It is one of them: cut towards zero, and refused where the type or a float does not hold it."""
    crop: dict[str, Attribute] = {"mode": "nearest", "coordinate_transformation_mode": "tf_crop_and_resize"}
    region = np.array([0, 0, -0.5, 0, 1, 1, 1.5, 1], np.float32)
    operands = [integers(1, 1, 3, 4), region, None, np.array([1, 1, 6, 4])]
    made = Node("Resize", operands, {**crop, "extrapolation_value": beyond}, (1, 3))
    model, feeds = node_models.model(made, Node("Resize", operands, crop, (1, 3)))
    if abs(beyond) < 10:
        written.check(model, feeds, atol=0)
    else:
        assert ("is no int32" if beyond > 2**31 else "beyond 2^24") in written.refused(model)
