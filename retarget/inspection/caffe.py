"""Caffe's prototxts and caffemodels: heavy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from retarget.convert.caffe import blobs, files, network, text, upgrade, weights
from retarget.inspection.result import Inspection, most_first
from retarget.spec import TensorSpec

_SHOWN = 8
"""Layers that a note lists."""


def inspect(path: Path, form: str, parts: Mapping[str, Path]) -> Inspection:
    """What ``path``, which is of ``form``, says with its other file.

    Raises ``RetargetError`` for what is damaged or no net of Caffe.
    """
    if form == files.WEIGHTS:
        return _weights(path)
    return _net(path, *files.pair(path, parts.get("weights", parts.get("net"))))


def _net(path: Path, prototxt: Path, caffemodel: Path | None) -> Inspection:
    """A prototxt, which ``path`` may be the folder of."""
    net = network.read(prototxt, caffemodel, partial=True)
    found = [prototxt] if caffemodel is None else [prototxt, caffemodel]
    missing = [layer.name for layer in net.layers if len(layer.blobs) < len(blobs.expected(layer))]
    notes = [f"makes {', '.join(net.outputs)}", *net.notes]
    if caffemodel is not None:
        notes.insert(0, f"weights in {caffemodel.name}")
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
        notes.insert(0, f"weights are missing of {shown}")
    return Inspection(
        path=str(path),
        what="Caffe net",
        version=upgrade.version(text.read(prototxt)),
        bytes=sum(file.stat().st_size for file in found),
        inputs=tuple(TensorSpec(name, "float32", shape) for name, shape in net.inputs.items())
        if all(net.inputs.values())
        else (),
        nodes=len(net.layers),
        ops=most_first(Counter(layer.type for layer in net.layers)),
        parameters=sum(blob.size for layer in net.layers for blob in layer.blobs) if caffemodel else None,
        notes=tuple(notes),
    )


def _weights(path: Path) -> Inspection:
    saved = weights.read(path)
    net = files.net_beside(path)
    hint = "the layers stand in a prototxt, and none is beside it" if net is None else f"its layers stand in {net.name}"
    return Inspection(
        path=str(path),
        what="Caffe weights",
        version=saved.version,
        bytes=path.stat().st_size,
        parameters=saved.parameters,
        tensors=tuple(
            TensorSpec(f"{layer.name}[{index}]", "float32", blob.shape)
            for layer in saved.layers
            for index, blob in enumerate(layer.blobs)
        ),
        notes=(hint,),
    )
