"""Images of other sizes, sampled ones, boxes, and places that are computed: against PyTorch, coremltools or devices.

What devices give are numbers that coremltools' tests expect of Core ML itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from called import RANDOM, assert_close, floats, inferred, result, results, tensor
from torch.nn import functional as F

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.call import NotInterpreted

if TYPE_CHECKING:
    from retarget.protocols import Array


# ---- images of other sizes

GRIDS = {
    ("UNALIGN_CORNERS", 5): [0, 0.1, 0.5, 0.9, 1],
    ("STRICT_ALIGN_CORNERS", 5): [0, 0.25, 0.5, 0.75, 1],
    ("ALIGN_CORNERS", 5): [0, 0.25, 0.5, 0.75, 1],
    ("DEFAULT", 5): [0, 0.4, 0.8, 1, 1],
    ("OFFSET_CORNERS", 5): [0.1, 0.3, 0.5, 0.7, 0.9],
    ("UNALIGN_CORNERS", 6): [0, 0, 1 / 3, 2 / 3, 1, 1],
    ("ALIGN_CORNERS", 6): [0, 0.2, 0.4, 0.6, 0.8, 1],
    ("DEFAULT", 6): [0, 1 / 3, 2 / 3, 1, 1, 1],
    ("OFFSET_CORNERS", 6): [1 / 12, 3 / 12, 5 / 12, 7 / 12, 9 / 12, 11 / 12],
    ("ALIGN_CORNERS", 1): [0.5],
}
"""Sampling modes and sizes: what coremltools documents for two elements 0 and 1."""


@pytest.mark.parametrize(("mode", "size"), GRIDS)
def test_linear_between_two(mode: str, size: int) -> None:
    x = np.array([0, 1], np.float32).reshape(1, 1, 2)
    options = {"target_size_height": 1, "target_size_width": size, "sampling_mode": mode}
    assert_close(result("resize_bilinear", x=x, **options), [[GRIDS[mode, size]]])
    resized = result("resize", x=x, shape=[0, size], resized_dims=np.uint32(2), sampling_mode=mode)
    assert_close(resized, [[GRIDS[mode, size]]])


@pytest.mark.parametrize(("mode", "corners"), [("UNALIGN_CORNERS", False), ("STRICT_ALIGN_CORNERS", True)])
@pytest.mark.parametrize("size", [(3, 9), (7, 2), (12, 10)])
def test_linear_as_pytorch(mode: str, corners: bool, size: tuple[int, int]) -> None:
    x = floats(2, 3, 6, 5)
    right = F.interpolate(tensor(x), size, mode="bilinear", align_corners=corners)
    options = {"target_size_height": size[0], "target_size_width": size[1], "sampling_mode": mode}
    assert_close(result("resize_bilinear", x=x, **options), right)


@pytest.mark.parametrize(
    ("options", "right"),
    [
        ({"align_corners": True}, [1, 1.2, 1.4, 1.6, 1.8, 2]),
        ({"align_corners": False}, [1, 1, 4 / 3, 5 / 3, 2, 2]),
        ({"align_corners": False, "half_pixel_centers": True}, [1, 1, 4 / 3, 5 / 3, 2, 2]),
        ({"align_corners": False, "half_pixel_centers": False}, [1, 4 / 3, 5 / 3, 2, 2, 2]),
    ],
)
def test_upsample_bilinear_on_devices(options: dict[str, bool], right: list[float]) -> None:
    x = np.array([1, 2], np.float32).reshape(1, 1, 2)
    scaled = result("upsample_bilinear", x=x, scale_factor_height=2, scale_factor_width=3, **options)
    assert_close(scaled, [[right, right]])


def test_nearest_on_devices() -> None:
    x = np.array([1.5, -2.5, 3.5], np.float32).reshape(1, 1, 3)
    fraction = result("upsample_nearest_neighbor", x=x, scale_factor_height=3.17, scale_factor_width=0.67)
    assert_close(fraction, [[[1.5, -2.5]] * 3])
    twice = result("upsample_nearest_neighbor", x=x, scale_factor_width=2)
    assert_close(twice, [[[1.5, 1.5, -2.5, -2.5, 3.5, 3.5]]])
    column = np.array([-6.174, 9.371], np.float32).reshape(1, 1, 2, 1)
    options = {"interpolation_mode": "NEAREST_NEIGHBOR", "resized_dims": np.uint32(2)}
    assert_close(result("resize", x=column, shape=[1, 1, 3, 2], **options)[0, 0, :, 0], [-6.174, 9.371, 9.371])
    assert (
        result("resize", x=np.array([[1, 2]], np.int32), shape=[2], **{**options, "resized_dims": 1}).dtype == np.int32
    )


def test_nearest_of_middles() -> None:
    """As TensorFlow with ``half_pixel_centers``, which coremltools writes as this operation."""
    x = np.arange(5, dtype=np.float32).reshape(1, 1, 5)
    found = result("resize_nearest_neighbor", x=x, target_size_height=1, target_size_width=3)
    assert_close(found, F.interpolate(tensor(x), 3, mode="nearest-exact"))


def test_sizes_that_have_no_one_meaning() -> None:
    x = floats(1, 3, 6)
    with pytest.raises(NotInterpreted, match="other elements nearest"):
        results("upsample_nearest_neighbor", x=x, scale_factor_width=1.45)
    with pytest.raises(NotInterpreted, match="half_pixel_centers"):
        results("upsample_bilinear", x=x, align_corners=True, half_pixel_centers=True)
    mode = {"interpolation_mode": "NEAREST_NEIGHBOR", "sampling_mode": "ALIGN_CORNERS"}
    with pytest.raises(NotInterpreted, match="sampling_mode 'ALIGN_CORNERS'"):
        results("resize", x=x, shape=[2], resized_dims=1, **mode)
    with pytest.raises(NotInterpreted, match="'STRICT_ALIGN_CORNERS' of 6 elements to 1"):
        results("resize_bilinear", x=x, sampling_mode="STRICT_ALIGN_CORNERS", target_size_height=3)


def test_crop() -> None:
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    assert_close(result("crop", x=x, crop_height=[0, 1], crop_width=[1, 1]), x[:, :3, 1:3])


# ---- sampling


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_resample_as_pytorch(padding: str, sampling: str, align: bool) -> None:
    x, grid = floats(2, 3, 5, 6), floats(2, 7, 4, 2) * 1.5
    right = F.grid_sample(tensor(x), tensor(grid), sampling, padding, align_corners=align)
    named = {"zeros": "constant", "reflection": "reflection" if align else "symmetric"}.get(padding, padding)
    options = {"sampling_mode": sampling, "padding_mode": named, "padding_value": 0.0, "align_corners": align}
    options["coordinates_mode"] = "normalized_minus_one_to_one"
    assert_close(result("resample", x=x, coordinates=grid, **options), right, 1e-5)
    options["coordinates_mode"] = "normalized_zero_to_one"
    assert_close(result("resample", x=x, coordinates=grid / 2 + 0.5, **options), right, 1e-5)


def test_resample_on_devices() -> None:
    x = np.array([[[[11, 22], [33, 44]]]], np.float32)
    places = np.array([-1, -2, -3.7, -1, 0, 0, 3.5, 1.2], np.float32).reshape(1, 2, 2, 2)
    for sampling, padding, coordinates, align, right in (
        ("bilinear", "constant", "normalized_minus_one_to_one", True, [8.585, 6.17, 27.5, 6.17]),
        ("nearest", "border", "unnormalized", False, [11, 11, 11, 44]),
        ("bilinear", "reflection", "normalized_zero_to_one", True, [22, 36.3, 11, 34.1]),
        ("nearest", "symmetric", "normalized_zero_to_one", False, [22, 33, 11, 33]),
    ):
        options = {"sampling_mode": sampling, "padding_mode": padding, "padding_value": 6.17, "align_corners": align}
        found = result("resample", x=x, coordinates=places, coordinates_mode=coordinates, **options)
        assert_close(found.reshape(-1), right, 1e-5)


def test_affine_on_devices() -> None:
    x = np.array([[[[11, 22], [33, 44]]]], np.float32)
    matrix = np.array([[-1, -2, -3.7, -1, 3.5, 1.2]], np.float32)
    options = {"sampling_mode": "bilinear", "padding_mode": "constant", "padding_value": 0.0, "align_corners": True}
    options["coordinates_mode"] = "normalized_minus_one_to_one"
    given = {"x": x, "transform_matrix": matrix, **options}
    found = result("affine", **given, output_height=3, output_width=3)
    assert_close(found.reshape(-1), [10.752501, 2.5025, 0, 1.98, 0, 0, 0, 0, 0], 1e-5)
    found = result("affine", **given, output_height=2, output_width=5)
    assert_close(found.reshape(-1), [10.752501, 5.94, 2.5025, 0.44, 0, 0, 0, 0, 0, 0], 1e-5)
    with pytest.raises(NotInterpreted, match="align_corners False"):
        results("affine", **{**given, "align_corners": False}, output_height=3, output_width=3)


IMAGE = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
BOXES = np.array([[0.1, 0.3, 1.3, 1.0], [0.5, 1.8, 1.0, 0.3], [0.0, 0.4, 0.6, 0.7]], np.float32)


def test_crop_resize_on_devices() -> None:
    corners = {"box_coordinate_mode": "CORNERS_HEIGHT_FIRST", "sampling_mode": "ALIGN_CORNERS"}
    for box, size, right in (
        ([1, 1, 2, 2], 2, [6, 7, 10, 11]),
        ([1, 1, 2, 2], 1, [8.5]),
        ([2, 2, 1, 1], 2, [11, 10, 7, 6]),
    ):
        target = {"target_height": size, "target_width": size}
        roi = np.array(box, np.float32).reshape(1, 1, 4, 1, 1)
        assert_close(result("crop_resize", 15, x=IMAGE, roi=roi, **target, **corners).reshape(-1), right)
    given = {"target_height": 2, "target_width": 2, "normalized_coordinates": True, "pad_value": 10.0, **corners}
    crops = np.reshape([3.1, 5.2, 10, 10, 10, 7.9, 10, 13.9, 2.2, 3.1, 9.4, 10.3], (3, 1, 2, 2))
    assert_close(result("crop_resize", 17, x=IMAGE, boxes=BOXES, box_indices=np.zeros(3, np.int32), **given), crops)
    roi = np.concatenate([np.zeros((3, 1), np.float32), BOXES], 1).reshape(3, 1, 5, 1, 1)
    assert_close(result("crop_resize", 16, x=IMAGE, roi=roi, **given), crops[:, None])
    widths = {**given, "box_coordinate_mode": "CORNERS_WIDTH_FIRST"}
    turned = BOXES[:, [1, 0, 3, 2]]
    assert_close(result("crop_resize", 17, x=IMAGE, boxes=turned, box_indices=np.zeros(3, np.int32), **widths), crops)


@pytest.mark.parametrize("mode", ["DEFAULT", "UNALIGN_CORNERS", "OFFSET_CORNERS"])
def test_boxes_of_other_modes(mode: str) -> None:
    with pytest.raises(NotInterpreted, match=mode):
        results("crop_resize", x=IMAGE, boxes=BOXES[:1], sampling_mode=mode, target_height=2)


KEPT = ("float32", "float32", "int32", "int32")
"""Boxes, scores, places, counts."""


def boxes_by_definition(boxes: Array, scores: Array, limit: float, threshold: float, apart: bool) -> list[int]:
    """Box after box, the best first, in plain numbers."""
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda each: -float(scores[each].max())):
        if scores[index].max() <= threshold:
            continue
        for other in kept:
            if apart and scores[other].argmax() != scores[index].argmax():
                continue
            (x, y, w, h), (u, v, s, t) = boxes[index].tolist(), boxes[other].tolist()
            across = min(x + w / 2, u + s / 2) - max(x - w / 2, u - s / 2)
            down = min(y + h / 2, v + t / 2) - max(y - h / 2, v - t / 2)
            shared = max(across, 0) * max(down, 0)
            if shared / (w * h + s * t - shared) > limit:
                break
        else:
            kept.append(index)
    return kept


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("most", [4, 30])
def test_non_maximum_suppression(most: int, apart: bool) -> None:
    boxes, scores = (RANDOM.random((2, 30, 4)) * 10 + 0.5).astype(np.float32), floats(2, 30, 3)
    given = {"iou_threshold": np.float32(0.2), "max_boxes": most, "per_class_suppression": apart}
    right = [boxes_by_definition(*each, 0.2, 0.3, apart)[:most] for each in zip(boxes, scores, strict=True)]
    assert 1 < min(map(len, right)) < 20
    found = results("non_maximum_suppression", 16, KEPT, boxes=boxes, scores=scores, score_threshold=0.3, **given)
    assert found[3].tolist() == [len(each) for each in right]
    for image, places in enumerate(right):
        count = len(places)
        assert found[2][image].tolist() == places + [-1] * (most - count)
        assert_close(found[0][image, :count], boxes[image, places])
        assert not found[1][image, count:].any()
    every = [boxes_by_definition(*each, 0.2, -np.inf, apart)[:most] for each in zip(boxes, scores, strict=True)]
    turned = {"boxes": boxes.transpose(0, 2, 1), "scores": scores.transpose(0, 2, 1)}
    last = results("non_maximum_suppression", 17, KEPT[:3], **turned, **given)
    assert [places[places >= 0].tolist() for places in last[2]] == every
    assert last[0].shape == (2, 4, most)


def test_the_best_box_is_always_kept() -> None:
    boxes, scores = floats(1, 3, 4), np.array([[[-3.5], [0.4], [0.1]]], np.float32)
    given = {"iou_threshold": np.float32(0.2), "max_boxes": 2, "score_threshold": 5.0}
    *_, places, counts = results("non_maximum_suppression", 16, KEPT, boxes=boxes, scores=scores, **given)
    assert (places.tolist(), counts.tolist()) == ([[1, -1]], [1])


# ---- places that are computed


def test_gather() -> None:
    x = floats(3, 4, 5)
    for opset, axis, indices in ((15, 1, [[0, -1], [2, 3]]), (17, -1, [4, 0, 0]), (17, 0, 2)):
        given = {"x": x, "axis": axis, "indices": np.array(indices, np.int32)}
        assert_close(result("gather", opset, **given), inferred("gather", opset, **given))
    given = {"x": x, "axis": 2, "batch_dims": 1, "indices": np.array([[0, 4], [1, 1], [3, 2]], np.int32)}
    assert_close(result("gather", **given), inferred("gather", **given))
    along = {"x": x, "axis": 1, "indices": RANDOM.integers(0, 4, (3, 2, 5), dtype=np.int32)}
    assert_close(result("gather_along_axis", **along), inferred("gather_along_axis", **along))
    at = np.array([[[0, 1], [2, 4]], [[3, 0], [1, 1]], [[2, 2], [0, 3]]], np.int32)
    assert_close(result("gather_nd", x=x, indices=at, batch_dims=1), x[np.arange(3)[:, None], at[..., 0], at[..., 1]])
    assert_close(result("gather_nd", x=x, indices=at[..., :1] % 3), x[at[..., 0] % 3])


MODES = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum}


@pytest.mark.parametrize("mode", [*MODES, "update"])
def test_scatter(mode: str) -> None:
    """Element after element."""
    change = MODES.get(mode, lambda _, new: new)
    data, repeated = floats(3, 4), mode != "update"
    indices = np.array([2, 0, 2] if repeated else [2, 0, 3], np.int32)
    updates, right = floats(3, 3), data.copy()
    for row in range(3):
        for column, target in enumerate(indices):
            right[row, target] = change(right[row, target], updates[row, column])
    assert_close(result("scatter", data=data, indices=indices, updates=updates, axis=-1, mode=mode), right)
    grid = np.broadcast_to(indices, (3, 3))
    assert_close(result("scatter_along_axis", data=data, indices=grid, updates=updates, axis=1, mode=mode), right)
    places = np.stack(np.broadcast_arrays(np.arange(3)[:, None], indices), -1).astype(np.int32)
    assert_close(result("scatter_nd", data=data, indices=places, updates=updates, mode=mode), right)


def test_scatter_of_a_documented_example() -> None:
    data = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    updates = np.array([[5, 6, 7], [8, 9, 10]], np.int32)
    found = result("scatter", data=data, indices=np.array([1, 0], np.int32), updates=updates)
    assert found.tolist() == [[9, 11, 13], [9, 11, 13]]


def test_places_that_are_not_there() -> None:
    x, beyond, behind = floats(2, 3), np.array([3], np.int32), np.array([-1], np.int32)
    assert_close(result("gather", 16, x=x, axis=1, indices=behind), x[:, -1:])
    for opset, indices in ((16, beyond), (17, beyond), (17, behind)):
        with pytest.raises(NotInterpreted, match="outside of 3 elements"):
            results("gather", opset, x=x, axis=1, indices=indices)
    with pytest.raises(ToolchainFailure, match="validate_indices is set"):
        results("gather", 17, x=x, axis=1, indices=beyond, validate_indices=True)
    given = {"data": x, "indices": np.array([1, 1], np.int32), "updates": floats(2, 3), "mode": "update"}
    with pytest.raises(NotInterpreted, match="which is the last one"):
        results("scatter", **given)
