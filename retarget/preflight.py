"""``retarget check``: which nodes each target cannot take. Nothing is built; what ran is cached for a build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retarget import catalog
from retarget import plan as plans
from retarget.build import Display, check_store, execute
from retarget.engine import Limits
from retarget.facts import CheckFacts, Refusal
from retarget.plan import Invocation
from retarget.protocols import Outcome
from retarget.store import read_manifest

if TYPE_CHECKING:
    from retarget.recipe import Recipe
    from retarget.store import Store

SUPPORT = {"tensorrt": "tensorrt_rtx"}
"""Target to the one whose page of support is also its own, where that has another name."""
NAMED = 3
"""So many nodes of a group are named."""


@dataclass(frozen=True)
class Group:
    """Nodes of one operator that are refused for one reason."""

    operator: str
    reason: str
    nodes: tuple[str, ...]

    @property
    def named(self) -> str:
        """``conv1, conv2, conv3, 4 more``."""
        more = len(self.nodes) - NAMED
        return ", ".join([*self.nodes[:NAMED], *([f"{more} more"] if more > 0 else [])])


@dataclass(frozen=True)
class Answer:
    """What one target says to the model in one precision."""

    target: str
    precision: str
    takes: bool
    nodes: int | None
    """Of the model as the target gets it; None where it was not asked."""
    refused: tuple[Refusal, ...]
    error: str | None = None
    """Why the target could not be asked."""
    hint: str | None = None
    """What to do."""

    @property
    def groups(self) -> Sequence[Group]:
        """What is refused, in the order in which it is met."""
        found: dict[tuple[str, str], list[str]] = {}
        for refusal in self.refused:
            found.setdefault((refusal.operator, refusal.reason), []).append(refusal.node)
        return [Group(operator, reason, tuple(nodes)) for (operator, reason), nodes in found.items()]


@dataclass(frozen=True)
class Checked:
    answers: tuple[Answer, ...]
    exit_code: int
    """0 where every target takes the model, 3 for a bug of retarget's, else 1."""


def check(
    wanted: Recipe, store: Store, *, invocation: Invocation, limits: Limits, jobs: int, display: Display
) -> Checked:
    """Ask every target of ``wanted``, in every variant.

    Raises ``RetargetError`` for what is wrong before anything runs, a toolchain that is missing among it.
    """
    plan = plans.preflight(wanted, store, invocation)
    check_store(store, plan)
    with execute(plan, store, jobs=jobs, limits=limits, display=display) as outcomes:
        ended = {outcome.step.id: outcome for outcome in outcomes}
        answers = tuple(_answer(ended[step.id]) for step in plan.steps if step.kind == "check")
    bug = any(outcome.error is not None and outcome.error.bug for outcome in outcomes)
    return Checked(answers, 3 if bug else 0 if all(answer.takes for answer in answers) else 1)


def _answer(outcome: Outcome) -> Answer:
    target, precision = str(outcome.step.options["target"]), str(outcome.step.options["precision"])
    if outcome.artifact is None:
        error = outcome.error
        return Answer(
            target=target,
            precision=precision,
            takes=False,
            nodes=None,
            refused=(),
            error="a step before it failed" if error is None else error.message,
            hint=None if error is None else error.hint,
        )
    facts = read_manifest(outcome.artifact.path).facts_as(CheckFacts)
    return Answer(
        target=target,
        precision=precision,
        takes=not facts.refused,
        nodes=facts.nodes,
        refused=facts.refused,
        hint=_what_to_do(target) if facts.refused else None,
    )


def _what_to_do(target: str) -> str:
    page = f"docs/reference/support-{SUPPORT.get(target, target)}.md"
    takes_custom = "custom_ops" in catalog.target(target).Options.__struct_fields__
    bring = ", name in `custom_ops` what your own runtime has kernels for" if takes_custom else ""
    return (
        f"{page} lists what {target} takes; rewrite these parts of the model with that, try `--optimize aggressive`"
        f"{bring}, or take another target"
    )
