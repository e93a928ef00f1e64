"""Attention in one layer, and with its projections in one: the rules of `fusing` for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retarget.targets.ncnn.ops.attention import HAS_MASK, SCALE
from retarget.targets.ncnn.ops.elementwise import ADD, DIV, MUL, NEG, NUMBER, WITH_NUMBER
from retarget.targets.ncnn.ops.matmul import (
    ALPHA,
    BIAS_KIND,
    BIAS_OF_COLUMNS,
    HOLDS_RIGHT,
    NO_BIAS,
    TURNED_LEFT,
    TURNED_RIGHT,
)
from retarget.targets.ncnn.ops.slices import AXES, ENDS, REST, STARTS
from retarget.targets.ncnn.program import Blob, Layer, Param, Weight, memory_data, reshape_to
from retarget.targets.ncnn.rewriting import Found, Graph, is_plain_reshape

TURNED_RIGHT_OF_TWO = 0
"""A key of MatMul: whether its second matrix is transposed."""

SWAPPED, HEADS_FIRST, TO_COLUMNS = 1, 2, 3
"""``0`` of Permute of three dims: [a, c, b], [b, a, c] and [b, c, a] of [a, b, c]."""


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
    served = _served(graph, value)
    keys = _keys(graph, products)
    if keys is None or keys[0].dims[0] != query.dims[0]:
        return None
    key, before, number = keys
    scale *= number
    if (
        served is not None
        and (keys_once := _served(graph, key)) is not None
        and keys_once[0].dims[0] == served[0].dims[0]
    ):
        key, value = keys_once[0], served[0]
        before += [*keys_once[1], *served[1]]
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
        before.append(reshape_to(permute.bottoms[0], split, permute.origin))
        source = split
    elif order != TO_COLUMNS:
        return None
    made = Blob((heads, positions, size), source.rows)
    return made, [*before, Layer("Permute", (source,), (made,), {0: HEADS_FIRST}, origin=layer.origin)], scale


def _whole(graph: Graph, mask: Blob, wanted: tuple[int, int, int], origin: str) -> tuple[Blob, list[Layer]] | None:
    """``mask`` as [queries, keys], or [heads, queries, keys], and layers that make it; None where it has other axes."""
    heads, queries, keys = wanted
    if len(mask.dims) == 3 and mask.dims[0] == 1:
        maker = graph.maker[mask]
        flat = mask.dims[1:]
        if is_plain_reshape(maker) and maker.bottoms[0].dims == flat and maker.bottoms[0].rows == mask.rows:
            mask, made = maker.bottoms[0], []
        else:
            made = [reshape_to(mask, Blob(flat, mask.rows), origin)]
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


def _served(graph: Graph, blob: Blob) -> tuple[Blob, list[Layer]] | None:
    """``blob`` [heads, positions, size] with each of its heads once, if each is there several times side by side, and
    the layer that makes it."""
    moves = graph.through(blob, "Reshape", "Tile")
    if moves is None or not is_plain_reshape(moves[0]):
        return None
    (source,), repeats = moves[1].bottoms, moves[1].params.get(2)
    if not isinstance(repeats, Sequence) or len(repeats) != len(source.dims):
        return None
    heads, positions, size = blob.dims
    times = blob.size // source.size
    places = np.arange(source.size)
    groups = heads // times
    tiled = np.tile(places.reshape(source.dims), [int(each) for each in repeats]).reshape(heads, -1)
    if heads % times or not np.array_equal(tiled, np.repeat(places.reshape(groups, -1), times, axis=0)):
        return None
    first = graph.source(source)
    source = first if first.rows == blob.rows else source
    made = Blob((groups, positions, size), blob.rows)
    return (source, []) if source.dims == made.dims else (made, [reshape_to(source, made, moves[0].origin)])


def rotary(graph: Graph, last: Layer) -> Found | None:
    """Given:: x * cos + Concat(-second half of x, first half of x) * sin.  Result:: RotaryEmbed(x, cos, sin).

    For constant angles, which are the same for both halves.
    """
    if last.type != "BinaryOp" or last.params.get(0, 0) != ADD or len(last.bottoms) != 2:
        return None
    products = [graph.own(blob, "BinaryOp") for blob in last.bottoms]
    for one, other in (products, products[::-1]):
        if one is None or other is None or {each.params.get(0, 0) for each in (one, other)} != {MUL}:
            return None
        for turned, sine in (other.bottoms, other.bottoms[::-1]) if len(other.bottoms) == 2 else ():
            joined = graph.own(turned, "Concat")
            x = None if joined is None else _half_turned(graph, joined)
            if joined is None or x is None or x not in one.bottoms or len(one.bottoms) != 2:
                continue
            cosine = one.bottoms[1 - one.bottoms.index(x)]
            angles = [graph.constant(blob) for blob in (cosine, sine)]
            if any(each is None for each in angles) or last.tops[0].dims != x.dims or len(x.dims) not in (2, 3):
                return None
            before: list[Layer] = []
            halves = [_half(graph, blob, x, before) for blob in (cosine, sine)]
            if halves[0] is None or halves[1] is None:
                return None
            made = Layer("RotaryEmbed", (x, halves[0], halves[1]), last.tops, origin=last.origin)
            return Found((joined, one, other, last), made, before=tuple(before))
    return None


def _half_turned(graph: Graph, joined: Layer) -> Blob | None:
    """What ``joined`` is the halves of along the last axis, the second in front and negative."""
    if len(joined.bottoms) != 2 or joined.params.get(0, 0) != len(joined.tops[0].dims) - 1:
        return None
    negative = graph.own(joined.bottoms[0], "UnaryOp")
    if negative is None or negative.params.get(0, 0) != NEG:
        return None
    second, first = graph.own(negative.bottoms[0], "Crop"), graph.own(joined.bottoms[1], "Crop")
    if second is None or first is None or first.bottoms != second.bottoms or len(first.bottoms) > 1:
        return None
    (x,) = first.bottoms
    size, axis = x.dims[-1] // 2, len(x.dims) - 1
    wanted = [([0], [size]), ([size], [REST])]
    for layer, (start, end) in zip((first, second), wanted, strict=True):
        found = [layer.params.get(key) for key in (STARTS, ENDS, AXES)]
        if any(not isinstance(each, Sequence) or isinstance(each, str) for each in found):
            return None
        if found != [start, end, [axis]] or layer.tops[0].dims[-1] != size:
            return None
    return x


def _half(graph: Graph, angles: Blob, x: Blob, before: list[Layer]) -> Blob | None:
    """The constant ``angles`` of ``x`` [positions, half of the size]; None if those of both halves differ."""
    array = graph.constant(angles)
    positions, size = x.dims[-2:]
    if array is None or array.size != positions * size or array.shape[-2:] != (positions, size):
        return None
    first, second = np.split(array.reshape(positions, size), 2, axis=1)
    if not np.array_equal(first, second):
        return None
    held = id(graph.maker[graph.source(angles)].weights[0].array)
    if held not in graph.halves:
        graph.halves[held] = Blob((positions, size // 2))
        before.append(memory_data(np.ascontiguousarray(first), graph.halves[held]))
    return graph.halves[held]


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
