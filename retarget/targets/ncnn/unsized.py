"""Layers of one program for many sizes: what differs is computed from the dims of blobs.

An expression stands in a layer, which computes it when it runs: ``0w`` is the w of its first blob, ``1h`` the h of its
second, which it may be given for that alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from retarget.targets.ncnn.program import (
    MOST_DIMS,
    SIZES,
    Blob,
    Dims,
    Layer,
    Param,
    Program,
    Weight,
    is_kept_from_half,
    keep_from_half,
    memory_data,
    sized,
)
from retarget.targets.ncnn.rows import EXPRESSION, FROM_ROWS, TO_ROWS

if TYPE_CHECKING:
    from retarget.protocols import Array

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

ENOUGH = 3
"""Sizes at which a straight line is believed."""

GROWING = 1 << 26
"""Constants of at most so many bytes may grow with the dimensions."""

START_TEXTS, END_TEXTS, AXIS_TEXTS = 19, 20, 21
"""Expressions of a Crop; 9, 10 and 11 are the same as numbers."""

BEGINNING, MIDDLE, END = 0, 1, 2
"""Of what is left out of a constant, the halves that lie in front of what is taken."""

_ALWAYS = frozenset({"Crop"})
"""Layers with numbers that are not right for every size even where they are the same for all."""


class OneSize(Exception):
    """Why a dimension cannot stay open."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A layer at another size."""

    params: Mapping[int, Param]
    dims: tuple[Dims, ...]
    """Of its tops."""
    rows: tuple[int, ...]
    weights: tuple[Weight, ...] | None
    """Where they are others."""


def where_of(layer: Layer) -> str:
    return f"{layer.type} of '{layer.origin}'" if layer.origin else f"a {layer.type}"


@dataclass(frozen=True)
class Term:
    """``times`` the product of dims ``of`` blobs, divided by ``over``, which leaves no rest, and ``plus`` a number."""

    of: tuple[tuple[Blob, str], ...]
    times: int = 1
    over: int = 1
    plus: int = 0

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
        if self.over > 1:
            text = f"//({text},{self.over})"
        return f"+({text},{self.plus})" if self.plus else text


Extent: TypeAlias = int | Term
"""A number, or how it is computed."""


@dataclass(frozen=True, eq=False)
class Atom:
    """A dim of a blob that expressions can speak of."""

    vector: Vector
    blob: Blob
    letter: str
    rows: Vector


