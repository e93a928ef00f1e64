"""Operators that are not written, each with the reason; and of optional values those that are there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from retarget.targets.coreml.call import ANY, Call, Op
from retarget.targets.coreml.values import Refusal, Result


def _because(reason: str) -> Op:
    def lower(call: Call) -> Result:
        del call
        raise Refusal(reason)

    return Op(lower, ANY, small=True)


def optional_get_element(call: Call) -> Result:
    return call.operand(0)


def optional_has_element(call: Call) -> Result:
    return np.array(call.has(0))


_COUNTED = "it sorts what is there and leaves out what is equal, for which MIL has no operator"
_OPTIONAL = "a value that may be missing cannot be an input or output of Core ML: decide it before the export"
_RANDOM = "it is random, and nothing could be held against the source: draw the numbers outside, as an input"
_SEQUENCE = "a sequence holds tensors of many shapes, and a value of Core ML has one: use a tensor with one axis more"
_TEXT = "Core ML computes with no text: prepare it outside, as numbers"

OPS: Mapping[str, Op] = {
    "OptionalGetElement": Op(optional_get_element, ANY, moves=True),
    "OptionalHasElement": Op(optional_has_element, ANY, small=True),
    **dict.fromkeys(
        ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        _because(_RANDOM),
    ),
    **dict.fromkeys(
        (
            "ConcatFromSequence",
            "SequenceAt",
            "SequenceConstruct",
            "SequenceEmpty",
            "SequenceErase",
            "SequenceInsert",
            "SequenceLength",
            "SequenceMap",
            "SplitToSequence",
        ),
        _because(_SEQUENCE),
    ),
    **dict.fromkeys(("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit"), _because(_TEXT)),
    "Optional": _because(_OPTIONAL),
    "TfIdfVectorizer": _because(
        "it counts runs of words by a table, for which MIL has no operator: prepare it outside"
    ),
    "Unique": _because(_COUNTED),
}
