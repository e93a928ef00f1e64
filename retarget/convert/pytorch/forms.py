"""The forms in which PyTorch stores a model, told from their content. Standard library alone."""

from __future__ import annotations

import json
import pickletools
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from zipfile import ZipFile

from retarget.zips import ZIP_ERRORS

STATE_DICT, PICKLED = "state dict", "pickled module"
SAFETENSORS, TORCHSCRIPT, EXPORTED, HUGGING_FACE = "safetensors", "TorchScript", "torch.export", "Hugging Face folder"

SUFFIXES = {
    **dict.fromkeys((".pt", ".pth", ".ckpt"), STATE_DICT),
    ".pt2": EXPORTED,
    ".safetensors": SAFETENSORS,
}
"""The form of a file of which no more can be told, such as a damaged one."""

_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How files begin that `torch.save` wrote before they were zips: its magic number, pickled."""
_HEADER_LIMIT = 100 << 20
_SAFE_MODULES = ("torch", "collections", "numpy", "_codecs", "builtins")
_LEGACY_PICKLES = 4
"""Before the tensors of a file that is no archive: a magic number, the protocol, the system, and what was saved."""


def form_of(path: Path) -> str | None:
    """The form of checkpoint that ``path`` holds, from its content."""
    if path.is_dir():
        return HUGGING_FACE if _has_architecture(path / "config.json") else None
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(len(_LEGACY))
    if head.startswith(b"PK\x03\x04"):
        return _zip_form(path)
    if head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= _HEADER_LIMIT:
        return SAFETENSORS
    return STATE_DICT if head == _LEGACY else None


def pickled_classes(path: Path) -> list[str]:
    """The classes and functions that the pickle in ``path`` names beyond those of PyTorch, as far as can be read."""
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                with ZipFile(file) as archive:
                    pickles = [archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")]
                found = [each for pickled in pickles for each in _globals(BytesIO(pickled))]
            else:
                file.seek(0)
                found = [each for _ in range(_LEGACY_PICKLES) for each in _globals(file)]
    except ZIP_ERRORS:
        return []
    return sorted({f"{module}.{name}" for module, name in found if _is_foreign(module, name)})


def holds_a_script(path: Path) -> bool:
    """Whether PyTorch may take ``path`` for TorchScript, in whichever folder of the archive it looks."""
    try:
        with ZipFile(path) as archive:
            return any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist())
    except ZIP_ERRORS:
        return False


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
                pickled = BytesIO(archive.read(names["data.pkl"]))
                return PICKLED if any(_is_foreign(*each) for each in _globals(pickled)) else STATE_DICT
    except ZIP_ERRORS:
        return None
    return None


def _globals(pickled: BinaryIO) -> Iterator[tuple[str, str]]:
    """Module and name of each class and function that the next pickle in the stream names, up to what is damaged."""
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "GLOBAL":
                module, name = str(argument).split(" ", 1)
                yield module, name
            elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                yield strings[-2], strings[-1]
            elif isinstance(argument, str):
                strings.append(argument)
    except (ValueError, MemoryError):
        # Garbage may say that more bytes follow than there can be.
        return


def _is_foreign(module: str, name: str) -> bool:
    """Of some other package, or of ``torch.nn`` beyond parameters."""
    foreign = module.split(".")[0] not in _SAFE_MODULES
    return foreign or (module.startswith("torch.nn.") and not name.startswith(("Parameter", "Buffer")))


def _has_architecture(config: Path) -> bool:
    try:
        content = json.loads(config.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and ("architectures" in content or "model_type" in content)
