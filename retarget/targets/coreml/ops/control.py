"""If, Loop and Scan as MIL's blocks: what is chosen or repeated when the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from retarget import graph
from retarget.targets.coreml.call import ANY, Call, Op, symbols_behind
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.parts import known, length, transposed, unknown
from retarget.targets.coreml.values import NARROW, TYPES, Dim, Open, Operand, Refusal, Result, dtype_of

if TYPE_CHECKING:
    from retarget.protocols import Array

_MOST_TRIPS = np.iinfo(np.int32).max
"""A Loop of more is one that only its condition ends."""


@dataclass(frozen=True)
class _Graph:
    """A graph inside a node."""

    call: Call
    graph: ir.Graph

    def write(self, operands: Sequence[Operand]) -> list[Operand]:
        """Its nodes, here; ``operands`` are its inputs."""
        lowering = self.call.lowering
        count = len(lowering.refusals)
        with lowering.scope():
            lowering.env.update(zip(self.graph.inputs, operands, strict=True))
            made = [value for value in lowering.walk(self.graph) if value is not None]
        if len(lowering.refusals) > count or len(made) < len(self.graph.outputs):
            raise Refusal("there are nodes inside it that cannot be written")
        return made

    def source(self, value: ir.Value) -> ir.Value:
        """What ``value`` is, behind any Identity."""
        node = value.producer()
        while (
            node is not None and node.op_type == "Identity" and node.graph is self.graph and node.inputs[0] is not None
        ):
            value, node = node.inputs[0], node.inputs[0].producer()
        return value


def if_(call: Call) -> Sequence[Result]:
    branches = [_Graph(call, call.attributes[name].as_graph()) for name in ("then_branch", "else_branch")]
    if call.is_constant(0):
        return branches[0 if call.array(0, "the condition").all() else 1].write([])
    made: list[Sequence[Var]] = []

    def branch(index: int) -> Callable[[], Sequence[Var]]:
        def write() -> Sequence[Var]:
            made.append([_inside(call, value) for value in branches[index].write([])])
            _check_same(made[0], made[-1])
            return made[-1]

        return write

    condition = call.var(0)
    condition = call.mil.squeeze(x=condition) if condition.rank else condition
    results = call.mil.cond(pred=condition, _true_fn=branch(0), _false_fn=branch(1))
    return list(results) if isinstance(results, tuple | list) else [results]


def _check_same(one: Sequence[Var], other: Sequence[Var]) -> None:
    for left, right in zip(one, other, strict=True):
        if dtype_of(left) != dtype_of(right) or not _is_same(left.shape, right.shape):
            raise Refusal(f"its branches give {list(left.shape)} and {list(right.shape)}: they must be of one shape")


def _is_same(shape: Sequence[Dim], other: Sequence[Dim]) -> bool:
    """Whether two shapes are said to be the same: one that is open may be any other that is."""
    return len(shape) == len(other) and all(known(one) == known(two) for one, two in zip(shape, other, strict=True))


def loop(call: Call) -> list[Result]:
    body = _Graph(call, call.attributes["body"].as_graph())
    carried = len(body.graph.inputs) - 2
    trips = _trips(call)
    ends = _ends(call, body)
    if trips is None and not ends:
        raise Refusal("it has neither a number of trips nor a condition that ends it")
    condition = _scalar(call, call.var(1)) if ends and call.has(1) else None
    if ends and condition is None:
        condition = call.mil.const(val=True)
    states = [call.var(2 + index) for index in range(carried)]
    stays = [body.source(body.graph.outputs[1 + index]) is body.graph.inputs[2 + index] for index in range(carried)]
    scans = [_Scanned(call, value, trips) for value in body.graph.outputs[1 + carried :]]

    def goes_on(step: Var, *rest: Var) -> Var:
        is_early = None if trips is None else _scalar(call, call.mil.less(x=step, y=trips))
        if not ends:
            assert is_early is not None
            return is_early
        return rest[0] if is_early is None else call.mil.logical_and(x=is_early, y=rest[0])

    def one(step: Var, *rest: Var) -> Sequence[Var]:
        held = list(rest[1:] if ends else rest)
        mine, buffers = held[: stays.count(False)], held[stays.count(False) :]
        given = iter(mine)
        inputs = [state if stay else next(given) for state, stay in zip(states, stays, strict=True)]
        more: Operand = rest[0] if ends else np.array(True)
        more, *after = body.write([_scalar(call, step), more, *inputs])
        moved = [_inside(call, value) for value, stay in zip(after[:carried], stays, strict=True) if not stay]
        rows = [_inside(call, value) for value in after[carried:]]
        written = [scan.written(buffer, row, step) for scan, buffer, row in zip(scans, buffers, rows, strict=True)]
        next_one = [_scalar(call, _inside(call, more))] if ends else []
        return [call.mil.add(x=step, y=1), *next_one, *moved, *written]

    begin = [call.mil.const(val=np.array([0], np.int32)), *([condition] if condition is not None else [])]
    begin += [state for state, stay in zip(states, stays, strict=True) if not stay]
    begin += [scan.empty() for scan in scans]
    step, *made = _while(call, goes_on, one, begin)
    held = iter(made[1:] if ends else made)
    results: list[Result] = [state if stay else next(held) for state, stay in zip(states, stays, strict=True)]
    return [*results, *(scan.read(buffer, step if ends else None) for scan, buffer in zip(scans, held, strict=True))]


def _trips(call: Call) -> int | Var | None:
    """How often a Loop runs at most, a number or a vector of one; None: its condition alone says."""
    if not call.has(0):
        return None
    if not call.is_constant(0):
        trips = call.var(0)
        return trips if trips.rank else call.mil.expand_dims(x=trips, axes=[0])
    (trips,) = call.numbers(0, "the number of trips")
    if trips <= 0:
        raise Refusal("it is never run")
    return trips if trips < _MOST_TRIPS else None


def _ends(call: Call, body: _Graph) -> bool:
    """Whether the condition of a Loop can become false, or be so from the start."""
    if call.has(1) and not (call.is_constant(1) and call.array(1, "the condition").all()):
        return True
    source = body.source(body.graph.outputs[0])
    if source is body.graph.inputs[1]:
        return False
    constant = ir.convenience.get_const_tensor(source)
    return constant is None or not constant.numpy().all()


@dataclass(frozen=True)
class _Scanned:
    """An output of a loop with a row for each of its trips: a buffer that is written row by row."""

    call: Call
    value: ir.Value
    """What the body gives."""
    trips: int | Var | None
    """How many rows there are at most, a number or a vector of one."""

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of the buffer: MIL does not move bool."""
        own = graph.dtype_name(self.value.dtype)
        name = NARROW.get(own) or own
        if name not in TYPES:
            raise Refusal(f"'{self.value.name}' is {own}")
        return np.dtype("int32" if name == "bool" else name)

    def empty(self) -> Var:
        call = self.call
        if self.trips is None:
            raise Refusal(f"'{self.value.name}' has a row for each trip, and how many there are is not known before")
        lengths = [np.array([self.trips], np.int32) if isinstance(self.trips, int) else self.trips, *self._row()]
        if all(isinstance(length, np.ndarray) for length in lengths):
            return call.mil.fill(shape=np.concatenate(lengths), value=self.dtype.type(0))
        return call.mil.fill(shape=call.mil.concat(values=lengths, axis=0), value=self.dtype.type(0))

    def _row(self) -> Iterator[Array | Var]:
        """The lengths of a row, each as a vector of one. One that is open is that of an input of the model."""
        lowering = self.call.lowering
        inputs = [held for value in lowering.model.graph.inputs if isinstance(held := lowering.env[value], Var)]
        for dim in self.value.shape if self.value.shape is not None else [None]:
            size = dim if isinstance(dim, int) else lowering.sizes.get(str(dim and dim.value))
            symbol = None if isinstance(dim, int | None) else lowering.symbols.get(str(dim.value))
            found = length(self.call, symbol, *inputs) if symbol is not None else None
            if size is None and found is None:
                symbols = symbols_behind(self.value, lowering.free)
                raise Open(f"'{self.value.name}', of which each trip gives a row, must have one shape", symbols)
            yield np.array([size], np.int32) if found is None else found

    def written(self, buffer: Var, row: Var, at: Var) -> Var:
        call = self.call
        moved = call.mil.cast(x=row, dtype="int32") if dtype_of(row) == np.bool_ else row
        moved = call.mil.expand_dims(x=moved, axes=[0])
        return call.mil.scatter(data=buffer, indices=at, updates=moved, axis=0, mode="update")

    def read(self, buffer: Var, count: Var | None) -> Var:
        """The rows, of which only the first ``count`` were written if it is given."""
        call, rank = self.call, buffer.rank
        if count is not None:
            end = count
            if rank > 1:
                end = call.mil.concat(values=[count, np.zeros(rank - 1, np.int32)], axis=0)
            mask = [False] + [True] * (rank - 1)
            buffer = call.mil.slice_by_index(x=buffer, begin=[0] * rank, end=end, end_mask=mask)
        is_bool = self.value.dtype == ir.DataType.BOOL
        return call.mil.cast(x=buffer, dtype="bool") if is_bool else buffer


