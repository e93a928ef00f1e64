"""Symbolic dimensions that the user gave one size → that size, everywhere."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from retarget.spec import DimRange


class FixDimensions(ir.passes.InPlacePass):
    """Replace each symbol in ``shapes`` whose smallest and largest size are equal.

    Inputs and outputs keep names, dtypes and ranks. Shapes that follow from the sizes come with `infer_shapes`.
    """

    def __init__(self, shapes: Mapping[str, DimRange]) -> None:
        super().__init__()
        self.sizes = {name: sizes.opt for name, sizes in shapes.items() if sizes.min == sizes.max}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        if self.sizes:
            for graph in model.graphs():
                for value in (*graph.inputs, *graph.outputs, *(out for node in graph for out in node.outputs)):
                    modified |= self._fix(value)
        return ir.passes.PassResult(model, modified)

    def _fix(self, value: ir.Value) -> bool:
        if value.shape is None:
            return False
        fixed = [
            dim if isinstance(dim, int) or dim.value not in self.sizes else self.sizes[dim.value or ""]
            for dim in value.shape.dims
        ]
        if fixed == list(value.shape.dims):
            return False
        value.shape = ir.Shape(fixed)
        return True
