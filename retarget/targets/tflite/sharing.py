"""Keep LiteRT's kernels from writing over what is still read.

Its memory planner lets some kernels write their result over their operand, and lets a RESHAPE share its operand's
memory. It miscounts the readers where the two meet: of ADD → RESHAPE → MUL the last writes over the sum, though other
operators read that later. What XNNPACK takes, all float32, it plans on its own and rightly; integers are wrong with it,
too (LiteRT 2.3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from retarget.targets.tflite.program import Operator, Options, Program, Tensor

OVERWRITES = frozenset({"ADD", "DIV", "MUL", "SOFTMAX", "SUB"})
"""Kernels that may write over an operand; found by trying all element-wise ones."""

SHARES = frozenset({"EXPAND_DIMS", "RESHAPE", "SQUEEZE"})


def separated(program: Program) -> Program:
    """The same, with a copy in front of each RESHAPE whose operand would be written over too early."""
    makers = {tensor: operator for operator in program.operators for tensor in operator.outputs}
    rooms: dict[Tensor, Tensor] = {}
    reads: dict[Tensor, list[tuple[int, Operator, Tensor]]] = defaultdict(list)
    for place, operator in enumerate(program.operators):
        for tensor in dict.fromkeys(each for each in operator.inputs if each is not None):
            room = rooms.setdefault(tensor, _room(tensor, makers))
            reads[room].append((place, operator, tensor))
    end = len(program.operators)
    for tensor in program.outputs.values():
        reads[_room(tensor, makers)].append((end, Operator("", (), ()), tensor))
    unsafe = {room for room, readers in reads.items() if room in makers and _is_unsafe(makers[room], readers)}
    if not unsafe:
        return program
    operators: list[Operator] = []
    for operator in program.operators:
        source = operator.inputs[0] if operator.code in SHARES else None
        if source is None or rooms[source] not in unsafe:
            operators.append(operator)
            continue
        # The larger of a value and itself is a copy, which a TRANSPOSE that moves nothing would be, too.
        copy = Tensor(
            source.shape,
            source.dtype,
            quantization=source.quantization,
            open_axes=source.open_axes,
            layout=source.layout,
        )
        operators.append(
            Operator("MAXIMUM", (source, source), (copy,), Options("MaximumMinimumOptions"), operator.origin)
        )
        operators.append(
            Operator(operator.code, (copy, *operator.inputs[1:]), operator.outputs, operator.options, operator.origin)
        )
    return Program(operators, program.inputs, program.outputs)


def _room(tensor: Tensor, makers: Mapping[Tensor, Operator]) -> Tensor:
    """The tensor whose memory it has."""
    while (maker := makers.get(tensor)) is not None and maker.code in SHARES and maker.inputs[0] is not None:
        tensor = maker.inputs[0]
    return tensor


def _is_unsafe(maker: Operator, readers: list[tuple[int, Operator, Tensor]]) -> bool:
    """Whether a kernel writes over what ``maker`` made, through one tensor, before it is read through another."""
    if maker.code not in OVERWRITES:
        return False
    return any(
        operator.code in OVERWRITES and any(later > place and other is not tensor for later, _, other in readers)
        for place, operator, tensor in readers
    )
