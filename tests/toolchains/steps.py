"""Steps for tests: each runs the function of `toolchains.misbehave` that its options name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from retarget.protocols import JSON, Kind, Step


def step(
    function: str,
    inputs: Mapping[str, Step] | None = None,
    *,
    id: str | None = None,  # noqa: A002
    toolchain: str = "tests",
    kind: Kind = "emit",
    files: Mapping[str, Path] | None = None,
    optional: bool = False,
    partial: bool = False,
    code_root: Path | None = None,
    **options: JSON,
) -> Step:
    """A step with a key like a real one's: all that shapes its artifact is in it."""
    inputs = inputs or {}
    files = files or {}
    options = {"function": function, **options}
    digests = {role: hashlib.sha256(path.read_bytes()).hexdigest() for role, path in files.items()}
    content = [kind, options, {role: source.key for role, source in inputs.items()}, digests]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Step(
        id=id or function,
        kind=kind,
        options=options,
        inputs=inputs,
        files=files,
        toolchain=toolchain,
        key=key,
        optional=optional,
        partial=partial,
        code_root=code_root,
    )


def function_of(made: Step) -> str:
    """Where a worker finds the function of a step that `step` made."""
    return f"toolchains.misbehave:{made.options['function']}"
