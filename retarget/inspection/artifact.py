"""Folders that a build or the store made: what the model says, and what the manifest says of it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from retarget import store
from retarget.facts import ConvertFacts, EmitFacts
from retarget.inspection.result import Inspection

MODELS = (
    *("model.onnx", "model.xml", "model.engine", "model.tflite", "model.mlpackage", "model.ncnn.param"),
    "ranges.json",
)
"""What the model's file is called in an artifact, or what there is instead."""


def is_artifact(path: Path) -> bool:
    """Whether ``path`` is such a folder, or the model's file in one."""
    return (path / store.MANIFEST).is_file() or (path.name in MODELS and (path.parent / store.MANIFEST).is_file())


def inspect(path: Path) -> Inspection:
    """The model in the folder, with what its manifest adds. Raises ``Damaged`` for a manifest that was changed."""
    from retarget.inspection import inspect_file

    folder = path if (path / store.MANIFEST).is_file() else path.parent
    manifest = store.read_manifest(folder)
    model = next((folder / name for name in MODELS if (folder / name).exists()), None)
    found = Inspection(path=str(path), what="files", bytes=manifest.bytes) if model is None else inspect_file(model)
    notes = [f"step: {manifest.id}", "made by: " + ", ".join(f"{k} {v}" for k, v in sorted(manifest.versions.items()))]
    try:
        store.check_files(folder, manifest, digests=False)
    except store.Damaged as damage:
        notes.insert(0, f"DAMAGED: {damage.message}")
    found = msgspec.structs.replace(
        found, path=str(path), what=f"{found.what}, artifact of {manifest.kind}", bytes=manifest.bytes
    )
    match manifest.kind:
        case "emit":
            found, said = _with_emit(found, manifest.facts_as(EmitFacts))
            notes += said
        case "convert":
            facts = manifest.facts_as(ConvertFacts)
            notes += [f"converted from {facts.form} by {facts.frontend}, {facts.rung}", *facts.notes]
            # What the user called the inputs and outputs, and which sizes they said.
            found = msgspec.structs.replace(found, inputs=facts.inputs, outputs=facts.outputs)
            notes += [f"{symbol} from {size.min} to {size.max}" for symbol, size in facts.shapes.items()]
        case _:
            pass
    return msgspec.structs.replace(found, notes=(*found.notes, *notes))


def _with_emit(found: Inspection, facts: EmitFacts) -> tuple[Inspection, list[str]]:
    precision = facts.precision
    share = precision.low_precision_share
    read_back = (
        f"read back when it was built as {facts.variant_precision}: weights {precision.weights}, "
        f"activations {precision.activations}, inputs and outputs {precision.io}, "
        f"{'an unknown share' if share is None else f'{100 * share:.1f} %'} of the compute below float32"
    )
    renamed = [
        f"'{entry.name}' is called '{entry.artifact_name}' and is {entry.artifact_dtype} in the artifact"
        + "".join(f", {change}" for change in entry.changes)
        for entry in (*facts.inputs, *facts.outputs)
        if (entry.name, entry.spec.dtype) != (entry.artifact_name, entry.artifact_dtype) or entry.changes
    ]
    fixed = [f"takes {symbol}={size} alone" for symbol, size in facts.sizes.items()]
    inputs, outputs = (tuple(entry.spec for entry in entries) for entries in (facts.inputs, facts.outputs))
    return msgspec.structs.replace(found, inputs=inputs, outputs=outputs), [read_back, *facts.notes, *renamed, *fixed]
