"""How each ONNX operator is written, by family; an op function is named after its operator."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.coreml.call import Op
from retarget.targets.coreml.ops import elementwise, matmul, quantization

FAMILIES: tuple[Mapping[str, Op], ...] = (
    elementwise.OPS,
    matmul.OPS,
    quantization.OPS,
)

OPS: Mapping[str, Op] = {name: op for family in FAMILIES for name, op in family.items()}
