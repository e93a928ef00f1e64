"""What written files hold and how much they compute in which type, read back from disk.

The weight file has no names: each layer takes what its parameters say, one layer after the other. So it is read as
ncnn's layers do (``load_model`` in ncnn's ``src/layer``), and whatever is over or missing is found.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from retarget.errors import RetargetError
from retarget.facts import Precision
from retarget.targets import work
from retarget.targets.ncnn import sidecar
from retarget.targets.ncnn.files import ALIGNMENT, FLOAT16, FLOAT32, INT8, Line

BYTES = {"float32": 4, "float16": 2, "int8": 1}
TAGS = {FLOAT32: "float32", FLOAT16: "float16", INT8: "int8", 0x0002C056: "float32"}
"""What stands in front of a tagged weight; the last is an older one for floats."""

WORKING = frozenset({"Input", "MemoryData", "Split"})
"""Layers that compute nothing."""

Load: TypeAlias = tuple[int, bool]
"""Elements, and whether a tag stands in front of them."""
TAGGED, RAW = True, False

Kind: TypeAlias = Literal["weights", "constant", "other"]
"""Other are biases and scales."""


@dataclass(frozen=True)
class Stored:
    """An array in the file."""

    layer: Line
    dtype: str
    count: int
    kind: Kind

    @property
    def bytes(self) -> int:
        return self.count * BYTES[self.dtype]


@dataclass(frozen=True)
class Executed:
    """What is in both files. ``shapes``: of blobs by name, rows first; empty where nothing says them."""

    layers: list[Line]
    stored: list[Stored]
    shapes: Mapping[str, tuple[int, ...]]
    io: tuple[str, ...]
    """Types of the inputs' and outputs' blobs."""

    def precision(self, precision: str) -> Precision:
        """Types as they are in the files; ``precision`` says what counts as low. Layers of floats count as float32:
        what a device makes of them is the affair of ncnn's options there."""
        weights = self.weights if self.weights.total() else self.constants
        return Precision(
            weights=work.most(weights),
            activations=work.most(self.computed) if self.computed.total() else "float32",
            io=work.joined(self.io),
            low_precision_share=work.low_precision_share(self.computed, precision),
        )

    @property
    def weights(self) -> Counter[str]:
        """Elements of what layers multiply with, by type."""
        return self._counted("weights")

    @property
    def constants(self) -> Counter[str]:
        """Elements of blobs that are in the file, by type: ncnn's layers take them as floats."""
        return self._counted("constant")

    def _counted(self, kind: Kind) -> Counter[str]:
        counts: Counter[str] = Counter()
        for each in self.stored:
            if each.kind == kind:
                counts[each.dtype] += each.count
        return counts

    @cached_property
    def computed(self) -> Counter[str]:
        """Multiply-accumulates by the type that they are in, at the sizes that the model was lowered for."""
        counts: Counter[str] = Counter()
        held = {each.layer.name: each.dtype for each in self.stored if each.kind == "weights"}
        for layer in self.layers:
            known = all(name in self.shapes for name in (*layer.bottoms, *layer.tops))
            if known and (done := _macs(layer, self.shapes)):
                counts["int8" if _is_int8(layer, held.get(layer.name)) else "float32"] += done
        return counts

    @property
    def operators(self) -> Counter[str]:
        """Layers that compute, by type."""
        return Counter(layer.type for layer in self.layers if layer.type not in WORKING)


def executed(layers: list[Line], weights: Path | None, says: sidecar.Sidecar | None, shapes: Path | None) -> Executed:
    """``shapes``: a `tensor_map`. Raises ``RetargetError`` where the weights are not those of the layers."""
    io: tuple[str, ...] = ()
    if says is not None:
        io = tuple(held.dtype for value in (*says.inputs, *says.outputs) for held in value.blobs)
    held = [] if weights is None else list(stored(layers, weights))
    return Executed(layers, held, {} if shapes is None else _shapes(shapes), io)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        return {each["name"]: tuple(each["shape"]) for each in json.loads(path.read_bytes())["tensors"]}
    except (ValueError, KeyError, TypeError) as error:
        raise RetargetError(f"{path}: not read: {error}", "build the artifact again") from error


# ---- weights


