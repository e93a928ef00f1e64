"""Einsum as transposes, sums and products of matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_letters

from retarget.targets.ncnn.call import NUMBERS, Call, Op
from retarget.targets.ncnn.ops.axes import along
from retarget.targets.ncnn.ops.elementwise import MUL, binary
from retarget.targets.ncnn.ops.matmul import linear, product
from retarget.targets.ncnn.ops.reduction import SUM, reduced
from retarget.targets.ncnn.ops.shape import in_shape, transposed
from retarget.targets.ncnn.rows import aligned
from retarget.targets.ncnn.values import Refusal, Result, Value


@dataclass(frozen=True)
class _Term:
    """A value with a letter for each axis."""

    value: Value
    letters: str

    def sizes(self, letters: str) -> list[int]:
        return [self.value.shape[self.letters.index(letter)] for letter in letters]


def einsum(call: Call) -> Result:
    letters, result = _equation(call)
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


def _equation(call: Call) -> tuple[list[str], str]:
    """The letters of each operand and of the result, with some for what `...` stands for."""
    equation = call.attributes.get_string("equation").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if len(terms) != call.count:
        raise Refusal(f"equation={equation}: it has {len(terms)} operands, and the node {call.count}")
    free = [letter for letter in ascii_letters if letter not in equation]
    counts = [call.rank(index) - len(term.replace("...", "")) for index, term in enumerate(terms)]
    dotted = [count for term, count in zip(terms, counts, strict=True) if "..." in term]
    most = "".join(free[: max(dotted, default=0)])
    terms = [term.replace("...", most[len(most) - count :]) for term, count in zip(terms, counts, strict=True)]
    if not arrow:
        counted = left.replace("...", "")
        result = most + "".join(sorted(each for each in set(counted) - {","} if counted.count(each) == 1))
    result = result.replace("...", most)
    if any(len(set(term)) < len(term) for term in (*terms, result)):
        raise Refusal(f"equation={equation}: a letter twice in one operand is its diagonal, which ncnn does not read")
    for letter in set(equation) & set(ascii_letters):
        sizes = {call.shape(at)[term.index(letter)] for at, term in enumerate(terms) if letter in term}
        if len(sizes) > 1:
            raise Refusal(f"equation={equation}: {letter} is {' and '.join(map(str, sorted(sizes)))}")
    return terms, result


def _product(call: Call, first: _Term, second: _Term, kept: set[str]) -> _Term:
    """Both as one, without the letters that nothing else has."""
    left = _summed(call, first, kept | set(second.letters))
    right = _summed(call, second, kept | set(first.letters))
    shared = [letter for letter in left.letters if letter in right.letters]
    inner = "".join(letter for letter in shared if letter not in kept)
    batch = "".join(letter for letter in shared if letter in kept)
    rows = "".join(letter for letter in left.letters if letter not in shared)
    columns = "".join(letter for letter in right.letters if letter not in shared)
    letters = batch + rows + columns
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
