"""Boxes of what was detected: of those that overlap the best one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.call import Call, NotInterpreted, OpFunction, Tensor, Value


def non_maximum_suppression(call: Call) -> tuple[Value, ...]:
    """Boxes (middle of width, middle of height, width, height), their scores, and their places; places end with -1.

    As coremltools' tests have it: a box counts with the best of its scores, and of an image where none is above the
    threshold the best box is kept.
    """
    last = call.opset >= 17  # Boxes are along the last axis, there is no threshold, and they are not counted.
    boxes, scores = call.array("boxes"), call.array("scores")
    if last:
        boxes, scores = boxes.swapaxes(1, 2), scores.swapaxes(1, 2)
    if boxes.shape[2:] != (4,) or boxes.shape[:2] != scores.shape[:2]:
        raise ToolchainFailure(f"boxes {list(boxes.shape)} with scores {list(scores.shape)}")
    most, threshold = call.integer("max_boxes"), -np.inf if last else call.number("score_threshold")
    call.hold((len(boxes), most), 2)
    kept_boxes = np.zeros((len(boxes), most, 4), boxes.dtype)
    kept_scores = np.zeros((len(boxes), most, scores.shape[2]), scores.dtype)
    places = np.full((len(boxes), most), -1, np.int32)
    counts = np.zeros(len(boxes), np.int32)
    for image in range(len(boxes)):
        chosen = _chosen(call, boxes[image], scores[image], threshold)[:most]
        count = counts[image] = len(chosen)
        places[image, :count] = chosen
        kept_boxes[image, :count], kept_scores[image, :count] = boxes[image, chosen], scores[image, chosen]
    if last:
        return kept_boxes.swapaxes(1, 2), kept_scores.swapaxes(1, 2), places
    return kept_boxes, kept_scores, places, counts


def _chosen(call: Call, boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """Places of the boxes of one image that are kept, the best first."""
    best = scores.max(1)
    if (best == threshold).any():
        raise NotInterpreted(f"a score is score_threshold {threshold:g} exactly")
    apart = call.flag("per_class_suppression", False)
    order = np.argsort(-best, kind="stable")
    classes = scores.argmax(1) if apart else np.zeros(len(boxes), np.intp)
    limit = np.float32(call.number("iou_threshold"))
    kept: list[int] = []
    for index in order[best[order] > threshold].tolist():
        rivals = [other for other in kept if classes[other] == classes[index]]
        if not rivals or not (_overlaps(boxes[rivals], boxes[index]) > limit).any():
            kept.append(index)
    return kept or order[:1].tolist()


def _overlaps(boxes: Tensor, box: Tensor) -> Tensor:
    """Of what both cover together the part that both cover; 0 for boxes without an area."""
    shared: Tensor = np.ones(len(boxes), boxes.dtype)
    for low, high in _sides(boxes, box):
        shared = shared * np.maximum(high - low, 0)
    union = boxes[:, 2] * boxes[:, 3] + box[2] * box[3] - shared
    return np.where(shared > 0, shared / np.where(union > 0, union, 1), 0)


def _sides(boxes: Tensor, box: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Where what is shared begins and ends, along both axes."""
    for axis in range(2):
        half, own = boxes[:, 2 + axis] / 2, box[2 + axis] / 2
        yield (
            np.maximum(boxes[:, axis] - half, box[axis] - own),
            np.minimum(boxes[:, axis] + half, box[axis] + own),
        )


OPS: Mapping[str, OpFunction] = {"non_maximum_suppression": non_maximum_suppression}