def scan(call: Call) -> list[Result]:
    body, attributes = _Graph(call, call.attributes["body"].as_graph()), call.attributes
    scanned = attributes.get_int("num_scan_inputs")
    carried = call.count - scanned
    outputs = body.graph.outputs[carried:]
    axes_in = _each(attributes.get_ints("scan_input_axes", ()), scanned)
    axes_out = _each(attributes.get_ints("scan_output_axes", ()), len(outputs))
    back_in = _each(attributes.get_ints("scan_input_directions", ()), scanned)
    back_out = _each(attributes.get_ints("scan_output_directions", ()), len(outputs))
    sources = [_moved(call, call.var(carried + index)) for index in range(scanned)]
    axes_in = [axis % source.rank for axis, source in zip(axes_in, sources, strict=True)]
    trips: int | Var | None = known(sources[0].shape[axes_in[0]])
    if trips is None:
        lengths = call.mil.shape(x=sources[0])
        trips = call.mil.slice_by_index(x=lengths, begin=[axes_in[0]], end=[axes_in[0] + 1])
    last = trips - 1 if isinstance(trips, int) else call.mil.sub(x=trips, y=1)
    states = [call.var(index) for index in range(carried)]
    scans = [_Scanned(call, value, trips) for value in outputs]

    def at(step: Var, is_back: int) -> Var:
        return call.mil.sub(x=last, y=step) if is_back else step

    def goes_on(step: Var, *_: Var) -> Var:
        return _scalar(call, call.mil.less(x=step, y=trips))

    def one(step: Var, *held: Var) -> Sequence[Var]:
        slices = []
        for index, (source, axis) in enumerate(zip(sources, axes_in, strict=True)):
            row = call.mil.gather(x=source, indices=at(step, back_in[index]), axis=axis)
            row = call.mil.squeeze(x=row, axes=[axis])
            is_bool = dtype_of(call.var(carried + index)) == np.bool_
            slices.append(call.mil.cast(x=row, dtype="bool") if is_bool else row)
        after = [_inside(call, value) for value in body.write([*held[:carried], *slices])]
        buffers = zip(scans, held[carried:], after[carried:], back_out, strict=True)
        written = [scan.written(buffer, row, at(step, is_back)) for scan, buffer, row, is_back in buffers]
        return [call.mil.add(x=step, y=1), *after[:carried], *written]

    begin = [call.mil.const(val=np.array([0], np.int32)), *states, *(scan.empty() for scan in scans)]
    _, *made = _while(call, goes_on, one, begin)
    results: list[Result] = list(made[:carried])
    for scan_, buffer, axis in zip(scans, made[carried:], axes_out, strict=True):
        rows = scan_.read(buffer, None)
        order = list(range(1, rows.rank))
        order.insert(axis % rows.rank, 0)
        results.append(transposed(call, rows, order))
    return results


