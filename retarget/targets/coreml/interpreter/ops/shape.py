"""What moves elements and computes none: shapes, slices, joins, paddings. Elements stay as they are held."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.call import Call, NotInterpreted, OpFunction, Result

if TYPE_CHECKING:
    from retarget.protocols import Array


# ---- shapes


def reshape(call: Call) -> Array:
    """A size of 0 is that of x on the same axis: counted from the front, since iOS17 from the end (1 beyond x)."""
    x, sizes = call.stored("x"), call.integers("shape")
    if 0 in sizes and call.opset < 17 and len(sizes) != x.ndim:
        raise ToolchainFailure(f"shape is {sizes}, of x with {x.ndim} axes: 0 needs as many")
    own = (1,) * (len(sizes) - x.ndim) + x.shape[max(x.ndim - len(sizes), 0) :]
    # With -1 for it, numpy would divide by no elements.
    return x.reshape([known if size == 0 else size for size, known in zip(sizes, own, strict=True)])


def reshape_like(call: Call) -> Array:
    shape: list[int] = []
    given = (call.arrays("begins"), call.arrays("ends"), call.arrays("end_masks"))
    for tensor, begin, end, masked in zip(call.all_stored("ref_tensors"), *given, strict=True):
        shape += tensor.shape[int(begin) : None if bool(masked) else int(end)]
    return call.stored("x").reshape(shape)


def transpose(call: Call) -> Array:
    x = call.stored("x")
    return x.transpose(call.axes("perm", x.ndim))


def squeeze(call: Call) -> Array:
    """Axes of more than one element stay, also where they are named."""
    x = call.stored("x")
    axes = call.axes("axes", x.ndim, range(x.ndim))
    return x.reshape([size for axis, size in enumerate(x.shape) if size != 1 or axis not in axes])


def expand_dims(call: Call) -> Array:
    x = call.stored("x")
    rank = x.ndim + len(call.integers("axes"))
    return np.expand_dims(x, tuple(call.axes("axes", rank)))


def flatten2d(call: Call) -> Array:
    x, axis = call.stored("x"), call.integer("axis", 1)
    front = x.shape[:axis]
    return x.reshape(int(np.prod(front)), int(np.prod(x.shape[axis:])))


def shape(call: Call) -> Array:
    return np.array(call.stored("x").shape, np.int32)


def identity(call: Call) -> Result:
    return call.values("x")


# ---- joins and parts


def concat(call: Call) -> Array:
    values = call.all_stored("values")
    if values[0].ndim == 0:
        return np.stack(values)
    axis = call.axis("axis", values[0].ndim)
    if not call.flag("interleave", False):
        return np.concatenate(values, axis)
    joined = np.stack(values, axis + 1)
    return joined.reshape(*joined.shape[:axis], -1, *values[0].shape[axis + 1 :])


def split(call: Call) -> tuple[Array, ...]:
    x = call.stored("x")
    axis = call.axis("axis", x.ndim)
    if not call.has("split_sizes"):
        return tuple(np.split(x, call.integer("num_splits"), axis))
    sizes = call.integers("split_sizes")
    if min(sizes) < 0 or sum(sizes) != x.shape[axis]:
        raise ToolchainFailure(f"split_sizes is {sizes}, of {x.shape[axis]}")
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis))


def stack(call: Call) -> Array:
    values = call.all_stored("values")
    return np.stack(values, call.axis("axis", values[0].ndim + 1))


def slice_by_index(call: Call) -> Array:
    x = call.stored("x")
    return x[_slices(call, x.shape)]


def slice_update(call: Call) -> Array:
    x, update = call.stored("x").copy(), call.stored("update")
    slices = _slices(call, x.shape)
    if x[slices].shape != update.shape:
        raise ToolchainFailure(f"update is {list(update.shape)}, what it replaces {list(x[slices].shape)}")
    x[slices] = update
    return x


def _slices(call: Call, shape: tuple[int, ...]) -> tuple[slice | int, ...]:
    """One numpy index for each axis: a masked bound is the axis' own end, a squeezed axis is one position."""
    rank = len(shape)
    found: list[slice | int] = []
    for begin, end, stride, begins, ends, squeezed in zip(
        call.integers("begin"),
        call.integers("end"),
        call.integers("stride", [1] * rank),
        call.flags("begin_mask", [False] * rank),
        call.flags("end_mask", [False] * rank),
        call.flags("squeeze_mask", [False] * rank),
        strict=True,
    ):
        if squeezed:
            found.append(0 if begins else begin)
        else:
            found.append(slice(None if begins else begin, None if ends else end, stride))
    if len(found) != rank:
        raise ToolchainFailure(f"begin is of {len(found)} axes, x of {rank}")
    return tuple(found)


