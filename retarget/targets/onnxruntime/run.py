"""Execute ``model.onnx`` with ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

from retarget.adapt import Adapted
from retarget.facts import EmitFacts
from retarget.protocols import Runner
from retarget.session import Session
from retarget.targets.onnxruntime.emit import FILE


def open(artifact: Path, facts: EmitFacts, *, parity: bool, threads: int) -> Runner:  # noqa: A001 - the protocol's name
    """``parity`` runs the graph as it is written, without ONNX Runtime's optimizations."""
    session = Session(artifact / FILE, optimize=not parity, threads=threads)
    return Adapted(session, facts.inputs, facts.outputs)
