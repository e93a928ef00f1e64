"""What a written file holds and how much it computes in which type, read back with the schema's own classes.

Kernels compute in the type of their operands. Where floats meet int8 weights they are rounded to int8 first, row by
row, whichever kernels are chosen: that is int8 arithmetic, though every activation in the file is float32.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ai_edge_litert import schema_py_generated as generated

from retarget.targets import work
from retarget.targets.tflite import schema

if TYPE_CHECKING:
    from retarget.targets.tflite.schema import Table

_GATES = slice(1, 9)
"""The inputs of an LSTM that are weights, of the input's and of the state's: absent ones are skipped."""
_PROJECTION = 16
_BACKWARD = slice(18, 26)


@dataclass(frozen=True)
class Executed:
    """Types as in `Precision`; ``work`` by the type that it is done in."""

    weights: str
    activations: str
    io: str
    work: work.Work
    low_precision_share: float | None


def executed(path: Path, precision: str) -> Executed:
    """What the file ``path`` holds and computes, of which ``precision`` says what counts as low."""
    with _model(path) as model:
        graph = model.Subgraphs(0)
        tensors = [_Tensor.of(model, graph.Tensors(index)) for index in range(graph.TensorsLength())]
        computed: Counter[str] = Counter()
        held: Counter[str] = Counter()
        for code, operator in _operators(model):
            inputs = [tensors[index] if index >= 0 else None for index in operator.InputsAsNumpy()]
            outputs = [tensors[index] for index in operator.OutputsAsNumpy()]
            done = _macs(code, inputs, outputs)
            if done:
                data = inputs[_DATA.get(code, 0)]
                assert data is not None
                held[data.dtype] += done
                computed["int8" if _is_hybrid(data, inputs) else data.dtype] += done
        weights: Counter[str] = Counter()
        values: Counter[str] = Counter()
        for tensor in tensors:
            if tensor.constant and len(tensor.shape) > 1:
                weights[tensor.dtype] += math.prod(tensor.shape)
            elif not tensor.constant and tensor.dtype.startswith(("float", "bfloat")):
                values[tensor.dtype] += 1
        border = (*graph.InputsAsNumpy(), *graph.OutputsAsNumpy())
        io = work.joined(tensors[index].dtype for index in border)
    return Executed(
        weights=work.most(weights),
        activations=work.most(held if held.total() else values),
        io=io,
        work=computed,
        low_precision_share=work.low_precision_share(computed, precision),
    )


def transposes(path: Path) -> int:
    """How many TRANSPOSE operators the file has."""
    with _model(path) as model:
        return sum(code == "TRANSPOSE" for code, _ in _operators(model))


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    dtype: str
    constant: bool

    @classmethod
    def of(cls, model: Table, tensor: Table) -> _Tensor:
        shape = tuple(int(size) for size in tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
        buffer = model.Buffers(tensor.Buffer())
        held = buffer.DataLength() > 0 or buffer.Size() > 0
        return cls(shape, schema.names_of_types()[tensor.Type()], held)


@contextmanager
def _model(path: Path) -> Iterator[Table]:
    """The root table; the file is mapped, as it may be larger than memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        # Arrays of the classes would keep the map open: everything is copied out of them.
        yield generated.Model.GetRootAs(mapped)


def _operators(model: Table) -> Iterator[tuple[str, Table]]:
    """Each operator behind its name."""
    names = schema.names_of_operators()
    codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
    graph = model.Subgraphs(0)
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = codes[operator.OpcodeIndex()]
        yield names[max(code.DeprecatedBuiltinCode(), code.BuiltinCode())], operator


_DATA = {"TRANSPOSE_CONV": 2, "CONV_3D_TRANSPOSE": 2}
"""Which input is the data, where it is not the first; the weights of those stand second."""


def _is_hybrid(data: _Tensor, inputs: list[_Tensor | None]) -> bool:
    """Whether floats are rounded to meet int8 weights."""
    weights = [tensor for tensor in inputs if tensor is not None and tensor.constant and len(tensor.shape) > 1]
    return data.dtype == "float32" and any(tensor.dtype in work.INT8 for tensor in weights)


def _macs(code: str, inputs: list[_Tensor | None], outputs: list[_Tensor]) -> int:
    """Multiply-accumulates of an operator at the sizes that stand in the file; channels are last."""
    shapes = [() if tensor is None else tensor.shape for tensor in inputs]
    match code:
        case "CONV_2D" | "DEPTHWISE_CONV_2D" | "CONV_3D":
            return work.convolution(shapes[1], _channels_second(outputs[0].shape))
        case "TRANSPOSE_CONV" | "CONV_3D_TRANSPOSE":
            return work.transposed_convolution(shapes[1], _channels_second(shapes[2]))
        case "FULLY_CONNECTED":
            return math.prod(outputs[0].shape) * shapes[1][1]
        case "BATCH_MATMUL":
            return work.contraction(shapes[0], outputs[0].shape)
        case "UNIDIRECTIONAL_SEQUENCE_LSTM":
            return work.recurrence(shapes[0], filter(None, (*shapes[_GATES], shapes[_PROJECTION])))
        case "BIDIRECTIONAL_SEQUENCE_LSTM":
            return work.recurrence(shapes[0], filter(None, (*shapes[_GATES], *shapes[_BACKWARD])))
        case "LSTM":
            return work.recurrence((1, shapes[0][0]), filter(None, (*shapes[_GATES], shapes[_PROJECTION])))
        case "UNIDIRECTIONAL_SEQUENCE_RNN":
            return work.recurrence(shapes[0], shapes[1:3])
        case "RNN":
            return work.recurrence((1, shapes[0][0]), shapes[1:3])
        case _:
            return 0


def _channels_second(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[-1], *shape[1:-1])
