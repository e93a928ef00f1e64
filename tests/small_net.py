"""A small module of PyTorch as a file and as an object, and the frontend that is tested with it."""

from __future__ import annotations

import warnings
from pathlib import Path

import msgspec
import torch
from torch import nn

from retarget.catalog import frontend, frontend_export, frontend_load
from retarget.protocols import JSON
from retarget.source import Source
from retarget.spec import DimRange, TensorSpec

EXPORT = frontend_export("pytorch")
LOAD = frontend_load("pytorch")
MATCHES = frontend("pytorch").matches
SHAPES = {"N": DimRange(1, 2, 4), "T": DimRange(2, 5, 9)}

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 3)
    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x))))

def build(width=8):
    return Net(width)
def broken():
    raise ValueError("no such backbone")
def number():
    return 7
"""


class Net(nn.Module):
    """The module of ``NET``."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(torch.relu(self.norm(self.first(x))))
        return y


def source_of(path: Path, *inputs: str, **more: object) -> Source:
    specs = tuple(map(TensorSpec.parse, inputs))
    more["options"] = options_of(**more.pop("options", {}))  # type: ignore[arg-type]
    return Source(path, specs, SHAPES, **more)  # type: ignore[arg-type]


def options_of(**given: JSON) -> dict[str, object]:
    """All options of the frontend, by default but for those that are ``given``."""
    options: dict[str, object] = msgspec.to_builtins(msgspec.convert(given, frontend("pytorch").Options))
    return options


def save_program(module: nn.Module, path: Path, example: torch.Tensor, dynamic: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(module, (example,), dynamic_shapes=dynamic), path)  # type: ignore[arg-type]
