"""``retarget doctor``: what this machine can do, and the command that adds what it cannot. Light."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retarget import catalog, processor
from retarget.distributions import version_among, version_of
from retarget.errors import RetargetError
from retarget.recipe import PRECISIONS
from retarget.remote import fingerprint
from retarget.targets.tensorrt import gpu

_CORE = ("retarget", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "onnxsim", "numpy")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Examined:
    """One thing that was looked at."""

    area: Literal["machine", "core", "frontend", "target"]
    name: str
    version: str | None
    here: str
    """What it can do on this machine, or why it cannot."""
    add: str | None = None
    """The command that brings what is missing, or what else to do."""


def examine(toolchains: Mapping[str, Path] | None = None) -> list[Examined]:
    """The machine, the libraries that retarget stands on, every frontend and every target. Imports none of them.

    ``toolchains``: frontend to the interpreter that the user configured for it.
    """
    elsewhere = toolchains or {}
    return [
        *_machine(),
        *(_core(name) for name in _CORE),
        *(_elsewhere(name, elsewhere[name]) if name in elsewhere else _frontend(name) for name in catalog.FRONTENDS),
        *(_target(name) for name in catalog.TARGETS),
    ]


def _machine() -> list[Examined]:
    system = f"{platform.system()} {platform.machine()}"
    return [
        Examined("machine", "python", platform.python_version(), f"{platform.python_implementation()}, {system}"),
        Examined("machine", "cpu", None, f"{processor.cores()} cores for this process, {processor.name()}"),
        Examined("machine", "memory", None, f"{memory_limit() / 1e9:.1f} GB for this process"),
        Examined("machine", "gpu", _driver(), gpu.missing() or ", ".join(gpu.models()) or "an NVIDIA GPU"),
    ]


def memory_limit() -> int:
    """Bytes of memory that there are for this process: the machine's, or the container's limit."""
    import psutil

    texts = [file.read_text().strip() for file in _CGROUP_LIMITS if file.is_file()]
    # Without a limit the file says `max`.
    return min([int(psutil.virtual_memory().total), *(int(text) for text in texts if text.isdecimal())])


def _driver() -> str | None:
    """The version of NVIDIA's driver, as the kernel module says it."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+\.\d[\d.]*)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found[1] if found else None


def _core(name: str) -> Examined:
    version = version_of(name)
    return Examined(
        "core", name, version, "installed" if version else "missing", None if version else "pip install retarget"
    )


def _frontend(name: str) -> Examined:
    frontend = catalog.frontend(name)
    missing = [each for each in frontend.requires if version_of(each) is None]
    return Examined(
        area="frontend",
        name=name,
        version=_versions(frontend.requires),
        here=f"no: {' and '.join(missing)} not installed" if missing else "converts",
        add=f"pip install 'retarget[{frontend.extra}]'" if missing else None,
    )


def _elsewhere(name: str, python: Path) -> Examined:
    """A frontend that the user's own interpreter runs."""
    try:
        found = fingerprint(python)
    except RetargetError as error:
        return Examined("frontend", name, None, f"no: {error.message}", error.hint)
    versions = {each: version_among(each, found.get) for each in ("python", *catalog.frontend(name).requires, "onnx")}
    missing = [each for each, version in versions.items() if version is None]
    return Examined(
        area="frontend",
        name=name,
        version=_listed(versions),
        here=f"no: {' and '.join(missing)} not installed in {python}" if missing else f"converts, run by {python}",
        add=f"{python} -m pip install {' '.join(missing)}" if missing else None,
    )


def _target(name: str) -> Examined:
    target = catalog.target(name)
    problem, idle = target.unavailable(), target.not_executable()
    if problem is not None:
        reason, remedy = problem
        return Examined("target", name, _versions(target.requires), f"no: {reason}", remedy)
    # fp32 first: it is what the others are held against.
    builds = f"builds {', '.join(sorted(target.precisions, key=PRECISIONS.index))}"
    runs = "executes" if target.interpreted is None else f"interprets: {target.interpreted}"
    executes = runs if idle is None else f"does not execute: {idle}"
    return Examined("target", name, _versions(target.requires), f"{builds}; {executes}")


def _versions(distributions: Iterable[str]) -> str | None:
    return _listed({name: version_of(name) for name in distributions})


def _listed(versions: Mapping[str, str | None]) -> str | None:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version) or None
