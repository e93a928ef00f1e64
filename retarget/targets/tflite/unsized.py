"""What two programs have in common that were lowered of one model at different sizes.

What differs between them is what depends on the sizes: the shapes of tensors, which may stay open, and constants that
speak of shapes. Of those

- one number of a RESHAPE becomes -1;
- bounds of slices are counted from the end (`slices`);
- the size of a resized image is so many times that of the image;
- where a number is so many times the size of a dimension, an operator may read it from the shape of an input: SHAPE and
  what follows it is computed when the kernels are prepared, so nothing becomes dynamic;
- a constant that repeats itself is one period of it and a TILE, and one that begins as the largest does, such as
  positions, is cut from that;
- with anything else the dimension has one size in the file.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from retarget.targets.tflite import slices
from retarget.targets.tflite.program import Constant, Operator, Options, Program, Tensor
from retarget.targets.tflite.slices import OneSize, Pair, differs, ints, numbers, pairs, picked, sliced

if TYPE_CHECKING:
    from retarget.protocols import Array

_SLICING = ("SLICE", "STRIDED_SLICE")
_RESIZING = ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")
_READING = {"BROADCAST_TO": 1, "FILL": 0, "TILE": 1, "RESHAPE": 1}
"""Operators that take a computed shape, and at which input."""

GROWING = 1 << 26
"""Constants of at most so many bytes may grow with the dimensions."""

SMALL = 1 << 16
"""Constants of at most so many bytes are held against each other where their keys differ."""

_BROADCASTING = frozenset(
    {"ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SELECT_V2", "EQUAL", "LESS", "GREATER", "SQUARED_DIFFERENCE"}
)
"""Operators that repeat an operand of one element along an axis by themselves."""


class Multiple(NamedTuple):
    """So many times the size of an open dimension."""

    symbol: str
    times: int


Extent: TypeAlias = int | Multiple


@dataclass
class Common:
    """What two programs of one model have in common, with the rest left open. Raises ``OneSize`` if that cannot be.

    ``largest``: makes the program at the largest sizes. ``symbols``: each open dimension to its sizes in the one and in
    the other.
    """

    one: Program
    other: Program
    largest: Callable[[], Program]
    symbols: Mapping[str, Pair]
    partners: dict[Tensor, Tensor] = field(default_factory=dict)
    made: dict[Tensor, Tensor] = field(default_factory=dict)
    """Tensors of the one program to those of the common one."""
    prelude: list[Operator] = field(default_factory=list)
    """What reads sizes from the inputs."""
    body: list[Operator] = field(default_factory=list)
    _read: dict[object, Tensor] = field(default_factory=dict)

    def program(self) -> Program:
        for name, tensor in self.one.inputs.items():
            self._pair(tensor, self.other.inputs[name], f"input '{name}'")
        if len(self.one.operators) != len(self.other.operators):
            raise OneSize(f"with another size {_longer(self.one, self.other)} is written with other operators")
        for index, both in enumerate(zip(self.one.operators, self.other.operators, strict=True)):
            made = self._operator(index, *both)
            if made is not None:
                self.body.append(made)
        for name, tensor in self.one.outputs.items():
            if self.partners.get(tensor) is not self.other.outputs[name]:
                raise OneSize(f"with another size '{name}' is made otherwise")
        inputs, outputs = (
            {name: self.made[tensor] for name, tensor in border.items()}
            for border in (self.one.inputs, self.one.outputs)
        )
        return Program([*self.prelude, *self.body], inputs, outputs)

    def _pair(self, one: Tensor, other: Tensor, where: str) -> None:
        if len(one.shape) != len(other.shape) or one.dtype != other.dtype or one.quantization != other.quantization:
            raise OneSize(f"with another size {where} has another type or rank")
        sizes = pairs(one.shape, other.shape)
        axes = tuple(axis for axis, both in enumerate(sizes) if differs(both) or axis in one.open_axes)
        self.partners[one] = other
        self.made[one] = replace(one, open_axes=axes)

    def _operator(self, at: int, one: Operator, other: Operator) -> Operator | None:
        """The operator for all sizes; None where the prelude makes its result."""
        where = f"{one.custom or one.code} of '{one.origin}'" if one.origin else f"a {one.custom or one.code}"
        if (one.code, one.custom, len(one.inputs), len(one.outputs)) != (
            other.code,
            other.custom,
            len(other.inputs),
            len(other.outputs),
        ):
            raise OneSize(f"with another size there is another operator in place of {where}")
        if one.options != other.options or one.custom_options != other.custom_options:
            raise OneSize(f"{where} has it among its options")
        differing: dict[int, tuple[Constant, Constant]] = {}
        inputs: list[Tensor | None] = []
        for index, (mine, its) in enumerate(zip(one.inputs, other.inputs, strict=True)):
            if mine is None or its is None:
                if mine is not its:
                    raise OneSize(f"with another size {where} has other operands")
                inputs.append(None)
            elif mine.constant is not None and its.constant is not None:
                inputs.append(mine)
                if not _equal(mine.constant, its.constant) or mine.quantization != its.quantization:
                    differing[index] = mine.constant, its.constant
            else:
                # A state that nothing writes is first named by the operator that keeps it, and cannot be resized.
                if mine.is_variable and its.is_variable and mine not in self.partners:
                    self._pair(mine, its, where)
                    if self.made[mine].open_axes:
                        raise OneSize(f"{where} keeps a state of one size")
                if self.partners.get(mine) is not its:
                    raise OneSize(f"with another size {where} has other operands")
                inputs.append(self.made[mine])
        for mine, its in zip(one.outputs, other.outputs, strict=True):
            self._pair(mine, its, where)
        made = replace(one, inputs=tuple(inputs), outputs=tuple(self.made[tensor] for tensor in one.outputs))
        for index in [index for index, both in differing.items() if both[0].shape != both[1].shape]:
            grown = self._grown(at, made, index, differing.pop(index), where)
            if made.code == "DEQUANTIZE" and grown.dtype == one.outputs[0].dtype:
                self.made[one.outputs[0]] = grown
                return None
            made = replace(made, inputs=(*made.inputs[:index], grown, *made.inputs[index + 1 :]))
        return self._without(made, other, differing, where) if differing else made

    def _without(
        self, operator: Operator, other: Operator, differing: Mapping[int, tuple[Constant, Constant]], where: str
    ) -> Operator:
        """``operator`` with nothing in it that depends on the sizes. ``differing``: its constants that do."""
        if operator.code == "GATHER" and list(differing) == [1]:
            return picked(operator, other, where)
        for index, both in differing.items():
            if both[0].dtype != np.int32 or len(both[0].shape) != 1:
                raise OneSize(f"{where} needs a constant of that size")
            if operator.code not in (*_SLICING, *_RESIZING) and _READING.get(operator.code) != index:
                raise OneSize(f"{where} holds it as a number")
        if operator.code in _SLICING:
            return sliced(operator, other, where)
        ((index, both),) = differing.items()
        sizes = pairs(numbers(both[0]), numbers(both[1]))
        return (
            self._resized(operator, other, sizes, where)
            if operator.code in _RESIZING
            else self._shaped(operator, index, sizes, where)
        )

    def _resized(self, operator: Operator, other: Operator, sizes: Sequence[Pair], where: str) -> Operator:
        """An operator that makes images of ``sizes`` [height, width], of others that are whole parts of them."""
        image, another = operator.inputs[0], other.inputs[0]
        assert image is not None
        assert another is not None
        extents = pairs(image.shape, another.shape)[1:3]
        if not all(_is_multiple(size, extent) for size, extent in zip(sizes, extents, strict=True)):
            raise OneSize(f"{where} holds it as a number")
        times = [size[0] // extent[0] for size, extent in zip(sizes, extents, strict=True)]
        options = Options("ShapeOptions", {"outType": "INT32"})
        shape = self._add("SHAPE", [image], len(image.shape), options, operator.origin, self.body)
        bounds = [shape, ints([1]), ints([3]), ints([1])]
        part = self._add("STRIDED_SLICE", bounds, 2, Options("StridedSliceOptions"), operator.origin, self.body)
        made = self._add("MUL", [part, ints(times)], 2, Options("MulOptions"), operator.origin, self.body)
        return replace(operator, inputs=(image, made))

    def _shaped(self, operator: Operator, index: int, sizes: Sequence[Pair], where: str) -> Operator:
        """``operator`` with the shape ``sizes``, its operand ``index``, for all sizes."""
        shape = self._extents(sizes)
        if operator.code == "RESHAPE" and sum(not isinstance(each, int) or each == -1 for each in shape) == 1:
            shape = [-1 if isinstance(each, Multiple) else each for each in shape]
        elif shape.count(-1) > (operator.code == "RESHAPE"):
            raise OneSize(f"{where} holds it as a number")
        computed = self._shape(shape, operator.origin)
        return replace(operator, inputs=(*operator.inputs[:index], computed, *operator.inputs[index + 1 :]))

    def _grown(self, at: int, operator: Operator, index: int, both: tuple[Constant, Constant], where: str) -> Tensor:
        """Operand ``index``, a constant that grows with open dimensions, for all sizes of them."""
        held = operator.inputs[index]
        if held is None or len(both[0].shape) != len(both[1].shape) or max(each.nbytes for each in both) > GROWING:
            raise OneSize(f"{where} needs a constant of that size")
        held = _widened(held)
        both = (_wide(both[0]), _wide(both[1]))
        made = self._repeated(operator, index, held, both) or self._beginning(at, index, held, both)
        if made is None:
            raise OneSize(f"{where} needs a constant of that size")
        return made

    def _beginning(self, at: int, index: int, held: Tensor, both: tuple[Constant, Constant]) -> Tensor | None:
        """The beginning, along open dimensions, of the constant that it is at the largest sizes, such as positions."""
        operators, mine = self.largest().operators, self.one.operators
        same = [operator.code for operator in operators] == [operator.code for operator in mine]
        found = operators[at].inputs[index] if same else None
        source = None if found is None else _widened(found)
        whole = None if source is None else source.constant
        extents = pairs(both[0].shape, both[1].shape)
        ends = self._extents(extents)
        if source is None or whole is None or -1 in ends or len(ends) != len(whole.shape) or len(ends) > slices.AXES:
            return None
        key = ("beginning", whole.key, tuple(ends))
        if key not in self._read:
            array = whole.array()
            for constant in both:
                if not _same(array[tuple(map(slice, constant.shape))], constant.array()):
                    return None
            axes = tuple(axis for axis, sizes in enumerate(extents) if differs(sizes))
            made = replace(held, constant=None, open_axes=axes)
            bounds = (ints([0] * len(ends)), self._shape(ends, ""), ints([1] * len(ends)))
            options = Options("StridedSliceOptions")
            self.prelude.append(Operator("STRIDED_SLICE", (source, *bounds), (made,), options))
            self._read[key] = made
        return self._read[key]

    def _repeated(self, operator: Operator, index: int, held: Tensor, both: tuple[Constant, Constant]) -> Tensor | None:
        """A constant that repeats itself along open dimensions: one period, and a TILE of it where it is read."""
        one, other = (each.array() for each in both)
        times: list[Extent] = []
        part = one
        for axis, extent in enumerate(self._extents(pairs(one.shape, other.shape))):
            if extent == -1:
                return None
            times.append(Multiple(extent.symbol, 1) if isinstance(extent, Multiple) else 1)
            if isinstance(extent, Multiple):
                part = part.take(range(extent.times), axis)
        for position, whole in enumerate((one, other)):
            counts = [self.symbols[each.symbol][position] if isinstance(each, Multiple) else each for each in times]
            repeated = np.tile(part, counts)
            if not _same(repeated, whole):
                return None
        axes = tuple(axis for axis, each in enumerate(times) if isinstance(each, Multiple))
        period = Constant.of(np.ascontiguousarray(part))
        small = replace(held, shape=period.shape, constant=period)
        is_one = all(part.shape[axis] == 1 and self._is_given(operator, index, axis - part.ndim) for axis in axes)
        if operator.code in _BROADCASTING and is_one:
            return small
        made = replace(held, constant=None, open_axes=axes)
        inputs = (small, self._shape(times, operator.origin))
        self.prelude.append(Operator("TILE", inputs, (made,), None, operator.origin))
        return made

    def _is_given(self, operator: Operator, index: int, axis: int) -> bool:
        """Whether an operand other than ``index`` has an open size along ``axis``, counted from the last."""
        return any(
            tensor is not None and tensor.constant is None and axis + len(tensor.shape) in tensor.open_axes
            for number, tensor in enumerate(operator.inputs)
            if number != index
        )

    # ---- shapes

    def _extents(self, sizes: Sequence[Pair]) -> list[Extent]:
        """Sizes in the two programs as numbers and open dimensions; -1 where they are neither."""
        return [(self._multiple(pair) or -1) if differs(pair) else pair[0] for pair in sizes]

    def _multiple(self, sizes: Pair) -> Multiple | None:
        found = (Multiple(name, sizes[0] // its[0]) for name, its in self.symbols.items() if _is_multiple(sizes, its))
        return min(found, key=lambda each: each.times, default=None)

    def _shape(self, shape: Sequence[Extent], origin: str) -> Tensor:
        """A shape of numbers and of open dimensions."""
        key = tuple(shape)
        if key not in self._read:
            if not any(isinstance(each, Multiple) for each in shape):
                return ints([each for each in shape if isinstance(each, int)])
            parts = [self._size(part, origin) if isinstance(part, Multiple) else ints(part) for part in _runs(shape)]
            options = Options("ConcatenationOptions", {"axis": 0})
            self._read[key] = self._add("CONCATENATION", parts, len(shape), options, origin) if parts[1:] else parts[0]
        return self._read[key]

    def _size(self, extent: Multiple, origin: str) -> Tensor:
        """So many times an open dimension, whose size is read from an input that has it; of one axis."""
        symbol, times = extent
        if times > 1 and extent not in self._read:
            operands = [self._size(Multiple(symbol, 1), origin), ints([times])]
            self._read[extent] = self._add("MUL", operands, 1, Options("MulOptions"), origin)
        elif extent not in self._read:
            tensor, axis = next(self._axes(symbol))
            if tensor not in self._read:
                options = Options("ShapeOptions", {"outType": "INT32"})
                self._read[tensor] = self._add("SHAPE", [tensor], len(tensor.shape), options, origin)
            operands = [self._read[tensor], *(ints([number]) for number in (axis, axis + 1, 1))]
            self._read[extent] = self._add("STRIDED_SLICE", operands, 1, Options("StridedSliceOptions"), origin)
        return self._read[extent]

    def _axes(self, symbol: str) -> Iterator[tuple[Tensor, int]]:
        """Where among the inputs an open dimension stands."""
        for tensor in self.one.inputs.values():
            for axis, sizes in enumerate(pairs(tensor.shape, self.partners[tensor].shape)):
                if sizes == self.symbols[symbol]:
                    yield self.made[tensor], axis
        raise OneSize(f"no input has the dimension {symbol}")

    def _add(
        self,
        code: str,
        inputs: Sequence[Tensor],
        count: int,
        options: Options,
        origin: str,
        where: list[Operator] | None = None,
    ) -> Tensor:
        """Write an operator that makes ``count`` numbers, into the prelude or ``where``."""
        made = Tensor((count,), np.dtype(np.int32))
        (self.prelude if where is None else where).append(Operator(code, tuple(inputs), (made,), options, origin))
        return made


def _longer(one: Program, other: Program) -> str:
    """The first ONNX node that has other numbers of operators in the two, in words."""
    counts, others = (Counter(operator.origin for operator in program.operators) for program in (one, other))
    return next((f"'{name}'" for name in counts if name and counts[name] != others[name]), "the model")


def _runs(shape: Sequence[Extent]) -> Iterator[Multiple | list[int]]:
    """The open dimensions in ``shape`` one by one, and numbers together with the numbers behind them."""
    for extent, run in itertools.groupby(shape, key=lambda each: each if isinstance(each, Multiple) else None):
        if isinstance(extent, Multiple):
            yield from itertools.repeat(extent, sum(1 for _ in run))
        else:
            yield [each for each in run if isinstance(each, int)]


def _equal(one: Constant, other: Constant) -> bool:
    """Whether two constants are the same, by their keys or, small ones of one shape, by what they hold."""
    if one.key == other.key:
        return True
    if one.shape != other.shape or one.dtype != other.dtype or one.nbytes > SMALL:
        return False
    return one.array().tobytes() == other.array().tobytes()


def _wide(constant: Constant) -> Constant:
    """Halves as float32: no kernel repeats them or takes a part of them."""
    return constant.cast("float32") if constant.dtype == np.float16 else constant


def _widened(tensor: Tensor) -> Tensor:
    if tensor.constant is None:
        return tensor
    constant = _wide(tensor.constant)
    return replace(tensor, dtype=constant.dtype, constant=constant)


def _same(one: Array, other: Array) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def _is_multiple(sizes: Pair, of: Pair) -> bool:
    """Whether ``sizes`` are the same number of times ``of``."""
    (times, rest), (same, left) = (divmod(size, unit) for size, unit in zip(sizes, of, strict=True))
    return times == same and rest == left == 0
