"""Models as a scheme quantizes them, which simulate int8 in floats: what the int8 of a target is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import digits_net
import onnx_ir as ir
from zoo_prepared import prepared

from retarget import graph
from retarget.calibration.methods import clip
from retarget.calibration.observers import observe
from retarget.passes.quantize import Quantize
from retarget.spec import DimRange

if TYPE_CHECKING:
    from retarget.protocols import Feeds
    from retarget.schemes import Grid, QuantScheme


def simulation(model: ir.Model, feeds: Sequence[Feeds], scheme: QuantScheme) -> ir.Model:
    """``model`` by ``scheme``, of the ranges that ``feeds`` have."""
    ranges = observe(model, feeds)

    def choose(name: str, grid: Grid) -> tuple[float, float] | None:
        return clip(ranges[name], grid, "minmax") if name in ranges else None

    return Quantize(scheme, choose)(graph.clone(model)).model


def whole(name: str, folder: Path) -> tuple[ir.Model, Mapping[str, DimRange], Sequence[Feeds]]:
    """The digits, or model ``name`` of the zoo, its dimensions, and feeds of two sizes."""
    if name == "digits":
        images = digits_net.rows(digits_net.CALIBRATION, 0, 72)["image"]
        return (
            ir.from_proto(digits_net.digits_model()),
            {"N": DimRange(1, 8, 64)},
            [{"image": images[:64]}, {"image": images[64:]}],
        )
    folder.mkdir()
    source = prepared("zoo", name, [{"N": 1}, {"N": 3}], folder)
    return source.model, source.family.shapes, source.feeds
