"""Steps with content keys.

A step's key is the digest of its kind, options, input keys, input file digests and of the code and libraries that it
uses. No path and no clock enters a key, so two machines that hold the same files have the same keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from retarget import options as told
from retarget.errors import RetargetError
from retarget.identity import host, version
from retarget.protocols import JSON, Kind, Step

if TYPE_CHECKING:
    from retarget.store import Store

CORE = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "onnxsim", "ml_dtypes")
"""Distributions whose versions enter every key."""

MISSING = "a relative path starts at the recipe's folder in a recipe, at the current folder on the command line"

PACKAGE = Path(__file__).parent


@dataclass
class Steps:
    """The steps that a plan has so far, and what their keys were made of."""

    store: Store
    root: Path
    """The folder of the model, where code of the user's may lie."""
    made: list[Step] = field(default_factory=list)
    digests: dict[Path, str] = field(default_factory=dict)
    """Every file or folder of the user's that was read for a key."""
    versions: dict[str, str] = field(default_factory=dict)
    """Every distribution that entered a key."""

    def add(
        self,
        id: str,  # noqa: A002 - the field's own name
        kind: Kind,
        toolchain: str,
        options: told.Options,
        *,
        inputs: Mapping[str, Step] | None = None,
        files: Mapping[str, Path] | None = None,
        requires: Sequence[str] = (),
        extra: Mapping[str, str] | None = None,
        python: Path | None = None,
        runs: bool = False,
        partial: bool = False,
        optional: bool = False,
    ) -> Step:
        """One more step. ``runs``: it executes a model, so the host is in its key."""
        inputs, files = inputs or {}, files or {}
        versions = {name: version(name) for name in (*CORE, *requires)}
        identity: dict[str, JSON] = {
            "kind": kind,
            "options": told.to_json(options),
            "inputs": {role: step.key for role, step in inputs.items()},
            "files": {role: self.digest(path) for role, path in files.items()},
            "code": self.store.digest(PACKAGE),
            "versions": cast("dict[str, JSON]", versions),
            "fingerprint": cast("dict[str, JSON]", dict(extra or {})),
            "host": host(toolchain) if runs else None,
        }
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.versions.update(versions)
        if python is not None and extra is not None:
            self.versions.update({f"{toolchain}/{name}": version for name, version in extra.items()})
        step = Step(
            id=id,
            kind=kind,
            options=told.to_json(options),
            inputs=inputs,
            files=files,
            toolchain=toolchain,
            code_root=self.root if files else None,
            key=self.store.resolve(key, self.root) if files else key,
            python=python,
            optional=optional,
            partial=partial,
        )
        self.made.append(step)
        return step

    def digest(self, path: Path) -> str:
        if path not in self.digests:
            if not path.exists():
                raise RetargetError(f"{path}: no such file or folder", MISSING)
            self.digests[path] = self.store.digest(path)
        return self.digests[path]

    def found(self, name: str) -> Step | None:
        """The step of that name, if the plan has it already."""
        return next((step for step in self.made if step.id == name), None)
