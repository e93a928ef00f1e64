"""Shape arithmetic → constants, and chains of reshapes → one.

Exporters compute the shape of a Reshape from Shape, Slice, Gather, Concat and the like, for every layer anew.
The shapes of values are known, symbols by name, so most of that is a constant in which 0 copies a dimension and -1 is
the one that is left.

1. An integer vector that is computed from dimensions, all of which are numbers → a constant
2. Reshape(x, computed)                       → Reshape(x, [0, 197, -1, 64])
3. Reshape, Squeeze, Unsqueeze, Flatten on one another  → one Reshape of the first input
4. Reshape, Transpose, Reshape that only hides leading axes from the Transpose  → one Transpose
5. ReduceX(keepdims=1), Reshape that drops the ones     → ReduceX(keepdims=0)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from retarget.passes.rewriting import (
    Rewriting,
    Rule,
    Verdict,
    dims,
    forward,
    initializer,
    ints,
    is_constant,
    node,
    producer,
    rank,
    replace,
    sole_use,
)

Dim: TypeAlias = int | str | None
Vector: TypeAlias = tuple[Dim, ...]

RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
LONGEST = 16
"""Elements of the longest vector that is followed: shapes are short."""


class FoldShapes(Rewriting):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[ir.Value, Vector | None] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self._known = {}
        result = super().call(model)
        self._known = {}
        return result

    def rules(self) -> Mapping[str, Rule]:
        table: dict[str, Rule] = dict.fromkeys((*_EVALUATE, "Shape", "Size"), self._vector)
        table |= dict.fromkeys(RESHAPES, self._reshape)
        return table | {"Expand": self._expand}

    # ---- vectors of dimensions

    def _vector(self, at: ir.Node) -> Verdict:
        out = at.outputs[0]
        vector = self.known(out)
        if vector is None or not all(isinstance(dim, int) for dim in vector):
            return False
        if out.is_graph_output():
            return "a graph output is not replaced by a constant"
        shape = () if rank(out) == 0 else (len(vector),)
        value = initializer(at, out.name or at.op_type, np.array(vector, np.int64).reshape(shape))
        return forward(at, value)

    def known(self, value: ir.Value | None) -> Vector | None:
        """The elements of an integer vector or scalar: numbers, symbols, None for one that is not known."""
        if value is None:
            return None
        if value not in self._known:
            self._known[value] = None  # until it is known: a graph has no cycle, but a broken one may
            self._known[value] = self._evaluate(value)
        return self._known[value]

    def _evaluate(self, value: ir.Value) -> Vector | None:
        if value.dtype != ir.DataType.INT64 or rank(value) not in (0, 1):
            return None
        if is_constant(value):
            numbers = ints(value)
            return tuple(numbers) if numbers is not None and len(numbers) <= LONGEST else None
        maker = value.producer()
        if maker is None or maker.domain or value is not maker.outputs[0]:
            return None
        if maker.op_type == "Shape":
            shape = dims(maker.inputs[0])
            if shape is None:
                return None
            return shape[slice(maker.attributes.get_int("start", 0), _end(maker))]
        evaluate = _EVALUATE.get(maker.op_type)
        if evaluate is None:
            return None
        operands = [self.known(operand) for operand in maker.inputs]
        if any(operand is None for operand in operands):
            return None
        return evaluate(maker, [operand for operand in operands if operand is not None])

    # ---- nodes that take a shape

    def _expand(self, at: ir.Node) -> Verdict:
        shape, source = at.inputs[1], dims(at.inputs[0])
        if shape is None or is_constant(shape) or source is None:
            return False
        target = self._target(at, shape)
        if target is None or len(target) < len(source):
            return False
        source = (1,) * (len(target) - len(source)) + source
        # 1 keeps what is there, whatever it is.
        wanted = [1 if want is not None and want == have else want for want, have in zip(target, source, strict=True)]
        if not all(isinstance(dim, int) for dim in wanted):
            return False
        value = initializer(at, f"{at.outputs[0].name}_shape", np.array(wanted, np.int64))
        replace(at, node("Expand", [at.inputs[0], value], like=at))
        return True

    def _target(self, at: ir.Node, shape: ir.Value | None) -> Vector | None:
        """The shape that ``at`` makes: as computed and, where that is not known, as annotated."""
        computed, annotated = self.known(shape), dims(at.outputs[0])
        if annotated is None:
            return computed
        if computed is None or len(computed) != len(annotated):
            return annotated
        both = zip(computed, annotated, strict=True)
        return tuple(note if want is None or want in (0, -1) else want for want, note in both)

    def _reshape(self, at: ir.Node) -> Verdict:
        if self._vector(at) is True:
            return True
        for rewrite in (self._undo, self._drop_kept_dims, self._transpose_between, self._constant_target):
            verdict = rewrite(at)
            if verdict is not False:
                return verdict
        return False

    def _undo(self, at: ir.Node) -> Verdict:
        """Reshapes that lead back to the shape of a value before them."""
        for source in _sources(at):
            if _must_be_equal(dims(source), dims(at.outputs[0])):
                return forward(at, source)
        return False

    def _drop_kept_dims(self, at: ir.Node) -> Verdict:
        reduce = None if at.inputs[0] is None else at.inputs[0].producer()
        if reduce is None or not reduce.op_type.startswith("Reduce") or reduce.domain or reduce.graph is not at.graph:
            return False
        axes = ints(reduce.inputs[1]) if len(reduce.inputs) > 1 else None
        shape, out = dims(reduce.inputs[0]), dims(at.outputs[0])
        if not reduce.attributes.get_int("keepdims", 1) or axes is None or shape is None or out is None:
            return False
        left = tuple(size for axis, size in enumerate(shape) if axis not in {axis % len(shape) for axis in axes})
        if left != out or None in out or not sole_use(reduce.outputs[0]):
            return False
        made = node(reduce.op_type, reduce.inputs, like=reduce)
        made.attributes.update(reduce.attributes)
        made.attributes["keepdims"] = ir.AttrInt64("keepdims", 0)
        replace(at, made)
        return True

    def _transpose_between(self, at: ir.Node) -> Verdict:
        transpose = producer(at.inputs[0], "Transpose")
        before = producer(transpose.inputs[0], *RESHAPES) if transpose is not None else None
        if transpose is None or before is None or before.inputs[0] is None or before.graph is not at.graph:
            return False
        source, middle, out = dims(before.inputs[0]), dims(transpose.inputs[0]), dims(at.outputs[0])
        if source is None or middle is None or out is None or len(source) != len(out):
            return False
        permutation = transpose.attributes.get_ints("perm", tuple(reversed(range(len(middle)))))
        moved, hidden = len(middle) - 1, len(source) - len(middle) + 1
        tail = source[hidden:]
        if permutation[0] != 0 or hidden < 1 or moved < 1 or None in source or middle[1:] != tail:
            return False
        if out != source[:hidden] + tuple(tail[axis - 1] for axis in permutation[1:]):
            return False
        perm = [*range(hidden), *(axis - 1 + hidden for axis in permutation[1:])]
        replace(at, node("Transpose", [before.inputs[0]], {"perm": perm}, like=transpose))
        return True

    def _constant_target(self, at: ir.Node) -> Verdict:
        """One Reshape by a constant, of the earliest value from which that can be said."""
        is_reshape = at.op_type == "Reshape"
        target = self._target(at, at.inputs[1]) if is_reshape else dims(at.outputs[0])
        sources = _sources(at)
        if target is None or (len(sources) == 1 and (not is_reshape or is_constant(at.inputs[1]))):
            return False
        for source in reversed(sources):
            wanted = as_constant(target, dims(source))
            if wanted is None or (source is sources[0] and is_reshape and is_constant(at.inputs[1])):
                continue
            value = initializer(at, f"{at.outputs[0].name}_shape", np.array(wanted, np.int64))
            replace(at, node("Reshape", [source, value], like=at))
            return True
        return "more than one dimension is neither a number nor its input's"


def _sources(at: ir.Node) -> list[ir.Value]:
    """The input of ``at`` and, nearest first, the inputs of the reshapes before it."""
    found: list[ir.Value] = []
    current: ir.Node | None = at
    while current is not None and current.inputs[0] is not None and current.graph is at.graph and len(found) < LONGEST:
        found.append(current.inputs[0])
        current = producer(current.inputs[0], *RESHAPES)
    return found


def _must_be_equal(source: Vector | None, out: Vector | None) -> bool:
    """Whether two shapes of the same elements are one: all dimensions but one are, so that one is as well."""
    if source is None or out is None or len(source) != len(out):
        return False
    return sum(one is None or one != other or one == 0 for one, other in zip(source, out, strict=True)) <= 1


def as_constant(target: Vector, source: Vector | None) -> list[int] | None:
    """``target`` as numbers, 0 for the dimension of ``source`` at the same place and -1 for one that is left."""
    if any(dim == 0 for dim in target):
        return None  # an empty tensor: 0 would copy
    wanted: list[int] = []
    for axis, dim in enumerate(target):
        if isinstance(dim, int):
            wanted.append(dim)
        elif dim is not None and source is not None and axis < len(source) and source[axis] == dim:
            wanted.append(0)
        else:
            wanted.append(-1)
    return wanted if wanted.count(-1) <= 1 else None


# ---- what operators do to vectors of dimensions


def _end(shape: ir.Node) -> int | None:
    return shape.attributes.get_int("end", 0) if "end" in shape.attributes else None


def _gather(_: ir.Node, operands: Sequence[Vector]) -> Vector | None:
    data, indices = operands
    if any(not isinstance(index, int) or not -len(data) <= index < len(data) for index in indices):
        return None
    return tuple(data[index] for index in indices if isinstance(index, int))


def _slice(_: ir.Node, operands: Sequence[Vector]) -> Vector | None:
    data, numbers = operands[0], operands[1:]
    if any(len(number) != 1 or not isinstance(number[0], int) for number in numbers):
        return None
    start, end = numbers[0][0], numbers[1][0]
    step = numbers[3][0] if len(numbers) > 3 else 1
    if not isinstance(start, int) or not isinstance(end, int) or not isinstance(step, int) or step < 1:
        return None
    return data[start:end:step]


def _concat(_: ir.Node, operands: Sequence[Vector]) -> Vector | None:
    joined = tuple(dim for operand in operands for dim in operand)
    return joined if len(joined) <= LONGEST else None


def _first(_: ir.Node, operands: Sequence[Vector]) -> Vector | None:
    return operands[0]


def _arithmetic(compute: Callable[[int, int], int]) -> Callable[[ir.Node, Sequence[Vector]], Vector | None]:
    def apply(at: ir.Node, operands: Sequence[Vector]) -> Vector | None:
        left, right = operands
        if len(left) != len(right):
            if 1 not in (len(left), len(right)):
                return None
            left, right = left * max(1, len(right) // len(left)), right * max(1, len(left) // len(right))
        if at.op_type == "Div" and 0 in right:
            return None

        def element(one: Dim, other: Dim) -> Dim:
            if isinstance(one, int) and isinstance(other, int):
                return compute(one, other)
            return _symbolic(at.op_type, one, other)

        return tuple(map(element, left, right))

    return apply


def _symbolic(op: str, left: Dim, right: Dim) -> Dim:
    """N * 1, N / 1, N + 0, N - 0 are N; what else is done to a symbol has no name."""
    neutral = 1 if op in ("Mul", "Div") else 0
    if right == neutral:
        return left
    return right if left == neutral and op in ("Mul", "Add") else None


def _truncated(left: int, right: int) -> int:
    """ONNX divides integers towards zero."""
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


_EVALUATE: Mapping[str, Callable[[ir.Node, Sequence[Vector]], Vector | None]] = {
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Identity": _first,
    "Cast": _first,
    "Squeeze": _first,
    "Unsqueeze": _first,
    "Reshape": _first,
    "Add": _arithmetic(lambda left, right: left + right),
    "Sub": _arithmetic(lambda left, right: left - right),
    "Mul": _arithmetic(lambda left, right: left * right),
    "Div": _arithmetic(_truncated),
}
