"""Operators that are not written, each with the reason, and If of a constant condition."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets import legal
from retarget.targets.tflite.call import Call, Op
from retarget.targets.tflite.program import Constant
from retarget.targets.tflite.values import TYPES, Operand, Refusal, Value


def _because(reason: str) -> Op:
    def lower(call: Call) -> Value:
        del call
        raise Refusal(reason)

    return Op(lower, dtypes=TYPES)


def if_(call: Call) -> list[Operand]:
    """The branch that the condition takes is written in its place."""
    condition = call.operand(0)
    if not isinstance(condition, Constant):
        raise Refusal("the condition is computed, and both branches would have to be written: take one before export")
    name = "then_branch" if condition.array().item() else "else_branch"
    results = [each for each in call.lowering.walk(call.attributes[name].as_graph()) if each is not None]
    if len(results) < len(call.node.outputs):
        raise Refusal("what its branch results in hangs on a node that is refused")
    return results


_COUNTED = "how large its result is depends on the data, and sizes must be known when the file is written"
_LOOPS = f"loops are not written: {legal.UNROLL}"
_RANDOM = "it is random, and nothing could be held against the source: draw the numbers outside, as an input"

OPS: Mapping[str, Op] = {
    "Bernoulli": _because(_RANDOM),
    "If": Op(if_, dtypes=TYPES),
    "Loop": _because(_LOOPS),
    "Multinomial": _because(_RANDOM),
    "RandomNormal": _because(_RANDOM),
    "RandomNormalLike": _because(_RANDOM),
    "RandomUniform": _because(_RANDOM),
    "RandomUniformLike": _because(_RANDOM),
    "Scan": _because(_LOOPS),
    "Unique": _because(_COUNTED),
}
