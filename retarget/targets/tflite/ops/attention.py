"""Attention, RotaryEmbedding and Einsum, of products, softmax and slices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.equation import Contraction
from retarget.targets.tflite.call import Call, Op
from retarget.targets.tflite.program import Constant, Options, Tensor
from retarget.targets.tflite.values import Operand, Refusal, Value

if TYPE_CHECKING:
    from retarget.protocols import Array

_HEADS = 4
"""Axes of [batch, heads, positions, size]; with one less the heads lie side by side in the last."""

_LETTERS = 6
"""The most axes that a TRANSPOSE takes."""


@dataclass
class _Attention:
    """One node. Shapes are [batch, heads, positions, size]; every head of keys serves as many heads of queries."""

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
        if value.rank == _HEADS:
            return value
        batch, positions, width = value.shape
        heads = call.attributes.get_int(attribute)
        return transposed(call, call.reshape(value, (batch, positions, heads, width // heads)), (0, 2, 1, 3))

    def _present(self, operand: int, past: int) -> Value:
        value = self._heads(operand, "kv_num_heads")
        return concatenated(self.call, [self.call.value(past), value], 2) if self.call.has(past) else value

    @cached_property
    def past(self) -> int:
        """How many positions come before the queries' own."""
        return self.call.operand(4).shape[2] if self.call.has(4) else 0

    @cached_property
    def seen(self) -> Array | None:
        """Whether each query may look at each key by the order of their positions; None where that plays no part."""
        if not self.call.attributes.get_int("is_causal", 0):
            return None
        rows, columns = self.queries.shape[2], self.keys.shape[2]
        return np.arange(columns)[None, :] <= np.arange(rows)[:, None] + self.past

    @cached_property
    def bias(self) -> Operand | None:
        """All that is added to the scores.

        Minus infinity is put in by selection: of a sum the builtin kernels would make the lowest number of it.
        """
        call, nothing, never = self.call, Constant.of(0.0, "float32"), Constant.of(-np.inf, "float32")
        if not call.has(3):
            return None if self.seen is None else Constant.of(np.where(self.seen, 0, -np.inf), "float32")
        mask = call.value(3)
        if mask.dtype == np.bool_:
            mask = self._selected(mask, nothing, never)
        if missing := self.keys.shape[2] - mask.shape[-1]:
            pads = call.lowering.constant(Constant.of([[0, 0]] * (mask.rank - 1) + [[0, missing]], "int32"))
            wider = (*mask.shape[:-1], self.keys.shape[2])
            padded: list[Value | Tensor] = [mask, pads, call.lowering.constant(never)]
            mask = call.emit("PADV2", padded, wider, options=Options("PadV2Options"))
        return mask if self.seen is None else self._selected(Constant.of(self.seen), mask, never)

    def _selected(self, which: Operand, one: Operand, other: Operand) -> Value:
        shape = np.broadcast_shapes(which.shape, one.shape, other.shape)
        return self.call.emit("SELECT_V2", [which, one, other], shape, np.float32, Options("SelectV2Options"))

    @cached_property
    def grouped(self) -> tuple[int, ...]:
        """[batch, heads of keys, positions of all queries that they serve]."""
        batch, heads, positions, _ = self.queries.shape
        served = self.keys.shape[1]
        return batch, served, heads // served * positions

    def scores(self) -> Value:
        call, queries = self.call, self.queries
        size = queries.shape[3]
        scale = call.attributes.get_float("scale", 1 / math.sqrt(size))
        scaled = call.reshape(call.binary("MUL", queries, scale), (*self.grouped, size))
        product = batched(call, scaled, self.keys, turned=True)
        made = call.reshape(product, (*queries.shape[:3], self.keys.shape[2]))
        cap = call.attributes.get_float("softcap", 0.0)
        if cap > 0:
            made = call.binary("MUL", call.unary("TANH", call.binary("MUL", made, 1 / cap)), cap)
        return made

    def probabilities(self, scores: Value) -> Value:
        call = self.call
        made = call.unary("SOFTMAX", scores, Options("SoftmaxOptions", {"beta": 1.0}))
        if not call.has(3) and (self.seen is None or self.seen.any(axis=1).all()):
            return made
        # A row that may look at nothing gives zeros, where a softmax gives NaN.
        assert self.bias is not None
        axes, kept = call.ints([len(self.bias.shape) - 1]), (*self.bias.shape[:-1], 1)
        never = call.binary("EQUAL", self.bias, float("-inf"), np.bool_)
        # Not a maximum: that of the builtin kernels begins with the lowest number.
        options = Options("ReducerOptions", {"keepDims": True})
        blind = call.emit("REDUCE_ALL", [never, axes], kept, np.bool_, options)
        if len(kept) < made.rank:
            blind = call.reshape(blind, (1,) * (made.rank - len(kept)) + kept)
        return self._selected(blind, Constant.of(0.0, "float32"), made)


