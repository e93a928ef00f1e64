"""Run passes and prove that the model still computes the same: checked once, bisected only when it does not.

The numbers are compared with ONNX Runtime's optimizations off. With them on, the result must only load and run: they
infer shapes of their own, also in a branch that is never taken, and refuse a graph where those contradict each other.
What ONNX Runtime refused before the passes too, no pass is blamed for.

The clone that the passes work on shares its tensors with the model before them: keeping both costs nodes, not weights.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import onnx_ir as ir

from retarget.compare import compare_outputs
from retarget.errors import RetargetError, ToolchainFailure
from retarget.facts import OptimizeFacts, PassFact
from retarget.graph import clone, initializer_bytes, node_count
from retarget.passes.delay_transposes import DelayTransposes
from retarget.passes.presets import NamedPass
from retarget.session import Session
from retarget.tolerance import DEFAULT_TOLERANCE, Tolerance

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs

    Run: TypeAlias = Callable[[ir.Model, Mapping[str, Feeds]], dict[str, Outputs]]

logger = logging.getLogger(__name__)

COPY_LIMIT = 512 << 20
"""ONNX Runtime's optimizations copy the weights of a session: models with more bytes of them are not tried so."""


def execute(model: ir.Model, feeds: Mapping[str, Feeds]) -> dict[str, Outputs]:
    """Outputs of each case in ONNX Runtime with its optimizations off: as independent of them as we are."""
    with Session(model) as session:
        return {case: session.run(arrays) for case, arrays in feeds.items()}


def refusal(model: ir.Model, feeds: Mapping[str, Feeds]) -> str | None:
    """Why ONNX Runtime, all optimizations on, does not load ``model`` or run the first case; None if it does."""
    tried = clone(model)
    # As the target `onnxruntime` writes it: the process would die of what the pass avoids.
    DelayTransposes()(tried)
    try:
        with Session(tried, optimize=True) as session:
            session.run(next(iter(feeds.values())))
    except RetargetError as error:
        return error.message
    return None


def run_checked(
    model: ir.Model,
    passes: Sequence[NamedPass],
    feeds: Mapping[str, Feeds],
    *,
    preset: str = "custom",
    strict: bool = False,
    tolerance: Tolerance = DEFAULT_TOLERANCE["fp32"],
    run: Run = execute,
) -> tuple[ir.Model, OptimizeFacts]:
    """``model`` after ``passes``, and what each did. ``model`` itself stays as it is; tensors are shared.

    ``feeds`` are the inputs of each parity case. A pass that crashes, changes an input or output, breaks the
    tolerance, or makes what ONNX Runtime refuses with its optimizations on, is dropped and named with the reason;
    ``strict`` raises ``ToolchainFailure`` instead.
    """
    started = time.perf_counter()
    parity, unchecked = _parity(model, feeds, tolerance, run)
    dropped: dict[int, str] = {}
    while True:
        attempt = _attempt(model, passes, dropped)
        guilt, snr = attempt.guilt, None
        if parity is not None and guilt is not None:
            # A pass may crash on what an earlier one broke: that one is guilty.
            guilt = _bisect(model, passes[: guilt[0]], dropped, parity) or guilt
        elif parity is not None:
            broken, snr = parity.of(attempt.model)
            if broken is not None:
                guilt = _bisect(model, passes, dropped, parity)
                if guilt is None:
                    parity, snr = None, None
                    unchecked = f"the model before the passes gives other outputs when it runs again: {broken}"
        if guilt is None:
            break
        index, reason = guilt
        if strict:
            raise ToolchainFailure(
                f"pass '{passes[index].name}' {reason}",
                "without --strict it is dropped and the build goes on; or leave it out of `optimize:`",
            )
        logger.warning("pass '%s' is dropped: it %s", passes[index].name, reason)
        dropped[index] = reason
    seconds_passes = sum(fact.seconds for fact in attempt.facts)
    return attempt.model, OptimizeFacts(
        preset=preset,
        passes=tuple(attempt.facts),
        checked=parity is not None,
        reason=unchecked,
        snr_db=snr,
        seconds_passes=seconds_passes,
        seconds_check=time.perf_counter() - started - seconds_passes,
        notes=() if parity is None or parity.not_optimized is None else (parity.not_optimized,),
    )


@dataclass
class _Attempt:
    model: ir.Model
    facts: list[PassFact]
    guilt: tuple[int, str] | None = None


@dataclass(frozen=True)
class _Parity:
    """The outputs before the passes, and how to hold others against them."""

    reference: Mapping[str, Outputs]
    feeds: Mapping[str, Feeds]
    tolerance: Tolerance
    run: Run
    not_optimized: str | None
    """Why ONNX Runtime is not asked to optimize the result as well; None if it is."""

    def of(self, model: ir.Model) -> tuple[str | None, float | None]:
        """(what is wrong with ``model``, None if nothing; its smallest SNR in decibels)."""
        try:
            actual = self.run(model, self.feeds)
        except RetargetError as error:
            return f"made a model that does not run: {error.message}", None
        compared = compare_outputs(self.reference, actual, self.tolerance)
        snr = min(one.snr_db for one in compared)
        wrong = [f"'{one.output}' ({one.reason})" for one in compared if not one.passed]
        if wrong:
            return f"broke {', '.join(wrong)}", snr
        if self.not_optimized is None and (refused := refusal(model, self.feeds)) is not None:
            return f"made a model that runs only with ONNX Runtime's optimizations off: {refused}", snr
        return None, snr


