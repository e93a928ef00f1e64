"""How each MIL operation is computed, by family; an op function is named after its operation."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.coreml.interpreter.call import OpFunction
from retarget.targets.coreml.interpreter.ops import (
    attention,
    boxes,
    control,
    convolution,
    elementwise,
    linear,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resize,
    sampling,
    scatter_gather,
    shape,
)

FAMILIES: tuple[Mapping[str, OpFunction], ...] = (
    attention.OPS,
    boxes.OPS,
    control.OPS,
    convolution.OPS,
    elementwise.OPS,
    linear.OPS,
    normalization.OPS,
    pooling.OPS,
    quantization.OPS,
    recurrent.OPS,
    reduction.OPS,
    resize.OPS,
    sampling.OPS,
    scatter_gather.OPS,
    shape.OPS,
)

OPS: Mapping[str, OpFunction] = {name: function for family in FAMILIES for name, function in family.items()}
