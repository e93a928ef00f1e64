"""What one step of a loop computes, and whether that is a cell that ONNX has: GRU, RNN or LSTM.

Frameworks write a cell in many ways: gates in one product or in three, split before or after the bias. So nodes are
not compared: a step is computed with symbols, each vector a sum of products with matrices, and that sum is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

import numpy as np

if TYPE_CHECKING:
    from typing import TypeAlias

    Array: TypeAlias = np.ndarray
    Weights: TypeAlias = "tuple[Array, Array, Array, Array]"
    """Of a gate: what weighs the input and the state, and a bias of each."""


class UnknownCell(Exception):
    """A step computes what is no cell of ONNX, or what is not followed here."""


# ---- vectors: none is equal to another but itself, as each value of the step is computed once


@dataclass(frozen=True, eq=False)
class Source:
    """What a step takes: an input or a state, a vector for each sequence."""

    name: str


@dataclass(frozen=True, eq=False)
class Activation:
    """A function of each number in ``argument``: ``kind`` is an operator of ONNX."""

    kind: str
    argument: Vector


@dataclass(frozen=True, eq=False)
class Product:
    """The numbers of two vectors, one times the other."""

    factors: tuple[Vector, Vector]


@dataclass(frozen=True, eq=False)
class Sum:
    """``bias`` (a number, or one for each place) and vectors, each times a matrix, or times a number."""

    terms: tuple[tuple[Vector, Array | float], ...]
    bias: Array


Vector = Union[Source, Activation, Product, Sum]
_ZERO: Array = np.zeros(())


def _sum(vector: Vector) -> Sum:
    return vector if isinstance(vector, Sum) else Sum(((vector, 1.0),), _ZERO)


def _plain(total: Sum) -> Vector:
    """``total``, or the vector that alone it is."""
    if len(total.terms) == 1 and not total.bias.any():
        vector, factor = total.terms[0]
        if isinstance(factor, float) and factor == 1:
            return vector
    return total


def add(first: Vector, second: Vector) -> Vector:
    """``first + second``."""
    terms = {id(vector): (vector, factor) for vector, factor in _sum(first).terms}
    for vector, factor in _sum(second).terms:
        if id(vector) in terms:
            earlier = terms[id(vector)][1]
            if np.ndim(earlier) != np.ndim(factor):
                raise UnknownCell
            factor = earlier + factor
        terms[id(vector)] = (vector, factor)
    return _plain(Sum(tuple(terms.values()), _sum(first).bias + _sum(second).bias))


def constant(bias: Array) -> Sum:
    """A vector of these numbers, for each sequence the same."""
    if bias.ndim == 2 and len(bias) == 1:
        bias = bias[0]
    if bias.ndim > 1:
        raise UnknownCell
    return Sum((), bias.astype(np.float64))


def scale(vector: Vector, factor: float) -> Vector:
    """Each number of ``vector`` times ``factor``."""
    total = _sum(vector)
    return _plain(Sum(tuple((each, weight * factor) for each, weight in total.terms), total.bias * factor))


def multiply(vector: Vector, matrix: Array) -> Vector:
    """``vector @ matrix``."""
    if isinstance(vector, Sum) or matrix.ndim != 2:
        raise UnknownCell
    return Sum(((vector, matrix.astype(np.float64)),), _ZERO)


def width(vector: Vector) -> int:
    """How many numbers ``vector`` has. Raises ``UnknownCell`` where that cannot be seen."""
    if isinstance(vector, Activation):
        return width(vector.argument)
    if isinstance(vector, Sum):
        for _, factor in vector.terms:
            if not isinstance(factor, float):
                return int(factor.shape[1])
        if vector.bias.ndim:
            return int(vector.bias.shape[0])
    raise UnknownCell


def columns(vector: Vector, which: slice) -> Vector:
    """The numbers of ``vector`` at these places."""
    if isinstance(vector, Activation):
        return Activation(vector.kind, columns(vector.argument, which))
    if not isinstance(vector, Sum):
        raise UnknownCell
    terms = tuple(
        (columns(each, which), factor) if isinstance(factor, float) else (each, factor[:, which])
        for each, factor in vector.terms
    )
    return Sum(terms, vector.bias[which] if vector.bias.ndim else vector.bias)


# ---- cells


@dataclass(frozen=True)
class Cell:
    """A recurrent operator of ONNX: for each gate in its order, what weighs inputs and states, and two biases."""

    operator: str
    inputs: tuple[Array, ...]
    states: tuple[Array, ...]
    input_biases: tuple[Array, ...]
    state_biases: tuple[Array, ...]
    activations: tuple[str, ...]
    reset_after: bool = False

    @property
    def hidden(self) -> int:
        """How many numbers a state has."""
        return int(self.states[0].shape[0])

    def checked(self) -> Cell:
        """This cell. Raises ``UnknownCell`` where matrices are of another size than an operator takes."""
        if {matrix.shape for matrix in self.states} != {(self.hidden, self.hidden)}:
            raise UnknownCell
        if len({matrix.shape for matrix in self.inputs}) != 1 or self.inputs[0].shape[1] != self.hidden:
            raise UnknownCell
        return self


def find_cell(x: Source, states: Sequence[Source], results: Sequence[Vector]) -> tuple[Cell, tuple[int, ...]]:
    """The cell that makes ``results`` of ``states``, and which of these are its own states: hidden, then inner.

    Raises ``UnknownCell``.
    """
    if len(states) == 1:
        find = _find_rnn if isinstance(results[0], Activation) else _find_gru
        return find(x, states[0], results[0]).checked(), (0,)
    if len(states) != 2:
        raise UnknownCell
    order = (0, 1) if isinstance(results[0], Product) else (1, 0)
    cell = _find_lstm(x, *(states[at] for at in order), *(results[at] for at in order))
    return cell.checked(), order


def _find_rnn(x: Source, h: Source, result: Vector) -> Cell:
    weights = _gate(result, x, h)
    return _cell("RNN", [weights], (_kind(result, "Tanh", "Relu", "Sigmoid"),))


def _find_gru(x: Source, h: Source, result: Vector) -> Cell:
    """``z·h + (1 - z)·g``."""
    kept, fresh = _two_products(result)
    if not any(factor is h for factor in kept.factors):
        kept, fresh = fresh, kept
    z = _other(kept, h)
    g = next((factor for factor in fresh.factors if isinstance(factor, Activation)), None)
    if g is None:
        raise UnknownCell
    rest = _other(fresh, g)
    if not isinstance(rest, Sum) or len(rest.terms) != 1 or rest.terms[0][0] is not z or (rest.bias != 1).any():
        raise UnknownCell
    if not isinstance(rest.terms[0][1], float) or rest.terms[0][1] != -1:
        raise UnknownCell
    argument = _sum(g.argument)
    terms = {id(vector): factor for vector, factor in argument.terms}
    resets = [(vector, factor) for vector, factor in argument.terms if isinstance(vector, Product)]
    if len(resets) != 1 or len(terms) != 2 or id(x) not in terms:
        raise UnknownCell
    reset, factor = resets[0]
    r = next((each for each in reset.factors if isinstance(each, Activation)), None)
    if r is None:
        raise UnknownCell
    inner = _other(reset, r)
    if isinstance(factor, float):
        # g = f(x W + b + r·(h R + b'))
        state = _sum(inner)
        if factor != 1 or len(state.terms) != 1 or state.terms[0][0] is not h:
            raise UnknownCell
        weights = (_matrix(terms[id(x)]), _matrix(state.terms[0][1]), argument.bias, state.bias)
    else:
        # g = f(x W + (r·h) R + b)
        if inner is not h:
            raise UnknownCell
        weights = (_matrix(terms[id(x)]), factor, argument.bias, _ZERO)
    for gate in (z, r):
        _kind(gate, "Sigmoid")
    activations = ("Sigmoid", _kind(g, "Tanh", "Relu", "Sigmoid"))
    return _cell("GRU", [_gate(z, x, h), _gate(r, x, h), weights], activations, reset_after=isinstance(factor, float))


def _find_lstm(x: Source, h: Source, c: Source, hidden: Vector, inner: Vector) -> Cell:
    """``c' = f·c + i·g`` and ``h' = o·a(c')``."""
    if not isinstance(hidden, Product):
        raise UnknownCell
    a = next((each for each in hidden.factors if isinstance(each, Activation) and each.argument is inner), None)
    if a is None:
        raise UnknownCell
    o = _other(hidden, a)
    kept, fresh = _two_products(inner)
    if not any(factor is c for factor in kept.factors):
        kept, fresh = fresh, kept
    f = _other(kept, c)
    # Which of the two is the gate cannot be seen where both are of one kind, and matters not then.
    i, g = fresh.factors
    if isinstance(i, Activation) and i.kind != "Sigmoid":
        i, g = g, i
    for gate in (i, o, f):
        _kind(gate, "Sigmoid")
    activations = ("Sigmoid", _kind(g, "Tanh", "Relu", "Sigmoid"), _kind(a, "Tanh", "Relu", "Sigmoid"))
    return _cell("LSTM", [_gate(gate, x, h) for gate in (i, o, f, g)], activations)


def _cell(operator: str, gates: Sequence[Weights], activations: tuple[str, ...], *, reset_after: bool = False) -> Cell:
    inputs, states, input_biases, state_biases = zip(*gates)
    return Cell(operator, inputs, states, input_biases, state_biases, activations, reset_after)


def _gate(vector: Vector, x: Source, h: Source) -> Weights:
    """What weighs ``x`` and ``h`` in the argument of a gate, and their biases."""
    if not isinstance(vector, Activation):
        raise UnknownCell
    total = _sum(vector.argument)
    terms = {id(each): factor for each, factor in total.terms}
    if set(terms) != {id(x), id(h)}:
        raise UnknownCell
    return _matrix(terms[id(x)]), _matrix(terms[id(h)]), total.bias, _ZERO


def _matrix(factor: Array | float) -> Array:
    if isinstance(factor, float):
        raise UnknownCell
    return factor


def _kind(vector: Vector, *known: str) -> str:
    if not isinstance(vector, Activation) or vector.kind not in known:
        raise UnknownCell
    return vector.kind


def _two_products(vector: Vector) -> tuple[Product, Product]:
    if not isinstance(vector, Sum) or vector.bias.any() or len(vector.terms) != 2:
        raise UnknownCell
    (first, one), (second, other) = vector.terms
    if not isinstance(first, Product) or not isinstance(second, Product):
        raise UnknownCell
    if not isinstance(one, float) or not isinstance(other, float) or one != 1 or other != 1:
        raise UnknownCell
    return first, second


def _other(product: Product, factor: Vector) -> Vector:
    """What ``factor`` is multiplied with."""
    first, second = product.factors
    if first is factor:
        return second
    if second is factor:
        return first
    raise UnknownCell
