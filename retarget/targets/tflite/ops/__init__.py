"""How each ONNX operator is written, by family; an op function is named after its operator."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.tflite.call import Op
from retarget.targets.tflite.ops import (
    activation,
    attention,
    convolution,
    counted,
    elementwise,
    indexing,
    matmul,
    normalization,
    padding,
    parts,
    pooling,
    quantization,
    recurrent,
    reduction,
    refused,
    resizing,
    sampling,
    scatter,
    shape,
    sorting,
    suppression,
    transcendental,
    transposed_convolution,
)

FAMILIES: tuple[Mapping[str, Op], ...] = (
    activation.OPS,
    attention.OPS,
    convolution.OPS,
    counted.OPS,
    elementwise.OPS,
    indexing.OPS,
    matmul.OPS,
    normalization.OPS,
    padding.OPS,
    parts.OPS,
    pooling.OPS,
    quantization.OPS,
    recurrent.OPS,
    reduction.OPS,
    refused.OPS,
    resizing.OPS,
    sampling.OPS,
    scatter.OPS,
    shape.OPS,
    sorting.OPS,
    suppression.OPS,
    transcendental.OPS,
    transposed_convolution.OPS,
)

OPS: Mapping[str, Op] = {name: op for family in FAMILIES for name, op in family.items()}
