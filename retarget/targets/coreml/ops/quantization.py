"""QuantizeLinear and DequantizeLinear: integers that activations are rounded to, and integers that weights are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from retarget import graph
from retarget.targets.coreml.call import FLOATS, Call, Op
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.values import BYTES, WIDE, Codes, Refusal, Result, dtype_of

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
        return _computed(call, scale, zero)
    return call.mil.dequantize(input=codes, scale=scale, zero_point=zero, axis=axis if scale.ndim else None)


def _computed(call: Call, scale: Array, zero: Array | None) -> Var:
    """The floats behind integers that MIL has as int32: of inputs, and of what was moved since it was rounded."""
    value = call.node.inputs[0]
    name = "" if value is None else graph.dtype_name(value.dtype)
    if name not in WIDE or "block_size" in call.attributes:
        raise Refusal(f"its integers are {name or 'unknown'}, and computed: MIL has those of 8 bits behind a quantize")
    axis, rank = call.attributes.get_int("axis", 1), call.rank(0)
    wide = call.mil.cast(x=call.var(0), dtype="fp32")
    if zero is not None and zero.any():
        wide = call.mil.sub(x=wide, y=_spread(zero, rank, axis, 0).astype(np.float32))
    made = call.mil.mul(x=wide, y=_spread(scale, rank, axis, 0).astype(np.float32))
    return made if scale.dtype == np.float32 else call.mil.cast(x=made, dtype="fp16")


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
