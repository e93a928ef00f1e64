"""What ``retarget list`` shows: the catalogue, with what this machine can do."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from retarget import catalog
from retarget.errors import RetargetError, did_you_mean
from retarget.figures import bytes_text
from retarget.recipe import PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from retarget.store import Entry


@dataclass(frozen=True)
class FrontendRow:
    name: str
    what: str
    needs: tuple[str, ...]
    add: str


@dataclass(frozen=True)
class PassRow:
    name: str
    what: str


@dataclass(frozen=True)
class CacheRow:
    """An artifact of the store. ``used``: local time."""

    key: str
    step: str
    size: str
    used: str
    leased: bool


@dataclass(frozen=True)
class TargetRow:
    name: str
    precisions: tuple[str, ...]
    build: str
    execute: str


def cached(entries: Iterable[Entry]) -> list[CacheRow]:
    """What ``retarget cache ls`` shows to a person."""
    return [
        CacheRow(
            key=entry.key[:12],
            step=entry.id,
            size=bytes_text(entry.bytes),
            used=datetime.fromtimestamp(entry.used).astimezone().isoformat(" ", "minutes"),
            leased=entry.leased,
        )
        for entry in entries
    ]


def rows(what: str) -> list[FrontendRow] | list[PassRow] | list[TargetRow]:
    """``frontends``, ``passes`` or ``targets``. Raises ``RetargetError`` for another word."""
    match what:
        case "frontends":
            return [_frontend(name) for name in catalog.FRONTENDS]
        case "passes":
            return [PassRow(name, summary(place)) for name, place in catalog.PASSES.items()]
        case "targets":
            return [_target(name) for name in catalog.TARGETS]
        case _:
            known = ("frontends", "passes", "targets")
            raise RetargetError(f"there is no list of '{what}'", did_you_mean(what, known))


def _frontend(name: str) -> FrontendRow:
    frontend = catalog.frontend(name)
    add = f"pip install 'retarget[{frontend.extra}]'" if frontend.extra else "-"
    return FrontendRow(name, summary(catalog.FRONTENDS[name]), frontend.requires, add)


def _target(name: str) -> TargetRow:
    target = catalog.target(name)
    lack, idle = target.unavailable(), target.not_executable()
    return TargetRow(
        name=name,
        precisions=tuple(sorted(target.precisions, key=PRECISIONS.index)),
        build="yes" if lack is None else f"no: {lack[0]}",
        execute=f"no: {idle}" if idle else f"interpreted: {target.interpreted}" if target.interpreted else "yes",
    )


def summary(place: str) -> str:
    """The first paragraph about a module, or a class in it, read from its source: importing a pass imports numpy.

    A class that has its module to itself may leave its description to the module.
    """
    module, _, name = place.partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    text = ast.get_docstring(tree) or ""
    if name:
        described = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
        own = ast.get_docstring(described) or ""
        text = text if own.startswith("See the module") else own
    return " ".join(text.split("\n\n")[0].split())
