"""Integers that stand for real numbers, and weights that are stored compressed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.call import Call, NotInterpreted, OpFunction, Tensor
from retarget.targets.coreml.interpreter.files import restored

if TYPE_CHECKING:
    from retarget.protocols import Array

PALETTES = {2: 1, 4: 2, 8: 3, 16: 4, 64: 6, 256: 8}
"""Sizes of lookup tables to the bits of an index."""


def quantize(call: Call) -> Tensor:
    """Rounded to even, as coremltools folds it."""
    x = call.array("input")
    steps = np.rint(x / _along(call, "scale", x.ndim))
    if call.has("zero_point"):
        steps = steps + _along(call, "zero_point", x.ndim)
    wanted = call.dtype()
    if wanted.name != call.text("output_dtype") or wanted.name not in ("int8", "uint8"):
        raise ToolchainFailure(f"output_dtype '{call.text('output_dtype')}', declared is {wanted.name}")
    limits = np.iinfo(wanted.name)
    return np.clip(steps, limits.min, limits.max).astype(wanted)


def dequantize(call: Call) -> Tensor:
    return _dequantized(call, call.array("input"))


def constexpr_affine_dequantize(call: Call) -> Tensor:
    return _dequantized(call, call.array("quantized_data"))


def constexpr_blockwise_shift_scale(call: Call) -> Tensor:
    """Each scale and offset counts for a block of neighbours along every axis."""
    return _shifted_and_scaled(call, call.array("data"))


def constexpr_lut_to_dense(call: Call) -> Tensor:
    lut, indices = call.stored("lut"), call.stored("indices")
    if not call.has("shape"):
        return _looked_up(call, lut, indices)
    shape = tuple(call.integers("shape"))  # Before iOS18: one table, and packed indices.
    bits = _bits(lut.size)
    call.hold(shape)
    if len(indices) != -(-math.prod(shape) * bits // 8):
        raise ToolchainFailure(f"{len(indices)} bytes of indices of {bits} bits for {list(shape)}")
    found: Tensor = lut[restored(indices, f"uint{bits}", shape)]
    return found


def constexpr_sparse_to_dense(call: Call) -> Tensor:
    mask, values = call.stored("mask"), call.stored("nonzero_data")
    if call.has("shape"):  # Before iOS18: packed bits.
        shape = tuple(call.integers("shape"))
        call.hold(shape)
        return _dense(values, restored(mask, "uint1", shape))
    return _dense(values, mask)


def constexpr_lut_to_sparse(call: Call) -> tuple[Tensor, Tensor]:
    """The mask, and what is looked up where it is set."""
    lut, mask = call.stored("lut"), call.stored("indices_mask")
    result = _looked_up(call, lut, _dense(call.stored("indices_nonzero_data"), mask))
    if lut.shape[-1] > 1:
        mask = np.repeat(mask, lut.shape[-1], call.axis("vector_axis", mask.ndim))
    return mask, result[mask != 0]


def constexpr_sparse_blockwise_shift_scale(call: Call) -> tuple[Tensor, Tensor]:
    """The mask, and what is dequantized where it is set."""
    mask = call.stored("data_mask")
    return mask, _shifted_and_scaled(call, _dense(call.array("nonzero_data"), mask))[mask != 0]


def constexpr_cast(call: Call) -> Tensor:
    if call.text("output_dtype") != "fp32":
        raise NotInterpreted(f"output_dtype '{call.text('output_dtype')}'")
    return call.array("source_val")


def _dequantized(call: Call, data: Tensor) -> Tensor:
    steps: Tensor = data.astype(np.float32)
    if call.has("zero_point"):
        steps = steps - _along(call, "zero_point", data.ndim)
    return steps * _along(call, "scale", data.ndim)


def _along(call: Call, name: str, rank: int) -> Tensor:
    """A number, or one for each place along ``axis``, in float32 and of axes that broadcast to ``rank``."""
    given = call.array(name).astype(np.float32)
    if given.ndim == 0:
        return given
    axis = call.axis("axis", rank)
    return given.reshape([-1 if each == axis else 1 for each in range(rank)])


def _shifted_and_scaled(call: Call, data: Tensor) -> Tensor:
    scale, offset = call.array("scale"), call.optional("offset")
    if scale.ndim != data.ndim or any(size % count for size, count in zip(data.shape, scale.shape, strict=True)):
        raise ToolchainFailure(f"scales {list(scale.shape)} of data {list(data.shape)}")
    apart = list(itertools.chain(*((n, size // n) for size, n in zip(data.shape, scale.shape, strict=True))))
    each = list(itertools.chain(*((n, 1) for n in scale.shape)))
    result = data.astype(np.float32).reshape(apart)
    if offset is not None:
        result = result - offset.astype(np.float32).reshape(each)
    return (result * scale.reshape(each)).reshape(data.shape)


def _looked_up(call: Call, lut: Tensor, indices: Tensor) -> Tensor:
    """Values, or vectors along ``vector_axis``, by a table for each block of indices."""
    blocks: Sequence[int] = lut.shape[:-2]
    if len(blocks) != indices.ndim or any(size % n for size, n in zip(indices.shape, blocks, strict=True)):
        raise ToolchainFailure(f"tables {list(lut.shape)} of indices {list(indices.shape)}")
    _bits(lut.shape[-2])
    grid = np.ogrid[tuple(slice(size) for size in indices.shape)]
    places = (at // (size // n) for at, size, n in zip(grid, indices.shape, blocks, strict=True))
    found: Tensor = lut[(*places, indices)]
    if lut.shape[-1] == 1:
        return found.reshape(indices.shape)
    axis = call.axis("vector_axis", indices.ndim)
    shape = [size * lut.shape[-1] if each == axis else size for each, size in enumerate(indices.shape)]
    found = np.moveaxis(found, -1, axis + 1)
    return found.reshape(shape)


def _dense(values: Tensor, mask: Array) -> Tensor:
    if np.count_nonzero(mask) != values.size:
        raise ToolchainFailure(f"{values.size} values for {np.count_nonzero(mask)} places")
    result = np.zeros(mask.shape, values.dtype)
    result[mask != 0] = values
    return result


def _bits(entries: int) -> int:
    if entries not in PALETTES:
        raise ToolchainFailure(f"a table of {entries} entries")
    return PALETTES[entries]


OPS: Mapping[str, OpFunction] = {
    "quantize": quantize,
    "dequantize": dequantize,
    "constexpr_affine_dequantize": constexpr_affine_dequantize,
    "constexpr_blockwise_shift_scale": constexpr_blockwise_shift_scale,
    "constexpr_lut_to_dense": constexpr_lut_to_dense,
    "constexpr_lut_to_sparse": constexpr_lut_to_sparse,
    "constexpr_sparse_to_dense": constexpr_sparse_to_dense,
    "constexpr_sparse_blockwise_shift_scale": constexpr_sparse_blockwise_shift_scale,
    "constexpr_cast": constexpr_cast,
}
