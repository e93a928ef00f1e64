"""PyTorch checkpoints: which form, and the tensors where reading them runs no code."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from pathlib import Path

import msgspec

from retarget.convert.pytorch import forms
from retarget.errors import DAMAGED, RetargetError
from retarget.inspection.result import Inspection, most_first
from retarget.spec import TensorSpec

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
} | {f"{short}{bits}": f"{name}{bits}" for short, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)}

_HINTS = {
    forms.STATE_DICT: "it holds weights only: give the code that builds the module with --factory FILE.py:FUNCTION",
    forms.SAFETENSORS: "it holds weights only: give the code that builds the module with --factory FILE.py:FUNCTION",
    forms.PICKLED: "unpickling a module runs code from the file: it is read with --trust only",
}


class _Entry(msgspec.Struct):
    """A tensor in the header of a safetensors file."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def inspect(path: Path, form: str) -> Inspection:
    """What ``path``, which is of ``form``, says. Raises ``RetargetError`` for a damaged header."""
    notes = [_HINTS[form]] if form in _HINTS else []
    tensors: list[tuple[TensorSpec, int]] = []
    size = path.stat().st_size
    if form == forms.SAFETENSORS:
        tensors = _header(path)
    elif form == forms.HUGGING_FACE:
        notes += _config(path / "config.json")
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        for file in sorted(path.glob("*.safetensors")):
            tensors += _header(file)
    else:
        notes.append("its tensors are not listed: inspect reads no pickles")
    weights: Counter[str] = Counter()
    for spec, length in tensors:
        weights[spec.dtype] += length
    return Inspection(
        path=str(path),
        what=f"PyTorch checkpoint ({form})",
        bytes=size,
        parameters=sum(math.prod(spec.at({})) for spec, _ in tensors) if tensors else None,
        weights=most_first(weights),
        tensors=tuple(spec for spec, _ in tensors),
        notes=tuple(notes),
    )


def _header(path: Path) -> list[tuple[TensorSpec, int]]:
    """The tensors of a safetensors file and their bytes, from its header."""
    there = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else there
        if 8 + length > there:
            raise RetargetError(f"{path}: the header needs {length} bytes, and the file has {there}", DAMAGED)
        header = file.read(length)
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(entry, type=_Entry) for name, entry in raw.items()}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RetargetError(f"{path}: the header is not that of a safetensors file ({error})", DAMAGED) from error
    found = []
    for name, entry in entries.items():
        begin, end = entry.data_offsets
        if not 0 <= begin <= end <= there - 8 - length:
            raise RetargetError(f"{path}: tensor '{name}' lies outside the file", DAMAGED)
        spec = TensorSpec(name, _DTYPES.get(entry.dtype, entry.dtype.lower()), tuple(entry.shape))
        found.append((spec, end - begin))
    return found


def _config(path: Path) -> list[str]:
    content = json.loads(path.read_bytes())
    architectures = content.get("architectures") or []
    return [
        f"model type: {content.get('model_type', 'not said')}",
        f"architecture: {', '.join(architectures) or 'not said'}",
    ]
