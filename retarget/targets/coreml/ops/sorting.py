"""What is largest, and what is not zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from retarget.targets.coreml.call import ANY, NUMBERS, Call, Op
from retarget.targets.coreml.dims import EMPTY, bounds, plain, product, sized
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.slices import cut
from retarget.targets.coreml.values import Refusal, Result


def top_k(call: Call) -> Sequence[Result]:
    """Of equal elements ONNX takes that of the lower index first; of MIL it is taken for granted, not documented."""
    k = call.numbers(1, "how many are taken")[0]
    axis = call.axis(-1)
    if not k:
        raise Refusal(EMPTY)
    return list(call.mil.topk(x=call.var(0), k=k, axis=axis, ascending=not call.attributes.get_int("largest", 1)))


def non_zero(call: Call) -> Result:
    if not call.rank(0):
        raise Refusal("of a scalar: its result has no rows, and Core ML has no empty tensors")
    return call.mil.transpose(x=_places(call, call.var(0)), perm=[1, 0])


def _places(call: Call, var: Var) -> Var:
    """Where ``var`` is not zero: [places, axes]."""
    is_bool = str(var.dtype.__type_info__()) == "bool"
    return call.mil.non_zero(x=call.mil.cast(x=var, dtype="int32") if is_bool else var)


def compress(call: Call) -> Result:
    """How many elements are taken is known when the model runs."""
    var, axis = call.var(0), 0
    if "axis" in call.attributes:
        axis = call.axis(0)
    elif call.rank(0) != 1:
        var = sized(call, var, [product(call.shape(0))])
    condition, whole, (asked,) = call.var(1), plain(var.shape[axis]), call.shape(1)
    least = math.prod(bounds(call, dim)[0] for dim in (call.shape(0) if "axis" not in call.attributes else [whole]))
    if not (asked == whole or (isinstance(asked, int) and asked <= least)):
        # What is asked of more than there is says nothing.
        call.sizes(0)
        call.sizes(1)
        condition = cut(call, condition, {0: (None, least, 1)}, {0: least})
    places = call.mil.squeeze(x=_places(call, condition), axes=[1])
    return call.mil.gather(x=var, indices=places, axis=axis)


OPS: Mapping[str, Op] = {
    "Compress": Op(compress, ANY, moves=True),
    "NonZero": Op(non_zero, ANY, small=True),
    "TopK": Op(top_k, NUMBERS, small=True),
}
