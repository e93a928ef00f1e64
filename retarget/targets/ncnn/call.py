"""One ONNX node as its op function sees it: operands as blobs of any grouping, and the layers that it writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from retarget import graph
from retarget.targets.ncnn import rows
from retarget.targets.ncnn.program import MOST, MOST_DIMS, Blob, Kind, Layer, Param, Weight
from retarget.targets.ncnn.values import (
    BEYOND_WHOLE,
    WHOLE,
    Codes,
    Operand,
    Quantized,
    Refusal,
    Result,
    Shape,
    Value,
    plain_dims,
)
from retarget.targets.walk import OneNode

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.ncnn.lowering import Lowering

Lower: TypeAlias = "Callable[[Call], Result | Sequence[Result]]"

FLOATS = frozenset({"float32", "float16", "float64", "bfloat16"})
INTEGERS = frozenset({"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"})
NUMBERS = FLOATS | INTEGERS
ANY = NUMBERS | {"bool"}


def in_float32(lower: Lower, when: Callable[[Call], bool] = lambda _: True) -> Lower:
    """``lower``, whose layers neither compute in float16 nor store it, of such nodes."""

    def lowered(call: Call) -> Result | Sequence[Result]:
        program = call.lowering.program
        last = program.last
        made = lower(call)
        if when(call):
            program.keep_from_half(last)
        return made

    return lowered


@dataclass(frozen=True)
class Op:
    """How an ONNX operator is lowered."""

    lower: Lower
    dtypes: frozenset[str] = FLOATS
    """What the first operand may be. All are floats in blobs."""


@dataclass(eq=False)
class Call(OneNode[Operand]):
    """One ONNX node as its op function sees it."""

    lowering: Lowering
    node: ir.Node
    op: Op
    operands: tuple[Operand | None, ...]

    # ---- operands

    def is_constant(self, index: int) -> bool:
        return isinstance(self.operand(index), np.ndarray | Codes)

    def array(self, index: int, what: str) -> Array:
        """Operand ``index``, which must be constant; ``what`` it is, in words. Dequantized codes are floats."""
        operand = self.operand(index)
        if isinstance(operand, Codes):
            return operand.array()
        if not isinstance(operand, np.ndarray):
            raise Refusal(f"{what} is computed: only a constant can be written")
        return operand

    def numbers(self, index: int, what: str) -> list[int]:
        """The integers of a constant operand."""
        return [int(number) for number in self.array(index, what).reshape(-1)]

    def shape(self, index: int) -> Shape:
        """As ONNX has it."""
        return tuple(self.operand(index).shape)

    def rank(self, index: int) -> int:
        return len(self.operand(index).shape)

    def dtype(self, index: int) -> np.dtype[np.generic]:
        """As ONNX has it."""
        return self.operand(index).dtype

    def is_float(self, index: int) -> bool:
        """Whether operand ``index`` is of floats; numpy itself does not say it of bfloat16."""
        return self.dtype(index).name in FLOATS

    def axis(self, default: int) -> int:
        """The attribute `axis`, counted from the front of operand 0."""
        return self.attributes.get_int("axis", default) % max(self.rank(0), 1)

    def largest(self, index: int) -> float:
        """The largest magnitude that an integer of operand ``index`` can have; 1 of truth values."""
        operand = self.operand(index)
        if isinstance(operand, np.ndarray) and operand.size and operand.dtype.kind in "iu":
            return float(max(abs(int(operand.max())), abs(int(operand.min()))))
        if operand.dtype == np.bool_:
            return 1.0
        return operand.largest if isinstance(operand, Value) else math.inf

    # ---- operands as values and blobs

    def value(self, index: int) -> Value:
        """Operand ``index`` as a computed value, also where it is constant."""
        operand = self.operand(index)
        if isinstance(operand, Value):
            return operand
        if isinstance(operand, Quantized):
            return self.lowering.rounded(operand, self.node.name or "")
        array = self.array(index, "it")
        return Value(
            tuple(array.shape), array.dtype, self.lowering.memory(array, plain_dims(array.shape)),
            largest=self.largest(index),
        )  # fmt: skip

    def whole(self, index: int) -> Value:
        """Operand ``index`` with all of axis 0 in its dims, for what mixes rows."""
        return self.with_rows(self.value(index), 1)

    def spread(self, index: int) -> Value:
        """Operand ``index`` with all of axis 0 as rows, for layers that have no axis for samples."""
        value = self.value(index)
        return self.with_rows(value, value.shape[0])

    def with_rows(self, value: Value, count: int) -> Value:
        """``value`` with so many rows."""
        return rows.with_rows(self, value, count)

    def aligned(self, *indices: int) -> list[Value]:
        """Operands, of which each has as many rows as the others or none beside them: ONNX's broadcasting holds for
        what `Value.row` is then.

        Of a constant that is the same for every row, such as a model's class token, one stands for all.
        """
        values = [self.value(index) for index in indices]
        if any(value.rows > 1 for value in values):
            values = [self._first_row(index, value) for index, value in zip(indices, values, strict=True)]
        return rows.aligned(self, values)

    def _first_row(self, index: int, value: Value) -> Value:
        """Operand ``index`` as one row, if it is constant and that is the same as all others of it."""
        if not self.is_constant(index) or not value.rank or value.shape[0] == 1:
            return value
        array = self.array(index, "it")
        if not np.array_equal(array, np.broadcast_to(array[:1], array.shape)):
            return value
        blob = self.lowering.memory(array[:1], plain_dims(array[:1].shape))
        return Value((1, *value.shape[1:]), value.dtype, blob, largest=value.largest)

    def blob(self, value: Value) -> Blob:
        """The blob of ``value``, in whatever dims it is."""
        return value.blob or self.lowering.fed(value)

    def view(self, value: Value, dims: Sequence[int]) -> Blob:
        """One row of ``value`` in ``dims``, its elements in the same order. No axes: one element."""
        return self.lowering.reshaped(self.blob(value), tuple(dims) or (1,), self.node.name or "")

    # ---- results

    def declared(self) -> Shape | None:
        """The sizes that ONNX says of output 0; None if it does not say all."""
        return graph.static_shape(self.node.outputs[0], self.lowering.sizes)

    def add(
        self,
        layer: str,
        bottoms: Sequence[Blob],
        dims: Sequence[int],
        params: Mapping[int, Param] | None = None,
        weights: Sequence[Weight] = (),
        kind: Kind = "float",
    ) -> Blob:
        """Write a layer of one result, whose dims are ``dims`` (of one row)."""
        return self.add_many(layer, bottoms, [dims], params, weights, kind)[0]

    def add_many(
        self,
        layer: str,
        bottoms: Sequence[Blob],
        dims: Sequence[Sequence[int]],
        params: Mapping[int, Param] | None = None,
        weights: Sequence[Weight] = (),
        kind: Kind = "float",
    ) -> list[Blob]:
        """Write a layer of several results. Bottoms have equal rows, or one."""
        counts = {blob.rows for blob in bottoms if blob.rows > 1}
        assert len(counts) <= 1, counts
        for sizes in dims:
            if 0 in sizes:
                raise Refusal("its result is empty, and ncnn has no empty blobs")
            assert 0 < len(sizes) <= MOST_DIMS, sizes
        for number in (params or {}).values():
            if isinstance(number, float) and not abs(number) <= MOST:
                raise Refusal(f"{number:g} is a param of {layer}, and a param file has finite float32 numbers alone")
        tops = [Blob(tuple(sizes), max(counts, default=1), kind) for sizes in dims]
        self.lowering.program.layers.append(
            Layer(layer, tuple(bottoms), tuple(tops), dict(params or {}), tuple(weights), self.node.name or "")
        )
        return tops

    def made(
        self, blob: Blob, shape: Sequence[int], index: int = 0, largest: float = math.inf, *, picks: bool = False
    ) -> Value:
        """Output ``index`` of the node: ``blob`` as a value of ``shape``, which is ONNX's.

        ``largest``: of integers, the largest magnitude. Raises ``Refusal`` where a float does not hold it, or where the
        integer's own type does not: it would wrap around. ``picks``: what cannot, as each is an integer of that type
        that was there, or lies between two of them.
        """
        dtype = self.result_dtype(index)
        assert math.prod(shape) == blob.size * blob.rows, (tuple(shape), blob.dims, blob.rows)
        if dtype.kind in "iu":
            if not picks and largest > np.iinfo(dtype.name).max:
                raise Refusal(f"{dtype.name} may wrap around in it, and floats do not")
            if largest > WHOLE:
                raise Refusal(f"its integers {BEYOND_WHOLE}")
        return Value(tuple(shape), dtype, blob, blob.rows, largest=1.0 if dtype == np.bool_ else largest)

    def result_dtype(self, index: int = 0) -> np.dtype[np.generic]:
        """The type of output ``index`` as ONNX has it; that of operand 0 where it does not say."""
        found = self.node.outputs[index].dtype
        return self.dtype(0) if found is None else found.numpy()

    def check(self) -> None:
        """Raise ``Refusal`` for operands of types or sizes that ncnn does not take."""
        for index, operand in enumerate(self.operands):
            if operand is None:
                continue
            if index == 0 and operand.dtype.name not in self.op.dtypes:
                raise Refusal(f"{operand.dtype.name} is not among {', '.join(sorted(self.op.dtypes))}")
            if operand.dtype.kind in "OSU":
                raise Refusal(f"operand {index} is text, and ncnn computes with numbers")
            if 0 in operand.shape and not isinstance(operand, np.ndarray):
                raise Refusal(f"operand {index} is empty, and ncnn has no empty blobs")
