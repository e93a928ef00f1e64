"""Engines of TensorRT-RTX, for named compute capabilities, built without a GPU."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir as ir

from retarget.errors import RetargetError
from retarget.facts import EmitFacts
from retarget.protocols import EmitJob
from retarget.targets.tensorrt.build import Builder
from retarget.targets.tensorrt.emit import set_arithmetic
from retarget.targets.tensorrt.flavour import TENSORRT_RTX
from retarget.targets.tensorrt.network import Parsed, Reasons, dtype_of, layer_type, onnx_node, products
from retarget.targets.tensorrt_rtx import Options

TURING = "7.5"


def check(model: ir.Model, job: EmitJob) -> Reasons:
    """Every node that TensorRT-RTX cannot take for the job's capabilities; nothing is built."""
    return _BUILDER.check(model, job)


def emit(model: ir.Model, job: EmitJob, out: Path) -> EmitFacts:
    """Write ``out/model.engine`` for the job's capabilities, or for all that are the default."""
    return _BUILDER.emit(model, job, out)


def configure(library: ModuleType, config: Any, options: Options) -> tuple[str, ...]:
    """Set the builder's ``config``; returns what a user must know of it."""
    notes = set_arithmetic(library, config, tf32=options.tf32, workspace_mib=options.workspace_mib)
    wanted = tuple(dict.fromkeys(options.compute_capability))
    if not wanted:
        return ("Runs on compute capabilities 8.0 and later: Ampere, Ada and Blackwell.", *notes)
    known = capabilities(library)
    for capability in wanted:
        if capability not in known:
            raise RetargetError(
                f"compute_capability: '{capability}' is not one that {TENSORRT_RTX.title} {library.__version__} has",
                f"legal values: {', '.join(known)}",
            )
    config.num_compute_capabilities = len(wanted)
    for index, capability in enumerate(wanted):
        if not config.set_compute_capability(known[capability], index):
            # The library would go on and build for other capabilities.
            raise RetargetError(f"compute_capability: {TENSORRT_RTX.title} did not take '{capability}'")
    return (f"Runs on compute capabilities {', '.join(wanted)} only.", *notes)


def capabilities(library: ModuleType) -> dict[str, Any]:
    """``8.9`` to the library's own value; ``CURRENT`` needs a GPU, so it is none of them."""
    members = library.ComputeCapability.__members__
    return {
        f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name.startswith("SM") and len(name) > 3
    }


def refuse(network: Parsed, options: Options) -> Reasons:
    """Turing's compiler has no float32 GEMM; convolutions it has."""
    if TURING not in options.compute_capability:
        return []
    reasons = []
    for layer in products(network):
        if layer_type(layer) in {"MATRIX_MULTIPLY", "EINSUM"} and dtype_of(layer.get_input(0)) == "float32":
            name = onnx_node(layer) or layer.name
            reasons.append((name, network.operator(name), f"compute capability {TURING} has no float32 product"))
    return reasons


_BUILDER = Builder(TENSORRT_RTX, configure, refuse)
