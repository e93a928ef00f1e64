"""QuantizeLinear and DequantizeLinear: integers that activations are rounded to, and integers that weights are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.coreml.call import FLOATS, Call, Op
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.values import BYTES, Codes, Refusal, Result, dtype_of

if TYPE_CHECKING:
    from retarget.protocols import Array


def dequantize_linear(call: Call) -> Result:
    scale = call.array(1, "scale")
    zero = call.array(2, "zero_point") if call.has(2) else None
    codes, axis, block = call.operand(0), call.attributes.get_int("axis", 1), call.attributes.get_int("block_size", 0)
    if isinstance(codes, np.ndarray):
        spread = None if zero is None else _spread(zero, codes.ndim, axis, block)
        return Codes(codes, _spread(scale, codes.ndim, axis, block), spread)
    if not isinstance(codes, Var) or dtype_of(codes).name not in BYTES:
        raise Refusal("its integers are no 8-bit integers of a QuantizeLinear")
    return call.mil.dequantize(
        input=codes, scale=scale, zero_point=None if zero is None else zero, axis=axis if scale.ndim else None
    )


def quantize_linear(call: Call) -> Result:
    call.needs(17, "QuantizeLinear")
    scale = call.array(1, "scale")
    zero = call.array(2, "zero_point") if call.has(2) else None
    axis = call.attributes.get_int("axis", 1)
    kind = "uint8" if zero is None else zero.dtype.name
    if kind not in BYTES:
        raise Refusal(f"{kind} is not among {', '.join(BYTES)}")
    return call.mil.quantize(
        input=call.var(0), scale=scale, zero_point=zero, output_dtype=kind, axis=axis if scale.ndim else None
    )


def _spread(array: Array, rank: int, axis: int, block: int) -> Array:
    """Scales or zero points with ``rank`` axes: one, or one for each place along ``axis``, or block."""
    if block or array.ndim == rank:
        return array
    shape = [1] * rank
    if array.size > 1:
        shape[axis] = array.size
    return array.reshape(shape)


OPS: Mapping[str, Op] = {
    "DequantizeLinear": Op(dequantize_linear, frozenset({"int32"}), small=True),
    "QuantizeLinear": Op(quantize_linear, FLOATS),
}
