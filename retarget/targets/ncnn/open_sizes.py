"""Dimensions that stay open: what programs have in common that were lowered of one model at different sizes.

What differs between them are blobs' dims, which ncnn finds by itself when it runs, and numbers that stand in layers.
Of those

- one number of a Reshape becomes -1;
- others of it, ends of slices and sizes of resized images become expressions: ncnn computes them, when it runs, from
  the dims of the layer's own blobs or of further ones that it is given only for that (``4h`` is the h of the fifth);
- a constant that begins as the largest does, such as positions, is cut from that;
- with anything else the dimension has one size in the files.

An expression is taken where it is right at every size that was looked at. All are above 1, as what has one element may
be written otherwise, and other than one another: the program is then, layer by layer, what would be written for each.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from retarget.targets.ncnn.program import MOST_DIMS, Blob, Dims, Layer, Param, Program, Weight
from retarget.targets.ncnn.rows import EXPRESSION, FROM_ROWS, SIZES, TO_ROWS

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.spec import DimRange

Sizes: TypeAlias = Mapping[str, int]
"""Open dimensions → their sizes."""

Vector: TypeAlias = tuple[int, ...]
"""One number at each of the sizes that are looked at."""

LETTERS = {1: "w", 2: "hw", 3: "chw", 4: "cdhw"}
"""How expressions call the dims of a blob, the outermost first."""

ROWS = "n"
"""How rows are called here: no expression can speak of them."""

LONGEST_EXPRESSION = 240
"""Characters that ncnn reads of a string."""

MOST_BOTTOMS = 10
"""Blobs that an expression can speak of: they are called by one digit."""

GROWING = 1 << 26
"""Constants of at most so many bytes may grow with the dimensions."""

PARTS = 4
"""Into so many parts the sizes of a dimension are cut."""

MANY = 100
"""Sizes to choose from."""

LOAD, RAW = 21, 1
"""``21`` of MemoryData: no tag in front of its numbers."""

WHOLE_AXIS = -233
"""As the end of a slice: the end of the axis. As the size of one: an equal share of what is left."""


class OneSize(Exception):
    """Why a dimension cannot stay open."""


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
            return Common(layers, base, seen).program(), points[0]
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
    except (AssertionError, ValueError) as error:
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
        points = (likely, one, other, most)
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


@dataclass(frozen=True, eq=False)
class Seen:
    """A layer at another size."""

    params: Mapping[int, Param]
    dims: tuple[Dims, ...]
    """Of its tops."""
    rows: tuple[int, ...]
    weights: tuple[Weight, ...] | None
    """Where they are others."""


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
        where = _where(one)
        if (one.type, len(one.bottoms), len(one.tops)) != (other.type, len(other.bottoms), len(other.tops)):
            raise OneSize(f"with another size there is another layer in place of {where}")
        if [partners[blob] for blob in one.bottoms] != list(other.bottoms):
            raise OneSize(f"with another size {where} has other operands")
        for mine, its in zip(one.tops, other.tops, strict=True):
            if len(mine.dims) != len(its.dims) or mine.kind != its.kind:
                raise OneSize(f"with another size {where} gives another rank")
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
    return seen


def _longer(layers: Sequence[Layer], others: Sequence[Layer]) -> str:
    """The first ONNX node that has other numbers of layers in the two, in words."""
    counts, its = (Counter(layer.origin for layer in each) for each in (layers, others))
    return next((f"'{name}'" for name in (*counts, *its) if name and counts[name] != its[name]), "the model")


def _where(layer: Layer) -> str:
    return f"{layer.type} of '{layer.origin}'" if layer.origin else f"a {layer.type}"


def _equal(one: Weight, other: Weight) -> bool:
    left, right = one.array, other.array
    if (left.shape, left.dtype, one.tagged) != (right.shape, right.dtype, other.tagged):
        return False
    if left.__array_interface__["data"] == right.__array_interface__["data"] and left.strides == right.strides:
        return True
    return np.array_equal(left, right, equal_nan=left.dtype.kind == "f")


# ---- expressions


@dataclass(frozen=True)
class Term:
    """``times`` the product of dims ``of`` blobs, divided by ``over``, which leaves no rest."""

    of: tuple[tuple[Blob, str], ...]
    times: int = 1
    over: int = 1

    def text(self, bottoms: list[Blob]) -> str:
        """As ncnn reads it in a layer with ``bottoms``, to which its blobs are added."""
        parts: list[str] = []
        for blob, letter in self.of:
            if blob not in bottoms:
                bottoms.append(blob)
            parts.append(f"{bottoms.index(blob)}{letter}")
        text = parts[0]
        for part in parts[1:]:
            text = f"*({text},{part})"
        if self.times > 1:
            text = f"*({text},{self.times})"
        return f"//({text},{self.over})" if self.over > 1 else text


Extent: TypeAlias = int | Term
"""A number, or how it is computed."""


@dataclass(frozen=True, eq=False)
class Atom:
    """A dim of a blob that expressions can speak of."""

    vector: Vector
    blob: Blob
    letter: str
    rows: Vector


@dataclass(eq=False)
class Common:
    """What programs of one model have in common, with the rest left open.

    ``layers``: those of ``base`` that are used. ``seen``: of each other size what they are there, the largest among
    them.
    Raises ``OneSize`` where there is no such program.
    """

    layers: Sequence[Layer]
    base: Program
    seen: Sequence[Sequence[Seen]]
    made: list[Layer] = field(default_factory=list)
    dims: dict[Blob, tuple[Vector, ...]] = field(default_factory=dict)
    rows: dict[Blob, Vector] = field(default_factory=dict)
    _atoms: dict[tuple[Vector, Vector], Atom] = field(default_factory=dict)
    """By what they are and their rows, so that each is there once: the first, and so the inputs'."""
    _grown: dict[Blob, tuple[Layer, tuple[Seen, ...]]] = field(default_factory=dict)
    _cut: dict[Blob, Blob] = field(default_factory=dict)
    _carried: dict[tuple[Blob, str], tuple[Blob, str]] = field(default_factory=dict)
    """Dims of blobs with rows → dims of blobs without."""

    def program(self) -> Program:
        for index, layer in enumerate(self.layers):
            self._layer(layer, tuple(seen[index] for seen in self.seen))
        if any(blob in self._grown for blob in self.base.outputs.values()):
            raise OneSize("an output is a constant of that size")
        return Program(self.made, self.base.inputs, self.base.outputs, self.base.shapes)

    def _layer(self, layer: Layer, seen: Sequence[Seen]) -> None:
        where = _where(layer)
        for number, top in enumerate(layer.tops):
            self.know(
                top,
                tuple(zip(top.dims, *(each.dims[number] for each in seen), strict=True)),
                (top.rows, *(each.rows[number] for each in seen)),
            )
        if layer.type == "MemoryData":
            if any(each.weights is not None for each in seen):
                self._grown[layer.tops[0]] = layer, tuple(seen)
                return
        elif any(each.weights is not None for each in seen):
            raise OneSize(f"{where} has weights of that size")
        if self._is_every_row(layer):
            return
        bottoms = tuple(self._whole(blob, layer) for blob in layer.bottoms)
        made = replace(layer, bottoms=bottoms, params=dict(layer.params))
        if layer.type == "Input":
            self._input(made)
        elif layer.type in _ALWAYS or any(not _same(layer.params, each.params) for each in seen):
            write = _WRITERS.get(layer.type)
            if write is None:
                raise OneSize(f"{where} holds it as a number")
            made = write(self, made, [layer.params, *(each.params for each in seen)], where)
        self.made.append(made)
        for top in layer.tops:
            self._offer(top)

    def know(self, blob: Blob, dims: tuple[Vector, ...], rows: Vector) -> None:
        self.dims[blob], self.rows[blob] = dims, rows

    def _offer(self, blob: Blob) -> None:
        """Let expressions speak of ``blob``."""
        rows = self.rows[blob]
        for vector, letter in zip((*self.dims[blob], rows), LETTERS[len(blob.dims)] + ROWS, strict=True):
            old = self._atoms.get((vector, rows))
            # The last one is most like what is asked for, and gone the soonest. Where int32 is among its bottoms a
            # layer is kept from computing in halves.
            if _differs(vector) and (old is None or old.blob.kind == "index" or blob.kind == "float"):
                self._atoms[vector, rows] = Atom(vector, blob, letter, rows)

    def _input(self, layer: Layer) -> None:
        """Open dims of an input are -1."""
        (blob,) = layer.tops
        for key, vector in zip(SIZES[len(blob.dims)], self.dims[blob], strict=True):
            if _differs(vector):
                layer.params[key] = -1

    # ---- constants

    def _is_every_row(self, layer: Layer) -> bool:
        """Whether ``layer`` gives a constant rows that are all the same: then one row is there for all.

        Whatever reads it must have rows all the same, from another operand.
        """
        if layer.type != "Reshape" or TO_ROWS not in layer.params or layer.bottoms[0] not in self._grown:
            return False
        (top,), arrays = layer.tops, self._arrays(layer.bottoms[0])
        if not arrays[0].ndim or any(map(_differs, self.dims[top])) or top in self.base.outputs.values():
            return False
        one = arrays[0][:1]
        counts = zip(arrays, self.rows[top], strict=True)
        if not all(len(array) == rows and _starts(np.broadcast_to(one, array.shape), array) for array, rows in counts):
            return False
        for reader in (reader for reader in self.layers if top in reader.bottoms):
            has_rows = any(blob.rows == top.rows for blob in reader.bottoms if blob is not top)
            if FROM_ROWS in reader.params or not has_rows:
                return False
        made = Blob(top.dims)
        self.made.append(constant(one, made))
        self.know(made, self.dims[top], (1,) * len(arrays))
        self._cut[top] = made
        return True

    def _arrays(self, blob: Blob) -> list[Array]:
        """What a constant is at each of the sizes."""
        layer, seen = self._grown[blob]
        return [weights[0].array for weights in (layer.weights, *(each.weights or layer.weights for each in seen))]

    def _whole(self, blob: Blob, reader: Layer) -> Blob:
        """``blob``, cut to its size where it is a constant that grows with the dimensions."""
        if blob in self._cut or blob not in self._grown:
            return self._cut.get(blob, blob)
        arrays = self._arrays(blob)
        whole = max(arrays, key=lambda array: array.shape)
        if any(array.ndim != whole.ndim or array.dtype != whole.dtype for array in arrays) or whole.nbytes > GROWING:
            raise OneSize(f"{_where(reader)} needs a constant of that size")
        shapes = [*zip(*(array.shape for array in arrays), strict=True)]
        part = _part(whole, arrays)
        if part is None:
            raise OneSize(f"{_where(reader)} needs a constant of that size")
        siblings = [other for other in reader.bottoms if other is not blob and other not in self._grown]
        # Not the dims that the reader has, in which axes may be joined.
        kept = [axis for axis, shape in enumerate(shapes) if shape != (1,) * len(arrays)]
        ends = [axis in part for axis in kept]
        cut = self.part(whole, [shapes[axis] for axis in kept], siblings, reader, ends)
        cut = self.viewed(cut, self.dims[blob], reader)
        self._offer(cut)
        self._cut[blob] = cut
        return cut

    def viewed(self, blob: Blob, vectors: tuple[Vector, ...], reader: Layer) -> Blob:
        """``blob`` in other dims."""
        if self.dims[blob] == vectors:
            return blob
        top = Blob(tuple(vector[0] for vector in vectors), blob.rows, blob.kind)
        self.know(top, vectors, self.rows[blob])
        params = [sized(dims) for dims in zip(*vectors, strict=True)]
        view = Layer("Reshape", (blob,), (top,), params[0], origin=reader.origin)
        self.made.append(reshape(self, view, params, _where(reader)))
        return top

    def part(
        self, whole: Array, vectors: Sequence[Vector], own: Sequence[Blob], reader: Layer, ends: Sequence[bool] = ()
    ) -> Blob:
        """So much of a constant as ``vectors`` say, none of which is 1: the beginning along each axis, or the end."""
        once = (1,) * len(vectors[0])
        axes = [axis for axis, vector in enumerate(vectors) if _differs(vector)]
        found = [self.term(vectors[axis], own, once) for axis in axes]
        if len(vectors) > MOST_DIMS or None in found:
            raise OneSize(f"{_where(reader)} needs a constant of that size")
        memory = Blob(tuple(map(max, vectors)))
        top = Blob(tuple(vector[0] for vector in vectors))
        self.made.append(constant(whole, memory))
        bottoms = [memory]
        starts, stops = [], []
        for axis, term in zip(axes, found, strict=True):
            assert term is not None
            text, size = self.text(term, bottoms), memory.dims[axis]
            is_end = bool(ends) and ends[axis]
            starts.append(f"-({size},{text})" if is_end else "0")
            stops.append(str(size) if is_end else text)
        params: dict[int, Param] = {STARTS: ",".join(starts), ENDS: ",".join(stops), AXES: ",".join(map(str, axes))}
        self.made.append(_readable(Layer("Crop", tuple(bottoms), (top,), params, origin=reader.origin)))
        self.know(top, tuple(vectors), once)
        return top

    # ---- numbers

    def extent(self, vector: Vector, own: Sequence[Blob], rows: Vector) -> Extent | None:
        return self.term(vector, own, rows) if _differs(vector) else vector[0]

    def term(self, vector: Vector, own: Sequence[Blob], rows: Vector) -> Term | None:
        """How ``vector`` is computed in a layer with the bottoms ``own``, whose result has ``rows``; None if it cannot.

        A blob with rows is no further bottom of a layer without: it would be run for each.
        """
        mine = [
            Atom(each, blob, letter, self.rows[blob])
            for blob in own
            if blob in self.dims
            for each, letter in zip(self.dims[blob], LETTERS[len(blob.dims)], strict=True)
            if _differs(each)
        ]
        known = self._atoms.values()
        beside = [atom for atom in known if atom.letter != ROWS and atom.rows in (rows, (1,) * len(rows))]
        beside.sort(key=lambda atom: (atom.rows == rows, atom.blob.kind != "float"))
        others = sorted((atom for atom in known if atom not in beside), key=lambda atom: atom.blob.size)
        for atoms in (mine, [*mine, *beside], [*mine, *beside, *others]):
            found = _product(vector, atoms)
            if found is not None:
                return found
        return None

    def text(self, extent: Extent, bottoms: list[Blob]) -> str:
        """``extent`` in a layer with ``bottoms``, to which blobs are added."""
        if isinstance(extent, int):
            return str(extent)
        rows = {blob: self.rows.get(blob, (1,)) for blob in bottoms}
        of = tuple(self._reachable(blob, letter, rows) for blob, letter in extent.of)
        return replace(extent, of=of).text(bottoms)

    def _reachable(self, blob: Blob, letter: str, bottoms: Mapping[Blob, Vector]) -> tuple[Blob, str]:
        """A dim of ``blob``, or of another without rows where the layer has none."""
        rows = self.rows[blob]
        if letter != ROWS and (blob in bottoms or rows == (1,) * len(rows) or rows in bottoms.values()):
            return blob, letter
        if (blob, letter) not in self._carried:
            # All rows, one below the other: only a Reshape that moves rows is run once.
            elements = tuple(map(math.prod, zip(*self.dims[blob], strict=True)))
            letters = LETTERS[len(blob.dims)]
            inner = elements if letter == ROWS else self.dims[blob][letters.index(letter)]
            outer = tuple(count * size // part for count, size, part in zip(rows, elements, inner, strict=True))
            top = Blob((outer[0], inner[0]), kind=blob.kind)
            text = Term(tuple((blob, each) for each in (letters if letter == ROWS else letter))).text([blob])
            params: dict[int, Param] = {EXPRESSION: f"{text},-1", FROM_ROWS: 0}
            self.made.append(Layer("Reshape", (blob,), (top,), params, origin="sizes"))
            self.know(top, (outer, inner), (1,) * len(rows))
            self._carried[blob, letter] = top, "h" if letter == ROWS else "w"
        return self._carried[blob, letter]


def constant(array: Array, blob: Blob) -> Layer:
    """The MemoryData of ``array``."""
    params: dict[int, Param] = {**sized(blob.dims), LOAD: RAW}
    return Layer("MemoryData", (), (blob,), params, (Weight(array, tagged=False),))


def sized(dims: Dims) -> dict[int, Param]:
    """``dims`` as params."""
    return dict(sorted(zip(SIZES[len(dims)], dims, strict=True)))


def _product(vector: Vector, atoms: Sequence[Atom]) -> Term | None:
    """``vector`` as a dim, so many times or so many parts of one, or such of a product of two."""
    for atom in atoms:
        if atom.vector == vector:
            return Term(((atom.blob, atom.letter),))
    for atom in atoms:
        if (found := _ratio(vector, atom.vector)) is not None:
            return Term(((atom.blob, atom.letter),), *found)
    for one, other in itertools.combinations_with_replacement(atoms, 2):
        both = tuple(left * right for left, right in zip(one.vector, other.vector, strict=True))
        if (found := _ratio(vector, both)) is not None:
            return Term(((one.blob, one.letter), (other.blob, other.letter)), *found)
    return None


def _ratio(vector: Vector, of: Vector) -> tuple[int, int] | None:
    """``vector`` / ``of`` as (times, over), of which one is 1, if that is the same everywhere."""
    if all(left * of[0] == right * vector[0] for left, right in zip(vector, of, strict=True)):
        for times, over in ((vector[0] // of[0], 1), (1, of[0] // vector[0])):
            if vector[0] * over == of[0] * times:
                return times, over
    return None


def _differs(vector: Vector) -> bool:
    return any(each != vector[0] for each in vector)


def _starts(whole: Array, part: Array) -> bool:
    beginning = whole[tuple(map(slice, part.shape))]
    return np.array_equal(beginning, part, equal_nan=whole.dtype.kind == "f")


def _part(whole: Array, parts: Sequence[Array]) -> set[int] | None:
    """The axes along which ``parts`` are the end of ``whole``, while along all others they begin it; None: neither."""
    open_axes = [axis for axis, size in enumerate(whole.shape) if any(part.shape[axis] != size for part in parts)]
    if any(left > right for part in parts for left, right in zip(part.shape, whole.shape, strict=True)):
        return None
    for count in range(len(open_axes) + 1):
        for ends in itertools.combinations(open_axes, count):
            turned = tuple(slice(None, None, -1 if axis in ends else 1) for axis in range(whole.ndim))
            if all(_starts(whole[turned], part[turned]) for part in parts):
                return set(ends)
    return None


def _same(one: Mapping[int, Param], other: Mapping[int, Param]) -> bool:
    return one.keys() == other.keys() and all(_plain(one[key]) == _plain(other[key]) for key in one)


def _plain(param: Param) -> object:
    return param if isinstance(param, int | float | str) else list(param)


# ---- layers that can take their numbers from dims

MULTIPLY = 2
"""``0`` of BinaryOp."""

NEAREST = 1
"""``0`` of Interp."""
HEIGHT_FACTOR, WIDTH_FACTOR, HEIGHT, WIDTH, SIZE_EXPRESSION = 1, 2, 3, 4, 9
"""Keys of Interp."""

REPEATS = 2
"""Key of Tile."""

STARTS, ENDS, AXES = 19, 20, 21
"""Expressions of a Crop; 9, 10 and 11 are the same as numbers."""


def _readable(layer: Layer) -> Layer:
    """``layer``. Raises ``OneSize`` where ncnn does not read so much."""
    if len(layer.bottoms) > MOST_BOTTOMS or any(
        isinstance(param, str) and len(param) > LONGEST_EXPRESSION for param in layer.params.values()
    ):
        raise OneSize(f"the expression of {_where(layer)} is too long")
    return layer


def _ints(param: Param | None) -> list[int]:
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
    open_axes = [axis for axis, vector in enumerate(vectors) if _differs(vector)]
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
    return _readable(replace(layer, bottoms=tuple(bottoms), params=sizes | kept))


def _reshaped(params: Mapping[int, Param]) -> list[int]:
    """The sizes that a Reshape was written with, the outermost first."""
    expression = params.get(EXPRESSION)
    if isinstance(expression, str):
        return [int(part) for part in reversed(expression.split(","))]
    keys = next(keys for keys in reversed(SIZES.values()) if all(key in params for key in keys))
    return [size for key in keys for size in _ints(params[key])]


def crop(common: Common, layer: Layer, params: Sequence[Mapping[int, Param]], where: str) -> Layer:
    """Bounds are numbers, counted from the end, or computed."""
    if any(not _same(_without(each, 9, 10), _without(params[0], 9, 10)) for each in params):
        raise OneSize(f"{where} holds it as a number")
    if not all(each.get(9) and each.get(10) for each in params):
        return layer
    bottom, rows = layer.bottoms[0], common.rows[layer.tops[0]]
    axes = _ints(layer.params.get(11)) or list(range(len(bottom.dims)))
    if not any(_differs(common.dims[bottom][axis]) for axis in axes) and all(_same(each, params[0]) for each in params):
        return layer
    bottoms = list(layer.bottoms)
    starts: list[str] = []
    ends: list[str] = []
    for place, axis in enumerate(axes):
        letter, sizes = LETTERS[len(bottom.dims)][axis], common.dims[bottom][axis]
        bounds = [(_ints(each[9])[place], _ints(each[10])[place]) for each in params]
        first = tuple(_absolute(start, size, 0) for (start, _), size in zip(bounds, sizes, strict=True))
        last = tuple(min(_absolute(end, size, size), size) for (_, end), size in zip(bounds, sizes, strict=True))
        most = max(size - start for size, start in zip(sizes, first, strict=True))
        behind = {size - end for size, end in zip(sizes, last, strict=True)}
        if _differs(first) and all(each == max(size - most, 0) for each, size in zip(first, sizes, strict=True)):
            # As many as there are, where that is more: ncnn would read what lies in front.
            starts.append(f"max(-(0{letter},{most}),0)")
        else:
            start = common.extent(first, (bottom,), rows)
            starts.append("" if start is None else common.text(start, bottoms))
        end: Extent | None
        if len(behind) == 1:
            end = -behind.pop() or WHOLE_AXIS
        elif all(each == min(size, max(last)) for each, size in zip(last, sizes, strict=True)):
            end = max(last)
        else:
            end = common.term(last, (bottom,), rows)
        ends.append("" if end is None else common.text(end, bottoms))
    if not all((*starts, *ends)):
        raise OneSize(f"{where} holds it as a number")
    if all(text.lstrip("-").isdigit() for text in (*starts, *ends)):
        return replace(layer, params={**layer.params, 9: list(map(int, starts)), 10: list(map(int, ends))})
    expressions = {STARTS: ",".join(starts), ENDS: ",".join(ends), AXES: ",".join(map(str, axes))}
    return _readable(replace(layer, bottoms=tuple(bottoms), params=_without(layer.params, 9, 10, 11) | expressions))


def _absolute(bound: int, size: int, default: int) -> int:
    """``bound`` of an axis of ``size``, counted from its beginning; ``default`` where it says to take what is there."""
    if bound == WHOLE_AXIS:
        return default
    return max(bound + size, 0) if bound < 0 or (bound == 0 and default) else bound


def tile(common: Common, layer: Layer, params: Sequence[Mapping[int, Param]], where: str) -> Layer:
    """What is repeated as often as an open dimension says is multiplied by so many ones."""
    (bottom,), (top,) = layer.bottoms, layer.tops
    counts: list[Vector] = [*zip(*(_ints(each.get(REPEATS)) for each in params), strict=True)]
    once = (1,) * len(params)
    if len(counts) != len(bottom.dims) or bottom.kind != "float":
        raise OneSize(f"{where} holds it as a number")
    if any(vector[0] > 1 and not _differs(vector) for vector in counts):
        numbers = [1 if _differs(vector) else vector[0] for vector in counts]
        sizes = [tuple(each * count for each in size) for size, count in zip(common.dims[bottom], numbers, strict=True)]
        part = Blob(tuple(size[0] for size in sizes), bottom.rows)
        common.know(part, tuple(sizes), common.rows[bottom])
        common.made.append(replace(layer, tops=(part,), params={REPEATS: numbers}))
        bottom = part
    own: list[Vector] = []
    ones: list[Vector] = []
    for size, count in zip(common.dims[bottom], counts, strict=True):
        # Each of the times is in front of all the elements that are repeated.
        own += [once, size] if _differs(count) and size != once else [size]
        ones += [count, once] if _differs(count) and size != once else [count if _differs(count) else once]
    if len(own) > MOST_DIMS:
        raise OneSize(f"{where} holds it as a number")
    repeated = common.viewed(bottom, tuple(own), layer)
    many = [vector for vector in ones if vector != once]
    times = common.part(np.ones(list(map(max, many)), np.float32), many, (bottom,), layer)
    times = common.viewed(times, tuple(ones), layer)
    multiplied = Layer("BinaryOp", (repeated, times), (top,), {0: MULTIPLY}, origin=layer.origin)
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
    if layer.params.get(0) == NEAREST and any(map(_differs, map(_quotients, vectors, own))):
        raise OneSize(f"{where} takes the nearest elements, which hang on how the sizes of both are rounded")
    if any(not _same(each, rest[0]) for each in rest) or None in found:
        raise OneSize(f"{where} holds it as a number")
    bottoms = list(layer.bottoms)
    text = ",".join(common.text(each, bottoms) for each in reversed(found) if each is not None)
    return _readable(replace(layer, bottoms=tuple(bottoms), params=rest[0] | {SIZE_EXPRESSION: text}))


def _quotients(vector: Vector, of: Vector) -> Vector:
    """``vector`` / ``of``, or 0 where that leaves a rest."""
    return tuple(0 if left % right else left // right for left, right in zip(vector, of, strict=True))


def slice_(common: Common, layer: Layer, params: Sequence[Mapping[int, Param]], where: str) -> Layer:
    """Equal shares, or one last piece that is what is left."""
    del common
    pieces = [*zip(*(_ints(each.get(0)) for each in params), strict=True)]
    if not pieces or any(not _same(_without(each, 0), _without(params[0], 0)) for each in params):
        raise OneSize(f"{where} holds it as a number")
    if all(piece == pieces[0] for piece in pieces):
        shares = [WHOLE_AXIS] * len(pieces)
    elif not any(map(_differs, pieces[:-1])):
        shares = [*(piece[0] for piece in pieces[:-1]), WHOLE_AXIS]
    else:
        raise OneSize(f"{where} holds it as a number")
    return replace(layer, params={**layer.params, 0: shares})


def _without(params: Mapping[int, Param], *keys: int) -> dict[int, Param]:
    return {key: param for key, param in params.items() if key not in keys}


_WRITERS: Mapping[str, Callable[[Common, Layer, Sequence[Mapping[int, Param]], str], Layer]] = {
    "Crop": crop,
    "Interp": interp,
    "Reshape": reshape,
    "Slice": slice_,
    "Tile": tile,
}

_ALWAYS = frozenset({"Crop"})
"""Layers with numbers that are not right for every size even where they are the same for all."""
