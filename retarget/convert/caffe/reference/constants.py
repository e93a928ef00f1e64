"""Blobs that no input reaches: ``Parameter``, whose top is its weights, and ``DummyData`` with a constant filler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retarget.convert.caffe.net import Blob, Layer, Message
from retarget.convert.caffe.reference.checks import weights, wrong


def parameter(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:  # noqa: ARG001
    """Its weights."""
    return list(weights(layer, 1))


def dummy_data(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:  # noqa: ARG001
    """A blob full of one number for each top; sizes and fillers that stand once are for all."""
    message = layer.message.message("dummy_data_param")
    sizes = [each.integers("dim") for each in message.messages("shape")]
    sizes = sizes or list(
        zip(*(message.integers(name) for name in ("num", "channels", "height", "width")), strict=True)
    )
    fillers = list(message.messages("data_filler")) or [Message(layer.message.place)]
    for each in (sizes, fillers):
        if len(each) not in (1, len(layer.tops)):
            raise wrong(layer, f"has {len(each)} sizes or fillers for {len(layer.tops)} tops")
    if any(filler.word("type", "constant") != "constant" for filler in fillers):
        raise wrong(layer, "draws its data")
    return [
        np.full(sizes[index % len(sizes)], fillers[index % len(fillers)].number("value"), np.float32)
        for index in range(len(layer.tops))
    ]
