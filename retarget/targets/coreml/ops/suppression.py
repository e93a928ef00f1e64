"""NonMaxSuppression, as a loop that takes the best box of each class of each image at once.

MIL has an operator of that name, but it judges a box by the best of its classes, and keeps one where none is good.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from retarget.targets.coreml.call import Call, Op
from retarget.targets.coreml.dims import EMPTY, ints
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.values import Refusal, Result

_SIDES = 4


def non_max_suppression(call: Call) -> Result:
    """Of boxes [images, boxes, 4] and scores [images, classes, boxes]: rows of image, class and box, best first."""
    images, classes, boxes = call.sizes(1)
    call.sizes(0)
    most = min(call.numbers(2, "how many boxes are selected")[0], boxes) if call.has(2) else 0
    if most <= 0:
        raise Refusal(EMPTY)
    mil, shape = call.mil, (images, classes, boxes)
    overlap = float(call.array(3, "the threshold of overlaps").reshape(-1)[0]) if call.has(3) else 0.0
    scores, sides = call.var(1), _sides(call, shape)
    waiting = mil.const(val=np.ones(shape, np.int32))
    if call.has(4):
        limit = float(call.array(4, "the threshold of scores").reshape(-1)[0])
        waiting = mil.cast(x=mil.greater(x=scores, y=limit), dtype="int32")
    places = np.arange(most, dtype=np.int32)
    none = mil.const(val=np.full(shape, -np.inf, _kind(call)))

    def goes_on(step: Var, waiting: Var, chosen: Var) -> Var:
        del chosen
        is_any = mil.reduce_max(x=waiting, axes=[0, 1, 2], keep_dims=False)
        return mil.logical_and(x=mil.less(x=step, y=np.int32(most)), y=mil.greater(x=is_any, y=np.int32(0)))

    def taken(step: Var, waiting: Var, chosen: Var) -> tuple[Var, Var, Var]:
        is_waiting = mil.cast(x=waiting, dtype="bool")
        left = mil.select(cond=is_waiting, a=scores, b=none)
        best = mil.reduce_argmax(x=left, axis=-1, keep_dims=True)
        is_one = mil.greater(x=mil.reduce_max(x=waiting, axes=[-1], keep_dims=True), y=np.int32(0))
        here = mil.logical_and(x=mil.equal(x=places, y=step), y=is_one)
        spread = mil.add(x=best, y=np.zeros((images, classes, most), np.int32))
        chosen = mil.select(cond=here, a=spread, b=chosen)
        is_far = mil.logical_not(x=_overlapping(call, sides, best, overlap))
        is_other = mil.not_equal(x=best, y=np.arange(boxes, dtype=np.int32))
        stays = mil.logical_and(x=mil.logical_and(x=is_far, y=is_other), y=is_waiting)
        return mil.add(x=step, y=np.int32(1)), mil.cast(x=stays, dtype="int32"), chosen

    nowhere = mil.const(val=np.full((images, classes, most), -1, np.int32))
    start = (mil.const(val=np.int32(0)), waiting, nowhere)
    _, _, chosen = mil.while_loop(_cond=goes_on, _body=taken, loop_vars=start)
    is_there = mil.cast(x=mil.greater_equal(x=chosen, y=np.int32(0)), dtype="int32")
    rows = mil.non_zero(x=is_there)
    # Of computed indices `gather_nd` takes the first place, whatever they are.
    steps = np.array([classes * most, most, 1], np.int32)
    at = mil.reduce_sum(x=mil.mul(x=rows, y=steps), axes=[1], keep_dims=False)
    numbers = mil.gather(x=mil.reshape(x=chosen, shape=[-1]), indices=at, axis=0)
    pairs = mil.slice_by_index(
        x=rows, begin=ints(call, 0, 0), end=ints(call, 0, 2), begin_mask=[True, False], end_mask=[True, False]
    )
    return mil.concat(values=(pairs, mil.expand_dims(x=numbers, axes=[1])), axis=1)


def _sides(call: Call, shape: tuple[int, int, int]) -> list[Var]:
    """The least and the largest coordinate along both axes, each for every class: [images, classes, boxes]."""
    mil, (_, classes, _) = call.mil, shape
    columns = [mil.squeeze(x=each, axes=[2]) for each in mil.split(x=call.var(0), num_splits=_SIDES, axis=2)]
    found: list[Var] = []
    for axis in range(2):
        first, second = columns[axis], columns[axis + 2]
        if call.attributes.get_int("center_point_box", 0):
            half = mil.mul(x=second, y=0.5)
            pair = mil.sub(x=first, y=half), mil.add(x=first, y=half)
        else:
            pair = mil.minimum(x=first, y=second), mil.maximum(x=first, y=second)
        found += [mil.tile(x=mil.expand_dims(x=each, axes=[1]), reps=[1, classes, 1]) for each in pair]
    return found


def _overlapping(call: Call, sides: list[Var], best: Var, overlap: float) -> Var:
    """Which boxes share more than ``overlap`` of what they and the ``best`` cover together."""
    mil = call.mil
    shared: Var | None = None
    areas: list[Var | None] = [None, None]
    for low, high in (sides[:2], sides[2:]):
        own = [mil.gather_along_axis(x=each, indices=best, axis=2) for each in (low, high)]
        between = mil.sub(x=mil.minimum(x=high, y=own[1]), y=mil.maximum(x=low, y=own[0]))
        between = mil.maximum(x=between, y=0.0)
        lengths = mil.sub(x=high, y=low), mil.sub(x=own[1], y=own[0])
        shared = between if shared is None else mil.mul(x=shared, y=between)
        areas = [each if area is None else mil.mul(x=area, y=each) for area, each in zip(areas, lengths, strict=True)]
    together = mil.sub(x=mil.add(x=areas[0], y=areas[1]), y=shared)
    # Boxes that share nothing may cover nothing: there is nothing to divide by, and no product is 0 > 0.
    is_shared = mil.greater(x=shared, y=0.0)
    part = mil.real_div(x=shared, y=mil.select(cond=is_shared, a=together, b=np.ones(1, _kind(call))))
    return mil.logical_and(x=is_shared, y=mil.greater(x=part, y=overlap))


def _kind(call: Call) -> type[np.float16 | np.float32]:
    return np.float16 if call.dtype(0) == np.float16 else np.float32


OPS: Mapping[str, Op] = {
    "NonMaxSuppression": Op(non_max_suppression),
}
