"""TFLite files: heavy only by their size."""

from __future__ import annotations

import importlib.util
import math
import re
from collections import Counter
from functools import cache
from pathlib import Path

from retarget.convert.tensorflow.names import Border
from retarget.convert.tflite import names, read
from retarget.errors import RetargetError
from retarget.inspection import borders
from retarget.inspection.result import Inspection, most_first

_SCHEMAS = {"ai_edge_litert": "schema_py_generated.py", "tensorflow": "lite/python/schema_py_generated.py"}
"""Package to its module that lists the operators by name and number, whose source is read: nothing is imported."""
_LIST = re.compile(r"^class BuiltinOperator\b.*?\n((?:[ \t]+\w+ *= *\d+\s*\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"(\w+) *= *(\d+)")


def inspect(path: Path) -> Inspection:
    """Everything that the file says. Raises ``RetargetError`` for a damaged one."""
    file = read.read(path, outside=True)
    notes = [_signature(file, signature) for signature in file.signatures]
    try:
        signature = file.chosen(None)
    except RetargetError as error:
        notes.insert(0, error.hint or error.message)
        signature = None
    graph = file.subgraphs[signature.subgraph if signature else 0]
    inputs, outputs = _borders(graph, signature) if signature else ((), ())
    given, said = borders.specs(inputs, "input", str(path))
    made, more = borders.specs(outputs, "output", str(path))
    notes += said + more
    weights: Counter[str] = Counter()
    parameters = 0
    for tensor in (tensor for each in file.subgraphs for tensor in each.tensors if tensor.constant):
        count = math.prod(tensor.shape)
        weights[tensor.dtype] += borders.size_of(tensor.dtype, count)
        parameters += count
    if any(tensor.quantized and not tensor.constant for tensor in graph.tensors):
        notes.append("its activations are quantized")
    ops = Counter(_operator(operator) for each in file.subgraphs for operator in each.operators)
    if any(name.startswith("operator ") for name in ops):
        notes.append("operators are given by number: pip install ai-edge-litert brings their names")
    return Inspection(
        path=str(path),
        what="TFLite model",
        version="schema 3",
        bytes=path.stat().st_size,
        inputs=given,
        outputs=made,
        nodes=ops.total(),
        ops=most_first(ops),
        parameters=parameters,
        weights=most_first(weights),
        notes=tuple(notes),
    )


def _borders(graph: read.Subgraph, signature: read.Signature) -> tuple[tuple[Border, ...], tuple[Border, ...]]:
    inputs, outputs = names.borders(graph, signature)
    tensors = [graph.tensors[index] for index in graph.outputs]
    return inputs, tuple(
        Border(name, tensor.dtype, tuple(None if size < 0 else size for size in tensor.shape))
        for name, tensor in zip(outputs, tensors, strict=True)
    )


def _signature(file: read.File, signature: read.Signature) -> str:
    inputs, outputs = _borders(file.subgraphs[signature.subgraph], signature)
    return f"signature '{signature.key}': {', '.join(map(str, inputs))} → {', '.join(map(str, outputs))}"


def _operator(operator: read.Operator) -> str:
    if operator.code == read.CUSTOM:
        return f"custom::{operator.custom}"
    return _names().get(operator.code, f"operator {operator.code}")


@cache
def _names() -> dict[int, str]:
    """Number in `BuiltinOperator` to the name, from a schema that is installed; empty where none is."""
    for package, file in _SCHEMAS.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            schema = Path(folder) / file
            if schema.is_file():
                listed = _LIST.search(schema.read_text(encoding="utf-8", errors="replace"))
                return {int(number): name for name, number in _ENTRY.findall(listed[1] if listed else "")}
    return {}
