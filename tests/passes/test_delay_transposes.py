from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from pass_testing import parse, run_pass

from retarget.passes.delay_transposes import DelayTransposes

W = np.random.default_rng(0).normal(0, 0.5, (4, 5)).astype(np.float16)


def product(perm: list[int], shape: str, dtype: str = "float16") -> str:
    out = f"{dtype}[{','.join('abcd'[: len(perm)])}]"
    return f"g ({dtype}[{shape}] x) => ({out} y) {{ t = Transpose <perm = {perm}> (x) y = MatMul(t, w) }}"


@pytest.mark.parametrize(
    ("perm", "shape"), [([1, 0, 2], "7,N,4"), ([1, 2, 0, 3], "2,N,3,4"), ([2, 1, 0, 3], "2,N,3,4")]
)
def test_the_transpose_comes_after(perm: list[int], shape: str) -> None:
    ran = run_pass(DelayTransposes(), product(perm, shape), {"w": W})
    assert ran.ops == ["MatMul", "Transpose"]
    assert ran.error < 1e-2


def test_a_transpose_that_others_read_stays_for_them() -> None:
    text = "g (float16[7,N,4] x) => (float16[N,7,4] t, float16[N,7,5] y) {"
    ran = run_pass(DelayTransposes(), text + "t = Transpose <perm = [1, 0, 2]> (x) y = MatMul(t, w) }", {"w": W})
    assert sorted(ran.ops) == ["MatMul", "Transpose", "Transpose"]
    assert ran.error < 1e-2


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        (product([1, 0, 2], "7,N,4", "float"), {"w": W.astype(np.float32)}),  # ONNX Runtime fuses it, and rightly
        (product([1, 0, 2], "7,N,4"), {"w": np.stack([W] * 2)[:1]}),  # a stack of matrices
        (product([1, 0], "4,N"), {"w": W}),
    ],
)
def test_others_are_left_alone(text: str, constants: dict[str, np.ndarray]) -> None:
    assert not run_pass(DelayTransposes(), text, constants).modified


def test_it_is_refused_where_the_summed_axis_moves() -> None:
    one = DelayTransposes()
    assert not run_pass(one, product([1, 2, 0], "4,N,7"), {"w": W}).modified
    assert [reason for _, reason in one.refused] == ["the axis that is summed over moves too"]


LOAD = "import sys, onnxruntime as ort; ort.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"


def loads(model: ir.Model, path: Path) -> bool:
    """Whether ONNX Runtime with its default optimizations loads ``model``, tried in a process that may die."""
    ir.save(model, path)
    return subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, check=False).returncode == 0


def test_onnxruntime_still_needs_it(tmp_path: Path) -> None:
    """When this fails, ONNX Runtime is mended, and the pass can go."""
    model = parse(product([1, 0, 2], "7,N,4"), {"w": W})
    assert not loads(model, tmp_path / "before.onnx")
    DelayTransposes()(model)
    assert loads(model, tmp_path / "after.onnx")
