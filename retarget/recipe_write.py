"""Frozen Structs to YAML that ``recipe.load`` reads back as the same."""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import yaml

from retarget.recipe_nodes import resolve, write_path
from retarget.recipe_yaml import Settings, Written, struct_type

if TYPE_CHECKING:
    from retarget.recipe import Recipe


def dump(recipe: Recipe, relative_to: Path | None = None) -> str:
    """``recipe`` as YAML that ``load`` reads back as the same, keys in the Structs' order, defaults left out.

    Paths are written relative to the folder ``relative_to``, where the text must then stand; absolute if it is None.
    """
    return yaml.dump(
        _written(recipe, relative_to), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=sys.maxsize
    )


def scalar(text: str) -> str:
    """``text`` as a YAML scalar that is read back as this text, quoted only where it must be."""
    simple = re.fullmatch(r"[A-Za-z_./][\w./-]*(\[[\w,]*\])?", text, re.ASCII) and isinstance(resolve(text), str)
    if simple:
        return text
    return yaml.dump(text, Dumper=_Dumper, default_style='"', allow_unicode=True, width=sys.maxsize).rstrip("\n")


def _written(value: object, folder: Path | None) -> object:
    if isinstance(value, Written):
        return value.written(folder)
    if isinstance(value, Settings) and value.keyed:
        settings = _fields(value, folder)
        name = settings.pop("name")
        if settings.get("precision") == name:
            del settings["precision"]
        options = settings.pop("options", {})
        assert isinstance(options, dict)
        settings |= options
        return {name: settings} if settings else name
    if isinstance(value, msgspec.Struct):
        return _fields(value, folder)
    if isinstance(value, Path):
        return write_path(value, folder)
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key: _written(item, folder) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_written(item, folder) for item in value]
    return value


def _fields(struct: msgspec.Struct, folder: Path | None) -> dict[str, object]:
    """The fields of ``struct`` that differ from their defaults."""
    values: dict[str, object] = {}
    for field in struct_type(type(struct)).fields:
        value = getattr(struct, field.name)
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if field.name == "precision" or value != default:
            values[field.encode_name] = _written(value, folder)
    return values


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.2 would read as something else; PyYAML itself quotes what YAML 1.1 would."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature, here and below
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)

    def text(self, data: str) -> yaml.ScalarNode:
        plain = isinstance(resolve(data), str) and data.isprintable()
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if plain else '"')


_Dumper.add_representer(str, _Dumper.text)