Writer: TypeAlias = "Callable[[Common, Layer, Sequence[Mapping[int, Param]], str], Layer]"
"""Writes a layer for all sizes: the first one, given its params at each size; it is called so and so in words."""


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
    writers: Mapping[str, Writer]
    """Of the types of layers whose numbers may differ: a Reshape is among them."""
    made: list[Layer] = field(default_factory=list)
    dims: dict[Blob, tuple[Vector, ...]] = field(default_factory=dict)
    rows: dict[Blob, Vector] = field(default_factory=dict)
    parts: list[tuple[str, Vector, Vector, Vector]] = field(default_factory=list)
    """What is cut, in words, where from and to, and of how many elements."""
    _atoms: dict[tuple[Vector, Vector], Atom] = field(default_factory=dict)
    """By what they are and their rows, so that each is there once: the first, and so the inputs'."""
    _grown: dict[Blob, tuple[Layer, tuple[Seen, ...]]] = field(default_factory=dict)
    _cut: dict[Blob, Blob] = field(default_factory=dict)
    _carried: dict[tuple[Blob, str], tuple[Blob, str]] = field(default_factory=dict)
    """Dims of blobs with rows → dims of blobs without."""

    def program(self) -> Program:
        for index, layer in enumerate(self.layers):
            before = len(self.made)
            self._layer(layer, tuple(seen[index] for seen in self.seen))
            if is_kept_from_half(layer):
                keep_from_half(self.made[before:])
        if any(blob in self._grown for blob in self.base.outputs.values()):
            raise OneSize("an output is a constant of that size")
        return Program(self.made, self.base.inputs, self.base.outputs, self.base.shapes)

    def _layer(self, layer: Layer, seen: Sequence[Seen]) -> None:
        where = where_of(layer)
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
        elif layer.type in _ALWAYS or any(not same(layer.params, each.params) for each in seen):
            write = self.writers.get(layer.type)
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
            if differs(vector) and (old is None or old.blob.kind == "index" or blob.kind == "float"):
                self._atoms[vector, rows] = Atom(vector, blob, letter, rows)

    def _input(self, layer: Layer) -> None:
        """Open dims of an input are -1."""
        (blob,) = layer.tops
        for key, vector in zip(SIZES[len(blob.dims)], self.dims[blob], strict=True):
            if differs(vector):
                layer.params[key] = -1

    # ---- constants

    def _is_every_row(self, layer: Layer) -> bool:
        """Whether ``layer`` gives a constant rows that are all the same: then one row is there for all.

        Whatever reads it must have rows all the same, from another operand.
        """
        if layer.type != "Reshape" or TO_ROWS not in layer.params or layer.bottoms[0] not in self._grown:
            return False
        (top,), arrays = layer.tops, self._arrays(layer.bottoms[0])
        if not arrays[0].ndim or any(map(differs, self.dims[top])) or top in self.base.outputs.values():
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
        self.made.append(memory_data(one, made))
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
            raise OneSize(f"{where_of(reader)} needs a constant of that size")
        shapes = [*zip(*(array.shape for array in arrays), strict=True)]
        places = _places(whole, arrays)
        if places is None:
            raise OneSize(f"{where_of(reader)} needs a constant of that size")
        siblings = [other for other in reader.bottoms if other is not blob and other not in self._grown]
        # Not the dims that the reader has, in which axes may be joined.
        kept = [axis for axis, shape in enumerate(shapes) if shape != (1,) * len(arrays)]
        fronts = [places.get(axis, BEGINNING) for axis in kept]
        cut = self.part(whole, [shapes[axis] for axis in kept], siblings, reader, fronts)
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
        self.made.append(self.writers["Reshape"](self, view, params, where_of(reader)))
        return top

    def part(
        self, whole: Array, vectors: Sequence[Vector], own: Sequence[Blob], reader: Layer, fronts: Sequence[int] = ()
    ) -> Blob:
        """So much of a constant as ``vectors`` say, none of which is 1: the beginning along each axis, or what lies
        behind the halves ``fronts`` of what is left out."""
        once = (1,) * len(vectors[0])
        axes = [axis for axis, vector in enumerate(vectors) if differs(vector)]
        found = [self.term(vectors[axis], own, once) for axis in axes]
        if len(vectors) > MOST_DIMS or None in found:
            raise OneSize(f"{where_of(reader)} needs a constant of that size")
        memory = Blob(tuple(map(max, vectors)))
        top = Blob(tuple(vector[0] for vector in vectors))
        self.made.append(memory_data(whole, memory))
        bottoms = [memory]
        starts, stops = [], []
        for axis, term in zip(axes, found, strict=True):
            assert term is not None
            text, size = self.text(term, bottoms), memory.dims[axis]
            start, stop = "0", text
            if fronts and fronts[axis] == END:
                start, stop = f"-({size},{text})", str(size)
            elif fronts and fronts[axis] == MIDDLE:
                start, stop = f"//(-({size},{text}),2)", f"//(+({size},{text}),2)"
            starts.append(start)
            stops.append(stop)
        params: dict[int, Param] = {
            START_TEXTS: ",".join(starts),
            END_TEXTS: ",".join(stops),
            AXIS_TEXTS: ",".join(map(str, axes)),
        }
        self.made.append(readable(Layer("Crop", tuple(bottoms), (top,), params, origin=reader.origin)))
        self.know(top, tuple(vectors), once)
        return top

    # ---- numbers

    def extent(self, vector: Vector, own: Sequence[Blob], rows: Vector) -> Extent | None:
        return self.term(vector, own, rows) if differs(vector) else vector[0]

    def term(self, vector: Vector, own: Sequence[Blob], rows: Vector) -> Term | None:
        """How ``vector`` is computed in a layer with the bottoms ``own``, whose result has ``rows``; None if it cannot.

        A blob with rows is no further bottom of a layer without: it would be run for each.
        """
        mine = [
            Atom(each, blob, letter, self.rows[blob])
            for blob in own
            if blob in self.dims
            for each, letter in zip(self.dims[blob], LETTERS[len(blob.dims)], strict=True)
            if differs(each)
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


def _product(vector: Vector, atoms: Sequence[Atom]) -> Term | None:
    """``vector`` as a dim, so many times or so many parts of one, such of a product of two, or so many times one and a
    number."""
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
    for atom in atoms:
        if (times := _steepness(vector, atom.vector)) is not None:
            return Term(((atom.blob, atom.letter),), times, plus=vector[0] - times * atom.vector[0])
    return None


def _steepness(vector: Vector, of: Vector) -> int | None:
    """How much more ``vector`` is by each that ``of`` is more, where that is a number and enough sizes say so."""
    if len(set(of)) < ENOUGH:
        return None
    low, high = of.index(min(of)), of.index(max(of))
    times, rest = divmod(vector[high] - vector[low], of[high] - of[low])
    is_so = all(each - vector[low] == times * (size - of[low]) for each, size in zip(vector, of, strict=True))
    return times if not rest and times > 0 and is_so else None


def _ratio(vector: Vector, of: Vector) -> tuple[int, int] | None:
    """``vector`` / ``of`` as (times, over), of which one is 1, if that is the same everywhere."""
    if all(left * of[0] == right * vector[0] for left, right in zip(vector, of, strict=True)):
        for times, over in ((vector[0] // of[0], 1), (1, of[0] // vector[0])):
            if vector[0] * over == of[0] * times:
                return times, over
    return None


def differs(vector: Vector) -> bool:
    return any(each != vector[0] for each in vector)


def _starts(whole: Array, part: Array) -> bool:
    beginning = whole[tuple(map(slice, part.shape))]
    return np.array_equal(beginning, part, equal_nan=whole.dtype.kind == "f")


def _places(whole: Array, parts: Sequence[Array]) -> dict[int, int] | None:
    """Where each of ``parts`` lies in ``whole`` along the axes that are open; None: nowhere."""
    open_axes = [axis for axis, size in enumerate(whole.shape) if any(part.shape[axis] != size for part in parts)]
    if any(left > right for part in parts for left, right in zip(part.shape, whole.shape, strict=True)):
        return None
    choices = itertools.product((BEGINNING, END, MIDDLE), repeat=len(open_axes))
    for choice in sorted(choices, key=lambda fronts: sum(map(bool, fronts))):
        places = dict(zip(open_axes, choice, strict=True))
        if all(_lies_at(whole, part, places) for part in parts):
            return places
    return None


def _lies_at(whole: Array, part: Array, places: Mapping[int, int]) -> bool:
    at: list[slice] = []
    for axis, (size, count) in enumerate(zip(whole.shape, part.shape, strict=True)):
        start, odd = divmod((size - count) * places.get(axis, BEGINNING), 2)
        if odd:
            return False
        at.append(slice(start, start + count))
    return np.array_equal(whole[tuple(at)], part, equal_nan=whole.dtype.kind == "f")


def same(one: Mapping[int, Param], other: Mapping[int, Param]) -> bool:
    return one.keys() == other.keys() and all(_plain(one[key]) == _plain(other[key]) for key in one)


def _plain(param: Param) -> object:
    return param if isinstance(param, int | float | str) else list(param)


def readable(layer: Layer) -> Layer:
    """``layer``. Raises ``OneSize`` where ncnn does not read so much."""
    if len(layer.bottoms) > MOST_BOTTOMS or any(
        isinstance(param, str) and len(param) > LONGEST_EXPRESSION for param in layer.params.values()
    ):
        raise OneSize(f"the expression of {where_of(layer)} is too long")
    return layer