def attention(call: Call) -> list[Value]:
    if call.has(6):
        raise Refusal("nonpad_kv_seqlen: how many keys count is computed")
    if call.attributes.get_int("softmax_precision", 1) != 1:
        raise Refusal("softmax_precision: TFLite computes a softmax in float32")
    if any(call.attributes.get_int(name, -1) >= 0 for name in ("left_window_size", "right_window_size")):
        raise Refusal("left_window_size, right_window_size: only whole sequences are attended to")
    node = _Attention(call)
    scores = node.scores()
    biased = scores if node.bias is None else call.binary("ADD", scores, node.bias)
    probabilities = node.probabilities(biased)
    result = batched(call, call.reshape(probabilities, (*node.grouped, node.keys.shape[2])), node.values, turned=False)
    result = call.reshape(result, (*node.queries.shape[:3], node.values.shape[3]))
    if len(call.operand(0).shape) < _HEADS:
        turned = transposed(call, result, (0, 2, 1, 3))
        result = call.reshape(turned, (*turned.shape[:2], turned.shape[2] * turned.shape[3]))
    shown = (scores, scores, biased, probabilities)[call.attributes.get_int("qk_matmul_output_mode", 0)]
    if call.attributes.get_int("qk_matmul_output_mode", 0) == 0 and call.attributes.get_float("softcap", 0.0) > 0:
        used = len(call.node.outputs) > 3 and bool(call.node.outputs[3].name)
        if used:
            raise Refusal("qk_matmul_output_mode=0 with softcap: runtimes differ in whether it is the capped product")
    return [result, node.keys, node.values, shown]


