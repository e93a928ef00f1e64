"""Layers that one layer computes as well: biases and activations into the layer in front, gates, Reshapes in a row.

A rule looks at one layer, the last of those that it replaces, and gives what stands for them, which ends at the same
blob; its docstring has what is given and what results. What ONNX's graph says in one node, and what the passes in front
make of it (Gelu, LayerNormalization, Attention), is one layer without a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.ncnn.fusing_attention import attention, projections, rotary
from retarget.targets.ncnn.ops.elementwise import ADD, MUL, NUMBER, SQRT, SQUARE, WITH_NUMBER
from retarget.targets.ncnn.ops.matmul import BIAS_KIND, BIAS_OF_COLUMNS, HOLDS_RIGHT, NO_BIAS
from retarget.targets.ncnn.ops.reduction import MEAN
from retarget.targets.ncnn.ops.shape import ORDERS
from retarget.targets.ncnn.program import (
    MASK,
    MOST,
    Blob,
    Layer,
    Param,
    Program,
    Weight,
    is_kept_from_half,
    keep_from_half,
    reshape_to,
)
from retarget.targets.ncnn.rewriting import Found, Graph, Rule, is_plain_reshape
from retarget.targets.ncnn.rows import regrouped

if TYPE_CHECKING:
    from retarget.protocols import Array

ACTIVATION, ACTIVATION_PARAMS = 9, 10
"""Keys of layers with an activation: its number below, and its parameters."""
RELU, LEAKY_RELU, CLIP, SIGMOID, MISH, HARD_SWISH = 1, 2, 3, 4, 5, 6

RSQRT, RECIPROCAL = 6, 15
"""``0`` of UnaryOp."""

_CONVOLUTIONS = frozenset(
    f"{kind}{axes}"
    for kind in ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise")
    for axes in ("", "1D", "3D")
) | {"DeformableConv2D"}

_BIAS_TERM = dict.fromkeys(_CONVOLUTIONS, 5) | {"InnerProduct": 1}
"""The key that says whether a layer has a bias, which is then its second weight."""


def fused(program: Program) -> Program:
    """``program`` with fewer layers that compute the same, roundings aside."""
    graph = Graph(program)
    layers: list[Layer] = []
    gone: set[Layer] = set()
    instead: dict[Blob, Blob] = {}
    for given in graph.layers:
        layer: Layer | None = given
        if any(blob in instead for blob in given.bottoms):
            layer = graph.moved(given, tuple(instead.get(blob, blob) for blob in given.bottoms))
        while layer is not None and (found := _first(graph, layer)) is not None:
            if any(map(is_kept_from_half, found.gone)):
                keep_from_half([*found.before, *([] if found.layer is None else [found.layer])])
            graph.put(found)
            gone.update(found.gone)
            layers += found.before
            if found.instead is not None:
                instead[layer.tops[0]] = found.instead
            layer = found.layer
        if layer is not None:
            layers.append(layer)
    return Program(
        [layer for layer in layers if layer not in gone], dict(program.inputs), dict(program.outputs), program.shapes
    )


def _first(graph: Graph, layer: Layer) -> Found | None:
    return next((found for rule in RULES if (found := rule(graph, layer)) is not None), None)


def _changed(layer: Layer, last: Layer, params: dict[int, Param], weights: Sequence[Weight] | None = None) -> Layer:
    """``layer`` with other params, which ends where ``last`` does."""
    return Layer(
        layer.type, layer.bottoms, last.tops, dict(sorted({**layer.params, **params}.items())),
        layer.weights if weights is None else tuple(weights), layer.origin, layer.name,
    )  # fmt: skip


# ---- what moves nothing


def one_reshape(graph: Graph, last: Layer) -> Found | None:
    """Given:: Reshape(Reshape(x)).  Result:: Reshape(x), or x itself."""
    if not is_plain_reshape(last):
        return None
    (top,), (blob,) = last.tops, last.bottoms
    source, first = blob, None
    while is_plain_reshape(graph.maker[source]):
        first = graph.maker[source]
        (source,) = first.bottoms
    if source.dims == top.dims and source.rows == top.rows and top not in graph.outputs:
        return Found((last,), instead=source)
    if first is None:
        return None
    if source.rows == top.rows:
        return Found((last,), reshape_to(source, top, last.origin))
    made = regrouped(source, top.dims, top.rows, last.origin)
    return Found((last,), Layer("Reshape", (source,), (top,), made.params, origin=last.origin))


def one_permute(graph: Graph, last: Layer) -> Found | None:
    """Given:: Permute(Permute(x)).  Result:: Permute(x), or x itself."""
    first = graph.own(last.bottoms[0], "Permute") if last.type == "Permute" else None
    if first is None:
        return None
    (source,), (top,) = first.bottoms, last.tops
    orders = ORDERS[len(top.dims)].split()
    before, after = orders[_order(first)], orders[_order(last)]
    order = orders.index("".join(before[orders[0].index(letter)] for letter in after))
    if order == 0 and top not in graph.outputs:
        return Found((first, last), instead=source)
    return Found((first, last), Layer("Permute", (source,), (top,), {0: order}, origin=last.origin))


def _order(layer: Layer) -> int:
    order = layer.params.get(0, 0)
    assert isinstance(order, int)
    return order


# ---- into the layer in front


def bias(graph: Graph, last: Layer) -> Found | None:
    """Given:: BinaryOp(layer without a bias, constant of a number for each channel).  Result:: layer."""
    if last.type != "BinaryOp" or last.params.get(0, 0) != ADD or MASK in last.params:
        return None
    for blob, other in _sides(last):
        layer = graph.own(blob, *_BIAS_TERM, "Gemm", "MultiHeadAttention")
        if layer is None or blob.dims != last.tops[0].dims or not _takes_bias(layer):
            continue
        row = _row(graph, last, other, blob, 0 if layer.type in _CONVOLUTIONS else -1)
        if row is None:
            continue
        if layer.type == "MultiHeadAttention":
            *most, held = layer.weights
            made = _changed(layer, last, {}, [*most, Weight(np.add(held.array, row), tagged=False)])
        elif layer.type == "Gemm":
            made = _changed(layer, last, {BIAS_KIND: BIAS_OF_COLUMNS}, [*layer.weights, Weight(row)])
        else:
            first, *rest = layer.weights
            weights = [first, Weight(row, tagged=False), *rest]
            made = _changed(layer, last, {_BIAS_TERM[layer.type]: 1}, weights)
        return Found((layer, last), made)
    return None


def _sides(layer: Layer) -> list[tuple[Blob, Blob | None]]:
    """The operands of a BinaryOp in both orders; None stands for a number."""
    if len(layer.bottoms) == 1:
        return [(layer.bottoms[0], None)]
    left, right = layer.bottoms
    return [(left, right), (right, left)]


def _takes_bias(layer: Layer) -> bool:
    if layer.type == "MultiHeadAttention":
        return True
    if layer.type == "Gemm":
        return (
            layer.params.get(BIAS_KIND) == NO_BIAS
            and layer.params.get(0, 1.0) == 1
            and bool(layer.params.get(HOLDS_RIGHT))
        )
    # Where the weights are an operand, so is the bias.
    return (
        bool(layer.weights) and not layer.params.get(_BIAS_TERM[layer.type], 0) and not layer.params.get(ACTIVATION, 0)
    )


def _row(graph: Graph, last: Layer, other: Blob | None, blob: Blob, axis: int) -> Array | None:
    """What ``last`` adds to ``blob`` as one number for each place along ``axis`` of it; None where it is not that."""
    count = blob.dims[axis]
    if other is None:
        number = last.params.get(NUMBER, 0.0)
        assert isinstance(number, int | float)
        return np.full(count, number, np.float32) if last.params.get(WITH_NUMBER) else None
    array = graph.constant(other)
    if array is None or (array.ndim != len(blob.dims) and array.size > 1):
        return None
    if array.size == 1:
        return np.full(count, array.reshape(()), np.float32)
    return array.reshape(-1) if array.size == count == array.shape[axis] else None


def activation(graph: Graph, last: Layer) -> Found | None:
    """Given:: ReLU(Convolution(x)).  Result:: Convolution(x) with an activation; and so for others of both."""
    found = _activation(last)
    # What float16 is kept from would not be in the layer in front, whose own numbers may be that.
    if found is None or MASK in last.params:
        return None
    layer = graph.own(last.bottoms[0], *_BIAS_TERM)
    if layer is None or layer.params.get(ACTIVATION, 0):
        return None
    kind, params = found
    made = _changed(layer, last, {ACTIVATION: kind, **({ACTIVATION_PARAMS: params} if params else {})})
    return Found((layer, last), made)


def _activation(layer: Layer) -> tuple[int, tuple[float, ...]] | None:
    def number(key: int, default: float) -> float:
        value = layer.params.get(key, default)
        assert isinstance(value, int | float)
        return float(value)

    if layer.type == "ReLU":
        slope = number(0, 0.0)
        return (LEAKY_RELU, (slope,)) if slope else (RELU, ())
    if layer.type == "Clip":
        return CLIP, (number(0, -MOST), number(1, MOST))
    if layer.type == "Sigmoid":
        return SIGMOID, ()
    if layer.type == "Mish":
        return MISH, ()
    if layer.type == "HardSwish":
        return HARD_SWISH, (number(0, 0.2), number(1, 0.5))
    return None


# ---- of several


_GATES = {"Sigmoid": "Swish", "HardSigmoid": "HardSwish"}


def gate(graph: Graph, last: Layer) -> Found | None:
    """Given:: x * Sigmoid(x), x * HardSigmoid(x).  Result:: Swish(x), HardSwish(x)."""
    if last.type != "BinaryOp" or last.params.get(0, 0) != MUL:
        return None
    for blob, other in _sides(last):
        layer = graph.own(blob, *_GATES)
        if layer is not None and other is layer.bottoms[0] and other.rows == blob.rows:
            made = Layer(_GATES[layer.type], (other,), last.tops, dict(layer.params), origin=last.origin)
            return Found((layer, last), made)
    return None


def mish(graph: Graph, last: Layer) -> Found | None:
    """Given:: x * TanH(BNLL(x)).  Result:: Mish(x)."""
    if last.type != "BinaryOp" or last.params.get(0, 0) != MUL:
        return None
    for blob, other in _sides(last):
        squashed = graph.own(blob, "TanH")
        soft = None if squashed is None else graph.own(squashed.bottoms[0], "BNLL")
        if squashed is not None and soft is not None and other is soft.bottoms[0]:
            return Found((soft, squashed, last), Layer("Mish", (other,), last.tops, origin=last.origin))
    return None


def rms_norm(graph: Graph, last: Layer) -> Found | None:
    """Given:: x * 1 / sqrt(mean(x * x) + epsilon).  Result:: RMSNorm(x)."""
    if last.type != "BinaryOp" or last.params.get(0, 0) != MUL:
        return None
    for blob, x in _sides(last):
        found = _inverse_length(graph, blob)
        if found is None or x is None:
            continue
        mean, squares, epsilon, gone = found
        is_square = squares.params.get(0, 0) == (MUL if squares.type == "BinaryOp" else SQUARE)
        if not is_square or set(squares.bottoms) != {x} or mean.tops[0].dims != (*x.dims[:-1], 1):
            continue
        if x.dims == last.tops[0].dims:
            made = Layer("RMSNorm", (x,), last.tops, {0: x.dims[-1], 1: epsilon, 2: 0}, origin=last.origin)
            return Found((squares, mean, *gone, last), made)
    return None


def _inverse_length(graph: Graph, blob: Blob) -> tuple[Layer, Layer, float, list[Layer]] | None:
    """(the mean, the squares that it is of, what is added to it, the layers behind it)."""
    inverse = graph.own(blob, "Power", "UnaryOp", "BinaryOp")
    if inverse is None:
        return None
    kind, params = inverse.type, inverse.params
    gone = [inverse]
    if kind == "UnaryOp" and params.get(0) == RSQRT:
        (blob,) = inverse.bottoms
    elif (kind == "Power" and [params.get(0, 1.0), params.get(1, 1.0), params.get(2, 0.0)] == [-1.0, 1.0, 0.0]) or (
        kind == "UnaryOp" and params.get(0) == RECIPROCAL
    ):
        root = graph.own(inverse.bottoms[0], "UnaryOp")
        if root is None or root.params.get(0, 0) != SQRT:
            return None
        gone.append(root)
        (blob,) = root.bottoms
    else:
        return None
    added = graph.own(blob, "BinaryOp")
    if added is None or added.params.get(0, 0) != ADD or not added.params.get(WITH_NUMBER):
        return None
    epsilon = added.params.get(NUMBER, 0.0)
    assert isinstance(epsilon, int | float)
    mean = graph.own(added.bottoms[0], "Reduction")
    if mean is None or mean.params.get(0, 0) != MEAN or mean.params.get(2, 1.0) != 1:
        return None
    squares = graph.own(mean.bottoms[0], "BinaryOp", "UnaryOp")
    return None if squares is None else (mean, squares, epsilon, [added, *gone])


def weight_of_norm(graph: Graph, last: Layer) -> Found | None:
    """Given:: RMSNorm(x) * constant of a number for each column.  Result:: RMSNorm(x) with that."""
    if last.type != "BinaryOp" or last.params.get(0, 0) != MUL:
        return None
    for blob, other in _sides(last):
        layer = graph.own(blob, "RMSNorm")
        if layer is None or layer.params.get(2, 1) or blob.dims != last.tops[0].dims:
            continue
        row = _row(graph, last, other, blob, -1)
        if row is not None and layer.params.get(0) == len(row):
            return Found((layer, last), _changed(layer, last, {2: 1}, [Weight(row, tagged=False)]))
    return None


RULES: Sequence[Rule] = (
    one_reshape,
    one_permute,
    bias,
    gate,
    mish,
    rms_norm,
    weight_of_norm,  # of the one above
    activation,  # behind those above, which make what it looks for
    rotary,
    attention,
    projections,  # behind attention, likewise
)
