"""How each ONNX operator is written, by family; an op function is named after its operator."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.coreml.call import Op
from retarget.targets.coreml.ops import (
    activation,
    attention,
    control,
    convolution,
    elementwise,
    indexing,
    matmul,
    normalization,
    padding,
    pooling,
    quantization,
    recurrent,
    reduction,
    refused,
    resizing,
    sampling,
    scatter,
    shape,
    slices,
    sorting,
    transcendental,
    transposed_convolution,
)

FAMILIES: tuple[Mapping[str, Op], ...] = (
    activation.OPS,
    attention.OPS,
    control.OPS,
    convolution.OPS,
    elementwise.OPS,
    indexing.OPS,
    matmul.OPS,
    normalization.OPS,
    padding.OPS,
    pooling.OPS,
    quantization.OPS,
    recurrent.OPS,
    reduction.OPS,
    refused.OPS,
    resizing.OPS,
    sampling.OPS,
    scatter.OPS,
    shape.OPS,
    slices.OPS,
    sorting.OPS,
    transcendental.OPS,
    transposed_convolution.OPS,
)

OPS: Mapping[str, Op] = {name: op for family in FAMILIES for name, op in family.items()}
