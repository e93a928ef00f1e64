"""Write a `Program` as a `.tflite` file, with one constant in memory at a time.

The file is a flatbuffer: tables that refer to each other by offsets, which may lead anywhere behind them. So the tables
are built without the constants' bytes, which are written behind, and each `Buffer` is made to refer to its own. Offsets
end at 2 GB: in a larger file the tables hold positions in the file instead (`Buffer.offset` and `size`), and the bytes
are no part of the flatbuffer.

Beside the file, `write_map` says what each of its tensors is, as JSON:

    {"schema": 1, "tensors": [{"index": 3, "name": "h", "value": "h", "layout": "last", "dtype": "int8",
      "shape": [1, 8, 8, 16], "scale": 0.1, "zero_point": 0, "operator": 1, "code": "CONV_2D",
      "node": "conv1"}, …]}

One object for each tensor that is computed, by ``index``. ``value`` is the ONNX value that it holds, null where ONNX
has none; where ``layout`` is ``"last"`` its axis 1 stands last. ``scale`` and ``zero_point`` are missing where the
tensor holds no codes. ``operator`` is the index of the operator that makes it, ``code`` its name and ``node`` the ONNX
node behind it (empty where it was put in between); missing where nothing makes it.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as generated

from retarget.targets import tensor_map
from retarget.targets.tflite import schema, versions
from retarget.targets.tflite.program import SMALL, Constant, Operator, Program, Tensor

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.tflite.schema import Table

LIMIT = (1 << 31) - (1 << 20)
"""Files of more bytes keep their constants outside of the flatbuffer: its offsets have 31 bits."""

ALIGNMENT = 16
"""Kernels read constants where they stand in the file."""

SIGNATURE = "serving_default"
RUNTIME = "min_runtime_version"
"""The metadata that names the first release of TensorFlow that executes the file."""
_RUNTIME_BYTES = 16

_UNSET = 1
"""The runtime takes positions and sizes up to it for unset."""

_LATE = frozenset({"TOPK_V2"})
"""Kernels that size no result before they run, nor then does any behind them, if their first input has open axes."""

_OFFSET, _LENGTH, _WIDE = struct.Struct("<I"), struct.Struct("<I"), struct.Struct("<Q")
_FIELDS = (4, 6, 8)
"""Where a `Buffer` keeps the offset of its data, the position outside of the flatbuffer, and the size there."""


def write(program: Program, path: Path, *, description: str, hollow: bool = False) -> None:
    """Write ``program`` to ``path``; there is either a whole file or none.

    ``hollow``: with zeros for large constants, which are neither made nor take room on disk, to try shapes with.
    """
    model = _Model(program)
    file = _inside(model, description)
    if file.bytes > LIMIT:
        file = _outside(model, description)
    temporary = path.with_name(f"{path.name}.part")
    try:
        with temporary.open("wb") as out:
            out.write(file.tables)
            for piece in file.pieces:
                out.write(bytes(piece.place - len(piece.header) - out.tell()))
                out.write(piece.header)
                if hollow and piece.constant.nbytes > SMALL:
                    out.truncate(out.seek(piece.end))
                else:
                    out.write(_bytes(piece.constant.array()).data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_map(program: Program, path: Path) -> None:
    """Write what each tensor of the file is, which `write` makes of the same program."""
    made_by = {
        tensor: {"operator": index, "code": operator.custom or operator.code, "node": operator.origin}
        for index, operator in enumerate(program.operators)
        for tensor in operator.outputs
    }
    entries = []
    for index, (tensor, name) in enumerate(named(program).items()):
        if tensor.constant is not None:
            continue
        entry = {
            "index": index,
            "name": name,
            "value": tensor.value,
            "layout": tensor.layout,
            "dtype": tensor.dtype.name,
            "shape": [-1 if axis in tensor.open_axes else size for axis, size in enumerate(tensor.shape)],
            **_codes_of(tensor),
            **made_by.get(tensor, {}),
        }
        entries.append(entry)
    tensor_map.write(entries, path)


def _codes_of(tensor: Tensor) -> dict[str, object]:
    """What the integers of ``tensor`` mean, for the map."""
    quantization = tensor.quantization
    if quantization is None:
        return {}
    return {"scale": quantization.scales[0], "zero_point": quantization.zero_points[0]}


@dataclass(frozen=True)
class _Piece:
    """A constant behind the tables: ``place`` is where its bytes begin, ``header`` what stands right before them."""

    constant: Constant
    place: int
    header: bytes

    @property
    def end(self) -> int:
        return self.place + self.constant.nbytes


@dataclass(frozen=True)
class _File:
    tables: bytearray
    pieces: Sequence[_Piece]

    @property
    def bytes(self) -> int:
        return self.pieces[-1].end if self.pieces else len(self.tables)


def _inside(model: _Model, description: str) -> _File:
    """Constants as vectors of the flatbuffer: their length, and then their bytes."""
    tables = _pack(model.table(description, [generated.BufferT(data=_bytes()) for _ in model.constants]))
    pieces: list[_Piece] = []
    for index, constant in enumerate(model.constants, start=1):
        end = (pieces[-1].end if pieces else len(tables)) + _LENGTH.size
        piece = _Piece(constant, end + -end % ALIGNMENT, _LENGTH.pack(min(constant.nbytes, LIMIT)))
        pieces.append(piece)
        if piece.end <= LIMIT:
            (where, *_) = _fields(tables, index)
            _OFFSET.pack_into(tables, where, piece.place - _LENGTH.size - where)
    return _File(tables, pieces)


def _outside(model: _Model, description: str) -> _File:
    """Constants behind the flatbuffer, but for those of so few bytes that the size would be taken for unset."""
    held = [
        generated.BufferT(data=_bytes(constant.array()))
        if constant.nbytes <= _UNSET
        else generated.BufferT(offset=_UNSET + 1, size=_UNSET + 1)
        for constant in model.constants
    ]
    tables = _pack(model.table(description, held))
    pieces: list[_Piece] = []
    for index, constant in enumerate(model.constants, start=1):
        if constant.nbytes > _UNSET:
            end = pieces[-1].end if pieces else len(tables)
            pieces.append(_Piece(constant, end + -end % ALIGNMENT, b""))
            (_, where, size) = _fields(tables, index)
            _WIDE.pack_into(tables, where, pieces[-1].place)
            _WIDE.pack_into(tables, size, constant.nbytes)
    return _File(tables, pieces)


def _fields(tables: bytearray, buffer: int) -> tuple[int, ...]:
    """Where in ``tables`` the fields of a ``buffer`` stand."""
    table = generated.Model.GetRootAs(tables).Buffers(buffer)._tab
    return tuple(table.Pos + table.Offset(each) for each in _FIELDS)


def _bytes(array: Array | None = None) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The bytes of ``array``, or none."""
    return np.zeros(0, np.uint8) if array is None else np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _pack(model: Table) -> bytearray:
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), schema.IDENTIFIER)
    return bytearray(builder.Output())


