"""Single-shot detection: prior boxes, and the detections that are decoded from them.

Formulas: ``prior_box_layer``, ``detection_output_layer`` and ``bbox_util`` of SSD's Caffe, and
``prior_box_clustered_layer`` of Intel's. Boxes are xmin, ymin, xmax, ymax in units of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retarget.convert.caffe.build import Builder, Lowering, Shape, Value, product, refuse, show, static, wrong
from retarget.convert.caffe.layers.suppression import (
    BOOL,
    INT64,
    LOWERED_TO,
    LOWEST,
    MOST_A_CELL,
    MOST_BOXES,
    full,
    halves,
    open_count,
    positions,
    suppressed,
    suppressed_ever_more,
    top,
)
from retarget.convert.caffe.net import Layer, Message

_CODES = {"1": "CORNER", "2": "CENTER_SIZE", "3": "CORNER_SIZE"}


# ---- priors


def prior_box(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """``[1,2,H*W*P*4]`` of the feature map's H and W: the boxes, then the variances. A constant.

    SSD's Caffe cuts sizes to whole pixels, 35.84 to 35, and its nets were trained on such boxes.
    """
    parameters = layer.message.message("prior_box_param")
    smallest = [int(size) for size in parameters.numbers("min_size")]
    largest = [int(size) for size in parameters.numbers("max_size")]
    if not smallest or min(smallest) <= 0:
        raise wrong(layer, "needs a min_size, 1 or more")
    if largest and len(largest) != len(smallest):
        raise wrong(layer, f"has {len(smallest)} of min_size and {len(largest)} of max_size")
    if any(
        large <= small
        for small, large in zip(parameters.numbers("min_size"), parameters.numbers("max_size"), strict=False)
    ):
        raise wrong(layer, "has a max_size that is not greater than its min_size")
    if any(ratio <= 0 for ratio in parameters.numbers("aspect_ratio")):
        raise wrong(layer, "has an aspect_ratio that is not positive")
    if len(smallest) * (2 + 2 * len(parameters.numbers("aspect_ratio"))) > MOST_A_CELL:
        raise refuse(layer, f"makes more than {MOST_A_CELL} boxes a cell")
    roots = [float(np.sqrt(np.float64(ratio))) for ratio in _aspect_ratios(parameters)]
    sizes: list[tuple[float, float]] = []
    for index, small in enumerate(smallest):
        sizes.append((small, small))
        if largest:
            sizes.append(((small * largest[index]) ** 0.5,) * 2)
        sizes += [(small * root, small / root) for root in roots]
    return [_priors(layer, parameters, inputs, build, sizes)]


def prior_box_clustered(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """As ``prior_box`` with the boxes' sizes in pixels as they are."""
    parameters = layer.message.message("prior_box_param")
    widths, heights = parameters.numbers("width"), parameters.numbers("height")
    if not widths or len(widths) != len(heights):
        raise wrong(layer, f"has {len(widths)} of width and {len(heights)} of height")
    return [_priors(layer, parameters, inputs, build, list(zip(widths, heights, strict=True)))]


def _aspect_ratios(parameters: Message) -> list[np.float32]:
    """Those that are not 1, each once, with its inverse where ``flip`` says so."""
    ratios = [np.float32(1)]
    for ratio in map(np.float32, parameters.numbers("aspect_ratio")):
        if all(abs(ratio - other) >= 1e-6 for other in ratios):
            ratios.append(ratio)
            if parameters.flag("flip", True):
                ratios.append(np.float32(1 / np.float64(ratio)))
    return [ratio for ratio in ratios if abs(ratio - 1) >= 1e-6]


