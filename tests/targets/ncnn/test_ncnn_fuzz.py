"""Random graphs through the ncnn target, at two batches, in float, float16 and int8.

Oracles: ONNX Runtime, for float on each node alone, else on the graph as it is or with its Quantize- and
DequantizeLinear. A node that is refused is not a fault, and its graph is passed over; every other graph must hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import pytest
import random_graphs
from random_graphs import SHAPES, SIZES, Maker

from retarget import catalog
from retarget.errors import Unsupported
from retarget.protocols import EmitJob
from retarget.schemes import NCNN
from retarget.session import Session
from retarget.targets.ncnn import Options

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs

Precision: TypeAlias = Literal["fp32", "fp16", "int8"]

FEW = 6
MANY = 100
"""Graphs in one test."""
RTOL = 1e-4
"""Of the largest number of an output, in float."""
HALF = 1e-2
"""The same with weights of float16."""
STEPS = 8.0
"""Of an output's range in 255, in int8: sums in another order put values across the edge of two codes, and what is cut
off below ends at -127 in ncnn and at -128 in ONNX."""


TURNED = {("fp16", 1375)}
"""A Less of what weights of float16 bring from one side of the other operand to the other."""


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_random_graphs(precision: Precision, tmp_path: Path) -> None:
    assert sum(holds(seed, precision, tmp_path / str(seed)) for seed in range(FEW)) > FEW // 2


@pytest.mark.stress
@pytest.mark.parametrize("start", range(1000, 3000, MANY))
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_many_random_graphs(start: int, precision: Precision, tmp_path: Path) -> None:
    seeds = [seed for seed in range(start, start + MANY) if (precision, seed) not in TURNED]
    assert sum(holds(seed, precision, tmp_path / str(seed)) for seed in seeds) > MANY // 2


def holds(seed: int, precision: Precision, out: Path) -> bool:
    """Whether the graph of ``seed`` can be written; what is written must be right."""
    if precision == "fp32":
        maker = random_graphs.made(seed)
        names, model = maker.outputs(), maker.model()
        right: list[Outputs] = [{name: maker.values[name][at] for name in names} for at in range(len(SIZES))]
        share = RTOL
    else:
        maker = random_graphs.made(seed, change=2e-3, quantizable=precision == "int8")
        model = random_graphs.quantized(maker, NCNN, "ncnn") if precision == "int8" else maker.model()
        with Session(model) as session:
            right = [session.run(feeds) for feeds in _feeds(maker)]
        share = STEPS / 255 if precision == "int8" else HALF
    bounds = {name: share * max(float(np.abs(each[name]).max()) for each in right) for name in right[0]}
    inputs = random_graphs.specs(maker, [name for name in maker.inputs if name in maker.read()])
    job = EmitJob(precision, inputs, random_graphs.specs(maker, maker.outputs()), SHAPES, Options())
    out.mkdir()
    try:
        facts = catalog.target_emit("ncnn").emit(model, job, out)
    except Unsupported:
        return False
    # These graphs can have every size: a mistake of the lowering at some size would be taken for the model's.
    assert not [note for note in facts.notes if "the model cannot have" in note], f"seed {seed}"
    with catalog.target_run("ncnn").open(out, facts, parity=True, threads=1) as runner:
        for at, size in enumerate(SIZES):
            if facts.sizes.get("N", size) == size:
                found = runner.run(maker.feeds(at))
                random_graphs.assert_close(f"seed {seed}, N={size}", found, right[at], bounds)
    return True


def _feeds(maker: Maker) -> list[Feeds]:
    return [maker.feeds(at) for at in range(len(SIZES))]
