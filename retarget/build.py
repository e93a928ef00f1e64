"""One build: plan it, run it, place what it made, and write the report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retarget import engine, lock, recipe, report
from retarget.engine import Event, Limits
from retarget.output import OutputFolder
from retarget.plan import Invocation
from retarget.plan import make as make_plan
from retarget.protocols import Outcome

if TYPE_CHECKING:
    from retarget.recipe import Recipe
    from retarget.report_schema import Report
    from retarget.store import Store

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Built:
    """What a build did, and the exit code that says it."""

    report: Report
    exit_code: int


def build(
    wanted: Recipe,
    store: Store,
    folder: Path,
    *,
    invocation: Invocation,
    limits: Limits,
    jobs: int,
    locked: Path | None = None,
    baseline: Report | None = None,
    display: Callable[[int], AbstractContextManager[Callable[[Event], None]]],
) -> Built:
    """Build ``wanted`` into ``folder``.

    ``display`` is called with the number of steps and shows their events. ``locked`` is the lock file that inputs and
    versions must match. Raises ``RetargetError`` for what is wrong before
    anything runs; what goes wrong later is in the report and the exit code.
    """
    plan = make_plan(wanted, store, invocation)
    current = lock.make(wanted, plan.inputs, plan.versions)
    if locked is not None:
        lock.check(locked, current)
    output = OutputFolder(folder)

    outcomes: list[Outcome] = []
    with (
        display(len(plan.steps)) as progress,
        closing(engine.run(plan.steps, store, jobs=jobs, limits=limits, progress=progress)) as running,
    ):
        for outcome in running:
            outcomes.append(outcome)
            _place(output, outcome)

    made = report.build(plan, outcomes, environment=report.environment(), baseline=baseline)
    if locked is None:
        output.write(RECIPE, recipe.dump(wanted, relative_to=folder.absolute()))
        output.write(lock.NAME, lock.dump(current))
    report.write(made, folder)
    return Built(made, report.exit_code(made))


def _place(output: OutputFolder, outcome: Outcome) -> None:
    step = outcome.step
    if step.kind == "emit":
        name = f"{step.options['target']}/{step.options['variant']}"
        if outcome.artifact:
            output.place(outcome.artifact, name)
        else:
            output.remove(name)
    elif step.kind == "convert" and outcome.artifact:
        for file in outcome.artifact.path.glob("reference*.npz"):
            output.place_file(file, file.name)
