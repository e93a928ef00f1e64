"""One ONNX node as its op function sees it, and what is known of each operator before it is called."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

import ml_dtypes
import numpy as np
import onnx_ir as ir

from retarget import graph
from retarget.targets.tflite import fusing
from retarget.targets.tflite.layout import FIRST_AXES, Arranged, Layout, Way, Wish, between, order, rejoins, stored
from retarget.targets.tflite.movement import Movement, Step
from retarget.targets.tflite.program import Activation, Codes, Constant, Options, Quantization, Tensor
from retarget.targets.tflite.values import NARROW, TYPES, Operand, Refusal, Result, Value, broadcast, limit_axes, narrow
from retarget.targets.walk import OneNode

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.tflite.lowering import Lowering


Int8: TypeAlias = Literal["no", "moves", "computes", "reads"]
"""What an op function can do with the integers behind its operands. ``moves``: its results are among its operands'
values, all of one quantization. ``computes``: the kernel rounds its result to what the QuantizeLinear behind it says.
``reads``: its result is no float, and the same for integers of one quantization."""

FUSING = {"ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions", "DIV": "DivOptions"}
"""Operators with options for an activation function."""


@dataclass(frozen=True)
class Op:
    """How an ONNX operator is lowered."""

    lower: Callable[[Call], Result | Sequence[Result]]
    way: Way | Callable[[ir.Node], Way] = Way.FIRST
    operands: tuple[int, ...] | None = None
    """Those that are stored in the node's layout, None for all; others are stored as ONNX has them."""
    dtypes: frozenset[str] = frozenset({"float32"})
    """What the first operand may be, after narrowing."""
    fuses: bool = False
    """Whether the activation function behind the node is written into it (`Call.activation`)."""
    biased: Callable[[Call], bool] | bool = False
    """Whether a row that is added behind the node is, too (`Call.bias`)."""
    int8: Int8 | Callable[[Call], Int8] = "no"
    fixed: Quantization | None = None
    """The only quantization that the int8 kernel gives its result."""
    int16: bool = True
    """Whether what ``int8`` says holds for integers of 16 bits, too."""
    fixed16: Quantization | None = None
    """``fixed`` of those."""

    def wish(self, node: ir.Node) -> Wish:
        return Wish(self.way if isinstance(self.way, Way) else self.way(node), self.operands)


