"""Crops that cut one blob into parts, which are all of it → one Slice, which reads it once.

Given::   Crop(x, 0, 2), Crop(x, 2, 6), Crop(x, 6, to the end), along one axis
Result::  Slice(x, [2, 4, what is left])
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from retarget.targets.ncnn.ops.slices import AXES, ENDS, REST, STARTS
from retarget.targets.ncnn.program import Blob, Layer, Program

_CUT = {STARTS, ENDS, AXES}


def sliced(program: Program) -> Program:
    """``program`` with Slices. All of its layers are used, and its numbers hold at every size that is open."""
    cuts: dict[tuple[Blob, int], list[Layer]] = defaultdict(list)
    for layer in program.layers:
        # A Crop that says more than what it cuts is not a part of a Slice, which would not say it.
        if layer.type == "Crop" and layer.params.keys() == _CUT and len(axes := _numbers(layer, AXES)) == 1:
            cuts[layer.bottoms[0], axes[0]].append(layer)
    instead: dict[Layer, Layer | None] = {}
    for (_, axis), crops in cuts.items():
        ordered = sorted(crops, key=_start)
        if _is_all(ordered):
            made = Layer("Slice", crops[0].bottoms, tuple(crop.tops[0] for crop in ordered), origin=crops[0].origin)
            made.params = {0: [*(after - before for before, after in pairwise(map(_start, ordered))), REST], 1: axis}
            instead |= dict.fromkeys(crops) | {crops[0]: made}
    layers = (instead.get(layer, layer) for layer in program.layers)
    return replace(program, layers=[layer for layer in layers if layer is not None])


def _is_all(crops: Sequence[Layer]) -> bool:
    """Whether each begins where the one in front ends, the first at 0, and the last ends where the axis does, whatever
    its size."""
    begins, ends = [_start(crop) for crop in crops], [_numbers(crop, ENDS)[0] for crop in crops]
    return len(crops) > 1 and begins == [0, *ends[:-1]] and ends[-1] == REST and min(begins) >= 0


def _start(crop: Layer) -> int:
    return _numbers(crop, STARTS)[0]


def _numbers(crop: Layer, key: int) -> list[int]:
    numbers = crop.params.get(key, ())
    assert isinstance(numbers, Sequence)
    return [int(number) for number in numbers]
