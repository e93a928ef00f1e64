"""What runs in the user's own interpreter keeps to Python 3.8 and imports nothing of retarget's that does not."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from other_python import interpreter

from retarget import catalog, worker_remote
from retarget.worker_remote import AWAY, PACKAGE, away_module

LATER = ("tomllib", "zoneinfo", "graphlib")
"""Of the standard library, but not of Python 3.8's."""
ALWAYS = {"numpy", "onnx"}
WHERE_USED = {"ml_dtypes", "onnxruntime", "onnxscript", "transformers", "safetensors", "h5py"}
"""Imported inside a function, for what not every model needs."""
MODULES_OF = {
    "tensorflow": {"tensorflow", "tf2onnx", "google"},
    "keras": {"keras", "tensorflow", "tf2onnx", "h5py", "google"},
}
"""Frontend to what its distributions are called as modules, where that is not their own name."""
NEW_METHODS = {
    *("removeprefix", "removesuffix", "is_relative_to", "with_stem", "bit_count", "pairwise", "batched", "readlink"),
    *("hardlink_to", "packages_distributions"),
}
"""Names of methods and functions that came after 3.8."""


def frontends() -> list[str]:
    """Those that have a framework, and so an interpreter of its own to have it in."""
    return [name for name in catalog.FRONTENDS if catalog.frontend(name).requires]


@cache
def tree(name: str) -> ast.Module:
    file = away_module(name)
    assert file is not None
    return ast.parse(file.read_text(), feature_version=(3, 8))


def imports(node: ast.AST, *, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Each imported module, and whether a function imports it; those for the type checker alone are left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0
            assert child.module is not None
            for alias in child.names:
                whole = f"{child.module}.{alias.name}"
                is_module = child.module.startswith("retarget") and away_module(whole) is not None
                yield (whole if is_module else child.module), inside
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from imports(other, inside=inside)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from imports(child, inside=inside or function)


@cache
def reached(start: str) -> tuple[str, ...]:
    """The modules of retarget that ``start`` imports, directly or not, and itself."""
    found = {start: None}
    waiting = [start]
    while waiting:
        for name, _ in imports(tree(waiting.pop())):
            if name.startswith("retarget.") and name not in found:
                assert away_module(name) is not None, f"{name} is not served"
                if (away_module(name) or PACKAGE).suffix == ".py":
                    found[name] = None
                    waiting.append(name)
    return tuple(sorted(found))


@pytest.mark.parametrize("frontend", frontends())
def test_a_frontend_imports_only_what_is_there(frontend: str) -> None:
    own = MODULES_OF.get(frontend, {name.replace("-", "_") for name in catalog.frontend(frontend).requires})
    library = set(sys.stdlib_module_names) - set(LATER)
    for module in reached(f"retarget.convert.{frontend}.export"):
        for name, inside in imports(tree(module)):
            top = name.partition(".")[0]
            assert top in library | own | ALWAYS | {"retarget"} | (WHERE_USED if inside else set()), (module, name)


@pytest.mark.parametrize("frontend", frontends())
def test_a_frontend_uses_no_method_that_came_later(frontend: str) -> None:
    for module in reached(f"retarget.convert.{frontend}.export"):
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Attribute):
                assert node.attr not in NEW_METHODS, (module, node.lineno)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
                assert not node.keywords, (module, node.lineno)


def test_the_process_itself_needs_only_the_standard_library() -> None:
    source = ast.parse(Path(worker_remote.__file__).read_text(), feature_version=(3, 8))
    for name, inside in imports(source):
        top = name.partition(".")[0]
        assert top in set(sys.stdlib_module_names) - set(LATER) or (inside and away_module(name) is not None), name


def test_every_module_compiles_in_the_oldest_python() -> None:
    names = [*(f"retarget.{name}" for name in AWAY)]
    names += [name for frontend in frontends() for name in reached(f"retarget.convert.{frontend}.export")]
    files = [str(away_module(name)) for name in dict.fromkeys(names)] + [worker_remote.__file__]
    code = "import sys\nfor file in sys.argv[1:]: compile(open(file, encoding='utf-8').read(), file, 'exec')"
    subprocess.run([interpreter("tensorflow"), "-c", code, *files], check=True)


def test_what_is_not_served_is_said() -> None:
    code = f"""
import sys; sys.path.insert(0, {str(PACKAGE)!r})
import worker_remote
sys.modules.pop("retarget", None); sys.meta_path.insert(0, worker_remote.Away)
import retarget.convert.pytorch.forms, retarget.errors
assert not hasattr(retarget, "__version__"), "packages are served empty"
for name in ("retarget.graph", "retarget.convert.pytorch.load", "retarget.nobody"):
    try:
        __import__(name)
    except ImportError as error:
        print(error)
"""
    said = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert [line.partition(" is not there")[0] for line in said.splitlines()] == [
        "retarget.graph",
        "retarget.convert.pytorch.load",
        "retarget.nobody",
    ]
