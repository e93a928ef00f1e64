"""What changes no element: shapes, and the order of axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from retarget.targets.ncnn.call import ANY, Call, Op
from retarget.targets.ncnn.values import Refusal, Shape, Value

if TYPE_CHECKING:
    from retarget.targets.ncnn.values import Result


def in_shape(call: Call, value: Value, shape: Shape) -> Value:
    """``value`` in another of ONNX's shapes, the elements in their order: no layer where the rows can stay."""
    if value.rows > 1 and not (shape and shape[0] % value.rows == 0):
        value = call.with_rows(value, 1)
    return replace(value, shape=shape)


def reshape(call: Call) -> Result:
    declared = call.declared()
    if declared is None:
        raise Refusal("the shape of its result is not known")
    return in_shape(call, call.value(0), declared)


OPS: Mapping[str, Op] = {name: Op(reshape, ANY) for name in ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")}
