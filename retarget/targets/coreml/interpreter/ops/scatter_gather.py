"""Elements taken from, and put to, places that are computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.call import Call, NotInterpreted, OpFunction, Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

Index: TypeAlias = "tuple[NDArray[np.intp], ...]"


def gather(call: Call) -> Tensor:
    """Slices along an axis; the first ``batch_dims`` axes of both go together."""
    x, batches = call.stored("x"), call.integer("batch_dims", 0)
    axis = call.axis("axis", x.ndim, 0)
    indices = _inside(call, call.stored("indices"), x.shape[axis])
    if batches == 0:
        return np.asarray(x.take(indices, axis))
    shape = x.shape[:batches]
    if not 0 < batches <= axis or indices.shape[:batches] != shape:
        raise ToolchainFailure(f"batch_dims {batches} of x {list(x.shape)} and indices {list(indices.shape)}")
    result = [
        each.take(at, axis - batches)
        for each, at in zip(
            x.reshape(-1, *x.shape[batches:]), indices.reshape(-1, *indices.shape[batches:]), strict=True
        )
    ]
    return np.stack(result).reshape(*shape, *result[0].shape)


def gather_along_axis(call: Call) -> Tensor:
    x, indices = call.stored("x"), call.stored("indices")
    axis = call.axis("axis", x.ndim, 0)
    return x[_along(call, x, indices, axis)]


def gather_nd(call: Call) -> Tensor:
    """Slices at the places that the last axis of ``indices`` has the coordinates of."""
    x, indices, batches = call.stored("x"), call.stored("indices"), call.integer("batch_dims", 0)
    shape = x.shape[:batches]
    if indices.shape[:batches] != shape:
        raise ToolchainFailure(f"batch_dims {batches} of x {list(x.shape)} and indices {list(indices.shape)}")
    count, rest = math.prod(shape), x.shape[batches:]
    places = _coordinates(call, indices, rest)
    flat = tuple(each.reshape(count, -1) for each in places)
    found: Tensor = x.reshape(count, *rest)[(np.arange(count)[:, None], *flat)]
    return found.reshape(*indices.shape[:-1], *rest[indices.shape[-1] :])


def scatter(call: Call) -> Tensor:
    data, indices = call.array("data"), call.stored("indices")
    axis = call.axis("axis", data.ndim, 0)
    places = _inside(call, indices, data.shape[axis])
    # The axis in front: so one array of places selects whole slices.
    turned = np.moveaxis(data, axis, 0).copy()
    updates = np.moveaxis(call.array("updates"), range(axis, axis + places.ndim), range(places.ndim))
    _put(call, turned, (places,), updates)
    return np.moveaxis(turned, 0, axis)


def scatter_along_axis(call: Call) -> Tensor:
    data, indices = call.array("data").copy(), call.stored("indices")
    axis = call.axis("axis", data.ndim, 0)
    return _put(call, data, _along(call, data, indices, axis), call.array("updates"))


def scatter_nd(call: Call) -> Tensor:
    data = call.array("data").copy()
    return _put(call, data, _coordinates(call, call.stored("indices"), data.shape), call.array("updates"))


# ---- places


def _inside(call: Call, indices: Tensor, size: int) -> NDArray[np.intp]:
    """Places along an axis of ``size``; before iOS17 negative ones count from its end."""
    places = indices.astype(np.intp)
    if call.opset < 17:
        places = np.where(places < 0, places + size, places)
    if places.size and not 0 <= places.min() <= places.max() < size:
        found = indices[(places < 0) | (places >= size)].reshape(-1)[:5].tolist()
        if call.flag("validate_indices", False):
            raise ToolchainFailure(f"indices {found} are outside of {size} elements, and validate_indices is set")
        raise NotInterpreted(f"indices {found} outside of {size} elements: what they select is undefined")
    return places


def _along(call: Call, data: Tensor, indices: Tensor, axis: int) -> Index:
    if [*indices.shape[:axis], *indices.shape[axis + 1 :]] != [*data.shape[:axis], *data.shape[axis + 1 :]]:
        raise ToolchainFailure(f"indices {list(indices.shape)} along axis {axis} of {list(data.shape)}")
    places: list[NDArray[np.intp]] = list(np.ogrid[tuple(slice(size) for size in indices.shape)])
    places[axis] = _inside(call, indices, data.shape[axis])
    return tuple(places)


def _coordinates(call: Call, indices: Tensor, sizes: tuple[int, ...]) -> Index:
    depth = indices.shape[-1]
    if depth > len(sizes):
        raise ToolchainFailure(f"{depth} coordinates of places among {list(sizes)}")
    return tuple(_inside(call, indices[..., axis], sizes[axis]) for axis in range(depth))


# ---- what becomes of an element

MODES = MappingProxyType(
    {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum}
)


def _put(call: Call, data: Tensor, places: Index, updates: Tensor) -> Tensor:
    """Change ``data`` at ``places``, each of several updates of one element in turn, and return it."""
    mode = call.text("mode", "add")
    shape = data[places].shape
    if updates.shape != shape:
        raise ToolchainFailure(f"updates {list(updates.shape)}, {list(shape)} are expected")
    if mode == "update":
        data[places] = updates
        if not np.array_equal(data[places], updates, equal_nan=data.dtype.kind == "f"):
            raise NotInterpreted("an element has several updates: which is the last one is undefined")
    elif mode in MODES and not (mode == "div" and data.dtype.kind != "f"):
        MODES[mode].at(data, places, updates)
    else:
        raise NotInterpreted(f"mode '{mode}' of {data.dtype.name}")
    return data


OPS: Mapping[str, OpFunction] = {
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gather_nd": gather_nd,
    "scatter": scatter,
    "scatter_along_axis": scatter_along_axis,
    "scatter_nd": scatter_nd,
}
