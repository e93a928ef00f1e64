"""Layers whose numbers can be computed from the dims of blobs, each written for all sizes.

A writer gets the layer as it is at the first of the sizes, and its params at each of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from retarget.targets.ncnn.files import WHOLE_HALF
from retarget.targets.ncnn.ops.elementwise import MUL, NUMBER, WITH_NUMBER
from retarget.targets.ncnn.ops.slices import AXES, ENDS, REST, STARTS
from retarget.targets.ncnn.program import (
    MASK,
    MOST_DIMS,
    SIZES,
    Blob,
    Layer,
    Param,
    keep_from_half,
    memory_data,
    sized,
)
from retarget.targets.ncnn.rows import EXPRESSION, FROM_ROWS, TO_ROWS
from retarget.targets.ncnn.unsized import (
    AXIS_TEXTS,
    END_TEXTS,
    GROWING,
    LETTERS,
    START_TEXTS,
    Common,
    Extent,
    OneSize,
    Vector,
    Writer,
    differs,
    readable,
    same,
)

NEAREST = 1
"""``0`` of Interp."""
HEIGHT_FACTOR, WIDTH_FACTOR, HEIGHT, WIDTH, SIZE_EXPRESSION = 1, 2, 3, 4, 9
"""Keys of Interp."""

REPEATS = 2
"""Key of Tile."""


def ints(param: Param | None) -> list[int]:
    if param is None or isinstance(param, float | str):
        return []
    return [param] if isinstance(param, int) else [int(each) for each in param]


def reshape(common: Common, layer: Layer, params: Sequence[Mapping[int, Param]], where: str) -> Layer:
    (top,) = layer.tops
    written = [_reshaped(each) for each in params]
    kept, *others = ({key: each[key] for key in (FROM_ROWS, TO_ROWS) if key in each} for each in params)
    if any(each != kept for each in others) or len(set(map(len, written))) > 1:
        raise OneSize(f"with another size there is another layer in place of {where}")
    vectors: list[Vector] = list(zip(*written, strict=True))
    if TO_ROWS in layer.params and vectors[0][0] == -1:
        vectors[0] = common.rows[top]
    own = (layer.bottoms[0],)
    open_axes = [axis for axis, vector in enumerate(vectors) if differs(vector)]
    found = {axis: common.term(vectors[axis], own, common.rows[top]) for axis in open_axes} if open_axes[1:] else {}
    lacking = [axis for axis, term in found.items() if term is None]
    foreign = [axis for axis, term in found.items() if term and any(blob is not own[0] for blob, _ in term.of)]
    if len(lacking) > 1:
        raise OneSize(f"{where} holds it as a number")
    rest = (*lacking, *foreign, *open_axes)[0]
    bottoms = list(layer.bottoms)
    texts = [
        "-1" if axis == rest else common.text(found.get(axis) or vector[0], bottoms)
        for axis, vector in enumerate(vectors)
    ]
    if open_axes[1:] or len(texts) not in SIZES:
        sizes: dict[int, Param] = {EXPRESSION: ",".join(reversed(texts))}
    else:
        sizes = dict(sorted(zip(SIZES[len(texts)], map(int, texts), strict=True)))
    return readable(replace(layer, bottoms=tuple(bottoms), params=sizes | kept))


def _reshaped(params: Mapping[int, Param]) -> list[int]:
    """The sizes that a Reshape was written with, the outermost first."""
    expression = params.get(EXPRESSION)
    if isinstance(expression, str):
        return [int(part) for part in reversed(expression.split(","))]
    keys = next(keys for keys in reversed(SIZES.values()) if all(key in params for key in keys))
    return [size for key in keys for size in ints(params[key])]


def crop(common: Common, layer: Layer, params: Sequence[Mapping[int, Param]], where: str) -> Layer:
    """Bounds are numbers, counted from the end, or computed."""
    if any(not same(_without(each, STARTS, ENDS), _without(params[0], STARTS, ENDS)) for each in params):
        raise OneSize(f"{where} holds it as a number")
    if not all(each.get(STARTS) and each.get(ENDS) for each in params):
        return layer
    bottom, rows = layer.bottoms[0], common.rows[layer.tops[0]]
    axes = ints(layer.params.get(AXES)) or list(range(len(bottom.dims)))
    if not any(differs(common.dims[bottom][axis]) for axis in axes) and all(same(each, params[0]) for each in params):
        return layer
    bottoms = list(layer.bottoms)
    starts: list[str] = []
    ends: list[str] = []
    for place, axis in enumerate(axes):
        letter, sizes = LETTERS[len(bottom.dims)][axis], common.dims[bottom][axis]
        bounds = [(ints(each[STARTS])[place], ints(each[ENDS])[place]) for each in params]
        first = tuple(_absolute(start, size, 0) for (start, _), size in zip(bounds, sizes, strict=True))
        last = tuple(min(_absolute(end, size, size), size) for (_, end), size in zip(bounds, sizes, strict=True))
        most = max(size - start for size, start in zip(sizes, first, strict=True))
        behind = {size - end for size, end in zip(sizes, last, strict=True)}
        common.parts.append((where, first, last, sizes))
        if differs(first) and all(each == max(size - most, 0) for each, size in zip(first, sizes, strict=True)):
            # As many as there are, where that is more: ncnn would read what lies in front.
            starts.append(f"max(-(0{letter},{most}),0)")
        else:
            start = common.extent(first, (bottom,), rows)
            starts.append("" if start is None else common.text(start, bottoms))
        end: Extent | None
        if len(behind) == 1:
            end = -behind.pop() or REST
        elif all(each == min(size, max(last)) for each, size in zip(last, sizes, strict=True)):
            end = max(last)
        else:
            end = common.term(last, (bottom,), rows)
        ends.append("" if end is None else common.text(end, bottoms))
    if not all((*starts, *ends)):
        raise OneSize(f"{where} holds it as a number")
    if all(text.lstrip("-").isdigit() for text in (*starts, *ends)):
        return replace(layer, params={**layer.params, STARTS: list(map(int, starts)), ENDS: list(map(int, ends))})
    expressions = {START_TEXTS: ",".join(starts), END_TEXTS: ",".join(ends), AXIS_TEXTS: ",".join(map(str, axes))}
    return readable(
        replace(layer, bottoms=tuple(bottoms), params=_without(layer.params, STARTS, ENDS, AXES) | expressions)
    )


def _absolute(bound: int, size: int, default: int) -> int:
    """``bound`` of an axis of ``size``, counted from its beginning; ``default`` where it says to take what is there."""
    if bound == REST:
        return default
    return max(bound + size, 0) if bound < 0 or (bound == 0 and default) else bound


def tile(common: Common, layer: Layer, params: Sequence[Mapping[int, Param]], where: str) -> Layer:
    """What is repeated as often as an open dimension says is multiplied by so many ones."""
    (bottom,), (top,) = layer.bottoms, layer.tops
    counts: list[Vector] = [*zip(*(ints(each.get(REPEATS)) for each in params), strict=True)]
    once = (1,) * len(params)
    if len(counts) != len(bottom.dims) or bottom.kind != "float":
        raise OneSize(f"{where} holds it as a number")
    if any(vector[0] > 1 and not differs(vector) for vector in counts):
        numbers = [1 if differs(vector) else vector[0] for vector in counts]
        sizes = [tuple(each * count for each in size) for size, count in zip(common.dims[bottom], numbers, strict=True)]
        part = Blob(tuple(size[0] for size in sizes), bottom.rows)
        common.know(part, tuple(sizes), common.rows[bottom])
        common.made.append(replace(layer, tops=(part,), params={REPEATS: numbers}))
        bottom = part
    own: list[Vector] = []
    ones: list[Vector] = []
    for size, count in zip(common.dims[bottom], counts, strict=True):
        # Each of the times is in front of all the elements that are repeated.
        own += [once, size] if differs(count) and size != once else [size]
        ones += [count, once] if differs(count) and size != once else [count if differs(count) else once]
    if len(own) > MOST_DIMS:
        raise OneSize(f"{where} holds it as a number")
    repeated = common.viewed(bottom, tuple(own), layer)
    many = [vector for vector in ones if vector != once]
    times = common.part(np.ones(list(map(max, many)), np.float32), many, (bottom,), layer)
    times = common.viewed(times, tuple(ones), layer)
    multiplied = Layer("BinaryOp", (repeated, times), (top,), {0: MUL}, origin=layer.origin)
    made = tuple(tuple(map(math.prod, zip(left, right, strict=True))) for left, right in zip(own, ones, strict=True))
    if made == common.dims[top]:
        return multiplied
    apart = Blob(tuple(vector[0] for vector in made), top.rows)
    common.know(apart, made, common.rows[top])
    common.made.append(replace(multiplied, tops=(apart,)))
    shapes = [sized(dims) for dims in zip(*common.dims[top], strict=True)]
    return reshape(common, Layer("Reshape", (apart,), (top,), shapes[0], origin=layer.origin), shapes, where)


def interp(common: Common, layer: Layer, params: Sequence[Mapping[int, Param]], where: str) -> Layer:
    """The size of an image is computed. What it is scaled by follows from that, whole factors too, which may stand in
    their place where they can."""
    (top,) = layer.tops
    rest = [_without(each, HEIGHT_FACTOR, WIDTH_FACTOR, HEIGHT, WIDTH) for each in params]
    vectors = common.dims[top][-2:] if len(top.dims) > 2 else common.dims[top][-1:]
    found = [common.extent(vector, layer.bottoms[:1], common.rows[top]) for vector in vectors]
    own = common.dims[layer.bottoms[0]][-len(vectors) :]
    if layer.params.get(0) == NEAREST and any(map(differs, map(_quotients, vectors, own))):
        raise OneSize(f"{where} takes the nearest elements, which hang on how the sizes of both are rounded")
    if any(not same(each, rest[0]) for each in rest) or None in found:
        raise OneSize(f"{where} holds it as a number")
    bottoms = list(layer.bottoms)
    text = ",".join(common.text(each, bottoms) for each in reversed(found) if each is not None)
    return readable(replace(layer, bottoms=tuple(bottoms), params=rest[0] | {SIZE_EXPRESSION: text}))


def _quotients(vector: Vector, of: Vector) -> Vector:
    """``vector`` / ``of``, or 0 where that leaves a rest; 1 where ``of`` is one element, which all results are."""
    if set(of) == {1}:
        return of
    return tuple(0 if left % right else left // right for left, right in zip(vector, of, strict=True))


def binary_op(common: Common, layer: Layer, params: Sequence[Mapping[int, Param]], where: str) -> Layer:
    """A number that is a size is picked out of all that it may be, 0 too."""
    rest = [_without(each, NUMBER, MASK) for each in params]
    numbers = [float(number) for each in params if isinstance(number := each.get(NUMBER), float) and number >= 0]
    vector = tuple(int(number) for number in numbers if number.is_integer())
    if len(vector) < len(params) or any(not same(each, rest[0]) for each in rest):
        raise OneSize(f"{where} holds it as a number")
    once = (1,) * len(params)
    term = common.term(vector, layer.bottoms, once)
    counted = Blob((max(vector) + 1,))
    if term is None or counted.size > GROWING // 4:
        raise OneSize(f"{where} holds it as a number")
    made = [memory_data(np.arange(counted.size, dtype=np.float32), counted)]
    bottoms, picked, spread = [counted], Blob((1,)), Blob((1,) * len(layer.tops[0].dims))
    text = common.text(term, bottoms)
    at: dict[int, Param] = {START_TEXTS: text, END_TEXTS: f"+({text},1)", AXIS_TEXTS: "0"}
    made.append(readable(Layer("Crop", tuple(bottoms), (picked,), at, origin=layer.origin)))
    made.append(Layer("Reshape", (picked,), (spread,), sized(spread.dims), origin=layer.origin))
    made.append(replace(layer, bottoms=(layer.bottoms[0], spread), params=_without(rest[0], WITH_NUMBER)))
    if counted.size > WHOLE_HALF or any(MASK in each for each in params):
        keep_from_half(made)
    for blob in (counted, picked, spread):
        common.know(blob, tuple((dim,) * len(params) for dim in blob.dims), once)
    common.made += made[:-1]
    return made[-1]


def slice_(common: Common, layer: Layer, params: Sequence[Mapping[int, Param]], where: str) -> Layer:
    """Equal shares, or one last piece that is what is left."""
    del common
    pieces = [*zip(*(ints(each.get(0)) for each in params), strict=True)]
    if not pieces or any(not same(_without(each, 0), _without(params[0], 0)) for each in params):
        raise OneSize(f"{where} holds it as a number")
    if all(piece == pieces[0] for piece in pieces):
        shares = [REST] * len(pieces)
    elif not any(map(differs, pieces[:-1])):
        shares = [*(piece[0] for piece in pieces[:-1]), REST]
    else:
        raise OneSize(f"{where} holds it as a number")
    return replace(layer, params={**layer.params, 0: shares})


def _without(params: Mapping[int, Param], *keys: int) -> dict[int, Param]:
    return {key: param for key, param in params.items() if key not in keys}


WRITERS: Mapping[str, Writer] = {
    "BinaryOp": binary_op,
    "Crop": crop,
    "Interp": interp,
    "Reshape": reshape,
    "Slice": slice_,
    "Tile": tile,
}
