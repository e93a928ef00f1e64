"""Writes the pages of docs/ that are made from the code. `make docs` runs it; a test holds the pages against it.

python docs/generate.py [--check]
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import get_type_hints

import msgspec
from typer.main import get_command
from typer.testing import CliRunner

from retarget import catalog, listing, recipe_schema, schemes
from retarget.cli import app
from retarget.convert.caffe import layers
from retarget.passes import presets

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- Made by docs/generate.py from the code: change that, not this page. -->\n\n"


def pages() -> Iterator[tuple[str, str]]:
    """Every generated page as (path below docs/, text)."""
    yield "recipe.schema.json", recipe_schema.text()
    yield "reference/caffe-layers.md", NOTE + caffe_layers()
    yield "reference/cli.md", NOTE + cli()
    yield "reference/frontends.md", NOTE + frontends()
    yield "reference/passes.md", NOTE + passes()
    yield "reference/schemes.md", NOTE + quant_schemes()
    yield "reference/targets.md", NOTE + targets()


def caffe_layers() -> str:
    """Every type of Caffe's layers, and what its function says that it becomes."""
    parts = ["# Layers of Caffe\n", "What each type of layer becomes in ONNX. Layers of other types are refused.\n"]
    for family in layers.FAMILIES:
        heading, _, rest = (inspect.getdoc(family) or "").partition("\n\n")
        rows = [f"| `{name}` | {meaning(lowering)} |" for name, lowering in sorted(family.LAYERS.items())]
        parts += [f"## {plain(heading.rstrip('.'))}\n", *([f"{plain(rest)}\n"] if rest else [])]
        parts += ["\n".join(["| layer | becomes |", "|---|---|", *rows, ""])]
    return "\n".join(parts)


def meaning(function: object) -> str:
    """The docstring of ``function`` in one line."""
    return plain(" ".join((inspect.getdoc(function) or "").split()))


def plain(text: str) -> str:
    """Docstrings write ``code`` as reStructuredText does."""
    return text.replace("``", "`")


def cli() -> str:
    """The help of every command."""
    runner = CliRunner()
    commands = [[name] for name in get_command(app).commands if name != "cache"]  # type: ignore[attr-defined]
    commands += [["cache", name] for name in ("ls", "verify", "gc")]
    parts = ["# Commands\n"]
    for command in commands:
        shown = runner.invoke(app, [*command, "--help"], prog_name="retarget", env={"COLUMNS": "110"})
        parts.append(f"## retarget {' '.join(command)}\n\n```\n{shown.output.strip()}\n```\n")
    return "\n".join(parts)


def frontends() -> str:
    """What can be read."""
    parts = ["# Frontends\n"]
    for name in catalog.FRONTENDS:
        module = catalog.frontend(name)
        parts += [f"## {name}\n", f"{inspect.getdoc(module)}\n", options(module.Options)]
    return "\n".join(parts)


def targets() -> str:
    """What can be written."""
    parts = ["# Targets\n"]
    for name in catalog.TARGETS:
        module = catalog.target(name)
        precisions = ", ".join(sorted(module.precisions))
        parts += [
            f"## {name}\n",
            f"{inspect.getdoc(module)}\n",
            f"Precisions: {precisions}.\n",
            options(module.Options),
        ]
    return "\n".join(parts)


def options(struct: type[msgspec.Struct]) -> str:
    """The options of a frontend or target as a table; a field's meaning is its description, or the string behind it."""
    (described,) = ast.parse(textwrap.dedent(inspect.getsource(struct))).body
    assert isinstance(described, ast.ClassDef)
    meanings = {
        field.target.id: text.value.value
        for field, text in pairwise(described.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
    for name, hint in get_type_hints(struct, include_extras=True).items():
        for meta in getattr(hint, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta) and meta.description:
                meanings[name] = meta.description
    fields = msgspec.structs.fields(struct)
    if not fields:
        return "No options.\n"
    rows = [f"| `{field.name}` | `{default(field)}` | {meanings[field.name]} |" for field in fields]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows, ""])


def default(field: msgspec.structs.FieldInfo) -> str:
    """The default of an option as a recipe would write it."""
    value: object = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return str(msgspec.json.encode(value), "utf-8")


def quant_schemes() -> str:
    """Every scheme of int8; what it is for is the string behind it in the source."""
    parts = ["# Schemes of int8\n", f"{inspect.getdoc(schemes)}\n"]
    body = ast.parse(inspect.getsource(schemes)).body
    for assigned, text in pairwise(body):
        if not (isinstance(assigned, ast.Assign) and isinstance(assigned.targets[0], ast.Name)):
            continue
        scheme = getattr(schemes, assigned.targets[0].id)
        if not isinstance(scheme, schemes.QuantScheme):
            continue
        assert isinstance(text, ast.Expr)
        assert isinstance(text.value, ast.Constant)
        assert isinstance(text.value.value, str)
        users = [name for name in catalog.TARGETS if scheme in catalog.target(name).schemes.values()]
        rows = {
            "targets": ", ".join(users) or "none yet",
            "activations": f"{scheme.activation}, {scheme.low} to {scheme.high}, "
            + ("zero point 0" if scheme.symmetric else "zero point after the range"),
            "weights": f"int8, {scheme.weight_low} to 127, a scale for each output channel",
            "bias": scheme.bias,
            "in int8 with a constant weight": listed(scheme.weighted),
            "of these, convolutions": convolutions(scheme),
            "product of two activations": "int8" if scheme.products else "float",
            "in int8 between such nodes": listed(scheme.arithmetic),
            "inside the kernel before them": listed(scheme.fused),
            "move integers unchanged": listed(scheme.moving),
            "one scale for inputs and output": listed(scheme.same_scale),
            "output has a fixed scale": listed(tuple(scheme.fixed)),
        }
        table = [f"| {what} | {value} |" for what, value in rows.items()]
        parts += [f"## {scheme.name}\n", f"{text.value.value}\n", "\n".join(["| | |", "|---|---|", *table, ""])]
    return "\n".join(parts)


def convolutions(scheme: schemes.QuantScheme) -> str:
    """Which of them compute in int8."""
    limits = []
    if scheme.spatial is not None:
        limits.append(f"along {' or '.join(map(str, scheme.spatial))} axes")
    if not scheme.grouped:
        limits.append("of one group")
    return ", ".join(limits) or "all"


def listed(operators: tuple[str, ...]) -> str:
    """Operators in alphabetical order."""
    return ", ".join(sorted(operators)) or "none"


def passes() -> str:
    """Every pass, with the presets that run it."""
    lines = ["# Passes\n", "| pass | what it does | presets |", "|---|---|---|"]
    for name, place in catalog.PASSES.items():
        runs = [preset for preset in presets.PRESETS if name in preset_names(preset)]
        lines.append(f"| `{name}` | {listing.summary(place)} | {', '.join(runs)} |")
    return "\n".join(lines) + "\n"


def preset_names(preset: str) -> list[str]:
    """The passes of ``preset``, in order."""
    return [named.name for named in presets.build(preset, {})]


def main(arguments: list[str]) -> int:
    """Write the pages, or with ``--check`` say which are out of date."""
    stale = []
    for name, text in pages():
        path = DOCS / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in arguments:
                path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"{'out of date' if '--check' in arguments else 'wrote'}: docs/{name}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
