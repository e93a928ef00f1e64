"""Hann, Hamming and Blackman windows: constants, of as many numbers as the model says that there are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from retarget.targets.coreml.call import Call, Op
from retarget.targets.coreml.ops.elementwise import INTEGERS
from retarget.targets.coreml.values import Refusal, Result
from retarget.targets.folding import folded


def window(call: Call) -> Result:
    """What ONNX Runtime computes, also where the size is an input: it must be what the result's shape is then."""
    declared, source = call.declared(), call.node.inputs[0]
    if declared is None or source is None or source.dtype is None:
        raise Refusal("its size is computed, and the model does not say how long its result is")
    computed = folded(call.node, {source.name or "": np.asarray(declared[0], source.dtype.numpy())})
    if computed is None:
        raise Refusal("the type of its size is not known")
    return computed[0]


OPS: Mapping[str, Op] = {
    "BlackmanWindow": Op(window, INTEGERS),
    "HammingWindow": Op(window, INTEGERS),
    "HannWindow": Op(window, INTEGERS),
}
