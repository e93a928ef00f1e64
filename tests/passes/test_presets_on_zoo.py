"""The presets on exported models of every family: numbers, form, and a second run that is idle."""

from __future__ import annotations

import warnings
from collections import Counter

import onnx
import onnx_ir as ir
import pytest
import torch
from onnxscript import version_converter
from zoo import FAMILIES

from retarget.graph import OPSET, all_nodes, node_count
from retarget.passes import presets
from retarget.passes.check import run_checked

SLOW = {"convnext", "detr", "llama", "yolo"}
EXPORTED = [
    pytest.param(name, marks=pytest.mark.stress if name in SLOW else ())
    for name in sorted(set(FAMILIES) - {"swin", "gru"})
]
"""Swin's windows do not export with a symbolic batch; a GRU is unrolled as an LSTM is."""


def exported(name: str) -> ir.Model:
    """The family's model as the dynamo exporter writes it, not optimized, in our opset."""
    family = FAMILIES[name]
    dynamic = torch.export.Dim.DYNAMIC
    shapes = {
        spec.name: {axis: dynamic for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in family.specs
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            family.build(),
            kwargs={name: torch.from_numpy(array) for name, array in family.feeds().items()},
            dynamo=True,
            dynamic_shapes=shapes,
            optimize=False,
            verbose=False,
            output_names=list(family.outputs),
        )
    assert program is not None
    version_converter.ConvertVersionPass(OPSET)(program.model)
    return program.model


GONE = {
    "mobilenet_v2": {"BatchNormalization", "Pad", "CastLike", "Shape"},
    "resnet": {"BatchNormalization", "CastLike", "Shape"},
    "vit": {"IsNaN", "Erf", "Slice", "Where"},
    "bert": {"IsNaN", "CastLike"},
    "whisper_encoder": {"IsNaN", "Shape", "Slice", "Concat"},
}
"""Operators that the default preset leaves nothing of."""


@pytest.mark.parametrize("name", EXPORTED)
def test_presets(name: str) -> None:
    model = exported(name)
    for preset in presets.PRESETS:
        made = _checked(name, preset, model)
        if preset == "default":
            left = Counter(node.op_type for node in all_nodes(made))
            assert not GONE.get(name, set()) & set(left), left
            assert node_count(made) < node_count(model)


def _checked(name: str, preset: str, model: ir.Model) -> ir.Model:
    family = FAMILIES[name]
    sizes = {
        where: {symbol: getattr(dims, where) for symbol, dims in family.shapes.items()} for where in ("min", "max")
    }
    feeds = {where: family.feeds(at, seed) for seed, (where, at) in enumerate(sizes.items())}
    made, facts = run_checked(model, presets.build(preset, family.shapes), feeds, preset=preset, strict=True)
    assert facts.checked
    assert facts.snr_db is not None
    assert facts.snr_db > 100

    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    assert made.opset_imports[""] == OPSET
    assert not made.functions
    assert "Constant" not in {node.op_type for node in all_nodes(made)}
    assert [value.name for value in made.graph.outputs] == list(family.outputs)
    assert not [value.name for node in made.graph for value in node.outputs if value.shape is None]

    again = [one.name for one in presets.build(preset, family.shapes) if one.run(made).modified]
    assert not again, "a second run changes something"
    return made
