"""Elements picked by index."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from retarget.targets.ncnn.call import ANY, Call, Op
from retarget.targets.ncnn.ops.shape import held, in_shape, moving
from retarget.targets.ncnn.ops.slices import concatenated, cut
from retarget.targets.ncnn.program import Weight
from retarget.targets.ncnn.values import Refusal, Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retarget.targets.ncnn.values import Result


def gather(call: Call) -> Result:
    axis = call.axis(0)
    if call.is_constant(1):
        indices = call.array(1, "the indices")
        size = call.shape(0)[axis]
        places = [int(index) % size for index in indices.reshape(-1)]
        value = call.value(0)
        shape = (*value.shape[:axis], *indices.shape, *value.shape[axis + 1 :])
        return in_shape(call, taken(call, value, axis, places), shape)
    if call.is_constant(0) and axis == 0:
        return looked_up(call)
    raise Refusal("its indices are computed")


def taken(call: Call, value: Value, axis: int, places: Sequence[int]) -> Value:
    """The elements of ``axis`` at ``places``: runs that follow each other are parts, joined."""
    runs: list[range] = []
    for place in places:
        if runs and place == runs[-1].stop:
            runs[-1] = range(runs[-1].start, place + 1)
        else:
            runs.append(range(place, place + 1))
    parts = [cut(call, value, {axis: (run.start, run.stop)}) for run in runs]
    if axis == 0:
        parts = [call.with_rows(part, 1) for part in parts]
    return concatenated(call, parts, axis)


def looked_up(call: Call) -> Result:
    """Embed, of which an index outside of the table is the first or the last: ONNX counts negative ones from the end,
    and what the user feeds is not known here."""
    indices = call.value(1)
    if indices.source is None:
        raise Refusal("its indices are computed")
    table = call.array(0, "the table")
    rows, width = table.shape[0], math.prod(table.shape[1:])
    blob = call.lowering.fed(indices, "index")
    params = {0: width, 1: rows, 3: table.size}
    made = call.add("Embed", (blob,), (blob.size, width), params, [Weight(table.reshape(rows, width))])
    return held(Value((), table.dtype, None), made, (*indices.shape, *table.shape[1:]))


OPS: Mapping[str, Op] = {"Gather": Op(moving(gather), ANY)}
