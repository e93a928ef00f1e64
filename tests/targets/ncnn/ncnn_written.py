"""What the tests of ncnn share: a model written as param and bin files, and what ncnn makes of it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import onnx_ir as ir
import target_testing

from retarget import catalog
from retarget.errors import Unsupported
from retarget.facts import EmitFacts
from retarget.protocols import EmitJob
from retarget.spec import DimRange
from retarget.targets.ncnn import Options, files
from retarget.targets.ncnn.emit import PARAM

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs


def job(model: ir.Model, precision: str = "fp32", **shapes: DimRange) -> EmitJob:
    """As in `target_testing`, with ranges of ``shapes`` in place of its own."""
    made = target_testing.job("ncnn", model, precision)
    return EmitJob(made.precision, made.inputs, made.outputs, {**made.shapes, **shapes}, Options())


def written(model: ir.Model, out: Path, precision: str = "fp32", **shapes: DimRange) -> EmitFacts:
    """The files in the folder ``out``."""
    return catalog.target_emit("ncnn").emit(model, job(model, precision, **shapes), out)


def layers(model: ir.Model, precision: str = "fp32", **shapes: DimRange) -> list[str]:
    """The types of the layers that are written, in their order, without inputs and constants."""
    with TemporaryDirectory() as folder:
        written(model, Path(folder), precision, **shapes)
        types = [line.type for line in files.read(Path(folder) / PARAM)]
        return [each for each in types if each not in ("Input", "MemoryData")]


def executed(model: ir.Model, *fed: Feeds, precision: str = "fp32", **shapes: DimRange) -> list[Outputs]:
    """What ncnn gives for each of ``fed``."""
    with TemporaryDirectory() as folder:
        facts = written(model, Path(folder), precision, **shapes)
        return [target_testing.run("ncnn", Path(folder), facts, feeds) for feeds in fed]


def check(model: ir.Model, *fed: Feeds, atol: float = 1e-5, **shapes: DimRange) -> None:
    """Hold the files against ONNX Runtime, NaN and infinities included. ``atol`` is times the largest value."""
    for feeds, found in zip(fed, executed(model, *fed, precision="fp32", **shapes), strict=True):
        expected = target_testing.oracle(model, feeds)
        assert list(found) == list(expected)
        for name, right in expected.items():
            target_testing.assert_near(found[name], right, atol)


def refused(model: ir.Model, **shapes: DimRange) -> str:
    """The message with which the model is refused."""
    with TemporaryDirectory() as folder:
        try:
            written(model, Path(folder), "fp32", **shapes)
        except Unsupported as error:
            return str(error)
    raise AssertionError("it was not refused")
