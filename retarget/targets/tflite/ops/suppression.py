"""NonMaxSuppression, whose result has as many rows as boxes are selected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from retarget.targets.tflite.call import Call, Op
from retarget.targets.tflite.ops.counted import settled
from retarget.targets.tflite.ops.parts import cut
from retarget.targets.tflite.ops.shape import nothing, reshaped
from retarget.targets.tflite.ops.sorting import best_of
from retarget.targets.tflite.program import Constant, Options, Shape, Tensor
from retarget.targets.tflite.values import Operand, Refusal, Value

MOST = 256
"""Images times classes that are written one after the other."""


def non_max_suppression(call: Call) -> Operand:
    """One NON_MAX_SUPPRESSION_V4 for each class of each image, and of what it pads only the rows that count.

    The kernel takes boxes of equal scores in the order of its heap, ONNX that of the lower index first. So it gets the
    boxes in the order of their scores, and in place of these falling numbers of which no two are the same.
    """
    boxes, scores = call.value(0), call.value(1)
    images, classes, count = scores.shape
    most = min(int(call.array(2, "how many boxes are selected").reshape(-1)[0]), count) if call.has(2) else 0
    if 0 in (*boxes.shape, *scores.shape) or most <= 0:
        return nothing(call, (0, 3), Constant.of(0, "int64"))
    if images * classes > MOST:
        raise Refusal(f"{images} x {classes} classes are more than {MOST}, and each is written by itself")
    overlap = float(call.array(3, "the threshold of overlaps").reshape(-1)[0]) if call.has(3) else 0.0
    if not 0 <= overlap < 1:
        raise Refusal(f"iou_threshold={overlap:g}: the kernel takes 0 to 1, and at 1 suppresses what ONNX keeps")
    sorted_scores, order = best_of(call, scores, count)
    falling: Operand = Constant.of(np.arange(count, 0, -1, dtype=np.float32))
    if call.has(4):
        # What scores too little comes last, and is below 0 here.
        limit = Constant.of(call.array(4, "the threshold of scores").reshape(()))
        is_high = call.binary("GREATER", sorted_scores, limit, np.bool_)
        inputs = [is_high, falling, Constant.of(-1.0, "float32")]
        falling = call.emit("SELECT_V2", inputs, scores.shape, np.float32, Options("SelectV2Options"))
    corners = _corners(call, boxes) if call.attributes.get_int("center_point_box", 0) else boxes
    rows: list[Value] = []
    for image in range(images):
        of_image = _row(call, corners, (image,))
        for kind in range(classes):
            places = _row(call, order, (image, kind))
            ranks = falling if isinstance(falling, Constant) else _row(call, falling, (image, kind))
            by_score = call.emit(
                "GATHER", [of_image, places], (count, 4), np.float32, Options("GatherOptions", {"axis": 0})
            )
            chosen, valid = _selected(call, by_score, ranks, most, overlap)
            numbers = call.emit("GATHER", [places, chosen], (most,), np.int32, Options("GatherOptions", {"axis": 0}))
            pair = Constant.of(np.tile(np.array([image, kind], np.int32), (most, 1)))
            options = Options("ConcatenationOptions", {"axis": 1})
            padded = call.emit("CONCATENATION", [pair, call.reshape(numbers, (most, 1))], (most, 3), np.int32, options)
            rows.append(_first(call, padded, valid))
    options = Options("ConcatenationOptions", {"axis": 0})
    whole = rows[0] if len(rows) == 1 else _counted(call, "CONCATENATION", rows, (len(rows) * most, 3), options)
    return settled(call, whole)


def _row(call: Call, value: Operand, places: tuple[int, ...]) -> Operand:
    """``value`` at ``places`` of its first axes."""
    part = cut(call, value, {axis: slice(place, place + 1) for axis, place in enumerate(places)})
    return reshaped(call, part, value.shape[len(places) :])


def _corners(call: Call, boxes: Value) -> Operand:
    """[..., x, y, width, height] as two opposite corners."""
    centre, size = (cut(call, boxes, {2: slice(start, start + 2)}) for start in (0, 2))
    half = call.binary("MUL", size, Constant.of(0.5, "float32"))
    corners = [call.binary(code, centre, half) for code in ("SUB", "ADD")]
    return call.emit("CONCATENATION", corners, boxes.shape, options=Options("ConcatenationOptions", {"axis": 2}))


def _selected(call: Call, boxes: Operand, ranks: Operand, most: int, overlap: float) -> tuple[Value, Value]:
    """Which of ``boxes`` are selected, padded to ``most``, and how many they are."""
    # The kernel suppresses at the threshold, too, ONNX above it.
    beyond = np.nextafter(np.float32(overlap), np.float32(2))
    numbers = [Constant.of(most, "int32"), Constant.of(beyond), Constant.of(0.0, "float32")]
    made = call.result((most,), np.int32), call.result((), np.int32)
    tensors = [tensor for value in made for tensor in value.forms.values()]
    inputs = [call.tensor(each) for each in (boxes, ranks, *numbers)]
    options = Options("NonMaxSuppressionV4Options")
    call.lowering.add("NON_MAX_SUPPRESSION_V4", inputs, tensors, options, call.node.name or "")
    return made


def _first(call: Call, rows: Value, count: Value) -> Value:
    """As many of ``rows`` as ``count`` says when the model runs."""
    width = Constant.of(rows.shape[1], "int32")
    size = call.emit("PACK", [count, width], (2,), np.int32, Options("PackOptions", {"valuesCount": 2, "axis": 0}))
    return _counted(call, "SLICE", [rows, call.ints([0, 0]), size], rows.shape, Options("SliceOptions"))


def _counted(call: Call, code: str, inputs: Sequence[Operand | Tensor], shape: Shape, options: Options) -> Value:
    """A result with a first axis that is as long as the data make it, at most as ``shape`` says."""
    return call.emit(code, inputs, shape, np.int32, options).counted()


OPS: Mapping[str, Op] = {
    "NonMaxSuppression": Op(non_max_suppression),
}