def _parity(
    model: ir.Model, feeds: Mapping[str, Feeds], tolerance: Tolerance, run: Run
) -> tuple[_Parity | None, str | None]:
    """What to compare with, or why there is nothing."""
    if not feeds:
        return None, "there are no inputs to check with"
    try:
        reference = run(model, feeds)
    except RetargetError as error:
        return None, f"the model before the passes does not run: {error.message}"
    return _Parity(reference, feeds, tolerance, run, _not_optimized(model, feeds)), None


def _not_optimized(model: ir.Model, feeds: Mapping[str, Feeds]) -> str | None:
    """Why no result of ``model`` is tried with ONNX Runtime's optimizations on."""
    size = initializer_bytes(model)
    if size > COPY_LIMIT:
        return f"not tried with ONNX Runtime's optimizations on: they copy the {size / 1e6:.0f} MB of weights"
    refused = refusal(model, feeds)
    return None if refused is None else f"ONNX Runtime's optimizations refuse the model before the passes: {refused}"


def _attempt(model: ir.Model, passes: Sequence[NamedPass], dropped: Mapping[int, str]) -> _Attempt:
    """Run all passes but the dropped ones on a clone; stop at one that crashes or changes inputs or outputs."""
    attempt = _Attempt(clone(model), [])
    interface = _interface(model)
    nodes, size = node_count(model), initializer_bytes(model)
    for index, (name, one) in enumerate(passes):
        if index in dropped:
            attempt.facts.append(_fact(name, "dropped", (nodes, nodes), (size, size), 0.0, dropped[index]))
            continue
        started = time.perf_counter()
        try:
            result = one(attempt.model)
        except Exception as error:  # noqa: BLE001 - passes come from several libraries that share no exception
            attempt.guilt = (index, f"crashed: {_root(error)}")
            return attempt
        seconds = time.perf_counter() - started
        attempt.model = result.model
        before, nodes, size = (nodes, size), node_count(result.model), initializer_bytes(result.model)
        status: PassStatus = "changed" if result.modified else "unchanged"
        attempt.facts.append(_fact(name, status, (before[0], nodes), (before[1], size), seconds, None))
        if result.modified and _interface(result.model) != interface:
            attempt.guilt = (index, _difference(interface, _interface(result.model)))
            return attempt
    return attempt


def _bisect(
    model: ir.Model, passes: Sequence[NamedPass], dropped: Mapping[int, str], parity: _Parity
) -> tuple[int, str] | None:
    """The first pass after which parity is broken; None if it holds after all of them, or is broken before any."""
    active = [index for index in range(len(passes)) if index not in dropped]

    def after(count: int) -> str | None:
        left_out = dict(dropped) | dict.fromkeys(active[count:], "")
        return parity.of(_attempt(model, passes, left_out).model)[0]

    good, bad, reason = 0, len(active), after(len(active))
    if reason is None or after(0) is not None:
        return None
    while bad - good > 1:
        middle = (good + bad) // 2
        found = after(middle)
        if found is None:
            good = middle
        else:
            bad, reason = middle, found
    return active[bad - 1], reason


PassStatus: TypeAlias = Literal["changed", "unchanged", "dropped"]
_Interface: TypeAlias = list[tuple[str, str | None, str, int | None]]


def _interface(model: ir.Model) -> _Interface:
    """Name, dtype and rank of each input and output: the user's, which survive every pass."""
    return [
        (side, value.name, str(value.dtype), None if value.shape is None else len(value.shape))
        for side, values in (("input", model.graph.inputs), ("output", model.graph.outputs))
        for value in values
    ]


def _difference(before: _Interface, after: _Interface) -> str:
    gone = [f"{side} '{name}' ({dtype}, rank {rank})" for side, name, dtype, rank in before]
    came = [f"{side} '{name}' ({dtype}, rank {rank})" for side, name, dtype, rank in after]
    lost = [text for text in gone if text not in came] or gone
    new = [text for text in came if text not in gone] or came
    return f"changed {', '.join(lost)} to {', '.join(new) or 'nothing'}"


def _root(error: BaseException) -> str:
    """The first cause, in one line: pass infrastructures wrap what a pass raised."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _fact(
    name: str,
    status: PassStatus,
    nodes: tuple[int, int],
    size: tuple[int, int],
    seconds: float,
    reason: str | None,
) -> PassFact:
    return PassFact(
        name=name,
        status=status,
        nodes_before=nodes[0],
        nodes_after=nodes[1],
        bytes_before=size[0],
        bytes_after=size[1],
        seconds=seconds,
        reason=reason,
    )
