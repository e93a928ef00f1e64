"""What a step turns out to depend on beside what the plan knows.

Files of the user's, such as external data of a model: a worker puts their digests into the artifact's manifest, and
the next plan asks for them (`Store.resolve`). And libraries that served it in another interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_files: dict[Path, None] = {}
_versions: dict[str, str] = {}


def depends_on(path: Path) -> None:
    """Say that the step now running reads ``path``."""
    _files[path.absolute()] = None


def ran_with(versions: Mapping[str, str]) -> None:
    """Say that libraries of another interpreter, by name, served the step now running."""
    _versions.update(versions)


def take() -> tuple[tuple[Path, ...], dict[str, str]]:
    """The files and the versions that were named since the last call."""
    taken = tuple(_files), dict(_versions)
    _files.clear()
    _versions.clear()
    return taken
