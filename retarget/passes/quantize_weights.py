"""Store weights in 8 or 4 bits, in blocks that share a scale; activations stay float, so no data is needed.

Given::

    y = MatMul(x, w)                    # w: float [K, N]
    z = Gather(table, ids)              # table: float [V, D]

Result::

    y = MatMul(x, DequantizeLinear<axis = 0, block_size = 32>(codes, scales))       # int4 [K, N], float [K/32, N]
    z = Gather(DequantizeLinear<axis = 0>(codes, scales), ids)                      # int8 [V, D], float [V]

Or, without blocks, where the runtime has kernels that round activations as they come (``block`` None)::

    y = Conv(x, DequantizeLinear<axis = 0>(codes, scales))                          # int8 [M, C, ...], float [M]
    y = MatMul(x, DequantizeLinear<axis = 1>(codes, scales))                        # int8 [K, N], float [N]

The form with blocks is the one that every runtime multiplies by without expanding the weights first: ONNX Runtime
makes a MatMulNBits of it, OpenVINO a product with compressed weights, TensorRT keeps the codes. So blocks lie along K,
a Gemm's weight is turned to [K, N] (ONNX Runtime fuses no other), and K must be a whole number of blocks (OpenVINO
reads no other). A table has 8 bits always: no runtime but OpenVINO picks rows of 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from retarget.errors import RetargetError
from retarget.facts import KeptNode
from retarget.passes.library import LiftConstants
from retarget.passes.rewriting import computed, graphs, initializer, insert, is_constant, node, rewire

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from retarget.protocols import Array

SMALL = 1 << 10
"""Weights of fewer elements stay float: what they would save is less than what their nodes cost."""

NARROWEST = 16
"""The smallest block, that of MatMulNBits."""

_CHUNK = 1 << 20
"""Elements of a weight that are looked at together."""

_DIVISORS = (7.0, 7.5, 8.0, 8.5, 9.0, 9.5, 10.0, 11.0)
"""What a block's largest magnitude becomes in 4 bits: beyond 7 or 8 it is clipped, and the others are rounded less."""

_TINY = np.finfo(np.float32).tiny
"""The smallest scale: below it floats lose their digits."""

_CHANNELS = {"Conv": 0, "ConvTranspose": 1}
"""Axis of the output channels in the weights of operators that have kernels for weights of one scale a channel."""

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "GRU", "LSTM", "RNN"})
"""Operators with weights that no runtime takes in blocks: it would expand them when it loads, or at each run."""


