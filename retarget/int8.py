"""int8 and int16x8 inside the quantize step: ranges to integers, nodes back to float for a budget, better biases.

Everything is judged by ONNX Runtime with its optimizations off, which computes Q/DQ as it is written, on rows that gave
no range where there are such. So it is the scheme that is judged, and not one runtime's kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from retarget import graph
from retarget.bench import interleave
from retarget.budget import Batch, Found, Goal, Selection, describe, search
from retarget.calibration.methods import chooser
from retarget.correction import corrected
from retarget.errors import RetargetError, did_you_mean
from retarget.facts import BudgetFacts, Int8Facts, KeptNode, QuantizeFacts
from retarget.metrics import Metric, open_metric
from retarget.passes.fp16 import CastFloat16
from retarget.passes.quantize import Quantize, candidates
from retarget.schemes import AUTO, U8S8
from retarget.session import Session

if TYPE_CHECKING:
    import onnx_ir as ir

    from retarget.calibration.ranges import Ranges
    from retarget.options import Int8Options
    from retarget.protocols import Feeds
    from retarget.schemes import Method, QuantScheme

PRECISION = {"uint8": "int8", "int8": "int8", "int16": "int16x8"}
"""By the type of a scheme's activations."""

HELD_OUT = 5
"""Of the calibration data, every so many-th batch gives no range: int8 is judged on it."""

LATENCY_SECONDS = 1.0
"""Spent on timing what the nodes that went back to float cost."""


def is_held_out(index: int) -> bool:
    """Whether the batch of that number judges instead of giving ranges."""
    return index % HELD_OUT == HELD_OUT - 1


@dataclass(frozen=True)
class Data:
    """What the step is given to quantize with."""

    ranges: Ranges
    calibration: Callable[[], Iterator[Feeds]]
    """Gives the batches anew that gave the ranges."""
    judged_on: Sequence[Batch]
    words: str
    """What ``judged_on`` is, such as ``rows held out of the calibration data``."""
    metric: Callable[[], Metric] | None
    """Makes a metric anew; None where ``judged_on`` has no labels."""


def quantize(model: ir.Model, options: Int8Options, data: Data) -> tuple[ir.Model, QuantizeFacts]:
    """``model`` in int8 as ``options`` ask, and what was done. Raises ``RetargetError`` if the budget cannot be met."""
    goal = None
    if options.max_drop is not None or options.min_snr_db is not None:
        goal = Goal(min_snr_db=options.min_snr_db, max_drop=options.max_drop)
    notes: list[str] = []
    metric, batches = data.metric, data.judged_on
    if goal is not None and goal.max_drop is not None and metric is None:
        metric, batches = partial(open_metric, "top1"), _labelled(model, batches)
        notes.append("max_drop counts answers other than the float model's own: there are no labels to judge on")
    selection = Selection(model, batches, metric)

    methods = AUTO if options.method == "auto" else (options.method,)
    schemes = [_Scheme(model, options, data.ranges, method) for method in methods]
    scheme = schemes[0]
    if len(schemes) > 1:
        scheme = max(schemes, key=lambda one: selection.snr_db(one.simulated(model, ())))
    keep: frozenset[str] = frozenset()
    found: Found | None = None
    if goal is not None:
        nodes = describe(model, scheme.candidates, batches[0].feeds)
        found = search(nodes, partial(scheme.simulated, model), goal, selection.judge(goal), selection.error)
        keep = found.keep
    best, gain = model, None
    if options.correct_bias:
        best, gain = corrected(
            model, lambda changed: scheme.simulated(changed, keep), data.calibration, selection.snr_db
        )
    simulated = scheme.simulated(best, keep)
    if goal is not None and gain is not None and not goal.holds(selection.judge(goal)(simulated)):
        # Nearer to the float model, and yet another answer too many.
        best, gain, simulated = model, None, scheme.simulated(model, keep)
    final = scheme.quantized(best, keep)
    budget = None
    if goal is not None and found is not None:
        after = selection.judge(goal)(simulated)
        if not goal.holds(after):
            raise RetargetError(_missed(goal, found, after, options), "loosen it, or build this variant as fp16")
        ratio = None
        if keep and options.scheme == U8S8:
            ratio = _latency_ratio(final.model, scheme.quantized(best, ()).model, batches[0].feeds)
        budget = _budget(goal, found, after, ratio)
    reasons = {one.name: f"returned to float: {one.reason}" for one in (budget.returned if budget else ())}
    return final.model, QuantizeFacts(
        precision=PRECISION[options.scheme.activation],
        nodes=len(final.quantized),
        kept=tuple(KeptNode(name=one.name, op=one.op, reason=reasons.get(one.name, one.reason)) for one in final.kept),
        int8=Int8Facts(
            scheme=options.scheme.name,
            method=scheme.method,
            judged_on=f"{selection.rows} {data.words}",
            snr_db=selection.snr_db(simulated),
            bias_gain_db=gain,
            budget=budget,
            notes=tuple(notes),
        ),
    )


