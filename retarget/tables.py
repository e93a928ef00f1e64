"""Data on stdout: rows of one type as a table, or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from retarget.figures import count_text

if TYPE_CHECKING:
    from rich.table import Table

    from retarget.inspection import Inspection
    from retarget.preflight import Answer


@dataclass(frozen=True)
class Planned:
    """A step as ``build --dry-run`` shows it."""

    step: str
    kind: str
    toolchain: str
    status: str
    key: str


def show(rows: Sequence[object], *, json: bool) -> None:
    """Print dataclasses or Structs of one type, a row each."""
    if json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode() + "\n")
    elif rows:
        _print([_cells(row) for row in rows])


def show_inspection(inspection: Inspection, *, json: bool) -> None:
    """Print what an inspection found, a line for each thing that is known."""
    if json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(inspection), indent=2).decode() + "\n")
        return
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in inspection.rows():
        # Brackets of shapes are not rich's markup.
        grid.add_row(label, Text(text))
    _print_trimmed(grid)


def show_answers(answers: Sequence[Answer], *, json: bool) -> None:
    """Print what each target says to a model; refusals of one kind are one row, except as JSON."""
    if json:
        show(answers, json=True)
        return
    for answer in answers:
        name = f"{answer.target}/{answer.precision}"
        if answer.error is not None:
            sys.stdout.write(f"{name}: could not be asked: {answer.error}\n")
            continue
        nodes = count_text(answer.nodes or 0, "node")
        if answer.takes:
            sys.stdout.write(f"{name}: takes the model, {nodes}\n")
        else:
            sys.stdout.write(f"{name}: cannot take {len(answer.refused)} of {nodes}\n")
            _print(
                [
                    {"operator": one.operator, "nodes": str(len(one.nodes)), "which": one.named, "reason": one.reason}
                    for one in answer.groups
                ]
            )
            sys.stdout.write(f"what to do: {answer.hint}\n\n")


def _cells(row: object) -> dict[str, str]:
    values = msgspec.to_builtins(row)
    assert isinstance(values, dict)
    return {name: _text(value) for name, value in values.items()}


def _text(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(_text(item) for item in value) or "-"
        case _:
            return str(value)


def _print(rows: list[dict[str, str]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    _print_trimmed(table)


def _print_trimmed(table: Table) -> None:
    """Without the spaces and lines that rich fills a table up with."""
    from retarget.terminal import console

    out = console(stderr=False)
    with out.capture() as printed:
        out.print(table)
    out.file.write("\n".join(line.rstrip() for line in printed.get().strip("\n").split("\n")) + "\n")
