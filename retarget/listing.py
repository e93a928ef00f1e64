"""What ``retarget list`` shows: the catalogue, with what this machine can do."""

from __future__ import annotations

from dataclasses import dataclass

from retarget import catalog
from retarget.errors import RetargetError, did_you_mean


@dataclass(frozen=True)
class FrontendRow:
    name: str
    needs: tuple[str, ...]
    add: str


@dataclass(frozen=True)
class PassRow:
    name: str
    what: str


@dataclass(frozen=True)
class TargetRow:
    name: str
    precisions: tuple[str, ...]
    build: str
    execute: str


def rows(what: str) -> list[FrontendRow] | list[PassRow] | list[TargetRow]:
    """``frontends``, ``passes`` or ``targets``. Raises ``RetargetError`` for another word."""
    match what:
        case "frontends":
            return [_frontend(name) for name in catalog.FRONTENDS]
        case "passes":
            return [PassRow(name, catalog.PASSES[name]) for name in catalog.PASSES]
        case "targets":
            return [_target(name) for name in catalog.TARGETS]
        case _:
            known = ("frontends", "passes", "targets")
            raise RetargetError(f"there is no list of '{what}'", did_you_mean(what, known))


def _frontend(name: str) -> FrontendRow:
    frontend = catalog.frontend(name)
    return FrontendRow(name, frontend.requires, f"pip install 'retarget[{frontend.extra}]'" if frontend.extra else "-")


def _target(name: str) -> TargetRow:
    target = catalog.target(name)
    lack, idle = target.unavailable(), target.not_executable()
    return TargetRow(
        name=name,
        precisions=tuple(sorted(target.precisions)),
        build="yes" if lack is None else f"no: {lack[0]}",
        execute="yes" if idle is None else f"no: {idle}",
    )
