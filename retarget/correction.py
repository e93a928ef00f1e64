"""Bias correction where it measures better: what a mean can take back is known only after the model ran on other data.

All layers are corrected at once, then again with what is still missing: a layer's error includes that of the layers
before it, which the first round has changed. Corrected layer by layer from the front, a model has to be quantized and
run once a layer. Rounds go on while the held-out data says that they help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from retarget import graph
from retarget.calibration.channels import channel_means
from retarget.passes.correct_bias import CorrectBias, correctable

if TYPE_CHECKING:
    import onnx_ir as ir

    from retarget.protocols import Feeds

ROUNDS = 3

WORTH_DB = 0.1
"""A gain that is smaller may be chance."""


def corrected(
    model: ir.Model,
    quantize: Callable[[ir.Model], ir.Model],
    feeds: Callable[[], Iterable[Feeds]],
    judge: Callable[[ir.Model], float],
) -> tuple[ir.Model, float | None]:
    """The float ``model`` with corrected biases, and the gain in dB; itself and None if it is better without.

    ``quantize`` makes a new quantized model of a float one. The means are those over ``feeds``, calibration data;
    ``judge`` gives the SNR, in dB, of a quantized model on data held out from them.
    """
    values = correctable(model)
    if not values:
        return model, None
    best, current = model, quantize(model)
    without = most = judge(current)
    expected = channel_means(model, values, feeds())
    for _ in range(ROUNDS):
        changed = graph.clone(best)
        CorrectBias(expected, channel_means(current, values, feeds()))(changed)
        current = quantize(changed)
        reached = judge(current)
        if reached < most + WORTH_DB:
            break
        best, most = changed, reached
    return best, most - without if most > without else None
