"""What rewrites a program: who makes a blob and who reads it, and what stands for layers that were found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from retarget.targets.ncnn.program import SIZES, Blob, Layer, Program
from retarget.targets.ncnn.rows import EXPRESSION, TO_ROWS

if TYPE_CHECKING:
    from retarget.protocols import Array


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
        self.halves: dict[int, Blob] = {}
        """The ids of constant angles → those of one half, which is what RotaryEmbed takes."""
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
        """The numbers in ``blob`` if they are in the file and the same for every row, in its dims."""
        layer = self.maker[self.source(blob)]
        if layer.type != "MemoryData" or blob.rows > 1:
            return None
        return layer.weights[0].array.reshape(blob.dims)

    def source(self, blob: Blob) -> Blob:
        """What ``blob`` has the elements of, in their order."""
        while is_plain_reshape(layer := self.maker[blob]):
            (blob,) = layer.bottoms
        return blob

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
        made = replace(layer, bottoms=bottoms)
        self.maker.update((top, made) for top in made.tops)
        return made

    def _unread(self, layer: Layer) -> None:
        """``layer`` reads no more, and no more does what was there only for it."""
        for blob in layer.bottoms:
            self._readers[blob] -= 1
            maker = self.maker[blob]
            if not any(self._readers[top] for top in maker.tops):
                self._unread(maker)


def is_plain_reshape(layer: Layer) -> bool:
    """Whether it is one whose sizes are numbers, rows aside: others may be open."""
    if layer.type != "Reshape" or len(layer.bottoms) > 1:
        return False
    written = str(layer.params[EXPRESSION]).split(",") if EXPRESSION in layer.params else None
    sizes = [str(layer.params.get(key, 1)) for key in SIZES[4]] if written is None else written
    open_sizes = [size for size in sizes if not (size.isdigit() and int(size))]
    return open_sizes == (["-1"] if TO_ROWS in layer.params else [])
