"""An ONNX model as a TensorRT network, and what the network says of itself.

The library is an argument, ``tensorrt`` or ``tensorrt_rtx``. Its objects are not typed, and a layer comes as the
bare ``ILayer``: assigning ``__class__`` is how its Python API downcasts.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir as ir

from retarget import graph
from retarget.facts import Precision
from retarget.targets import work
from retarget.targets.tensorrt.flavour import Flavour

logger = logging.getLogger(__name__)

Reasons = list[tuple[str, str, str]]
"""Nodes that cannot be taken: (node name, operator, reason)."""

Layer = Any
Tensor = Any
"""Objects of the untyped library."""

_PRODUCTS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")
"""Layers that multiply and accumulate."""

_MOVES = frozenset({"IDENTITY", "SHUFFLE", "SQUEEZE", "UNSQUEEZE"})
"""Layers that only move what they are given."""

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
    "FP8": "float8_e4m3fn",
    "INT4": "int4",
    "FP4": "float4_e2m1",
    "E8M0": "float8_e8m0",
}
IO = frozenset({"float32", "float16", "bfloat16", "int8", "int32", "int64", "bool", "uint8"})
"""Types that an input or output may have; the narrower ones exist only between quantize and dequantize."""

_FLOATS = frozenset({"float32", "float16", "bfloat16"})

_LEVELS = {
    "INTERNAL_ERROR": logging.ERROR,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.DEBUG,
    "VERBOSE": logging.DEBUG,
}


_RETYPED = re.compile(r"Defaulting|non-int8|cast(ing)? down", re.IGNORECASE)
"""In warnings that something is not in the type that the model gives it."""


# ---- the library's log


@dataclass
class Log:
    """What a library said, errors and warnings. A process has one for each library, because the library keeps the
    first logger that it is given and ignores all later ones."""

    messages: list[tuple[str, str]] = field(default_factory=list)
    """(severity, text), since ``clear``."""
    sink: object = None
    """The library's own ``ILogger``."""

    def clear(self) -> None:
        self.messages.clear()

    def errors(self) -> list[str]:
        return [readable(text) for severity, text in self.messages if "ERROR" in severity and not _noise(text)]

    def retyped(self) -> list[str]:
        """Warnings that a type was replaced by another one, which would make the artifact not what was asked for."""
        return [readable(text) for severity, text in self.messages if severity == "WARNING" and _RETYPED.search(text)]


@functools.cache
def library_log(library: ModuleType) -> Log:
    """The one log of ``library`` in this process."""
    log = Log()

    def record(_: object, severity: Any, text: str) -> None:
        level = _LEVELS.get(severity.name, logging.ERROR)
        logger.log(level, "%s", text)
        if level > logging.DEBUG:
            log.messages.append((severity.name, text))

    def start(self: object) -> None:
        library.ILogger.__init__(self)

    # The base is known only at run time.
    log.sink = type("Sink", (library.ILogger,), {"__init__": start, "log": record})()
    return log


def load_library(flavour: Flavour) -> ModuleType:
    """Import the library of ``flavour``. Raises ``MissingToolchain`` where engines cannot be built."""
    flavour.require()
    return importlib.import_module(flavour.module)


# ---- parsing


@dataclass(frozen=True)
class Parsed:
    """A network, and the objects that must outlive it: the parser owns its weights."""

    library: ModuleType
    model: ir.Model
    """The model that was parsed: each node has a name."""
    log: Log
    builder: Any
    network: Any
    parser: Any
    reasons: Reasons
    """What the parser cannot take; where there is any, the network is not whole."""

    def inputs(self) -> list[tuple[str, Tensor]]:
        """The model's name and the network's tensor. The network renames an input that is an output as well."""
        tensors = (self.network.get_input(index) for index in range(self.network.num_inputs))
        return list(zip((value.name or "" for value in self.model.graph.inputs), tensors, strict=True))

    def outputs(self) -> list[tuple[str, Tensor]]:
        tensors = (self.network.get_output(index) for index in range(self.network.num_outputs))
        return list(zip((value.name or "" for value in self.model.graph.outputs), tensors, strict=True))

    def operator(self, name: str) -> str:
        """The operator of the ONNX node called ``name``."""
        return next((node.op_type for node in graph.all_nodes(self.model) if node.name == name), "?")

    def layers(self) -> Iterator[Layer]:
        return (self.network.get_layer(index) for index in range(self.network.num_layers))


