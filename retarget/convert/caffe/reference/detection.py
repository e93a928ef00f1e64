"""SSD's PriorBox and DetectionOutput, and PriorBoxClustered of its fork in OpenVINO's training toolbox."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from retarget.convert.caffe.net import Blob, Layer, Message
from retarget.convert.caffe.reference.checks import Wide, choice, image, narrow, positive, show, wide, wrong


def prior_box(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """[1, 2, 4 P]: corners of the boxes around every place of the feature map, then their variances.

    Sizes are cut to whole pixels, for SSD holds them in integers.
    """
    parameters = layer.message.message("prior_box_param")
    least, most = ([int(size) for size in parameters.numbers(name)] for name in ("min_size", "max_size"))
    if not least or min(least) <= 0:
        raise wrong(layer, "prior_box_param needs a min_size above 0")
    if most and (len(most) != len(least) or any(large <= small for small, large in zip(least, most, strict=False))):
        raise wrong(layer, f"max_size {show(most)} must be above min_size {show(least)}, one for each")
    ratios = _ratios(layer, parameters)
    boxes = []
    for number, size in enumerate(least):
        boxes.append((float(size), float(size)))
        if most:
            side = math.sqrt(size * most[number])
            boxes.append((side, side))
        boxes += [(size * math.sqrt(ratio), size / math.sqrt(ratio)) for ratio in ratios[1:]]
    return _priors(layer, parameters, inputs, boxes)


def prior_box_clustered(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """As PriorBox, with the width and height of each box given."""
    parameters = layer.message.message("prior_box_param")
    widths, heights = parameters.numbers("width"), parameters.numbers("height")
    if not widths or len(widths) != len(heights) or min(*widths, *heights) <= 0:
        raise wrong(layer, "prior_box_param needs as many width as height, above 0")
    return _priors(layer, parameters, inputs, list(zip(widths, heights, strict=True)))


def detection_output(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """[1, 1, K, 7]: image, label, score and corners of the boxes that are left, image by image and label by label.

    Where none is left in any image, each image has one row of its number and -1.
    """
    parameters = layer.message.message("detection_output_param")
    classes = positive(layer, parameters, "num_classes")
    background = parameters.integer("background_label_id")
    threshold = parameters.number("confidence_threshold", -float(np.finfo(np.float32).max))
    places, scores = _decoded(layer, parameters, inputs, classes)
    keep = parameters.integer("keep_top_k", -1)
    rows: list[tuple[float, ...]] = []
    for number, (boxes, confidences) in enumerate(zip(places, scores, strict=True)):
        found: list[tuple[int, int]] = []
        for label in range(classes):
            if label != background:
                own = boxes[:, label if boxes.shape[1] > 1 else 0]
                chosen = _chosen(layer, parameters, own, confidences[:, label], threshold)
                found += [(label, index) for index in chosen]
        if -1 < keep < len(found):
            best = sorted(found, key=lambda each: -confidences[each[1], each[0]])[:keep]
            # By label again, and within each by score.
            found = sorted(best, key=lambda each: each[0])
        for label, index in found:
            box = boxes[index, label if boxes.shape[1] > 1 else 0]
            rows.append((number, label, confidences[index, label], *box))
    rows = rows or [(number, *[-1.0] * 6) for number in range(len(scores))]
    return [np.array(rows, np.float32).reshape(1, 1, -1, 7)]


def _ratios(layer: Layer, parameters: Message) -> list[float]:
    found = [1.0]
    for ratio in parameters.numbers("aspect_ratio"):
        if ratio <= 0:
            raise wrong(layer, f"aspect_ratio must be above 0, not {ratio:g}")
        if all(abs(ratio - known) >= 1e-6 for known in found):
            found.append(ratio)
            if parameters.flag("flip", default=True):
                found.append(1 / ratio)
    return [found[0], *(ratio for ratio in found[1:] if abs(ratio - 1) >= 1e-6)]


def _priors(
    layer: Layer, parameters: Message, inputs: Sequence[Blob], boxes: Sequence[tuple[float, float]]
) -> list[Blob]:
    height, width = image(layer, inputs[0]).shape[2:]
    image_h, image_w = _sides(layer, parameters, "img_size", "img_h", "img_w")
    if not image_h or not image_w:
        if len(inputs) < 2:
            raise wrong(layer, "needs img_size or the image as a second bottom")
        image_h, image_w = image(layer, inputs[1]).shape[2:]
    step_h, step_w = _sides(layer, parameters, "step", "step_h", "step_w")
    if not step_h or not step_w:
        step_h, step_w = image_h / height, image_w / width
    offset = parameters.number("offset", 0.5)
    y, x = np.meshgrid((np.arange(height) + offset) * step_h, (np.arange(width) + offset) * step_w, indexing="ij")
    centre = np.stack([x, y], axis=-1)[:, :, None]
    half = np.array(boxes) / 2
    corners = np.concatenate([centre - half, centre + half], axis=-1) / np.array([image_w, image_h] * 2)
    if parameters.flag("clip"):
        corners = np.clip(corners, 0, 1)
    variances = parameters.numbers("variance") or (0.1,)
    if len(variances) not in (1, 4) or min(variances) <= 0:
        raise wrong(layer, f"takes one or four variances above 0, not {list(variances)}")
    spread = np.broadcast_to(np.array(variances), corners.shape)
    return [narrow(np.stack([corners.ravel(), spread.ravel()])[None])]


def _sides(layer: Layer, parameters: Message, both: str, vertical: str, horizontal: str) -> tuple[float, float]:
    """Height and width by one name or by two; 0 where neither is given."""
    if vertical in parameters or horizontal in parameters:
        if both in parameters:
            raise wrong(layer, f"takes {both} or {vertical} and {horizontal}, not both")
        return parameters.number(vertical), parameters.number(horizontal)
    return (parameters.number(both),) * 2


def _decoded(layer: Layer, parameters: Message, inputs: Sequence[Blob], classes: int) -> tuple[Wide, Wide]:
    """Boxes [N, P, 1 or classes, 4], rounded to float32 as Caffe holds them, and scores [N, P, classes]."""
    locations, confidences, priors = inputs
    if priors.ndim != 3 or priors.shape[1] != 2 or priors.shape[2] % 4:
        raise wrong(layer, f"takes priors as [1,2,4P], not {show(priors.shape)}")
    count, number = priors.shape[2] // 4, len(locations) if locations.ndim else 0
    sets = 1 if parameters.flag("share_location", default=True) else classes
    if locations.size != number * count * sets * 4:
        raise wrong(layer, f"locations {show(locations.shape)} are not {count} priors of {sets} x 4")
    if len(confidences) != number or confidences.size != number * count * classes:
        raise wrong(layer, f"confidences {show(confidences.shape)} are not {count} priors of {classes} classes")
    corners = wide(priors)[0, 0].reshape(1, count, 1, 4)
    offsets = wide(locations).reshape(number, count, sets, 4)
    if not parameters.flag("variance_encoded_in_target"):
        offsets = offsets * wide(priors)[0, 1].reshape(1, count, 1, 4)
    code = choice(layer, parameters, "code_type", {"CORNER": 1, "CENTER_SIZE": 2, "CORNER_SIZE": 3})
    size = corners[..., 2:] - corners[..., :2]
    if code == "CORNER":
        boxes = corners + offsets
    elif code == "CORNER_SIZE":
        boxes = corners + offsets * np.concatenate([size, size], axis=-1)
    else:
        centre = (corners[..., :2] + corners[..., 2:]) / 2 + offsets[..., :2] * size
        half = np.exp(offsets[..., 2:]) * size / 2
        boxes = np.concatenate([centre - half, centre + half], axis=-1)
    return wide(narrow(boxes)), wide(confidences).reshape(number, count, classes)


def _chosen(layer: Layer, parameters: Message, boxes: Wide, scores: Wide, threshold: float) -> list[int]:
    """Which boxes of one label are left, the best first: each overlaps those kept before by no more than allowed."""
    nms = parameters.message("nms_param")
    most, eta, limit = nms.number("nms_threshold", 0.3), nms.number("eta", 1.0), nms.integer("top_k", -1)
    if most < 0 or not 0 < eta <= 1:
        raise wrong(layer, f"nms_threshold {most:g} must not be below 0, and eta {eta:g} lie above 0 and up to 1")
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > threshold]
    if limit > -1:
        order = order[:limit]
    kept: list[int] = []
    for index in order:
        if not kept or float(_overlaps(boxes[index], boxes[kept]).max()) <= most:
            kept.append(int(index))
            if eta < 1 and most > 0.5:
                most *= eta
    return kept


def _overlaps(box: Wide, others: Wide) -> Wide:
    """What ``box`` and each of ``others`` share, as a part of what they cover together."""
    shared = np.minimum(others[:, 2:], box[2:]) - np.maximum(others[:, :2], box[:2])
    common = np.where((shared > 0).all(axis=1), shared.prod(axis=1), 0)
    together = _area(box[None]) + _area(others) - common
    return np.divide(common, together, out=np.zeros_like(common), where=common > 0)


def _area(boxes: Wide) -> Wide:
    size = boxes[:, 2:] - boxes[:, :2]
    return np.where((size >= 0).all(axis=1), size.prod(axis=1), 0)