def _each(given: Sequence[int], count: int) -> list[int]:
    """An attribute with a number for each of ``count``; zeros where it is not given."""
    return list(given) or [0] * count


def _moved(call: Call, x: Var) -> Var:
    return call.mil.cast(x=x, dtype="int32") if dtype_of(x) == np.bool_ else x


def _while(
    call: Call, goes_on: Callable[..., Var], one: Callable[..., Sequence[Var]], begin: Sequence[Var]
) -> Sequence[Var]:
    """What a loop ends with. It begins with ``begin``."""
    values = tuple(unknown(call, _settled(call, value)) for value in begin)
    made = call.mil.while_loop(_cond=goes_on, _body=one, loop_vars=values)
    results: Sequence[Var] = list(made) if isinstance(made, tuple | list) else [made]
    return results


def _scalar(call: Call, x: Var) -> Var:
    return call.mil.squeeze(x=x) if x.rank else _settled(call, x)


def _inside(call: Call, value: Operand) -> Var:
    """``value`` as a block's output: made in the block, and given once."""
    held = Call(call.lowering, call.node, call.op, (value,))
    return held.mil.identity(x=_settled(held, held.var(0)))


def _settled(call: Call, x: Var) -> Var:
    """A scalar as the one of coremltools' two types for it that a loop is to begin and to end with."""
    return x if x.rank else call.mil.squeeze(x=call.mil.expand_dims(x=x, axes=[0]), axes=[0])


OPS: Mapping[str, Op] = {
    "If": Op(if_, frozenset({"bool"})),
    "Loop": Op(loop, ANY),
    "Scan": Op(scan, ANY),
}
