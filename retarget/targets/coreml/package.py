"""What coremltools leaves different from one run to the next, made the same: equal models are equal files."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path

from retarget.targets.coreml.library import proto

_DATES = ("com.github.apple.coremltools.conversion_date",)
"""Entries of the metadata that tell when, and not what."""


def settle(path: Path, describe: Callable[[proto.Model_pb2.Model], None]) -> None:
    """Write the package ``path`` again: its parts by what they are rather than by random numbers, no dates.

    ``describe`` adds what the user says of the model to its specification.
    """
    manifest = path / "Manifest.json"
    told = json.loads(manifest.read_text())
    names = {key: _identifier(entry["path"]) for key, entry in told["itemInfoEntries"].items()}
    told["rootModelIdentifier"] = names[told["rootModelIdentifier"]]
    told["itemInfoEntries"] = {names[key]: entry for key, entry in told["itemInfoEntries"].items()}
    manifest.write_text(json.dumps(told, indent=4, sort_keys=True) + "\n")
    model = path / "Data" / told["itemInfoEntries"][told["rootModelIdentifier"]]["path"]
    spec = proto.Model_pb2.Model.FromString(model.read_bytes())
    for key in _DATES:
        spec.description.metadata.userDefined.pop(key, None)
    describe(spec)
    model.write_bytes(spec.SerializeToString(deterministic=True))


def _identifier(path: str) -> str:
    """The same for the same path in every package."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"retarget:{path}")).upper()
