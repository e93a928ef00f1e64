"""What a written package holds and how much it computes in which type, read back from its files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from retarget.facts import Precision
from retarget.targets import work
from retarget.targets.coreml.interpreter.declared import TensorType, ValueType
from retarget.targets.coreml.interpreter.program import Block, Constant, Function, Operation, read

_DATA = ("quantized_data", "data", "nonzero_data")
"""Which operand of a ``constexpr_…`` holds the integers."""


@dataclass(frozen=True)
class Held:
    """A value of the package; sizes that are open are -1."""

    dtype: str
    shape: tuple[int, ...]
    operation: str = ""
    """What computes it; empty for an input."""


@dataclass(frozen=True)
class Executed:
    """The one function of a package."""

    function: Function

    @cached_property
    def values(self) -> Mapping[str, Held]:
        """Inputs and what is computed, by name, in the order in which they are."""
        found = {name: _held(kind) for name, kind in self.function.inputs.items()}
        for operation in self._operations:
            if operation.type != "const":
                found |= {name: _held(kind, operation.type) for name, kind in operation.outputs.items()}
        return {name: held for name, held in found.items() if held is not None}

    def precision(self, precision: str) -> Precision:
        """Types as they are in the file; ``precision`` says what counts as low."""
        floats = Counter(
            held.dtype
            for operation in self._working
            for held in map(_held, operation.outputs.values())
            if held is not None and held.dtype.startswith("float")
        )
        named = (*self.function.inputs, *self.function.block.outputs)
        # Of a classifier two are a label and a dictionary.
        io = [held.dtype for held in map(self.values.get, named) if held is not None and held.dtype != "string"]
        return Precision(
            weights=work.most(self.stored(2)),
            activations=work.most(self.computed if self.computed.total() else floats),
            io=work.joined(io),
            low_precision_share=work.low_precision_share(self.computed, precision),
        )

    @cached_property
    def computed(self) -> Counter[str]:
        """Multiply-accumulates by the type that they are in, sizes that are open taken as 1."""
        counts: Counter[str] = Counter()
        for operation in self._working:
            counts[self._computes(operation)] += _macs(operation, self._shapes)
        return counts

    @cached_property
    def operators(self) -> Counter[str]:
        """Those that compute, by name."""
        return Counter(operation.type for operation in self._working)

    def stored(self, axes: int) -> Counter[str]:
        """Elements of the constants of at least ``axes`` axes, by the type that they have in the file."""
        counts: Counter[str] = Counter()
        for operation in self._operations:
            for dtype, count in _stored(operation, axes):
                counts[dtype] += count
        return counts

    @property
    def _working(self) -> Iterator[Operation]:
        """The operations that are no constants."""
        return (each for each in self._operations if each.type != "const" and not each.type.startswith("constexpr_"))

    @cached_property
    def _operations(self) -> tuple[Operation, ...]:
        return tuple(_all(self.function.block))

    @cached_property
    def _made(self) -> Mapping[str, Operation]:
        """The operation behind each name."""
        return {name: operation for operation in self._operations for name in operation.outputs}

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Sizes by name, an open one as 1: it is so in all that are compared."""
        found = {name: _held(kind) for operation in self._operations for name, kind in operation.outputs.items()}
        held = {**found, **{name: _held(kind) for name, kind in self.function.inputs.items()}}
        return {name: tuple(max(size, 1) for size in each.shape) for name, each in held.items() if each is not None}

    def _computes(self, operation: Operation) -> str:
        """The type that an operation computes in: int8 where both of its operands are dequantized."""
        names = [name for name in operation.reads if name in self._made]
        behind = [self._made[name].type for name in names]
        rounded = sum(kind == "dequantize" for kind in behind)
        compressed = sum(kind.startswith("constexpr_") for kind in behind)
        if rounded and rounded + compressed >= 2:
            return "int8"
        held = [_held(kind) for kind in operation.outputs.values()]
        return next((each.dtype for each in held if each is not None), "none")


def executed(path: Path) -> Executed:
    """What the package ``path`` holds. Raises ``ToolchainFailure`` for one that is damaged."""
    (function,) = read(path).functions.values()
    return Executed(function)


def _stored(operation: Operation, axes: int) -> Iterator[tuple[str, int]]:
    """The type in the file and the count of the elements of a constant of at least ``axes`` axes."""
    if operation.type != "const" and not operation.type.startswith("constexpr_"):
        return
    for kind in operation.outputs.values():
        held = _held(kind)
        if held is None or len(held.shape) < axes:
            continue
        if operation.type == "const":
            yield held.dtype, math.prod(held.shape)
        elif table := _constant(operation, ("lut",)):
            yield f"palette{int(math.log2(max(table.shape or (1,))))}", math.prod(held.shape)
        elif data := _constant(operation, _DATA):
            yield data.dtype, math.prod(held.shape)


def _all(block: Block) -> Iterator[Operation]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _all(inner)


def _constant(operation: Operation, parameters: Sequence[str]) -> Held | None:
    """The constant that the first of ``parameters`` is given."""
    for parameter in parameters:
        for given in operation.inputs.get(parameter, ()):
            return _held(given.type) if isinstance(given, Constant) else None
    return None


def _held(kind: ValueType, operation: str = "") -> Held | None:
    if not isinstance(kind, TensorType) or kind.shape is None:
        return None
    return Held(kind.element, tuple(-1 if size is None else size for size in kind.shape), operation)


def _macs(operation: Operation, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Multiply-accumulates of an operation."""

    def shape(parameter: str) -> tuple[int, ...]:
        given = operation.inputs.get(parameter, ())
        return shapes.get(given[0], ()) if given and isinstance(given[0], str) else ()

    out = shapes.get(next(iter(operation.outputs), ""), ())
    match operation.type:
        case "conv":
            return work.convolution(shape("weight"), out)
        case "conv_transpose":
            return work.transposed_convolution(shape("weight"), shape("x"))
        case "linear":
            return math.prod(out) * shape("weight")[-1]
        case "matmul":
            return work.contraction(shape("x"), out)
        case "lstm" | "gru" | "rnn":
            names = ("weight_ih", "weight_hh", "weight_ih_back", "weight_hh_back")
            return work.recurrence(shape("x"), filter(None, (shape(name) for name in names)))
        case "scaled_dot_product_attention":
            return work.attention(shape("query"), shape("key"), out)
        case _:
            return 0
