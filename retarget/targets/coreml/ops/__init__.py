"""How each ONNX operator is written, by family; an op function is named after its operator."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.coreml.call import Op
from retarget.targets.coreml.ops import (
    activation,
    attention,
    biases,
    control,
    convolution,
    einsum,
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
    signal,
    slices,
    sorting,
    suppression,
    transcendental,
    transposed_convolution,
    window_functions,
)

FAMILIES: tuple[Mapping[str, Op], ...] = (
    activation.OPS,
    attention.OPS,
    biases.OPS,
    control.OPS,
    convolution.OPS,
    einsum.OPS,
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
    signal.OPS,
    slices.OPS,
    sorting.OPS,
    suppression.OPS,
    transcendental.OPS,
    transposed_convolution.OPS,
    window_functions.OPS,
)

OPS: Mapping[str, Op] = {name: op for family in FAMILIES for name, op in family.items()}