@dataclass(eq=False)
class Call(OneNode[Operand]):
    """One ONNX node as its op function sees it."""

    lowering: Lowering
    node: ir.Node
    op: Op
    operands: tuple[Operand | None, ...]

    # ---- what there is

    @cached_property
    def layout(self) -> Layout:
        """How the values that it works on are stored."""
        return self.lowering.arrangement.get(self.node, Arranged()).operands

    @cached_property
    def results(self) -> Layout:
        """How its results are to be stored: as its operands are, except by nodes that are about the order of axes."""
        return self.lowering.arrangement.get(self.node, Arranged()).results

    def value(self, index: int) -> Value:
        """Operand ``index`` as a computed value, also where it is constant."""
        operand = self.operand(index)
        return self.lowering.computed(operand) if isinstance(operand, Constant) else operand

    def fixed(self, index: int, what: str) -> Constant:
        """Operand ``index``, which must be constant; ``what`` it is, in words."""
        operand = self.operand(index)
        if not isinstance(operand, Constant):
            raise Refusal(f"{what} is computed: only a constant can be written")
        return operand

    def array(self, index: int, what: str) -> Array:
        """The numbers of a small constant operand."""
        return self.fixed(index, what).array()

    def numbers(self, index: int, what: str) -> list[int]:
        """The integers of a constant operand."""
        return [int(number) for number in self.array(index, what).reshape(-1)]

    @cached_property
    def _added(self) -> tuple[ir.Node, Constant] | None:
        """The Add behind the node, and the row that it adds, where the kernel can do that."""
        found = fusing.addition(self.node) if self._is_biased else None
        if found is None:
            return None
        reader, value = found
        row, out = self.lowering.env.get(value), graph.static_shape(self.node.outputs[0], self.lowering.sizes)
        if not isinstance(row, Constant) or not out or row.shape != (*(1,) * (len(row.shape) - 1), out[-1]):
            return None
        return None if len(row.shape) > len(out) else (reader, row.reshaped((out[-1],)))

    @property
    def _is_biased(self) -> bool:
        return self.op.biased if isinstance(self.op.biased, bool) else self.op.biased(self)

    @property
    def bias(self) -> Constant | None:
        """The row that the kernel is to add to its result."""
        return None if self._added is None else self._added[1]

    @cached_property
    def absorbed(self) -> tuple[ir.Node, ...]:
        """The nodes behind this one that are written into it, in their order."""
        added = () if self._added is None else self._added[:1]
        function = fusing.activation(added[0] if added else self.node) if self.op.fuses else None
        return added if function is None else (*added, function)

    @property
    def tail(self) -> ir.Node:
        """The last of the ONNX nodes that are written here."""
        return self.absorbed[-1] if self.absorbed else self.node

    @property
    def activation(self) -> Activation:
        """The function that the kernel is to apply to its result."""
        return (self.absorbed and fusing.activation_of(self.tail)) or "NONE"

    @cached_property
    def quantization(self) -> Quantization | None:
        """What the QuantizeLinear behind the node rounds its first result to; None where there is none."""
        return self.lowering.quantized_by(self.tail.outputs[0])

    @cached_property
    def able(self) -> Int8:
        """What the op function can do with the integers behind this node's operands."""
        return self.op.int8(self) if callable(self.op.int8) else self.op.int8

    @cached_property
    def int8(self) -> bool:
        """Whether this node works on the integers behind its operands (of 8 bits, or 16)."""
        if self.able == "no" or (self.lowering.job.precision == "int16x8" and not self.op.int16):
            return False
        found: set[Quantization] = set()
        for operand in self.operands:
            if isinstance(operand, Value) and operand.dtype == np.float32:
                if operand.quantization is None:
                    return False
                found.add(operand.quantization)
        if not found:
            return False
        if self.able == "computes":
            wanted, fixed = self.quantization, self.op.fixed16 if self.lowering.integers == np.int16 else self.op.fixed
            return wanted is not None and (fixed is None or wanted == fixed)
        return len(found) == 1

    @property
    def is_widened(self) -> bool:
        """Whether it stands between Dequantize- and QuantizeLinear and yet works on floats."""
        values = [each for each in self.operands if isinstance(each, Value) and each.dtype == np.float32]
        rounded = bool(values) and all(each.quantization is not None for each in values)
        return rounded and self.quantization is not None and not self.int8

    def check_types(self) -> None:
        """Raise ``Refusal`` for operands of types that the kernels do not take."""
        for index, operand in enumerate(self.operands):
            if operand is None:
                continue
            name = NARROW.get(operand.dtype.name, operand.dtype.name)
            if name not in TYPES and operand.dtype != ml_dtypes.bfloat16:
                raise Refusal(f"operand {index} is {operand.dtype.name}, which TFLite does not compute with")
            if index == 0 and name not in self.op.dtypes:
                raise Refusal(f"{operand.dtype.name} is not among {', '.join(sorted(self.op.dtypes))}")

    # ---- axes

    def position(self, axis: int, rank: int) -> int:
        """Where ONNX's ``axis`` (which may count from the end) of a value of ``rank`` axes is stored."""
        return order(self.layout, rank).index(axis % rank)

    def placed(self, per_axis: Sequence[int]) -> list[int]:
        """Numbers, one for each axis in ONNX's order, in the order that is stored."""
        return list(stored(per_axis, self.layout))

    def ints(self, numbers: Sequence[int]) -> Tensor:
        """A constant of one axis, int32."""
        return self.lowering.ints(numbers)

    # ---- writing

    def emit(
        self,
        code: str,
        inputs: Sequence[Operand | Array | float | Tensor | None],
        shape: Sequence[int],
        dtype: np.dtype[np.generic] | type[np.generic] | None = None,
        options: Options | None = None,
        *,
        layout: Layout | None = None,
    ) -> Value:
        """Write one operator with one result of ``shape``, in ONNX's order of axes.

        Constants and values of fewer axes than the result are aligned as ONNX broadcasts them. A float result of a node
        that works on integers is rounded as the node's own.
        """
        tensors = [self.tensor(each, len(shape), layout) for each in inputs]
        result = self.result(shape, dtype or self._dtype(inputs), layout)
        (made,) = result.forms.values()
        self.lowering.add(code, tensors, made, options, self.node.name or "")
        return result.counted() if any(isinstance(each, Value) and each.is_counted for each in inputs) else result

    def result(
        self, shape: Sequence[int], dtype: np.dtype[np.generic] | type[np.generic], layout: Layout | None = None
    ) -> Value:
        """A value that this node writes: integers where it works on them, see ``emit``."""
        limit_axes(len(shape))
        quantization = None
        if self.int8 and np.dtype(dtype) == np.float32:
            quantization = self.quantization if self.able == "computes" else self.moved
        # Rows that are flattened with the channels last stay so: what writes them works on each element alone.
        images = (each.image for each in self.operands if isinstance(each, Value) and each.shape == tuple(shape))
        layout = layout or self.results
        image = next(images, None) if layout is Layout.LAST else None
        return self.lowering.new(tuple(shape), np.dtype(dtype), layout, quantization, image)

    @property
    def moved(self) -> Quantization:
        """What the integers mean that this node moves."""
        return next(each.quantization for each in self.operands if isinstance(each, Value) and each.quantization)

    def tensor(
        self, operand: Operand | Array | float | Tensor | None, rank: int | None = None, layout: Layout | None = None
    ) -> Tensor | None:
        """The tensor that an operator of this node reads ``operand`` from, next to others of ``rank`` axes."""
        layout = layout or self.layout
        match operand:
            case None | Tensor():
                return operand
            case Value():
                limit_axes(operand.rank)
                rank = operand.rank if rank is None else rank
                is_last = layout is Layout.LAST and rank >= FIRST_AXES
                if is_last and operand.rank < rank and math.prod(operand.shape) != 1:
                    operand = self.reshape(operand, (1,) * (rank - operand.rank) + operand.shape, layout=Layout.FIRST)
                codes = self.int8 and operand.quantization is not None
                return self.lowering.form(operand, layout, codes=codes)
            case Constant():
                return self._constant(operand, len(operand.shape) if rank is None else rank, layout)
            case _:
                kind = None if isinstance(operand, np.ndarray | np.generic) else "float32"
                return self._constant(Constant.of(operand, kind), np.ndim(operand) if rank is None else rank, layout)

    def _constant(self, constant: Constant, rank: int, layout: Layout) -> Tensor:
        def aligned(of: Constant) -> Constant:
            if layout is Layout.FIRST or of.size == 1 or rank < FIRST_AXES:
                return of
            full = of.reshaped((1,) * (rank - len(of.shape)) + of.shape)
            return full.transposed(order(layout, rank))

        if self.int8 and constant.codes is not None:
            codes = constant.codes
            if codes.quantization.per_channel:
                raise Refusal("a constant operand has a scale for each channel, and the kernel takes one")
            return self.lowering.codes(Codes(aligned(codes.integers), codes.quantization), self.lowering.integers.name)
        return self.lowering.constant(aligned(constant))

    def _dtype(self, inputs: Sequence[object]) -> np.dtype[np.generic]:
        for each in inputs:
            if isinstance(each, Value):
                return each.dtype
        return narrow(next(each for each in inputs if isinstance(each, Constant))).dtype

    # ---- what many op functions need

    def reshape(self, value: Value, shape: Sequence[int], *, layout: Layout | None = None) -> Value:
        """``value`` with another shape, in the node's layouts where they allow it, as ONNX has it otherwise."""
        to = tuple(shape)
        if to == value.shape:
            return value
        read, written = layout or self.layout, layout or self.results
        if value.image is not None or not rejoins(value.shape, read, to, written):
            read = written = Layout.FIRST
        kept = value.quantization if self.int8 else None
        made = self.lowering.new(to, value.dtype, written, kept)
        (tensor,) = made.forms.values()
        source = self.lowering.form(value, read, codes=kept is not None)
        options = Options("ReshapeOptions")
        sizes = (-1, *to[1:]) if value.is_counted else tensor.shape
        self.lowering.add("RESHAPE", (source, self.ints(sizes)), tensor, options, self.node.name or "")
        return made.counted() if value.is_counted else made

    def move(self, value: Value, taken: Sequence[Step]) -> Value:
        """``value`` after Reshapes and Transposes, in the node's layouts: no more than one TRANSPOSE is written."""
        movement = Movement.of(value.shape, taken)
        if movement is None:
            for kind, to in taken:
                value = self.reshape(value, to, layout=Layout.FIRST) if kind == "reshape" else self.transpose(value, to)
            return value
        lowering, kept = self.lowering, value.quantization if self.int8 else None
        shape, image = movement.shape(movement.result), None
        if movement.image is not None and self.results is Layout.LAST:
            *behind, channels = movement.shape(movement.image)[1:]
            image = (channels, *behind)
        source = lowering.form(value, self.layout, codes=kept is not None)
        made = lowering.new(shape, value.dtype, self.results, kept, image)
        ((form, tensor),) = made.forms.items()
        if (route := movement.route(self.layout, self.results)) is not None:
            seen, perm = route
            turned = Tensor(tuple(movement.shape(seen)[axis] for axis in perm), source.dtype, quantization=kept)
            turned = tensor if turned.shape == tensor.shape else turned
            source = self._seen(source, Tensor(movement.shape(seen), source.dtype, quantization=kept))
            options, origin = Options("TransposeOptions"), self.node.name or ""
            source = lowering.add("TRANSPOSE", (source, self.ints(perm)), turned, options, origin)
        made.forms[form] = self._seen(source, tensor)
        return made

    def _seen(self, tensor: Tensor, shape: Tensor) -> Tensor:
        """``tensor`` in another shape, written to that tensor; itself if it is the same one."""
        if tensor.shape == shape.shape:
            return tensor
        options = Options("ReshapeOptions")
        return self.lowering.add("RESHAPE", (tensor, self.ints(shape.shape)), shape, options, self.node.name or "")

    def transpose(self, value: Value, perm: Sequence[int]) -> Value:
        """``value`` with its axes as ``perm`` says. Where the node's layouts are that far apart nothing is written."""
        limit_axes(value.rank)
        shape = tuple(value.shape[axis] for axis in perm)
        steps = between(perm, self.layout, self.results)
        kept = value.quantization if self.int8 else None
        source = self.lowering.form(value, self.layout, codes=kept is not None)
        made = self.lowering.new(shape, value.dtype, self.results, kept)
        ((form, tensor),) = made.forms.items()
        if steps == tuple(range(len(steps))):
            made.forms[form] = source
        else:
            self.lowering.transposed(source, steps, tensor)
        return made

    def unary(self, code: str, operand: Operand, options: Options | None = None) -> Value:
        """An operator of one operand and of its shape."""
        return self.emit(code, [operand], operand.shape, options=options)

    def binary(
        self, code: str, left: Operand | float, right: Operand | float, dtype: type[np.generic] | None = None
    ) -> Value:
        """An operator of two operands that broadcast; without a fused activation function."""
        shape = broadcast(*(() if isinstance(each, float | int) else each.shape for each in (left, right)))
        table = FUSING.get(code)
        return self.emit(code, [left, right], shape, dtype, Options(table) if table else None)

    def activated(self, value: Value) -> Value:
        """``value`` with the activation function of this node, by an operator of its own."""
        return value if self.activation == "NONE" else self.emit(self.activation, [value], value.shape)

    def cast(self, value: Value, dtype: str) -> Value:
        """``value`` as ``dtype``, which is one of TFLite's."""
        if value.dtype == np.dtype(dtype):
            return value
        return self.emit("CAST", [value], value.shape, np.dtype(dtype), Options("CastOptions"))
