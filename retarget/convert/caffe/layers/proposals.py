"""Proposals of a region proposal network: boxes around anchors, in pixels of the image, whose corners both count.

Formulas: ``proposal_layer`` of PVANet's Caffe, and ``rpn/proposal_layer.py`` of py-faster-rcnn, a Python layer that its
nets name. Of equal scores the anchor that comes first is taken first; Caffe's sorts leave that open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import yaml
from numpy.typing import NDArray

from retarget.convert.caffe.build import Builder, Lowering, Value, of_rank, refuse, show, static, wrong
from retarget.convert.caffe.layers.suppression import (
    BOOL,
    LOWEST,
    MOST_A_CELL,
    MOST_BOXES,
    halves,
    open_count,
    positions,
    suppressed,
    top,
)
from retarget.convert.caffe.net import Layer

Floats: TypeAlias = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class _Settings:
    stride: float
    """Pixels from one cell of the feature map to the next."""
    anchors: NDArray[np.float32]
    """[A,4]: around the cell at 0, 0."""
    before: int
    """How many of the best are looked at; 0 or less: all."""
    after: int
    """How many are proposed at most; 0 or less: all."""
    overlap: float
    smallest: float
    """In pixels of the image before it was scaled."""
    drops: bool
    """What is smaller is dropped. Otherwise its score becomes 0."""


def proposal(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """``scores[1,2*A,H,W]``, ``deltas[1,4*A,H,W]``, ``info`` (height, width, scale of the image) to proposals.

    ``[K,5]``: 0 (the image) and the box, by falling score; then the scores ``[K]``.
    """
    parameters = layer.message.message("proposal_param")
    ratios, scales = parameters.numbers("ratio"), parameters.numbers("scale")
    base = parameters.integer("base_size", 16)
    if not ratios or not scales or min(*ratios, *scales, base) <= 0:
        raise wrong(layer, "needs ratio and scale, and like base_size above 0")
    if len(ratios) * len(scales) > MOST_A_CELL:
        raise refuse(layer, f"has {len(ratios) * len(scales)} anchors a cell, more than {MOST_A_CELL}")
    settings = _Settings(
        stride=parameters.number("feat_stride", 16),
        anchors=_anchors(base, np.array(ratios, np.float32), np.array(scales, np.float32), _half_up),
        before=parameters.integer("pre_nms_topn", 6000),
        after=parameters.integer("post_nms_topn", 300),
        overlap=parameters.number("nms_thresh", 0.7),
        smallest=parameters.number("min_size", 16),
        drops=False,
    )
    return _propose(layer, inputs, build, settings)


def python(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """py-faster-rcnn's ``ProposalLayer``, with what its configuration says for tests; any other is code, not a layer.

    As ``proposal``; the scores are ``[K,1]``.
    """
    parameters = layer.message.message("python_param")
    module, name = parameters.word("module"), parameters.word("layer")
    if module.split(".")[-1] != "proposal_layer" or name != "ProposalLayer":
        raise refuse(
            layer,
            f"is Python code, {module}.{name}, which has no form in ONNX",
            "cut the net before it, and run what follows in your own program",
        )
    settings = _python_settings(layer, parameters.word("param_str"))
    rois, scores = _propose(layer, inputs, build, settings)
    return [rois, build.op("Unsqueeze", [scores, build.integers(1)], (*scores.shape, 1))]


def _python_settings(layer: Layer, text: str) -> _Settings:
    """Of a YAML mapping: ``feat_stride``, and maybe ``scales``."""
    try:
        # The nets for COCO write `scales` as a tuple of Python's: a list does as well.
        found: dict[str, Any] = dict(yaml.safe_load(text.replace("!!python/tuple", "")))
        stride = float(found["feat_stride"])
        scales = np.array(found.get("scales", (8, 16, 32)), np.float64)
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise wrong(layer, f"param_str {text!r} does not give feat_stride ({error})") from None
    return _Settings(
        stride=stride,
        anchors=_anchors(16, np.array([0.5, 1, 2]), scales.ravel(), np.round),
        before=6000,
        after=300,
        overlap=0.7,
        smallest=16,
        drops=True,
    )


def _half_up(values: Floats) -> Floats:
    up: Floats = np.floor(values + 0.5)
    return up


def _anchors(base: int, ratios: Floats, scales: Floats, rounded: Callable[[Floats], Floats]) -> NDArray[np.float32]:
    """For each ratio (height to width) and each scale a box around the middle of the pixels 0 to ``base`` - 1."""
    widths = rounded(np.sqrt(base * base / ratios))
    heights = rounded(widths * ratios)
    sizes = np.stack([widths, heights], axis=-1)[:, None] * scales[:, None]
    center, half = 0.5 * (base - 1), 0.5 * (sizes.reshape(-1, 2) - 1)
    return np.concatenate([center - half, center + half], axis=1).astype(np.float32)


def _propose(layer: Layer, inputs: Sequence[Value], build: Builder, settings: _Settings) -> list[Value]:
    """The proposals [K,5] and their scores [K]."""
    if len(inputs) != 3:
        raise wrong(layer, f"has {len(inputs)} bottoms, needs scores, deltas and the image's height, width and scale")
    scores, deltas, info = inputs
    count = len(settings.anchors)
    images, channels, rows, columns = static(layer, of_rank(layer, scores, 4))
    if images != 1:
        raise wrong(layer, f"has a batch of {images}; Caffe proposes for one image at a time")
    if channels != 2 * count or static(layer, deltas) != (1, 4 * count, rows, columns):
        raise wrong(
            layer,
            f"has {count} anchors, which do not fit scores of {show(scores.shape)}, deltas of {show(deltas.shape)}",
        )
    number = rows * columns * count
    if number > MOST_BOXES:
        raise refuse(layer, f"would move {number} anchors, more than {MOST_BOXES} constants")
    image = build.reshape(info, (int(np.prod(static(layer, info))),))

    shape = (1, rows, columns, 2 * count)
    scores = build.op("Transpose", [scores], shape, perm=[0, 2, 3, 1])
    scores = build.op("Slice", [scores, *map(build.integers, (count, 2 * count, 3))], (*shape[:3], count))
    scores = build.reshape(scores, (number,))
    deltas = build.op("Transpose", [deltas], (1, rows, columns, 4 * count), perm=[0, 2, 3, 1])
    low, high = _moved(build, build.reshape(deltas, (number, 4)), _grid(settings, rows, columns), image)

    large = _large(layer, build, low, high, image, settings)
    if settings.drops:
        scores = build.op("Where", [large, scores, build.number(LOWEST)], scores.shape)
    else:
        scores = build.op("Mul", [scores, build.op("Cast", [large], to=ir.DataType.FLOAT.value)])
    looked_at = min(settings.before, number) if settings.before > 0 else number
    scores, order = top(build, scores, looked_at)
    boxes = build.op("Concat", [low, high], (number, 4), axis=1)
    boxes = build.op("Gather", [boxes, order], (looked_at, 4))

    # Both corners count: a box ends one pixel further than its second corner.
    extents = build.op("Add", [boxes, build.constant(np.array([0, 0, 1, 1], np.float32))])
    kept = suppressed(
        layer,
        build,
        build.op("Unsqueeze", [extents, build.integers(0)], (1, looked_at, 4)),
        build.op("Unsqueeze", [scores, build.integers(0, 1)], (1, 1, looked_at)),
        min(settings.after, looked_at) if settings.after > 0 else looked_at,
        settings.overlap,
    )
    if settings.drops:
        kept = build.op("And", [kept, build.op("Greater", [scores, build.number(LOWEST)], dtype=BOOL)], dtype=BOOL)
    found = open_count(layer)
    chosen = positions(build, kept, found)
    rois = build.op("Concat", [build.constant(np.zeros((looked_at, 1), np.float32)), boxes], (looked_at, 5), axis=1)
    return [build.op("Gather", [each, chosen], (found, *each.shape[1:])) for each in (rois, scores)]


def _grid(settings: _Settings, rows: int, columns: int) -> NDArray[np.float32]:
    """The anchors [H*W*A,4] of all cells."""
    x, y = np.meshgrid(np.arange(columns) * settings.stride, np.arange(rows) * settings.stride)
    shifts = np.stack([x, y, x, y], axis=-1)[:, :, None]
    return (shifts + settings.anchors).reshape(-1, 4).astype(np.float32)


def _moved(build: Builder, deltas: Value, anchors: NDArray[np.float32], image: Value) -> tuple[Value, Value]:
    """The anchors' first and second corners [M,2], moved and scaled by ``deltas[M,4]``, within the image."""
    size = anchors[:, 2:] - anchors[:, :2] + np.float32(1)
    center = anchors[:, :2] + np.float32(0.5) * size
    extent = build.constant(size)
    move, growth = halves(build, deltas)
    middle = build.op("Add", [build.op("Mul", [move, extent]), build.constant(center)])
    half = build.op("Mul", [build.op("Mul", [build.op("Exp", [growth]), extent]), build.number(0.5)])
    last = build.op("Sub", [build.op("Gather", [image, build.integers(1, 0)], (2,)), build.number(1)])
    low, high = (
        build.op("Max", [build.op("Min", [build.op(way, [middle, half]), last]), build.number(0)])
        for way in ("Sub", "Add")
    )
    return low, high


def _large(layer: Layer, build: Builder, low: Value, high: Value, image: Value, settings: _Settings) -> Value:
    """bool [M]: whether neither side is below the smallest size, which is scaled as the image is."""
    (length,) = static(layer, image)
    if length < 3:
        raise wrong(layer, f"its third bottom has {length} values, needs height, width and scale")
    # PVANet scales height and width each by its own.
    own = length > 3 and not settings.drops
    scale = build.op("Gather", [image, build.integers(*((3, 2) if own else (2, 2)))], (2,))
    smallest = build.op("Mul", [scale, build.number(settings.smallest)])
    sides = build.op("Add", [build.op("Sub", [high, low]), build.number(1)])
    enough = build.op("GreaterOrEqual", [sides, smallest], dtype=BOOL)
    both = build.op("Cast", [enough], to=ir.DataType.FLOAT.value)
    both = build.op("ReduceMin", [both, build.integers(1)], low.shape[:1], keepdims=0)
    return build.op("Cast", [both], dtype=BOOL, to=BOOL.value)


LAYERS: dict[str, Lowering] = {
    "Proposal": proposal,
    "Python": python,
}