class QuantizeWeights(ir.passes.InPlacePass):
    """See the module. ``block``: how many weights along K share a scale, a power of two from 16 on; a K that it does
    not divide gets the largest that does. None: all weights of an output channel share one, in 8 bits.

    ``keep`` names nodes and operators whose weights stay float. After a run ``quantized`` names the nodes whose weights
    are codes now, ``kept`` those with float weights, with the reason.
    """

    def __init__(self, bits: Literal[4, 8] = 8, block: int | None = 32, keep: Collection[str] = ()) -> None:
        super().__init__()
        if bits not in (4, 8):
            raise RetargetError(f"bits: weights cannot be stored in {bits} bits", "4 or 8")
        if block is None and bits != 8:
            raise RetargetError(f"bits: weights of {bits} bits need blocks", "give block, such as 128")
        if block is not None and (block < NARROWEST or block & (block - 1)):
            raise RetargetError(f"block: {block} weights cannot share a scale", f"a power of two from {NARROWEST} on")
        self.bits: Literal[4, 8] = bits
        self.block = block
        self.keep = frozenset(keep)
        self.quantized: tuple[str, ...] = ()
        self.kept: tuple[KeptNode, ...] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = LiftConstants()(model).modified
        quantized: list[str] = []
        kept: list[KeptNode] = []
        stored: dict[tuple[ir.Graph, ir.Value, int | None, bool, bool], _Stored] = {}
        for graph in graphs(model):
            for each in list(graph):
                weight = _weight(each)
                if weight is None:
                    continue
                name = each.name or each.outputs[0].name or ""
                reason = self._reason(each, weight)
                if reason is not None:
                    kept.append(KeptNode(name=name, op=each.op_type, reason=reason))
                    continue
                quantized.append(name)
                # As a table, a factor and a turned factor a weight has codes of its own.
                key = graph, weight, _CHANNELS.get(each.op_type), each.op_type == "Gather", _is_turned(each)
                if key not in stored:
                    stored[key] = self._stored(each, weight)
                _read_from(each, weight, stored[key])
        self.quantized, self.kept = tuple(quantized), tuple(kept)
        return ir.passes.PassResult(model, modified or bool(quantized))

    def _reason(self, each: ir.Node, weight: ir.Value) -> str | None:
        """Why the weight of ``each`` stays float, None if it does not."""
        assert weight.const_value is not None
        shape = weight.const_value.shape.numpy()
        if {each.name, each.op_type} & self.keep:
            return "it is to be kept"
        if each.op_type in _WEIGHTED and (self.block is not None or each.op_type not in _CHANNELS):
            return f"no runtime computes {each.op_type} with weights in few bits"
        if each.op_type == "Gather" and self.block is None:
            return "its rows are picked and not multiplied"
        if weight.dtype != ir.DataType.FLOAT:
            return "its weight is not float32"
        if weight.is_graph_output():
            return "its weight is an output of the model"
        if math.prod(shape) < SMALL:
            return f"its weight is small: {math.prod(shape)} elements"
        if each.op_type in _CHANNELS:
            return _without_kernel(each, shape)
        if len(shape) != 2:
            return f"its weight has {len(shape)} axes, not 2"
        if each.op_type == "Gather":
            return None if each.attributes.get_int("axis", 0) == 0 else "it picks columns, and scales are those of rows"
        if each.inputs[1] is not weight:
            return "its weight is the left operand"
        if each.attributes.get_int("transA", 0):
            return "its left operand is transposed"
        if self.bits == 4 and _inner(each, shape) % NARROWEST:
            return f"its {_inner(each, shape)} inputs are no whole number of blocks"
        return None

    def _stored(self, each: ir.Node, weight: ir.Value) -> _Stored:
        if each.op_type == "Gather":
            return _lines(each, weight, 0)
        if each.op_type in _CHANNELS:
            return _lines(each, weight, _CHANNELS[each.op_type])
        return self._codes(each, weight)

    def _codes(self, each: ir.Node, weight: ir.Value) -> _Stored:
        """Codes [K, N] and scales [K / block, N] of a product's weight; one scale a column where no block divides K."""
        tensor = weight.const_value
        assert tensor is not None
        bits, turned = self.bits, _is_turned(each)
        inner, outer = tensor.shape.numpy()[::-1] if turned else tensor.shape.numpy()
        block = math.gcd(inner, self.block or 1)
        if block < NARROWEST:
            block = inner

        def laid(array: Array) -> Array:
            return array.T if turned else array

        scales = np.empty((inner // block, outer), np.float32)
        weights = laid(tensor.numpy())
        for columns in _columns(inner, outer):
            scales[:, columns] = block_scales(_blocks(weights, columns, block), bits)

        def encode(array: Array) -> Array:
            made = np.empty((inner, outer), np.int8)
            for columns in _columns(inner, outer):
                codes = _rounded(_blocks(laid(array), columns, block), scales[:, columns], bits)
                made[:, columns] = codes.reshape(inner, -1)
            return made.astype(ml_dtypes.int4) if bits == 4 else made

        dtype = ir.DataType.INT4 if bits == 4 else ir.DataType.INT8
        codes = initializer(each, f"{weight.name}_int{bits}", computed(weight, encode, (inner, outer), dtype))
        if block == inner:
            return _Stored(codes, initializer(each, f"{weight.name}_scales", scales[0]), {"axis": 1})
        blocks = initializer(each, f"{weight.name}_scales", scales)
        return _Stored(codes, blocks, {"axis": 0, "block_size": block})


@dataclass(frozen=True)
class _Stored:
    """A weight's codes and scales, and the attributes of what dequantizes them."""

    codes: ir.Value
    scales: ir.Value
    attributes: Mapping[str, int]


def _read_from(each: ir.Node, weight: ir.Value, stored: _Stored) -> None:
    """Let ``each`` read ``weight`` from its codes. Every use has a node of its own: runtimes fuse no other."""
    made = node("DequantizeLinear", [stored.codes, stored.scales], stored.attributes, like=each)
    made.name = f"{each.name}_weights"
    expanded = insert(each, made)
    expanded.name, expanded.type = f"{weight.name}_of_{each.name}", ir.TensorType(ir.DataType.FLOAT)
    expanded.shape = stored.codes.shape
    if _is_turned(each):
        each.attributes["transB"] = ir.AttrInt64("transB", 0)
    rewire(each, 0 if each.op_type == "Gather" else 1, expanded)


def block_scales(blocks: NDArray[np.float32], bits: Literal[4, 8]) -> NDArray[np.float32]:
    """The scale [G, n] of each block of ``blocks`` [G, block, n]; a block of zeros gets 1.

    In 8 bits the largest magnitude is the last integer. In 4 bits it is the scale of the smallest squared error that
    was found: for codes ``c`` of weights ``w`` that is <c, w> / <c, c>, and the error is |w|^2 - <c, w>^2 / <c, c>.
    """
    largest = np.abs(blocks).max(1)
    largest[largest == 0] = 1
    scales: NDArray[np.float32] = np.maximum(largest / np.float32(127), _TINY)
    if bits == 8:
        return scales
    best = np.zeros_like(largest)
    for divisor in _DIVISORS:
        codes = _rounded(blocks, np.maximum(largest / np.float32(divisor), _TINY), bits)
        # Each block as if its largest magnitude were 1: squares of small weights would vanish.
        along = np.einsum("gbn,gbn->gn", codes, blocks / largest[:, None])
        norm = np.maximum(np.einsum("gbn,gbn->gn", codes, codes), np.float32(1))
        better = along * along > best * norm
        best = np.where(better, along * along / norm, best)
        scales = np.where(better, along / norm * largest, scales)
    return np.maximum(scales, _TINY)


def _rounded(blocks: NDArray[np.float32], scales: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """The codes of ``blocks`` [G, block, n] in units of ``scales`` [G, n], as floats."""
    highest = 2 ** (bits - 1) - 1
    lowest = -highest - 1 if bits == 4 else -highest
    codes: NDArray[np.float32] = np.clip(np.rint(blocks / scales[:, None]), lowest, highest)
    return codes


def _blocks(array: Array, columns: slice, block: int) -> NDArray[np.float32]:
    """The ``columns`` of ``array`` [K, N] as [K / block, block, n]."""
    part = np.asarray(array[:, columns], np.float32)
    return part.reshape(-1, block, part.shape[1])


def _columns(inner: int, outer: int) -> Iterator[slice]:
    """The columns of a weight [inner, outer], as many at a time as make a chunk."""
    step = max(_CHUNK // inner, 1)
    for start in range(0, outer, step):
        yield slice(start, min(start + step, outer))


def _weight(each: ir.Node) -> ir.Value | None:
    """The float weight of a node, of a product its one constant factor; None if it has none."""
    if each.domain or each.op_type not in {"Gather", "Gemm", "MatMul", *_WEIGHTED}:
        return None
    places = (0,) if each.op_type == "Gather" else (1, 0) if each.op_type in {"Gemm", "MatMul"} else (1,)
    constants = [value for at in places if is_constant(value := each.inputs[at])]
    weight = constants[0] if len(constants) == 1 else None
    return weight if weight is not None and weight.dtype is not None and weight.dtype.is_floating_point() else None


def _inner(each: ir.Node, shape: Sequence[int]) -> int:
    """K, how many numbers each product of ``each`` adds up."""
    return shape[1] if _is_turned(each) else shape[0]


def _is_turned(each: ir.Node) -> bool:
    """Whether ``each`` is a Gemm with a weight [N, K]."""
    return each.op_type == "Gemm" and bool(each.attributes.get_int("transB", 0))


def _without_kernel(each: ir.Node, shape: Sequence[int]) -> str | None:
    """Why no kernel computes this convolution with codes, None if one does."""
    if not 3 <= len(shape) <= 4:
        return f"its weight has {len(shape)} axes, not 3 or 4"
    if each.op_type == "ConvTranspose" and each.attributes.get_int("group", 1) != 1:
        return "it is a transposed convolution in groups"
    return None


def _lines(each: ir.Node, weight: ir.Value, axis: int) -> _Stored:
    """Codes of the weight's own shape in 8 bits, and a scale for each index of ``axis``."""
    tensor = weight.const_value
    assert tensor is not None
    array = tensor.numpy()
    others = tuple(at for at in range(array.ndim) if at != axis)
    largest = np.maximum(array.max(others), -array.min(others)).astype(np.float32)
    scales = np.maximum(np.where(largest == 0, 1, largest) / np.float32(127), _TINY)
    along = [-1 if at == axis else 1 for at in range(array.ndim)]

    def encode(array: Array) -> Array:
        codes: NDArray[np.int8] = np.rint(np.asarray(array, np.float32) / scales.reshape(along)).astype(np.int8)
        return codes

    shape = tensor.shape.numpy()
    codes = initializer(each, f"{weight.name}_int8", computed(weight, encode, shape, ir.DataType.INT8))
    return _Stored(codes, initializer(each, f"{weight.name}_scales", scales), {"axis": axis})