def stored(layers: list[Line], weights: Path) -> Iterator[Stored]:
    """Every weight of the file ``weights``. Raises ``RetargetError`` where they are not those of ``layers``."""
    with weights.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for layer in layers:
            for count, tagged in _loads(layer, weights):
                dtype = _tag(file, layer, weights) if tagged else "float32"
                if dtype == "float32":
                    file.seek(count * 4, os.SEEK_CUR)
                else:
                    file.seek(-(-count * BYTES[dtype] // ALIGNMENT) * ALIGNMENT, os.SEEK_CUR)
                if file.tell() > size:
                    raise _mismatch(weights, f"it ends within what '{layer.name}' ({layer.type}) takes")
                constant = layer.type == "MemoryData"
                yield Stored(layer, dtype, count, "constant" if constant else "weights" if tagged else "other")
        if file.tell() != size:
            raise _mismatch(weights, f"{size - file.tell()} bytes are left over")


def _loads(layer: Line, weights: Path) -> list[Load]:
    try:
        loads = list(LOADS[layer.type](layer)) if layer.type in LOADS else []
    except (ValueError, ArithmeticError, LookupError) as error:
        raise _mismatch(weights, f"the numbers of '{layer.name}' ({layer.type}) say of none: {error}") from error
    if any(count < 0 for count, _ in loads):
        raise _mismatch(weights, f"'{layer.name}' ({layer.type}) says that it takes less than nothing")
    return loads


def _tag(file: BinaryIO, layer: Line, weights: Path) -> str:
    tag = int.from_bytes(file.read(4), "little")
    if tag not in TAGS:
        raise _mismatch(weights, f"'{layer.name}' ({layer.type}) finds the tag {tag:#x}, which says of no type")
    return TAGS[tag]


def _mismatch(weights: Path, reason: str) -> RetargetError:
    return RetargetError(f"{weights}: not the weights of the param file: {reason}", "both files come from one build")


def _weighted(size: int, bias: int, dynamic: int | None = None) -> Callable[[Line], Iterator[Load]]:
    """Of a layer whose keys these are: of the size of its weights, whether it has a bias, whether they are computed."""

    def loads(layer: Line) -> Iterator[Load]:
        if dynamic is not None and layer.integer(dynamic):
            return
        outputs = layer.integer(0)
        yield layer.integer(size), TAGGED
        if layer.integer(bias):
            yield outputs, RAW
        yield from _scales(layer)

    return loads


def _scales(layer: Line) -> Iterator[Load]:
    """Of int8: of weights, of the input and, where it gives int8 too, of the output."""
    term = layer.integer(INT8_SCALES) if layer.type in TAKES_INT8 else 0
    if term:
        depthwise = layer.type == "ConvolutionDepthWise"
        channels = layer.integer(GROUP, 1) if depthwise else layer.integer(0)
        yield 1 if depthwise and term in (2, 102) else channels, RAW
        yield 1, RAW
    if term > 100 and layer.type != "InnerProduct":
        yield 1, RAW


INT8_SCALES, GROUP = 8, 7
TAKES_INT8 = ("Convolution", "ConvolutionDepthWise", "InnerProduct")


def _embed(layer: Line) -> Iterator[Load]:
    yield layer.integer(3), TAGGED
    if layer.integer(2):
        yield layer.integer(0), RAW
    if layer.integer(18):
        yield 1, RAW


def _gemm(layer: Line) -> Iterator[Load]:
    a, b, c = (layer.integer(key) for key in (4, 5, 6))
    m, n, k = (layer.integer(key) for key in (7, 8, 9))
    if a:
        yield m * k, TAGGED
    if b:
        yield n * k, TAGGED
    kind = layer.integer(10)
    if c and kind != -1:
        yield {0: 1, 1: m, 2: m, 3: m * n, 4: n}[kind], TAGGED
    if layer.integer(18):
        if a:
            yield m, RAW
        if b:
            yield 1, RAW


def _recurrent(gates: int, biases: int) -> Callable[[Line], Iterator[Load]]:
    def loads(layer: Line) -> Iterator[Load]:
        outputs, size = layer.integer(0), layer.integer(1)
        directions = 2 if layer.integer(2) == 2 else 1
        hidden = layer.integer(3, outputs) if layer.type == "LSTM" else outputs
        yield size, TAGGED
        yield hidden * biases * directions, TAGGED
        yield outputs * hidden * gates * directions, TAGGED
        if outputs != hidden:
            yield hidden * outputs * directions, TAGGED
        if layer.integer(INT8_SCALES):
            yield hidden * gates * directions, RAW
            yield hidden * gates * directions, RAW

    return loads


def _attention(layer: Line) -> Iterator[Load]:
    embedded, size = layer.integer(0), layer.integer(2)
    queries = size // embedded
    for inner in (queries, layer.integer(3, embedded), layer.integer(4, embedded)):
        yield embedded * inner, TAGGED
        yield embedded, RAW
    yield size, TAGGED
    yield queries, RAW
    if layer.integer(18):
        yield from ((count, RAW) for count in (embedded, embedded, embedded, 1))


def _affine(size: int, key: int, count: int = 2) -> Callable[[Line], Iterator[Load]]:
    def loads(layer: Line) -> Iterator[Load]:
        if layer.integer(key, 1):
            yield from ((layer.integer(size), RAW) for _ in range(count))

    return loads


def _plain(*keys: int, default: int = 0) -> Callable[[Line], Iterator[Load]]:
    """As many floats as each of ``keys`` says."""

    def loads(layer: Line) -> Iterator[Load]:
        yield from ((layer.integer(key, default), RAW) for key in keys if layer.integer(key, default) > 0)

    return loads


def _scale(layer: Line) -> Iterator[Load]:
    if (size := layer.integer(0)) > 0:
        yield size, RAW
        if layer.integer(1):
            yield size, RAW


def _dequantize(layer: Line) -> Iterator[Load]:
    yield layer.integer(0, 1), RAW
    if layer.integer(1):
        yield layer.integer(1), RAW


def _requantize(layer: Line) -> Iterator[Load]:
    yield from ((layer.integer(key, 1), RAW) for key in (0, 1))
    if layer.integer(2):
        yield layer.integer(2), RAW


def _memory(layer: Line) -> Iterator[Load]:
    sizes = [size for key in (0, 1, 11, 2) if (size := layer.integer(key))]
    if sizes:
        yield math.prod(sizes), RAW if layer.integer(21, 1) else TAGGED


LOADS: Mapping[str, Callable[[Line], Iterator[Load]]] = {
    **dict.fromkeys(
        ("Convolution", "Convolution1D", "ConvolutionDepthWise", "ConvolutionDepthWise1D"), _weighted(6, 5, 19)
    ),
    **dict.fromkeys(
        ("Deconvolution", "Deconvolution1D", "DeconvolutionDepthWise", "DeconvolutionDepthWise1D"), _weighted(6, 5, 28)
    ),
    **dict.fromkeys(
        ("Convolution3D", "ConvolutionDepthWise3D", "Deconvolution3D", "DeconvolutionDepthWise3D", "DeformableConv2D"),
        _weighted(6, 5),
    ),
    "InnerProduct": _weighted(2, 1),
    "Embed": _embed,
    "Gemm": _gemm,
    "LSTM": _recurrent(4, 4),
    "GRU": _recurrent(3, 4),
    "RNN": _recurrent(1, 1),
    "MultiHeadAttention": _attention,
    "LayerNorm": _affine(0, 2),
    "RMSNorm": _affine(0, 2, 1),
    "GroupNorm": _affine(1, 3),
    "InstanceNorm": _affine(0, 2),
    "BatchNorm": _plain(0, 0, 0, 0),
    "PReLU": _plain(0),
    "Bias": _plain(0),
    "Scale": _scale,
    "Normalize": _plain(3),
    "Padding": _plain(6),
    "Quantize": _plain(0, default=1),
    "Dequantize": _dequantize,
    "Requantize": _requantize,
    "MemoryData": _memory,
}
"""What each type of layer takes of the file, in its order; the others take nothing."""


# ---- compute


def _is_int8(layer: Line, weights: str | None) -> bool:
    """Whether a layer multiplies int8: what it is given is rounded to it, too."""
    if layer.type in TAKES_INT8:
        return layer.integer(INT8_SCALES) != 0
    return layer.type == "Gemm" and layer.integer(18) != 0 and weights == "int8"


def _macs(layer: Line, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Multiply-accumulates of a layer over all rows."""
    inner = [shapes[name] for name in layer.bottoms]
    out = shapes[layer.tops[0]] if layer.tops else ()
    match layer.type.rstrip("123D"):
        case "Convolution" | "ConvolutionDepthWise" | "DeformableConv":
            weight = math.prod(inner[1][1:]) if layer.integer(19) else layer.integer(6)
            return weight // max(layer.integer(0), 1) * math.prod(out)
        case "Deconvolution" | "DeconvolutionDepthWise":
            weight = math.prod(inner[1][1:]) if layer.integer(28) else layer.integer(6)
            return weight // inner[0][1] * math.prod(inner[0])
        case "InnerProduct":
            return layer.integer(2) // max(layer.integer(0), 1) * math.prod(out)
        case "Gemm":
            return _depth(layer, inner) * math.prod(out)
        case "MatMul":
            return inner[0][-1] * math.prod(out)
        case "LSTM" | "GRU" | "RNN":
            taken = list(LOADS[layer.type](layer))
            matrices = (count for place, (count, tagged) in enumerate(taken) if tagged and place != 1)
            return inner[0][0] * inner[0][-2] * sum(matrices)
        case "SDPA":
            return work.attention(inner[0], inner[1], out)
        case "MultiHeadAttention":
            return _projected(layer, inner, out)
        case _:
            return 0


def _depth(layer: Line, inner: list[tuple[int, ...]]) -> int:
    """How many products are summed for an element of a Gemm's result."""
    if layer.integer(4) or layer.integer(5):
        return layer.integer(9)
    return inner[0][-2] if layer.integer(2) else inner[0][-1]


def _projected(layer: Line, inner: list[tuple[int, ...]], out: tuple[int, ...]) -> int:
    """Of the four matrices of a MultiHeadAttention, and of the scores and what they weigh."""
    embedded, queries = layer.integer(0), layer.integer(2) // layer.integer(0)
    sources = inner[: len(inner) - layer.integer(5)] or inner
    asked = math.prod(inner[0][:-1])
    keys = math.prod((sources[1] if len(sources) > 1 else inner[0])[:-1])
    widths = queries, layer.integer(3, embedded), layer.integer(4, embedded)
    projected = embedded * (asked * queries * 2 + keys * (widths[1] + widths[2]))
    return projected + 2 * embedded * asked * keys // max(out[0], 1)
