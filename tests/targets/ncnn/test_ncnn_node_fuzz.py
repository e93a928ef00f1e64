"""Random single nodes through the ncnn target, at two sizes of each open dimension.

The oracle is ONNX Runtime. A node that is refused is no fault, and one that ONNX Runtime does not take is passed over;
every other must be written, execute, and give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import random_nodes
import target_testing
from random_nodes import POINTS, SHAPES, Drawn

from retarget import graph
from retarget.errors import ToolchainFailure, Unsupported
from retarget.protocols import EmitJob
from retarget.session import Session
from retarget.spec import TensorSpec, symbols
from retarget.targets.ncnn import Options, emit
from retarget.targets.ncnn.program import MOST_DIMS

FEW = 200
MANY = 1000
"""Nodes in one test."""
RTOL = 2e-5
"""Of the largest number."""
HALF = 4e-3
"""The same where float16 is rounded to."""


def test_random_nodes(tmp_path: Path) -> None:
    assert sum(holds(seed, tmp_path / str(seed)) for seed in range(FEW)) > FEW * 0.6


@pytest.mark.stress
@pytest.mark.parametrize("start", range(10_000, 20_000, MANY))
def test_many_random_nodes(start: int, tmp_path: Path) -> None:
    assert sum(holds(seed, tmp_path / str(seed)) for seed in range(start, start + MANY)) > MANY * 0.6


def holds(seed: int, out: Path) -> bool:
    """Whether the node of ``seed`` was written and compared; what is written must be right."""
    drawn, proto, feeds = random_nodes.made(seed)
    what = f"seed {seed}: {drawn.operator} {drawn.attributes} of {drawn.operands}"
    try:
        model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
        with Session(model) as session:
            right = [session.run(each) for each in feeds]
    except (ToolchainFailure, onnx.shape_inference.InferenceError):
        return False
    if any(value.shape is None for value in model.graph.outputs):
        return False
    if any(0 in array.shape for each in right for array in each.values()):
        return False
    if any(_is_untold(graph.value_spec(value).shape) for value in model.graph.outputs):
        return False
    inputs, outputs = (tuple(map(graph.value_spec, values)) for values in (model.graph.inputs, model.graph.outputs))
    job = EmitJob("fp32", inputs, outputs, {name: SHAPES[name] for name in symbols(inputs)}, Options())
    rtol = _rtol(drawn, outputs)
    refusals = emit.check(model, job)
    out.mkdir()
    try:
        facts = emit.emit(model, job, out)
    except Unsupported:
        assert refusals, what
        return False
    assert not refusals, what
    for sizes, fed, expected in zip(POINTS, feeds, right, strict=True):
        if any(sizes[name] != size for name, size in facts.sizes.items()):
            continue
        found = target_testing.run("ncnn", out, facts, fed)
        for name, array in expected.items():
            assert found[name].shape == array.shape, what
            try:
                target_testing.assert_near(found[name], array, rtol)
            except AssertionError as difference:
                raise AssertionError(f"{what} at {sizes}") from difference
    return True


def _rtol(drawn: Drawn, outputs: Sequence[TensorSpec]) -> float:
    types = [operand.dtype for operand in drawn.operands if operand is not None] + [each.dtype for each in outputs]
    return HALF if "float16" in types else RTOL


def _is_untold(shape: Sequence[int | str]) -> bool:
    """Whether two axes may be one dim of a blob, whose sizes are computed: of these ncnn gives the product alone."""
    return len(shape) > MOST_DIMS and sum(isinstance(dim, str) and dim not in SHAPES for dim in shape) > 1
