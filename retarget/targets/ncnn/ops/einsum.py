"""Einsum as transposes, sums and products of matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retarget.targets import equation
from retarget.targets.equation import Contraction
from retarget.targets.ncnn.call import NUMBERS, Call, Op
from retarget.targets.ncnn.ops.axes import along
from retarget.targets.ncnn.ops.elementwise import MUL, binary
from retarget.targets.ncnn.ops.matmul import linear, product
from retarget.targets.ncnn.ops.reduction import SUM, reduced
from retarget.targets.ncnn.ops.shape import in_shape, transposed
from retarget.targets.ncnn.rows import aligned
from retarget.targets.ncnn.values import Result, Value


@dataclass(frozen=True)
class _Term:
    """A value with a letter for each axis."""

    value: Value
    letters: str

    def sizes(self, letters: str) -> list[int]:
        return [self.value.shape[self.letters.index(letter)] for letter in letters]


def einsum(call: Call) -> Result:
    letters, result = equation.terms(call.node, [call.shape(index) for index in range(call.count)], "ncnn")
    if (made := _by_constant(call, letters, result)) is not None:
        return made
    terms = [_Term(call.value(index), each) for index, each in enumerate(letters)]
    sizes = {letter: size for term in terms for letter, size in zip(term.letters, term.value.shape, strict=True)}
    while len(terms) > 1:
        first, second, *rest = terms
        kept = {*result, *(letter for term in rest for letter in term.letters)}
        terms = [_product(call, first, second, kept), *rest]
    last = _summed(call, terms[0], set(result))
    made = transposed(call, last.value, [last.letters.index(letter) for letter in result])
    gone = math.prod(size for letter, size in sizes.items() if letter not in result)
    largest = gone * math.prod(call.largest(index) for index in range(call.count))
    return call.made(call.blob(made), made.shape, largest=largest)


def _by_constant(call: Call, letters: Sequence[str], result: str) -> Result:
    """The product of a computed value and a constant matrix, which is then in the layer; None where it is not that."""
    constant = [index for index in range(call.count) if call.is_constant(index)]
    if call.count != 2 or len(constant) != 1:
        return None
    (held,) = constant
    own, other = letters[held], letters[1 - held]
    inner = "".join(letter for letter in own if letter in other)
    columns = "".join(letter for letter in own if letter not in other)
    rows = "".join(letter for letter in other if letter not in own)
    if not inner or set(inner) & set(result) or set(rows + columns) != set(result):
        return None
    array, value = call.array(held, "it"), _Term(call.value(1 - held), other)
    order = array.transpose([own.index(letter) for letter in columns + inner])
    sizes = [array.shape[own.index(letter)] for letter in columns]
    weight = order.reshape(math.prod(sizes), -1)
    moved = transposed(call, value.value, [other.index(letter) for letter in rows + inner])
    left = in_shape(call, moved, (*value.sizes(rows), weight.shape[1]) if rows else (1, weight.shape[1]))
    made = in_shape(call, linear(call, left, weight), (*value.sizes(rows), *sizes))
    turned = transposed(call, made, [(rows + columns).index(letter) for letter in result])
    largest = weight.shape[1] * call.largest(0) * call.largest(1)
    return call.made(call.blob(turned), turned.shape, largest=largest)


def _product(call: Call, first: _Term, second: _Term, kept: set[str]) -> _Term:
    """Both as one, without the letters that nothing else has."""
    left = _summed(call, first, kept | set(second.letters))
    right = _summed(call, second, kept | set(first.letters))
    into = Contraction.of(left.letters, right.letters, kept)
    batch, rows, inner, columns = into.batch, into.rows, into.inner, into.columns
    letters = into.letters
    if not inner:
        one, other = aligned(call, [_spread(call, term, letters) for term in (left, right)])
        blob, shape = binary(call, MUL, one, other)
        return _Term(Value(shape, one.dtype, blob, blob.rows), letters)
    made = product(call, _matrix(call, left, batch, rows, inner), _matrix(call, right, batch, inner, columns))
    shape = (*left.sizes(batch), *left.sizes(rows), *right.sizes(columns))
    return _Term(in_shape(call, made, shape), letters)


def _matrix(call: Call, term: _Term, batch: str, rows: str, columns: str) -> Value:
    value = transposed(call, term.value, [term.letters.index(letter) for letter in batch + rows + columns])
    sizes = [math.prod(term.sizes(letters)) for letters in (rows, columns)]
    return in_shape(call, value, (*term.sizes(batch), *sizes))


def _spread(call: Call, term: _Term, letters: str) -> Value:
    """With an axis for each of ``letters``, of size 1 where the term has none."""
    value = transposed(call, term.value, [term.letters.index(letter) for letter in letters if letter in term.letters])
    shape = [term.sizes(letter)[0] if letter in term.letters else 1 for letter in letters]
    return in_shape(call, value, shape)


def _summed(call: Call, term: _Term, kept: set[str]) -> _Term:
    """Summed along the axes whose letters are not ``kept``."""
    axes = [axis for axis, letter in enumerate(term.letters) if letter not in kept]
    if not axes:
        return term
    value = call.with_rows(term.value, 1) if 0 in axes else term.value
    left = "".join(letter for letter in term.letters if letter in kept)
    shape = tuple(size for axis, size in enumerate(value.shape) if axis not in axes)
    blob, places = along(call, value, axes)
    made = reduced(call, SUM, blob, places) if places else blob
    return _Term(Value(shape, value.dtype, made, made.rows), left)


OPS: Mapping[str, Op] = {"Einsum": Op(einsum, NUMBERS)}
