"""Passes that prepare a model for int8, each kept only where int8 measures better with it.

They leave the function as it is and change what is rounded. Whether that helps depends on the model: factors that make
channels alike also make some weights rounder and others less so. So each is tried: the model with it and without it is
brought to int8 with ranges of some of the data, and judged on the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import onnx_ir as ir

from retarget import graph
from retarget.budget import Batch, Selection
from retarget.calibration.channels import channel_absmax
from retarget.calibration.methods import chooser
from retarget.calibration.observers import observe
from retarget.facts import OptimizeFacts
from retarget.passes.check import run_checked
from retarget.passes.equalize_channels import EqualizeChannels
from retarget.passes.presets import NamedPass
from retarget.passes.quantize import Quantize
from retarget.passes.smooth_outliers import SmoothOutliers, smoothable
from retarget.schemes import U8S8

if TYPE_CHECKING:
    from retarget.protocols import Feeds

WORTH_DB = 0.1
"""A gain that is smaller may be chance."""


def _smoothing(model: ir.Model, feeds: Sequence[Feeds]) -> SmoothOutliers:
    values = smoothable(model)
    return SmoothOutliers(channel_absmax(model, values, feeds) if values else {})


PASSES: Mapping[str, Callable[[ir.Model, Sequence[Feeds]], ir.passes.PassBase]] = {
    "equalize_channels": lambda _model, _feeds: EqualizeChannels(),
    # After it: what several layers share is even by then, and what is left are outliers of the activations.
    "smooth_outliers": _smoothing,
}
"""In this order; each is made for the model that it is to change."""


def equalize(
    model: ir.Model, batches: Sequence[Feeds], cases: Mapping[str, Feeds], *, strict: bool
) -> tuple[ir.Model, OptimizeFacts]:
    """``model`` after those of `PASSES` that gain, and what each did, with its gain.

    ``batches`` are calibration data: the first half gives ranges, the second judges, and all of it where there is one
    batch alone. ``cases`` are the parity inputs that the passes are checked on, as by `run_checked`.
    """
    half = len(batches) // 2
    given, judged = (batches[: len(batches) - half], batches[len(batches) - half :]) if half else (batches, batches)
    selection = Selection(model, [Batch(feeds) for feeds in judged])
    facts: list[OptimizeFacts] = []
    reached: float | None = None
    for name, make in PASSES.items():
        changed, fact = run_checked(
            model, [NamedPass(name, make(model, given))], cases, preset="equalize", strict=strict
        )
        (done,) = fact.passes
        if done.status == "changed":
            reached = _int8_db(model, given, selection) if reached is None else reached
            with_it = _int8_db(changed, given, selection)
            gain = with_it - reached
            done = msgspec.structs.replace(done, gain_db=gain)
            if gain >= WORTH_DB:
                model, reached = changed, with_it
            else:
                done = msgspec.structs.replace(
                    done,
                    status="dropped",
                    nodes_after=done.nodes_before,
                    bytes_after=done.bytes_before,
                    reason=f"int8 measures no better with it ({gain:+.1f} dB)",
                )
        facts.append(msgspec.structs.replace(fact, passes=(done,)))
    return model, _joined(facts)


def _int8_db(model: ir.Model, batches: Sequence[Feeds], selection: Selection) -> float:
    """The SNR of ``model`` in the int8 that most runtimes share, with the ranges of ``batches``."""
    choose = chooser(observe(model, batches), "mse")
    return selection.snr_db(Quantize(U8S8, choose)(graph.clone(model)).model)


def _joined(facts: Sequence[OptimizeFacts]) -> OptimizeFacts:
    known = [fact.snr_db for fact in facts if fact.snr_db is not None]
    return msgspec.structs.replace(
        facts[-1],
        passes=tuple(one for fact in facts for one in fact.passes),
        checked=all(fact.checked for fact in facts),
        reason=next((fact.reason for fact in facts if fact.reason), None),
        snr_db=min(known, default=None),
        seconds_passes=sum(fact.seconds_passes for fact in facts),
        seconds_check=sum(fact.seconds_check for fact in facts),
        notes=tuple(dict.fromkeys(note for fact in facts for note in fact.notes)),
    )
