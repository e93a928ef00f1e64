"""OpenVINO IR: its ``.xml`` says everything but the weights' values, so OpenVINO itself is not needed."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

from retarget.errors import RetargetError
from retarget.inspection.result import Inspection, most_first
from retarget.spec import TensorSpec, symbols
from retarget.targets import work

_DTYPES = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "boolean": "bool"} | {
    f"{short}{bits}": f"{name}{bits}" for short, name in (("i", "int"), ("u", "uint")) for bits in (4, 8, 16, 32, 64)
}
_PRECISIONS = {"FP64": "float64", "FP32": "float32", "FP16": "float16", "BF16": "bfloat16", "BOOL": "bool"} | {
    f"{short}{bits}": f"{name}{bits}" for short, name in (("I", "int"), ("U", "uint")) for bits in (4, 8, 16, 32, 64)
}
_DECLARATION = re.compile(rb"<!(DOCTYPE|ENTITY)", re.IGNORECASE)
_DEQUANTIZING = frozenset({"Convert", "Multiply", "Reshape", "Subtract", "Transpose"})
"""Layers between integers and the float layer that reads them."""
Shape = list[int]


def matches(path: Path) -> bool:
    """An XML file whose first element is ``<net``."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(4096)
    return path.suffix == ".xml" or (head.lstrip().startswith(b"<?xml") and b"<net" in head)


def inspect(path: Path) -> Inspection:
    """Inputs, operators, weights and compute. Raises ``RetargetError`` for a file that is not IR."""
    net = _parse(path)
    layers = list(net.iterfind("./layers/layer"))
    edges = {(edge.get("to-layer"), edge.get("to-port")): edge for edge in net.iterfind("./edges/edge")}
    known = {layer.get("id"): layer for layer in layers}
    ops: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    compute: Counter[str] = Counter()
    parameters = 0
    stored: set[tuple[int, int]] = set()
    for layer in layers:
        kind = layer.get("type", "?")
        if kind not in ("Parameter", "Result", "Const"):
            ops[kind] += 1
        data = layer.find("data")
        if kind == "Const" and data is not None:
            # Constants that share their bytes are stored once.
            dtype, size = _DTYPES.get(data.get("element_type", ""), "unknown"), int(data.get("size", 0))
            place = int(data.get("offset", 0)), size
            if place not in stored:
                stored.add(place)
                weights[dtype] += size
                parameters += math.prod(_numbers(data.get("shape", "")))
        ports = list(layer.iterfind("./input/port"))
        if ports and (done := _macs(kind, ports, list(layer.iterfind("./output/port")))):
            integers = [_integer(layer, port, known, edges) for port in ports[:2]]
            whole = integers[0] if all(integers) else None
            compute[whole or _PRECISIONS.get(ports[0].get("precision", ""), "unknown")] += done
    inputs = tuple(_spec(layer, layer) for layer in layers if layer.get("type") == "Parameter")
    weights_file = path.with_suffix(".bin")
    notes = [] if weights_file.is_file() else [f"its weights are missing: there is no {weights_file.name} beside it"]
    return Inspection(
        path=str(path),
        what="OpenVINO model",
        version=f"IR {net.get('version', '?')}",
        bytes=path.stat().st_size + (weights_file.stat().st_size if weights_file.is_file() else 0),
        inputs=inputs,
        outputs=tuple(_results(layers, edges)),
        nodes=ops.total(),
        ops=most_first(ops),
        parameters=parameters,
        weights=most_first(weights),
        macs=compute.total() or None,
        macs_at=dict.fromkeys(symbols(inputs), 1) if compute else {},
        compute=most_first(compute),
        notes=tuple(notes),
    )


def _parse(path: Path) -> ElementTree.Element:
    content = path.read_bytes()
    if _DECLARATION.search(content):
        # IR has none, and entities can be made to fill any memory.
        raise RetargetError(f"{path}: not OpenVINO IR: it declares a document type or entities")
    try:
        net = ElementTree.fromstring(content)  # noqa: S314 - it declares no entities
    except ElementTree.ParseError as error:
        raise RetargetError(
            f"{path}: not readable XML ({error})", "the file may be cut short or damaged: compare it with the original"
        ) from error
    if net.tag != "net" or net.find("layers") is None:
        raise RetargetError(f"{path}: XML, but not OpenVINO IR: it has no <net> with <layers>")
    return net


def _results(
    layers: list[ElementTree.Element], edges: dict[tuple[str | None, str | None], ElementTree.Element]
) -> Iterator[TensorSpec]:
    known = {layer.get("id"): layer for layer in layers}
    for layer in layers:
        if layer.get("type") == "Result":
            edge = edges.get((layer.get("id"), "0"))
            source = None if edge is None else known.get(edge.get("from-layer"))
            if edge is not None and source is not None:
                yield _spec(layer, source, edge.get("from-port"))


def _integer(
    layer: ElementTree.Element,
    port: ElementTree.Element,
    known: Mapping[str | None, ElementTree.Element],
    edges: Mapping[tuple[str | None, str | None], ElementTree.Element],
) -> str | None:
    """The 8-bit type that an input of ``layer`` was dequantized from, which the plugin computes in; else None."""
    at: tuple[str | None, str | None] = layer.get("id"), port.get("id")
    for _ in range(len(known)):
        edge = edges.get(at)
        source = None if edge is None else known.get(edge.get("from-layer"))
        if source is None or source.get("type") not in _DEQUANTIZING:
            return None
        first = source.find("./input/port")
        if source.get("type") == "Convert" and first is not None:
            found = _PRECISIONS.get(first.get("precision", ""), "")
            return found if found in ("int8", "uint8") else None
        at = source.get("id"), "0"
    return None


def _spec(layer: ElementTree.Element, source: ElementTree.Element, port: str | None = None) -> TensorSpec:
    """The tensor at ``port`` of ``source``, under the name that the output or the port itself has."""
    found = next(
        (each for each in source.iterfind("./output/port") if port is None or each.get("id") == port),
        ElementTree.Element("port"),
    )
    name = layer.get("output_names") or found.get("names") or layer.get("name") or "?"
    shape = tuple(size if size >= 0 else f"dim{axis}" for axis, size in enumerate(_dims(found)))
    return TensorSpec(name.split(",")[0], _PRECISIONS.get(found.get("precision", ""), "unknown"), shape)


def _macs(kind: str, inputs: list[ElementTree.Element], outputs: list[ElementTree.Element]) -> int:
    """Multiply-accumulates of a layer, dynamic dimensions at 1."""
    shapes = [[abs(size) for size in _dims(port)] for port in inputs]
    results = [[abs(size) for size in _dims(port)] for port in outputs]
    match kind:
        case "Convolution" | "GroupConvolution":
            return work.convolution(shapes[1], results[0])
        case "ConvolutionBackpropData" | "GroupConvolutionBackpropData":
            return work.transposed_convolution(shapes[1], shapes[0])
        case "MatMul":
            return work.contraction(shapes[0], results[0])
        case "LSTMSequence" | "GRUSequence" | "RNNSequence":
            return work.recurrence(shapes[0], shapes[-3:-1])
        case "ScaledDotProductAttention":
            return work.attention(shapes[0], shapes[1], results[0])
        case _:
            return 0


def _dims(port: ElementTree.Element) -> Shape:
    return [int(dim.text or 0) for dim in port.iterfind("dim")]


def _numbers(text: str) -> Shape:
    return [int(number) for number in re.findall(r"\d+", text)]
