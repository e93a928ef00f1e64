"""Random graphs through the Core ML target: for each deployment target, at two sizes, in float, float16 and int8.

Oracles: ONNX Runtime, for float on each node alone, else on the graph with its casts, or its Quantize- and
DequantizeLinear. A node that is refused is not a fault, and its graph is passed over; every other graph must hold.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import pytest
import random_graphs
from random_graphs import SHAPES, SIZES, Maker
from written import TARGETS

from retarget import catalog
from retarget.calibration.observers import observe
from retarget.errors import Unsupported
from retarget.passes.fp16 import CastFloat16
from retarget.protocols import EmitJob
from retarget.schemes import COREML
from retarget.session import Session
from retarget.targets.coreml import Options

if TYPE_CHECKING:
    import onnx_ir as ir

    from retarget.protocols import Feeds, Outputs

Precision: TypeAlias = Literal["fp32", "fp16", "int8"]

FEW = 6
MANY = 100
"""Graphs in one test."""
RTOL = 1e-4
"""Of the largest number of an output, in float."""
HALF = 1e-2
"""The same in float16: every node rounds."""
STEPS = 4.0
"""Of an output's range in 255, in int8: sums in another order put values across the edge of two codes."""


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_random_graphs(precision: Precision, tmp_path: Path) -> None:
    assert sum(holds(seed, precision, tmp_path / str(seed)) for seed in range(FEW)) > FEW // 2


def test_graph_that_once_failed(tmp_path: Path) -> None:
    """A constant is taken from what a convolution gives, which one of coremltools' passes could not join."""
    assert holds(1006, "fp32", tmp_path / "out")


@pytest.mark.stress
@pytest.mark.parametrize("start", range(1000, 3000, MANY))
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_many_random_graphs(start: int, precision: Precision, tmp_path: Path) -> None:
    seeds = range(start, start + MANY)
    assert sum(holds(seed, precision, tmp_path / str(seed)) for seed in seeds) > MANY // 2


def holds(seed: int, precision: Precision, out: Path) -> bool:
    """Whether the graph of ``seed`` can be written; what is written must be right."""
    if precision == "fp32":
        maker = random_graphs.made(seed)
        names, model = maker.outputs(), maker.model()
        right: list[Outputs] = [{name: maker.values[name][at] for name in names} for at in range(len(SIZES))]
        bounds = _bounds(right, RTOL)
    else:
        maker = random_graphs.made(seed, change=2e-3, quantizable=precision == "int8")
        model = random_graphs.quantized(maker, COREML, "coreml") if precision == "int8" else _halved(maker)
        with Session(model) as session:
            right = [session.run(feeds) for feeds in _feeds(maker)]
        bounds = _bounds(right, STEPS / 255 if precision == "int8" else HALF)
    return _agrees(f"seed {seed}", model, _job(maker, precision), _feeds(maker), right, bounds, out)


def _halved(maker: Maker) -> ir.Model:
    """As a build makes it for Core ML in float16."""
    model = maker.model()
    return CastFloat16(observe(model, _feeds(maker)), io="float32")(model).model


def _feeds(maker: Maker) -> list[Feeds]:
    return [maker.feeds(at) for at in range(len(SIZES))]


def _bounds(right: list[Outputs], share: float) -> Mapping[str, float]:
    return {name: share * max(float(np.abs(each[name]).max()) for each in right) for name in right[0]}


def _job(maker: Maker, precision: Precision) -> EmitJob:
    """For a deployment target that the seed chooses."""
    inputs = random_graphs.specs(maker, [name for name in maker.inputs if name in maker.read()])
    outputs = random_graphs.specs(maker, maker.outputs())
    target = random.Random(maker.seed).choice(TARGETS[2:] if precision == "int8" else TARGETS)
    return EmitJob(precision, inputs, outputs, SHAPES, Options(minimum_deployment_target=target))


def _agrees(
    case: str,
    model: ir.Model,
    job: EmitJob,
    feeds: list[Feeds],
    right: list[Outputs],
    bounds: Mapping[str, float],
    out: Path,
) -> bool:
    out.mkdir()
    try:
        facts = catalog.target_emit("coreml").emit(model, job, out)
    except Unsupported:
        return False
    with catalog.target_run("coreml").open(out, facts, parity=True, threads=1) as runner:
        for at, size in enumerate(SIZES):
            if facts.sizes.get("N", size) == size:
                random_graphs.assert_close(f"{case}, N={size}", runner.run(feeds[at]), right[at], bounds)
    return True
