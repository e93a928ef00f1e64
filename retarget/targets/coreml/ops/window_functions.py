"""Hann, Hamming and Blackman windows: constants, of as many numbers as the model says that there are."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.coreml.call import Call, Op
from retarget.targets.coreml.ops.elementwise import INTEGERS
from retarget.targets.coreml.values import Refusal, Result
from retarget.targets.folding import window


def windowed(call: Call) -> Result:
    """What ONNX Runtime computes."""
    made = window(call.node, (call.declared() or (None,))[0])
    if made is None:
        raise Refusal("its size is computed, and the model does not say how long its result is")
    return made


OPS: Mapping[str, Op] = {
    "BlackmanWindow": Op(windowed, INTEGERS),
    "HammingWindow": Op(windowed, INTEGERS),
    "HannWindow": Op(windowed, INTEGERS),
}