def slice_by_size(call: Call) -> Array:
    x, slices = call.stored("x"), []
    for begin, count, whole in zip(call.integers("begin"), call.integers("size"), x.shape, strict=True):
        start = begin + whole if begin < 0 else begin
        stop = whole if count == -1 else start + count
        if not 0 <= start <= stop <= whole:
            raise ToolchainFailure(f"begin is {begin} and size {count}, of {whole}")
        slices.append(slice(start, stop))
    return x[tuple(slices)]


def sliding_windows(call: Call) -> Array:
    x, size, stride = call.stored("x"), call.integer("size"), call.integer("stride", 1)
    axis = call.axis("axis", x.ndim)
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis)
    every = (*(slice(None),) * axis, slice(None, None, stride))
    return np.moveaxis(windows[every], -1, axis + 1)


# ---- repeated and turned around


def tile(call: Call) -> Array:
    x, reps = call.stored("x"), call.integers("reps")
    if len(reps) != x.ndim or min(reps, default=1) < 1:
        raise ToolchainFailure(f"reps is {reps}, of x with {x.ndim} axes")
    call.hold([size * count for size, count in zip(x.shape, reps, strict=True)])
    return np.tile(x, reps)


def reverse(call: Call) -> Array:
    x = call.stored("x")
    return np.flip(x, tuple(call.axes("axes", x.ndim, range(x.ndim))))


def reverse_sequence(call: Call) -> Array:
    x, lengths = call.stored("x"), call.integers("lengths")
    along, batch = call.axis("seq_axis", x.ndim, 0), call.axis("batch_axis", x.ndim, 0)
    if along == batch or len(lengths) != x.shape[batch] or not all(0 <= each <= x.shape[along] for each in lengths):
        raise ToolchainFailure(f"lengths is {lengths}, of {list(x.shape)} along {along} for each of {batch}")
    positions = np.arange(x.shape[along])
    rows = [np.where(positions < length, length - 1 - positions, positions) for length in lengths]
    taken = np.stack(rows, axis=1) if along < batch else np.stack(rows)
    others = [axis for axis in range(x.ndim) if axis not in (along, batch)]
    return np.take_along_axis(x, np.expand_dims(taken, others), axis=along)


_PADDINGS = {"reflect": "reflect", "replicate": "edge"}
"""What numpy calls the modes."""


