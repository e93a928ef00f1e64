"""How each ONNX operator is written, by family; an op function is named after its operator."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.coreml.call import Op
from retarget.targets.coreml.ops import (
    activation,
    attention,
    convolution,
    elementwise,
    matmul,
    normalization,
    padding,
    pooling,
    quantization,
    recurrent,
    reduction,
    resizing,
    shape,
    transcendental,
    transposed_convolution,
)

FAMILIES: tuple[Mapping[str, Op], ...] = (
    activation.OPS,
    attention.OPS,
    convolution.OPS,
    elementwise.OPS,
    matmul.OPS,
    normalization.OPS,
    padding.OPS,
    pooling.OPS,
    quantization.OPS,
    recurrent.OPS,
    reduction.OPS,
    resizing.OPS,
    shape.OPS,
    transcendental.OPS,
    transposed_convolution.OPS,
)

OPS: Mapping[str, Op] = {name: op for family in FAMILIES for name, op in family.items()}
