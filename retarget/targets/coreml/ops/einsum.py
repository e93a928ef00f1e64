"""Einsum as transposes, sums and products of matrices; in the one form that MIL's own operator has, as that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_letters
from typing import Any

from retarget.targets import equation
from retarget.targets.coreml.call import FLOATS, NUMBERS, Call, Op
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.parts import known, reshaped, transposed
from retarget.targets.coreml.values import MOST_AXES, Dim, Refusal
from retarget.targets.equation import Contraction

_OWN = {("abcd", "adce", "abce"), ("abc", "cbd", "abd")}
"""What `einsum` of MIL computes, by letters in the order in which they come up."""


@dataclass(frozen=True)
class _Term:
    """A value with a letter for each axis."""

    value: Var
    letters: str


def einsum(call: Call) -> Var:
    shapes = [[known(dim) for dim in call.shape(index)] for index in range(call.count)]
    letters, result = equation.terms(call.node, shapes, "MIL")
    terms = [_Term(call.var(index), each) for index, each in enumerate(letters)]
    is_known = all(known(dim) is not None for term in terms for dim in term.value.shape)
    # Of open dimensions the runtime refuses its own.
    if len(terms) == 2 and is_known and _is_own(terms, result) and call.dtype(0).name in FLOATS:
        own = f"{letters[0]},{letters[1]}->{result}"
        return call.mil.einsum(values=tuple(term.value for term in terms), equation=own)
    while len(terms) > 1:
        first, second, *rest = terms
        kept = {*result, *(letter for term in rest for letter in term.letters)}
        terms = [_product(call, first, second, kept), *rest]
    made = _summed(call, terms[0], set(result))
    return transposed(call, made.value, [made.letters.index(letter) for letter in result])


def _is_own(terms: Sequence[_Term], result: str) -> bool:
    order = "".join(dict.fromkeys("".join(term.letters for term in terms)))
    plain = str.maketrans(order, ascii_letters[: len(order)])
    return (terms[0].letters.translate(plain), terms[1].letters.translate(plain), result.translate(plain)) in _OWN


def _product(call: Call, first: _Term, second: _Term, kept: set[str]) -> _Term:
    """Both as one, without the letters that nothing else has."""
    left = _summed(call, first, kept | set(second.letters))
    right = _summed(call, second, kept | set(first.letters))
    into = Contraction.of(left.letters, right.letters, kept)
    batch, rows, inner, columns = into.batch, into.rows, into.inner, into.columns
    letters = into.letters
    if len(letters) > MOST_AXES or len(batch) + 2 > MOST_AXES:
        raise Refusal(f"{letters}: a product of so many axes has more than the {MOST_AXES} of Core ML")
    if not inner:
        values = [_spread(call, term, letters) for term in (left, right)]
        return _Term(call.mil.mul(x=values[0], y=values[1]), letters)
    made = call.mil.matmul(x=_matrix(call, left, batch, rows, inner), y=_matrix(call, right, batch, inner, columns))
    shape = [*made.shape[: len(batch)], *_sizes(left, rows), *_sizes(right, columns)]
    if len(rows) != 1 or len(columns) != 1:
        made = reshaped(call, made, shape, left.value, right.value)
    return _Term(made, letters)


def _matrix(call: Call, term: _Term, batch: str, rows: str, columns: str) -> Var:
    value = transposed(call, term.value, [term.letters.index(letter) for letter in batch + rows + columns])
    if len(rows) == len(columns) == 1:
        return value
    sizes = [_times(_sizes(term, letters)) for letters in (rows, columns)]
    return reshaped(call, value, [*_sizes(term, batch), *sizes])


def _times(sizes: Sequence[Dim]) -> Dim:
    """The product, of symbols too."""
    made: Any = 1
    for size in sizes:
        made = made * size
    found: Dim = made
    return found


def _spread(call: Call, term: _Term, letters: str) -> Var:
    """With an axis for each of ``letters``, of size 1 where the term has none."""
    value = transposed(call, term.value, [term.letters.index(letter) for letter in letters if letter in term.letters])
    missing = [axis for axis, letter in enumerate(letters) if letter not in term.letters]
    return call.mil.expand_dims(x=value, axes=missing) if missing else value


def _sizes(term: _Term, letters: str) -> list[Dim]:
    return [term.value.shape[term.letters.index(letter)] for letter in letters]


def _summed(call: Call, term: _Term, kept: set[str]) -> _Term:
    """Summed along the axes whose letters are not ``kept``."""
    axes = [axis for axis, letter in enumerate(term.letters) if letter not in kept]
    if not axes:
        return term
    left = "".join(letter for letter in term.letters if letter in kept)
    return _Term(call.mil.reduce_sum(x=term.value, axes=axes, keep_dims=False), left)


OPS: Mapping[str, Op] = {"Einsum": Op(einsum, NUMBERS)}
