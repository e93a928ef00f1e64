"""What of this machine enters keys: versions of libraries, and the host where something is executed on it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from retarget import catalog
from retarget.distributions import version_of
from retarget.errors import MissingToolchain
from retarget.protocols import JSON
from retarget.remote import fingerprint

ABSENT = "not installed"


@cache
def version(distribution: str) -> str:
    """Of ``distribution`` here, or ``ABSENT``."""
    return version_of(distribution) or ABSENT


def require(name: str, requires: Sequence[str], extra: str | None) -> None:
    """Raise ``MissingToolchain`` where ``name`` lacks a distribution, with the command for its ``extra``."""
    missing = [distribution for distribution in requires if version(distribution) == ABSENT]
    if missing:
        raise MissingToolchain(f"{name} needs {', '.join(missing)}", f"pip install 'retarget[{extra}]'")


@cache
def framework_versions(python: Path) -> Mapping[str, str]:
    """Of all that is installed for the user's own interpreter ``python``. Asked once: it starts a process."""
    return fingerprint(python)


@cache
def host(toolchain: str) -> dict[str, JSON]:
    """What of this machine can change what a step that executes something finds."""
    names = [toolchain] if toolchain in catalog.TARGETS else list(catalog.TARGETS) if toolchain == "bench" else []
    return {
        "node": platform.node(),
        "machine": platform.machine(),
        "executable": {name: catalog.target(name).not_executable() for name in names},
    }
