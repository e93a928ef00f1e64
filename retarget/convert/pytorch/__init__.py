"""The frontend of PyTorch: state dicts, safetensors, TorchScript, torch.export, modules, Hugging Face folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from retarget.convert.pytorch.forms import SUFFIXES, form_of

requires: tuple[str, ...] = ("torch", "safetensors")
extra: str | None = "pytorch"
layout: Literal["nchw", "nhwc"] = "nchw"
suffixes: Mapping[str, str] = SUFFIXES
takes_weights = False


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
    return form_of(path)


def parts(path: Path) -> Mapping[str, Path]:  # noqa: ARG001
    """None: a checkpoint is one file or folder."""
    return {}