@contextmanager
def parsed(library: ModuleType, model: ir.Model, scratch: Path | None = None) -> Iterator[Parsed]:
    """``model`` as a strongly typed network. ``scratch``: where files of a large model may be written for the time.

    Raises nothing for a model that the parser refuses: ``Parsed.reasons`` says why.
    """
    log = library_log(library)
    log.clear()
    named = model.clone()
    _name_nodes(named)
    builder = library.Builder(log.sink)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, log.sink)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="parse-") as folder:
        if graph.initializer_bytes(named) > graph.INLINE_LIMIT:
            path = Path(folder) / "model.onnx"
            graph.save(named, path)
            taken = parser.parse_from_file(str(path))
        else:
            ir.external_data.load_to_model(named)
            taken = parser.parse(ir.to_proto(named).SerializeToString())
        reasons = _retyped(log, named) if taken else _reasons(parser, named)
        yield Parsed(library, named, log, builder, network, parser, reasons)


def _name_nodes(model: ir.Model) -> None:
    """Give each node a name of its own: layers and errors are found by it."""
    taken = {node.name for node in graph.all_nodes(model) if node.name}
    seen: set[str] = set()
    for index, node in enumerate(graph.all_nodes(model)):
        name = node.name
        if not name or name in seen:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(name)


def _reasons(parser: Any, model: ir.Model) -> Reasons:
    operators = {node.name: node.op_type for node in graph.all_nodes(model)}
    found: Reasons = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        name, op = error.node_name(), error.node_operator()
        if error.node() < 0:
            name, op = _place(error, operators)
        reason = _reason(error.code().name, error.desc())
        if (name, op, reason) not in found:
            found.append((name, op, reason))
    return found or [("model", "parser", "the parser refused it without a reason")]


def _place(error: Any, operators: Mapping[str | None, str]) -> tuple[str, str]:
    """Name and operator for an error that names no node: an input's, or an importer's (``importScatterElements``)."""
    function = error.func()
    if function == "importInput":
        # Where others carry the source file, it carries the input's name.
        return error.file(), "input"
    op = function.removeprefix("import")
    names = [name for name, operator in operators.items() if operator == op]
    if not names:
        return "model", "?"
    return (names[0] or "?") if len(names) == 1 else f"one of {len(names)} nodes", op


def _retyped(log: Log, model: ir.Model) -> Reasons:
    """The parser takes uint8 codes for int8 ones with a warning, which would be another model."""
    warnings = list(dict.fromkeys(log.retyped()))
    if not warnings:
        return []
    nodes = [
        (node.name or "", node.op_type, warnings[0])
        for node in graph.all_nodes(model)
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}
        and any(value is not None and value.dtype == ir.DataType.UINT8 for value in (*node.inputs, *node.outputs))
    ]
    return nodes or [("model", "?", warning) for warning in warnings]


def _reason(code: str, text: str) -> str:
    """A parser error in words: most of its texts are a C++ assertion."""
    if text == "false":
        return "the parser does not take this operator"
    if "Plugin not found" in text:
        return "the parser does not know this operator, and there is no plugin of its name"
    if "Failed to convert ONNX date type" in text:
        return "its element type has no counterpart in TensorRT"
    lines = [readable(line) for line in text.splitlines() if not line.startswith("Invalid Node") and not _noise(line)]
    return f"{'; '.join(lines) or text} [{code}]"


def readable(text: str) -> str:
    """A message of the library without its function names, source files and assertions."""
    text = re.sub(r"^[\w:]+: Error Code \d+: [\w ]+\((.*)\)$", r"\1", text.strip(), flags=re.DOTALL)
    text = re.sub(r"\[[\w./]+:\d+: \w+\] ", "", text)
    text = re.sub(r"^\w+\.[ch]pp:\d+: ", "", text)
    quoted = re.fullmatch(r'.*&& "(.+)"', text, flags=re.DOTALL)
    text = quoted[1] if quoted else re.sub(r"Assertion failed: .*?: (?=\w)", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"\.? In [\w:()~]+ at \S+:\d+\)?", "", text)
    # Two C string literals that stood beside each other.
    text = text.replace('" "', "")
    return " ".join(text.split())


def _noise(text: str) -> bool:
    """What the libraries say of every model on a machine without a GPU, or of themselves."""
    return "cudaError 35" in text or "Thread context has not been set" in text


# ---- reading types back


def dtype_of(tensor: Tensor) -> str:
    """The name that specs use of a network tensor's type."""
    return _DTYPES[tensor.dtype.name]


def layer_type(layer: Layer) -> str:
    return str(layer.type.name)


