"""The heavy half of the ONNX frontend. The file itself is the export: it is validated here and lifted by ``load``."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import onnx_ir as ir

from retarget import graph
from retarget.convert.normal_form import apply_specs, default_opset, normal_form, rename_symbols, select_outputs
from retarget.convert.onnx.read import describe_nodes, read
from retarget.convert.onnx.refused import hint
from retarget.convert.onnx.widen import half_type, unknown_domains, widen
from retarget.errors import RetargetError, ToolchainFailure
from retarget.protocols import Exported, Source
from retarget.session import Session

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs


def export(source: Source, example: Feeds | None, out: Path) -> Exported:  # noqa: ARG001
    """Validate the file and say what is in it; ``load`` reads it from where it is, so nothing is written to ``out``."""
    model, notes = _open(source)
    notes += describe_nodes(model)
    opset = default_opset(model, str(source.path))
    if opset != graph.OPSET:
        notes.append(f"opset {opset} was converted to {graph.OPSET}")
    half = _narrow(model)
    if half is not None:
        notes.append(
            f"the model was widened from {half} to float32; its inputs and outputs keep their types,"
            " and the reference is the file as it is"
        )
    return Exported(
        rung=f"opset {opset}",
        inputs=tuple(graph.value_spec(value) for value in model.graph.inputs),
        outputs=tuple(value.name or "" for value in model.graph.outputs),
        notes=tuple(notes),
        narrow=half,
    )


def load(out: Path, source: Source) -> ir.Model:  # noqa: ARG001
    """The file in the normal form, in float32 within. Raises ``RetargetError``."""
    model, _ = _open(source)
    half = _narrow(model)
    model = normal_form(model, str(source.path))
    if half is not None:
        widen(model)
    return model


def _narrow(model: ir.Model) -> str | None:
    """The half-precision type that ``model`` is widened from; None where it stays as it is."""
    half = half_type(model)
    return None if half is None or unknown_domains(model) else graph.dtype_name(half)


def reference(source: Source, exported: Exported) -> Reference:
    """ONNX Runtime on the file as it is, its optimizations off."""
    return Reference(source, exported)


class Reference:
    """The original file in ONNX Runtime; a ``Runner``."""

    def __init__(self, source: Source, exported: Exported) -> None:
        try:
            self._session = Session(source.path)
        except ToolchainFailure as error:
            model, _ = _open(source)
            raise ToolchainFailure(error.message, hint(model, error.message, str(source.path))) from error
        self._outputs = exported.outputs
        self.settings = self._session.settings

    def run(self, feeds: Feeds) -> Outputs:
        return self._session.run(feeds, self._outputs)

    def __enter__(self) -> Self:
        self._session.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.__exit__(kind, value, trace)


def _open(source: Source) -> tuple[ir.Model, list[str]]:
    """The file with the user's inputs, outputs and dimensions, still in its own opset."""
    place = str(source.path)
    if source.factory is not None:
        raise RetargetError(f"{place}: an ONNX file needs no factory", "remove `factory`")
    model, notes = read(source.path)
    notes += _constant_inputs(model, source)
    if source.inputs:
        apply_specs(model, source.inputs, place)
    else:
        _name_dimensions(model, place)
    if source.outputs:
        select_outputs(model, source.outputs, place)
    return model, notes


def _constant_inputs(model: ir.Model, source: Source) -> list[str]:
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


def _name_dimensions(model: ir.Model, place: str) -> None:
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
        symbols |= {dim.value: _identifier(dim.value) for dim in value.shape if not isinstance(dim, int) and dim.value}
    rename_symbols(model, symbols)
    for value in model.graph.inputs:
        value.shape = ir.Shape(graph.value_spec(value).shape)


def _identifier(symbol: str) -> str:
    name = re.sub(r"\W+", "_", symbol).strip("_")
    return name if re.match(r"[A-Za-z_]", name) else f"dim_{name}"
