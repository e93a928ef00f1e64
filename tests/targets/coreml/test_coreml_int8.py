"""Quantized models against ONNX Runtime, which computes in floats between the roundings, as MIL does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
import target_testing as t
import written
from simulated import simulation, whole

from retarget import catalog, graph
from retarget.compare import snr_db
from retarget.protocols import EmitJob
from retarget.schemes import COREML
from retarget.spec import DimRange
from retarget.targets.coreml import DeploymentTarget, Options
from retarget.targets.coreml.interpreter.program import read

if TYPE_CHECKING:
    from retarget.facts import EmitFacts
    from retarget.protocols import Feeds


def emitted(model: ir.Model, shapes: Mapping[str, DimRange], out: Path, target: DeploymentTarget) -> EmitFacts:
    inputs = tuple(graph.value_spec(value) for value in model.graph.inputs)
    outputs = tuple(graph.value_spec(value) for value in model.graph.outputs)
    job = EmitJob("int8", inputs, outputs, shapes, Options(minimum_deployment_target=target))
    return catalog.target_emit("coreml").emit(model, job, out)


TARGETS: tuple[DeploymentTarget, ...] = ("iOS17", "iOS18")


@pytest.mark.parametrize(
    "name",
    ["digits", "bert", *(pytest.param(name, marks=pytest.mark.stress) for name in ("resnet", "mobilenet_v2", "vit"))],
)
def test_codes_are_those_of_the_simulation(name: str, tmp_path: Path) -> None:
    floats, shapes, feeds = whole(name, tmp_path / "source")
    model = simulation(floats, feeds, COREML)
    for target in TARGETS:
        (tmp_path / target).mkdir()
        hold(floats, model, shapes, feeds, tmp_path / target, target)


def hold(
    floats: ir.Model,
    model: ir.Model,
    shapes: Mapping[str, DimRange],
    feeds: Sequence[Feeds],
    out: Path,
    target: DeploymentTarget,
) -> None:
    facts = emitted(model, shapes, out, target)
    assert facts.precision.weights == "int8"
    assert facts.precision.activations == "int8"
    for fed in feeds:
        found, right, unrounded = t.run("coreml", out, facts, fed), t.oracle(model, fed), t.oracle(floats, fed)
        for output, expected in right.items():
            rounding = snr_db(unrounded[output], expected)
            # Sums in another order put one value in a million across the edge of two codes: by far less than what
            # rounding itself changes.
            assert snr_db(expected, found[output]) > rounding + 20
            assert rounding < 60


def test_scales_stay_float32_where_the_rest_is_float16(tmp_path: Path) -> None:
    """A scale of float16 would be another number, and codes at the edge of two would flip."""
    model = t.model("""g (float16[N,4,8,8] x, float[8,4,3,3] w_conv) => (float16[N,8,6,6] y) {
        scale = Constant <value_float = 0.0123> ()
        zero = Constant <value = int8 {0}> ()
        [wide] a = Cast <to = 1> (x)
        [round] b = QuantizeLinear (a, scale, zero)
        [back] c = DequantizeLinear (b, scale, zero)
        [conv] d = Conv (c, w_conv)
        [half] y = Cast <to = 10> (d)
    }""")
    facts = written.written(model, tmp_path, "iOS17", "int8")
    (function,) = read(tmp_path / "model.mlpackage").functions.values()
    kinds = {operation.type: operation for operation in function.block.operations}
    named = {name: operation for operation in function.block.operations for name in operation.outputs}
    (scale,) = kinds["quantize"].inputs["scale"]
    assert isinstance(scale, str)
    assert float(np.asarray(named[scale].value.read())) == np.float32(0.0123)
    feeds = t.feeds(model, 3)
    t.assert_close(t.run("coreml", tmp_path, facts, feeds)["y"], t.oracle(model, feeds)["y"], atol=1e-3)


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_integers_are_dequantized_wherever_they_come_from(kind: str) -> None:
    """As models quantized elsewhere have them: moved between rounding and dequantizing, or inputs."""
    model = t.model(f"""g (float[N,3,4] x, {kind}[N,3] given) => (float[N,4,3] y, float[N,3] z) {{
        scale = Constant <value_float = 0.02> ()
        scales = Constant <value_floats = [0.5, 0.25, 2.0]> ()
        zero = Constant <value = {kind} {{3}}> ()
        zeros = Constant <value = {kind}[3] {{1, 0, 2}}> ()
        [round] a = QuantizeLinear (x, scale, zero)
        [move] b = Transpose <perm = [0, 2, 1]> (a)
        [back] y = DequantizeLinear (b, scale, zero)
        [inputs] z = DequantizeLinear <axis = 1> (given, scales, zeros)
    }}""")
    written.check(model, t.feeds(model, 2), t.feeds(model, 5))