@dataclass
class _Model:
    """The tables of one program."""

    program: Program
    names: dict[Tensor, str] = field(init=False)
    indices: dict[Tensor, int] = field(init=False)
    constants: list[Constant] = field(init=False)
    """Those that differ, in the order of their buffers, which begin with the empty one of all other tensors."""
    _buffer_of: dict[Hashable, int] = field(init=False)

    def __post_init__(self) -> None:
        tensors = self.program.tensors
        self.names = named(self.program)
        self.indices = {tensor: index for index, tensor in enumerate(tensors)}
        distinct = {tensor.constant.key: tensor.constant for tensor in tensors if tensor.constant is not None}
        self.constants = list(distinct.values())
        self._buffer_of = {key: index for index, key in enumerate(distinct, start=1)}

    def table(self, description: str, held: Sequence[Table]) -> Table:
        """The whole model, with ``held`` for the constants' buffers."""
        codes = _codes(self.program.operators)
        runtime = versions.runtime(codes).encode().ljust(_RUNTIME_BYTES, b"\0")
        return generated.ModelT(
            version=schema.VERSION,
            operatorCodes=list(codes.values()),
            subgraphs=[self._subgraph(list(codes))],
            description=description,
            buffers=[generated.BufferT(), *held, generated.BufferT(data=np.frombuffer(runtime, np.uint8))],
            metadata=[generated.MetadataT(RUNTIME, len(held) + 1)],
            signatureDefs=[self._signature()],
        )

    def _subgraph(self, codes: list[tuple[str, int]]) -> Table:
        index_of = {code: index for index, code in enumerate(codes)}
        return generated.SubGraphT(
            name="main",
            tensors=[self._tensor(tensor) for tensor in self.indices],
            inputs=self._indices(self.program.inputs.values()),
            outputs=self._indices(self.program.outputs.values()),
            operators=[self._operator(operator, index_of[_code(operator)]) for operator in self.program.operators],
        )

    @cached_property
    def _unsigned(self) -> set[Tensor]:
        """Tensors whose open axes are not written, so that they are sized in time; of the border they must be."""
        read = {operator.inputs[0] for operator in self.program.operators if operator.code in _LATE}
        border = {*self.program.inputs.values(), *self.program.outputs.values()}
        return {tensor for tensor in read if tensor is not None} - border

    def _tensor(self, tensor: Tensor) -> Table:
        signature = [-1 if axis in tensor.open_axes else size for axis, size in enumerate(tensor.shape)]
        is_signed = bool(tensor.open_axes) and tensor not in self._unsigned
        return generated.TensorT(
            shape=np.array(tensor.shape, np.int32),
            type=schema.number_of(tensor.dtype),
            buffer=0 if tensor.constant is None else self._buffer_of[tensor.constant.key],
            name=self.names[tensor],
            quantization=_quantization(tensor),
            isVariable=tensor.is_variable,
            shapeSignature=np.array(signature, np.int32) if is_signed else None,
            hasRank=True,
        )

    def _operator(self, operator: Operator, code: int) -> Table:
        made = generated.OperatorT(
            opcodeIndex=code, inputs=self._indices(operator.inputs), outputs=self._indices(operator.outputs)
        )
        if operator.options is not None:
            schema.give_options(made, operator.options)
        if operator.custom_options:
            made.customOptions = np.frombuffer(operator.custom_options, np.uint8)
        return made

    def _indices(self, tensors: Iterable[Tensor | None]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return np.array([-1 if tensor is None else self.indices[tensor] for tensor in tensors], np.int32)

    def _signature(self) -> Table:
        inputs, outputs = (
            [generated.TensorMapT(name, self.indices[tensor]) for name, tensor in border.items()]
            for border in (self.program.inputs, self.program.outputs)
        )
        return generated.SignatureDefT(inputs, outputs, SIGNATURE, 0)


def named(program: Program) -> dict[Tensor, str]:
    """A name for each tensor, all of them different: its own, with a number behind it where another has it already.

    Inputs and outputs keep the user's names, by which the interpreter lists them.
    """
    border = {tensor: name for names in (program.inputs, program.outputs) for name, tensor in names.items()}
    own = {**border, **{tensor: tensor.name for tensor in program.tensors if tensor.name and tensor not in border}}
    # Each name is its first tensor's, before any is made up.
    first = {name: tensor for tensor, name in reversed(own.items())}
    found = {tensor: name for name, tensor in first.items()}
    counts: Counter[str] = Counter()
    for tensor in program.tensors:
        if tensor not in found:
            stem = own.get(tensor) or tensor.value or ("constant" if tensor.constant else "value")
            name = stem
            while name in first:
                counts[stem] += 1
                name = f"{stem}:{counts[stem]}"
            first[name] = tensor
            found[tensor] = name
    return {tensor: found[tensor] for tensor in program.tensors}


def _code(operator: Operator) -> tuple[str, int]:
    return operator.custom or operator.code, versions.version(operator)


def _codes(operators: Iterable[Operator]) -> dict[tuple[str, int], Table]:
    """Name and version of each different operator to its entry."""
    found: dict[tuple[str, int], Table] = {}
    for operator in operators:
        key = _code(operator)
        if key not in found:
            found[key] = schema.operator_code(operator.code, key[1], operator.custom)
    return found


def _quantization(tensor: Tensor) -> Table | None:
    if tensor.quantization is None:
        return None
    return generated.QuantizationParametersT(
        scale=np.array(tensor.quantization.scales, np.float32),
        zeroPoint=np.array(tensor.quantization.zero_points, np.int64),
        quantizedDimension=tensor.quantization.axis,
    )
