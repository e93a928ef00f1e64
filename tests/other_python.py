"""The interpreters with old frameworks that `make` puts beside the virtual environment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(sys.prefix).with_name(Path(sys.prefix).name + "-toolchains")


def interpreter(name: str) -> Path:
    """That of environment ``name``; the test is skipped where there is none."""
    python = ROOT / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"`make {ROOT.name}/{name}/.made` makes the environment that this needs")
    return python
