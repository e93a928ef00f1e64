"""How each ONNX operator is written, by family; an op function is named after its operator."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.coreml.call import Op
from retarget.targets.coreml.ops import (
    attention,
    convolution,
    elementwise,
    matmul,
    padding,
    pooling,
    quantization,
    shape,
    transposed_convolution,
)

FAMILIES: tuple[Mapping[str, Op], ...] = (
    attention.OPS,
    convolution.OPS,
    elementwise.OPS,
    matmul.OPS,
    padding.OPS,
    pooling.OPS,
    quantization.OPS,
    shape.OPS,
    transposed_convolution.OPS,
)

OPS: Mapping[str, Op] = {name: op for family in FAMILIES for name, op in family.items()}
