"""Which nodes of an int8 model go back to float for a budget of accuracy to hold: the cheapest set that does it.

1. If the model with every candidate in int8 holds the budget, that is the answer, after one evaluation.
2. Else each candidate is quantized alone, and its error is measured at the model's outputs: about as long a run each as
   of the float model. What one run of all nodes would tell is worth less. On small models of the MobileNetV2, ViT and
   BERT families, with 16.9, 30.1 and 32.4 dB all in int8, the eight nodes that are first by their own error gave 20.4,
   38.4 and 43.2 dB when they went back to float; by the error that each makes at its own output 18.4, 33.1 and 37.0;
   by the error that has gathered there 16.9, 35.3 and 36.7; by what the int8 model wins by each alone, at the same
   price, 20.3, 36.1 and 43.2.
3. Errors are taken to add up. For a bound on what remains, the nodes with most error per multiply-accumulate go back
   until it holds, and those of them that it holds without return to int8. The bound is tightened until the measured
   budget holds, then loosened by bisection: a handful of evaluations, whatever the number of nodes.
4. What is not needed after all is put back into int8, the most expensive first.

Models are judged in ONNX Runtime with its optimizations off: the arithmetic that is written in the model. With them
on, a run takes a quarter of the time and opening the session twice as long, but the SNR of a ResNet-50 came out 1.7 dB
higher, of a ViT-base 0.7 dB. One session is open at a time, on weights that the models share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retarget import graph
from retarget.calibration.statistics import rows
from retarget.compare import compare_outputs
from retarget.errors import RetargetError
from retarget.metrics import Metric
from retarget.progress import progress
from retarget.session import Session
from retarget.tolerance import DEFAULT_TOLERANCE

if TYPE_CHECKING:
    import onnx_ir as ir

    from retarget.protocols import Array, Feeds, Outputs

RANKING_ROWS = 8
"""Rows that a node's own error is measured on: its rank is known from few."""

_FIRST_DB = 3.0
"""Where a drop does not tell how far it is from the budget: what the bound is tightened by first."""
_CLOSE_DB = 0.25
"""Bounds that lie closer together are as good as one."""
_NO_ERROR = 1e-30
"""In the ranking of a node whose rounding nothing shows of: what `compare.SNR_CAP` stands for."""
_PRUNING = 16
"""Evaluations spent on putting back what is not needed."""


# ---- the budget and what it is judged on


@dataclass(frozen=True)
class Goal:
    """Exactly one of the two: the smallest SNR of an output in dB, or the largest loss of the metric."""

    min_snr_db: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if (self.min_snr_db is None) == (self.max_drop is None):
            raise ValueError("a goal is either min_snr_db or max_drop")

    def __str__(self) -> str:
        return f"max_drop {self.max_drop:g}" if self.min_snr_db is None else f"min_snr_db {self.min_snr_db:g}"

    def holds(self, score: float) -> bool:
        """``score`` is in decibels or a drop, as the goal is."""
        if self.min_snr_db is not None:
            return score >= self.min_snr_db
        # A metric is a quotient: a drop of 2 in 100 rows must not exceed 0.02 by its rounding.
        return score <= (self.max_drop or 0.0) + 1e-9

    def better(self, score: float, other: float) -> bool:
        """Whether ``score`` is nearer to the goal, or further beyond it."""
        return score > other if self.min_snr_db is not None else score < other


@dataclass(frozen=True, eq=False)
class Batch:
    """A few rows of the selection data."""

    feeds: Feeds
    labels: Array | None = None


