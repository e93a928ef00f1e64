"""Walk an ONNX graph and write each node as ncnn layers.

An op function (``ops``) gets a `Call` and thinks in ONNX's shapes, of which it asks for the grouping of axes that a
layer needs; a Reshape is written where a blob has another one. All sizes are concrete here: what stays open is found
by holding two lowerings of one model against each other (``open_sizes``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from retarget import graph
from retarget.protocols import EmitJob
from retarget.targets import legal
from retarget.targets.ncnn.call import ANY, Call, Op
from retarget.targets.ncnn.ops.elementwise import MUL, NUMBER, WITH_NUMBER
from retarget.targets.ncnn.program import (
    MASK,
    NO_HALF,
    Blob,
    Dims,
    Kind,
    Layer,
    Param,
    Program,
    memory_data,
    reshape_to,
    sized,
)
from retarget.targets.ncnn.rows import regrouped
from retarget.targets.ncnn.values import (
    WHOLE,
    Operand,
    Quantized,
    Refusal,
    Result,
    Shape,
    Value,
    border_dims,
    plain_dims,
    reach,
)
from retarget.targets.walk import Walk, folded_arrays

if TYPE_CHECKING:
    from retarget.protocols import Array


class Arrays:
    """The elements of a model's tensors, each read once: onnx_ir copies them whenever it is asked."""

    def __init__(self) -> None:
        # With the tensors themselves: one that is gone could leave its id to another.
        self._read: dict[int, tuple[ir.TensorProtocol, Array]] = {}

    def of(self, tensor: ir.TensorProtocol) -> Array:
        if id(tensor) not in self._read:
            self._read[id(tensor)] = tensor, np.asarray(tensor.numpy())
        return self._read[id(tensor)][1]


