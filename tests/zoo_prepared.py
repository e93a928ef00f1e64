"""Models of the zoos as an emit step gets them: exported by the PyTorch frontend, and optimized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from small_net import options_of
from zoo import Family

from retarget import graph
from retarget.convert.pytorch import export, load
from retarget.passes import presets
from retarget.source import Source

if TYPE_CHECKING:
    import onnx_ir as ir

    from retarget.protocols import Feeds, Outputs
    from retarget.spec import TensorSpec


ROUNDED: Mapping[str, float] = {"mobilenet_v2": 36}
"""Decibels that a model keeps where all that it computes is rounded to float16, if fewer than 40. Its weights alone,
which are random, leave 44 of this one when they are rounded."""


@dataclass(frozen=True)
class Prepared:
    """``sizes`` of the symbolic dimensions, and at each of them feeds and what PyTorch makes of them."""

    family: Family
    model: ir.Model
    outputs: tuple[TensorSpec, ...]
    sizes: Sequence[Mapping[str, int]]
    feeds: Sequence[Feeds]
    expected: Sequence[Outputs]


def prepared(zoo: str, name: str, sizes: Sequence[Mapping[str, int]], folder: Path) -> Prepared:
    """Model ``name`` of the module ``zoo``, converted in ``folder``."""
    import torch

    family: Family = __import__(zoo).FAMILIES[name]
    weights, factory = folder / "weights.pt", folder / "build.py"
    torch.save(family.build().state_dict(), weights)
    factory.write_text(f"import {zoo}\n\ndef build():\n    return {zoo}.FAMILIES[{name!r}].build()\n")
    source = Source(weights, family.specs, family.shapes, family.outputs, (factory, "build"), options=options_of())
    exported_to = folder / "exported"
    exported_to.mkdir()
    exported = export.export(source, None, exported_to)
    model = load.load(exported_to, source, exported)
    for _, optimization in presets.build("default", family.shapes):
        model = optimization(model).model
    feeds = [family.feeds(each, seed=index) for index, each in enumerate(sizes)]
    with export.reference(source, exported) as runner:
        expected = [runner.run(fed) for fed in feeds]
    outputs = tuple(graph.value_spec(value) for value in model.graph.outputs)
    return Prepared(family, model, outputs, sizes, feeds, expected)