class Selection:
    """The data that models are judged on, beside the float ``model``'s outputs on it, which are kept in memory.

    ``metric`` makes a new metric, for `drop`; every batch has labels then. Raises ``RetargetError`` when there are no
    batches.
    """

    def __init__(
        self,
        model: ir.Model,
        batches: Sequence[Batch],
        metric: Callable[[], Metric] | None = None,
        *,
        threads: int = 2,
    ) -> None:
        if not batches:
            raise RetargetError("there is no selection data to judge int8 on", "give data.selection")
        self._batches = batches
        self._metric = metric
        self._threads = threads
        self._reference = self._outputs(model, batches)
        self._value = None if metric is None else self._measure(self._reference)

    @property
    def rows(self) -> int:
        return sum(rows(batch.feeds) for batch in self._batches)

    def judge(self, goal: Goal) -> Callable[[ir.Model], float]:
        """What `search` needs to judge a model by: decibels or the drop."""
        return self.drop if goal.min_snr_db is None else self.snr_db

    def snr_db(self, model: ir.Model) -> float:
        """The smallest SNR of ``model``'s outputs, each over all rows."""
        return min(self._snrs_db(model, self._batches))

    def error(self, model: ir.Model) -> float:
        """Noise by signal of the worst output over the first `RANKING_ROWS` rows or the batch that they end in."""
        few: list[Batch] = []
        for batch in self._batches:
            if sum(rows(batch.feeds) for batch in few) < RANKING_ROWS:
                few.append(batch)
        return 10 ** (-min(self._snrs_db(model, few)) / 10)

    def drop(self, model: ir.Model) -> float:
        """What ``model`` loses of the float model's metric; below 0 where it is better."""
        if self._value is None:
            raise ValueError("this selection has no metric")
        return self._value - self._measure(self._outputs(model, self._batches))

    def _outputs(self, model: ir.Model, batches: Sequence[Batch]) -> list[Outputs]:
        with Session(model, threads=self._threads) as session:
            return [session.run(batch.feeds) for batch in batches]

    def _snrs_db(self, model: ir.Model, batches: Sequence[Batch]) -> list[float]:
        found = self._outputs(model, batches)
        expected = {str(index): outputs for index, outputs in enumerate(self._reference[: len(batches)])}
        actual = {str(index): outputs for index, outputs in enumerate(found)}
        comparisons = compare_outputs(expected, actual, DEFAULT_TOLERANCE["int8"])
        floats = {name for name, array in self._reference[0].items() if array.dtype.kind not in "iubOSU"}
        # Class numbers have no noise; they count where there is nothing else.
        return [one.snr_db for one in comparisons if one.output in floats or not floats]

    def _measure(self, outputs: Sequence[Outputs]) -> float:
        assert self._metric is not None
        metric = self._metric()
        for batch, found in zip(self._batches, outputs, strict=True):
            if batch.labels is None:
                raise RetargetError("the selection data has no labels, and max_drop needs a metric", "use min_snr_db")
            metric.add(found, batch.labels)
        return metric.value()


# ---- the search


@dataclass(frozen=True)
class Candidate:
    """A node that can be in int8. ``macs``: its multiply-accumulates, what it costs in float."""

    name: str
    op: str
    macs: int


@dataclass(frozen=True)
class Reverted:
    """A node that went back to float."""

    name: str
    op: str
    error_share: float
    """Of the sum of all candidates' errors at the outputs, 0 to 1."""
    macs_share: float
    """Of all candidates' multiply-accumulates, 0 to 1."""

    @property
    def reason(self) -> str:
        return f"{self.error_share:.2%} of the int8 error for {self.macs_share:.2%} of the multiply-accumulates"


@dataclass(frozen=True)
class Found:
    """What the search came to; the best that was found where ``reached`` is False."""

    reached: bool
    before: float
    """What the model with all candidates in int8 was judged at: decibels or a drop."""
    after: float
    """What the model with ``reverted`` in float was judged at."""
    reverted: tuple[Reverted, ...]
    """In the order of the graph."""
    tried: int
    """How many models were judged; the ranking's are not among them."""

    @property
    def keep(self) -> frozenset[str]:
        """Names of the nodes that stay float."""
        return frozenset(one.name for one in self.reverted)

    @property
    def macs_share(self) -> float:
        """Of all candidates' multiply-accumulates, what went back to float."""
        return sum(one.macs_share for one in self.reverted)


def describe(model: ir.Model, names: Collection[str], feeds: Feeds) -> tuple[Candidate, ...]:
    """``names`` in the order of ``model``'s graph, with what they cost at the sizes of ``feeds``."""
    wanted = set(names)
    sizes = {
        dim.value: size
        for value in model.graph.inputs
        for dim, size in zip(value.shape or (), feeds[value.name or ""].shape, strict=False)
        if not isinstance(dim, int) and dim.value
    }
    return tuple(
        Candidate(node.name or "", node.op_type, graph.macs(node, sizes)) for node in model.graph if node.name in wanted
    )


def search(
    candidates: Sequence[Candidate],
    quantize: Callable[[Collection[str]], ir.Model],
    goal: Goal,
    judge: Callable[[ir.Model], float],
    error: Callable[[ir.Model], float],
) -> Found:
    """The cheapest set of ``candidates`` that has to stay float for ``goal`` to hold, as the module says.

    ``quantize`` makes the model with the named candidates in float and all others in int8, ``judge`` says how good it
    is in the goal's terms, ``error`` what noise by signal it has at the outputs. The goal counts as reached only with
    at least one candidate in int8.
    """
    trials = _Trials(candidates, quantize, goal, judge)
    before = trials.score(frozenset())
    if goal.holds(before) or len(candidates) < 2:
        return _found(goal, candidates, trials, frozenset(), {})
    errors = _errors(candidates, quantize, error)
    best = _bisect(candidates, errors, trials, goal, before)
    if goal.holds(trials.score(best)):
        best = _prune(candidates, trials, best)
    return _found(goal, candidates, trials, best, errors)


