"""Elements written over others, or reduced into them, where indices say."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from retarget.targets.coreml.call import ANY, Call, Op
from retarget.targets.coreml.dims import plain, sized
from retarget.targets.coreml.ops.indexing import from_front
from retarget.targets.coreml.values import Result

MODES = {"none": "update", "add": "add", "mul": "mul", "max": "max", "min": "min"}
"""ONNX's reductions → MIL's modes."""


def _mode(call: Call) -> str:
    return MODES[call.attributes.get_string("reduction", "none")]


def scatter_nd(call: Call) -> Result:
    (depth,) = call.sizes(1, [-1])
    indices, updates = from_front(call, 1, list(range(depth))), call.var(2)
    if call.rank(1) == 1:
        # One place: as a list of places.
        indices = call.mil.expand_dims(x=indices, axes=[0])
        updates = call.mil.expand_dims(x=updates, axes=[0])
    return call.mil.scatter_nd(data=call.var(0), indices=indices, updates=updates, mode=_mode(call))


def scatter_elements(call: Call) -> Result:
    axis = call.axis(0)
    own, wanted = [plain(dim) for dim in call.shape(0)], [plain(dim) for dim in call.shape(1)]
    indices, updates = from_front(call, 1, [axis]), call.var(2)
    if all(size == mine for other, (mine, size) in enumerate(zip(own, wanted, strict=True)) if other != axis):
        return call.mil.scatter_along_axis(
            data=call.var(0), indices=indices, updates=updates, axis=axis, mode=_mode(call)
        )
    # Fewer places along another axis: each with all of its coordinates.
    call.sizes(0)
    shape = call.sizes(1)
    columns = [call.mil.const(val=grid.reshape(-1, 1)) for grid in np.indices(shape, np.int32)]
    columns[axis] = sized(call, indices, [None, 1])
    places = columns[0] if len(columns) == 1 else call.mil.concat(values=tuple(columns), axis=1)
    return call.mil.scatter_nd(data=call.var(0), indices=places, updates=sized(call, updates, [None]), mode=_mode(call))


OPS: Mapping[str, Op] = {
    "Scatter": Op(scatter_elements, ANY, moves=True),
    "ScatterElements": Op(scatter_elements, ANY, moves=True),
    "ScatterND": Op(scatter_nd, ANY, moves=True),
}
