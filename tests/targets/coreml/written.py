"""What the tests of Core ML share: a model written for a deployment target, and what the interpreter makes of it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import onnx_ir as ir
import target_testing

from retarget import catalog
from retarget.facts import EmitFacts
from retarget.protocols import EmitJob
from retarget.spec import DimRange
from retarget.targets.coreml import DeploymentTarget, Options

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs

TARGETS: tuple[DeploymentTarget, ...] = ("iOS15", "iOS16", "iOS17", "iOS18")


def job(model: ir.Model, target: DeploymentTarget = "iOS17", precision: str = "fp32", **shapes: DimRange) -> EmitJob:
    """As in `target_testing`, with ranges of ``shapes`` in place of its own."""
    made = target_testing.job("coreml", model, precision)
    options = Options(minimum_deployment_target=target)
    return EmitJob(made.precision, made.inputs, made.outputs, {**made.shapes, **shapes}, options)


def written(
    model: ir.Model, out: Path, target: DeploymentTarget = "iOS17", precision: str = "fp32", **shapes: DimRange
) -> EmitFacts:
    """The package in the folder ``out``."""
    return catalog.target_emit("coreml").emit(model, job(model, target, precision, **shapes), out)


def interpreted(model: ir.Model, *fed: Feeds, target: DeploymentTarget = "iOS17", **shapes: DimRange) -> list[Outputs]:
    """What the saved package gives for each of ``fed``."""
    with TemporaryDirectory() as folder:
        facts = written(model, Path(folder), target, "fp32", **shapes)
        return [target_testing.run("coreml", Path(folder), facts, feeds) for feeds in fed]


def check(
    model: ir.Model, *fed: Feeds, target: DeploymentTarget = "iOS17", atol: float = 1e-5, **shapes: DimRange
) -> None:
    """Hold the saved package against ONNX Runtime, NaN and infinities included. ``atol`` is times the largest value."""
    for feeds, found in zip(fed, interpreted(model, *fed, target=target, **shapes), strict=True):
        expected = target_testing.oracle(model, feeds)
        assert list(found) == list(expected)
        for name, right in expected.items():
            target_testing.assert_near(found[name], right, atol)


def check_open(
    model: ir.Model, *sizes: int, target: DeploymentTarget = "iOS17", atol: float = 1e-5, **shapes: DimRange
) -> None:
    """``check`` with all symbolic dimensions of each of ``sizes``, none of which the package is to fix."""
    with TemporaryDirectory() as folder:
        facts = written(model, Path(folder), target, "fp32", **shapes)
        assert not facts.sizes, facts.notes
        for size in sizes:
            feeds = target_testing.feeds(model, size)
            found = target_testing.run("coreml", Path(folder), facts, feeds)
            for name, right in target_testing.oracle(model, feeds).items():
                target_testing.assert_near(found[name], right, atol)
