"""Every failure that a user can cause or meet, as one line and a hint.

Messages name the place and the value. Hints say what to do: a command, or the legal values.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

DAMAGED = "the file may be cut short or damaged: compare its size or sha256 with the original"
"""The hint where a model's file cannot be read."""


class RetargetError(Exception):
    """A failure outside retarget's own code: bad input, a missing tool, a model that a target cannot take."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n\nhint: {self.hint}"

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message, self.hint))


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a file: ``place`` is ``file:line:column``."""

    place: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}"
        return text if self.hint is None else f"{text}\nhint: {self.hint}"


class RecipeError(RetargetError):
    """A recipe that cannot be read: all of its problems, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.problems,))


class MissingToolchain(RetargetError):
    """A distribution that a step needs is not installed, or not for this machine."""


class Unsupported(RetargetError):
    """A model that a target cannot take."""


class ToolchainFailure(RetargetError):
    """A library, the user's own code or a worker process failed: crashed, ran out of its limits or raised."""


class NotExecutable(RetargetError):
    """What this machine cannot execute, or not with these inputs: a limit, no failure of the artifact."""


class GateFailed(RetargetError):
    """A bound that the recipe sets was not held."""

    exit_code = 4


class Terminated(BaseException):
    """SIGTERM arrived: like ``KeyboardInterrupt``, exit code 143."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for a name that does not exist: the shortest that begins with it, else the nearest one, or all of them."""
    names = sorted(known)
    begun = sorted((name for name in names if len(word) > 1 and name.startswith(word)), key=len)
    near = begun or difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"


def unsupported(target: str, reasons: Sequence[tuple[str, str, str]], hint: str | None = None) -> Unsupported:
    """``Unsupported`` that lists all offending nodes, each as (node name, operator, reason).

    ``hint`` is what the target itself can do.
    """
    lines = [f"{target} cannot take {len(reasons)} node{'s' if len(reasons) != 1 else ''}:"]
    lines += [f"  {name} ({op}): {reason}" for name, op, reason in reasons]
    do = "write these parts of the model otherwise, or ask another target: `retarget check MODEL --to TARGET`"
    return Unsupported("\n".join(lines), do if hint is None else f"{do}; {hint}")
