"""Images sampled at any places: grids, affine transformations, and boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.call import Call, NotInterpreted, OpFunction, Tensor
from retarget.targets.coreml.interpreter.ops.resize import grid

if TYPE_CHECKING:
    from numpy.typing import NDArray


def resample(call: Call) -> Tensor:
    """``x`` at ``coordinates``, of which there are pairs (along the width, along the height)."""
    x, corners = call.array("x"), call.flag("align_corners")
    places = call.array("coordinates").astype(np.float32)
    return _sampled(
        call,
        x,
        *(
            _in_elements(places[..., which], x.shape[axis], call.text("coordinates_mode"), corners)
            for axis, which in ((-2, 1), (-1, 0))
        ),
    )


def affine(call: Call) -> Tensor:
    x, matrix = call.array("x"), call.array("transform_matrix")
    height, width = call.integer("output_height"), call.integer("output_width")
    mode = call.text("coordinates_mode").lower()
    if not call.flag("align_corners") or mode != "normalized_minus_one_to_one" or min(height, width) < 2:
        raise NotInterpreted(f"align_corners {call.flag('align_corners')}, '{mode}' to {height} by {width}")
    call.hold((*x.shape[:2], height, width))
    matrix = np.broadcast_to(matrix.reshape(-1, 2, 3), (len(x), 2, 3))
    across, down = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in (width, height)))
    points = np.stack([across, down, np.ones_like(across)]).reshape(3, -1)
    places = (matrix @ points).reshape(len(x), 2, height, width)
    rows, columns = (
        _in_elements(places[:, which], x.shape[axis], mode, corners=True) for axis, which in ((-2, 1), (-1, 0))
    )
    return _sampled(call, x, rows, columns)


def crop_resize(call: Call) -> Tensor:
    """Boxes of images, each resized; what is outside of an image is ``pad_value``, as in TensorFlow."""
    x, mode = call.array("x"), call.text("sampling_mode", "DEFAULT")
    height, width = call.integer("target_height", 1), call.integer("target_width", 1)
    if mode != "ALIGN_CORNERS" and (mode != "STRICT_ALIGN_CORNERS" or min(height, width) < 2):
        raise NotInterpreted(f"sampling_mode '{mode}' to {height} by {width}")
    boxes, images = _boxes(call, x)
    call.hold((*images.shape, x.shape[1], height, width))
    rows, columns = (_along(boxes[:, which], boxes[:, which + 2], size) for which, size in ((0, height), (1, width)))
    outside = _beyond(rows, x.shape[-2])[:, :, None] | _beyond(columns, x.shape[-1])[:, None, :]
    rows, columns = np.broadcast_arrays(rows[:, :, None], columns[:, None, :])
    result = np.empty((*images.shape, x.shape[1], height, width), x.dtype)
    for place, image in np.ndenumerate(images):
        box = place[0]
        crop = _bilinear(x[image], rows[box], columns[box])
        result[place] = np.where(outside[box], np.float32(call.number("pad_value", 0)), crop)
    return result


def _boxes(call: Call, x: Tensor) -> tuple[Tensor, NDArray[np.intp]]:
    """Boxes as (first row, first column, last row, last column), and the images of each: several before iOS17."""
    order = call.text("box_coordinate_mode", "CORNERS_HEIGHT_FIRST")
    images: NDArray[np.intp]
    if call.opset < 17:
        boxes = call.array("roi").reshape(call.array("roi").shape[0], -1)
        given = boxes[:, :1] if boxes.shape[1] == 5 else np.tile(np.arange(len(x)), (len(boxes), 1))
        boxes, images = boxes[:, -4:], given.astype(np.intp)
    else:
        boxes, chosen = call.array("boxes").astype(np.float32), call.optional("box_indices")
        images = np.arange(len(boxes)) if chosen is None else chosen.astype(np.intp)
    if images.size and not 0 <= images.min() <= images.max() < len(x):
        raise ToolchainFailure(f"boxes of images {np.unique(images).tolist()}, there are {len(x)}")
    if order == "CORNERS_WIDTH_FIRST":
        boxes = boxes[:, [1, 0, 3, 2]]
    elif order != "CORNERS_HEIGHT_FIRST":
        raise NotInterpreted(f"box_coordinate_mode '{order}': whether a box ends at its last element is not written")
    if call.flag("normalized_coordinates", False):
        boxes = boxes * (np.array(x.shape[-2:] * 2, np.float32) - 1)
    return boxes * np.float32(call.number("spatial_scale", 1)), images


# ---- places


def _in_elements(places: Tensor, size: int, mode: str, corners: bool) -> Tensor:
    """Places along an axis, counted in its elements: a whole number is the middle of one."""
    match mode.lower():
        case "unnormalized":
            return places
        case "normalized_minus_one_to_one":
            places = (places + 1) / 2
        case "normalized_zero_to_one":
            pass
        case _:
            raise NotInterpreted(f"coordinates_mode '{mode}'")
    return places * np.float32(size - 1) if corners else places * np.float32(size) - np.float32(0.5)


def _along(start: Tensor, end: Tensor, count: int) -> Tensor:
    """Places of ``count`` elements from ``start`` to ``end``, a row for each box."""
    part = (grid("ALIGN_CORNERS", 3, count) / 2).astype(np.float32)
    return start[:, None] + (end - start)[:, None] * part


def _beyond(places: Tensor, size: int) -> NDArray[np.bool_]:
    return (places < 0) | (places > size - 1)


def _sampled(call: Call, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``x`` [B, C, H, W] at places [B, h, w]."""
    padding, sampling = call.text("padding_mode").lower(), call.text("sampling_mode").lower()
    fill = None
    match padding:
        case "constant":
            fill = call.number("padding_value")
        case "border":
            pass
        case "reflection":
            rows, columns = _reflected(rows, x.shape[-2], 0), _reflected(columns, x.shape[-1], 0)
        case "symmetric":
            rows, columns = _reflected(rows, x.shape[-2], 0.5), _reflected(columns, x.shape[-1], 0.5)
        case _:
            raise NotInterpreted(f"padding_mode '{padding}'")
    if fill is None:
        rows, columns = np.clip(rows, 0, x.shape[-2] - 1), np.clip(columns, 0, x.shape[-1] - 1)
    match sampling:
        case "nearest":
            places = np.rint(rows), np.rint(columns)
            return np.stack([_at(*each, fill) for each in zip(x, *places, strict=True)])
        case "bilinear":
            return np.stack([_bilinear(*each, fill) for each in zip(x, rows, columns, strict=True)])
        case _:
            raise NotInterpreted(f"sampling_mode '{sampling}'")


