"""Networks of ncnn: the param file, the weights beside it and, where retarget wrote them, what it says of both."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from retarget.errors import RetargetError
from retarget.inspection.result import Inspection, most_first
from retarget.spec import TensorSpec, symbols

if TYPE_CHECKING:
    from retarget.targets.ncnn.executed import Executed
    from retarget.targets.ncnn.sidecar import Sidecar

PARAM, BIN, SIDECAR = ".param", ".bin", ".json"
MAGIC = 7767517
_TEXT, _BINARY = str(MAGIC).encode(), MAGIC.to_bytes(4, "little")


def matches(path: Path) -> bool:
    """A param file, weights beside one, or a folder with one of them alone."""
    return _param(path) is not None


def inspect(path: Path) -> Inspection:
    """Layers, weights and what they compute. Raises ``RetargetError`` for what is damaged, or not of one network."""
    from retarget.targets.ncnn import files, sidecar
    from retarget.targets.ncnn.executed import executed

    param = _param(path)
    assert param is not None, f"{path} does not match"
    if _head(param) == _BINARY:
        raise RetargetError(f"{param}: a binary param file, which has no names", "give the text it was made of")
    weights, told = param.with_suffix(BIN), param.with_suffix(SIDECAR)
    says = sidecar.read(told) if told.is_file() else None
    shapes = param.parent / "tensors.json"
    layers = files.read(param)
    found = weights if weights.is_file() else None
    done = executed(layers, found, says, shapes if says is not None and shapes.is_file() else None)
    notes = [] if found else [f"its weights are missing: there is no {weights.name} beside it"]
    inputs, outputs = _said(says, notes) if says is not None else _seen(param, done)
    macs_at = _sizes(says, done) if says is not None and done.computed.total() else {}
    if macs_at:
        sizes = ", ".join(f"{symbol}={size}" for symbol, size in macs_at.items())
        notes.append(
            f"multiply-accumulates are those of the blobs in {shapes.name}, at {sizes}: `opt`, or a size near it that"
            " is told from other dims"
        )
    stored: Counter[str] = Counter()
    for each in done.stored:
        stored[each.dtype] += each.bytes
    return Inspection(
        path=str(path),
        what="ncnn network",
        version=f"text param {MAGIC}" + (f", for {says.checked_with} or later" if says else ""),
        bytes=sum(file.stat().st_size for file in (param, weights, told) if file.is_file()),
        inputs=inputs,
        outputs=outputs,
        nodes=done.operators.total(),
        ops=most_first(done.operators),
        parameters=sum(each.count for each in done.stored),
        weights=most_first(stored),
        macs=done.computed.total() or None,
        macs_at=macs_at,
        compute=most_first(done.computed),
        notes=tuple(notes),
    )


def _param(path: Path) -> Path | None:
    """The param file of the network ``path``."""
    if path.is_dir():
        inside = [file for file in sorted(path.glob(f"*{PARAM}")) if _head(file) is not None]
        return inside[0] if len(inside) == 1 else None
    if path.is_file() and _head(path) is not None:
        return path
    beside = path.with_suffix(PARAM)
    return beside if path.suffix == BIN and path.is_file() and beside.is_file() and _head(beside) == _TEXT else None


def _head(path: Path) -> bytes | None:
    """With what a param file begins; None of another."""
    with path.open("rb") as file:
        head = file.read(len(_TEXT) + 1)
    if head.startswith(_BINARY):
        return _BINARY
    return _TEXT if head.startswith(_TEXT) and head[len(_TEXT) :].isspace() else None


def _said(says: Sidecar, notes: list[str]) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    for value in (*says.inputs, *says.outputs):
        notes += [f"'{value.name}' is the blob '{held.name}', {held.dtype}: {held.layout}" for held in value.blobs]
    notes += [f"takes {symbol}={size} alone" for symbol, size in says.sizes.items()]
    inputs, outputs = (
        tuple(TensorSpec(value.name, value.dtype, value.shape) for value in values)
        for values in (says.inputs, says.outputs)
    )
    return inputs, outputs


def _seen(param: Path, done: Executed) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs with the dims that their layers say, if any, and the blobs that nothing reads."""
    try:
        inputs = tuple(
            TensorSpec(layer.tops[0], "float32", tuple(size for key in (2, 11, 1, 0) if (size := layer.integer(key))))
            for layer in done.layers
            if layer.type == "Input"
        )
    except (LookupError, ValueError) as error:
        raise RetargetError(f"{param}: an Input in it is not one of ncnn's: {error}", "give the file anew") from error
    read = {name for layer in done.layers for name in layer.bottoms}
    outputs = (name for layer in done.layers for name in layer.tops if name not in read)
    return inputs, tuple(TensorSpec(name, "float32", ()) for name in outputs)


def _sizes(says: Sidecar, done: Executed) -> dict[str, int]:
    """At which open dimensions the blobs were counted."""
    found: dict[str, int] = {}
    for value in says.inputs:
        for held in value.blobs:
            sizes = done.shapes[held.name][0 if held.rows is not None else 1 :]
            for dim, size in zip(held.dims, sizes, strict=True):
                if isinstance(dim.size, str) and len(dim.axes) == 1:
                    found[dim.size] = size
    specs = (TensorSpec(value.name, value.dtype, value.shape) for value in says.inputs)
    return {symbol: found[symbol] for symbol in symbols(specs) if symbol in found}