@dataclass(eq=False)
class Lowering(Walk[Operand]):
    """One run over a graph. Symbolic dimensions are ``sizes``. ``batch``: which dimension of axis 0 of inputs is rows,
    by its name, or its size where it has none; None: all is in the dims of blobs."""

    model: ir.Model
    job: EmitJob
    sizes: Mapping[str, int]
    ops: Mapping[str, Op]
    batch: str | int | None = None
    program: Program = field(default_factory=Program)
    refusals: list[legal.Refusal] = field(default_factory=list)
    env: dict[ir.Value, Operand | None] = field(default_factory=dict)
    moves: int = 0
    """Reshapes that move rows."""
    _views: dict[tuple[Blob, Dims], Blob] = field(default_factory=dict)
    _memory: dict[tuple[int, Dims], tuple[Array, Blob]] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=Arrays)
    _constants: dict[Blob, Array] = field(default_factory=dict)
    _fed: dict[tuple[str, Kind], Blob] = field(default_factory=dict)
    _rounded: dict[Blob, Blob] = field(default_factory=dict)
    """Codes → the floats that they stand for."""
    turned: dict[Blob, Blob] = field(default_factory=dict)
    """What several products in int8 take, with its axes as they take them."""

    def run(self) -> Program:
        """The program; what could not be taken stands in ``refusals``, and the program is then not whole."""
        for value in self.model.graph.inputs:
            self._input(value)
        self.walk(self.model.graph)
        if not self.refusals:
            for value in self.model.graph.outputs:
                self._output(value)
        return self.program

    # ---- nodes

    def operand_of(self, tensor: ir.TensorProtocol) -> Operand:
        return self.arrays.of(tensor)

    def write(self, node: ir.Node, operands: Sequence[Operand | None]) -> None:
        made: Result | Sequence[Result] = folded_arrays(node, operands)
        if made is None:
            call = Call(self, node, self.ops[legal.operator(node)], tuple(operands))
            call.check()
            last = self.program.last
            made = call.op.lower(call)
            if any(map(_is_beyond_half, [*operands[:1], *(made if isinstance(made, list | tuple) else [made])])):
                self.program.keep_from_half(last)
        for value, result in zip(node.outputs, made if isinstance(made, list | tuple) else [made], strict=False):
            self._bind(value, result)

    def _bind(self, value: ir.Value, result: Result) -> None:
        if result is None:
            assert not value.uses(), f"'{value.name}' is used, and nothing was made for it"
            assert not value.is_graph_output(), f"'{value.name}' is an output, and nothing was made for it"
            return
        declared = graph.static_shape(value, self.sizes)
        if declared is not None and declared != tuple(result.shape):
            raise _contradiction(declared, result.shape)
        if isinstance(result, Value) and result.blob is not None and result.blob.value is None:
            result.blob.value = value.name
        self.env[value] = result

    def forget(self, node: ir.Node) -> None:
        for value in node.outputs:
            shape = graph.static_shape(value, self.sizes)
            if shape is None or 0 in shape or value.dtype is None or graph.dtype_name(value.dtype) not in ANY:
                self.env[value] = None
                continue
            dims = plain_dims(shape)
            made = Blob(dims)
            self.program.layers.append(Layer("Noop", (), (made,), origin=node.name or ""))
            # How large its integers are is not known, and what hangs on that is no fault of the nodes behind it.
            self.env[value] = Value(shape, value.dtype.numpy(), made, largest=1.0)

    # ---- the border

    def _input(self, value: ir.Value) -> None:
        name, own = value.name or "", graph.dtype_name(value.dtype)
        shape = graph.static_shape(value, self.sizes)
        reason = None
        if shape is None:
            reason = "its shape is not known"
        elif own not in ANY:
            reason = f"ncnn has no inputs of {own}"
        elif 0 in shape:
            reason = "it is empty, and ncnn has no empty blobs"
        if reason is not None or shape is None or value.dtype is None:
            self.refusals.append((name, "input", reason or "its type is not known"))
            self.env[value] = None
            return
        rows = shape[0] if self.batch is not None and _first(value) == self.batch else 1
        dtype = value.dtype.numpy()
        self.program.inputs[name] = []
        self.env[value] = Value(shape, dtype, None, rows, source=name, largest=reach(dtype))

    def fed(self, value: Value, kind: Kind = "float") -> Blob:
        """The blob that the user feeds for ``value``, which is a model's input or that in another shape.

        Of the kind ``index`` it has one axis.
        """
        name = value.source
        assert name is not None, "a value has a blob, or it is an input"
        if (name, kind) not in self._fed:
            # In its own dims, of which sizes can be read, whatever is done with it.
            dims = self._own_dims(name)
            blob = Blob(dims, value.rows, kind, value=name)
            layer = Layer("Input", (), (blob,), sized(dims))
            if kind == "float" and _is_beyond_half(value):
                # It rounds nothing, but what copies it for its readers would.
                layer.params[MASK] = NO_HALF
            self.program.layers.insert(len(self._fed), layer)
            self.program.inputs[name].append(blob)
            self._fed[name, kind] = blob
        found = self._fed[name, kind]
        return self.reshaped(found, (found.size,), name) if kind == "index" else found

    def _own_dims(self, name: str) -> Dims:
        (value,) = [value for value in self.model.graph.inputs if value.name == name]
        given = self.env[value]
        assert isinstance(given, Value)
        return border_dims(given.row)

    def _output(self, value: ir.Value) -> None:
        held = self.env[value]
        assert held is not None
        call = Call(self, ir.Node("", "Identity", [value], name=f"output {value.name}"), Op(_nothing), (held,))
        last = self.program.last
        try:
            given = call.value(0)
            _check_declared(value, given.shape, self.sizes)
            blob = call.view(given, border_dims(given.row))
        except Refusal as refusal:
            self.refusals.append((value.name or "", "output", str(refusal)))
            return
        makers = {top: layer for layer in self.program.layers for top in layer.tops}
        if makers[blob].type == "Input" or blob in self.program.outputs.values():
            copy = Blob(blob.dims, blob.rows)
            self.program.layers.append(Layer("Noop", (blob,), (copy,), origin=call.node.name or ""))
            blob = copy
        if _is_beyond_half(given):
            self.program.keep_from_half(last)
        blob.value = value.name
        self.program.outputs[value.name or ""] = blob
        self.program.shapes[value.name or ""] = given.shape

    def feed_unread(self) -> None:
        """Input blobs for the inputs that nothing reads."""
        for value in self.model.graph.inputs:
            given = self.env.get(value)
            if isinstance(given, Value) and not self.program.inputs.get(value.name or ""):
                self.fed(given)

    # ---- blobs

    def reshaped(self, blob: Blob, dims: Dims, origin: str) -> Blob:
        """``blob`` in ``dims``: itself where it has them; a constant is written once more."""
        assert math.prod(dims) == blob.size, (dims, blob.dims)
        if blob.dims == dims:
            return blob
        if blob in self._constants:
            return self.memory(self._constants[blob], dims)
        if (blob, dims) not in self._views:
            made = Blob(dims, blob.rows, blob.kind)
            self.program.layers.append(reshape_to(blob, made, origin))
            self._views[blob, dims] = made
            self._views[made, blob.dims] = blob
        return self._views[blob, dims]

    def moved_rows(self, blob: Blob, dims: Dims, count: int, origin: str) -> Blob:
        """``blob`` with other rows."""
        layer = regrouped(blob, dims, count, origin)
        self.program.layers.append(layer)
        self.moves += 1
        return layer.tops[0]

    def memory(self, array: Array, dims: Dims) -> Blob:
        """The blob of a constant. Raises ``Refusal`` for integers that float32 does not hold."""
        if not array.size:
            raise Refusal("a constant is empty, and ncnn has no empty blobs")
        if array.dtype.kind in "iu" and float(np.abs(array.astype(np.float64)).max()) > WHOLE:
            raise Refusal("a constant holds integers beyond 2^24, up to which float32 holds all")
        key = (id(array), dims)
        if key not in self._memory:
            blob = Blob(dims)
            self.program.layers.append(memory_data(array, blob))
            self._memory[key] = (array, blob)
            self._constants[blob] = array
        return self._memory[key][1]

    def is_memory(self, blob: Blob) -> bool:
        """Whether ``blob`` is a constant, which can be written in any dims."""
        return blob in self._constants

    def rounded(self, quantized: Quantized, origin: str) -> Value:
        """What ``quantized`` stands for, for layers that compute in floats."""
        codes = quantized.codes
        assert codes.blob is not None
        if codes.blob not in self._rounded:
            made = Blob(codes.blob.dims, codes.blob.rows)
            params: dict[int, Param] = {0: MUL, WITH_NUMBER: 1, NUMBER: quantized.scale}
            self.program.layers.append(Layer("BinaryOp", (codes.blob,), (made,), params, origin=origin))
            self._rounded[codes.blob] = made
        return Value(codes.shape, quantized.dtype, self._rounded[codes.blob], codes.rows)