def _reflected(places: Tensor, size: int, edge: float) -> Tensor:
    """Places turned back at the ends: in the middle of the last element, or ``edge`` behind it."""
    span = size - 1 + 2 * edge
    if span == 0:
        return np.zeros_like(places)
    turned: Tensor = np.mod(places + edge, 2 * span)
    turned = np.minimum(turned, 2 * span - turned) - edge
    return turned.astype(places.dtype)


def _bilinear(image: Tensor, rows: Tensor, columns: Tensor, fill: float | None = None) -> Tensor:
    """``image`` [C, H, W] at places [h, w]; elements outside are ``fill``, or the nearest one where that is None."""
    top, left = np.floor(rows), np.floor(columns)
    down, across = rows - top, columns - left
    total = np.zeros((len(image), *rows.shape), image.dtype)
    for row, by_row in ((top, 1 - down), (top + 1, down)):
        for column, by_column in ((left, 1 - across), (left + 1, across)):
            total += _at(image, row, column, fill) * (by_row * by_column)
    return total


def _at(image: Tensor, rows: Tensor, columns: Tensor, fill: float | None) -> Tensor:
    height, width = image.shape[-2:]
    inside_rows = np.clip(rows, 0, height - 1).astype(np.intp)
    inside_columns = np.clip(columns, 0, width - 1).astype(np.intp)
    found = image[:, inside_rows, inside_columns]
    if fill is None:
        return found
    return np.where(_beyond(rows, height) | _beyond(columns, width), image.dtype.type(fill), found)


OPS: Mapping[str, OpFunction] = {"resample": resample, "affine": affine, "crop_resize": crop_resize}
