"""Pick rows of a quantized table before they are dequantized.

Given::

    y = Gather(DequantizeLinear<axis = 0>(codes, scales), ids)          # int8 [V, D], float [V]

Result::

    y = Mul(DequantizeLinear(Gather(codes, ids), 1), Gather(scales, ids))           # float [V, 1]

ONNX Runtime dequantizes the whole table at each run otherwise. OpenVINO picks codes by itself, and TensorRT takes them
nowhere but in front of a DequantizeLinear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from retarget.passes.rewriting import Rewriting, initializer, insert, is_constant, node, producer, replace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from retarget.passes.rewriting import Rule, Verdict


class PickCodes(Rewriting):
    """See the module."""

    def rules(self) -> Mapping[str, Rule]:
        return {"Gather": _gather}


def _gather(each: ir.Node) -> Verdict:
    dequantize = producer(each.inputs[0], "DequantizeLinear")
    if dequantize is None or each.attributes.get_int("axis", 0) != 0:
        return False
    codes, scales, *zero_point = dequantize.inputs
    if codes is None or scales is None or not is_constant(codes) or not is_constant(scales):
        return False
    assert codes.const_value is not None
    assert scales.const_value is not None
    shape, by_rows = codes.const_value.shape.numpy(), scales.const_value.shape.numpy()
    if codes.dtype not in (ir.DataType.INT8, ir.DataType.UINT8) or scales.dtype != ir.DataType.FLOAT:
        return "codes or scales of another type"
    if by_rows != shape[:1] or dequantize.attributes.get_int("axis", 1) % len(shape):
        return "its scales are not those of rows"
    if any(value is not None and not _is_zero(value) for value in zero_point):
        return "its rows have zero points"
    out = each.outputs[0]
    column = scales.const_value.numpy().reshape(-1, *[1] * (len(shape) - 1))
    steps = insert(
        each, node("Gather", [initializer(each, f"{scales.name}_column", column), each.inputs[1]], like=each)
    )
    rows = insert(each, node("Gather", [codes, each.inputs[1]], like=each))
    unit = initializer(each, f"{out.name}_unit", np.array(1, np.float32))
    expanded = insert(each, node("DequantizeLinear", [rows, unit], like=each), like=out)
    rows.type, rows.shape = ir.TensorType(codes.dtype), out.shape
    steps.type = ir.TensorType(ir.DataType.FLOAT)
    if out.shape is not None:
        picked = len(out.shape) - len(shape) + 1
        steps.shape = ir.Shape([*out.shape[:picked], *[1] * (len(shape) - 1)])
    for value, suffix in ((steps, "scales"), (rows, "codes"), (expanded, "rows")):
        maker = value.producer()
        assert maker is not None
        value.name, maker.name = f"{out.name}_{suffix}", f"{each.name}_{suffix}"
    replace(each, node("Mul", [expanded, steps], like=each))
    return True


def _is_zero(value: ir.Value) -> bool:
    return is_constant(value) and value.const_value is not None and not value.const_value.numpy().any()
