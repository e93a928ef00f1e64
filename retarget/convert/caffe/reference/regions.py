"""Layers of the R-CNN family: ROIPooling (Fast R-CNN), PSROIPooling (R-FCN), Proposal in C++ and in Python."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retarget.convert.caffe.net import Blob, Layer
from retarget.convert.caffe.reference.checks import Wide, image, narrow, positive, show, whole, wide, wrong


def roi_pooling(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """The largest value of each of pooled_h x pooled_w bins of each region [image, x1, y1, x2, y2]; 0 for an empty bin.

    Corners are rounded to whole cells, both counted, and a region has at least one.
    """
    blob = image(layer, inputs[0])
    parameters = layer.message.message("roi_pooling_param")
    rows, columns = positive(layer, parameters, "pooled_h"), positive(layer, parameters, "pooled_w")
    scale = np.float32(parameters.number("spatial_scale", 1.0))
    rois, pictures = _regions(layer, inputs[1], len(blob))
    top = np.zeros((len(rois), blob.shape[1], rows, columns), np.float32)
    for number, (picture, roi) in enumerate(zip(pictures, rois, strict=True)):
        left, upper, right, lower = (int(_round(value * scale)) for value in roi[1:])
        down = _bins(max(lower - upper + 1, 1), rows, upper, blob.shape[2])
        across = _bins(max(right - left + 1, 1), columns, left, blob.shape[3])
        for row, (y0, y1) in enumerate(down):
            for column, (x0, x1) in enumerate(across):
                if y0 < y1 and x0 < x1:
                    top[number, :, row, column] = blob[picture, :, y0:y1, x0:x1].max(axis=(1, 2))
    return [top]


def psroi_pooling(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """The mean of each of group_size x group_size bins of each region, each bin from channels of its own."""
    blob = image(layer, inputs[0])
    parameters = layer.message.message("psroi_pooling_param")
    outputs, group = positive(layer, parameters, "output_dim"), positive(layer, parameters, "group_size")
    if "spatial_scale" not in parameters:
        raise wrong(layer, "psroi_pooling_param needs spatial_scale")
    scale = np.float32(parameters.number("spatial_scale"))
    if blob.shape[1] != outputs * group * group:
        raise wrong(layer, f"{blob.shape[1]} channels are not {outputs} x {group} x {group}")
    rois, pictures = _regions(layer, inputs[1], len(blob))
    top = np.zeros((len(rois), outputs, group, group), np.float32)
    for number, (picture, roi) in enumerate(zip(pictures, rois, strict=True)):
        left, upper = (np.float32(_round(value)) * scale for value in roi[1:3])
        right, lower = (np.float32(_round(value) + 1) * scale for value in roi[3:])
        down = _open_bins(upper, lower, group, blob.shape[2])
        across = _open_bins(left, right, group, blob.shape[3])
        planes = blob[picture].reshape(outputs, group, group, *blob.shape[2:])
        for row, (y0, y1) in enumerate(down):
            for column, (x0, x1) in enumerate(across):
                if y0 < y1 and x0 < x1:
                    top[number, :, row, column] = wide(planes[:, row, column, y0:y1, x0:x1]).mean(axis=(1, 2))
    return [top]


@dataclass(frozen=True)
class _Settings:
    """Of a Proposal, wherever they come from."""

    stride: int
    anchors: Wide
    """[A, 4]."""
    least: float
    """Pixels of the image before it was scaled."""
    before: int
    after: int
    most: float
    """Overlap."""
    drops: bool
    """Whether a box that is too small is dropped, or comes with a score of 0."""


def proposal(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Regions [0, x1, y1, x2, y2] and their scores: anchors moved by the deltas, the best that overlap little.

    The scores [1, 2 A, H, W] hold the background's first; the image info is [height, width, scale] or, with a scale
    an axis, [height, width, scale_h, scale_w]. A box below ``min_size`` counts with a score of 0.
    """
    parameters = layer.message.message("proposal_param")
    settings = _Settings(
        stride=positive(layer, parameters, "feat_stride", 16),
        anchors=_anchors(
            layer, parameters.integer("base_size", 16), parameters.numbers("ratio"), parameters.numbers("scale")
        ),
        least=parameters.integer("min_size", 16),
        before=parameters.integer("pre_nms_topn", 6000),
        after=positive(layer, parameters, "post_nms_topn", 300),
        most=parameters.number("nms_thresh", 0.7),
        drops=False,
    )
    return _propose(layer, inputs, settings)


