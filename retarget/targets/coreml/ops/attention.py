"""Attention and RotaryEmbedding, of products, softmax and slices; iOS18 has the core of attention itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from retarget.targets.coreml.call import FLOATS, Call, Op
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.parts import concatenated, known, part, reshaped, transposed
from retarget.targets.coreml.values import Refusal, Result, dtype_of

if TYPE_CHECKING:
    from retarget.protocols import Array

_HEADS = 4
"""Axes of [batch, heads, positions, size]; with one less the heads lie side by side in the last."""


@dataclass
class _Attention:
    """One node. Shapes are [batch, heads, positions, size]; every head of keys serves as many heads of queries."""

    call: Call

    @cached_property
    def queries(self) -> Var:
        return self._heads(0, "q_num_heads")

    @cached_property
    def keys(self) -> Var:
        return self._present(1, 4)

    @cached_property
    def values(self) -> Var:
        return self._present(2, 5)

    def _heads(self, operand: int, attribute: str) -> Var:
        call, value = self.call, self.call.var(operand)
        if value.rank == _HEADS:
            call.sizes(operand, [1, 3])
            return value
        heads, (width,) = call.attributes.get_int(attribute), call.sizes(operand, [2])
        batch, positions, _ = value.shape
        return transposed(call, reshaped(call, value, (batch, positions, heads, width // heads)), (0, 2, 1, 3))

    def _present(self, operand: int, past: int) -> Var:
        value = self._heads(operand, "kv_num_heads")
        return concatenated(self.call, [self.call.var(past), value], 2) if self.call.has(past) else value

    @cached_property
    def served(self) -> int:
        """How many heads of queries each head of keys serves."""
        return int(self.queries.shape[1]) // int(self.keys.shape[1])

    @cached_property
    def scale(self) -> float:
        return self.call.attributes.get_float("scale", 1 / math.sqrt(int(self.queries.shape[3])))

    # ---- what may be looked at

    @cached_property
    def seen(self) -> Var | None:
        """Whether each query may look at each key by the order of their positions; None where that plays no part."""
        call = self.call
        if not call.attributes.get_int("is_causal", 0):
            return None
        past = self._count(call.var(4)) if call.has(4) else 0
        across, down = (self._positions(self._count(value)) for value in (self.keys, self.queries))
        if isinstance(across, np.ndarray) and isinstance(down, np.ndarray) and isinstance(past, int):
            return call.mil.const(val=np.less_equal.outer(across - past, down).T[None, None])
        return call.mil.less_equal(
            x=call.mil.expand_dims(x=across, axes=[0, 1, 2]),
            y=call.mil.expand_dims(x=call.mil.add(x=down, y=past), axes=[0, 1, 3]),
        )

    def _count(self, value: Var) -> int | Var:
        """How many positions there are."""
        if (size := known(value.shape[2])) is not None:
            return size
        shape = self.call.mil.shape(x=value)
        return self.call.mil.squeeze(x=self.call.mil.slice_by_index(x=shape, begin=[2], end=[3]), axes=[0])

    def _positions(self, count: int | Var) -> Array | Var:
        if isinstance(count, int):
            return np.arange(count, dtype=np.int32)
        return self.call.mil.range_1d(start=0, end=count, step=1)

    @cached_property
    def mask(self) -> Var | None:
        """Of four axes, and of all keys: behind its end nothing may be looked at."""
        call = self.call
        if not call.has(3):
            return None
        mask = call.var(3)
        keys, given = known(self.keys.shape[2]), known(mask.shape[-1])
        if keys is not None and given is not None and given < keys:
            pad = [0, 0] * (mask.rank - 1) + [0, keys - given]
            if dtype_of(mask) == np.bool_:
                ones = call.mil.cast(x=mask, dtype="fp32")
                padded = call.mil.pad(x=ones, pad=pad, mode="constant", constant_val=np.float32(0))
                mask = call.mil.cast(x=padded, dtype="bool")
            else:
                mask = call.mil.pad(x=mask, pad=pad, mode="constant", constant_val=-math.inf)
        missing = list(range(_HEADS - mask.rank))
        return call.mil.expand_dims(x=mask, axes=missing) if missing else mask

    # ---- in one, from iOS18 on

    @property
    def is_whole(self) -> bool:
        """Whether MIL's operator computes this node: it has no cap, no groups, one mask, and shows no scores."""
        call = self.call
        shown = len(call.outputs) > 3 and call.outputs[3]
        is_plain = not shown and call.attributes.get_float("softcap", 0.0) <= 0 and self.served == 1
        # With a mask of open dimensions it fails when it runs.
        masks = [mask for mask in (self.mask, self.seen) if mask is not None]
        is_known = all(known(dim) is not None for mask in masks for dim in mask.shape)
        return call.ios >= 18 and is_plain and is_known and len(masks) < 2

    def whole(self) -> Var:
        call, mask = self.call, self.mask if self.seen is None else self.seen
        factor = self.scale * math.sqrt(int(self.queries.shape[3]))
        queries = self.queries if math.isclose(factor, 1, rel_tol=1e-6) else call.mil.mul(x=self.queries, y=factor)
        made = call.mil.scaled_dot_product_attention(query=queries, key=self.keys, value=self.values, attn_mask=mask)
        if self.mask is None:
            return made
        if dtype_of(self.mask) == np.bool_:
            ones = call.mil.cast(x=self.mask, dtype="fp32")
            most = call.mil.reduce_max(x=ones, axes=[-1], keep_dims=True)
            return self._unless(call.mil.equal(x=most, y=np.float32(0)), made)
        return self._unless(self._is_never(self.mask), made)

    def _is_never(self, scores: Var) -> Var:
        most = self.call.mil.reduce_max(x=scores, axes=[-1], keep_dims=True)
        return self.call.mil.equal(x=most, y=-math.inf)

    def _unless(self, blind: Var, made: Var) -> Var:
        """A query that may look at nothing gets zeros, where a softmax gives NaN."""
        return self.call.mil.select(cond=blind, a=0.0, b=made)

    # ---- step by step

    def scores(self) -> Var:
        call = self.call
        queries = self._grouped(call.mil.mul(x=self.queries, y=self.scale))
        made = call.mil.matmul(x=queries, y=self.keys, transpose_y=True)
        made = self._spread(made, self.keys.shape[2])
        cap = call.attributes.get_float("softcap", 0.0)
        if cap > 0:
            made = call.mil.mul(x=call.mil.tanh(x=call.mil.mul(x=made, y=1 / cap)), y=cap)
        return made

    def masked(self, scores: Var) -> Var:
        call = self.call
        if self.mask is not None and dtype_of(self.mask) == np.bool_:
            scores = call.mil.select(cond=self.mask, a=scores, b=-math.inf)
        elif self.mask is not None:
            scores = call.mil.add(x=scores, y=self.mask)
        return scores if self.seen is None else call.mil.select(cond=self.seen, a=scores, b=-math.inf)

    def probabilities(self, masked: Var) -> Var:
        made = self.call.mil.softmax(x=masked, axis=-1)
        # By the order of positions alone each query may look at the first key.
        return made if self.mask is None else self._unless(self._is_never(masked), made)

    def product(self, probabilities: Var) -> Var:
        made = self.call.mil.matmul(x=self._grouped(probabilities), y=self.values)
        return self._spread(made, self.values.shape[3])

    def _grouped(self, value: Var) -> Var:
        """The queries that a head of keys serves one behind the other."""
        if self.served == 1:
            return value
        batch, heads, positions, size = value.shape
        shape = (batch, int(heads) // self.served, self.served * positions, size)
        return reshaped(self.call, value, shape, self.queries, self.keys)

    def _spread(self, value: Var, size: object) -> Var:
        shape = (*self.queries.shape[:3], size)
        return value if self.served == 1 else reshaped(self.call, value, shape, self.queries, self.keys)


def attention(call: Call) -> list[Result]:
    attributes = call.attributes
    if call.has(6):
        raise Refusal("nonpad_kv_seqlen: how many keys count is computed")
    if attributes.get_int("softmax_precision", 1) not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        raise Refusal("softmax_precision: it is computed in float32 and float16 alone")
    if any(attributes.get_int(name, -1) >= 0 for name in ("left_window_size", "right_window_size")):
        raise Refusal("left_window_size, right_window_size: only whole sequences are attended to")
    node, mode = _Attention(call), attributes.get_int("qk_matmul_output_mode", 0)
    shown: Var | None = None
    if node.is_whole:
        made = node.whole()
    else:
        scores = node.scores()
        masked = node.masked(scores)
        probabilities = node.probabilities(masked)
        made = node.product(probabilities)
        shown = (scores, scores, masked, probabilities)[mode]
        if mode == 0 and attributes.get_float("softcap", 0.0) > 0 and any(call.outputs[3:]):
            raise Refusal("qk_matmul_output_mode=0 with softcap: runtimes differ in whether it is the capped product")
    if call.rank(0) < _HEADS:
        batch, heads, positions, size = made.shape
        turned = transposed(call, made, (0, 2, 1, 3))
        made = reshaped(call, turned, (batch, positions, int(heads) * int(size)))
    return [made, node.keys, node.values, shown]


def rotary_embedding(call: Call) -> Var:
    source, attributes = call.var(0), call.attributes
    has_heads = source.rank == _HEADS
    if not has_heads:
        (width,), heads = call.sizes(0, [2]), attributes.get_int("num_heads")
        source = reshaped(call, source, (*source.shape[:2], heads, width // heads))
    else:
        call.sizes(0, [3])
    whole = int(source.shape[-1])
    size = attributes.get_int("rotary_embedding_dim", 0) or whole
    cosine, sine = (_angles(call, index, 1 if has_heads else 2) for index in (1, 2))
    rotated = part(call, source, -1, slice(0, size))
    if attributes.get_int("interleaved", 0):
        first, second = (part(call, rotated, -1, slice(start, size, 2)) for start in (0, 1))
    else:
        first, second = (part(call, rotated, -1, slice(start, start + size // 2)) for start in (0, size // 2))
    mul = call.mil.mul
    real = call.mil.sub(x=mul(x=first, y=cosine), y=mul(x=second, y=sine))
    imaginary = call.mil.add(x=mul(x=first, y=sine), y=mul(x=second, y=cosine))
    if attributes.get_int("interleaved", 0):
        pairs = call.mil.stack(values=[real, imaginary], axis=real.rank)
        made = reshaped(call, pairs, rotated.shape, rotated)
    else:
        made = concatenated(call, [real, imaginary], rotated.rank - 1)
    if size < whole:
        made = concatenated(call, [made, part(call, source, -1, slice(size, whole))], made.rank - 1)
    return made if has_heads else reshaped(call, made, (*made.shape[:2], int(made.shape[2]) * whole))


def _angles(call: Call, index: int, axis: int) -> Var:
    """The cosines or sines of each position, with an axis of size 1 for the heads."""
    table = call.var(index)
    if call.has(3):
        table = call.mil.gather(x=table, indices=call.var(3), axis=0)
    return call.mil.expand_dims(x=table, axes=[axis])


OPS: Mapping[str, Op] = {
    "Attention": Op(attention, FLOATS),
    "RotaryEmbedding": Op(rotary_embedding, FLOATS),
}