def onnx_node(layer: Layer) -> str | None:
    """The ONNX node that the parser made ``layer`` of; None for what it added itself."""
    match = re.search(r"\[ONNX Layer: (.*?)\]", layer.metadata)
    return match[1] if match else None


def products(network: Parsed) -> Iterator[Layer]:
    """The layers that multiply and accumulate."""
    return (layer for layer in network.layers() if layer_type(layer) in _PRODUCTS)


def precision(network: Parsed, sizes: Mapping[str, int], asked: str) -> Precision:
    """The types of the network, which a strongly typed engine keeps. Symbolic dimensions are taken at ``sizes``.

    A layer computes in int8 if all that it multiplies is dequantized from that: so TensorRT reads Q/DQ.

    ``weights`` and ``activations`` are what most of the multiplying layers' elements and products have. The share is
    weighed with the multiply-accumulates of the ONNX nodes; None where types are mixed and a node's are unknown.
    """
    producers = {
        layer.get_output(index).name: layer for layer in network.layers() for index in range(layer.num_outputs)
    }
    macs = {node.name: graph.macs(node, sizes) for node in graph.all_nodes(network.model)}
    weights: Counter[str] = Counter()
    activations: Counter[str] = Counter()
    counted = True
    for layer in products(network):
        cost = macs.get(onnx_node(layer), 0)
        counted = counted and cost > 0
        activations[_computed(layer, producers)] += max(cost, 1)
        weights.update(_weights(network.library, layer, producers))
    known = len(activations) == 1 or (counted and len(activations) > 1)
    return Precision(
        weights=work.most(weights or _float_constants(network)),
        activations=work.most(activations or _float_outputs(network)),
        io=work.joined(dtype_of(tensor) for _, tensor in network.inputs() + network.outputs()),
        low_precision_share=work.low_precision_share(activations, asked) if known else None,
    )


def _computed(layer: Layer, producers: Mapping[str, Layer]) -> str:
    """The type that ``layer`` multiplies in: that of its codes where both its operands are dequantized."""
    # What a third input adds is no factor.
    codes = [_codes(layer.get_input(index), producers) for index in range(min(layer.num_inputs, 2))]
    if len(codes) == 2 and codes[0] == codes[1] and codes[0] is not None:
        return codes[0]
    return dtype_of(layer.get_input(0))


def _codes(tensor: Tensor, producers: Mapping[str, Layer]) -> str | None:
    """The type that ``tensor`` is dequantized from, through layers that only move it; None if it is not."""
    while tensor.name in producers:
        layer = producers[tensor.name]
        if layer_type(layer) == "DEQUANTIZE":
            return dtype_of(layer.get_input(0))
        if layer_type(layer) not in _MOVES:
            return None
        tensor = layer.get_input(0)
    return None


def _weights(library: ModuleType, layer: Layer, producers: Mapping[str, Layer]) -> dict[str, int]:
    """Type to element count of the constants that ``layer`` multiplies with."""
    found: Counter[str] = Counter()
    for index in range(layer.num_inputs):
        source = _constant(layer.get_input(index), producers)
        if source is not None:
            found[dtype_of(source)] += math.prod(source.shape)
    if not found and layer_type(layer) in {"CONVOLUTION", "DECONVOLUTION"} and layer.num_inputs == 1:
        kind = library.IConvolutionLayer if layer_type(layer) == "CONVOLUTION" else library.IDeconvolutionLayer
        layer.__class__ = kind
        found[str(layer.kernel.dtype)] += layer.kernel.size
    return found


def _constant(tensor: Tensor | None, producers: Mapping[str, Layer]) -> Tensor | None:
    """The constant that ``tensor`` is, through layers that only move it; None if it is none."""
    while tensor is not None and tensor.name in producers:
        layer = producers[tensor.name]
        if layer_type(layer) == "CONSTANT":
            return layer.get_output(0)
        if layer_type(layer) not in {"CAST", "DEQUANTIZE", *_MOVES}:
            return None
        tensor = layer.get_input(0)
    return None


def _float_outputs(network: Parsed) -> Counter[str]:
    found = Counter(
        dtype_of(layer.get_output(index)) for layer in network.layers() for index in range(layer.num_outputs)
    )
    return Counter({dtype: count for dtype, count in found.items() if dtype in _FLOATS})


def _float_constants(network: Parsed) -> Counter[str]:
    found: Counter[str] = Counter()
    for layer in network.layers():
        if layer_type(layer) == "CONSTANT" and dtype_of(layer.get_output(0)) in _FLOATS:
            found[dtype_of(layer.get_output(0))] += math.prod(layer.get_output(0).shape)
    return found