class _Trials:
    """Judges sets of nodes in float, each once; after `score(frozenset())` there is always a best one."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        quantize: Callable[[Collection[str]], ir.Model],
        goal: Goal,
        judge: Callable[[ir.Model], float],
    ) -> None:
        self._quantize = quantize
        self._judge = judge
        self._goal = goal
        self._macs = {one.name: one.macs for one in candidates}
        self.scores: dict[frozenset[str], float] = {}

    def score(self, keep: frozenset[str]) -> float:
        if keep not in self.scores:
            progress(0, 0, f"int8 but for {len(keep)} of {len(self._macs)} nodes, model {len(self.scores) + 1}")
            self.scores[keep] = self._judge(self._quantize(keep))
        return self.scores[keep]

    def holds(self, keep: frozenset[str]) -> bool:
        return self._goal.holds(self.score(keep))

    def cost(self, keep: frozenset[str]) -> tuple[int, int]:
        """Multiply-accumulates in float; between equals, fewer nodes."""
        return sum(self._macs[name] for name in keep), len(keep)

    def best(self) -> frozenset[str]:
        """Of the sets that were judged: the cheapest that holds; if none does, that with the best score."""
        holding = [keep for keep, score in self.scores.items() if self._goal.holds(score)]
        if holding:
            return min(holding, key=self.cost)
        best = next(iter(self.scores))
        for keep, score in self.scores.items():
            if self._goal.better(score, self.scores[best]):
                best = keep
        return best


def _errors(
    candidates: Sequence[Candidate],
    quantize: Callable[[Collection[str]], ir.Model],
    error: Callable[[ir.Model], float],
) -> dict[str, float]:
    """Noise by signal at the outputs, of each candidate alone in int8."""
    names = frozenset(one.name for one in candidates)
    errors = {}
    for index, one in enumerate(candidates):
        progress(index, len(candidates), f"the error of {one.name} alone")
        errors[one.name] = max(error(quantize(names - {one.name})), _NO_ERROR)
    return errors


def _bisect(
    candidates: Sequence[Candidate], errors: Mapping[str, float], trials: _Trials, goal: Goal, before: float
) -> frozenset[str]:
    """The best set of those that `cheapest` gives for a bound on the error, in dB below that of all candidates."""
    loose, step = 0.0, _FIRST_DB
    tight = _FIRST_DB if goal.min_snr_db is None else max(goal.min_snr_db - before, _CLOSE_DB)
    while not trials.holds(keep := cheapest(candidates, errors, tight)):
        if len(keep) == len(candidates) - 1:
            # The last one in int8 is the dearest for its error; another one may have less.
            trials.score(frozenset(errors) - {min(errors, key=errors.__getitem__)})
            return trials.best()
        loose = tight
        tight += step
        step *= 2
    while tight - loose > _CLOSE_DB and cheapest(candidates, errors, tight) != cheapest(candidates, errors, loose):
        middle = (tight + loose) / 2
        if trials.holds(cheapest(candidates, errors, middle)):
            tight = middle
        else:
            loose = middle
    return trials.best()


def cheapest(candidates: Sequence[Candidate], errors: Mapping[str, float], below_db: float) -> frozenset[str]:
    """A cheap set whose errors leave a rest of at most ``below_db`` dB below their sum; at least one is left out.

    Greedy by error per multiply-accumulate, then without those that the bound does not need, the dearest first.
    """
    rest = math.fsum(errors.values())
    bound = rest * 10 ** (-below_db / 10)
    order = sorted(candidates, key=lambda one: errors[one.name] / max(one.macs, 1), reverse=True)
    taken: list[Candidate] = []
    for one in order[:-1]:
        if rest <= bound:
            break
        taken.append(one)
        rest = math.fsum(errors[other.name] for other in order[len(taken) :])
    for one in sorted(taken, key=lambda one: one.macs, reverse=True):
        if rest + errors[one.name] <= bound:
            taken.remove(one)
            rest += errors[one.name]
    return frozenset(one.name for one in taken)


def _prune(candidates: Sequence[Candidate], trials: _Trials, keep: frozenset[str]) -> frozenset[str]:
    """``keep`` without what the goal holds without: groups are put back into int8, ever smaller ones."""
    order = [one.name for one in sorted(candidates, key=lambda one: one.macs, reverse=True) if one.name in keep]
    size = len(order) // 2
    spent = 0
    while size and spent < _PRUNING:
        at = 0
        while at < len(order) and spent < _PRUNING:
            without = keep - set(order[at : at + size])
            spent += 1
            if trials.holds(without):
                keep = without
                del order[at : at + size]
            else:
                at += size
        size //= 2
    return keep


def _found(
    goal: Goal,
    candidates: Sequence[Candidate],
    trials: _Trials,
    keep: frozenset[str],
    errors: Mapping[str, float],
) -> Found:
    all_errors = math.fsum(errors.values()) or 1.0
    all_macs = sum(one.macs for one in candidates) or 1
    after = trials.score(keep)
    return Found(
        reached=goal.holds(after),
        before=trials.score(frozenset()),
        after=after,
        reverted=tuple(
            Reverted(one.name, one.op, errors[one.name] / all_errors, one.macs / all_macs)
            for one in candidates
            if one.name in keep
        ),
        tried=len(trials.scores),
    )
