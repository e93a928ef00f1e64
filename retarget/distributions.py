"""Versions of installed distributions, found without importing them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

ALIASES = {
    "tensorflow": ("tensorflow-cpu", "tensorflow-intel", "tensorflow-macos", "tf-nightly"),
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
}
"""Distributions that bring the same modules under another name."""


def version_of(distribution: str) -> str | None:
    """Of ``distribution`` as it is installed here, be it under another name; None where it is not."""
    return version_among(distribution, _installed)


def version_among(distribution: str, look_up: Callable[[str], str | None]) -> str | None:
    """The same, of what ``look_up`` finds."""
    return next(filter(None, map(look_up, (distribution, *ALIASES.get(distribution, ())))), None)


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
