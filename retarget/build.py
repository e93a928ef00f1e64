"""One build: plan it, run it, place what it made, and write the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from retarget import engine, lock, recipe_write, report
from retarget.engine import Event, Limits
from retarget.errors import RetargetError
from retarget.output import OutputFolder
from retarget.plan import Invocation
from retarget.plan import make as make_plan
from retarget.protocols import Outcome
from retarget.report_artifacts import CALIBRATION, ranges_folder

if TYPE_CHECKING:
    from retarget.plan import Plan
    from retarget.recipe import Recipe
    from retarget.report_schema import Report
    from retarget.store import Store

RECIPE = "recipe.yaml"

Display: TypeAlias = Callable[[int, str], AbstractContextManager[Callable[[Event], None]]]
"""Called with the number of steps and what the model is; what it gives shows events."""


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
    display: Display,
) -> Built:
    """Build ``wanted`` into ``folder``.

    ``locked`` is the lock file that inputs and versions must match. Raises ``RetargetError`` for what is wrong before
    anything runs; what goes wrong later is in the report and the exit code.
    """
    plan = make_plan(wanted, store, invocation)
    current = lock.make(wanted, plan.inputs, plan.versions)
    if locked is not None:
        lock.check(locked, current)
    _check_apart(folder, "give a folder outside it with -o", plan.inputs)
    check_store(store, plan)
    output = OutputFolder(folder)

    with execute(plan, store, jobs=jobs, limits=limits, display=display) as outcomes:
        made = report.build(plan, outcomes, environment=report.environment(), baseline=baseline)
        # All at the end, and without the old report: a build that is ended before leaves the folder as it was, and at
        # no moment does a report stand beside artifacts that it does not speak of.
        with output.alone():
            for name in (*report.NAMES, CALIBRATION):
                output.remove(name)
            for outcome in outcomes:
                _place(output, outcome)
            if locked is None:
                output.write(RECIPE, recipe_write.dump(wanted, relative_to=folder.absolute()))
                output.write(lock.NAME, lock.dump(current))
            report.write(made, folder)
    return Built(made, report.exit_code(made))


@contextmanager
def execute(plan: Plan, store: Store, *, jobs: int, limits: Limits, display: Display) -> Iterator[Sequence[Outcome]]:
    """Run the steps of ``plan``; how they ended, with a lease on what they made for as long as it is looked at."""
    outcomes: list[Outcome] = []
    with ExitStack() as leases:
        leases.enter_context(store.lease(step.key for step in plan.steps))
        with (
            display(len(plan.steps), plan.found) as progress,
            closing(engine.run(plan.steps, store, jobs=jobs, limits=limits, progress=progress)) as running,
        ):
            for outcome in running:
                outcomes.append(outcome)
                if outcome.artifact is not None and outcome.artifact.key != outcome.step.key:
                    leases.enter_context(store.lease([outcome.artifact.key]))
        yield outcomes


def check_store(store: Store, plan: Plan) -> None:
    """Raise ``RetargetError`` for a store in a folder that ``plan`` reads."""
    _check_apart(store.root, "choose another place with --store DIR", plan.inputs)


def _check_apart(folder: Path, hint: str, inputs: Iterable[Path]) -> None:
    """Raise ``RetargetError`` if ``folder`` is in one that the build reads: its digest would never be the same."""
    for path in inputs:
        if path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
            raise RetargetError(f"{folder}: is in {path}, which the build reads", hint)


def _place(output: OutputFolder, outcome: Outcome) -> None:
    step = outcome.step
    if step.kind == "emit":
        name = f"{step.options['target']}/{step.options['variant']}"
        if outcome.artifact:
            output.place(outcome.artifact, name)
        else:
            output.remove(name)
    elif step.kind == "calibrate":
        for file in sorted(outcome.artifact.path.glob("ranges.*")) if outcome.artifact and step.options["plot"] else ():
            output.place_file(file, f"{ranges_folder(step)}/{file.name}")
    elif step.kind == "convert":
        output.remove("reference*.npz")
        for file in outcome.artifact.path.glob("reference*.npz") if outcome.artifact else ():
            output.place_file(file, file.name)
