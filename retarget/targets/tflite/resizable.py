"""Leave symbolic dimensions open in the file, as far as its operators allow.

A lowered program has all shapes as numbers. It is lowered at two sizes, and what differs is what depends on them: the
shapes of tensors, which may stay open, and constants that speak of shapes. Of those

- one number of a RESHAPE becomes -1;
- bounds of slices are counted from the end. A SLICE becomes a STRIDED_SLICE: XNNPACK leaves a SLICE to other kernels
  where a size is -1;
- where a number is the size of a dimension itself, an operator may read it from the shape of an input: SHAPE and what
  follows it is computed when the kernels are prepared, so nothing becomes dynamic;
- a constant that repeats itself is one period of it and a TILE, and one that begins as the largest does, such as
  positions, is cut from that;
- with anything else the dimension has one size in the file.

What comes of it is loaded by the runtime and resized before it is believed.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from retarget.errors import RetargetError
from retarget.litert import Loaded
from retarget.spec import DimRange
from retarget.targets.tflite.program import Constant, Operator, Options, Program, Shape, Tensor
from retarget.targets.tflite.write import write

if TYPE_CHECKING:
    from retarget.protocols import Array

Sizes: TypeAlias = Mapping[str, int]

LARGE = 1 << 30
"""Programs with more bytes of activations are not tried: the runtime would allocate them all."""

_READING = {"BROADCAST_TO": 1, "FILL": 0, "TILE": 1, "RESHAPE": 1}
"""Operators that take a computed shape, and at which input."""

_SLICED_AXES = 5
"""The most axes of a STRIDED_SLICE."""

_BROADCASTING = frozenset(
    {"ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SELECT_V2", "EQUAL", "LESS", "GREATER", "SQUARED_DIFFERENCE"}
)
"""Operators that repeat an operand of one element along an axis by themselves."""


@dataclass(frozen=True)
class Opened:
    """A program, and the dimensions that have one size in it: that of ``opt``. Each with the reason, for the user."""

    program: Program
    fixed: Mapping[str, str]


class _OneSize(Exception):
    """Why a dimension cannot stay open."""


def opened(lower: Callable[[Sizes], Program], shapes: Mapping[str, DimRange], batch: str | None) -> Opened:
    """The program with as many of the dimensions ``shapes`` open as can be: all, or the batch and what else goes.

    ``lower`` makes the program at given sizes of all of them.
    """
    trial = _Trial(lower, shapes, batch)
    fixed = {symbol: "no other size is asked for" for symbol, extent in shapes.items() if extent.min == extent.max}
    free = sorted((symbol for symbol in shapes if symbol not in fixed), key=lambda symbol: symbol != batch)
    try:
        return Opened(trial.program(free), fixed)
    except _OneSize as reason:
        if len(free) == 1:
            return Opened(lower(trial.opt), {**fixed, free[0]: str(reason)})
    held: list[str] = []
    program = None
    for symbol in free:
        try:
            program = trial.program([*held, symbol])
            held.append(symbol)
        except _OneSize as reason:
            fixed[symbol] = str(reason)
    return Opened(program or lower(trial.opt), fixed)


@dataclass
class _Trial:
    """Opens sets of dimensions of one model."""

    lower: Callable[[Sizes], Program]
    shapes: Mapping[str, DimRange]
    batch: str | None
    _lowered: dict[tuple[int, ...], Program] = field(default_factory=dict)

    @property
    def opt(self) -> Sizes:
        return {symbol: extent.opt for symbol, extent in self.shapes.items()}

    def at(self, sizes: Sizes) -> Program:
        """The program at ``sizes``. Raises ``_OneSize`` where there is none."""
        key = tuple(sizes.values())
        if key not in self._lowered:
            words = ", ".join(f"{symbol}={size}" for symbol, size in sizes.items())
            try:
                self._lowered[key] = self.lower(sizes)
            except RetargetError as error:
                raise _OneSize(f"the model cannot be written with {words}: {error.message}") from error
            if not self._lowered[key].outputs:
                raise _OneSize(f"the model cannot be written with {words}")
        return self._lowered[key]

    def program(self, symbols: Sequence[str]) -> Program:
        """The program with ``symbols`` open, tried by the runtime. Raises ``_OneSize``."""
        if not symbols:
            return self.at(self.opt)
        one, other = self._two(symbols)
        largest = {**self.opt, **{symbol: self.shapes[symbol].max for symbol in symbols}}
        named = {symbol: (one[symbol], other[symbol]) for symbol in symbols}
        program = _Common(self.at(one), self.at(other), lambda: self.at(largest), named).program()
        # The shapes of the last one stay in the file.
        self._try(program, [other, largest, self.opt])
        return program

    def _two(self, symbols: Sequence[str]) -> tuple[Sizes, Sizes]:
        """Two sizes of each of ``symbols``, of no two the same ones, so that each is told by its sizes."""
        one, other = dict(self.opt), dict(self.opt)
        taken: set[tuple[int, int]] = set()
        for symbol in symbols:
            extent = self.shapes[symbol]
            likely = [extent.opt, extent.max, extent.min]
            if symbol == self.batch:
                # Every batch is as good as any, and a small one costs nothing.
                likely = [extent.opt, *range(extent.min, min(extent.max, extent.min + 8) + 1)]
            # What has one element is written otherwise: there is nothing to transpose or to repeat.
            sizes = sorted(dict.fromkeys(likely), key=lambda size: size == 1)
            pairs = list(itertools.permutations(sizes, 2))
            pair = next((pair for pair in pairs if pair not in taken), pairs[0])
            taken.add(pair)
            one[symbol], other[symbol] = pair
        return one, other

    def _try(self, program: Program, points: Sequence[Sizes]) -> None:
        """Resize ``program`` to each of ``points``. Raises ``_OneSize`` where the runtime has other shapes than we."""
        if any(operator.custom for operator in program.operators):
            raise _OneSize("the custom operators are not here to try other sizes")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "tried.tflite")
            write(program, path, description="", hollow=True)
            loaded = Loaded(str(path), "builtin", 1)
            for sizes in points:
                wanted = self.at(sizes)
                if sizes == self.opt or _activations(wanted) <= LARGE:
                    _resize(loaded, program, wanted)
            loaded.close()


def _resize(loaded: Loaded, program: Program, wanted: Program) -> None:
    """Give ``program`` the shapes that it has where its inputs have those of ``wanted``; outputs must then be equal."""
    index = {tensor: number for number, tensor in enumerate(program.tensors)}
    try:
        shapes = loaded.shapes({index[tensor]: wanted.inputs[name].shape for name, tensor in program.inputs.items()})
    except RetargetError as error:
        raise _OneSize(f"the runtime does not take another size: {error.message}") from error
    for name, tensor in program.outputs.items():
        made, right = shapes[index[tensor]], wanted.outputs[name].shape
        if made != right:
            raise _OneSize(f"the runtime makes {list(made)} of '{name}', which is {list(right)}")
    for tensor, number in index.items():
        if tensor.open_axes:
            tensor.shape = shapes[number]


def _activations(program: Program) -> int:
    computed = (tensor for tensor in program.tensors if tensor.constant is None)
    return sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in computed)


@dataclass
class _Common:
    """What two programs of one model have in common, with the rest left open. Raises ``_OneSize`` if that cannot be.

    ``largest``: makes the program at the largest sizes. ``symbols``: each open dimension to its sizes in the one and in
    the other.
    """

    one: Program
    other: Program
    largest: Callable[[], Program]
    symbols: Mapping[str, tuple[int, int]]
    partners: dict[Tensor, Tensor] = field(default_factory=dict)
    made: dict[Tensor, Tensor] = field(default_factory=dict)
    """Tensors of the one program to those of the common one."""
    prelude: list[Operator] = field(default_factory=list)
    """What reads sizes from the inputs."""
    _read: dict[object, Tensor] = field(default_factory=dict)
    _constants: dict[object, Tensor] = field(default_factory=dict)

    def program(self) -> Program:
        for name, tensor in self.one.inputs.items():
            self._pair(tensor, self.other.inputs[name], f"input '{name}'")
        if len(self.one.operators) != len(self.other.operators):
            raise _OneSize("with another size it is written with other operators")
        pairs = zip(self.one.operators, self.other.operators, strict=True)
        operators = [
            operator for index, both in enumerate(pairs) if (operator := self._operator(index, *both)) is not None
        ]
        for name, tensor in self.one.outputs.items():
            if self.partners.get(tensor) is not self.other.outputs[name]:
                raise _OneSize(f"with another size '{name}' is made otherwise")
        inputs, outputs = (
            {name: self.made[tensor] for name, tensor in border.items()}
            for border in (self.one.inputs, self.one.outputs)
        )
        return Program([*self.prelude, *operators], inputs, outputs)

    def _pair(self, one: Tensor, other: Tensor, where: str) -> None:
        if len(one.shape) != len(other.shape) or one.dtype != other.dtype or one.quantization != other.quantization:
            raise _OneSize(f"with another size {where} has another type or rank")
        pairs = _pairs(one.shape, other.shape)
        axes = tuple(axis for axis, sizes in enumerate(pairs) if _differs(sizes) or axis in one.open_axes)
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
            raise _OneSize(f"with another size there is another operator in place of {where}")
        if one.options != other.options or one.custom_options != other.custom_options:
            raise _OneSize(f"{where} has it among its options")
        differing: dict[int, tuple[Constant, Constant]] = {}
        inputs: list[Tensor | None] = []
        for index, (mine, its) in enumerate(zip(one.inputs, other.inputs, strict=True)):
            if mine is None or its is None:
                if mine is not its:
                    raise _OneSize(f"with another size {where} has other operands")
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
                        raise _OneSize(f"{where} keeps a state of one size")
                if self.partners.get(mine) is not its:
                    raise _OneSize(f"with another size {where} has other operands")
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
            return self._picked(operator, other, where)
        for index, both in differing.items():
            if both[0].dtype != np.int32 or len(both[0].shape) != 1:
                raise _OneSize(f"{where} needs a constant of that size")
            if operator.code not in ("SLICE", "STRIDED_SLICE") and _READING.get(operator.code) != index:
                raise _OneSize(f"{where} holds it as a number")
        if operator.code in ("SLICE", "STRIDED_SLICE"):
            return self._sliced(operator, other, where)
        ((index, both),) = differing.items()
        mine, its = (_numbers(each) for each in both)
        shape: list[int | str] = []
        for number, another in _pairs(mine, its):
            named = next((symbol for symbol, sizes in self.symbols.items() if sizes == (number, another)), None)
            shape.append(number if number == another else -1 if named is None else named)
        if operator.code == "RESHAPE" and sum(not isinstance(each, int) or each == -1 for each in shape) == 1:
            shape = [-1 if isinstance(each, str) else each for each in shape]
        elif shape.count(-1) > (operator.code == "RESHAPE"):
            raise _OneSize(f"{where} holds it as a number")
        computed = self._shape(shape, operator.origin)
        return replace(operator, inputs=(*operator.inputs[:index], computed, *operator.inputs[index + 1 :]))

    def _grown(self, at: int, operator: Operator, index: int, both: tuple[Constant, Constant], where: str) -> Tensor:
        """Operand ``index``, a constant that grows with open dimensions, for all sizes of them."""
        held = operator.inputs[index]
        if held is None or len(both[0].shape) != len(both[1].shape) or max(each.nbytes for each in both) > GROWING:
            raise _OneSize(f"{where} needs a constant of that size")
        held = _widened(held)
        both = (_wide(both[0]), _wide(both[1]))
        made = self._repeated(operator, index, held, both) or self._beginning(at, index, held, both)
        if made is None:
            raise _OneSize(f"{where} needs a constant of that size")
        return made

    def _beginning(self, at: int, index: int, held: Tensor, both: tuple[Constant, Constant]) -> Tensor | None:
        """The beginning, along open dimensions, of the constant that it is at the largest sizes, such as positions."""
        operators, mine = self.largest().operators, self.one.operators
        same = [operator.code for operator in operators] == [operator.code for operator in mine]
        found = operators[at].inputs[index] if same else None
        source = None if found is None else _widened(found)
        whole = None if source is None else source.constant
        pairs = _pairs(both[0].shape, both[1].shape)
        named = {sizes: symbol for symbol, sizes in self.symbols.items()}
        ends: list[int | str] = [named.get(sizes, -1) if _differs(sizes) else sizes[0] for sizes in pairs]
        if source is None or whole is None or -1 in ends or len(ends) != len(whole.shape) or len(ends) > _SLICED_AXES:
            return None
        key = ("beginning", whole.key, tuple(ends))
        if key not in self._read:
            array = whole.array()
            for constant in both:
                if not _same(array[tuple(map(slice, constant.shape))], constant.array()):
                    return None
            axes = tuple(axis for axis, sizes in enumerate(pairs) if _differs(sizes))
            made = replace(held, constant=None, open_axes=axes)
            bounds = (self._ints([0] * len(ends)), self._shape(ends, ""), self._ints([1] * len(ends)))
            options = Options("StridedSliceOptions")
            self.prelude.append(Operator("STRIDED_SLICE", (source, *bounds), (made,), options))
            self._read[key] = made
        return self._read[key]

    def _repeated(self, operator: Operator, index: int, held: Tensor, both: tuple[Constant, Constant]) -> Tensor | None:
        """A constant that repeats itself along open dimensions: one period, and a TILE of it where it is read."""
        one, other = (each.array() for each in both)
        times: list[int | str] = []
        part = one
        for axis, sizes in enumerate(_pairs(one.shape, other.shape)):
            symbol = next((symbol for symbol, its in self.symbols.items() if _is_multiple(sizes, its)), None)
            if _differs(sizes) and symbol is None:
                return None
            times.append(symbol if symbol is not None and _differs(sizes) else 1)
            if symbol is not None and _differs(sizes):
                part = part.take(range(sizes[0] // self.symbols[symbol][0]), axis)
        for position, whole in enumerate((one, other)):
            counts = [self.symbols[each][position] if isinstance(each, str) else each for each in times]
            repeated = np.tile(part, counts)
            if not _same(repeated, whole):
                return None
        axes = tuple(axis for axis, each in enumerate(times) if isinstance(each, str))
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

    def _sliced(self, operator: Operator, other: Operator, where: str) -> Operator:
        """A SLICE or STRIDED_SLICE with its bounds counted from the start or, where those differ, from the end."""
        data, another = operator.inputs[0], other.inputs[0]
        assert data is not None
        assert another is not None
        # ``operator`` has the common program's tensors, whose shapes are still those of the one.
        dims = _pairs(data.shape, another.shape)
        begins, ends, strides = (self._bounds(operator, other, index, where) for index in (1, 2, 3))
        if operator.code == "SLICE":
            # The third operand is of sizes.
            ends = [_added(begin, extent) for begin, extent in zip(begins, ends, strict=True)]
            options, mask = Options("StridedSliceOptions"), 0
        else:
            options, mask = operator.options or Options("StridedSliceOptions"), _option(operator, "endMask")
            if len(begins) != len(dims) or _option(operator, "ellipsisMask") or _option(operator, "newAxisMask"):
                raise _OneSize(f"{where} holds it as a number")
        starts: list[int] = []
        stops: list[int] = []
        for axis, (begin, end, dim) in enumerate(zip(begins, ends, dims, strict=True)):
            step = strides[axis][0] if strides else 1
            starts.append(_from_end(begin, dim, where))
            if mask >> axis & 1 or (_differs(end) and end == dim and step > 0):
                mask |= 1 << axis
                stops.append(0)
            else:
                stops.append(_from_end(end, dim, where))
        steps = [step for step, _ in strides] or [1] * len(begins)
        return replace(
            operator,
            code="STRIDED_SLICE",
            inputs=(data, self._ints(starts), self._ints(stops), self._ints(steps)),
            options=Options("StridedSliceOptions", {**options.fields, "endMask": mask}),
        )

    def _picked(self, operator: Operator, other: Operator, where: str) -> Operator:
        """A GATHER of one element, counted from the end, which only a slice can do."""
        data, another = operator.inputs[0], other.inputs[0]
        indices = self._bounds(operator, other, 1, where)
        assert data is not None
        assert another is not None
        assert operator.inputs[1] is not None
        rank = len(data.shape)
        axis = _option(operator, "axis") % rank
        if len(indices) != 1 or _option(operator, "batchDims") or rank > _SLICED_AXES:
            raise _OneSize(f"{where} holds it as a number")
        at = _from_end(indices[0], (data.shape[axis], another.shape[axis]), where)
        bounds = [[number if each == axis else 0 for each in range(rank)] for number in (at, at + 1)]
        mask = (1 << rank) - 1
        fields = {
            "beginMask": mask & ~(1 << axis),
            "endMask": mask if at == -1 else mask & ~(1 << axis),
            "shrinkAxisMask": 0 if operator.inputs[1].shape else 1 << axis,
        }
        return replace(
            operator,
            code="STRIDED_SLICE",
            inputs=(data, *map(self._ints, (*bounds, [1] * rank))),
            options=Options("StridedSliceOptions", fields),
        )

    def _bounds(self, operator: Operator, other: Operator, index: int, where: str) -> list[tuple[int, int]]:
        """The numbers of operand ``index`` in the one and in the other; none where it has no such operand."""
        if index >= len(operator.inputs):
            return []
        mine, its = operator.inputs[index], other.inputs[index]
        if mine is None or its is None or mine.constant is None or its.constant is None:
            raise _OneSize(f"{where} holds it as a number")
        return _pairs(_numbers(mine.constant), _numbers(its.constant))

    # ---- shapes

    def _ints(self, numbers: Sequence[int]) -> Tensor:
        constant = Constant.of(list(numbers), "int32")
        return self._constants.setdefault(constant.key, Tensor(constant.shape, constant.dtype, constant=constant))

    def _shape(self, shape: Sequence[int | str], origin: str) -> Tensor:
        """A shape of numbers and of open dimensions."""
        key = tuple(shape)
        if key not in self._read:
            if all(isinstance(each, int) for each in shape):
                return self._ints([int(each) for each in shape])
            parts = [
                self._size(name, origin) if isinstance(name, str) else self._ints([int(each) for each in run])
                for name, run in _runs(shape)
            ]
            options = Options("ConcatenationOptions", {"axis": 0})
            self._read[key] = self._add("CONCATENATION", parts, len(shape), options, origin) if parts[1:] else parts[0]
        return self._read[key]

    def _size(self, symbol: str, origin: str) -> Tensor:
        """The size of an open dimension, read from an input that has it; of one axis."""
        if symbol not in self._read:
            tensor, axis = next(self._axes(symbol))
            if tensor not in self._read:
                options = Options("ShapeOptions", {"outType": "INT32"})
                self._read[tensor] = self._add("SHAPE", [tensor], len(tensor.shape), options, origin)
            operands = [self._read[tensor], *(self._ints([number]) for number in (axis, axis + 1, 1))]
            self._read[symbol] = self._add("STRIDED_SLICE", operands, 1, Options("StridedSliceOptions"), origin)
        return self._read[symbol]

    def _axes(self, symbol: str) -> Iterator[tuple[Tensor, int]]:
        """Where among the inputs an open dimension stands."""
        for tensor in self.one.inputs.values():
            for axis, sizes in enumerate(_pairs(tensor.shape, self.partners[tensor].shape)):
                if sizes == self.symbols[symbol]:
                    yield self.made[tensor], axis
        raise _OneSize(f"no input has the dimension {symbol}")

    def _add(self, code: str, inputs: Sequence[Tensor], count: int, options: Options, origin: str) -> Tensor:
        made = Tensor((count,), np.dtype(np.int32))
        self.prelude.append(Operator(code, tuple(inputs), (made,), options, origin))
        return made


def _runs(shape: Sequence[int | str]) -> Iterator[tuple[int | str, list[int | str]]]:
    """The names in ``shape`` one by one, and numbers together with the numbers behind them."""
    for name, run in itertools.groupby(shape, key=lambda each: each if isinstance(each, str) else 0):
        if isinstance(name, str):
            for each in run:
                yield name, [each]
        else:
            yield 0, list(run)


def _pairs(one: Sequence[int], other: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(one, other, strict=True))


def _added(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]


def _is_multiple(sizes: tuple[int, int], of: tuple[int, int]) -> bool:
    """Whether ``sizes`` are the same number of times ``of``."""
    (times, rest), (same, left) = (divmod(size, unit) for size, unit in zip(sizes, of, strict=True))
    return times == same and rest == left == 0


def _differs(pair: tuple[int, int]) -> bool:
    return pair[0] != pair[1]


def _option(operator: Operator, name: str) -> int:
    value = operator.options.fields.get(name, 0) if operator.options else 0
    assert isinstance(value, int)
    return value


def _from_end(bound: tuple[int, int], dim: tuple[int, int], where: str) -> int:
    """A bound that is the same for both sizes, if need be counted from the end, as negative ones are."""
    if not _differs(bound):
        return bound[0]
    behind = bound[0] - dim[0]
    if behind != bound[1] - dim[1] or behind >= 0:
        raise _OneSize(f"{where} holds it as a number")
    return behind


def _equal(one: Constant, other: Constant) -> bool:
    """Whether two constants are the same, by their keys or, small ones of one shape, by what they hold."""
    if one.key == other.key:
        return True
    if one.shape != other.shape or one.dtype != other.dtype or one.nbytes > SMALL:
        return False
    return one.array().tobytes() == other.array().tobytes()


GROWING = 1 << 26
"""Constants of at most so many bytes may grow with the dimensions."""

SMALL = 1 << 16
"""Constants of at most so many bytes are held against each other where their keys differ."""


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


def _numbers(constant: Constant) -> Shape:
    return tuple(int(number) for number in constant.array().reshape(-1))
