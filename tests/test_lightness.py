"""Light modules stay light: import-linter follows imports inside functions, so this is a test of processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import retarget
from retarget import catalog

HEAVY = (
    *("numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "onnxsim", "torch", "tensorflow", "keras", "tf2onnx"),
    *("openvino", "tensorrt_rtx", "coremltools", "scipy", "ncnn"),
)
PACKAGE = Path(retarget.__file__).parent
HEAVY_MODULES = {
    "adapt", "bench", "budget", "compare", "correction", "dimensions", "equalization", "graph", "int8",
    "interface_graph", "interface_runner", "lookups", "masks", "metrics", "reference", "repeats", "rows", "session",
    "steps", "user_code", "verification",
}  # fmt: skip
"""The top-level modules that only a worker or a heavy command imports."""
LIGHT = [
    *(f"retarget.{path.stem}" for path in sorted(PACKAGE.glob("*.py")) if path.stem not in HEAVY_MODULES),
    *catalog.FRONTENDS.values(),
    *catalog.TARGETS.values(),
]

DIGITS = Path(__file__).parent.parent / "examples" / "digits" / "recipe.yaml"


def heavy_modules_after(code: str) -> set[str]:
    report = f"{code}\nimport sys; print(*[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True, timeout=60)
    return set(ended.stderr.split()) & set(HEAVY)


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_imports_nothing_heavy(module: str) -> None:
    assert heavy_modules_after(f"import {module}") == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["convert", "--help"],
        ["build", "--help"],
        ["list", "frontends"],
        ["list", "passes"],
        ["list", "targets"],
        ["doctor"],
        ["schema"],
        ["build", str(DIGITS), "--dry-run"],
    ],
    ids=" ".join,
)
def test_a_light_command_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    if "--dry-run" in arguments:
        arguments = [*arguments, "--store", str(tmp_path)]
    code = f"""
import sys
from retarget.cli import main
sys.argv = ["retarget", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
"""
    assert heavy_modules_after(code) == set()


def test_the_check_would_see_a_heavy_import() -> None:
    assert "numpy" in heavy_modules_after("import numpy")
