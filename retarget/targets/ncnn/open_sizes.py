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
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from retarget.targets.ncnn.expressed import WRITERS
from retarget.targets.ncnn.program import MOST_DIMS, Blob, Layer, Program, Weight
from retarget.targets.ncnn.unsized import Common, OneSize, Seen, Vector, differs, where_of

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
    fixed: Mapping[str, str] = field(default_factory=dict)
    multiples: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Dimensions of which only multiples of a number were looked at → that, and why."""


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
            return replace(_common(lower, shapes, free, taken), fixed=fixed)
        except OneSize as reason:
            if len(free) == 1:
                fixed[free.pop()] = str(reason)
    held: list[str] = []
    made: Opened | None = None
    for symbol in free:
        try:
            made = _common(lower, shapes, [*held, symbol], taken)
            held.append(symbol)
        except OneSize as reason:
            fixed[symbol] = str(reason)
    if made is None:
        program = lower(opt)
        assert isinstance(program, Program), program
        made = Opened(program, opt)
    return replace(made, fixed=fixed)


# ---- at which sizes


def _common(
    lower: Callable[[Sizes], Program | str],
    shapes: Mapping[str, DimRange],
    symbols: Sequence[str],
    taken: AbstractSet[int],
) -> Opened:
    """The program with ``symbols`` open and all others at `opt`. Raises ``OneSize``."""
    problem: OneSize | None = None
    first: tuple[Sizes, Program] | None = None
    for steps in _steps(lower, shapes, symbols, taken):
        points = looked_at(shapes, steps, taken)
        # Where two dimensions are of one size, one may be taken for the other.
        points.sort(key=lambda sizes: bool(_alike(sizes, symbols)))
        try:
            if first is None or first[0] != points[0]:
                first = points[0], _at(lower, points[0])
            base = first[1]
            layers = _used(base)
            seen = [_seen(lower, layers, base, [sizes], steps) for sizes in points[1:]]
            seen += [_seen(lower, layers, base, corner, steps) for corner in corners(shapes, steps)]
            common = Common(layers, base, seen, WRITERS)
            program = common.program()
            _check_smallest(lower, shapes, symbols, common)
            multiples = {name: (step, str(problem)) for name, step in steps.items() if step > 1}
            return Opened(program, points[0], multiples=multiples)
        except _NotThere as reason:
            problem = problem or OneSize(str(reason))
    assert problem is not None
    raise problem


def _seen(
    lower: Callable[[Sizes], Program | str],
    layers: Sequence[Layer],
    base: Program,
    points: Sequence[Sizes],
    steps: Mapping[str, int],
) -> Sequence[Seen]:
    """What ``layers``, those of ``base``, are at the first of ``points``, or near by where two of its sizes are the
    same, as the one dimension may be taken for the other; at the next where something has one element at that, and
    what it is in can be written otherwise. That the layers are right for it too is ncnn's affair, as it is of sizes of
    1."""
    problem: OneSize | None = None
    for sizes in points:
        for symbol in (None, *_alike(sizes, [*steps])):
            near = dict(sizes)
            while symbol is not None and (near == sizes or symbol in _alike(near, [*steps])):
                near[symbol] += steps[symbol]
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


def _check_smallest(
    lower: Callable[[Sizes], Program | str], shapes: Mapping[str, DimRange], symbols: Sequence[str], common: Common
) -> None:
    """Raise ``OneSize`` where the dimensions that start at 1 cannot be that: nothing is left of something then, or it
    has another size while it has one at all others, which says that it hangs on them after all."""
    ones = {symbol: 1 for symbol in symbols if shapes[symbol].min == 1}
    if not ones:
        return
    hint = "it may stay open where the smallest size is larger"
    try:
        program = _at(lower, {symbol: extent.opt for symbol, extent in shapes.items()} | ones)
    except _NotThere as reason:
        raise OneSize(f"{reason}; {hint}") from reason
    named = {blob.value: blob for layer in program.layers for blob in layer.tops if blob.value is not None}
    known: dict[Vector, int] = {}
    for blob, vectors in common.dims.items():
        small = named.get(blob.value or "")
        if small is None:
            continue
        # Dims of 1 may be left out in front.
        dims = (1,) * (len(vectors) - len(small.dims)) + small.dims
        pairs = [*zip(vectors, dims, strict=False)]
        if len(dims) == len(vectors) and all(differs(vector) or vector[0] == size for vector, size in pairs):
            # The first are inputs, whose dims are their own axes at any size.
            known = dict(pairs) | known
        rows = small.rows if small.rows > 1 or differs(common.rows[blob]) else blob.rows
        if not any(map(differs, vectors)) and small.size * small.rows != blob.size * rows:
            raise OneSize(f"'{blob.value}' has another size with 1 alone; {hint}")
    for where, *bounds in common.parts:
        first, last, size = (_beside(known, vector) for vector in bounds)
        ends = [each for each in (last, size) if each is not None]
        if first is not None and ends and max(first, 0) >= min(ends):
            raise OneSize(f"nothing is left by {where} with 1 alone; {hint}")


def _beside(known: Mapping[Vector, int], vector: Vector) -> int | None:
    """What ``vector`` is where others are what ``known`` says, if one of them is always so much less or more."""
    if not differs(vector):
        return vector[0]
    for other, size in known.items():
        gaps = {left - right for left, right in zip(vector, other, strict=True)}
        if len(gaps) == 1:
            return size + gaps.pop()
    return None


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


def _steps(
    lower: Callable[[Sizes], Program | str],
    shapes: Mapping[str, DimRange],
    symbols: Sequence[str],
    taken: AbstractSet[int],
) -> Iterator[Mapping[str, int]]:
    """Of what number the sizes to look at are multiples: any at first, then, as a model may halve a size again and
    again, more and more that the smallest, the likely and the largest have in common, at first only of what cannot
    have a size that has nothing in common with them."""
    opt = {symbol: extent.opt for symbol, extent in shapes.items()}
    once = dict.fromkeys(symbols, 1)
    yield once
    common = {symbol: math.gcd(shapes[symbol].min, shapes[symbol].opt, shapes[symbol].max) for symbol in symbols}
    odd = looked_at(shapes, once, taken)[1]
    divisible = [symbol for symbol in symbols if common[symbol] > 1]
    alone = [symbol for symbol in divisible if not _is_there(lower, opt | {symbol: odd[symbol]})]
    tried: list[Mapping[str, int]] = [once]
    # That one odd size is there says little of others: what is rounded up may be even then.
    for divided in (alone, divisible):
        most = math.lcm(*(common[symbol] for symbol in divided))
        for divisor in (*(1 << power for power in range(1, most.bit_length())), most):
            steps = once | {symbol: math.gcd(common[symbol], divisor) for symbol in divided}
            if steps not in tried:
                yield steps
            tried.append(steps)


def _is_there(lower: Callable[[Sizes], Program | str], sizes: Sizes) -> bool:
    try:
        _at(lower, sizes)
    except _NotThere:
        return False
    return True


def looked_at(shapes: Mapping[str, DimRange], steps: Mapping[str, int], taken: AbstractSet[int]) -> list[Sizes]:
    """Sizes to look at: multiples of ``steps``, which has all dimensions that are open; the likely ones first, and then
    those that are unlike others. ``taken``: sizes that the model has itself."""
    opt = {symbol: extent.opt for symbol, extent in shapes.items()}
    one: dict[str, int] = {}
    other: dict[str, int] = {}
    for symbol, step in steps.items():
        extent = shapes[symbol]
        found = sorted(_unlike(extent, step), key=lambda size: (size > extent.max, size in taken))
        one[symbol] = next(size for size in found if size not in one.values())
        # What halves a size may do another thing with an odd one, and with what is odd when it is halved.
        parts = [size // step for size in (extent.opt, extent.max, one[symbol])]
        halves, quarters = {part % 2 for part in parts}, {part % 4 for part in parts}
        found.sort(
            key=lambda size: (size > extent.max, len(halves | {size // step % 2}) < 2, size // step % 4 in quarters)
        )
        other[symbol] = next(size for size in found if size not in (one[symbol], *other.values()))
    likely = {symbol: shapes[symbol].opt if shapes[symbol].opt > 1 else other[symbol] for symbol in steps}
    most = {symbol: shapes[symbol].max for symbol in steps}
    # What rounds a size down may make the same of all others. Of one element it is written otherwise anyway.
    least = {symbol: shapes[symbol].min if shapes[symbol].min > 1 else likely[symbol] for symbol in steps}
    points = (likely, one, other, most, least)
    return [{**opt, **sizes} for number, sizes in enumerate(points) if sizes not in points[:number]]


def corners(shapes: Mapping[str, DimRange], steps: Mapping[str, int]) -> Iterator[list[Sizes]]:
    """All small, where one starts at 1: 2, or somewhat larger, and so on; and one of several at its largest, the others
    small. Where all start above 1, that is looked at anyway.

    What grows with one dimension cannot be taken there for what grows with another, unless it has one size at all.
    """
    opt = {symbol: extent.opt for symbol, extent in shapes.items()}
    largest = [*steps] if len(steps) > 1 else []
    for symbol in [None, *largest] if any(shapes[symbol].min == 1 for symbol in steps) else largest:
        sizes = [{**opt, **_small(shapes, steps, part)} for part in range(PARTS)]
        yield [each if symbol is None else each | {symbol: shapes[symbol].max} for each in sizes]


def _small(shapes: Mapping[str, DimRange], steps: Mapping[str, int], part: int) -> Sizes:
    """Sizes above 1, so many parts of the way from the smallest to the largest."""
    sizes = {name: shapes[name].min + (shapes[name].max - shapes[name].min) * part // PARTS for name in steps}
    return {name: max(size - size % steps[name], 2) for name, size in sizes.items()}


def _unlike(extent: DimRange, step: int) -> list[int]:
    """Multiples of ``step`` above 1 within ``extent``, or above it where it is narrow: those first that are unlike
    other sizes, and large enough that not everything that is made of them is 1."""
    first = max(2, extent.opt)
    inside = [*range(first, min(extent.max, first + MANY) + 1), *range(first - 1, max(2, extent.min) - 1, -1)]
    fit = [size for size in inside if size % step == 0]
    primes = [size for size in fit if size > 3 * step and _is_prime(size // step)]
    rest = [size for size in fit if size not in primes]
    return [*primes, *rest, *range(extent.max - extent.max % step + step, extent.max + MANY * step, step)]


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


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
