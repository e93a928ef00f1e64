"""An ONNX file with the user's names for its inputs, outputs and dimensions, still in its own opset."""

from __future__ import annotations

import onnx_ir as ir

from retarget import graph
from retarget.convert.normal_form import apply_specs, identifier, rename_symbols, select_outputs
from retarget.convert.onnx.read import read
from retarget.convert.onnx.widen import half_type, unknown_domains
from retarget.errors import RetargetError
from retarget.source import Source


def open_named(source: Source) -> tuple[ir.Model, list[str]]:
    """The file with the user's inputs, outputs and dimensions, still in its own opset."""
    place = str(source.path)
    if source.factory is not None:
        raise RetargetError(f"{place}: an ONNX file needs no factory", "remove `factory`")
    model, notes = read(source.path)
    notes += drop_constants(model, source)
    if source.inputs:
        apply_specs(model, source.inputs, place)
    else:
        name_dimensions(model, place)
    if source.outputs:
        select_outputs(model, source.outputs, place)
    return model, notes


def drop_constants(model: ir.Model, source: Source) -> list[str]:
    """Before IR version 4 every initializer was a graph input too: it is a constant, unless the user names it."""
    wanted = {spec.name for spec in source.inputs}
    constant = [value for value in model.graph.inputs if value.name in model.graph.initializers]
    fed = [value for value in constant if value.name in wanted]
    for value in constant:
        if value.name not in wanted:
            model.graph.inputs.remove(value)
        else:
            model.graph.initializers.pop(value.name or "")
            value.const_value = None
    return [f"input '{value.name}' has a default in the file, which is not used" for value in fed]


def name_dimensions(model: ir.Model, place: str) -> None:
    """Without the user's specs: the file's own symbols, as names that a spec can hold."""
    symbols: dict[str, int | str] = {}
    for value in model.graph.inputs:
        if value.shape is None or value.dtype is None:
            raise RetargetError(
                f"{place}: input '{value.name}' has no {'shape' if value.shape is None else 'type'} in the file",
                f"give it with --input '{value.name}=float32[N,3,224,224]'",
            )
        for dim in value.shape:
            if isinstance(dim, int) and dim < 1:
                raise RetargetError(
                    f"{place}: input '{value.name}' has a dimension of size {dim}",
                    f"give its shape with --input '{value.name}={graph.dtype_name(value.dtype)}[…]'",
                )
        symbols |= {dim.value: identifier(dim.value) for dim in value.shape if not isinstance(dim, int) and dim.value}
    rename_symbols(model, symbols)
    for value in model.graph.inputs:
        value.shape = ir.Shape(graph.value_spec(value).shape)


def narrow(model: ir.Model) -> str | None:
    """The half-precision type that ``model`` is widened from; None where it stays as it is."""
    half = half_type(model)
    return None if half is None or unknown_domains(model) else graph.dtype_name(half)
