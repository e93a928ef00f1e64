"""The recipe: YAML to frozen Structs, and the JSON Schema out of the same types.

The Structs below are what a person may write; ``recipe_yaml`` walks the YAML against them and collects all errors.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything in a recipe."""


PrecisionName = Literal["fp32", "fp16", "int8", "int16x8", "int8_dynamic", "int8_weights", "int4_weights", "palette6"]


class Shape(Settings, frozen=True, kw_only=True):
    min: int
    opt: int
    max: int


class Model(Settings, frozen=True, kw_only=True):
    path: str
    format: str | None = None
    factory: str | None = None
    inputs: dict[str, str] = {}
    shapes: dict[str, Shape | int] = {}
    outputs: list[str] = []
    sha256: str | None = None
    trust: bool = False
    options: dict[str, object] = {}


class Samples(Settings, frozen=True, kw_only=True):
    path: str
    samples: int | None = None


class Evaluation(Settings, frozen=True, kw_only=True):
    path: str
    labels: str
    metric: str = "top1"
    samples: int | None = None


class Data(Settings, frozen=True, kw_only=True):
    samples: Samples | None = None
    calibration: Samples | None = None
    evaluation: Evaluation | None = None
