"""Operators that no TFLite file can hold, each with the reason; of constants alone they are folded."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.tflite.lowering import TYPES, Call, Op, Refusal, Value


def _because(reason: str) -> Op:
    def lower(call: Call) -> Value:
        del call
        raise Refusal(reason)

    return Op(lower, dtypes=TYPES)


_COUNTED = "how large its result is depends on the data, and sizes must be known when the file is written"
_BRANCHES = "the condition is computed, and both branches would have to be written: take the branch before the export"
_LOOPS = "loops are not written: unroll it, or use the recurrent operators, before the export"
_RANDOM = "it is random, and nothing could be held against the source: draw the numbers outside, as an input"

OPS: Mapping[str, Op] = {
    "Bernoulli": _because(_RANDOM),
    "If": _because(_BRANCHES),
    "Loop": _because(_LOOPS),
    "Multinomial": _because(_RANDOM),
    "RandomNormal": _because(_RANDOM),
    "RandomNormalLike": _because(_RANDOM),
    "RandomUniform": _because(_RANDOM),
    "RandomUniformLike": _because(_RANDOM),
    "Scan": _because(_LOOPS),
    "Unique": _because(_COUNTED),
}