def python(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """The one Python layer that deploy nets have: ``ProposalLayer`` of py-faster-rcnn, with its settings for tests."""
    parameters = layer.message.message("python_param")
    name = f"{parameters.word('module')}.{parameters.word('layer')}"
    if name != "rpn.proposal_layer.ProposalLayer" or len(inputs) != 3:
        raise wrong(layer, f"is Python code, {name}: there is no reference for it")
    text = parameters.word("param_str")
    stride = re.search(r"feat_stride'?\s*:\s*([1-9]\d*)", text)
    if stride is None:
        raise wrong(layer, "param_str gives no feat_stride")
    # A list of YAML, or with `!!python/tuple` before it one of Python's.
    scales = re.search(r"scales'?\s*:[^\[]*\[([^\]]*)\]", text)
    anchors = _anchors(
        layer, 16, (0.5, 1, 2), [float(each) for each in scales[1].split(",")] if scales else (8, 16, 32)
    )
    settings = _Settings(int(stride[1]), anchors, least=16, before=6000, after=300, most=0.7, drops=True)
    regions, *scores = _propose(layer, inputs, settings)
    # It keeps the column that it sorts them in.
    return [regions, *(each[:, None] for each in scores)]


def _propose(layer: Layer, inputs: Sequence[Blob], settings: _Settings) -> list[Blob]:
    scores, deltas, info = inputs
    anchors = settings.anchors
    height, width = image(layer, scores).shape[2:]
    if len(scores) != 1 or scores.shape[1] != 2 * len(anchors):
        raise wrong(layer, f"scores must be {show((1, 2 * len(anchors), height, width))}, not {show(scores.shape)}")
    if deltas.shape != (1, 4 * len(anchors), height, width):
        raise wrong(layer, f"deltas must be {show((1, 4 * len(anchors), height, width))}, not {show(deltas.shape)}")
    if info.size not in (3, 4):
        raise wrong(layer, f"image info must hold 3 or 4 numbers, not {info.size}")
    rows, columns, *scales = (float(value) for value in info.ravel())
    shift_y, shift_x = np.meshgrid(
        np.arange(height) * settings.stride, np.arange(width) * settings.stride, indexing="ij"
    )
    shifts = np.stack([shift_x, shift_y, shift_x, shift_y], axis=-1)
    # Places first and anchors last, as the scores and deltas are then read.
    boxes = _moved(
        shifts[:, :, None] + anchors[None, None],
        wide(deltas)[0].reshape(len(anchors), 4, height, width).transpose(2, 3, 0, 1),
    )
    boxes = np.clip(boxes, 0, np.array([columns - 1, rows - 1] * 2)).reshape(-1, 4)
    score = wide(scores)[0, len(anchors) :].transpose(1, 2, 0).ravel()
    sizes = boxes[:, 2:] - boxes[:, :2] + 1
    enough = (sizes[:, 0] >= settings.least * scales[-1]) & (sizes[:, 1] >= settings.least * scales[0])
    if settings.drops:
        boxes, score = boxes[enough], score[enough]
    else:
        score = np.where(enough, score, 0)
    order = np.argsort(-score, kind="stable")[: settings.before]
    kept = order[_apart(boxes[order], settings.most, settings.after)]
    regions = np.concatenate([np.zeros((len(kept), 1)), boxes[kept]], axis=1)
    return [narrow(regions), narrow(score[kept])][: len(layer.tops)]


def _regions(layer: Layer, rois: Blob, pictures: int) -> tuple[Blob, NDArray[np.int64]]:
    rois = rois.reshape(len(rois), -1) if rois.ndim else rois
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise wrong(layer, f"takes regions as [R,5], not {show(rois.shape)}")
    return rois, whole(layer, rois[:, 0], pictures, "the images of regions")


def _round(value: np.float32) -> float:
    """As C does: halves away from zero."""
    return math.copysign(math.floor(abs(float(value)) + 0.5), float(value))


def _bins(size: int, count: int, start: int, limit: int) -> list[tuple[int, int]]:
    """In float32, where Caffe makes them: a bin of 3.3333333 cells ends at 10, not at 9.9999999."""
    step = np.float32(size) / np.float32(count)
    return [
        (
            min(max(math.floor(np.float32(at) * step) + start, 0), limit),
            min(max(math.ceil(np.float32(at + 1) * step) + start, 0), limit),
        )
        for at in range(count)
    ]


def _open_bins(start: np.float32, end: np.float32, count: int, limit: int) -> list[tuple[int, int]]:
    step = np.float32(max(float(end - start), 0.1)) / np.float32(count)
    return [
        (
            min(max(math.floor(np.float32(at) * step + start), 0), limit),
            min(max(math.ceil(np.float32(at + 1) * step + start), 0), limit),
        )
        for at in range(count)
    ]


def _anchors(layer: Layer, base: int, ratios: Sequence[float], scales: Sequence[float]) -> Wide:
    """[A, 4], ratios outermost, around the middle of a square of ``base`` pixels."""
    if not ratios or not scales or min(*ratios, *scales) <= 0 or base < 1:
        raise wrong(layer, "needs a base size, ratios and scales above 0")
    middle = 0.5 * (base - 1)
    found = []
    for ratio in ratios:
        width = math.floor(math.sqrt(base * base / ratio) + 0.5)
        height = math.floor(width * ratio + 0.5)
        for scale in scales:
            x, y = 0.5 * (width * scale - 1), 0.5 * (height * scale - 1)
            found.append((middle - x, middle - y, middle + x, middle + y))
    return np.array(found)


def _moved(boxes: Wide, deltas: Wide) -> Wide:
    """Boxes [..., 4] with the centre moved by parts of their size, and the size by a power of e. Corners both count."""
    size = boxes[..., 2:] - boxes[..., :2] + 1
    centre = boxes[..., :2] + 0.5 * size + deltas[..., :2] * size
    half = 0.5 * np.exp(deltas[..., 2:]) * size
    return np.concatenate([centre - half, centre + half], axis=-1)


def _apart(boxes: Wide, most: float, limit: int) -> list[int]:
    """Which of ``boxes``, the best first, overlap none kept before by more than ``most``; at most ``limit``."""
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)
    kept: list[int] = []
    alive = np.ones(len(boxes), bool)
    for number, box in enumerate(boxes):
        if not alive[number]:
            continue
        kept.append(number)
        if len(kept) == limit:
            break
        shared = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]) + 1
        common = np.maximum(shared, 0).prod(axis=1)
        alive &= common / (area + area[number] - common) <= most
    return kept
