"""ONNX files. The file itself is the export: it is validated here and lifted by ``load``."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from retarget import graph
from retarget.convert.normal_form import default_opset
from retarget.convert.onnx.named import narrow, open_named
from retarget.convert.onnx.read import describe_nodes
from retarget.convert.onnx.refused import hint
from retarget.errors import ToolchainFailure
from retarget.session import Session
from retarget.source import Exported, Source

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs


def export(source: Source, example: Feeds | None, out: Path) -> Exported:  # noqa: ARG001
    """Validate the file and say what is in it; ``load`` reads it from where it is, so nothing is written to ``out``."""
    model, notes = open_named(source)
    notes += describe_nodes(model)
    opset = default_opset(model, str(source.path))
    if opset != graph.OPSET:
        notes.append(f"opset {opset} was converted to {graph.OPSET}")
    half = narrow(model)
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


def reference(source: Source, exported: Exported) -> Reference:
    """ONNX Runtime on the file as it is, its optimizations off."""
    return Reference(source, exported)


class Reference:
    """The original file in ONNX Runtime; a ``Runner``."""

    def __init__(self, source: Source, exported: Exported) -> None:
        try:
            self._session = Session(source.path)
        except ToolchainFailure as error:
            model, _ = open_named(source)
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
