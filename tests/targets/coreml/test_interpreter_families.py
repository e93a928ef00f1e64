"""Operations beyond elements and shapes: against PyTorch, coremltools' own inference of values, or what devices give.

The last are numbers that coremltools' tests expect of Core ML itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import packaged
import pytest
import torch
from torch.nn import functional as F

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.call import Call, Dictionary, NotInterpreted, Tensor
from retarget.targets.coreml.interpreter.declared import TensorType
from retarget.targets.coreml.interpreter.evaluate import Interpreter
from retarget.targets.coreml.interpreter.ops import OPS, convolution
from retarget.targets.coreml.interpreter.program import read
from retarget.targets.coreml.library import Function, Var, mb, types

if TYPE_CHECKING:
    from retarget.protocols import Array

RANDOM = np.random.default_rng(11)


def floats(*shape: int) -> Tensor:
    return RANDOM.standard_normal(shape).astype(np.float32)


def results(op: str, opset: int = 17, declared: tuple[str, ...] = ("float32",), /, **given: Any) -> tuple[Any, ...]:
    """All that an operation gives; a tuple is a parameter that takes several."""
    operands = {
        name: tuple(np.asarray(each) for each in value) if isinstance(value, tuple) else (np.asarray(value),)
        for name, value in given.items()
    }
    with np.errstate(all="ignore"):
        found = OPS[op](Call(op, operands, tuple(TensorType(each, None) for each in declared), opset))
    return found if isinstance(found, tuple) else (found,)


def result(op: str, opset: int = 17, declared: str = "float32", /, **given: Any) -> Any:
    (found,) = results(op, opset, (declared,), **given)
    return found


def inferred(op: str, opset: int = 17, /, **given: Any) -> Any:
    """What coremltools itself makes of constants."""
    with Function({}, opset_version=packaged.OPSETS[opset]):
        made = getattr(mb, op)(**given)
        if op.startswith("constexpr_"):
            return (made[0] if isinstance(made, tuple | list) else made).op.materialized_val_inference()
        return made.val


def assert_close(found: Any, right: Any, rtol: float = 2e-6) -> None:
    expected = np.asarray(right)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * max(1.0, float(np.abs(expected).max())))


def tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(array)


# ---- convolutions

CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "line": ((2, 4, 13), (6, 4, 3), {"strides": [2], "dilations": [2], "pad": [3, 3]}),
    "image": ((2, 4, 9, 10), (6, 4, 3, 2), {"strides": [2, 3], "pad": [1, 1, 2, 2]}),
    "dilations": ((1, 4, 12, 11), (6, 4, 3, 3), {"dilations": [2, 3], "strides": [1, 2]}),
    "groups": ((2, 6, 7, 8), (9, 2, 3, 3), {"groups": 3, "pad": [1, 1, 1, 1]}),
    "each channel": ((2, 6, 9, 8), (12, 1, 3, 5), {"groups": 6, "strides": [1, 2], "pad": [0, 0, 2, 2]}),
    "one tap": ((2, 6, 7, 8), (4, 3, 1, 1), {"groups": 2, "strides": [2, 3]}),
    "one tap with pads": ((1, 3, 4, 5), (2, 3, 1, 1), {"pad": [1, 1, 0, 0]}),
    "volume": ((1, 2, 5, 6, 7), (3, 2, 2, 3, 2), {"strides": [1, 2, 1], "pad": [1, 1, 0, 0, 1, 1]}),
}
"""Shapes of what is convolved and of the weights, and parameters. Pads are symmetric, as PyTorch has them."""


@pytest.mark.parametrize("largest", [convolution.LARGEST, 1000], ids=["at once", "in pieces"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv(name: str, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "LARGEST", largest)
    shape, weights, options = CONVOLUTIONS[name]
    x, weight, bias = floats(*shape), floats(*weights), floats(weights[0])
    rank = len(shape) - 2
    torch_conv = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    right = torch_conv(
        tensor(x),
        tensor(weight),
        tensor(bias),
        options.get("strides", 1),
        options.get("pad", [0] * 2 * rank)[::2],
        options.get("dilations", 1),
        options.get("groups", 1),
    )
    kind = "custom" if "pad" in options else "valid"
    assert_close(result("conv", x=x, weight=weight, bias=bias, pad_type=kind, **options), right, 1e-5)


@pytest.mark.parametrize("kind", ["same", "same_lower"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("taps", [2, 3, 4])
def test_an_odd_pad_is_behind_or_in_front(kind: str, stride: int, taps: int) -> None:
    x, weight = floats(1, 3, 8), floats(2, 3, taps)
    total = max((-(-8 // stride) - 1) * stride + taps - 8, 0)
    pads = (total // 2, total - total // 2)
    right = F.conv1d(F.pad(tensor(x), pads if kind == "same" else pads[::-1]), tensor(weight), stride=stride)
    assert_close(result("conv", x=x, weight=weight, pad_type=kind, strides=[stride]), right, 1e-5)
    assert right.shape[2] == -(-8 // stride)


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"strides": [2, 3], "dilations": [2, 1], "pad": [1, 1, 2, 2]}])
def test_conv_transpose(options: dict[str, Any]) -> None:
    x, weight, bias = floats(2, 4, 5, 6), floats(4, 3, 3, 4), floats(3 * options.get("groups", 1))
    right = F.conv_transpose2d(
        tensor(x),
        tensor(weight),
        tensor(bias),
        options.get("strides", 1),
        options.get("pad", [0, 0, 0, 0])[::2],
        groups=options.get("groups", 1),
        dilation=options.get("dilations", 1),
    )
    kind = "custom" if "pad" in options else "valid"
    assert_close(result("conv_transpose", x=x, weight=weight, bias=bias, pad_type=kind, **options), right, 1e-5)


@pytest.mark.parametrize("size", [11, 12])
@pytest.mark.parametrize("taps", [1, 2, 4, 5])
def test_conv_transpose_of_the_same_size(taps: int, size: int) -> None:
    """The gradient of a convolution that pads to the same size, as in TensorFlow: that leaves the size open."""
    y, weight = floats(1, 2, 6), floats(2, 3, taps)
    x = torch.zeros(1, 3, size, requires_grad=True)
    total = max(5 * 2 + taps - size, 0)
    F.conv1d(F.pad(x, (total // 2, total - total // 2)), tensor(weight), stride=2).backward(tensor(y))  # type: ignore[no-untyped-call]
    assert x.grad is not None
    options = {"pad_type": "same", "strides": [2], "output_shape": [1, 3, size]}
    assert_close(result("conv_transpose", x=y, weight=weight, **options), x.grad, 1e-5)
    if size == 12:
        del options["output_shape"]
        assert_close(result("conv_transpose", x=y, weight=weight, **options), x.grad, 1e-5)


def test_conv_transpose_behind_all_windows() -> None:
    x, weight = floats(1, 2, 4), floats(2, 3, 2)
    options = {"pad_type": "valid", "strides": [3], "output_shape": [1, 3, 13]}
    found = result("conv_transpose", x=x, weight=weight, bias=np.ones(3, np.float32), **options)
    right = F.conv_transpose1d(tensor(x), tensor(weight), tensor(np.ones(3, np.float32)), stride=3)
    assert_close(found[..., :11], right, 1e-5)
    assert (found[..., 11:] == 1).all()


# ---- pooling


def test_pooling_on_devices() -> None:
    x = np.array([[[1, 2, 3, 4, 5, 6, 7]]], np.float32)
    same = {"x": x, "kernel_sizes": [3], "strides": [3], "pad_type": "same"}
    assert_close(result("max_pool", **same), [[[2, 5, 7]]])
    assert_close(result("avg_pool", **same, exclude_padding_from_average=True), [[[1.5, 4, 6.5]]])
    assert_close(result("l2_pool", **same), [[[2.236068, 7.071068, 9.219544]]])
    lower = {"kernel_sizes": [2, 2], "pad_type": "same_lower"}
    square = np.arange(1, 5, dtype=np.float32).reshape(1, 1, 2, 2)
    assert_close(result("avg_pool", x=square, **lower), [[[[0.25, 0.75], [1, 2.5]]]])
    assert_close(result("max_pool", x=square, **lower), square)


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("size", range(5, 10))
def test_pooling_rounded_up(size: int, pad: int) -> None:
    x = floats(1, 2, size, size + 1) - 5
    given = {
        "x": x,
        "kernel_sizes": [3, 3],
        "strides": [2, 3],
        "pad_type": "custom",
        "pad": [pad] * 4,
        "ceil_mode": True,
    }
    assert_close(result("max_pool", **given), F.max_pool2d(tensor(x), 3, (2, 3), pad, ceil_mode=True))
    for exclude in (False, True):
        right = F.avg_pool2d(tensor(x), 3, (2, 3), pad, ceil_mode=True, count_include_pad=not exclude)
        assert_close(result("avg_pool", **given, exclude_padding_from_average=exclude), right)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pad_type": "same", "ceil_mode": True}, "defines no size"),
        ({"pad_type": "custom", "pad": [0, 1], "ceil_mode": True}, "defines no size"),
        ({"pad_type": "valid", "kernel_sizes": [1], "strides": [5], "ceil_mode": True}, "behind all of 5 elements"),
    ],
)
def test_sizes_that_are_not_defined(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotInterpreted, match=reason):
        results("max_pool", **{"x": floats(1, 1, 5), "kernel_sizes": [2], "strides": [2], **options})


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


# ---- normalization and products


def test_normalizations() -> None:
    x, gamma, beta = floats(2, 6, 5, 4), floats(6), floats(6)
    mean, variance = floats(6), np.abs(floats(6)) + 0.1
    given = {"x": x, "gamma": gamma, "beta": beta, "epsilon": np.float32(1e-3)}
    right = F.batch_norm(tensor(x), tensor(mean), tensor(variance), tensor(gamma), tensor(beta), eps=1e-3)
    assert_close(result("batch_norm", mean=mean, variance=variance, **given), right, 1e-5)
    right = F.instance_norm(tensor(x), weight=tensor(gamma), bias=tensor(beta), eps=1e-3)
    assert_close(result("instance_norm", **given), right, 1e-5)
    for size in (2, 3, 5):
        right = torch.nn.LocalResponseNorm(size, alpha=0.1, beta=0.6, k=1.5)(tensor(x))
        assert_close(result("local_response_norm", x=x, size=size, alpha=0.1, beta=0.6, k=1.5), right)
    assert_close(result("l2_norm", x=x), inferred("l2_norm", x=x))
    for axes, shape in (([-1], (4,)), ([1, -1], (6, 4)), ([0, 1, 2, 3], x.shape)):
        scaled = {"x": x, "axes": axes, "gamma": floats(*shape), "beta": floats(*shape)}
        assert_close(result("layer_norm", **scaled), inferred("layer_norm", **scaled), 1e-5)
    assert_close(result("layer_norm", x=x), F.layer_norm(tensor(x), x.shape), 1e-5)


def test_products() -> None:
    x, weight, bias = floats(2, 3, 5), floats(4, 5), floats(4)
    assert_close(result("linear", x=x, weight=weight, bias=bias), inferred("linear", x=x, weight=weight, bias=bias))
    whole = {"x": np.array([[1, 2]], np.int32), "weight": np.array([[3, 4], [5, 6]], np.int32)}
    assert result("linear", **whole).tolist() == [[11, 17]]
    for left, right, options in (
        ((2, 1, 3, 5), (4, 5, 2), {}),
        ((3, 5), (3, 2), {"transpose_x": True}),
        ((2, 3, 5), (4, 5), {"transpose_y": True}),
        ((5,), (2, 5, 3), {}),
    ):
        given = {"x": floats(*left), "y": floats(*right), **options}
        assert_close(result("matmul", **given), inferred("matmul", **given))
    for equation, shapes in (
        ("bchw,bwhu->bchu", ((2, 3, 4, 5), (2, 5, 4, 6))),
        ("nabc,ncbd->nabd", ((1, 3, 4, 5), (2, 5, 1, 6))),
        ("chw,whu->chu", ((3, 4, 5), (5, 4, 6))),
    ):
        values = tuple(floats(*shape) for shape in shapes)
        right = inferred("einsum", values=values, equation=equation)
        assert_close(result("einsum", values=values, equation=equation), right)
    with pytest.raises(NotInterpreted, match="is not of the form"):
        results("einsum", values=(x, x), equation="abc,abc->ab")


@pytest.mark.parametrize("mask", [None, np.tri(4, 6, 2, dtype=np.bool_), floats(3, 1, 4, 6)])
def test_attention(mask: Array | None) -> None:
    given = {"query": floats(3, 2, 4, 5), "key": floats(3, 2, 6, 5), "value": floats(3, 2, 6, 7)}
    query, key, value = (tensor(each) for each in given.values())
    right = F.scaled_dot_product_attention(query, key, value, None if mask is None else tensor(mask))
    masked = given if mask is None else {**given, "attn_mask": mask}
    assert_close(result("scaled_dot_product_attention", 18, **masked), right)
    assert_close(inferred("scaled_dot_product_attention", 18, **masked), right)


# ---- recurrent layers


def rows(weight: Array, order: str) -> Array:
    """PyTorch's gates (input, forget, cell, output) in another order."""
    parts = dict(zip("ifgo", np.split(weight, 4), strict=True))
    return np.concatenate([parts[each] for each in order])


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("sequence", [False, True])
def test_lstm(direction: str, sequence: bool) -> None:
    both = direction == "bidirectional"
    module = torch.nn.LSTM(3, 4, bidirectional=both)
    x, h, c = floats(5, 2, 3), floats(1 + both, 2, 4), floats(1 + both, 2, 4)
    with torch.no_grad():
        ordered = tensor(x).flip(0) if direction == "reverse" else tensor(x)
        y, (last_h, last_c) = module(ordered, (tensor(h), tensor(c)))
    weights: dict[str, Array] = {}
    for suffix, ending in (("", ""), ("_reverse", "_back"))[: 1 + both]:
        parts = {name: getattr(module, f"{name}_l0{suffix}").detach().numpy() for name in ("weight_ih", "weight_hh")}
        weights |= {name + ending: rows(part, "ifog") for name, part in parts.items()}
        biases = (getattr(module, f"bias_{name}_l0{suffix}").detach().numpy() for name in ("ih", "hh"))
        weights["bias" + ending] = rows(sum(biases), "ifog")
    given = {"initial_h": np.concatenate([*h], 1), "initial_c": np.concatenate([*c], 1), "direction": direction}
    found = results("lstm", x=x, **given, **weights, output_sequence=sequence)
    if not sequence:
        y = torch.cat([*last_h], 1)[None]
    for each, right in zip(found, (y, torch.cat([*last_h], 1), torch.cat([*last_c], 1)), strict=True):
        assert_close(each, right, 1e-5)


