"""Dimensions that stay open: what programs have in common that were lowered of one model at different sizes.

What differs between them are blobs' dims, which ncnn finds by itself when it runs, and numbers that stand in layers.
Of those

- one number of a Reshape becomes -1;
- others of it, ends of slices and sizes of resized images become expressions: ncnn computes them, when it runs, from
  the dims of the layer's own blobs or of further ones that it is given only for that (``4h`` is the h of the fifth);
- a constant that begins or ends as the largest does, such as positions, is cut from that;
- with anything else the dimension has one size in the files.

An expression is taken where it is right at every size that was looked at. All are above 1, as what has one element may
be written otherwise; other than one another; and among them are the largest of each dimension with small ones of all
others, so that none is taken for another. The program is then, layer by layer, what would be written for each of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from retarget.targets.ncnn.expressed import WRITERS
from retarget.targets.ncnn.program import MOST_DIMS, Blob, Layer, Program, Weight
from retarget.targets.ncnn.unsized import Common, OneSize, Seen, where_of

if TYPE_CHECKING:
    from retarget.spec import DimRange

Sizes: TypeAlias = Mapping[str, int]
"""Open dimensions → their sizes."""

PARTS = 4
"""Into so many parts the sizes of a dimension are cut."""

MANY = 100
"""Sizes to choose from."""


@dataclass(frozen=True)
class Opened:
    """A program for all sizes of all dimensions but those in ``fixed``, each with the reason why."""

    program: Program
    sizes: Sizes
    """At which its blobs have the dims that they are said to have."""
    fixed: Mapping[str, str]


def opened(
    lower: Callable[[Sizes], Program | str], shapes: Mapping[str, DimRange], taken: AbstractSet[int] = frozenset()
) -> Opened:
    """The program with as many of the dimensions ``shapes`` open as can be: all, or one after the other that goes.

    ``lower`` makes the program at given sizes of all of them, or says why there is none; at `opt` there is one.
    ``taken``: sizes that the model has itself, for which open ones should not be taken.
    """
    opt = {symbol: extent.opt for symbol, extent in shapes.items()}
    free = [symbol for symbol, extent in shapes.items() if extent.min < extent.max]
    fixed = {symbol: "no other size is asked for" for symbol in shapes if symbol not in free}
    if free:
        try:
            return Opened(*_common(lower, shapes, free, taken), fixed)
        except OneSize as reason:
            if len(free) == 1:
                fixed[free.pop()] = str(reason)
    held: list[str] = []
    made = None
    for symbol in free:
        try:
            made = _common(lower, shapes, [*held, symbol], taken)
            held.append(symbol)
        except OneSize as reason:
            fixed[symbol] = str(reason)
    if made is None:
        program = lower(opt)
        assert isinstance(program, Program), program
        made = program, opt
    return Opened(*made, fixed)


# ---- at which sizes


def _common(
    lower: Callable[[Sizes], Program | str],
    shapes: Mapping[str, DimRange],
    symbols: Sequence[str],
    taken: AbstractSet[int],
) -> tuple[Program, Sizes]:
    """The program with ``symbols`` open and all others at `opt`, and the sizes of its dims. Raises ``OneSize``."""
    problem: OneSize | None = None
    for points in plans(shapes, symbols, taken):
        # Where two dimensions are of one size, one may be taken for the other.
        points.sort(key=lambda sizes: bool(_alike(sizes, symbols)))
        try:
            base = _at(lower, points[0])
            layers = _used(base)
            seen = [_seen(lower, layers, base, [sizes], symbols) for sizes in points[1:]]
            if symbols[1:]:
                seen += [_seen(lower, layers, base, corner, symbols) for corner in corners(shapes, symbols)]
            return Common(layers, base, seen, WRITERS).program(), points[0]
        except _NotThere as reason:
            problem = problem or OneSize(str(reason))
    assert problem is not None
    raise problem


def _seen(
    lower: Callable[[Sizes], Program | str],
    layers: Sequence[Layer],
    base: Program,
    points: Sequence[Sizes],
    symbols: Sequence[str],
) -> Sequence[Seen]:
    """What ``layers``, those of ``base``, are at the first of ``points``, or near by where two of its sizes are the
    same, as the one dimension may be taken for the other; at the next where something has one element at that, and
    what it is in can be written otherwise. That the layers are right for it too is ncnn's affair, as it is of sizes of
    1."""
    problem: OneSize | None = None
    for sizes in points:
        for symbol in (None, *_alike(sizes, symbols)):
            near = dict(sizes)
            while symbol is not None and (near == sizes or symbol in _alike(near, symbols)):
                near[symbol] += 1
            try:
                program = _at(lower, near)
            except _NotThere:
                if symbol is None:
                    raise
                continue
            try:
                return outline(layers, base, program)
            except OneSize as reason:
                problem = problem or reason
        if not _has_more_ones(program, layers):
            break
    assert problem is not None
    raise problem


def _has_more_ones(program: Program, layers: Sequence[Layer]) -> bool:
    """Whether a value of ``program`` has one element along an axis where it has more in what ``layers`` give."""
    dims = {blob.value: blob.dims for layer in layers for blob in layer.tops if blob.value is not None}
    its = {blob.value: blob.dims for layer in program.layers for blob in layer.tops if blob.value in dims}
    return any(len(its[name]) < len(dims[name]) or its[name].count(1) > dims[name].count(1) for name in its)


def _alike(sizes: Sizes, symbols: Sequence[str]) -> list[str]:
    """Those of ``symbols`` that have the size of another."""
    counts = Counter(sizes[symbol] for symbol in symbols)
    return [symbol for symbol in symbols if counts[sizes[symbol]] > 1]


class _NotThere(Exception):
    """The model cannot be written with such sizes."""


def _at(lower: Callable[[Sizes], Program | str], sizes: Sizes) -> Program:
    words = ", ".join(f"{symbol}={size}" for symbol, size in sizes.items())
    try:
        program = lower(sizes)
    except (AssertionError, ValueError, IndexError, ArithmeticError) as error:
        # Not every size between the smallest and the largest is one that the model can have, and nobody checked these.
        raise _NotThere(f"the model cannot have {words}: {error}") from error
    if isinstance(program, str):
        raise _NotThere(f"the model cannot be written with {words}: {program}")
    return program


def plans(shapes: Mapping[str, DimRange], symbols: Sequence[str], taken: AbstractSet[int]) -> Iterator[list[Sizes]]:
    """Sizes to look at: any at first, then, as a model may halve a size again and again, only those that have the
    divisors in common that the smallest, the likely and the largest have. ``taken``: sizes that the model has itself.
    """
    opt = {symbol: extent.opt for symbol, extent in shapes.items()}
    steps = [dict.fromkeys(symbols, 1)]
    common = {symbol: math.gcd(shapes[symbol].min, shapes[symbol].opt, shapes[symbol].max) for symbol in symbols}
    if any(step > 1 for step in common.values()):
        steps.append(common)
    for step in steps:
        one: dict[str, int] = {}
        other: dict[str, int] = {}
        for symbol in symbols:
            extent = shapes[symbol]
            found = sorted(_unlike(extent, step[symbol]), key=lambda size: (size > extent.max, size in taken))
            one[symbol] = next(size for size in found if size not in one.values())
            # What halves a size may do another thing with an odd one.
            odd = {size % 2 for size in (extent.opt, extent.max, one[symbol])}
            found.sort(key=lambda size: (size > extent.max, len(odd | {size % 2}) < len({0, 1})))
            other[symbol] = next(size for size in found if size not in (one[symbol], *other.values()))
        likely = {symbol: shapes[symbol].opt if shapes[symbol].opt > 1 else other[symbol] for symbol in symbols}
        most = {symbol: shapes[symbol].max for symbol in symbols}
        # What rounds a size down may make the same of all others. Of one element it is written otherwise anyway.
        least = {symbol: shapes[symbol].min if shapes[symbol].min > 1 else likely[symbol] for symbol in symbols}
        points = (likely, one, other, most, least)
        yield [{**opt, **sizes} for number, sizes in enumerate(points) if sizes not in points[:number]]


def corners(shapes: Mapping[str, DimRange], symbols: Sequence[str]) -> Iterator[list[Sizes]]:
    """One of ``symbols`` at its largest, all others small: the smallest, or somewhat larger, and so on.

    What grows with one dimension cannot be taken there for what grows with another, unless it has one size at all.
    """
    opt = {symbol: extent.opt for symbol, extent in shapes.items()}
    for symbol in symbols:
        yield [
            {
                **opt,
                **{
                    other: extent.min + (extent.max - extent.min) * part // PARTS + (part == 0 and extent.min == 1)
                    for other, extent in shapes.items()
                    if other in symbols
                },
                symbol: shapes[symbol].max,
            }
            for part in range(PARTS)
        ]


def _unlike(extent: DimRange, step: int) -> list[int]:
    """Sizes above 1 within ``extent``, or above it where it is narrow: those first that are unlike other sizes, and
    large enough that not everything that is made of them is 1."""
    first = max(2, extent.opt)
    inside = [*range(first, min(extent.max, first + MANY) + 1), *range(first - 1, max(2, extent.min) - 1, -1)]
    if step > 1:
        fit = [size for size in inside if size % step == 0]
        return [*fit, *range(extent.max + step, extent.max + MANY * step, step)]
    primes = [size for size in inside if size > 3 and all(size % divisor for divisor in range(2, math.isqrt(size) + 1))]
    rest = [size for size in inside if size not in primes]
    return [*primes, *rest, *range(extent.max + 1, extent.max + MANY)]


# ---- what another size changes


def _used(program: Program) -> list[Layer]:
    used = program.used()
    return [layer for layer in program.layers if layer in used]


def outline(layers: Sequence[Layer], base: Program, program: Program) -> list[Seen]:
    """Of each of ``layers``, those of ``base``, what it is in ``program``. Raises ``OneSize`` where it is no more."""
    others = _used(program)
    if len(layers) != len(others):
        raise OneSize(f"with another size {_longer(layers, others)} is written with other layers")
    partners: dict[Blob, Blob] = {}
    seen: list[Seen] = []
    for one, other in zip(layers, others, strict=True):
        where = where_of(one)
        if (one.type, len(one.bottoms), len(one.tops)) != (other.type, len(other.bottoms), len(other.tops)):
            raise OneSize(f"with another size there is another layer in place of {where}")
        if [partners[blob] for blob in one.bottoms] != list(other.bottoms):
            raise OneSize(f"with another size {where} has other operands")
        for mine, its in zip(one.tops, other.tops, strict=True):
            if len(mine.dims) != len(its.dims) or mine.kind != its.kind:
                raise OneSize(f"with another size {where} gives another rank")
            if (mine.rows > 1) != (its.rows > 1):
                raise OneSize(f"with another size the batch is held otherwise in {where}")
            partners[mine] = its
        is_same = len(one.weights) == len(other.weights) and all(map(_equal, one.weights, other.weights))
        tops = other.tops
        seen.append(
            Seen(
                other.params,
                tuple(blob.dims for blob in tops),
                tuple(blob.rows for blob in tops),
                None if is_same else other.weights,
            )
        )
    for border, its_border in (
        (base.inputs, program.inputs),
        ({"": base.outputs.values()}, {"": program.outputs.values()}),
    ):
        for name, blobs in border.items():
            if [partners.get(blob) for blob in blobs] != list(its_border[name]):
                raise OneSize("with another size inputs or outputs are made otherwise")
    for name, shape in base.shapes.items():
        if _drops_first(shape, base.outputs[name]) != _drops_first(program.shapes[name], program.outputs[name]):
            raise OneSize(f"with another size '{name}' has another axis 0, and is held in other dims")
    return seen


def _drops_first(shape: Sequence[int], blob: Blob) -> bool:
    """Whether an output of more axes than a blob has dims is held without its axis 0, which is of one element a row."""
    return len(shape) > MOST_DIMS and shape[0] == blob.rows


def _longer(layers: Sequence[Layer], others: Sequence[Layer]) -> str:
    """The first ONNX node that has other numbers of layers in the two, in words."""
    counts, its = (Counter(layer.origin for layer in each) for each in (layers, others))
    return next((f"'{name}'" for name in (*counts, *its) if name and counts[name] != its[name]), "the model")


def _equal(one: Weight, other: Weight) -> bool:
    left, right = one.array, other.array
    if (left.shape, left.dtype, one.tagged) != (right.shape, right.dtype, other.tagged):
        return False
    if left.__array_interface__["data"] == right.__array_interface__["data"] and left.strides == right.strides:
        return True
    # Where there is no NaN, which takes twice as long to allow for.
    return np.array_equal(left, right) or (
        left.dtype.kind == "f" and bool(np.isnan(left).any()) and np.array_equal(left, right, equal_nan=True)
    )
