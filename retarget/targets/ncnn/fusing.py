"""Layers that one layer computes as well: biases and activations into the layer in front, gates, Reshapes in a row.

A rule looks at one layer, the last of those that it replaces, and gives what stands for them, which ends at the same
blob; its docstring has what is given and what results. What ONNX's graph says in one node, and what the passes in front
make of it (Gelu, LayerNormalization, Attention), is one layer without a rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from retarget.targets.ncnn.ops.elementwise import ADD, DIV, MUL, NUMBER, WITH_NUMBER
from retarget.targets.ncnn.ops.matmul import (
    ALPHA,
    BIAS_KIND,
    BIAS_OF_COLUMNS,
    HOLDS_RIGHT,
    NO_BIAS,
    TURNED_LEFT,
    TURNED_RIGHT,
)
from retarget.targets.ncnn.program import Blob, Layer, Param, Program, Weight
from retarget.targets.ncnn.rows import EXPRESSION, SIZES, TO_ROWS, regrouped

if TYPE_CHECKING:
    from retarget.protocols import Array

INT8 = 8
"""A key of layers with weights: not 0 where they compute in int8."""

ACTIVATION, ACTIVATION_PARAMS = 9, 10
"""Keys of layers with an activation: its number below, and its parameters."""
RELU, LEAKY_RELU, CLIP, SIGMOID, MISH, HARD_SWISH = 1, 2, 3, 4, 5, 6

TURNED_RIGHT_OF_TWO = 0
"""A key of MatMul: whether its second matrix is transposed."""

SWAPPED, HEADS_FIRST, TO_COLUMNS = 1, 2, 3
"""``0`` of Permute of three dims: [a, c, b], [b, a, c] and [b, c, a] of [a, b, c]."""

HAS_MASK, SCALE = 5, 6
"""Keys of SDPA and of MultiHeadAttention."""

LARGEST = float(np.finfo(np.float32).max)

_CONVOLUTIONS = frozenset(
    f"{kind}{axes}"
    for kind in ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise")
    for axes in ("", "1D", "3D")
) | {"DeformableConv2D"}

_BIAS_TERM = dict.fromkeys(_CONVOLUTIONS, 5) | {"InnerProduct": 1}
"""The key that says whether a layer has a bias, which is then its second weight."""


@dataclass(frozen=True)
class Found:
    """``layer`` stands for all of ``gone``, of which the last is the layer that was looked at; without one, what reads
    the blob of that reads ``instead``. ``before``: what ``layer`` needs in front of it beside what there is."""

    gone: tuple[Layer, ...]
    layer: Layer | None = None
    instead: Blob | None = None
    before: tuple[Layer, ...] = ()


Rule: TypeAlias = "Callable[[Graph, Layer], Found | None]"


class Graph:
    """Who makes a blob, and how many read it; of layers of which something is used."""

    def __init__(self, program: Program) -> None:
        self.maker: dict[Blob, Layer] = {}
        self.outputs = set(program.outputs.values())
        self._readers = Counter(program.outputs.values())
        self.layers: list[Layer] = []
        for layer in reversed(program.layers):
            if layer.type == "Input" or any(self._readers[top] for top in layer.tops):
                self.layers.append(layer)
                self._readers.update(layer.bottoms)
                self.maker.update((top, layer) for top in layer.tops)
        self.layers.reverse()

    def own(self, blob: Blob, *types: str) -> Layer | None:
        """What makes ``blob``, if it is of ``types`` and nothing reads it beside the one that asks."""
        layer = self.maker[blob]
        return layer if len(layer.tops) == 1 and layer.type in types and self.is_read_once(blob) else None

    def is_read_once(self, blob: Blob) -> bool:
        return self._readers[blob] == 1 and blob not in self.outputs

    def through(self, blob: Blob, *types: str) -> list[Layer] | None:
        """The layers of ``types``, the last first, of which each is the only reader of the next, and which end at
        ``blob``; None where there are others."""
        found: list[Layer] = []
        for kind in types:
            layer = self.own(blob, kind)
            if layer is None:
                return None
            found.append(layer)
            blob = layer.bottoms[0]
        return found

    def constant(self, blob: Blob) -> Array | None:
        """The numbers in ``blob`` if they are in the file, in its dims."""
        layer = self.maker[blob]
        while is_plain_reshape(layer):
            layer = self.maker[layer.bottoms[0]]
        return layer.weights[0].array.reshape(blob.dims) if layer.type == "MemoryData" else None

    def put(self, found: Found) -> None:
        """Take ``found`` for what it replaces."""
        last = found.gone[-1]
        for layer in (*found.before, *([] if found.layer is None else [found.layer])):
            self._readers.update(layer.bottoms)
            self.maker.update((top, layer) for top in layer.tops)
        if found.instead is not None:
            self._readers[found.instead] += self._readers[last.tops[0]]
        self._unread(last)

    def moved(self, layer: Layer, bottoms: tuple[Blob, ...]) -> Layer:
        """``layer`` as it is, but for what it reads, which is counted already."""
        made = Layer(layer.type, bottoms, layer.tops, layer.params, layer.weights, layer.origin, layer.name)
        self.maker.update((top, made) for top in made.tops)
        return made

    def _unread(self, layer: Layer) -> None:
        """``layer`` reads no more, and no more does what was there only for it."""
        for blob in layer.bottoms:
            self._readers[blob] -= 1
            maker = self.maker[blob]
            if not any(self._readers[top] for top in maker.tops):
                self._unread(maker)


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
        params: dict[int, Param] = dict(sorted(zip(SIZES[len(top.dims)], top.dims, strict=True)))
        return Found((last,), Layer("Reshape", (source,), (top,), params, origin=last.origin))
    made = regrouped(source, top.dims, top.rows, last.origin)
    return Found((last,), Layer("Reshape", (source,), (top,), made.params, origin=last.origin))


def is_plain_reshape(layer: Layer) -> bool:
    """Whether it is one whose sizes are numbers, rows aside: others may be open."""
    if layer.type != "Reshape" or len(layer.bottoms) > 1:
        return False
    written = str(layer.params[EXPRESSION]).split(",") if EXPRESSION in layer.params else None
    sizes = [str(layer.params.get(key, 1)) for key in SIZES[4]] if written is None else written
    open_sizes = [size for size in sizes if not (size.isdigit() and int(size))]
    return open_sizes == (["-1"] if TO_ROWS in layer.params else [])


# ---- into the layer in front


def bias(graph: Graph, last: Layer) -> Found | None:
    """Given:: BinaryOp(layer without a bias, constant of a number for each channel).  Result:: layer."""
    if last.type != "BinaryOp" or last.params.get(0, 0) != ADD:
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
    return not layer.params.get(_BIAS_TERM[layer.type], 0) and not layer.params.get(ACTIVATION, 0)


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
    if found is None:
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
        return CLIP, (number(0, -LARGEST), number(1, LARGEST))
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
    """Given:: x * TanH(Softplus(x)).  Result:: Mish(x)."""
    if last.type != "BinaryOp" or last.params.get(0, 0) != MUL:
        return None
    for blob, other in _sides(last):
        squashed = graph.own(blob, "TanH")
        soft = None if squashed is None else graph.own(squashed.bottoms[0], "Softplus")
        if squashed is not None and soft is not None and other is soft.bottoms[0]:
            return Found((soft, squashed, last), Layer("Mish", (other,), last.tops, origin=last.origin))
    return None


# ---- attention


def attention(graph: Graph, last: Layer) -> Found | None:
    """Given:: MatMul(Softmax(MatMul(q, k turned) * scale + mask), v).  Result:: SDPA(q, k, v, mask).

    The scale of masked scores stays a layer, on q: SDPA divides the mask by it, which may be infinite then.
    """
    if last.type != "MatMul" or last.params.get(TURNED_RIGHT_OF_TWO) or len(last.tops[0].dims) != 3:
        return None
    softmax = graph.own(last.bottoms[0], "Softmax")
    if softmax is None or softmax.params.get(0, 0) != 2:
        return None
    found = _scores(graph, softmax.bottoms[0])
    if found is None:
        return None
    products, mask, scale, chain = found
    query, number, scaled = _unscaled(graph, products.bottoms[0])
    scale, value = scale * number, last.bottoms[1]
    if len(query.dims) != 3 or len(value.dims) != 3 or query.dims[0] != value.dims[0]:
        return None
    keys = _keys(graph, products)
    if keys is None or keys[0].dims[0] != query.dims[0]:
        return None
    key, before, number = keys
    scale *= number
    bottoms = [query, key, value]
    if mask is not None:
        whole = _whole(graph, mask, (*query.dims[:2], key.dims[1]), last.origin)
        if whole is None:
            return None
        bottoms.append(whole[0])
        before += whole[1]
        if scale != 1:
            factor: dict[int, Param] = {0: MUL, WITH_NUMBER: 1, NUMBER: scale}
            bottoms[0] = Blob(query.dims, query.rows)
            before.append(Layer("BinaryOp", (query,), (bottoms[0],), factor, origin=last.origin))
            scale = 1.0
    params: dict[int, Param] = {HAS_MASK: int(mask is not None), SCALE: scale}
    made = Layer("SDPA", tuple(bottoms), last.tops, params, origin=last.origin)
    return Found((*scaled, products, *chain, softmax, last), made, before=tuple(before))


def _unscaled(graph: Graph, blob: Blob) -> tuple[Blob, float, list[Layer]]:
    """What ``blob`` is a multiple of, which, and the layers that make it."""
    layer = graph.own(blob, "BinaryOp")
    number = None if layer is None else _factor(layer)
    return (blob, 1.0, []) if layer is None or number is None else (layer.bottoms[0], number, [layer])


def _factor(layer: Layer) -> float | None:
    """The positive number that a BinaryOp multiplies by, if it does that."""
    number, operation = layer.params.get(NUMBER, 0.0), layer.params.get(0, 0)
    assert isinstance(number, int | float)
    if not layer.params.get(WITH_NUMBER) or operation not in (MUL, DIV) or number <= 0:
        return None
    return number if operation == MUL else 1 / number


def _scores(graph: Graph, blob: Blob) -> tuple[Layer, Blob | None, float, list[Layer]] | None:
    """(the product of queries and keys, what is added to it, its factor, what does that)."""
    mask: Blob | None = None
    scale = 1.0
    chain: list[Layer] = []
    layer = graph.own(blob, "BinaryOp", "MatMul")
    if layer is not None and layer.type == "BinaryOp" and layer.params.get(0, 0) == ADD and len(layer.bottoms) == 2:
        chain.append(layer)
        left, right = layer.bottoms
        if graph.own(left, "BinaryOp", "MatMul") is None:
            left, right = right, left
        if left.dims != blob.dims:
            return None
        mask, blob = right, left
        layer = graph.own(blob, "BinaryOp", "MatMul")
    if layer is not None and layer.type == "BinaryOp":
        number = _factor(layer)
        if number is None:
            return None
        scale = number
        chain.append(layer)
        layer = graph.own(layer.bottoms[0], "MatMul")
    if layer is None or layer.type != "MatMul" or len(layer.tops[0].dims) != 3:
        return None
    return layer, mask, scale, chain


def _keys(graph: Graph, products: Layer) -> tuple[Blob, list[Layer], float] | None:
    """The keys [heads, positions, size] of a product with queries, layers that make them, and their factor; None where
    they come otherwise than turned on the way."""
    turned, scale, _ = _unscaled(graph, products.bottoms[1])
    if len(turned.dims) != 3:
        return None
    if products.params.get(TURNED_RIGHT_OF_TWO):
        return turned, [], scale
    heads, size, positions = turned.dims
    layer = graph.own(turned, "Permute", "Reshape")
    if layer is None:
        return None
    order = layer.params.get(0, 0) if layer.type == "Permute" else None
    (source,) = layer.bottoms
    if order == SWAPPED:
        return source, [], scale
    before: list[Layer] = []
    if layer.type == "Reshape":
        source, number, _ = _unscaled(graph, source)
        scale *= number
        permute = graph.own(source, "Permute") if is_plain_reshape(layer) else None
        if permute is None or source.dims != (heads * size, positions) or source.rows != turned.rows:
            return None
        split = Blob((positions, heads, size), source.rows)
        before.append(_reshape(permute.bottoms[0], split, permute.origin))
        source = split
    elif order != TO_COLUMNS:
        return None
    made = Blob((heads, positions, size), source.rows)
    return made, [*before, Layer("Permute", (source,), (made,), {0: HEADS_FIRST}, origin=layer.origin)], scale


def _reshape(source: Blob, top: Blob, origin: str) -> Layer:
    params: dict[int, Param] = dict(sorted(zip(SIZES[len(top.dims)], top.dims, strict=True)))
    return Layer("Reshape", (source,), (top,), params, origin=origin)


def _whole(graph: Graph, mask: Blob, wanted: tuple[int, int, int], origin: str) -> tuple[Blob, list[Layer]] | None:
    """``mask`` as [queries, keys], or [heads, queries, keys], and layers that make it; None where it has other axes."""
    heads, queries, keys = wanted
    if len(mask.dims) == 3 and mask.dims[0] == 1:
        maker = graph.maker[mask]
        flat = mask.dims[1:]
        if is_plain_reshape(maker) and maker.bottoms[0].dims == flat and maker.bottoms[0].rows == mask.rows:
            mask, made = maker.bottoms[0], []
        else:
            made = [_reshape(mask, Blob(flat, mask.rows), origin)]
            mask = made[0].tops[0]
    else:
        made = []
    if mask.dims in ((queries, keys), (heads, queries, keys)):
        return mask, made
    if len(mask.dims) != 2 or mask.dims[0] != 1 or mask.dims[1] not in (1, keys):
        return None
    repeats = [want // size for want, size in zip((queries, keys), mask.dims, strict=True)]
    top = Blob((queries, keys), mask.rows)
    return top, [*made, Layer("Tile", (mask,), (top,), {2: repeats}, origin=origin)]


def projections(graph: Graph, last: Layer) -> Found | None:
    """Given:: Gemm(heads side by side(SDPA(heads(Gemm(x)), heads(Gemm(y)), heads(Gemm(z)), mask))).
    Result:: MultiHeadAttention(x, y, z, mask).
    """
    if not _is_linear(last):
        return None
    outer = graph.through(last.bottoms[0], "Reshape", "Permute", "SDPA")
    if outer is None:
        return None
    joined, permute, core = outer
    heads, positions, size = core.tops[0].dims
    if not _is_turn(permute) or joined.tops[0].dims != (positions, heads * size) or not is_plain_reshape(joined):
        return None
    scale = core.params.get(SCALE, 0.0)
    assert isinstance(scale, float)
    query, number, scaled = _unscaled(graph, core.bottoms[0])
    scale *= number
    found = _projected(graph, [query, *core.bottoms[1:3]])
    if found is None or any(blob.dims[0] != heads or blob.dims[2] != size for blob in core.bottoms[:3]):
        return None
    sources, weights, makers = found
    gone = [*outer, *scaled, *makers]
    (q, k, v), outputs = sources, last.tops[0].dims[1]
    if outputs != q.dims[1] or not scale:
        return None
    params: dict[int, Param] = {
        0: heads * size, 1: heads, 2: heads * size * q.dims[1], 3: k.dims[1], 4: v.dims[1],
        HAS_MASK: core.params.get(HAS_MASK, 0), SCALE: scale,
    }  # fmt: skip
    bottoms = [q] if q is k is v else [q, k] if k is v else sources
    made = Layer(
        "MultiHeadAttention", (*bottoms, *core.bottoms[3:]), last.tops, params, (*weights, *_held(last)), last.origin
    )
    return Found((*gone, last), made)


def _projected(graph: Graph, heads: Sequence[Blob]) -> tuple[list[Blob], list[Weight], list[Layer]] | None:
    """What each of ``heads`` [heads, positions, size] is a Gemm of, its weight and bias, and the layers that make them.

    One Gemm may be of all, and a Slice give each its part.
    """
    moves = [graph.through(blob, "Permute", "Reshape") for blob in heads]
    flats = [each[1].bottoms[0] for each in moves if each is not None]
    if len(flats) < len(heads):
        return None
    makers = [layer for each in moves if each is not None for layer in each]
    if not all(
        _is_turn(turn) and is_plain_reshape(split) for turn, split in zip(makers[::2], makers[1::2], strict=True)
    ):
        return None
    sources: list[Blob] = []
    weights: list[Weight] = []
    for blob, flat in zip(heads, flats, strict=True):
        gemm, rows, cut = graph.own(flat, "Gemm"), slice(None), graph.maker[flat]
        if cut.type == "Slice" and cut.params.get(1, 0) == 1 and set(cut.tops) <= set(flats):
            start = sum(top.dims[1] for top in cut.tops[: cut.tops.index(flat)])
            gemm, rows = graph.own(cut.bottoms[0], "Gemm"), slice(start, start + flat.dims[1])
            makers.append(cut)
        if gemm is None or not _is_linear(gemm) or not graph.is_read_once(flat):
            return None
        if flat.dims != (blob.dims[1], blob.dims[0] * blob.dims[2]):
            return None
        makers.append(gemm)
        sources.append(gemm.bottoms[0])
        weight, bias = _held(gemm)
        weights += [Weight(weight.array[rows]), Weight(bias.array[rows], tagged=False)]
    return sources, weights, makers


def _is_turn(layer: Layer) -> bool:
    """Whether heads and positions change places."""
    return layer.params.get(0, 0) == HEADS_FIRST and len(layer.tops[0].dims) == 3


def _is_linear(layer: Layer) -> bool:
    """Whether it is x W^T, or that with a bias for each column."""
    params = layer.params
    is_held = layer.type == "Gemm" and bool(params.get(HOLDS_RIGHT)) and len(layer.bottoms) == 1
    return (
        is_held
        and bool(params.get(TURNED_RIGHT))
        and not params.get(TURNED_LEFT)
        and params.get(ALPHA, 1.0) == 1
        and params.get(BIAS_KIND) in (NO_BIAS, BIAS_OF_COLUMNS)
    )


def _held(gemm: Layer) -> list[Weight]:
    """Weight and bias, which MultiHeadAttention always has."""
    weight, *rest = gemm.weights
    row = rest[0].array if rest else np.zeros(gemm.tops[0].dims[1], np.float32)
    return [weight, Weight(row, tagged=False)]


RULES: Sequence[Rule] = (
    one_reshape,
    bias,
    gate,
    mish,
    activation,  # behind those above, which make what it looks for
    attention,
    projections,  # behind attention, likewise
)
