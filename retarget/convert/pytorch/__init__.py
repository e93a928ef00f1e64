"""The frontend of PyTorch: state dicts, safetensors, TorchScript, torch.export, modules, Hugging Face folders."""

from __future__ import annotations

import json
import pickletools
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile, ZipFile

import msgspec

requires: tuple[str, ...] = ("torch", "safetensors")
extra: str | None = "pytorch"
layout: Literal["nchw", "nhwc"] = "nchw"

STATE_DICT, PICKLED = "state dict", "pickled module"
SAFETENSORS, TORCHSCRIPT, EXPORTED, HUGGING_FACE = "safetensors", "TorchScript", "torch.export", "Hugging Face folder"

ZIP_ERRORS = (BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error, zlib.error)
"""What ``zipfile`` raises on damaged archives, as fuzzing found: it decodes names and data without a check."""

_SUFFIXES = frozenset({".pt", ".pth", ".pt2", ".ckpt"})
_HEADER_LIMIT = 100 << 20
_SAFE_MODULES = ("torch", "collections", "numpy", "_codecs", "builtins")


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a PyTorch model."""

    rung: Literal["auto", "dynamo", "torchscript"] = "auto"
    """Which exporter to use; ``auto`` tries dynamo, dynamo with eager attention, then the TorchScript exporter."""
    strict: bool = True
    """A state dict must have exactly the keys of the module; otherwise missing and unexpected ones become notes."""
    factory_args: dict[str, bool | int | float | str | None] = {}
    """Keyword arguments for the factory."""


def matches(path: Path) -> str | None:
    """The form of checkpoint that ``path`` holds, from its content."""
    if path.is_dir():
        return HUGGING_FACE if _has_architecture(path / "config.json") else None
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(8)
        start = head + file.read(1)
    if head.startswith(b"PK\x03\x04"):
        return _zip_form(path)
    if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", head)[0] <= _HEADER_LIMIT:
        return SAFETENSORS
    if head[:1] == b"\x80" and path.suffix in _SUFFIXES:
        return STATE_DICT
    # A damaged file should be met with an error of this reader, not with "unknown format".
    return SAFETENSORS if path.suffix == ".safetensors" else STATE_DICT if path.suffix in _SUFFIXES else None


def parts(path: Path) -> Mapping[str, Path]:  # noqa: ARG001
    """None: a checkpoint is one file or folder."""
    return {}


def _zip_form(path: Path) -> str | None:
    try:
        with ZipFile(path) as archive:
            # PyTorch puts everything into one folder, called after the file.
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            if "constants.pkl" in names and "data.pkl" in names:
                return TORCHSCRIPT
            if "archive_format" in names or any(name.startswith("models/") for name in names):
                return EXPORTED
            if "data.pkl" in names:
                return PICKLED if _holds_a_module(archive.read(names["data.pkl"])) else STATE_DICT
    except ZIP_ERRORS:
        return STATE_DICT if path.suffix in _SUFFIXES else None
    return None


def _holds_a_module(pickled: bytes) -> bool:
    """Whether the pickle names a class of some other package, or of ``torch.nn`` beyond parameters."""
    try:
        strings: list[str] = []
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "GLOBAL":
                module, name = str(argument).split(" ", 1)
            elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                module, name = strings[-2:]
            else:
                if isinstance(argument, str):
                    strings.append(argument)
                continue
            foreign = module.split(".")[0] not in _SAFE_MODULES
            if foreign or (module.startswith("torch.nn.") and not name.startswith(("Parameter", "Buffer"))):
                return True
    except ValueError:
        return False
    return False


def _has_architecture(config: Path) -> bool:
    try:
        content = json.loads(config.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and ("architectures" in content or "model_type" in content)
