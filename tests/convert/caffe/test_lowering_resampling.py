"""Layers that move elements, against torch, and Reorg against Darknet's own loop."""

from __future__ import annotations

import caffe_files
import numpy as np
import pytest
import torch
from caffe_lowered import Floats, execute, lowered, opencv, openvino

from retarget.compare import snr_db
from retarget.errors import RetargetError

ENOUGH = 100
"""Decibels: between elements, the last bits hang on the order in which a position is computed."""


def draw(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def one(kind: str, parameters: str, data: tuple[int, ...]) -> str:
    return caffe_files.inputs(data=data) + caffe_files.layer("made", kind, "data", None, parameters)


# ---- Interp


@pytest.mark.parametrize(
    ("parameters", "size"),
    [
        ("height: 17 width: 23", (17, 23)),
        ("height: 4 width: 3", (4, 3)),
        ("height: 1 width: 5", (1, 5)),
        ("height: 9 width: 10", (9, 10)),
        ("zoom_factor: 3", (25, 28)),
        ("shrink_factor: 3", (3, 4)),
        ("shrink_factor: 2 zoom_factor: 4", (17, 17)),
        ("height: 90 width: 80 shrink_factor: 2", (5, 5)),
        ("height: 20 width: 30 shrink_factor: 2 zoom_factor: 3", (20, 30)),
        ("height: 13 width: 11 pad_beg: -1 pad_end: -2", (13, 11)),
        ("zoom_factor: 2 pad_beg: -2", (13, 15)),
        ("height: 65 width: 129", (65, 129)),
    ],
)
def test_interp_puts_corners_on_corners(parameters: str, size: tuple[int, int]) -> None:
    data = draw(2, 3, 9, 10)
    cropped = data
    if "pad_beg" in parameters:
        begin, end = (2, 0) if "zoom" in parameters else (1, 2)
        cropped = data[:, :, begin : 9 - end, begin : 10 - end]
    expected = torch.nn.functional.interpolate(torch.from_numpy(cropped), size, mode="bilinear", align_corners=True)
    model = lowered(one("Interp", f"interp_param {{ {parameters} }}", data.shape))
    (found,) = execute(model, {"data": data})
    assert found.shape == expected.shape
    assert snr_db(expected.numpy(), found) > ENOUGH


def test_interp_of_a_single_pixel_repeats_it() -> None:
    data = draw(2, 3, 1, 1)
    model = lowered(one("Interp", "interp_param { height: 3 width: 2 }", data.shape))
    for run in (execute, openvino):
        np.testing.assert_array_equal(run(model, {"data": data})[0], np.broadcast_to(data, (2, 3, 3, 2)))


def test_interp_to_the_size_of_another_blob_with_an_open_batch() -> None:
    shapes = {"data": (2, 3, 9, 10), "like": (2, 1, 20, 30)}
    prototxt = caffe_files.inputs(**shapes) + caffe_files.layer("made", "Interp", tuple(shapes))
    model = lowered(prototxt, shapes={"data": ("N", 3, 9, 10), "like": ("N", 1, 20, 30)})
    feeds = {name: draw(*shape) for name, shape in shapes.items()}
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(feeds["data"]), (20, 30), mode="bilinear", align_corners=True
    ).numpy()
    for run in (execute, openvino):
        assert snr_db(expected, run(model, feeds)[0]) > ENOUGH


# ---- Upsample


@pytest.mark.parametrize(("parameters", "factors"), [("scale: 2", (2, 2)), ("scale_h: 3 scale_w: 1", (3, 1))])
def test_upsample_repeats_elements(parameters: str, factors: tuple[int, int]) -> None:
    data = draw(2, 3, 4, 5)
    prototxt = one("Upsample", f"upsample_param {{ {parameters} }}", data.shape)
    expected = data.repeat(factors[0], axis=2).repeat(factors[1], axis=3)
    np.testing.assert_array_equal(execute(lowered(prototxt), {"data": data})[0], expected)
    model = lowered(prototxt, shapes={"data": ("N", 3, "height", 5)})
    for run in (execute, openvino):
        np.testing.assert_array_equal(run(model, {"data": data})[0], expected)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ((8, 6), ""),
        ((8, 6), "scale: 2"),
        ((7, 9), "upsample_h: 7 upsample_w: 9"),
        ((7, 9), "scale: 2 pad_out_h: true pad_out_w: true"),
        ((8, 6), "scale_h: 2 scale_w: 2"),
    ],
)
@pytest.mark.parametrize("images", [2, "N"])
def test_upsample_puts_elements_where_pooling_took_them(
    size: tuple[int, int], parameters: str, images: int | str
) -> None:
    data = draw(2, 3, *size)
    pool = "pooling_param { kernel_size: 2 stride: 2 }"
    prototxt = caffe_files.inputs(data=data.shape) + caffe_files.layer(
        "pool", "Pooling", "data", ("pool", "mask"), pool
    )
    prototxt += caffe_files.layer("made", "Upsample", ("pool", "mask"), None, f"upsample_param {{ {parameters} }}")
    tensor = torch.from_numpy(data)
    pooled, places = torch.nn.functional.max_pool2d(tensor, 2, 2, ceil_mode=True, return_indices=True)
    expected = torch.nn.functional.max_unpool2d(pooled, places, [2, 2], [2, 2], output_size=list(size)).numpy()
    model = lowered(prototxt, shapes={"data": (images, 3, *size)})
    np.testing.assert_array_equal(execute(model, {"data": data})[0], expected)
    if images == "N" and not parameters:
        np.testing.assert_array_equal(openvino(model, {"data": data})[0], expected)


