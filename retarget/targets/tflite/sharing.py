"""Keep LiteRT's kernels from writing over what is still read.

Its memory planner lets some kernels write their result over an operand, and lets a RESHAPE share its operand's memory.
Before a kernel writes over an operand it counts who reads that, and who reads the tensor whose memory it is; but not
who reads what else has the same memory. Of ADD → RESHAPE → MUL the last writes over the sum, though other operators
read that later, and of RESHAPE → RESHAPE → SOFTMAX the last writes over what the first made. What XNNPACK takes, all
float32, it plans on its own and rightly; integers are wrong with it, too (LiteRT 2.3).
"""

from __future__ import annotations

from collections import Counter, defaultdict

from retarget.targets.tflite.program import Operator, Options, Program, Tensor

OVERWRITES = frozenset({"ADD", "DIV", "MUL", "SOFTMAX", "SUB"})
"""Kernels that may write over an operand; found by trying all element-wise ones."""

SHARES = frozenset({"EXPAND_DIMS", "RESHAPE", "SQUEEZE"})


def separated(program: Program) -> Program:
    """The same, with a copy in front of each RESHAPE whose result a kernel would write over too early."""
    unsafe = _unsafe(program)
    if not unsafe:
        return program
    operators: list[Operator] = []
    for operator in program.operators:
        source = operator.inputs[0] if operator.outputs[0] in unsafe else None
        if source is None:
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


def _unsafe(program: Program) -> set[Tensor]:
    """Results of RESHAPEs that a kernel writes over while what has the same memory is still read.

    Whether a kernel can write over an operand depends on shapes, which are others at other sizes: any of the two may
    be.
    """
    readers: Counter[Tensor] = Counter(program.outputs.values())
    last = dict.fromkeys(program.outputs.values(), len(program.operators))
    for place, operator in enumerate(program.operators):
        for tensor in operator.inputs:
            if tensor is not None:
                readers[tensor] += 1
                last[tensor] = max(last.get(tensor, 0), place)
    rooms: dict[Tensor, set[Tensor]] = {}
    """The tensors whose memory each may have."""
    sharing: dict[Tensor, set[Tensor]] = defaultdict(set)
    found: set[Tensor] = set()
    makers = {tensor: operator.code for operator in program.operators for tensor in operator.outputs}
    for place, operator in enumerate(program.operators):
        made, taken = operator.outputs[0], [tensor for tensor in operator.inputs[:2] if tensor is not None]
        rooms[made] = {made}
        if operator.code in SHARES:
            rooms[made] = rooms.get(taken[0], {taken[0]})
        elif operator.code in OVERWRITES:
            for tensor in taken:
                free = {room for room in rooms.get(tensor, {tensor}) if readers[room] == readers[tensor] == 1}
                rooms[made] = rooms[made] | free
                others = (other for room in free for other in sharing[room] - {tensor})
                if makers.get(tensor) in SHARES and any(last.get(other, 0) > place for other in others):
                    found.add(tensor)
        for room in rooms[made]:
            sharing[room] |= {room, made}
    return found
