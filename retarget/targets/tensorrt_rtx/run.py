"""Executing an engine of TensorRT-RTX on an NVIDIA GPU."""

from __future__ import annotations

from pathlib import Path

from retarget.facts import EmitFacts
from retarget.protocols import Runner
from retarget.targets.tensorrt.flavour import TENSORRT_RTX
from retarget.targets.tensorrt.run import open_engine


def open(artifact: Path, facts: EmitFacts, *, parity: bool, threads: int) -> Runner:  # noqa: A001, ARG001 - the protocol's
    """The engine in ``artifact`` on the first GPU. Parity and default are one: an engine's arithmetic is fixed."""
    return open_engine(TENSORRT_RTX, artifact, facts)
