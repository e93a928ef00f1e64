"""Building an engine, the same for both libraries: parse, refuse, configure, build, read the types back."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir as ir

from retarget import graph
from retarget.errors import ToolchainFailure, Unsupported, unsupported
from retarget.facts import EmitFacts, IoEntry
from retarget.protocols import EmitJob
from retarget.spec import TensorSpec
from retarget.targets import legal
from retarget.targets.tensorrt import profile
from retarget.targets.tensorrt.flavour import Flavour
from retarget.targets.tensorrt.network import (
    IO,
    Parsed,
    Reasons,
    Tensor,
    dtype_of,
    load_library,
    parsed,
    precision,
)

ENGINE = "model.engine"


@dataclass(frozen=True)
class Builder:
    """A flavour with the two things that its options decide."""

    flavour: Flavour
    configure: Callable[[ModuleType, Any, Any], tuple[str, ...]]
    """``(library, config, options)``: sets the builder's config, returns sentences for the facts."""
    refuse: Callable[[Parsed, Any], Reasons]
    """``(network, options)``: what these options cannot take of a network that the parser took."""

    def check(self, model: ir.Model, job: EmitJob) -> Reasons:
        """Every node that cannot be taken. Parses and does not build: about a millisecond for a small model."""
        library = load_library(self.flavour)
        broken = self._broken(model)
        with parsed(library, model) as network:
            return broken + (network.reasons or self._refused(network, job))

    def emit(self, model: ir.Model, job: EmitJob, out: Path) -> EmitFacts:
        """Write ``out/model.engine``. Raises ``Unsupported`` for the model, ``ToolchainFailure`` for the library."""
        library = load_library(self.flavour)
        broken = self._broken(model)
        if broken:
            raise unsupported(self.flavour.target, broken)
        with parsed(library, model, scratch=out) as network:
            reasons = network.reasons or self._refused(network, job)
            if reasons:
                raise unsupported(self.flavour.target, reasons)
            config = network.builder.create_builder_config()
            notes = self.configure(library, config, job.options)
            notes += profile.add_profile(network, config, job)
            engine = network.builder.build_serialized_network(network.network, config)
            if engine is None:
                raise self._failure(network)
            if retyped := network.log.retyped():
                raise ToolchainFailure(f"{self.flavour.title} built another model: {'; '.join(retyped)}")
            with (out / ENGINE).open("wb") as file:
                file.write(engine)
            return EmitFacts(
                target=self.flavour.target,
                variant_precision=job.precision,
                inputs=_entries(job.inputs, network.inputs()),
                outputs=_entries(job.outputs, network.outputs()),
                precision=precision(network, profile.opt_sizes(job), job.precision),
                notes=(
                    f"{self.flavour.title} {library.__version__}: the engine loads in this version only.",
                    *notes,
                    *_narrowed(model),
                ),
            )

    def _broken(self, model: ir.Model) -> Reasons:
        return [
            legal.refusal(node, self.flavour.broken[node.op_type])
            for node in graph.all_nodes(model)
            if node.domain == "" and node.op_type in self.flavour.broken
        ]

    def _refused(self, network: Parsed, job: EmitJob) -> Reasons:
        shapes: Reasons = [
            (name, "input", "its values are a shape, and an engine must be built for a known range of them")
            for name, tensor in network.inputs()
            if tensor.is_shape_tensor
        ]
        narrow: Reasons = [
            (name, role, f"an engine's {role} cannot be {dtype_of(tensor)}")
            for role, tensors in (("input", network.inputs()), ("output", network.outputs()))
            for name, tensor in tensors
            if dtype_of(tensor) not in IO
        ]
        return shapes + narrow + self.refuse(network, job.options)

    def _failure(self, network: Parsed) -> Unsupported | ToolchainFailure:
        """The builder's errors: of a node where they name one, else of the library."""
        errors = network.log.errors()
        operators = {node.name: node.op_type for node in graph.all_nodes(network.model)}
        nodes: Reasons = []
        for error in errors:
            named = [name for name in re.findall(r"'([^']+)'", error) if name in operators]
            nodes += [(name, operators[name] or "", error) for name in named]
        if nodes:
            return unsupported(self.flavour.target, nodes)
        said = "; ".join(errors) or "without a reason"
        return ToolchainFailure(f"{self.flavour.title} could not build an engine: {said}")


def _entries(specs: tuple[TensorSpec, ...], tensors: list[tuple[str, Tensor]]) -> tuple[IoEntry, ...]:
    found = dict(tensors)
    return tuple(
        IoEntry(
            name=spec.name,
            artifact_name=found[spec.name].name,
            spec=spec,
            artifact_dtype=dtype_of(found[spec.name]),
        )
        for spec in specs
    )


def _narrowed(model: ir.Model) -> tuple[str, ...]:
    """TensorRT has no float64 and parses it as float32, without a word."""
    values = [*model.graph.inputs, *graph.initializers(model)]
    values += [output for node in graph.all_nodes(model) for output in node.outputs]
    if any(value.dtype == ir.DataType.DOUBLE for value in values):
        return ("The model's float64 is computed in float32: TensorRT has no float64.",)
    return ()
