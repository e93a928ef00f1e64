"""How each ONNX operator is written, by family; an op function is named after its operator."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.tflite.lowering import Op
from retarget.targets.tflite.ops import (
    attention,
    convolution,
    elementwise,
    indexing,
    matmul,
    padding,
    parts,
    quantization,
    recurrent,
    shape,
    transposed_convolution,
)

FAMILIES: tuple[Mapping[str, Op], ...] = (
    attention.OPS,
    convolution.OPS,
    elementwise.OPS,
    indexing.OPS,
    matmul.OPS,
    padding.OPS,
    parts.OPS,
    quantization.OPS,
    recurrent.OPS,
    shape.OPS,
    transposed_convolution.OPS,
)

OPS: Mapping[str, Op] = {name: op for family in FAMILIES for name, op in family.items()}
