"""Attention as one SDPA, or of products and softmax where a node asks for more, and RotaryEmbedding.

A row is one sample: blobs are [heads, positions, size].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from retarget.targets.ncnn.call import FLOATS, Call, Op
from retarget.targets.ncnn.ops.comparison import above
from retarget.targets.ncnn.ops.elementwise import ADD, MUL, SUB, binary, by_number, joined, mapped
from retarget.targets.ncnn.ops.indexing import gather
from retarget.targets.ncnn.ops.reduction import LARGEST, reduced
from retarget.targets.ncnn.ops.shape import in_shape, transposed
from retarget.targets.ncnn.ops.slices import concatenated, cut
from retarget.targets.ncnn.program import MASK, MOST, NO_HALF, Blob, Param
from retarget.targets.ncnn.values import Refusal, Result, Value

if TYPE_CHECKING:
    from retarget.protocols import Array

HAS_MASK, SCALE = 5, 6
"""Keys of SDPA and of MultiHeadAttention."""

_HEADS = 4
"""Axes of [batch, heads, positions, size]; with one less the heads lie side by side in the last."""


@dataclass
class _Attention:
    """One node. Every head of keys serves as many heads of queries."""

    call: Call

    @cached_property
    def queries(self) -> Value:
        return self._heads(0, "q_num_heads")

    @cached_property
    def keys(self) -> Value:
        return self._present(1, 4)

    @cached_property
    def values(self) -> Value:
        return self._present(2, 5)

    def _heads(self, operand: int, attribute: str) -> Value:
        call, value = self.call, self.call.value(operand)
        if value.rank < _HEADS:
            batch, positions, width = value.shape
            heads = call.attributes.get_int(attribute)
            value = transposed(call, in_shape(call, value, (batch, positions, heads, width // heads)), (0, 2, 1, 3))
        return call.with_rows(value, value.shape[0])

    def _present(self, operand: int, past: int) -> Value:
        call, value = self.call, self._heads(operand, "kv_num_heads")
        if not call.has(past):
            return value
        before = call.with_rows(call.value(past), value.shape[0])
        batch, heads, positions, size = value.shape
        whole = (heads, positions + before.shape[2], size)
        blob = call.add("Concat", [self.row(before), self.row(value)], whole, {0: 1})
        return Value((batch, *whole), value.dtype, blob, blob.rows)

    def row(self, value: Value) -> Blob:
        """[heads, positions, size]"""
        return self.call.view(value, value.row[1:])

    @cached_property
    def scale(self) -> float:
        return self.call.attributes.get_float("scale", 1 / math.sqrt(self.queries.shape[3]))

    @cached_property
    def scaled(self) -> Blob:
        blob = self.row(self.queries)
        return blob if self.scale == 1 else by_number(self.call, MUL, blob, self.scale)

    # ---- what may be looked at

    @cached_property
    def mask(self) -> Array | Value | None:
        """What is added to the scores, [1 or batch, 1 or heads, 1 or queries, keys]: a constant where all of it is one,
        and None where nothing is."""
        call, mask = self.call, self._given()
        if not call.attributes.get_int("is_causal", 0):
            return mask
        past = call.shape(4)[2] if call.has(4) else 0
        queries, keys = self.queries.shape[2], self.keys.shape[2]
        is_seen = np.arange(keys)[None] - past <= np.arange(queries)[:, None]
        order = np.where(is_seen, 0.0, -np.inf).astype(np.float32)[None, None]
        if mask is None:
            return order
        if isinstance(mask, np.ndarray):
            return np.add(mask, order)
        held = Value(order.shape, order.dtype, call.lowering.memory(order, (queries, keys)))
        return self._value(*binary(call, ADD, mask, held))

    def _given(self) -> Array | Value | None:
        call = self.call
        if not call.has(3):
            return None
        keys, (*outer, width) = self.keys.shape[2], call.shape(3)
        shape = (*(1,) * (_HEADS - call.rank(3)), *outer, keys)
        if call.is_constant(3):
            array = call.array(3, "the mask")
            added = np.where(array, 0.0, -np.inf) if array.dtype == np.bool_ else array
            pad = [(0, 0)] * (array.ndim - 1) + [(0, keys - width)]
            return np.pad(added.astype(np.float32), pad, constant_values=-np.inf).reshape(shape)
        value = in_shape(call, call.value(3), (*shape[:3], width))
        if call.dtype(3) == np.bool_:
            lowest = by_number(call, MUL, by_number(call, SUB, call.blob(value), 1.0), MOST)
            blob = call.add("BinaryOp", [lowest], lowest.dims, {0: MUL, 1: 1, 2: 2.0, MASK: NO_HALF})
            value = self._value(blob, value.shape)
        if width < keys:
            parts = [self._three(value), self._never(value, keys - width)]
            blob = call.add("Concat", parts, (*parts[0].dims[:2], keys), {0: 2})
            value = self._value(blob, shape)
        return call.with_rows(value, shape[0])

    def _three(self, mask: Value) -> Blob:
        return self.call.view(mask, (math.prod(mask.row[:2]), *mask.row[2:]))

    def _never(self, mask: Value, count: int) -> Blob:
        shape = (math.prod(mask.row[:2]), mask.row[2], count)
        return self.call.lowering.memory(np.full(shape, -np.inf, np.float32), shape)

    def _value(self, blob: Blob, shape: tuple[int, ...]) -> Value:
        return Value(tuple(shape), np.dtype(np.float32), blob, blob.rows)

    @cached_property
    def added(self) -> Blob | None:
        """The mask as a blob of all queries, [queries, keys] or with all heads in front, and nothing infinite in it."""
        call, mask = self.call, self.mask
        if mask is None:
            return None
        heads, queries, keys = self.queries.shape[1], self.queries.shape[2], self.keys.shape[2]
        if isinstance(mask, np.ndarray) and mask.shape[0] == 1:
            count = 1 if mask.shape[1] == 1 else heads
            whole = np.broadcast_to(mask, (1, count, queries, keys))[0]
            whole = np.clip(whole if count > 1 else whole[0], -MOST, MOST)
            return call.lowering.memory(whole, whole.shape)
        value = self._held(mask)
        blob = call.view(value, value.row[2:] if value.row[1] == 1 else value.row[1:])
        wanted = (queries, keys) if value.row[1] == 1 else (heads, queries, keys)
        if blob.dims != wanted:
            repeats = [want // size for want, size in zip(wanted, blob.dims, strict=True)]
            blob = call.add("Tile", [blob], wanted, {2: repeats})
        return call.add("Clip", [blob], blob.dims, {0: -MOST, 1: MOST, MASK: NO_HALF})

    def _held(self, mask: Array | Value) -> Value:
        if isinstance(mask, Value):
            return mask
        shape = (mask.shape[0], *mask.shape[1:])
        blob = self.call.lowering.memory(mask, (math.prod(shape[:-2]), *shape[-2:]))
        return self.call.with_rows(self._value(blob, shape), shape[0])

    @cached_property
    def sees(self) -> Blob | None:
        """1 for queries that may look at something, 0 for others: [1 or heads, queries, 1]; None if all do."""
        call, mask = self.call, self.mask
        if mask is None or (isinstance(mask, np.ndarray) and bool(np.isfinite(np.max(mask, -1)).all())):
            return None
        # A reduction begins at the lowest finite number, which is not what nothing at all is: that is infinite.
        half = by_number(call, MUL, self._three(self._held(mask)), 0.5)
        return above(call, reduced(call, LARGEST, half, [2]), -0.75 * MOST)

    # ---- in one

    @property
    def is_whole(self) -> bool:
        """Whether SDPA computes this node: it has no cap, and shows no scores."""
        call = self.call
        shown = len(call.outputs) > 3 and call.outputs[3]
        return not shown and call.attributes.get_float("softcap", 0.0) <= 0 and self.scale != 0

    def whole(self) -> Blob:
        """[heads, queries, size]. A factor of what is masked is its own layer: SDPA divides the mask by it, which may
        be infinite then."""
        bottoms = [
            self.row(self.queries) if self.added is None else self.scaled,
            *map(self.row, (self.keys, self.values)),
        ]
        params: dict[int, Param] = {SCALE: self.scale if self.added is None else 1.0}
        if self.added is not None:
            bottoms.append(self.added)
            params[HAS_MASK] = 1
        dims = (*self.queries.shape[1:3], self.values.shape[3])
        return self.seen(self.call.add("SDPA", bottoms, dims, dict(sorted(params.items()))))

    def seen(self, made: Blob) -> Blob:
        return made if self.sees is None else joined(self.call, MUL, made, self.sees)

    # ---- step by step

    @cached_property
    def scores(self) -> Blob:
        """[heads, queries, keys]"""
        call = self.call
        made = self._products(self.scaled, self.keys, is_turned=True)
        cap = call.attributes.get_float("softcap", 0.0)
        if cap <= 0:
            return made
        return by_number(call, MUL, mapped(call, "TanH", by_number(call, MUL, made, 1 / cap)), cap)

    def _products(self, left: Blob, right: Value, *, is_turned: bool) -> Blob:
        """``left`` times ``right``, with the queries that a head of keys serves one behind the other."""
        call = self.call
        (heads, queries, size), groups = left.dims, right.shape[1]
        one = call.lowering.reshaped(left, (groups, heads // groups * queries, size), call.node.name or "")
        other = self.row(right)
        width = other.dims[1 if is_turned else 2]
        made = call.add("MatMul", [one, other], (*one.dims[:2], width), {0: 1} if is_turned else {})
        return call.lowering.reshaped(made, (heads, queries, width), call.node.name or "")

    @cached_property
    def probabilities(self) -> Blob:
        call = self.call
        masked = self.scores if self.added is None else self._plus(self.scores, self.added)
        return self.seen(call.add("Softmax", [masked], masked.dims, {0: 2, 1: 1}))

    def masked(self) -> Blob:
        """The scores with infinities where nothing may be looked at."""
        return self.scores if self.mask is None else self._plus(self.scores, self._three(self._held(self.mask)))

    def _plus(self, scores: Blob, mask: Blob) -> Blob:
        whole = (
            mask
            if len(mask.dims) == 3
            else self.call.lowering.reshaped(mask, (1, *mask.dims), self.call.node.name or "")
        )
        return joined(self.call, ADD, scores, whole)

    def by_steps(self) -> Blob:
        return self._products(self.probabilities, self.values, is_turned=False)


def attention(call: Call) -> list[Result]:
    attributes = call.attributes
    if call.has(6):
        raise Refusal("nonpad_kv_seqlen: how many keys count is computed")
    if attributes.get_int("softmax_precision", 1) not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        raise Refusal("softmax_precision: it is computed in float32 alone")
    if any(attributes.get_int(name, -1) >= 0 for name in ("left_window_size", "right_window_size")):
        raise Refusal("left_window_size, right_window_size: only whole sequences are attended to")
    node, mode = _Attention(call), attributes.get_int("qk_matmul_output_mode", 0)
    batch, heads, queries, _ = node.queries.shape
    size = node.values.shape[3]
    shown: Result = None
    if node.is_whole:
        blob = node.whole()
    else:
        blob = node.by_steps()
        if any(call.outputs[3:]):
            if mode == 0 and attributes.get_float("softcap", 0.0) > 0:
                raise Refusal(
                    "qk_matmul_output_mode=0 with softcap: runtimes differ in whether it is the capped product"
                )
            score = (lambda: node.scores, lambda: node.scores, node.masked, lambda: node.probabilities)[mode]()
            shown = Value((batch, *score.dims), node.queries.dtype, score, score.rows)
    made = Value((batch, heads, queries, size), node.queries.dtype, blob, blob.rows)
    if call.rank(0) < _HEADS:
        made = in_shape(call, transposed(call, made, (0, 2, 1, 3)), (batch, queries, heads * size))
    return [made, node.keys, node.values, shown]


def rotary_embedding(call: Call) -> Result:
    attributes = call.attributes
    value, has_heads = call.value(0), call.rank(0) == _HEADS
    if not has_heads:
        batch, positions, width = value.shape
        heads = attributes.get_int("num_heads", 0)
        value = transposed(call, in_shape(call, value, (batch, positions, heads, width // heads)), (0, 2, 1, 3))
    batch, heads, positions, whole = value.shape
    value = call.with_rows(value, batch)
    size = attributes.get_int("rotary_embedding_dim", 0) or whole
    angles = [call.view(_angles(call, index, batch), (positions, size // 2)) for index in (1, 2)]
    turned = cut(call, value, {3: (0, size)})
    blob = call.view(turned, turned.row[1:])
    params = {0: 1} if attributes.get_int("interleaved", 0) else {}
    blob = call.add("RotaryEmbed", [blob, *angles], blob.dims, params)
    made = Value((batch, heads, positions, size), value.dtype, blob, blob.rows)
    if size < whole:
        made = concatenated(call, [made, cut(call, value, {3: (size, None)})], 3)
    if has_heads:
        return made
    return in_shape(call, transposed(call, made, (0, 2, 1, 3)), (batch, positions, heads * whole))


def _angles(call: Call, index: int, batch: int) -> Value:
    """The cosines or sines of each position, [1 or batch, positions, size]; the batch as rows."""
    if not call.has(3):
        if call.is_constant(index) and not np.ptp(table := call.array(index, "it"), axis=0).any():
            return _shared(call, table[0])
        return call.with_rows(call.value(index), batch)
    if not (call.is_constant(index) and call.is_constant(3)):
        found = gather(replace(call, operands=(call.operand(index), call.operand(3))))
        assert isinstance(found, Value)
        return call.with_rows(found, batch)
    table, places = call.array(index, "it"), call.array(3, "it")
    if not np.ptp(places, axis=0).any():
        return _shared(call, table[places[0]])
    taken = np.ascontiguousarray(table[places])
    return call.with_rows(Value(taken.shape, taken.dtype, call.lowering.memory(taken, taken.shape)), batch)


def _shared(call: Call, angles: Array) -> Value:
    held = np.ascontiguousarray(angles)
    return Value((1, *held.shape), held.dtype, call.lowering.memory(held, held.shape))


OPS: Mapping[str, Op] = {
    "Attention": Op(attention, FLOATS),
    "RotaryEmbedding": Op(rotary_embedding, FLOATS),
}
