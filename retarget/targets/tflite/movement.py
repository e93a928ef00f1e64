"""What Reshapes and Transposes one after the other do to what is stored: no more than one TRANSPOSE.

Axes are made of parts, which Reshapes join and split and Transposes carry along: all that a chain of them does is to
bring the parts of its operand's axes into the order that those of its result have. In which order the operand is stored
and the result is to be stored only says where that starts and ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias

from retarget.targets.tflite.layout import Layout, order

Step: TypeAlias = tuple[Literal["reshape", "transpose"], tuple[int, ...]]
"""To a shape, or by a permutation."""
Parts: TypeAlias = tuple[tuple[int, ...], ...]
"""For each axis the numbers of the parts that it is made of, the outermost first."""

MOST_AXES = 6
"""Of TFLite's TRANSPOSE."""


@dataclass(frozen=True)
class Movement:
    """The parts of the operand's and the result's axes. Axes of size 1 have none."""

    sizes: tuple[int, ...]
    operand: Parts
    result: Parts
    image: Parts | None
    """Of what the last step flattens to rows, if it does, with its axis 1 last: rows can be in this order, too."""

    @classmethod
    def of(cls, shape: Sequence[int], steps: Sequence[Step]) -> Movement | None:
        """None where a Reshape joins and splits what has no common parts, or where there is nothing to move."""
        if 0 in shape:
            return None
        parts = _Splits()
        operand = [[parts.new(size)] if size != 1 else [] for size in shape]
        now, image = operand, None
        for step, (kind, numbers) in enumerate(steps):
            if kind == "transpose":
                now = [now[axis] for axis in numbers]
                continue
            regrouped = parts.regrouped(chain.from_iterable(now), numbers)
            if regrouped is None:
                return None
            is_row = step == len(steps) - 1 and len(now) > len(numbers) == 2
            if is_row and parts.ends(now[0]) == parts.ends(regrouped[0]):
                image = now
            now = regrouped
        last = None if image is None else parts.axes([image[0], *image[2:], image[1]])
        if last is not None and tuple(chain.from_iterable(last)) == tuple(chain.from_iterable(parts.axes(now))):
            last = None
        return cls(tuple(parts.sizes), parts.axes(operand), parts.axes(now), last)

    def read(self, layout: Layout) -> Parts:
        """The parts of the operand's axes as they are stored."""
        return tuple(self.operand[axis] for axis in order(layout, len(self.operand)))

    def written(self, layout: Layout) -> Parts:
        """The parts of the result's axes as they are stored."""
        if self.image is not None and layout is Layout.LAST:
            return self.image[0], tuple(chain.from_iterable(self.image[1:]))
        return tuple(self.result[axis] for axis in order(layout, len(self.result)))

    def shape(self, axes: Parts) -> tuple[int, ...]:
        """How large axes of these parts are."""
        return tuple(math.prod(self.sizes[part] for part in axis) for axis in axes)

    def route(self, read: Layout, written: Layout) -> tuple[Parts, tuple[int, ...]] | None:
        """The axes in which to see what is stored, and the permutation of them; None where nothing moves.

        Of all that do they are such as need the fewest RESHAPEs before and behind.
        """
        before, after = self.read(read), self.written(written)
        old, new = tuple(chain.from_iterable(before)), tuple(chain.from_iterable(after))
        if old == new:
            return None
        places = [old.index(part) for part in new]
        starts = [at for at, place in enumerate(places) if at == 0 or place != places[at - 1] + 1]
        runs = [new[start:end] for start, end in zip(starts, [*starts[1:], len(new)], strict=True)]
        merged = tuple(sorted(runs, key=lambda run: old.index(run[0])))
        found: list[tuple[int, Parts, tuple[int, ...]]] = []
        for seen, to in ((before, _follow(before, new)), (_follow(after, old), after), (merged, tuple(runs))):
            if seen is not None and to is not None and len(seen) <= MOST_AXES:
                reshapes = (self.shape(seen) != self.shape(before)) + (self.shape(to) != self.shape(after))
                found.append((reshapes, seen, _permutation(seen, to)))
        if not found:
            return merged, _permutation(merged, tuple(runs))
        _, seen, perm = min(found, key=lambda each: each[0])
        return seen, perm


def _follow(axes: Parts, parts: Sequence[int]) -> Parts | None:
    """``axes`` in the order that ``parts`` have; those without parts stay where they are. None if one is torn apart."""
    full = sorted((axis for axis in axes if axis), key=lambda axis: parts.index(axis[0]))
    if tuple(chain.from_iterable(full)) != tuple(parts):
        return None
    rest = iter(full)
    return tuple(next(rest) if axis else () for axis in axes)


def _permutation(axes: Parts, to: Parts) -> tuple[int, ...]:
    """Where each axis of ``to`` is among ``axes``; those without parts are where they were."""
    return tuple(axes.index(axis) if axis else at for at, axis in enumerate(to))


class _Splits:
    """Parts, and those that they were split into."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.halves: dict[int, tuple[int, int]] = {}

    def new(self, size: int) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def ends(self, parts: Iterable[int]) -> list[int]:
        """``parts`` without those that were split since."""
        found: list[int] = []
        for part in parts:
            found += self.ends(self.halves[part]) if part in self.halves else [part]
        return found

    def axes(self, of: Sequence[Sequence[int]]) -> Parts:
        return tuple(tuple(self.ends(each)) for each in of)

    def regrouped(self, parts: Iterable[int], shape: Sequence[int]) -> list[list[int]] | None:
        """``parts`` as axes of ``shape``, split where axes end."""
        left = self.ends(parts)[::-1]
        axes: list[list[int]] = []
        for size in shape:
            axis: list[int] = []
            while size != 1:
                if not left:
                    return None
                part = left.pop()
                if size % self.sizes[part]:
                    rest, uneven = divmod(self.sizes[part], size)
                    if uneven:
                        return None
                    self.halves[part] = self.new(size), self.new(rest)
                    part, other = self.halves[part]
                    left.append(other)
                axis.append(part)
                size //= self.sizes[part]
            axes.append(axis)
        return None if left else axes
