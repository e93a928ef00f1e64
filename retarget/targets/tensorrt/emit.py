"""Engines of TensorRT, for the GPU of this machine."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir as ir

from retarget.facts import EmitFacts
from retarget.protocols import EmitJob
from retarget.targets.tensorrt import Options
from retarget.targets.tensorrt.build import Builder
from retarget.targets.tensorrt.flavour import TENSORRT
from retarget.targets.tensorrt.network import Parsed, Reasons


def check(model: ir.Model, job: EmitJob) -> Reasons:
    """Every node that TensorRT cannot take; nothing is built."""
    return _BUILDER.check(model, job)


def emit(model: ir.Model, job: EmitJob, out: Path) -> EmitFacts:
    """Write ``out/model.engine`` for the GPU of this machine."""
    return _BUILDER.emit(model, job, out)


def configure(library: ModuleType, config: Any, options: Options) -> tuple[str, ...]:
    """Set the builder's ``config``; returns what a user must know of it."""
    notes = set_arithmetic(library, config, tf32=options.tf32, workspace_mib=options.workspace_mib)
    if options.builder_optimization_level is not None:
        config.builder_optimization_level = options.builder_optimization_level
    if options.hardware_compatibility == "ampere_plus":
        config.hardware_compatibility_level = library.HardwareCompatibilityLevel.AMPERE_PLUS
        return ("Runs on NVIDIA GPUs from Ampere (compute capability 8.0) on.", *notes)
    return ("Runs on GPUs like the one of the machine that built it.", *notes)


def set_arithmetic(library: ModuleType, config: Any, *, tf32: bool, workspace_mib: int | None) -> tuple[str, ...]:
    """What both libraries share. TF32 is on in the library, so float32 would not be float32."""
    if workspace_mib is not None:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    if tf32:
        return ("Its float32 products round their inputs to TF32, 10 bits of mantissa.",)
    config.clear_flag(library.BuilderFlag.TF32)
    return ()


def refuse(network: Parsed, options: Options) -> Reasons:  # noqa: ARG001 - TensorRT refuses nothing for its options
    return []


_BUILDER = Builder(TENSORRT, configure, refuse)
