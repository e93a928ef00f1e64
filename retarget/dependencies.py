"""The user's files that a step turns out to read beside those that the plan knows, such as external data of a model.

A worker puts their digests into the artifact's manifest, and the next plan asks for them (`Store.resolve`).
"""

from __future__ import annotations

from pathlib import Path

_files: dict[Path, None] = {}


def depends_on(path: Path) -> None:
    """Say that the step now running reads ``path``."""
    _files[path.absolute()] = None


def take() -> tuple[Path, ...]:
    """The files that were named since the last call."""
    files = tuple(_files)
    _files.clear()
    return files
