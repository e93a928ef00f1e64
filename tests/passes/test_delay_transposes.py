from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from pass_testing import parse, run_pass

from retarget.passes.delay_transposes import DelayTransposes, deadly

DIMS = ("3", "N", "4", "5")
SIZES = {"N": 6}
RNG = np.random.default_rng(0)


def product(perm: list[int], form: str, dtype: str = "float16") -> tuple[str, dict[str, np.ndarray]]:
    """A product of the transposed input, in one of the forms that ONNX Runtime dies of, and its constant."""
    dims = DIMS[: len(perm)]
    turned = [SIZES.get(dims[axis]) or int(dims[axis]) for axis in perm]
    shape = {"left": (turned[-1], 7), "right": (7, turned[-2]), "vector": (turned[-1],), "left_vector": (turned[-2],)}
    line = "MatMul(w, t)" if form in ("right", "left_vector") else "MatMul(t, w)"
    outs = ",".join("abcd"[: len(perm) - ("vector" in form)])
    text = f"g ({dtype}[{','.join(dims)}] x) => ({dtype}[{outs}] y) {{ t = Transpose <perm = {perm}> (x) y = {line} }}"
    return text, {"w": RNG.normal(0, 0.5, shape[form]).astype(dtype.replace("float16", "f2").replace("float", "f4"))}


FORMS = ("left", "right", "vector", "left_vector")
DEADLY = ([1, 0, 2], [1, 2, 0], [1, 2, 0, 3], [1, 2, 3, 0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("perm", DEADLY, ids=str)
def test_the_product_is_the_same(perm: list[int], form: str) -> None:
    ran = run_pass(DelayTransposes(), *product(perm, form), sizes=(SIZES,))
    assert ran.modified
    assert ran.ops[-1] == "Transpose"
    assert ran.error < 1e-2


def test_no_transpose_is_left_before_a_product_over_the_last_axis() -> None:
    assert run_pass(DelayTransposes(), *product([1, 0, 2], "left"), sizes=(SIZES,)).ops == ["MatMul", "Transpose"]


def test_a_transpose_that_others_read_stays_for_them() -> None:
    text = "g (float16[7,N,4] x) => (float16[N,7,4] t, float16[N,7,5] y) {"
    constants = {"w": RNG.normal(0, 0.5, (4, 5)).astype(np.float16)}
    ran = run_pass(DelayTransposes(), text + "t = Transpose <perm = [1, 0, 2]> (x) y = MatMul(t, w) }", constants)
    assert sorted(ran.ops) == ["MatMul", "Transpose", "Transpose"]
    assert ran.error < 1e-2


CAST = """g (float16[3,N,4] x) => (float[a,b,c] y, float[a,b,c] z) {
    t = Transpose <perm = [1, 2, 0]> (x) c = Cast <to = 1> (t) y = MatMul(c, w) z = MatMul(c, w) }"""


def test_a_cast_comes_before_the_transpose() -> None:
    constants = {"w": RNG.normal(0, 0.5, (3, 7)).astype(np.float32)}
    ran = run_pass(DelayTransposes(), CAST, constants)
    assert ran.ops == ["Cast", "Transpose", "MatMul"] * 2
    assert ran.error == 0
    values = [out.name for node in ran.model.graph for out in node.outputs]
    assert len(set(values)) == len(values)


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        product([1, 0, 2], "left", "float"),  # ONNX Runtime fuses it, and rightly
        product([0, 2, 1], "left"),
        product([2, 1, 0, 3], "left"),
        product([1, 0], "left"),
    ],
    ids=["float32", "first axis stays", "other order", "rank 2"],
)
def test_others_are_left_alone(text: str, constants: dict[str, np.ndarray]) -> None:
    assert not run_pass(DelayTransposes(), text, constants, sizes=(SIZES,)).modified


def test_a_stack_of_matrices_is_refused() -> None:
    one = DelayTransposes()
    text, _ = product([1, 0, 2], "left")
    assert not run_pass(one, text, {"w": np.ones((1, 4, 7), np.float16)}, sizes=(SIZES,)).modified
    assert [reason for _, reason in one.refused] == ["the other factor is a stack of matrices"]


LOAD = """
import os, sys, onnxruntime as ort
for path in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def exits(models: list[ir.Model], folder: Path) -> list[int]:
    """Exit code of a process for each model that loads it with ONNX Runtime's default optimizations; -11: it died."""
    paths = [folder / f"{index}.onnx" for index in range(len(models))]
    for model, path in zip(models, paths, strict=True):
        ir.save(model, path)
    ran = subprocess.run([sys.executable, "-c", LOAD, *map(str, paths)], capture_output=True, text=True, check=True)
    return [int(line) for line in ran.stdout.split()]


@pytest.mark.skipif(sys.platform == "win32", reason="processes that may die are forked")
def test_onnxruntime_dies_of_these_and_only_of_these(tmp_path: Path) -> None:
    """When this fails, ONNX Runtime is mended, and the pass can go."""
    cases = [
        (list(perm), form)
        for rank in (2, 3, 4)
        for perm in itertools.permutations(range(rank))
        for form in (FORMS if rank > 2 else FORMS[:2])
    ]
    models = [parse(*product(perm, form)) for perm, form in cases]
    models.append(parse(CAST, {"w": np.ones((3, 7), np.float32)}))
    died = [code == -11 for code in exits(models, tmp_path)]
    assert died == [deadly(perm) for perm, _ in cases] + [True]
    assert sum(died) == len(DEADLY) * len(FORMS) + 1
    for model in models:
        DelayTransposes()(model)
    assert exits(models, tmp_path) == [0] * len(models)
