"""What ncnn has no layers for, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from retarget.targets import legal
from retarget.targets.ncnn.call import ANY, Call, Op
from retarget.targets.ncnn.values import Refusal, Result


def _because(reason: str) -> Op:
    def lower(call: Call) -> Result:
        del call
        raise Refusal(reason)

    return Op(lower, ANY)


def optional_get_element(call: Call) -> Result:
    return call.operand(0)


def optional_has_element(call: Call) -> Result:
    return np.array(call.has(0))


_BITS = "it computes with the bits of integers, and ncnn computes with floats"
_COUNTED = "how large its result is depends on the data, and the sizes of blobs do not"
_LOOPS = f"ncnn has no loops: {legal.UNROLL}"
_OPTIONAL = "a value that may be missing cannot be a blob: decide it before the export"
_RANDOM = "it is random, and nothing could be held against the source: draw the numbers outside, as an input"
_SEQUENCE = "a sequence holds tensors of many shapes, and a blob has one: use a tensor with one axis more"
_TEXT = "ncnn computes with no text: prepare it outside, as numbers"
_TRAINED = "it is a loss, for training: take the part of the model in front of it"

OPS: Mapping[str, Op] = {
    "OptionalGetElement": Op(optional_get_element, ANY),
    "OptionalHasElement": Op(optional_has_element, ANY),
    **dict.fromkeys(("BitwiseAnd", "BitwiseOr", "BitwiseXor"), _because(_BITS)),
    **dict.fromkeys(("Loop", "Scan"), _because(_LOOPS)),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), _because(_TRAINED)),
    **dict.fromkeys(("NonZero", "Unique"), _because(_COUNTED)),
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
    "Det": _because("ncnn has no layer for the determinant of a matrix"),
    "If": _because(
        "the condition is computed, and ncnn always executes all of a model: take one branch before the export"
    ),
    "ImageDecoder": _because("ncnn decodes no images: feed their pixels"),
    "NonMaxSuppression": _because(
        "how many boxes are left depends on the data, and the sizes of blobs do not: suppress them outside"
    ),
    "MelWeightMatrix": _because("its operands are computed: of constants alone a matrix can be written"),
    "Optional": _because(_OPTIONAL),
    "TfIdfVectorizer": _because("it counts runs of words by a table, for which ncnn has no layer: prepare it outside"),
}
