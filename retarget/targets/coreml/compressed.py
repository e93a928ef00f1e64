"""Constants that stay integers in the package: as which of MIL's operators they are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from retarget.targets.coreml.library import Var, types
from retarget.targets.coreml.values import BYTES, Codes, Refusal, narrow

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.coreml.call import Builder

FOUR_BITS = ("int4", "uint4")


def stored(codes: Codes, target: str, mil: Builder) -> Var:
    """The MIL value of ``codes``, which the runtime expands. Raises ``Refusal`` where ``target`` has none.

    Biases (int32, or one axis) are expanded here: they are small, and MIL has no such integers.
    """
    name = codes.data.dtype.name
    if codes.data.ndim < 2 or name not in (*BYTES, *FOUR_BITS):
        return mil.const(val=expanded(codes))
    if target == "iOS15":
        raise Refusal(f"{name} weights need minimum_deployment_target iOS16 or newer, and iOS15 is asked for")
    along = [axis for axis, size in enumerate(codes.scale.shape) if size > 1]
    whole = all(codes.scale.shape[axis] == codes.data.shape[axis] for axis in along)
    if name in BYTES and whole and len(along) <= 1:
        axis = along[0] if along else 0
        shape = (-1,) if along else ()
        zero = np.zeros_like(codes.scale, codes.data.dtype) if codes.zero_point is None else codes.zero_point
        return mil.constexpr_affine_dequantize(
            quantized_data=np.ascontiguousarray(codes.data),
            scale=codes.scale.reshape(shape)[()],
            zero_point=zero.astype(codes.data.dtype).reshape(shape)[()],
            axis=np.int32(axis),
        )
    if target != "iOS18":
        what = "blocks of weights" if name in BYTES else f"{name} weights"
        raise Refusal(f"{what} need minimum_deployment_target iOS18 or newer, and {target} is asked for")
    return mil.constexpr_blockwise_shift_scale(
        data=_small(codes.data),
        scale=codes.scale,
        offset=None if codes.zero_point is None or not codes.zero_point.any() else _small(codes.zero_point),
    )


def expanded(codes: Codes) -> Array:
    """The floats, of the scale's type."""
    data = codes.data.astype(np.float32)
    scale, zero = (_stretched(each, codes.shape) for each in (codes.scale, codes.zero_point))
    assert scale is not None
    return np.asarray((data if zero is None else data - zero.astype(np.float32)) * scale.astype(np.float32)).astype(
        codes.dtype
    )


def _stretched(array: Array | None, shape: tuple[int, ...]) -> Array | None:
    """``array`` with each element as often as its block is long."""
    if array is None:
        return None
    for axis, size in enumerate(shape):
        if array.shape[axis] not in (1, size):
            array = np.repeat(array, size // array.shape[axis], axis)
    return array


def _small(data: Array) -> Array:
    """Integers in coremltools' types of 4 bits."""
    if data.dtype == ml_dtypes.int4:
        return np.ascontiguousarray(data).astype(np.int8).astype(types.nptype_from_builtin(types.int4))
    if data.dtype == ml_dtypes.uint4:
        return np.ascontiguousarray(data).astype(np.uint8).astype(types.nptype_from_builtin(types.uint4))
    return narrow(data) if data.dtype.name not in BYTES else np.ascontiguousarray(data)