@pytest.mark.parametrize("clip", [50.0, 0.2, 0.01])
@pytest.mark.parametrize("activation", ["relu", "scaled_tanh", "hard_sigmoid", "linear"])
def test_lstm_with_peepholes(activation: str, clip: float) -> None:
    """Step by step, as coremltools' tests expect it of devices."""
    x, weight, recurrent, bias, peephole = floats(4, 2, 3), floats(8, 3), floats(8, 2), floats(8), floats(6)
    functions: dict[str, Any] = {
        "relu": lambda v: np.maximum(v, 0),
        "scaled_tanh": np.tanh,
        "hard_sigmoid": lambda v: np.clip(0.2 * v + 0.5, 0, 1),
        "linear": lambda v: v,
    }
    h, c, right = np.zeros((2, 2)), np.zeros((2, 2)), []
    for step in x:
        i, f, o, g = np.split(step @ weight.T + h @ recurrent.T + bias, 4, 1)
        i, f = (1 / (1 + np.exp(-(each + c * hole))) for each, hole in ((i, peephole[:2]), (f, peephole[2:4])))
        c = np.clip(c * f + i * np.tanh(g), -clip, clip)
        h = functions[activation](c) / (1 + np.exp(-(o + c * peephole[4:])))
        right.append(h)
    states = {"initial_h": np.zeros((2, 2), np.float32), "initial_c": np.zeros((2, 2), np.float32)}
    weights = {"weight_ih": weight, "weight_hh": recurrent, "bias": bias, "peephole": peephole}
    options = {"activation": activation, "clip": np.float32(clip), "output_sequence": True}
    found, *_ = results("lstm", x=x, **states, **weights, **options)
    assert_close(found, np.stack(right), 1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_rnn_and_gru(direction: str) -> None:
    """``gru`` as coremltools' tests expect it of devices: what is remembered is reset before the product."""
    x, h = floats(5, 2, 3), floats(2, 4)
    ordered = x if direction == "forward" else x[::-1]
    given = {"x": x, "initial_h": h, "direction": direction, "output_sequence": True}
    weight, recurrent, bias = floats(4, 3), floats(4, 4), floats(4)
    state, right = h, []
    for step in ordered:
        state = np.maximum(step @ weight.T + state @ recurrent.T + bias, 0)
        right.append(state)
    found = results("rnn", **given, weight_ih=weight, weight_hh=recurrent, bias=bias, activation="relu")
    assert_close(found[0], np.stack(right), 1e-5)
    assert_close(found[1], state, 1e-5)
    weight, recurrent, bias = floats(12, 3), floats(12, 4), floats(12)
    (w_r, w_o, w_z), (r_r, r_o, r_z), (b_r, b_o, b_z) = (np.split(each, 3) for each in (weight, recurrent, bias))
    state, right = h, []
    for step in ordered:
        z = 1 / (1 + np.exp(-(step @ w_z.T + state @ r_z.T + b_z)))
        r = 1 / (1 + np.exp(-(step @ w_r.T + state @ r_r.T + b_r)))
        o = np.tanh(step @ w_o.T + (state * r) @ r_o.T + b_o)
        state = (1 - z) * o + z * state
        right.append(state)
    found = results("gru", **given, weight_ih=weight, weight_hh=recurrent, bias=bias)
    assert_close(found[0], np.stack(right), 1e-5)
    assert_close(
        results("gru", **{**given, "output_sequence": False}, weight_ih=weight, weight_hh=recurrent, bias=bias)[0],
        state[None],
        1e-5,
    )


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


# ---- quantization


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("axis", [None, 1])
def test_quantize(dtype: str, axis: int | None) -> None:
    x, kind = floats(3, 4, 5) * 20, np.dtype(dtype).type
    steps: dict[str, Any] = {"scale": np.float32(0.3), "zero_point": kind(7)}
    if axis is not None:
        steps = {"scale": np.abs(floats(4)) + 0.05, "zero_point": np.arange(4, dtype=dtype), "axis": axis}
    codes = result("quantize", 17, dtype, input=x, output_dtype=dtype, **steps)
    assert codes.dtype == kind
    np.testing.assert_array_equal(codes, inferred("quantize", input=x, output_dtype=dtype, **steps))
    with Function({}, opset_version=packaged.OPSETS[17]):
        right = mb.dequantize(input=codes, **steps).op.materialized_val_inference()
    assert_close(result("dequantize", input=codes, **steps), right)


def test_weights_that_are_made_whole() -> None:
    codes = RANDOM.integers(0, 256, (4, 6), dtype=np.uint8)
    given: dict[str, Any] = {"quantized_data": codes, "zero_point": np.uint8(3), "scale": floats(6), "axis": 1}
    assert_close(
        result("constexpr_affine_dequantize", 16, **given), inferred("constexpr_affine_dequantize", 16, **given)
    )
    for bits in (1, 2, 4, 6, 8):
        packed = RANDOM.integers(0, 256, -(-15 * bits // 8), dtype=np.uint8)
        given = {"indices": packed, "lut": floats(2**bits), "shape": np.array([3, 5], np.uint32)}
        assert_close(result("constexpr_lut_to_dense", 16, **given), inferred("constexpr_lut_to_dense", 16, **given))
    mask = np.array([0b10110, 0b11], np.uint8)
    given = {"nonzero_data": floats(5), "mask": mask, "shape": np.array([2, 5], np.uint32)}
    assert_close(result("constexpr_sparse_to_dense", 16, **given), inferred("constexpr_sparse_to_dense", 16, **given))
    half = floats(3).astype(np.float16)
    assert_close(result("constexpr_cast", 16, source_val=half, output_dtype="fp32"), half.astype(np.float32))


def sub_byte(values: Array, bits: str) -> Array:
    """As coremltools holds integers narrower than a byte."""
    return values.astype(types.nptype_from_builtin(types.string_to_builtin(bits)))


def test_weights_of_blocks_that_are_made_whole() -> None:
    codes, scale, offset = (
        RANDOM.integers(-8, 8, (4, 6), dtype=np.int8),
        floats(2, 3),
        np.array([[1, 0, -3], [2, 5, 7]]),
    )
    found = result("constexpr_blockwise_shift_scale", 18, data=codes, scale=scale, offset=offset.astype(np.int8))
    given = {"data": sub_byte(codes, "int4"), "scale": scale, "offset": sub_byte(offset, "int4")}
    assert_close(found, inferred("constexpr_blockwise_shift_scale", 18, **given))
    indices = RANDOM.integers(0, 4, (6, 4), dtype=np.uint8)
    for shape, axis in (((2, 1, 4, 1), None), ((3, 2, 4, 3), 0), ((1, 2, 4, 2), -1)):
        lut, vector = floats(*shape), {} if axis is None else {"vector_axis": np.int32(axis)}
        right = inferred("constexpr_lut_to_dense", 18, indices=sub_byte(indices, "uint2"), lut=lut, **vector)
        assert_close(result("constexpr_lut_to_dense", 18, indices=indices, lut=lut, **vector), right)


def test_sparse_weights_that_are_made_whole() -> None:
    """coremltools' documented examples."""
    mask = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1], [0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]], np.uint8)
    at = np.array([0, 1, 1, 0, 1, 1, 0, 0, 1], np.uint8)
    two = ("uint1", "float32")
    given = {"indices_mask": mask, "indices_nonzero_data": at}
    lut = np.array([2, 3], np.float32).reshape(1, 1, 2, 1)
    same, values = results("constexpr_lut_to_sparse", 18, two, **given, lut=lut)
    assert values.tolist() == [2, 3, 3, 2, 3, 3, 2, 2, 3]
    assert (same == mask).all()
    pairs = np.array([[2, 20], [3, 30]], np.float32).reshape(1, 1, 2, 2)
    wide, values = results("constexpr_lut_to_sparse", 18, two, **given, lut=pairs, vector_axis=0)
    assert (wide == mask.repeat(2, 0)).all()
    dense = result("constexpr_sparse_to_dense", 18, nonzero_data=values, mask=wide)
    assert dense[:4].tolist() == [[2, 3, 0, 0, 0, 0], [20, 30, 0, 0, 0, 0], [3, 2, 0, 0, 0, 3], [30, 20, 0, 0, 0, 30]]
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]], np.uint8)
    scaled = {"scale": np.array([[0.1, 0.2, 0.3, 0.4]], np.float32), "offset": np.array([[1, 2, 3, 4]], np.int8)}
    codes = np.array([10, 11, 3, 4, 5, 6, 7, 8, 9], np.int8)
    _, values = results("constexpr_sparse_blockwise_shift_scale", 18, two, data_mask=mask, nonzero_data=codes, **scaled)
    assert_close(values, [0.9, 1.8, 0.2, 0.4, 0.6, 0.9, 1.2, 0.7, 1.4])


