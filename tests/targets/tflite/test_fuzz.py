"""Random graphs through the TFLite target: in both layouts, by two kernel sets, at two sizes, in float and in int8.

Oracles: ONNX Runtime, for float on each node alone, for int8 on the graph with its Quantize- and DequantizeLinear.
A node that is refused is not a fault, and its graph is passed over; every other graph must hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
import pytest
import random_graphs
from random_graphs import SHAPES, SIZES, Maker

from retarget import catalog
from retarget.errors import Unsupported
from retarget.protocols import EmitJob
from retarget.schemes import TFLITE
from retarget.session import Session
from retarget.targets.tflite import Options

if TYPE_CHECKING:
    import onnx_ir as ir

    from retarget.protocols import Feeds, Outputs

FEW = 8
MANY = 100
"""Graphs in one test."""
RTOL = 1e-4
"""Of the largest number of an output, in float."""
STEPS = 16.0
"""Of an output's range in 255, in int8: what kernels round otherwise grows from node to node."""


@pytest.mark.parametrize("layout", [None, "nhwc"])
def test_random_graphs(layout: Literal["nhwc"] | None, tmp_path: Path) -> None:
    assert sum(holds(seed, layout, tmp_path) for seed in range(FEW)) > FEW // 2


def test_random_graphs_in_int8(tmp_path: Path) -> None:
    assert sum(holds_in_int8(seed, tmp_path) for seed in range(FEW)) > FEW // 2


@pytest.mark.parametrize("seed", [1463, 4269, 4480])
def test_graphs_that_once_failed_in_int8(seed: int, tmp_path: Path) -> None:
    """What was written over too early; memory that was let go where a larger size was asked for, twice."""
    assert holds_in_int8(seed, tmp_path)


@pytest.mark.stress
@pytest.mark.parametrize("start", range(1000, 3000, MANY))
@pytest.mark.parametrize("layout", [None, "nhwc"])
def test_many_random_graphs(start: int, layout: Literal["nhwc"] | None, tmp_path: Path) -> None:
    assert sum(holds(seed, layout, tmp_path) for seed in range(start, start + MANY)) > MANY // 2


@pytest.mark.stress
@pytest.mark.parametrize("start", range(1000, 2000, MANY))
def test_many_random_graphs_in_int8(start: int, tmp_path: Path) -> None:
    assert sum(holds_in_int8(seed, tmp_path) for seed in range(start, start + MANY)) > MANY // 2


def holds(seed: int, layout: Literal["nhwc"] | None, out: Path) -> bool:
    """Whether the graph of ``seed`` can be written; what is written must be right."""
    maker = random_graphs.made(seed)
    names = maker.outputs()
    right = [{name: maker.values[name][at] for name in names} for at in range(len(SIZES))]
    model, job = maker.model(), _job(maker, "fp32", layout)
    bounds = {name: RTOL * max(float(np.abs(array).max()) for array in maker.values[name]) for name in names}
    return _agrees(f"seed {seed}", model, job, [maker.feeds(at) for at in range(len(SIZES))], right, bounds, out)


def holds_in_int8(seed: int, out: Path) -> bool:
    """The same for the graph with everything quantized that the scheme quantizes, clipped to what was seen."""
    maker = random_graphs.made(seed, change=2e-3, quantizable=True)
    model = random_graphs.quantized(maker, TFLITE, "tflite")
    feeds = [maker.feeds(at) for at in range(len(SIZES))]
    right: list[Outputs] = []
    with Session(model) as session:
        right.extend(session.run(feed) for feed in feeds)
    bounds = {name: STEPS / 255 * max(float(np.ptp(each[name])) for each in right) for name in right[0]}
    return _agrees(f"seed {seed}", model, _job(maker, "int8", None), feeds, right, bounds, out)


def _job(maker: Maker, precision: str, layout: Literal["nhwc"] | None) -> EmitJob:
    inputs = random_graphs.specs(maker, [name for name in maker.inputs if name in maker.read()])
    outputs = random_graphs.specs(maker, maker.outputs())
    return EmitJob(precision, inputs, outputs, SHAPES, Options(io_layout=layout))


def _agrees(
    case: str,
    model: ir.Model,
    job: EmitJob,
    feeds: list[Feeds],
    right: list[Outputs],
    bounds: Mapping[str, float],
    out: Path,
) -> bool:
    try:
        facts = catalog.target_emit("tflite").emit(model, job, out)
    except Unsupported:
        return False
    for kernels in ("xnnpack", "builtin"):
        chosen = msgspec.structs.replace(facts, settings={**facts.settings, "kernels": kernels})
        with catalog.target_run("tflite").open(out, chosen, parity=True, threads=1) as runner:
            for at, size in enumerate(SIZES):
                if chosen.sizes.get("N", size) == size:
                    random_graphs.assert_close(f"{case}, {kernels}, N={size}", runner.run(feeds[at]), right[at], bounds)
    return True


def test_a_product_of_more_axes_than_the_kernel_takes_is_refused(tmp_path: Path) -> None:
    assert not holds(6023, "nhwc", tmp_path)
