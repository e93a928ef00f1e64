"""What will stand in the files, as plain data: layers, the blobs between them, and weights.

A blob is read by one layer alone in ncnn; here it may be read by many, and `finished` writes the Split layers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from retarget.protocols import Array

Dims: TypeAlias = tuple[int, ...]
"""Sizes of a blob, the outermost first: (w,), (h, w), (c, h, w) or (c, d, h, w)."""

Kind: TypeAlias = Literal["float", "index", "codes"]
"""What the elements are: floats, int32 where a layer looks something up, or int8."""

Param: TypeAlias = int | float | str | Sequence[int] | Sequence[float]

MOST_DIMS = 4
"""ncnn's blobs have no more, the rows aside."""

SIZES = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 11, 1, 0)}
"""Of a Reshape (Input, MemoryData): the keys of so many dims, the outermost first."""

MOST = float(np.finfo(np.float32).max)
"""The largest that a param can be: a param file has no infinity."""

LOAD, RAW = 21, 1
"""``21`` of MemoryData: no tag in front of its numbers."""

MASK = 31
"""A key that every layer has: what of ncnn's options does not hold for it."""
NO_HALF, NO_VULKAN = 1 | 2 | 4, 16
"""Bits of it: neither float16 (to compute with, to store) nor bfloat16; on the CPU."""

LARGEST_HALF = float(np.finfo(np.float16).max)
"""Beyond it numbers are infinite as float16."""


@dataclass(eq=False)
class Blob:
    """A blob at the sizes that the model was lowered for."""

    dims: Dims
    rows: int = 1
    """ncnn's own count of samples (``Mat::n``): every layer but a few is run on each."""
    kind: Kind = "float"
    name: str = ""
    """Unique in the file; `finished` names those without one."""
    value: str | None = None
    """The ONNX value that it holds, in the order of its elements."""

    @property
    def size(self) -> int:
        """Elements of one row."""
        return math.prod(self.dims)


@dataclass(frozen=True, eq=False)
class Weight:
    """Numbers in the weight file. ``tagged``: the layer reads a tag first, and so takes other types than float32.

    A tagged weight of floats may become float16 when it is written; one of int8 is what it is.
    """

    array: Array
    tagged: bool = True


@dataclass(eq=False)
class Layer:
    """One layer. ``origin``: the name of the ONNX node that it is of."""

    type: str
    bottoms: tuple[Blob, ...]
    tops: tuple[Blob, ...]
    params: dict[int, Param] = field(default_factory=dict)
    weights: tuple[Weight, ...] = ()
    origin: str = ""
    name: str = ""
    """Unique in the file; `finished` names those without one."""


def sized(dims: Dims) -> dict[int, Param]:
    """``dims`` as params."""
    return dict(sorted(zip(SIZES[len(dims)], dims, strict=True)))


def reshape_to(source: Blob, top: Blob, origin: str) -> Layer:
    """The Reshape of ``source`` to ``top``, which has as many rows."""
    return Layer("Reshape", (source,), (top,), sized(top.dims), origin=origin)


def memory_data(array: Array, blob: Blob) -> Layer:
    """What gives the constant ``array`` as ``blob``."""
    return Layer("MemoryData", (), (blob,), {**sized(blob.dims), LOAD: RAW}, (Weight(array, tagged=False),))


_FLOATS = ("Input", "MemoryData")
"""Layers that give float32 whatever ncnn's options are."""
_AS_THEY_ARE = ("Embed", *_FLOATS)
"""Layers that round nothing that they are fed."""


def keep_from_half(layers: Iterable[Layer]) -> None:
    """Let ``layers`` neither compute in float16 nor store it."""
    for layer in layers:
        if layer.type not in _AS_THEY_ARE:
            layer.params.setdefault(MASK, NO_HALF)


def is_kept_from_half(layer: Layer) -> bool:
    mask = layer.params.get(MASK, 0)
    return isinstance(mask, int) and bool(mask & NO_HALF)


