"""Programs of ``torch.export``: their graph and inputs stand in the archive as JSON, which is read without PyTorch."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar
from zipfile import ZipFile

import msgspec

from retarget.convert.pytorch import forms
from retarget.errors import DAMAGED, RetargetError
from retarget.inspection import borders
from retarget.inspection.result import Inspection, most_first
from retarget.spec import DEFAULT_RANGE, DTYPES, DimRange, TensorSpec
from retarget.zips import ZIP_ERRORS

_TYPES = {
    **dict(enumerate(("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"), start=1)),
    10: "complex64",
    11: "complex128",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
}
"""``ScalarType`` of the archive's schema."""
_SYMBOL = re.compile(r"(?:Symbol\(')?(\w+)")
_LARGEST = 1 << 20
"""A greatest size beyond this one stands for none."""


class _Expression(msgspec.Struct):
    expr_str: str


class _Size(msgspec.Struct):
    as_int: int | None = None
    as_expr: _Expression | None = None


class _Meta(msgspec.Struct):
    dtype: int
    sizes: list[_Size]


class _Name(msgspec.Struct):
    name: str


class _Value(msgspec.Struct):
    as_tensor: _Name | None = None


class _Argument(msgspec.Struct):
    arg: _Value


class _Place(msgspec.Struct):
    """An input or output of the graph: what the user gives or gets, or a weight."""

    user_input: _Argument | None = None
    user_output: _Argument | None = None


class _Signature(msgspec.Struct):
    input_specs: list[_Place]
    output_specs: list[_Place]


class _Node(msgspec.Struct):
    target: str


class _Graph(msgspec.Struct):
    nodes: list[_Node]
    tensor_values: dict[str, _Meta]


class _Module(msgspec.Struct):
    graph: _Graph
    signature: _Signature


class _Range(msgspec.Struct):
    min_val: int | None = None
    max_val: int | None = None


class _Program(msgspec.Struct):
    graph_module: _Module
    range_constraints: dict[str, _Range] = {}
    torch_version: str = ""


class _Weight(msgspec.Struct):
    tensor_meta: _Meta | None = None


class _Weights(msgspec.Struct):
    config: dict[str, _Weight]


T = TypeVar("T", _Program, _Weights)


def inspect(path: Path) -> Inspection:
    """What the program says. Raises ``RetargetError`` for a damaged archive."""
    program, held = _read(path)
    graph = program.graph_module.graph
    names: dict[str, str] = {}
    signature = program.graph_module.signature
    inputs = _specs([place.user_input for place in signature.input_specs if place.user_input], graph, names)
    outputs = _specs([place.user_output for place in signature.output_specs if place.user_output], graph, names)
    weights: Counter[str] = Counter()
    parameters = 0
    for meta in (weight.tensor_meta for weight in held.config.values() if weight.tensor_meta):
        count = math.prod(size.as_int or 0 for size in meta.sizes)
        dtype = _TYPES.get(meta.dtype, "?")
        parameters += count
        weights[dtype] += borders.size_of(dtype, count)
    return Inspection(
        path=str(path),
        what=f"PyTorch checkpoint ({forms.EXPORTED})",
        version=f"PyTorch {program.torch_version}" if program.torch_version else None,
        bytes=path.stat().st_size,
        inputs=inputs,
        outputs=outputs,
        shapes={symbol: _range(program, expression) for expression, symbol in names.items()},
        nodes=len(graph.nodes),
        ops=most_first(Counter(node.target.removeprefix("torch.ops.") for node in graph.nodes)),
        parameters=parameters,
        weights=most_first(weights),
    )


def _read(path: Path) -> tuple[_Program, _Weights]:
    try:
        with ZipFile(path) as archive:
            program = _member(archive, "models/model.json", _Program)
            return program, _member(archive, "data/weights/model_weights_config.json", _Weights)
    except (*ZIP_ERRORS, msgspec.DecodeError) as error:
        raise RetargetError(f"{path}: not a readable archive of torch.export ({error})", DAMAGED) from error


def _member(archive: ZipFile, name: str, kind: type[T]) -> T:
    found = [each for each in archive.namelist() if each.partition("/")[2] == name]
    if not found:
        raise ValueError(f"{name} is missing")
    return msgspec.json.decode(archive.read(found[0]), type=kind)


def _specs(places: list[_Argument], graph: _Graph, names: dict[str, str]) -> tuple[TensorSpec, ...]:
    """Specs as the frontend makes them; none where one is no tensor. ``names``: expression of a size to its name."""
    found = []
    for place in places:
        meta = graph.tensor_values.get(place.arg.as_tensor.name) if place.arg.as_tensor else None
        dtype = _TYPES.get(meta.dtype) if meta else None
        if meta is None or place.arg.as_tensor is None or dtype not in DTYPES:
            return ()
        found.append(TensorSpec(place.arg.as_tensor.name, dtype, tuple(_dims(meta, names))))
    return tuple(found)


def _dims(meta: _Meta, names: dict[str, str]) -> Iterator[int | str]:
    for size in meta.sizes:
        if size.as_expr is None:
            yield size.as_int or 0
        else:
            yield names.setdefault(size.as_expr.expr_str, f"dim{len(names)}")


def _range(program: _Program, expression: str) -> DimRange:
    """The sizes that a dimension was exported for; as by default where the program does not bound it."""
    symbol = _SYMBOL.match(expression)
    bounds = program.range_constraints.get(symbol[1]) if symbol else None
    if bounds is None:
        return DEFAULT_RANGE
    least = max(1, bounds.min_val or 1)
    most = bounds.max_val if bounds.max_val and bounds.max_val < _LARGEST else DEFAULT_RANGE.max
    most = max(least, most)
    return DimRange(least, min(max(least, DEFAULT_RANGE.opt), most), most)