# ---- Reorg


def darknet(data: Floats, stride: int, *, reverse: bool) -> Floats:
    """Element by element; the two directions share one table of places, one reads where the other writes."""
    images, channels, height, width = data.shape
    inner = channels // stride**2
    flat = data.reshape(images, -1)
    out = np.empty_like(flat)
    for channel in range(channels):
        part, offset = channel % inner, channel // inner
        for row in range(height):
            for column in range(width):
                here = column + width * (row + height * channel)
                line, place = row * stride + offset // stride, column * stride + offset % stride
                there = place + width * stride * (line + height * stride * part)
                if reverse:
                    out[:, there] = flat[:, here]
                else:
                    out[:, here] = flat[:, there]
    if reverse:
        return out.reshape(images, inner, height * stride, width * stride)
    return out.reshape(images, channels * stride**2, height // stride, width // stride)


@pytest.mark.parametrize(
    ("shape", "stride", "reverse"),
    [
        ((2, 4, 6, 8), 2, False),
        ((1, 9, 6, 3), 3, False),
        ((1, 64, 4, 4), 2, False),
        ((2, 8, 3, 4), 2, True),
        ((1, 18, 2, 3), 3, True),
        ((1, 3, 2, 2), 1, False),
    ],
)
def test_reorg_is_that_of_darknet(shape: tuple[int, int, int, int], stride: int, reverse: bool) -> None:
    data = draw(*shape)
    parameters = f"reorg_param {{ stride: {stride} reverse: {str(reverse).lower()} }}"
    prototxt = one("Reorg", parameters, shape)
    expected = darknet(data, stride, reverse=reverse)
    model = lowered(prototxt, shapes={"data": ("N", *shape[1:])})
    np.testing.assert_array_equal(execute(model, {"data": data})[0], expected)
    if stride == 2:
        np.testing.assert_array_equal(openvino(model, {"data": data})[0], expected)
        if not reverse:
            np.testing.assert_array_equal(opencv(prototxt, [], {"data": data}, "made")[0], expected)


# ---- Im2col


@pytest.mark.parametrize(
    ("parameters", "kernel", "settings"),
    [
        ("kernel_size: 3", (3, 3), {}),
        ("kernel_size: 3 pad: 2 stride: 2 dilation: 2", (3, 3), {"padding": 2, "stride": 2, "dilation": 2}),
        ("kernel_h: 2 kernel_w: 3 pad_h: 1 pad_w: 0", (2, 3), {"padding": (1, 0)}),
        ("kernel_size: 2 stride_h: 1 stride_w: 2", (2, 2), {"stride": (1, 2)}),
        ("kernel_size: 1", (1, 1), {}),
    ],
)
def test_im2col_unfolds(parameters: str, kernel: tuple[int, int], settings: dict[str, int | tuple[int, int]]) -> None:
    data = draw(2, 3, 9, 10)
    model = lowered(one("Im2col", f"convolution_param {{ {parameters} }}", data.shape))
    (found,) = execute(model, {"data": data})
    unfold = torch.nn.Unfold(kernel, **settings)
    np.testing.assert_array_equal(found, unfold(torch.from_numpy(data)).numpy().reshape(found.shape))


@pytest.mark.parametrize(("shape", "axis"), [((2, 3, 5, 6, 4), 1), ((2, 3, 7), 1), ((2, 3, 4, 5), 2), ((4, 6), 0)])
def test_im2col_of_any_number_of_axes(shape: tuple[int, ...], axis: int) -> None:
    data = draw(*shape)
    model = lowered(one("Im2col", f"convolution_param {{ kernel_size: 2 axis: {axis} }}", shape))
    spatial = tuple(range(axis + 1, len(shape)))
    windows = np.lib.stride_tricks.sliding_window_view(data, (2,) * len(spatial), axis=spatial)
    moved = np.moveaxis(windows, range(len(shape), windows.ndim), range(axis + 1, axis + 1 + len(spatial)))
    expected = moved.reshape(*shape[:axis], -1, *windows.shape[axis + 1 : len(shape)])
    np.testing.assert_array_equal(execute(model, {"data": data})[0], expected)


# ---- SPP


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize("size", [(8, 8), (9, 10), (13, 7)])
def test_spp_joins_poolings_of_more_and_more_bins(method: str, size: tuple[int, int]) -> None:
    data = draw(2, 3, *size)
    model = lowered(one("SPP", f"spp_param {{ pyramid_height: 3 pool: {method} }}", data.shape))
    parts = []
    for bins in (1, 2, 4):
        kernels = [-(-length // bins) for length in size]
        pads = [(kernel * bins - length + 1) // 2 for kernel, length in zip(kernels, size, strict=True)]
        wide = np.full((2, 3, *(kernel * bins for kernel in kernels)), np.nan, np.float32)
        inside = tuple(slice(pad, pad + length) for pad, length in zip(pads, size, strict=True))
        wide[:, :, inside[0], inside[1]] = data
        blocks = wide.reshape(2, 3, bins, kernels[0], bins, kernels[1])
        # An average counts the padding as zeros, a maximum leaves it out.
        pooled = np.nanmax(blocks, axis=(3, 5)) if method == "MAX" else np.nan_to_num(blocks).mean(axis=(3, 5))
        parts.append(pooled.reshape(2, -1))
    expected = np.concatenate(parts, axis=1)
    for run in (execute, openvino):
        assert snr_db(expected, run(model, {"data": data})[0]) > ENOUGH


def test_spp_of_one_level_keeps_its_axes() -> None:
    data = draw(2, 3, 5, 6)
    model = lowered(one("SPP", "spp_param { pyramid_height: 1 }", data.shape))
    np.testing.assert_array_equal(execute(model, {"data": data})[0], data.max(axis=(2, 3), keepdims=True))


# ---- refused


@pytest.mark.parametrize(
    ("kind", "parameters", "shape", "message"),
    [
        ("Interp", "", (1, 2, 3, 4), "says no size"),
        ("Interp", "interp_param { height: 4 width: 4 pad_beg: 1 }", (1, 2, 3, 4), "must not be positive"),
        ("Interp", "interp_param { zoom_factor: 0 }", (1, 2, 3, 4), "are 1 and 0"),
        ("Interp", "interp_param { height: 0 width: 4 }", (1, 2, 3, 4), "would be 0 and 4"),
        ("Upsample", "upsample_param { upsample_h: 4 upsample_w: 4 }", (1, 2, 3, 4), "needs a scale"),
        ("Upsample", "upsample_param { scale: 2 }", (1, 2, 3), "of 4 dimensions"),
        ("Reorg", "", (1, 4, 4, 4), "stride 0"),
        ("Reorg", "reorg_param { stride: 2 }", (1, 3, 4, 4), "does not divide 3 channels"),
        ("Reorg", "reorg_param { stride: 2 }", (1, 4, 3, 4), "does not divide the size, 3x4"),
        ("Im2col", "convolution_param { kernel_size: 2 axis: 1 }", (2, 3), "axis 1 is the last"),
        ("Im2col", "", (2, 3, 4, 4), "has no kernel_size"),
        ("Im2col", "convolution_param { kernel_size: 100000 }", (2, 3, 4, 4), "more than 1024"),
        ("Reorg", "reorg_param { stride: 2 }", (4, 4, 4), "of 4 dimensions, has one of 3"),
        ("SPP", "spp_param { pyramid_height: 0 }", (1, 2, 4, 4), "pyramid_height is 0"),
        ("SPP", "spp_param { pyramid_height: 3 }", (1, 2, 5, 5), "pad 2 is not smaller than the kernel"),
    ],
)
def test_what_caffe_would_not_take_is_refused(kind: str, parameters: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(RetargetError, match=message) as caught:
        lowered(one(kind, parameters, shape))
    assert "layer 'made'" in str(caught.value)