# ---- the rest


def test_classify() -> None:
    label, probabilities = results(
        "classify", probabilities=np.array([[0.2, 0.7, 0.1]], np.float32), classes=("a", "b", "c")
    )
    assert label == "b"
    assert isinstance(probabilities, Dictionary)
    assert probabilities.keys.tolist() == ["a", "b", "c"]
    assert_close(probabilities.values, [0.2, 0.7, 0.1])


@pytest.mark.parametrize("op", ["random_normal", "read_state", "make_list"])
def test_what_is_not_of_operands_alone(op: str) -> None:
    with pytest.raises(NotInterpreted, match=op):
        results(op)


FROM_DISK: dict[str, dict[str, Any]] = {
    "resize": {"shape": np.array([7, 0], np.int32), "resized_dims": np.uint32(2)},
    "resize_nearest_neighbor": {"target_size_height": 7, "target_size_width": 3},
    "crop": {"crop_height": [1, 0], "crop_width": [0, 2]},
    "l2_norm": {"epsilon": np.float32(1e-3)},
    "local_response_norm": {"size": 3, "alpha": np.float32(0.5)},
    "l2_pool": {"kernel_sizes": [2, 3], "strides": [2, 1], "pad_type": "same_lower"},
    "quantize": {"scale": np.float32(0.02), "zero_point": np.int8(3), "output_dtype": "int8"},
    "gather": {"indices": np.array([1, 0, 1], np.int32), "axis": 1, "validate_indices": True},
    "crop_resize": {"boxes": np.array([[0, 1, 3, 2.5]], np.float32), "sampling_mode": "ALIGN_CORNERS"},
}
"""Operations that the frontend of PyTorch does not write, or not with these parameters."""


def test_parameters_as_packages_have_them(tmp_path: Path) -> None:
    x, sequence = floats(1, 2, 4, 5), floats(3, 2, 4)
    layer = {"weight_ih": floats(9, 4), "weight_hh": floats(9, 3), "bias": floats(9)}
    layer |= {"initial_h": np.zeros((2, 3), np.float32)}
    first = {"quantize": "input"}
    states: list[str] = []

    def build(values: Mapping[str, Var]) -> Var:
        for op, given in FROM_DISK.items():
            getattr(mb, op)(**{first.get(op, "x"): values["x"]}, **given, name=op)
        states.extend(each.name for each in mb.gru(x=values["sequence"], **layer))
        return mb.identity(x=values["x"], name="done")

    path = tmp_path / "m.mlpackage"
    feeds = packaged.saved(path, {"x": x, "sequence": sequence}, build, 17)
    trace: dict[str, Array] = {}
    Interpreter(read(path)).run(feeds, trace)
    for op, given in FROM_DISK.items():
        declared = "int8" if op == "quantize" else "float32"
        assert_close(trace[op], result(op, 17, declared, **{first.get(op, "x"): x}, **given))
    for name, right in zip(states, results("gru", x=sequence, **layer), strict=True):
        assert_close(trace[name], right)