def batches(model: ir.Model) -> list[str | int | None]:
    """What may be the rows: what axis 0 of the inputs is called, the most frequent first, and in the end None."""
    firsts = Counter(first for value in model.graph.inputs if (first := _first(value)) not in (None, 1))
    return [*(first for first, _ in firsts.most_common()), None]


def _first(value: ir.Value) -> str | int | None:
    """The name of axis 0 of an input, or its size where it has none."""
    if value.shape is None or not len(value.shape):
        return None
    first = value.shape[0]
    return first if isinstance(first, int) else str(first.value)


def lowered(
    model: ir.Model,
    job: EmitJob,
    sizes: Mapping[str, int],
    ops: Mapping[str, Op],
    arrays: Arrays | None = None,
) -> Lowering:
    """The model at ``sizes`` with those rows that leave the fewest nodes out, and then move the least.

    ``arrays``: shared by those who lower the same model.
    """
    arrays = Arrays() if arrays is None else arrays
    found: list[Lowering] = []
    for batch in batches(model):
        lowering = Lowering(model, job, sizes, ops, batch, arrays=arrays)
        lowering.run()
        lowering.feed_unread()
        found.append(lowering)
        if not lowering.refusals and not lowering.moves:
            break
    return min(found, key=lambda each: (len(each.refusals), each.moves))


def _check_declared(value: ir.Value, shape: Shape, sizes: Mapping[str, int]) -> None:
    """Raise ``Refusal`` where a size that the model says of ``value`` is not that of ``shape``."""
    if value.shape is None:
        return
    says = [dim if isinstance(dim, int) else sizes.get(str(dim.value)) for dim in value.shape]
    if len(says) != len(shape) or any(known not in (None, own) for known, own in zip(says, shape, strict=True)):
        raise _contradiction(["?" if size is None else size for size in says], shape)


def _contradiction(says: Sequence[int | str], shape: Sequence[int]) -> Refusal:
    return Refusal(f"its result is {list(shape)}, and the model says that it is [{', '.join(map(str, says))}]")


def _is_beyond_half(operand: object) -> bool:
    """Whether it is computed integers of a type of which float16 does not hold each. Their bound is not asked: it may
    hang on a size that is open, and the layers may not."""
    return isinstance(operand, Value) and operand.dtype.kind in "iu" and operand.dtype.itemsize > 1


def _nothing(call: Call) -> Result:
    raise AssertionError(f"{call.node.op_type} is not lowered")
