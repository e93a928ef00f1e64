"""Leave symbolic dimensions open in the file, as far as its operators allow.

A lowered program has all shapes as numbers. It is lowered at two sizes, and what the two have in common (`unsized`) has
none of those that depend on the sizes.

What comes of it is loaded by the runtime and resized before it is believed.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np

from retarget.errors import RetargetError
from retarget.litert import Loaded
from retarget.spec import DimRange
from retarget.targets.tflite.program import Operator, Options, Program, Shape
from retarget.targets.tflite.slices import OneSize
from retarget.targets.tflite.unsized import Common
from retarget.targets.tflite.write import write

Sizes: TypeAlias = Mapping[str, int]

LARGE = 1 << 30
"""Programs with more bytes of activations are not tried: the runtime would allocate them all."""


@dataclass(frozen=True)
class Opened:
    """A program, and the dimensions that have one size in it: that of ``opt``. Each with the reason, for the user."""

    program: Program
    fixed: Mapping[str, str]


def opened(lower: Callable[[Sizes], Program], shapes: Mapping[str, DimRange], batch: str | None) -> Opened:
    """The program with as many of the dimensions ``shapes`` open as can be: all, or the batch and what else goes.

    ``lower`` makes the program at given sizes of all of them.
    """
    trial = _Trial(lower, shapes, batch)
    fixed = {symbol: "no other size is asked for" for symbol, extent in shapes.items() if extent.min == extent.max}
    free = sorted((symbol for symbol in shapes if symbol not in fixed), key=lambda symbol: symbol != batch)
    try:
        return Opened(trial.program(free), fixed)
    except OneSize as reason:
        if len(free) == 1:
            return Opened(lower(trial.opt), {**fixed, free[0]: str(reason)})
    held: list[str] = []
    program = None
    for symbol in free:
        try:
            program = trial.program([*held, symbol])
            held.append(symbol)
        except OneSize as reason:
            fixed[symbol] = str(reason)
    return Opened(program or lower(trial.opt), fixed)


@dataclass(frozen=True)
class _Border:
    """What is known of a program at one size: shapes by name, and the bytes of all that it computes."""

    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    activations: int

    @classmethod
    def of(cls, program: Program) -> _Border:
        inputs, outputs = (
            {name: tensor.shape for name, tensor in border.items()} for border in (program.inputs, program.outputs)
        )
        computed = (tensor for tensor in program.tensors if tensor.constant is None)
        return cls(inputs, outputs, sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in computed))


@dataclass
class _Trial:
    """Opens sets of dimensions of one model."""

    lower: Callable[[Sizes], Program]
    shapes: Mapping[str, DimRange]
    batch: str | None
    _borders: dict[tuple[int, ...], _Border] = field(default_factory=dict)

    @property
    def opt(self) -> Sizes:
        return {symbol: extent.opt for symbol, extent in self.shapes.items()}

    def at(self, sizes: Sizes) -> Program:
        """The program at ``sizes``. Raises ``OneSize`` where there is none."""
        words = ", ".join(f"{symbol}={size}" for symbol, size in sizes.items())
        try:
            program = self.lower(sizes)
        except RetargetError as error:
            raise OneSize(f"the model cannot be written with {words}: {error.message}") from error
        if not program.outputs:
            raise OneSize(f"the model cannot be written with {words}")
        self._borders[tuple(sizes.values())] = _Border.of(program)
        return program

    def border(self, sizes: Sizes) -> _Border:
        """What inputs and outputs are at ``sizes``: programs are not kept, as each has constants of its own."""
        if tuple(sizes.values()) not in self._borders:
            self.at(sizes)
        return self._borders[tuple(sizes.values())]

    def program(self, symbols: Sequence[str]) -> Program:
        """The program with ``symbols`` open, tried by the runtime. Raises ``OneSize``."""
        if not symbols:
            return self.at(self.opt)
        one, other = self._two(symbols)
        largest = {**self.opt, **{symbol: self.shapes[symbol].max for symbol in symbols}}
        smallest = {**self.opt, **{symbol: self.shapes[symbol].min for symbol in symbols}}
        named = {symbol: (one[symbol], other[symbol]) for symbol in symbols}
        program = _cast(Common(self.at(one), self.at(other), cache(lambda: self.at(largest)), named).program())
        points = [other, largest]
        with suppress(OneSize):
            # Of few elements there may be nothing left, which no file can say.
            self.border(smallest)
            points.append(smallest)
        # The shapes of the last one stay in the file.
        self._try(program, [*points, self.opt])
        return program

    def _two(self, symbols: Sequence[str]) -> tuple[Sizes, Sizes]:
        """Two sizes of each of ``symbols``, of no two in the same proportion, so that each is told by its sizes."""
        one, other = dict(self.opt), dict(self.opt)
        taken: set[Fraction] = set()
        for symbol in symbols:
            extent = self.shapes[symbol]
            likely = [extent.opt, extent.max, extent.min]
            if symbol == self.batch:
                # Every batch is as good as any, a small one costs nothing, and few other dimensions are odd.
                likely = [extent.opt, *(size for size in (3, 5, 7, 2) if extent.min <= size <= extent.max), *likely]
            # What has one element is written otherwise: there is nothing to transpose or to repeat.
            sizes = sorted(dict.fromkeys(likely), key=lambda size: size == 1)
            pairs = list(itertools.permutations(sizes, 2))
            pair = next((pair for pair in pairs if Fraction(*pair) not in taken), pairs[0])
            taken.add(Fraction(*pair))
            one[symbol], other[symbol] = pair
        return one, other

    def _try(self, program: Program, points: Sequence[Sizes]) -> None:
        """Resize ``program`` to each of ``points``. Raises ``OneSize`` where the runtime has other shapes than we."""
        if any(operator.custom for operator in program.operators):
            raise OneSize("the custom operators are not here to try other sizes")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "tried.tflite")
            write(program, path, description="", hollow=True)
            loaded = Loaded(str(path), "builtin", 1)
            for sizes in points:
                wanted = self.border(sizes)
                if sizes == self.opt or wanted.activations <= LARGE:
                    try:
                        _resize(loaded, program, wanted)
                    except RetargetError as error:
                        words = error.message.replace(f" {path}", "")
                        raise OneSize(f"the runtime does not take another size: {words}") from error
            loaded.close()


def _cast(program: Program) -> Program:
    """``program``, where it keeps a state, with halves widened by CAST.

    DEQUANTIZE widens a constant once, in the arena, and takes no notice when a state of another size moves it there:
    from then on it gives what happens to stand there. What CAST makes of a constant has memory of its own.
    """
    if not any(tensor.is_variable for tensor in program.tensors):
        return program
    operators = [
        replace(operator, code="CAST", options=Options("CastOptions")) if _is_widening(operator) else operator
        for operator in program.operators
    ]
    return replace(program, operators=operators)


def _is_widening(operator: Operator) -> bool:
    source = operator.inputs[0] if operator.code == "DEQUANTIZE" else None
    return source is not None and source.dtype == np.float16


def _resize(loaded: Loaded, program: Program, wanted: _Border) -> None:
    """Give ``program`` the shapes that it has where its inputs have those of ``wanted``; outputs must then be equal."""
    index = {tensor: number for number, tensor in enumerate(program.tensors)}
    shapes = loaded.shapes({index[tensor]: wanted.inputs[name] for name, tensor in program.inputs.items()})
    for name, tensor in program.outputs.items():
        made, right = shapes[index[tensor]], wanted.outputs[name]
        if made != right:
            raise OneSize(f"the runtime makes {list(made)} of '{name}', which is {list(right)}")
    for tensor, number in index.items():
        if tensor.open_axes:
            tensor.shape = shapes[number]
