"""Between layers that compute in int8: nothing that need not be, and int8 where nobody reads floats."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from retarget.targets.ncnn.int8 import AND_RESULT, BIAS, CONVOLUTIONS, SCALES, TURN, TURNED
from retarget.targets.ncnn.ops.elementwise import WITH_NUMBER
from retarget.targets.ncnn.program import Blob, Layer, Program, Weight, memory_data
from retarget.targets.ncnn.rewriting import Graph, is_plain_reshape

_ELEMENTWISE = frozenset({
    "BNLL", "CELU", "Clip", "ELU", "Erf", "Exp", "GELU", "HardSigmoid", "HardSwish", "Log", "Mish", "Power", "ReLU",
    "SELU", "Shrink", "Sigmoid", "Swish", "TanH", "Threshold", "UnaryOp",
})  # fmt: skip
"""Layers of one operand that look at one element at a time."""


# ---- products


@dataclass(frozen=True, eq=False)
class _Turned:
    """A blob that holds ``source``, which an int8 layer gives, behind layers that move its elements."""

    source: Blob
    moves: tuple[Layer, ...]
    """A Permute that turns its axes, or a Reshape, or one behind the other."""
    alone: bool = True
    """Whether nothing else reads what is between them."""

    @property
    def is_turned(self) -> bool:
        return self.moves[0].type == "Permute"


def turned_late(program: Program) -> Program:
    """``program`` with what is done element by element to an int8 product in front of the turn of its axes, and two
    turns behind one another left out: a bias and an activation are then the layer's own, and its result may be int8.

    Given:: Permute(ReLU(Permute(Convolution(x)))).  Result:: ReLU(Convolution(x)); and so for a Reshape as well.
    """
    graph = Graph(program)
    known: dict[Blob, _Turned] = {}
    instead: dict[Blob, Blob] = {}
    layers: list[Layer] = []
    for given in graph.layers:
        bottoms = tuple(instead.get(blob, blob) for blob in given.bottoms)
        layer = given if bottoms == given.bottoms else replace(given, bottoms=bottoms)
        found = _follow(graph, layer, known)
        if isinstance(found, Blob):
            instead[layer.tops[0]] = found
            continue
        layers += found
    return replace(program, layers=layers)


def _follow(graph: Graph, layer: Layer, known: dict[Blob, _Turned]) -> list[Layer] | Blob:
    """What stands for ``layer``: layers, or what its readers read instead. ``known`` grows by what is moved."""
    if not layer.bottoms or len(layer.tops) > 1:
        return [layer]
    bottom, top = layer.bottoms[0], layer.tops[0]
    turned = known.get(bottom)
    if _is_turn(layer) or is_plain_reshape(layer):
        is_back = turned is not None and turned.is_turned == _is_turn(layer) and _is_like(turned.source, top)
        if turned is not None and is_back and top not in graph.outputs:
            return turned.source
        if turned is None:
            maker = graph.maker[bottom]
            if maker.type in CONVOLUTIONS and maker.params.get(SCALES) and graph.own(bottom, *CONVOLUTIONS):
                known[top] = _Turned(bottom, (layer,))
        elif not _is_turn(layer) and len(turned.moves) == 1 and turned.is_turned:
            alone = graph.own(bottom, "Permute") is not None
            known[top] = replace(turned, moves=(*turned.moves, layer), alone=alone)
        return [layer]
    if turned is not None and (moved := _moved(graph, layer, turned)) is not None:
        known[top], layers = moved
        return layers
    return [layer]


def _is_like(one: Blob, other: Blob) -> bool:
    return one.dims == other.dims and one.rows == other.rows


def _is_turn(layer: Layer) -> bool:
    return layer.type == "Permute" and layer.params.get(TURN) == TURNED


def _moved(graph: Graph, layer: Layer, turned: _Turned) -> tuple[_Turned, list[Layer]] | None:
    """``layer`` in front of the moves, and what moves its result; None where it looks at more than one element."""
    (bottom, *others), (top,), source = layer.bottoms, layer.tops, turned.source
    if not turned.alone or graph.own(bottom, "Permute", "Reshape") is None:
        return None
    made: list[Layer] = []
    operands = [source]
    if others:
        row = graph.constant(others[0]) if layer.type == "BinaryOp" and top.dims == bottom.dims else None
        is_by_channel = turned.is_turned or source.size == source.dims[0]
        if row is None or not is_by_channel or not row.shape[-1] == row.size == source.dims[0]:
            return None
        operands.append(Blob((row.size, 1, 1)))
        made.append(memory_data(row, operands[1]))
    elif layer.type not in _ELEMENTWISE and not (layer.type == "BinaryOp" and layer.params.get(WITH_NUMBER)):
        return None
    result = Blob(source.dims, source.rows)
    made.append(Layer(layer.type, tuple(operands), (result,), layer.params, layer.weights, layer.origin))
    moves: list[Layer] = []
    blob = result
    for move in turned.moves:
        end = top if move is turned.moves[-1] else Blob(move.tops[0].dims, move.tops[0].rows)
        moves.append(Layer(move.type, (blob,), (end,), move.params, origin=move.origin))
        graph.maker[end] = moves[-1]
        blob = end
    return _Turned(result, tuple(moves)), made + moves


# ---- convolutions


def requantized(program: Program) -> Program:
    """``program`` with convolutions that give int8 where all that reads them takes it, in one scale.

    They round the same numbers to the same codes as the readers would.
    """
    readers: dict[Blob, list[Layer]] = defaultdict(list)
    for layer in program.layers:
        for blob in layer.bottoms:
            readers[blob].append(layer)
    outputs = set(program.outputs.values())
    layers: list[Layer] = []
    for layer in program.layers:
        if _factor(layer) is not None and layer.tops[0] not in outputs:
            wanted = {_factor(reader) for reader in readers[layer.tops[0]]}
            if len(wanted) == 1 and (factor := wanted.pop()) is not None:
                layers.append(_giving_codes(layer, factor))
                continue
        layers.append(layer)
    return replace(program, layers=layers)


def _factor(layer: Layer) -> float | None:
    """What ``layer`` multiplies by before it rounds; None where it does not."""
    if layer.type not in CONVOLUTIONS or not layer.params.get(SCALES):
        return None
    (factor,) = layer.weights[3 if layer.params.get(BIAS) else 2].array.tolist()
    return float(factor)


def _giving_codes(layer: Layer, factor: float) -> Layer:
    (top,) = layer.tops
    top.kind = "codes"
    scales = layer.params[SCALES]
    assert isinstance(scales, int)
    weights = (*layer.weights, Weight(np.asarray([factor], np.float32), tagged=False))
    params = {**layer.params, SCALES: scales + AND_RESULT}
    return replace(layer, params=params, weights=weights)
