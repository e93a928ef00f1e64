"""Boxes that suppress each other, and the sorting and looking up around it. Boxes are x1, y1, x2, y2."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir

from retarget.convert.caffe.build import Builder, Shape, Value, product, refuse
from retarget.convert.caffe.layers import scan
from retarget.convert.caffe.net import Layer

INT64, BOOL = ir.DataType.INT64, ir.DataType.BOOL
LOWEST = float(np.finfo(np.float32).min)
SMALLEST = float(np.finfo(np.float32).tiny)
MOST_BOXES = 2**22
"""Constants: nets have some 100,000 at most, and a size that is wrong must not take all memory."""
MOST_A_CELL = 4096
"""Boxes around each cell of a feature map; nets have 25 at most."""
LOWERED_TO = 0.5
"""Where ``eta`` stops to lower the threshold of overlaps."""
LOWERED_AMONG = 1000
"""Boxes a list: each two are compared, four bytes a pair."""


def suppressed(
    layer: Layer, build: Builder, boxes: Value, scores: Value, limit: int, overlap: float, least: float = LOWEST
) -> Value:
    """bool [B,k]: which of ``boxes[B,k,4]``, sorted by ``scores[B,1,k]``, are left, ``limit`` of each list at most.

    A mask, as runtimes list what they keep in orders of their own. Scores below ``least`` need not be looked at.
    """
    found = f"{open_count(layer)}_kept"
    # Overlaps are 1 at most, and ONNX allows no threshold above. Runtimes differ in what overlaps by just 0 does.
    threshold = min(max(overlap, SMALLEST), 1.0)
    limits = [build.constant(np.array(limit)), build.number(threshold), build.number(least)]
    kept = build.op("NonMaxSuppression", [boxes, scores, *limits], (found, 3), INT64)
    places = build.op("Gather", [kept, build.integers(0, 2)], (found, 2), INT64, axis=1)
    blank = build.op("Squeeze", [full(build, 0, scores), build.integers(1)], boxes.shape[:2])
    number = build.op("Shape", [kept], (1,), INT64, start=0, end=1)
    ones = build.op("Expand", [build.number(1), number], (found,))
    marks = build.op("ScatterND", [blank, places, ones], blank.shape)
    return build.op("Greater", [marks, build.number(0)], dtype=BOOL)


def suppressed_ever_more(
    layer: Layer, build: Builder, boxes: Value, scores: Value, overlap: float, eta: float, least: float
) -> Value:
    """As ``suppressed``, where each box that is kept multiplies the threshold by ``eta`` while it is above 0.5.

    NonMaxSuppression knows but one threshold: this is a Scan over the boxes of all lists.
    """
    lists, count = boxes.shape[:2]
    assert isinstance(count, int)
    if count > LOWERED_AMONG:
        raise refuse(
            layer,
            f"eta {eta:g} compares {count} boxes with each other",
            f"nms_param {{ top_k: {LOWERED_AMONG} }} or less, or an nms_threshold of {LOWERED_TO:g} or less",
        )
    alive = build.op("Greater", [scores, build.number(least)], dtype=BOOL)
    alive = build.op(
        "Transpose", [build.op("Cast", [alive], to=ir.DataType.FLOAT.value)], (count, lists, 1), perm=[2, 0, 1]
    )
    blank = build.op("Squeeze", [full(build, 0, scores), build.integers(1)], (lists, count))
    start = build.op("Slice", [blank, *map(build.integers, (0, 1, 1))], (lists, 1))
    start = build.op("Add", [start, build.number(overlap)])

    roles: dict[str, Shape] = {"kept": (lists, count), "threshold": (lists, 1)}
    roles |= {"overlaps": (lists, count), "alive": (lists, 1), "mark": (count,)}
    body, inside, (kept, threshold, overlaps, candidate, mark) = scan.body(layer, "suppression", roles)
    most = inside.op("ReduceMax", [inside.op("Mul", [kept, overlaps]), inside.integers(1)], (lists, 1), keepdims=1)
    free = inside.op("LessOrEqual", [most, threshold], dtype=BOOL)
    keep = inside.op("Mul", [candidate, inside.op("Cast", [free], to=ir.DataType.FLOAT.value)])
    new = inside.op("Add", [kept, inside.op("Mul", [keep, mark], (lists, count))])
    lowers = inside.op("Greater", [inside.op("Mul", [keep, threshold]), inside.number(LOWERED_TO)], dtype=BOOL)
    lowered = inside.op("Where", [lowers, inside.op("Mul", [threshold, inside.number(eta)]), threshold], (lists, 1))
    body.outputs.extend([new.value, lowered.value])

    marks = build.constant(np.eye(count, dtype=np.float32))
    left, _ = build.ops(
        "Scan",
        [blank, start, _overlaps(build, boxes), alive, marks],
        [(lists, count), (lists, 1)],
        body=body,
        num_scan_inputs=3,
    )
    return build.op("Greater", [left, build.number(0)], dtype=BOOL)


def _overlaps(build: Builder, boxes: Value) -> Value:
    """[k,B,k]: the intersection of each two of ``boxes[B,k,4]`` over their union."""
    lists, count = boxes.shape[:2]
    pairs: Shape = (count, lists, count)
    low, high = halves(build, boxes)
    area = build.op("ReduceProd", [build.op("Sub", [high, low]), build.integers(-1)], (lists, count), keepdims=0)
    order = build.op("Transpose", [area], (count, lists), perm=[1, 0])
    both = build.op("Add", [build.op("Unsqueeze", [order, build.integers(2)], (count, lists, 1)), area], pairs)
    edges = []
    for corner, nearer in ((low, "Max"), (high, "Min")):
        first = build.op("Transpose", [corner], (count, lists, 2), perm=[1, 0, 2])
        first = build.op("Unsqueeze", [first, build.integers(2)], (count, lists, 1, 2))
        edges.append(build.op(nearer, [first, corner], (*pairs, 2)))
    sides = build.op("Max", [build.op("Sub", [edges[1], edges[0]]), build.number(0)])
    shared = build.op("ReduceProd", [sides, build.integers(-1)], pairs, keepdims=0)
    share = build.op("Div", [shared, build.op("Sub", [both, shared])])
    return build.op(
        "Where", [build.op("Greater", [shared, build.number(0)], dtype=BOOL), share, build.number(0)], pairs
    )


def positions(build: Builder, mask: Value, count: str) -> Value:
    """int64 [count]: where ``mask`` is true, counted through all its axes."""
    flat = build.reshape(mask, (product(mask.shape),), BOOL)
    return build.op("Squeeze", [build.op("NonZero", [flat], (1, count), INT64), build.integers(0)], (count,), INT64)


def top(build: Builder, values: Value, count: int) -> tuple[Value, Value]:
    """The ``count`` largest along the last axis, sorted, and int64 where they were; of equals the first comes first."""
    shape = (*values.shape[:-1], count)
    largest, order = build.ops("TopK", [values, build.integers(count)], [shape] * 2, axis=-1)
    order.value.type = ir.TensorType(INT64)
    return largest, order


def full(build: Builder, number: float, like: Value) -> Value:
    """``number`` in the shape of ``like``."""
    shape = build.op("Shape", [like], (like.rank,), INT64)
    return build.op("Expand", [build.number(number), shape], like.shape)


def halves(build: Builder, boxes: Value) -> tuple[Value, Value]:
    """The first two and the last two of each four."""
    low, high = build.ops("Split", [boxes], [(*boxes.shape[:-1], 2)] * 2, axis=-1, num_outputs=2)
    return low, high


def open_count(layer: Layer) -> str:
    """The symbol of a dimension that the data decides."""
    return re.sub(r"\W", "_", f"{layer.name}_count")