def rotary_embedding(call: Call) -> Value:
    source = call.value(0)
    attributes = call.attributes
    has_heads = source.rank == _HEADS
    if not has_heads:
        batch, positions, width = source.shape
        heads = attributes.get_int("num_heads")
        source = call.reshape(source, (batch, positions, heads, width // heads))
    size = attributes.get_int("rotary_embedding_dim", 0) or source.shape[-1]
    cosine, sine = (_angles(call, index, 1 if has_heads else 2) for index in (1, 2))
    rotated = _part(call, source, slice(0, size))
    if attributes.get_int("interleaved", 0):
        first, second = (_part(call, rotated, slice(start, size, 2)) for start in (0, 1))
    else:
        first, second = (_part(call, rotated, slice(start, start + size // 2)) for start in (0, size // 2))
    real = call.binary("SUB", call.binary("MUL", first, cosine), call.binary("MUL", second, sine))
    imaginary = call.binary("ADD", call.binary("MUL", first, sine), call.binary("MUL", second, cosine))
    if attributes.get_int("interleaved", 0):
        pairs = [call.reshape(each, (*each.shape, 1)) for each in (real, imaginary)]
        made = call.reshape(concatenated(call, pairs, len(pairs[0].shape) - 1), rotated.shape)
    else:
        made = concatenated(call, [real, imaginary], rotated.rank - 1)
    if size < source.shape[-1]:
        rest = _part(call, source, slice(size, source.shape[-1]))
        made = concatenated(call, [made, rest], made.rank - 1)
    return call.reshape(made, call.operand(0).shape)


def _angles(call: Call, index: int, axis: int) -> Value:
    """The cosines or sines of each position, with an axis of size 1 for the heads."""
    table = call.value(index)
    if call.has(3):
        places = call.value(3)
        shape = (*places.shape, table.shape[-1])
        table = call.emit("GATHER", [table, places], shape, np.float32, Options("GatherOptions", {"axis": 0}))
    return call.reshape(table, (*table.shape[:axis], 1, *table.shape[axis:]))


def _part(call: Call, value: Value, part: slice) -> Value:
    """Every ``part.step``-th of a range along the last axis."""
    rank = value.rank
    kept = range(*part.indices(value.shape[-1]))
    if kept == range(value.shape[-1]):
        return value
    # Of all other axes neither end is said.
    whole = (1 << (rank - 1)) - 1
    bounds = [call.ints([0] * (rank - 1) + [number]) for number in (part.start, part.stop)]
    steps = call.ints([1] * (rank - 1) + [part.step or 1])
    options = Options("StridedSliceOptions", {"beginMask": whole, "endMask": whole})
    return call.emit("STRIDED_SLICE", [value, *bounds, steps], (*value.shape[:-1], len(kept)), options=options)


def einsum(call: Call) -> Value:
    """Of one or two operands without repeated letters: a product of matrices between transposes and reshapes."""
    equation = call.attributes.get_string("equation").replace(" ", "")
    terms, arrow, result = equation.partition("->")
    letters = terms.split(",")
    if "." in equation:
        raise Refusal(f"equation={equation}: the axes behind `...` have no letters")
    if not arrow:
        result = "".join(sorted(letter for letter in set(terms) - {","} if terms.count(letter) == 1))
    if len(letters) > 2 or any(len(set(term)) < len(term) for term in letters):
        raise Refusal(f"equation={equation}: it is written for two operands, with no letter twice in one")
    if max(len(term) for term in (*letters, result)) > _LETTERS:
        raise Refusal(f"equation={equation}: a TRANSPOSE takes {_LETTERS} axes at most")
    sizes = {
        letter: size
        for term, operand in zip(letters, call.operands, strict=True)
        if operand is not None
        for letter, size in zip(term, operand.shape, strict=True)
    }
    values = [
        _summed(call, call.value(index), term, set(result) | set("".join(letters[:index] + letters[index + 1 :])))
        for index, term in enumerate(letters)
    ]
    if len(values) == 1:
        value, term = values[0]
        return transposed(call, value, [term.index(letter) for letter in result])
    (left, left_term), (right, right_term) = values
    into = Contraction.of(left_term, right_term, result)

    def matrix(value: Value, term: str, groups: Sequence[str]) -> Value:
        order = [term.index(letter) for group in groups for letter in group]
        shape = [math.prod(sizes[letter] for letter in group) for group in groups]
        return call.reshape(transposed(call, value, order), shape)

    product = batched(
        call,
        matrix(left, left_term, (into.batch, into.rows, into.inner)),
        matrix(right, right_term, (into.batch, into.inner, into.columns)),
    )
    spread = call.reshape(product, [sizes[letter] for letter in into.letters])
    return transposed(call, spread, [into.letters.index(letter) for letter in result])


def _summed(call: Call, value: Value, term: str, kept: set[str]) -> tuple[Value, str]:
    """``value`` summed along the axes that nothing else has."""
    alone = [axis for axis, letter in enumerate(term) if letter not in kept]
    if not alone:
        return value, term
    left = [axis for axis in range(value.rank) if axis not in alone]
    shape = [value.shape[axis] for axis in left]
    return call.emit("SUM", [value, call.ints(alone)], shape, options=Options("ReducerOptions")), "".join(
        term[axis] for axis in left
    )


def transposed(call: Call, value: Value, perm: Sequence[int]) -> Value:
    """``value`` with its axes as ``perm`` says."""
    if list(perm) == list(range(value.rank)):
        return value
    shape = [value.shape[axis] for axis in perm]
    return call.emit("TRANSPOSE", [value, call.ints(perm)], shape, options=Options("TransposeOptions"))


def concatenated(call: Call, values: Sequence[Value], axis: int) -> Value:
    """``values`` one behind the other along ``axis``."""
    shape = [*values[0].shape]
    shape[axis] = sum(value.shape[axis] for value in values)
    return call.emit("CONCATENATION", values, shape, options=Options("ConcatenationOptions", {"axis": axis}))


def batched(call: Call, left: Value, right: Value, *, turned: bool = False) -> Value:
    """Products of the last two axes, ``right`` with them swapped if it is ``turned``; the others are equal."""
    options = Options("BatchMatMulOptions", {"adjY": turned})
    columns = right.shape[-2 if turned else -1]
    return call.emit("BATCH_MATMUL", [left, right], (*left.shape[:-1], columns), options=options)


OPS: Mapping[str, Op] = {
    "Attention": Op(attention),
    "Einsum": Op(einsum),
    "RotaryEmbedding": Op(rotary_embedding),
}
