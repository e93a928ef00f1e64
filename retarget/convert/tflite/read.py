"""What a TFLite file holds, with everything checked that its other readers take on trust.

tf2onnx and the interpreter index tensors, buffers and operators as the file says; a wrong index ends the process.
Field numbers are those of `schema.fbs`. Syntax and library of Python 3.8.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from retarget.convert.tflite.flatbuffer import Buffer, Content, Table
from retarget.errors import RetargetError, Unsupported, did_you_mean
from retarget.source import Source

TYPES = [
    "float32",
    "float16",
    "int32",
    "uint8",
    "int64",
    "string",
    "bool",
    "int16",
    "complex64",
    "int8",
    "float64",
    "complex128",
    "uint64",
    "resource",
    "variant",
    "uint32",
    "uint16",
    "int4",
    "bfloat16",
    "int2",
    "uint4",
    "float8e4m3",
    "float8e5m2",
]
"""`TensorType`, in order."""

_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
    **{f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_IO_TYPES = frozenset(_BYTES) - {"complex64", "complex128"}

_LISTS = {17: (0,), 30: (0,), 115: (0,)}
"""`BuiltinOptions` that hold lists of int32, by number (Reshape, Squeeze, Bucketize), and the lists' fields."""

LARGEST = 1 << 31
"""The offsets in a flatbuffer lead no further."""

CUSTOM, DEQUANTIZE = 32, 6
"""Numbers in `BuiltinOperator`."""
_DEFAULT = "serving_default"
_NO_TENSOR = -1