@dataclass(eq=False)
class Program:
    """Layers in the order in which they are executed."""

    layers: list[Layer] = field(default_factory=list)
    inputs: dict[str, list[Blob]] = field(default_factory=dict)
    """The model's inputs → the blobs that the user feeds, one for each kind in which it is used."""
    outputs: dict[str, Blob] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of the outputs, as ONNX has them at the sizes that the model was lowered for."""

    @property
    def last(self) -> Layer | None:
        """The layer that was written last; None where there is none yet."""
        return self.layers[-1] if self.layers else None

    def keep_from_half(self, last: Layer | None) -> None:
        """Let the layers behind ``last``, or all, neither compute in float16 nor store it."""
        keep_from_half(takewhile(lambda layer: layer is not last, reversed(self.layers)))

    def finished(self, names: Mapping[str, str]) -> Program:
        """The program that can be written: no layer without use, a Split where a blob has many readers, all named.

        ``names``: the model's inputs and outputs → their names in the file, which no other blob gets.
        """
        used = self.used()
        outputs = dict(self.outputs)
        layers = _with_floats(_with_splits([layer for layer in self.layers if layer in used], outputs))
        made = Program(layers, {name: list(blobs) for name, blobs in self.inputs.items()}, outputs, self.shapes)
        _name(made, names)
        return made

    def used(self) -> set[Layer]:
        """The inputs, and the layers on which the outputs hang."""
        maker = {top: layer for layer in self.layers for top in layer.tops}
        waiting = [maker[blob] for blob in self.outputs.values()]
        # An input that nothing reads stays: the user feeds it.
        used = {layer for layer in self.layers if layer.type == "Input"}
        while waiting:
            layer = waiting.pop()
            if layer not in used:
                used.add(layer)
                waiting += [maker[blob] for blob in layer.bottoms]
        return used


def _with_splits(layers: Sequence[Layer], outputs: dict[str, Blob]) -> list[Layer]:
    """``layers`` with a Split behind every blob of many readers; ``outputs`` are readers, and become copies."""
    readers = Counter(blob for layer in layers for blob in layer.bottoms) + Counter(outputs.values())
    copies: dict[Blob, list[Blob]] = {}
    found: list[Layer] = []
    for layer in layers:
        bottoms = tuple(copies[blob].pop() if blob in copies else blob for blob in layer.bottoms)
        found.append(_unchanged(replace(layer, bottoms=bottoms, params=dict(layer.params))))
        for blob in layer.tops:
            if readers[blob] > 1:
                made = [Blob(blob.dims, blob.rows, blob.kind, value=blob.value) for _ in range(readers[blob])]
                # A Split rounds to float16 like others.
                kept: dict[int, Param] = {MASK: NO_HALF} if is_kept_from_half(layer) else {}
                found.append(_unchanged(Layer("Split", (blob,), tuple(made), kept, origin=layer.origin)))
                copies[blob] = made[::-1]
    for name, blob in outputs.items():
        if blob in copies:
            outputs[name] = copies[blob].pop()
    return found


def _with_floats(layers: Sequence[Layer]) -> list[Layer]:
    """``layers`` with a Tile of one time where what is kept from float16 reads what is not.

    ncnn gives a layer for which float16 is masked what is float16 as it is, and that is then read as float32. Tile
    takes none on any processor, and so ncnn makes it float32 in front of it.
    """
    halves: set[Blob] = set()
    found: list[Layer] = []
    for layer in layers:
        if not is_kept_from_half(layer):
            found.append(layer)
            halves.update(layer.tops if layer.type not in _FLOATS else ())
            continue
        wide = {blob: Blob(blob.dims, blob.rows) for blob in layer.bottoms if blob in halves}
        found += [Layer("Tile", (blob,), (made,), origin=layer.origin) for blob, made in wide.items()]
        found.append(replace(layer, bottoms=tuple(wide.get(blob, blob) for blob in layer.bottoms)))
    return found


def _unchanged(layer: Layer) -> Layer:
    """``layer``, not to take int32 for floats that it may round: ncnn does not know which are which."""
    if layer.type != "Embed" and any(blob.kind == "index" for blob in layer.bottoms):
        layer.params[MASK] = NO_HALF | NO_VULKAN
    return layer


def _name(program: Program, names: Mapping[str, str]) -> None:
    """Give every blob and layer a name of its own; those of the user's stay as they are."""
    taken = set(names.values())
    for name, blobs in program.inputs.items():
        for number, blob in enumerate(blobs):
            blob.name = names[name] if not number else own_name(f"{names[name]}_{blob.kind}", taken)
    for name, blob in program.outputs.items():
        # What is both is two blobs.
        blob.name = own_name(names[name], taken) if name in program.inputs else names[name]
    layer_names: set[str] = set()
    for layer in program.layers:
        layer.name = own_name(layer.name or layer.origin or layer.type.lower(), layer_names)
        for blob in layer.tops:
            blob.name = blob.name or own_name(blob.value or layer.name, taken)


def own_name(wanted: str, taken: set[str]) -> str:
    """A name that the file can hold and that is not taken, after ``wanted``."""
    plain = word(wanted)
    name, number = plain, 1
    while name in taken:
        name, number = f"{plain}_{number}", number + 1
    taken.add(name)
    return name


LONGEST_NAME = 200
"""Bytes: ncnn reads names of at most 255, and what makes one unique needs some."""


def word(name: str) -> str:
    """``name`` as one word of the param file, which is split at white space."""
    plain = "_".join(name.split()).encode()[-LONGEST_NAME:]
    return plain.decode(errors="ignore") or "_"