def pad(call: Call) -> Array:
    """``pad`` has two numbers for each of the last axes."""
    x, numbers, mode = call.stored("x"), call.integers("pad"), call.text("mode", "constant")
    if len(numbers) % 2 or len(numbers) > 2 * x.ndim or min(numbers, default=0) < 0:
        raise ToolchainFailure(f"pad is {numbers}, of x with {x.ndim} axes")
    pairs = [(0, 0)] * (x.ndim - len(numbers) // 2) + list(zip(numbers[::2], numbers[1::2], strict=True))
    call.hold([size + before + after for size, (before, after) in zip(x.shape, pairs, strict=True)])
    if mode == "constant":
        value = call.array("constant_val") if call.has("constant_val") else np.float32(0)
        return np.pad(x, pairs, constant_values=value.astype(x.dtype))
    if mode not in _PADDINGS:
        raise NotInterpreted(f"mode is '{mode}'")
    for size, pair in zip(x.shape, pairs, strict=True):
        if max(pair) > (size - 1 if mode == "reflect" else size):
            raise NotInterpreted(f"mode is '{mode}', and pad {numbers} is more than there is of {list(x.shape)}")
    return np.pad(x, pairs, mode="reflect" if mode == "reflect" else "edge")


# ---- made from numbers


def fill(call: Call) -> Array:
    sizes = call.integers("shape")
    call.hold(sizes)
    return np.full(sizes, _filling(call))


def fill_like(call: Call) -> Array:
    return np.full(call.stored("ref_tensor").shape, _filling(call))


def _filling(call: Call) -> Array:
    return call.stored("value") if call.has("value") else np.zeros((), np.float32)


def range_1d(call: Call) -> Array:
    start, end, step = call.stored("start"), call.stored("end"), call.stored("step")
    first, last, by = call.number("start"), call.number("end"), call.number("step")
    if not start.dtype == end.dtype == step.dtype or by == 0:
        raise ToolchainFailure(f"start, end and step are {first} {last} {by}")
    count = max(math.ceil((last - first) / by), 0)
    if count != max(math.ceil((end - start) / step), 0):
        raise NotInterpreted(f"start, end and step are {first} {last} {by}: float32 and float64 count differently")
    call.hold([count])
    return (first + np.arange(count) * by).astype(call.dtype())


def one_hot(call: Call) -> Array:
    indices, size = call.stored("indices"), call.integer("one_hot_vector_size")
    if ((indices < 0) | (indices >= size)).any():
        raise NotInterpreted(f"an index is outside of 0 to {size - 1}: what that gives is not documented")
    axis = call.axis("axis", indices.ndim + 1, -1)
    call.hold([*indices.shape[:axis], size, *indices.shape[axis:]])
    on = call.stored("on_value") if call.has("on_value") else np.array(1, np.int32)
    off = call.stored("off_value") if call.has("off_value") else np.array(0, np.int32)
    places = np.arange(size).reshape(-1, *(1,) * (indices.ndim - axis))
    return np.where(np.expand_dims(indices, axis) == places, on, off)


def band_part(call: Call) -> Array:
    x = call.stored("x")
    lower, upper = call.integer("lower", -1), call.integer("upper", -1)
    rows, columns = np.arange(x.shape[-2])[:, None], np.arange(x.shape[-1])
    kept = ((lower < 0) | (rows - columns <= lower)) & ((upper < 0) | (columns - rows <= upper))
    return np.where(kept, x, np.zeros((), x.dtype))


def non_zero(call: Call) -> Array:
    return np.argwhere(call.stored("x")).astype(np.int32)


# ---- blocks of space, of images [N, C, H, W]


def depth_to_space(call: Call) -> Array:
    """The position in a block is the outer part of a channel's number, as in TensorFlow."""
    x, block = call.stored("x"), call.integer("block_size")
    n, c, h, w = x.shape
    cells = x.reshape(n, block, block, c // block**2, h, w)
    return cells.transpose(0, 3, 4, 1, 5, 2).reshape(n, c // block**2, h * block, w * block)


def space_to_depth(call: Call) -> Array:
    """The inverse of ``depth_to_space``."""
    x, block = call.stored("x"), call.integer("block_size")
    n, c, h, w = x.shape
    cells = x.reshape(n, c, h // block, block, w // block, block)
    return cells.transpose(0, 3, 5, 1, 2, 4).reshape(n, c * block**2, h // block, w // block)


def pixel_shuffle(call: Call) -> Array:
    """The position in a block is the inner part of a channel's number, as in PyTorch."""
    x, factor = call.stored("x"), call.integer("upscale_factor")
    n, c, h, w = x.shape
    cells = x.reshape(n, c // factor**2, factor, factor, h, w)
    return cells.transpose(0, 1, 4, 2, 5, 3).reshape(n, c // factor**2, h * factor, w * factor)


def pixel_unshuffle(call: Call) -> Array:
    """The inverse of ``pixel_shuffle``."""
    x, factor = call.stored("x"), call.integer("downscale_factor")
    n, c, h, w = x.shape
    cells = x.reshape(n, c, h // factor, factor, w // factor, factor)
    return cells.transpose(0, 1, 3, 5, 2, 4).reshape(n, c * factor**2, h // factor, w // factor)


def space_to_batch(call: Call) -> Array:
    """The position in a block is the outer part of an image's number, as in TensorFlow."""
    x, (high, wide) = call.stored("x"), call.integers("block_shape")
    (top, bottom), (left, right) = call.array("paddings").tolist()
    x = np.pad(x, [(0, 0), (0, 0), (top, bottom), (left, right)])
    n, c, h, w = x.shape
    cells = x.reshape(n, c, h // high, high, w // wide, wide)
    return cells.transpose(3, 5, 0, 1, 2, 4).reshape(n * high * wide, c, h // high, w // wide)


def batch_to_space(call: Call) -> Array:
    """The inverse of ``space_to_batch``."""
    x, (high, wide) = call.stored("x"), call.integers("block_shape")
    (top, bottom), (left, right) = call.array("crops").tolist()
    n, c, h, w = x.shape
    cells = x.reshape(high, wide, n // (high * wide), c, h, w)
    whole = cells.transpose(2, 3, 4, 0, 5, 1).reshape(n // (high * wide), c, h * high, w * wide)
    return whole[:, :, top : h * high - bottom, left : w * wide - right]


OPS: Mapping[str, OpFunction] = {
    "band_part": band_part,
    "batch_to_space": batch_to_space,
    "concat": concat,
    "depth_to_space": depth_to_space,
    "expand_dims": expand_dims,
    "fill": fill,
    "fill_like": fill_like,
    "flatten2d": flatten2d,
    "identity": identity,
    "non_zero": non_zero,
    "one_hot": one_hot,
    "pad": pad,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "range_1d": range_1d,
    "reshape": reshape,
    "reshape_like": reshape_like,
    "reverse": reverse,
    "reverse_sequence": reverse_sequence,
    "shape": shape,
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "slice_update": slice_update,
    "sliding_windows": sliding_windows,
    "space_to_batch": space_to_batch,
    "space_to_depth": space_to_depth,
    "split": split,
    "squeeze": squeeze,
    "stack": stack,
    "tile": tile,
    "transpose": transpose,
}