@dataclass(frozen=True)
class Tensor:
    """``shape`` has -1 where the file leaves a size open."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    constant: bool
    quantized: bool


@dataclass(frozen=True)
class Operator:
    """``code`` is the number in `BuiltinOperator`, ``custom`` the name where that is `CUSTOM`."""

    code: int
    custom: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Subgraph:
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """A function of the model: names for the inputs and outputs of a subgraph, by the index of the tensor."""

    key: str
    subgraph: int
    inputs: Mapping[int, str]
    outputs: Mapping[int, str]


@dataclass(frozen=True)
class File:
    data: Content
    place: str
    subgraphs: tuple[Subgraph, ...]
    signatures: tuple[Signature, ...]

    def chosen(self, name: str | None) -> Signature:
        """The signature ``name``, or the only or default one; without any, the first subgraph without names."""
        known = {signature.key: signature for signature in self.signatures}
        if name is not None:
            if name not in known:
                hint = did_you_mean(name, known) if known else "the file has no signatures: leave `signature` out"
                raise RetargetError(f"{self.place}: has no signature '{name}'", hint)
            return known[name]
        if len(known) > 1 and _DEFAULT not in known:
            raise RetargetError(
                f"{self.place}: has {len(known)} signatures", f"choose one with `signature`: {', '.join(sorted(known))}"
            )
        return next(iter(known.values()), Signature("", 0, {}, {})) if len(known) < 2 else known[_DEFAULT]


def read(path: Path, *, outside: bool = False) -> File:
    """The file, checked. Raises ``RetargetError`` for what is damaged and ``Unsupported`` for what nobody reads.

    ``outside``: weights may stand behind the flatbuffer, as in files above 2 GB; tf2onnx does not find them there.
    """
    if not path.is_file():
        raise RetargetError(f"{path}: no such file")
    data = _content(path)
    if data[4:8] != b"TFL3":
        raise RetargetError(
            f"{path}: not a TFLite model: bytes 4 to 8 are {data[4:8]!r}, not b'TFL3'",
            "the file may be damaged, or be of another format: compare its sha256 with the original",
        )
    buffer = Buffer(data, str(path))
    model = buffer.root()
    version = model.number(0, "<I")
    if version != 3:
        raise Unsupported(f"{path}: is of version {version} of the format, not 3", "convert the model again")
    # Without a list there is nothing in buffer 0 either, where tensors without data point.
    sizes = [_buffer_size(table, buffer, outside) for table in model.tables(4)] or [None]
    codes = [_code(table) for table in model.tables(1)]
    reader = _Reader(buffer, sizes, codes)
    subgraphs = tuple(reader.subgraph(table, index) for index, table in enumerate(model.tables(2)))
    if not subgraphs:
        raise buffer.damaged("has no graph")
    for table in model.tables(6):
        table.text(0)
        reader.index(table.number(1, "<I"), len(sizes), "metadata", "buffer")
    for index in model.numbers(5, "<i"):
        reader.index(index, len(sizes), "metadata", "buffer")
    signatures = tuple(reader.signature(table, subgraphs) for table in model.tables(7))
    return File(data, str(path), subgraphs, signatures)


def chosen_signature(file: File, source: Source) -> Signature:
    """The signature that ``source`` asks for. Raises ``RetargetError`` where its tensors are not numbers."""
    signature = file.chosen(source.signature)
    graph = file.subgraphs[signature.subgraph]
    for kind, indices in (("input", graph.inputs), ("output", graph.outputs)):
        for index in indices:
            tensor = graph.tensors[index]
            if tensor.dtype not in _IO_TYPES:
                raise Unsupported(
                    f"{file.place}: {kind} '{tensor.name}' is of type {tensor.dtype}, which is not supported",
                    "do text processing outside of the model" if tensor.dtype == "string" else None,
                )
    return signature


class _Reader:
    def __init__(self, buffer: Buffer, sizes: list[int | None], codes: list[tuple[int, str]]) -> None:
        self._buffer = buffer
        self._sizes = sizes
        self._codes = codes
        self._constant_bytes = 0

    def index(self, index: int, count: int, where: str, what: str) -> int:
        """``index``, which must be below ``count``."""
        if not 0 <= index < count:
            raise self._buffer.damaged(f"has {where} with the {what} {index} of {count}")
        return index

    def subgraph(self, table: Table, number: int) -> Subgraph:
        tensors = tuple(self._tensor(each, f"tensor {at}") for at, each in enumerate(table.tables(0)))
        where = f"graph {number}"
        inputs, outputs = (self._indices(table, field, len(tensors), where) for field in (1, 2))
        operators = tuple(self._operator(each, at, len(tensors)) for at, each in enumerate(table.tables(3)))
        table.text(4)
        self._check_order(tensors, operators, inputs, outputs)
        return Subgraph(tensors, operators, inputs, outputs)

    def signature(self, table: Table, subgraphs: tuple[Subgraph, ...]) -> Signature:
        key = table.text(2)
        where = f"signature '{key}'"
        number = self.index(table.number(4, "<I"), len(subgraphs), where, "graph")
        graph = subgraphs[number]
        names = []
        for field, allowed in ((0, graph.inputs), (1, graph.outputs)):
            named = {each.number(1, "<I"): each.text(0) for each in table.tables(field)}
            for index in named:
                if index not in allowed:
                    raise self._buffer.damaged(f"has {where} with the tensor {index}, which is not at the border")
            names.append(named)
        return Signature(key, number, names[0], names[1])

    def _tensor(self, table: Table, where: str) -> Tensor:
        name = table.text(3)
        kind = table.number(1, "<b")
        dtype = TYPES[self.index(kind, len(TYPES), where, "type")]
        shape, signature = table.numbers(0, "<i"), table.numbers(7, "<i")
        where = f"{where} ('{name}')"
        wrong = any(size < 0 for size in shape) or any(size < -1 for size in signature)
        if wrong or (signature and len(signature) != len(shape)) or math.prod(shape) > 1 << 40:
            raise self._buffer.damaged(f"has {where} with the impossible shape {list(signature or shape)}")
        held = self._sizes[self.index(table.number(2, "<I"), len(self._sizes), where, "buffer")]
        if table.table(6) is not None:
            raise Unsupported(
                f"{self._buffer.place}: {where} is sparse, which is not supported",
                "convert the model without sparsity (`Optimize.EXPERIMENTAL_SPARSITY`)",
            )
        if held and dtype in _BYTES:
            needed = math.prod(shape) * _BYTES[dtype]
            if held != needed:
                raise self._buffer.damaged(f"has {where} with {held} bytes, where its shape needs {needed}")
            self._constant_bytes += held
            if self._constant_bytes > 16 * len(self._buffer.data) + (64 << 20):
                raise self._buffer.damaged("refers to the same weights again and again")
        return Tensor(name, dtype, signature or shape, bool(held), self._quantized(table.table(4), shape, where))

    def _quantized(self, table: Table | None, shape: tuple[int, ...], where: str) -> bool:
        if table is None:
            return False
        table.length(0, 4), table.length(1, 4)
        scales, zeros = table.length(2, 4) or 0, table.length(3, 8) or 0
        axis = table.number(6, "<i")
        fits = {1} if not 0 <= axis < len(shape) else {1, shape[axis]}
        if scales and (scales not in fits or zeros not in {0, 1, scales}):
            raise self._buffer.damaged(f"has {where} with {scales} scales and {zeros} zero points along axis {axis}")
        return bool(scales and zeros)

    def _operator(self, table: Table, at: int, tensors: int) -> Operator:
        where = f"operator {at}"
        code, custom = self._codes[self.index(table.number(0, "<I"), len(self._codes), where, "code")]
        inputs, outputs = (self._indices(table, field, tensors, where, optional=True) for field in (1, 2))
        options = table.table(4)
        if options is not None:
            for field in _LISTS.get(table.number(3, "<B"), ()):
                options.length(field, 4)
        table.length(5, 1), table.length(7, 1), table.table(12)
        self._indices(table, 8, tensors, where, optional=True)
        return Operator(code, custom, inputs, outputs)

    def _indices(self, table: Table, field: int, count: int, where: str, *, optional: bool = False) -> tuple[int, ...]:
        found = table.numbers(field, "<i")
        for index in found:
            if not (optional and index == _NO_TENSOR):
                self.index(index, count, where, "tensor")
        return found

    def _check_order(
        self, tensors: tuple[Tensor, ...], operators: Iterable[Operator], inputs: Iterable[int], outputs: Iterable[int]
    ) -> None:
        """Operators stand in the order of execution; a tensor that nothing has made yet is nobody's to read.

        Variables are made by nothing, and are told from what is wrong by those who know the operators.
        """
        made = {_NO_TENSOR, *inputs}
        written = {index for operator in operators for index in operator.outputs}
        for at, operator in enumerate(operators):
            for index in operator.inputs:
                if index in written and index not in made:
                    raise self._buffer.damaged(f"has operator {at} that reads tensor {index}, which comes later")
            made.update(operator.outputs)
        for index in outputs:
            if index not in made and not tensors[index].constant:
                raise self._buffer.damaged(f"has the output {index} ('{tensors[index].name}') that nothing makes")


def _content(path: Path) -> Content:
    """The bytes; of what is too large for a flatbuffer only those are read that are looked at."""
    if path.stat().st_size < LARGEST:
        return path.read_bytes()
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _buffer_size(table: Table, buffer: Buffer, outside: bool) -> int | None:
    at, size = table.number(1, "<Q"), table.number(2, "<Q")
    if at <= 1:
        return table.length(0, 1)
    if not outside:
        raise Unsupported(
            f"{buffer.place}: keeps its weights behind the model, as files above 2 GB do, which is not supported",
            "convert from the model that this file was made of",
        )
    buffer.hold(at, size)
    return size


def _code(table: Table) -> tuple[int, str]:
    # Codes outgrew their byte: the larger of the two fields counts, as in TFLite's `GetBuiltinCode`.
    return max(table.number(0, "<b"), table.number(3, "<i")), table.text(1)
