"""Walk an ONNX graph and write each node with coremltools' builder.

An op function (``ops``) gets a `Call` and gives back MIL values. Dimensions that are open stay open: MIL's own shape
inference carries them, and a function that must know one raises `Open` with its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from retarget import graph
from retarget.protocols import EmitJob
from retarget.targets import legal
from retarget.targets.coreml.border import FROM_CHANNELS_FIRST, TO_CHANNELS_FIRST, is_turned, options
from retarget.targets.coreml.call import Call, Op
from retarget.targets.coreml.dims import said, told
from retarget.targets.coreml.library import Function, Program, Var, ct, mb, new_symbol, types
from retarget.targets.coreml.values import (
    MOST_AXES,
    NARROW,
    TYPES,
    WIDE,
    Joined,
    Open,
    Operand,
    Refusal,
    Result,
    dtype_of,
    is_known,
)
from retarget.targets.walk import Walk, folded_arrays

_MIL = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32, "bool": types.int32}
"""Types of inputs; a bool comes as an integer."""

_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)

_FLOATS = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16"}

_NOT_A_NAME = re.compile(r"\W", re.ASCII)

_RESERVED = frozenset({
    "any", "bf16", "bool", "dict", "false", "fp16", "fp32", "fp64", "func", "int16", "int32", "int64", "int8", "list",
    "program", "state", "string", "tensor", "true", "tuple", "uint16", "uint32", "uint64", "uint8",
})  # fmt: skip
"""Words of the language: coremltools gives values of these names others."""


@dataclass(eq=False)
class Lowering(Walk[Operand]):
    """One run over a graph. ``sizes``: the symbolic dimensions that are fixed; the others are open."""

    model: ir.Model
    job: EmitJob
    target: str
    sizes: Mapping[str, int]
    ops: Mapping[str, Op]
    refusals: list[legal.Refusal] = field(default_factory=list)
    closed: dict[str, str] = field(default_factory=dict)
    """Symbolic dimensions that a refused node must know → the node and its reason, in words."""
    env: dict[ir.Value, Operand | None] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    """The model's inputs → their names in the program; ``outputs`` the same."""
    outputs: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Names in the program → ONNX values."""
    kept: list[str] = field(default_factory=list)
    """Names of the constants of nodes whose weights are to stay as they are."""
    _taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if (classifier := options(self.job).classifier) is not None:
            feature = classifier.predicted_feature_name
            self._taken |= {feature, f"{feature}_probs"}
        self.ios = int(self.target.removeprefix("iOS"))
        self.free = [symbol for symbol in self.job.shapes if symbol not in self.sizes]
        self.symbols = {symbol: new_symbol() for symbol in self.free}
        """What coremltools knows an open dimension by."""

    def run(self) -> Program:
        """The program; what could not be taken stands in ``refusals``, and the program is then not whole."""
        self._count_names()
        program = Program()
        placeholders = dict(self._placeholders())
        with Function(placeholders, opset_version=getattr(ct.target, self.target)) as function:
            self.function = function
            for value in self.model.graph.inputs:
                self._input(value, function)
            self.walk(self.model.graph)
            held = [self._output(value) for value in self.model.graph.outputs] if not self.refusals else []
            function.set_outputs([var for var in held if var is not None])
        program.add_function("main", function)
        return program

    # ---- nodes

    def operand_of(self, tensor: ir.TensorProtocol) -> Operand:
        return np.asarray(tensor.numpy())

    def write(self, node: ir.Node, operands: Sequence[Operand | None]) -> None:
        call = Call(self, node, self.ops[legal.operator(node)], tuple(operands))
        try:
            for value, result in zip(node.outputs, self._results(call), strict=False):
                self._bind(value, result)
        except Open as refusal:
            for symbol in refusal.symbols:
                self.closed.setdefault(symbol, f"{node.op_type} '{node.name}': {refusal}")
            raise Refusal(f"{refusal}: {', '.join(sorted(refusal.symbols)) or 'it'} is open") from None

    def _results(self, call: Call) -> Sequence[Result]:
        """What one node gives. Raises ``Refusal``."""
        if (computed := folded_arrays(call.node, call.operands)) is not None:
            return computed
        call.check_types()
        is_bool = call.has(0) and call.dtype(0) == np.bool_
        if call.op.moves and is_bool:
            call.operands = tuple(self._as_integer(each) for each in call.operands)
        made = self._lowered(call)
        results = list(made) if isinstance(made, Sequence) else [made]
        return [self._as_bool(each) for each in results] if call.op.moves and is_bool else results

    def _lowered(self, call: Call) -> Result | Sequence[Result]:
        """What the op function gives, its constants noted where they are to be kept."""
        if not {call.node.name, call.node.op_type} & set(self.job.keep):
            return call.op.lower(call)
        before = len(self.function.operations)
        made = call.op.lower(call)
        self.kept += [each.name for each in list(self.function.operations)[before:] if each.op_type == "const"]
        return made

    def _as_integer(self, operand: Operand | None) -> Operand | None:
        if isinstance(operand, np.ndarray):
            return operand.astype(np.int32) if operand.dtype == np.bool_ else operand
        if isinstance(operand, Joined):
            held = self._as_integer(operand.held)
            return Joined(held, operand.shape) if isinstance(held, Var) else operand
        is_bool = isinstance(operand, Var) and dtype_of(operand) == np.bool_
        return mb.cast(x=operand, dtype="int32") if is_bool else operand

    def _as_bool(self, result: Result) -> Result:
        if isinstance(result, Joined):
            held = self._as_bool(result.held)
            return Joined(held, result.shape) if isinstance(held, Var) else result
        is_moved = isinstance(result, Var) and dtype_of(result) == np.int32
        return mb.cast(x=result, dtype="bool") if is_moved else result

    def _bind(self, value: ir.Value, result: Result) -> None:
        if result is None:
            if value.uses() or value.is_graph_output():
                raise AssertionError(f"'{value.name}' is used, and nothing was made for it")
            return
        if isinstance(result, Var) and result.val is not None and value.dtype in _INTEGERS:
            # Sizes that turned out to be known: what follows from them is folded.
            result = np.asarray(result.val, value.dtype.numpy())
        if isinstance(result, Var):
            told(result, said(value, self.sizes, self.symbols))
            if any(is_known(dim) and dim == 0 for dim in result.shape):
                raise Refusal("its result is empty, and Core ML has no empty tensors")
            if result.rank > MOST_AXES:
                raise Refusal(f"its result has {result.rank} axes, and Core ML has at most {MOST_AXES}")
            self._check(value, result)
            self._name(value, result)
        self.env[value] = result

    def _check(self, value: ir.Value, result: Var) -> None:
        """Hold what was built against what ONNX says of it: what differs is a mistake here."""
        own = graph.dtype_name(value.dtype)
        meant, found = NARROW.get(own) or WIDE.get(own) or own, dtype_of(result).name
        if value.dtype is not None and found not in (meant, own):
            raise AssertionError(f"'{value.name}' is {found}, and ONNX has {own}")
        if value.shape is None:
            return
        declared = [dim if isinstance(dim, int) else self.sizes.get(str(dim.value)) for dim in value.shape]
        fits = len(declared) == result.rank and all(
            ours is None or not is_known(dim) or ours == dim for ours, dim in zip(declared, result.shape, strict=True)
        )
        if not fits:
            raise AssertionError(f"'{value.name}' is {list(result.shape)}, and ONNX has {value.shape}")

    def _name(self, value: ir.Value, result: Var) -> None:
        """Call a result after the value, unless it is one that has a name already."""
        if result.op is None or result.name in self.names or result.op.op_type == "const":
            return
        name = self._own(value.name or "value")
        if len(result.op.outputs) == 1:
            result.op.name = name
        result.set_name(name)
        self.names[name] = value.name or ""

    def _own(self, name: str) -> str:
        """``name`` as the package can have it: letters, digits and underscores, no digit first, and no
        word of the language or other's."""
        plain = _NOT_A_NAME.sub("_", name)
        plain = f"_{plain}" if not plain or plain[0].isdigit() or plain in _RESERVED else plain
        found, count = plain, 0
        while found in self._taken:
            count += 1
            found = f"{plain}__{count}"  # coremltools has one underscore in the names that it gives
        self._taken.add(found)
        return found

    def _count_names(self) -> None:
        """Let coremltools count its own names, which end in numbers, anew and from beyond those of the graph.

        It counts over the life of the process, and looks at nobody else's names.
        """
        mb.name_count.clear()
        values = [*self.model.graph.inputs, *(each for node in self.model.graph.all_nodes() for each in node.outputs)]
        for value in values:
            prefix, _, number = _NOT_A_NAME.sub("_", value.name or "").rpartition("_")
            if number.isdecimal():
                mb.name_count[prefix] = max(mb.name_count[prefix], int(number) + 1)

    def forget(self, node: ir.Node) -> None:
        for value in node.outputs:
            shape = graph.static_shape(value, self.sizes)
            own = graph.dtype_name(value.dtype)
            dtype = NARROW.get(own) or WIDE.get(own) or own
            self.env[value] = None
            if shape is not None and dtype in TYPES and len(shape) <= MOST_AXES and all(shape):
                # Not known when the program is built, and of this shape: what computes with it can be tried.
                var = mb.random_uniform(shape=np.array(shape or (1,), np.int32))
                var = var if shape else mb.squeeze(x=var)
                name = {"float32": "fp32", "float16": "fp16"}.get(dtype, dtype)
                self.env[value] = mb.cast(x=var, dtype=name)

    # ---- the border

    def _placeholders(self) -> Iterator[tuple[str, object]]:
        for value in self.model.graph.inputs:
            name, own = value.name or "", graph.dtype_name(value.dtype)
            dtype = NARROW.get(own) or WIDE.get(own) or own
            if (image := options(self.job).images.get(name)) is not None:
                dtype = "float16" if image.color_layout == "GRAYSCALE_FLOAT16" else "float32"
            shape = value.shape
            reason = None
            if dtype not in _MIL or shape is None:
                reason = f"Core ML has no inputs of {own}"
            elif dtype == "float16" and self.ios < 16:
                reason = (
                    f"inputs of float16 need minimum_deployment_target iOS16 or newer, and {self.target} is asked for"
                )
            elif len(shape) > MOST_AXES:
                reason = f"it has {len(shape)} axes, and Core ML has at most {MOST_AXES}"
            elif any(dim == 0 for dim in shape):
                reason = "it is empty, and Core ML has no empty tensors"
            if reason is not None or shape is None:
                self.refusals.append((name, "input", reason or "its shape is not known"))
                self.env[value] = None
                continue
            # A scalar is an array of one element at the border.
            dims = [self._dim(dim) for dim in shape] or [1]
            if is_turned(name, self.job):
                dims = [dims[axis] for axis in TO_CHANNELS_FIRST]
            self.inputs[name] = self._own(name)
            yield self.inputs[name], mb.placeholder(shape=tuple(dims), dtype=_MIL[dtype])

    def _dim(self, dim: int | ir.SymbolicDim) -> object:
        symbol = dim if isinstance(dim, int) else str(dim.value)
        return symbol if isinstance(symbol, int) else self.sizes.get(symbol) or self.symbols[symbol]

    def _input(self, value: ir.Value, function: Function) -> None:
        name = value.name or ""
        if name not in self.inputs:
            return
        var = function.inputs[self.inputs[name]]
        self.names[self.inputs[name]] = name
        if is_turned(name, self.job):
            var = mb.transpose(x=var, perm=FROM_CHANNELS_FIRST)
        if value.dtype in _FLOATS and dtype_of(var) != value.dtype.numpy():
            var = mb.cast(x=var, dtype=_FLOATS[value.dtype])  # of an image, whose pixels have a type of their own
        if value.dtype == ir.DataType.BOOL:
            var = mb.cast(x=var, dtype="bool")
        self.env[value] = mb.squeeze(x=var, axes=[0]) if value.shape is not None and not len(value.shape) else var

    def _output(self, value: ir.Value) -> Var | None:
        """The program's output for ``value``, of its own name, a scalar as one element; None where it is refused."""
        name, held = value.name or "", self.env[value]
        if isinstance(held, Joined):
            reason = f"it has {len(held.shape)} axes, and Core ML has at most {MOST_AXES}"
            self.refusals.append((name, "output", reason))
            return None
        try:
            var = Call(self, ir.Node("", "Identity", [value]), Op(_nothing), (held,)).var(0)
        except Refusal as refusal:
            self.refusals.append((name, "output", str(refusal)))
            return None
        if any(is_known(dim) and dim == 0 for dim in var.shape):
            self.refusals.append((name, "output", "it is empty, and Core ML has no empty tensors"))
            return None
        own = self._own(name) if self.names.get(var.name) != name or var.op is None else var.name
        is_bool, is_scalar = dtype_of(var) == np.bool_, not var.rank
        if own == var.name and (is_bool or is_scalar):
            var.set_name(self._own(f"{own}_inside"))
        if is_bool:
            var = mb.cast(x=var, dtype="int32", name=self._own(f"{own}_int32") if is_scalar else own)
        if is_scalar:
            var = mb.expand_dims(x=var, axes=[0], name=own)
        if var.name != own:
            var = mb.identity(x=var, name=own)
        self.names[own], self.outputs[name] = name, own
        return var

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What is written inside a block of a computed `If` or `Loop` is known there alone."""
        known = dict(self.env)
        yield
        self.env = known


def _nothing(call: Call) -> Result:
    raise AssertionError(f"{call.node.op_type} is not lowered")
