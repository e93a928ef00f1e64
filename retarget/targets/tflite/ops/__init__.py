"""How each ONNX operator is written, by family; an op function is named after its operator."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.tflite.lowering import Op
from retarget.targets.tflite.ops import convolution, elementwise, matmul, quantization, recurrent

FAMILIES: tuple[Mapping[str, Op], ...] = (
    convolution.OPS,
    elementwise.OPS,
    matmul.OPS,
    quantization.OPS,
    recurrent.OPS,
)

OPS: Mapping[str, Op] = {name: op for family in FAMILIES for name, op in family.items()}