def _budget(goal: Goal, found: Found, after: float, latency_ratio: float | None) -> BudgetFacts:
    return BudgetFacts(
        goal=str(goal),
        before=found.before,
        after=after,
        returned=tuple(KeptNode(name=one.name, op=one.op, reason=one.reason) for one in found.reverted),
        macs_share=found.macs_share,
        latency_ratio=latency_ratio,
        tried=found.tried,
    )


@dataclass(frozen=True)
class _Quantized:
    model: ir.Model
    quantized: tuple[str, ...]
    kept: tuple[KeptNode, ...]


class _Scheme:
    """A model under one scheme: made anew for each set of nodes that stay float; tensors are shared."""

    def __init__(self, model: ir.Model, options: Int8Options, ranges: Ranges, method: Method) -> None:
        self.method = method
        self._options = options
        self._ranges = ranges
        self._choose = chooser(ranges, method, percentile=options.percentile)
        self._asked = named(model, options.keep)
        self.candidates = tuple(name for name in candidates(model, options.scheme) if name not in self._asked)

    def quantized(self, model: ir.Model, keep: Collection[str]) -> _Quantized:
        """``model``, of the same nodes as the first, with ``keep`` in float beside what the user keeps there."""
        return self._make(self._options.scheme, model, keep)

    def simulated(self, model: ir.Model, keep: Collection[str]) -> ir.Model:
        """What the runtime makes of `quantized`, as a graph that computes as it is written."""
        return self._make(self._options.scheme.simulated, model, keep).model

    def _make(self, scheme: QuantScheme, model: ir.Model, keep: Collection[str]) -> _Quantized:
        asked = {*self._asked, *keep}
        one = Quantize(scheme, self._choose, asked, integer_io=self._options.integer_io)
        made = one(graph.clone(model)).model
        if self._options.rest == "fp32":
            return _Quantized(made, one.quantized, one.kept)
        cast = CastFloat16(self._ranges)
        made = cast(made).model
        in_float32 = {node.name for node in cast.kept}
        return _Quantized(made, one.quantized, tuple(node for node in one.kept if node.name in in_float32))


def named(model: ir.Model, keep: Sequence[str]) -> set[str]:
    """Names of the nodes that ``keep`` names, each by its own name or by operator. Raises ``RetargetError``."""
    names = {node.name or "" for node in model.graph}
    operators = {node.op_type for node in model.graph}
    found: set[str] = set()
    for word in keep:
        if word not in names and word not in operators:
            raise RetargetError(
                f"keep: no node or operator '{word}' in the optimized model", did_you_mean(word, names | operators)
            )
        found |= {node.name or "" for node in model.graph if word in (node.name, node.op_type)}
    return found


def _labelled(model: ir.Model, batches: Sequence[Batch]) -> list[Batch]:
    """``batches`` with the float model's own answers, the class of the largest score, as labels."""
    found: list[Batch] = []
    with Session(model, threads=2) as session:
        for batch in batches:
            name, scores = next(iter(session.run(batch.feeds).items()))
            if scores.ndim < 2:
                raise RetargetError(
                    f"max_drop needs class scores [rows, classes], output '{name}' has shape {list(scores.shape)}",
                    "set min_snr_db, or give data.selection with labels and a metric in data.evaluation",
                )
            found.append(Batch(batch.feeds, np.asarray(scores.argmax(axis=-1))))
    return found


def _latency_ratio(model: ir.Model, whole: ir.Model, feeds: Feeds) -> float:
    """Time of a call of ``model`` over that of ``whole``, which take turns, as ONNX Runtime optimizes them here."""
    with Session(model, optimize=True, threads=2) as one, Session(whole, optimize=True, threads=2) as other:
        calls = {"model": partial(one.run, feeds), "whole": partial(other.run, feeds)}
        timings = interleave(calls, LATENCY_SECONDS / 2)
    return timings["model"].p50 / timings["whole"].p50


def _missed(goal: Goal, found: Found, after: float, options: Int8Options) -> str:
    unit = "dB" if goal.min_snr_db is not None else "drop"
    return (
        f"{goal} cannot be met in {options.scheme.name} int8: the best that was found has {after:.3g} {unit} with "
        f"{len(found.reverted)} nodes ({found.macs_share:.0%} of the multiply-accumulates) in float, "
        f"{found.before:.3g} {unit} with none, after {found.tried} models"
    )
