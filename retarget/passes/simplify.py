"""onnxsim, where it can run: its folding by execution finds constants that pattern rules do not.

It works on the protobuf, so a model of 2 GB or more is left as it is; so is one with Quantize/DequantizeLinear, which
constant folding must not eat.
"""

from __future__ import annotations

import onnx_ir as ir
import onnxsim

from retarget.graph import all_nodes, initializer_bytes
from retarget.passes.library import QUANTIZATION

LIMIT = 2_000_000_000
"""Bytes of initializers beyond which a protobuf may not hold the model."""


class Simplify(ir.passes.FunctionalPass):
    """See the module. ``limit``: bytes of initializers above which the model is left as it is."""

    def __init__(self, limit: int = LIMIT) -> None:
        super().__init__()
        self.limit = limit
        self.refused: list[tuple[str, str]] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.refused = []
        size = initializer_bytes(model)
        if size > self.limit:
            self.refused.append(("", f"{size} bytes of weights are more than a protobuf holds"))
            return ir.passes.PassResult(model.clone(), False)
        if any(node.op_type in QUANTIZATION for node in all_nodes(model)):
            self.refused.append(("", "folding would eat the model's QuantizeLinear and DequantizeLinear"))
            return ir.passes.PassResult(model.clone(), False)
        loaded = model.clone()
        ir.external_data.load_to_model(loaded)
        simplified, _ = onnxsim.simplify(ir.to_proto(loaded), perform_optimization=False)
        made = ir.from_proto(simplified)
        _restore(model, made)
        if _structure(made) == _structure(model):
            return ir.passes.PassResult(model.clone(), False)
        return ir.passes.PassResult(made, True)


def _restore(before: ir.Model, after: ir.Model) -> None:
    """Give inputs and outputs their declared shapes again: onnxsim writes what it inferred."""
    pairs = zip((*before.graph.inputs, *before.graph.outputs), (*after.graph.inputs, *after.graph.outputs), strict=True)
    for old, new in pairs:
        if old.name == new.name:
            new.shape, new.type = old.shape, old.type
    after.metadata_props.update(before.metadata_props)


def _structure(model: ir.Model) -> list[object]:
    """Operators, wiring by position and attributes: onnxsim renames and copies what it does not change."""
    positions: dict[ir.Value | None, object] = {None: None}
    lines: list[object] = []
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values()):
            positions[value] = value.name
        for node in graph:
            lines.append((node.op_type, [positions.get(value) for value in node.inputs], sorted(node.attributes)))
            for at, out in enumerate(node.outputs):
                positions[out] = (len(lines), at)
    return lines