def _priors(
    layer: Layer, parameters: Message, inputs: Sequence[Value], build: Builder, sizes: Sequence[tuple[float, float]]
) -> Value:
    """In Caffe's order and precision: centres and sizes are float32, and combined in float64."""
    if not inputs:
        raise wrong(layer, "needs a feature map as its bottom")
    rows, columns = static(layer, inputs[0], (2, 3))
    if rows * columns * len(sizes) > MOST_BOXES:
        raise refuse(layer, f"would make {rows * columns * len(sizes)} boxes, more than {MOST_BOXES} constants")
    height, width = _image_size(layer, parameters, inputs)
    step_y, step_x = _steps(layer, parameters, (height / np.float32(rows), width / np.float32(columns)))
    offset = np.float32(parameters.number("offset", 0.5))
    center = np.empty((rows, columns, 1, 2), np.float32)
    center[..., 0] = ((np.arange(columns, dtype=np.float32) + offset) * step_x)[None, :, None]
    center[..., 1] = ((np.arange(rows, dtype=np.float32) + offset) * step_y)[:, None, None]
    half = np.array(sizes, np.float32).astype(np.float64) / 2
    scale = np.array([width, height], np.float64)
    boxes = np.concatenate([(center - half) / scale, (center + half) / scale], axis=-1).astype(np.float32)
    if parameters.flag("clip"):
        boxes = boxes.clip(0, 1)
    return build.constant(np.stack([boxes.ravel(), _variances(layer, parameters, boxes.size // 4)])[None])


def _image_size(layer: Layer, parameters: Message, inputs: Sequence[Value]) -> tuple[np.float32, np.float32]:
    """Height and width in pixels: as the layer says, or of its second bottom."""
    size = parameters.integer("img_size")
    height, width = parameters.integer("img_h", size), parameters.integer("img_w", size)
    if not height or not width:
        if len(inputs) < 2:
            raise wrong(layer, "needs the image as its second bottom, or img_size")
        height, width = static(layer, inputs[1], (2, 3))
    return np.float32(height), np.float32(width)


def _steps(layer: Layer, parameters: Message, default: tuple[np.float32, np.float32]) -> tuple[np.float32, np.float32]:
    """Pixels from one cell to the next, down and across."""
    step = parameters.number("step")
    steps = parameters.number("step_h", step), parameters.number("step_w", step)
    if min(steps) < 0:
        raise wrong(layer, f"step is {min(steps):g}, must be positive")
    return (np.float32(steps[0]), np.float32(steps[1])) if all(steps) else default


def _variances(layer: Layer, parameters: Message, boxes: int) -> NDArray[np.float32]:
    found = parameters.numbers("variance") or (0.1,)
    if len(found) not in (1, 4):
        raise wrong(layer, f"has {len(found)} of variance, needs 1 or 4")
    return np.resize(np.array(found, np.float32), boxes * 4)


# ---- detections


def detection_output(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """``[1,1,K,7]``: image, label, confidence and box of each detection, in Caffe's own order.

    By image, label and falling confidence; of equal confidences the prior that comes first. Where nothing is found in
    any image, a row for each: its number, then -1. Bottoms: ``loc[N,P*4]``, of ``[N,P*classes*4]`` where classes do not
    share them, ``conf[N,P*classes]``, ``prior[1,2,P*4]``, maybe the images, which only Caffe's drawing wants.
    """
    parameters = layer.message.message("detection_output_param")
    suppression = parameters.message("nms_param")
    overlap = suppression.number("nms_threshold", 0.3)
    _check(layer, inputs, parameters, overlap)
    location, confidence, prior = inputs[:3]
    count = static(layer, prior, (2,))[0] // 4
    classes = parameters.integer("num_classes")
    labels = [label for label in range(classes) if label != parameters.integer("background_label_id")]
    images, found = location.shape[0], open_count(layer)

    scores = build.reshape(confidence, (images, count, classes))
    scores = build.op("Transpose", [scores], (images, classes, count), perm=[0, 2, 1])
    if len(labels) < classes:
        scores = build.op("Gather", [scores, build.integers(*labels)], (images, len(labels), count), axis=1)
    # Caffe cuts to `top_k` before boxes suppress each other, NonMaxSuppression would after.
    most = suppression.integer("top_k", -1)
    candidates = min(most, count) if most > -1 else count
    scores, order = top(build, scores, candidates)

    boxes = _decoded(layer, location, prior, build, labels)
    boxes = _candidates(build, boxes, order)
    lists = (product((images, len(labels))), candidates)
    shape = (images, len(labels) * candidates)
    threshold = parameters.number("confidence_threshold", LOWEST)
    extents = boxes if _code(layer, parameters) == "CENTER_SIZE" else _flat_where_inverted(build, boxes)
    ranked = build.reshape(scores, (lists[0], 1, lists[1]))
    eta = suppression.number("eta", 1.0)
    if eta < 1 and overlap > LOWERED_TO:
        kept = suppressed_ever_more(layer, build, extents, ranked, overlap, eta, threshold)
    else:
        kept = suppressed(layer, build, extents, ranked, candidates, overlap, threshold)
    kept, scores = build.reshape(kept, shape, BOOL), build.reshape(scores, shape)
    if "confidence_threshold" in parameters:
        above = build.op("Greater", [scores, build.number(threshold)], dtype=BOOL)
        kept = build.op("And", [kept, above], dtype=BOOL)
    limit = parameters.integer("keep_top_k", -1)
    if -1 < limit < len(labels) * candidates:
        kept = _best(build, kept, scores, limit)

    chosen = positions(build, kept, found)
    columns = [
        _divided(build, chosen, len(labels) * candidates),
        build.op(
            "Gather",
            [
                build.constant(np.array(labels, np.float32)),
                build.op(
                    "Mod", [_quotient(build, chosen, candidates), build.constant(np.array(len(labels)))], dtype=INT64
                ),
            ],
            (found,),
        ),
        build.op("Gather", [build.reshape(scores, (product(shape),)), chosen], (found,)),
    ]
    axis = build.integers(1)
    columns = [build.op("Unsqueeze", [column, axis], (found, 1)) for column in columns]
    columns.append(build.op("Gather", [build.reshape(boxes, (product(shape), 4)), chosen], (found, 4)))
    rows = build.op("Concat", columns, (found, 7), axis=1)
    rows = build.op("Concat", [rows, _none(build, images, location, chosen)], (found, 7), axis=0)
    return [build.op("Unsqueeze", [rows, build.integers(0, 1)], (1, 1, found, 7))]


def _check(layer: Layer, inputs: Sequence[Value], parameters: Message, overlap: float) -> None:
    if len(inputs) not in (3, 4):
        raise refuse(layer, f"has {len(inputs)} bottoms, Caffe's takes loc, conf and prior; forks' are not known")
    if inputs[2].rank != 3 or inputs[2].shape[1] != 2:
        raise wrong(layer, f"its priors are {show(inputs[2].shape)}, need boxes and variances: [1,2,...]")
    classes = parameters.integer("num_classes")
    suppression = parameters.message("nms_param")
    eta = suppression.number("eta", 1.0)
    if classes <= 0:
        raise wrong(layer, "needs num_classes")
    if overlap < 0:
        raise wrong(layer, f"nms_threshold is {overlap:g}, must not be negative")
    if not 0 < eta <= 1:
        raise wrong(layer, f"eta is {eta:g}, must be above 0 and not above 1")
    if suppression.integer("top_k", -1) == 0 or parameters.integer("keep_top_k", -1) == 0:
        raise wrong(layer, "top_k or keep_top_k is 0: it would never find anything", "-1 stands for no limit")
    count = static(layer, inputs[2], (2,))[0] // 4
    per_prior = 4 if parameters.flag("share_location", True) else 4 * classes
    for what, value, wanted in (("locations", inputs[0], per_prior), ("confidences", inputs[1], classes)):
        (found,) = static(layer, value, (1,))
        if found != count * wanted:
            raise wrong(layer, f"has {found} {what} for {count} priors, needs {wanted} for each")


def _code(layer: Layer, parameters: Message) -> str:
    word = parameters.word("code_type", "CORNER")
    code = _CODES.get(word, word)
    if code not in _CODES.values():
        raise wrong(layer, f"code_type is {word}", f"one of {', '.join(_CODES.values())}")
    return code


def _decoded(layer: Layer, location: Value, prior: Value, build: Builder, labels: Sequence[int]) -> Value:
    """Boxes [N,P,4], or [N,labels,P,4] where each label has its own."""
    parameters = layer.message.message("detection_output_param")
    images, count = location.shape[0], static(layer, prior, (2,))[0] // 4
    corners, variances = (
        build.reshape(each, (1, count, 4))
        for each in build.ops("Split", [prior], [(1, 1, 4 * count)] * 2, axis=1, num_outputs=2)
    )
    shape: Shape = (images, count, 4)
    offsets = build.reshape(location, shape) if parameters.flag("share_location", True) else None
    if offsets is None:
        classes = parameters.integer("num_classes")
        offsets = build.reshape(location, (images, count, classes, 4))
        if len(labels) < classes:
            offsets = build.op("Gather", [offsets, build.integers(*labels)], (images, count, len(labels), 4), axis=2)
        shape = (images, len(labels), count, 4)
        offsets = build.op("Transpose", [offsets], shape, perm=[0, 2, 1, 3])
    if not parameters.flag("variance_encoded_in_target"):
        offsets = build.op("Mul", [variances, offsets], shape)
    code = _code(layer, parameters)
    if code == "CORNER":
        return build.op("Add", [corners, offsets], shape)

    low, high = halves(build, corners)
    size = build.op("Sub", [high, low])
    if code == "CORNER_SIZE":
        both = build.op("Concat", [size, size], (1, count, 4), axis=-1)
        return build.op("Add", [corners, build.op("Mul", [offsets, both])], shape)
    center = build.op("Mul", [build.op("Add", [low, high]), build.number(0.5)])
    move, growth = halves(build, offsets)
    center = build.op("Add", [build.op("Mul", [move, size]), center])
    half = build.op("Mul", [build.op("Mul", [build.op("Exp", [growth]), size]), build.number(0.5)])
    return build.op("Concat", [build.op("Sub", [center, half]), build.op("Add", [center, half])], shape, axis=-1)


def _candidates(build: Builder, boxes: Value, order: Value) -> Value:
    """The boxes [N*labels,k,4] that ``order[N,labels,k]`` points to."""
    images, labels, count = order.shape
    lists = product((images, labels))
    if boxes.rank == 3:
        indices = build.reshape(order, (images, product((labels, count)), 1), INT64)
    else:
        boxes = build.reshape(boxes, (lists, *boxes.shape[2:]))
        indices = build.reshape(order, (lists, count, 1), INT64)
    found = build.op("GatherND", [boxes, indices], (*indices.shape[:2], 4), batch_dims=1)
    return build.reshape(found, (lists, count, 4))


def _flat_where_inverted(build: Builder, boxes: Value) -> Value:
    """Boxes whose corners have changed sides overlap with none in Caffe; to ONNX any two opposite corners are a box."""
    low, high = halves(build, boxes)
    right = build.op("Cast", [build.op("GreaterOrEqual", [high, low], dtype=BOOL)], to=ir.DataType.FLOAT.value)
    whole = build.op("ReduceMin", [right, build.integers(-1)], (*boxes.shape[:-1], 1), keepdims=1)
    return build.op(
        "Where", [build.op("Cast", [whole], dtype=BOOL, to=BOOL.value), boxes, build.number(0)], boxes.shape
    )


def _best(build: Builder, kept: Value, scores: Value, limit: int) -> Value:
    """``kept[N,K]`` with only the ``limit`` best of each image."""
    masked = build.op("Where", [kept, scores, build.number(LOWEST)], scores.shape)
    _, best = top(build, masked, limit)
    marks = build.op("ScatterElements", [full(build, 0, scores), best, full(build, 1, best)], scores.shape, axis=1)
    return build.op("And", [kept, build.op("Greater", [marks, build.number(0)], dtype=BOOL)], dtype=BOOL)


def _none(build: Builder, images: int | str, batch: Value, chosen: Value) -> Value:
    """Rows (image, -1, ...) for each image of ``batch`` if nothing is ``chosen``, no rows otherwise."""
    if isinstance(images, int):
        rows = np.full((images, 7), -1, np.float32)
        rows[:, 0] = np.arange(images)
        blank, number = build.constant(rows), build.integers(images)
    else:
        number = build.op("Shape", [batch], (1,), INT64, start=0, end=1)
        end = build.op("Squeeze", [number], (), INT64)
        zero, one = build.constant(np.array(0)), build.constant(np.array(1))
        numbers = build.op("Range", [zero, end, one], (images,), INT64)
        column = build.op("Cast", [numbers], to=ir.DataType.FLOAT.value)
        column = build.op("Unsqueeze", [column, build.integers(1)], (images, 1))
        rest = build.op("Concat", [number, build.integers(6)], (2,), INT64, axis=0)
        rest = build.op("Expand", [build.number(-1), rest], (images, 6))
        blank = build.op("Concat", [column, rest], (images, 7), axis=1)
    empty = build.op("Equal", [build.op("Shape", [chosen], (1,), INT64), build.integers(0)], dtype=BOOL)
    end = build.op("Where", [empty, number, build.integers(0)], dtype=INT64)
    return build.op("Slice", [blank, build.integers(0), end, build.integers(0)], (f"{chosen.shape[0]}_none", 7))


def _quotient(build: Builder, value: Value, divisor: int) -> Value:
    return build.op("Div", [value, build.constant(np.array(divisor))], dtype=INT64)


def _divided(build: Builder, value: Value, divisor: int) -> Value:
    return build.op("Cast", [_quotient(build, value, divisor)], to=ir.DataType.FLOAT.value)


LAYERS: dict[str, Lowering] = {
    "DetectionOutput": detection_output,
    "PriorBox": prior_box,
    "PriorBoxClustered": prior_box_clustered,
}
