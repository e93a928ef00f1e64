"""Quantize activations to uint8 where they are int8, for runtimes whose integer kernels want them so.

Given::   QuantizeLinear(x, scale, int8 zero)  …  DequantizeLinear(q, scale, int8 zero)
Result::  QuantizeLinear(x, scale, uint8 zero + 128)  …  DequantizeLinear(q, scale, uint8 zero + 128)

Every code is moved by 128, which changes no number. What stands between the two, such as Concat, must move codes and
not look at them. An input of the model keeps its type, and is quantized again behind its DequantizeLinear.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from retarget.passes.rewriting import Array, constant, graph_of, initializer, is_constant, rewire

_MOVES_CODES = frozenset(
    {
        "Concat",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
_COMPUTES = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})


class UnsignedActivations(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        seen: set[ir.Value] = set()
        for node in list(model.graph):
            if node.op_type == "DequantizeLinear" and not node.domain:
                modified |= _again(node)
        for node in list(model.graph):
            if node.op_type == "QuantizeLinear" and not node.domain and node.outputs[0] not in seen:
                region = _Region()
                whole = region.grow(node.outputs[0])
                seen.update(region.values)
                if whole:
                    region.turn()
                    modified = True
        return ir.passes.PassResult(model, modified)


@dataclass
class _Region:
    """Tensors of codes that have to be of one type, and the nodes that make them of numbers and numbers of them."""

    values: set[ir.Value] = field(default_factory=set)
    border: dict[ir.Node, None] = field(default_factory=dict)

    def grow(self, seed: ir.Value) -> bool:
        """Whether all that is connected with ``seed`` can be uint8."""
        pending = [seed]
        while pending:
            value = pending.pop()
            if value in self.values:
                continue
            self.values.add(value)
            maker = value.producer()
            if value.dtype != ir.DataType.INT8 or value.is_graph_output() or maker is None:
                return False
            for node in (maker, *(user for user, _ in value.uses())):
                at_border = node.op_type == ("QuantizeLinear" if node is maker else "DequantizeLinear")
                if node.domain or node.graph is not value.graph:
                    return False
                if at_border and _zero(node) is not None:
                    self.border[node] = None
                elif node.op_type in _MOVES_CODES:
                    count = None if node.op_type == "Concat" else 1
                    pending += [each for each in (*node.inputs[:count], *node.outputs[:1]) if each is not None]
                    if len(node.outputs) > 1:
                        pending += [each for each in node.outputs if each.dtype == ir.DataType.INT8]
                else:
                    return False
        return True

    def turn(self) -> None:
        for value in self.values:
            value.dtype = ir.DataType.UINT8
        for node in self.border:
            zero = _zero(node)
            assert zero is not None
            moved = (zero.astype(np.int16) + 128).astype(np.uint8)
            name = node.inputs[2].name if node.inputs[2] is not None else "zero"
            rewire(node, 2, initializer(node, f"{name}_unsigned", moved))


def _zero(node: ir.Node) -> Array | None:
    """The zero points of ``node`` where they are int8 constants."""
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return zero if zero is not None and zero.dtype == np.int8 else None


def _again(node: ir.Node) -> bool:
    """Quantize to uint8 behind a DequantizeLinear of an input of the model that is computed with."""
    x, out = node.inputs[0], node.outputs[0]
    zero = _zero(node)
    source = x
    while source is not None and source.producer() is not None:
        maker = source.producer()
        assert maker is not None
        if maker.op_type not in _MOVES_CODES or maker.op_type == "Concat":
            return False
        source = maker.inputs[0]
    users = [user for user, _ in out.uses()]
    if source is None or is_constant(source) or zero is None or zero.ndim or not users or out.is_graph_output():
        return False
    if not all(user.op_type in _COMPUTES and user.inputs[0] is out for user in users):
        return False
    uses = tuple(out.uses())
    scale = node.inputs[1]
    moved = initializer(node, f"{out.name}_zero", (zero.astype(np.int16) + 128).astype(np.uint8))
    codes = ir.node("QuantizeLinear", [out, scale, moved], name=f"{node.name}_again")
    numbers = ir.node("DequantizeLinear", [codes.outputs[0], scale, moved], name=f"{node.name}_unsigned")
    codes.outputs[0].name, numbers.outputs[0].name = f"{out.name}_codes", f"{out.name}_unsigned"
    codes.outputs[0].dtype, codes.outputs[0].shape = ir.DataType.UINT8, out.shape
    numbers.outputs[0].type, numbers.outputs[0].shape = out.type, out.shape
    graph_of(node).insert_after(node, [codes, numbers])
    for user, at in uses:
        user.replace_input_with(at, numbers.outputs[0])
    return True
