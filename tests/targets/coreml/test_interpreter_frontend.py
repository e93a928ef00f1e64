"""The interpreter against PyTorch, on packages that coremltools' own PyTorch frontend wrote.

One misunderstanding of MIL cannot hide in both: what writes these programs is not what writes ours.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import frontend_cases
import numpy as np
import pytest

from retarget.compare import snr_db
from retarget.targets.coreml.interpreter import program
from retarget.targets.coreml.interpreter.call import NotInterpreted
from retarget.targets.coreml.interpreter.evaluate import Interpreter

if TYPE_CHECKING:
    from retarget.protocols import Array

LEAST_DB = {"fp32": 100, "fp16": 40}

COMPRESSED = {
    "int8": "constexpr_affine_dequantize",
    "int8 symmetric": "constexpr_affine_dequantize",
    "int8 of blocks": "constexpr_blockwise_shift_scale",
    "int4 of blocks": "constexpr_blockwise_shift_scale",
    "6 bits": "constexpr_lut_to_dense",
    "4 bits of groups": "constexpr_lut_to_dense",
    "pruned": "constexpr_sparse_to_dense",
    "pruned, 4 bits": "constexpr_lut_to_sparse",
    "pruned, int8": "constexpr_sparse_blockwise_shift_scale",
}
"""How weights are compressed, and what makes them whole."""

NOT_AS_PYTORCH = "avg_pool rounded up behind all"
"""Where the size is rounded up and nothing is padded, the frontend's own size is one more than PyTorch's."""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each case; its own process, as the frontend needs what ours hides from coremltools."""
    out = tmp_path_factory.mktemp("frontend")
    writer = Path(__file__).with_name("frontend_programs.py")
    done = subprocess.run([sys.executable, writer, out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def results(package: Path, mode: Literal["fp16", "fp32"] = "fp16") -> tuple[list[Array], list[Array]]:
    """What PyTorch gave, and what the interpreter makes of the package."""
    reference = np.load(package.parent / "reference.npz")
    feeds = {name: reference[name] for name in reference if name.startswith("x")}
    right = [reference[f"y{index}"] for index in range(len(reference) - len(feeds))]
    return right, list(Interpreter(program.read(package), mode).run(feeds).values())


def test_all_were_written(packages: Path) -> None:
    assert json.loads((packages / "failed.json").read_text()) == {}


@pytest.mark.parametrize("name", sorted(frontend_cases.cases().keys() - {NOT_AS_PYTORCH}))
def test_as_pytorch(packages: Path, name: str) -> None:
    written = sorted((packages / name).glob("*.mlpackage"))
    assert len(written) == 2
    for package in written:
        right, found = results(package)
        assert [each.shape for each in found] == [each.shape for each in right]
        for index, (expected, computed) in enumerate(zip(right, found, strict=True)):
            if expected.dtype.kind == "f":
                assert snr_db(expected, computed) > LEAST_DB[package.name[:4]], f"{package.name}, output {index}"
            else:
                np.testing.assert_array_equal(computed, expected, f"{package.name}, output {index}")


def test_a_size_that_pytorch_does_not_have(packages: Path) -> None:
    for package in (packages / NOT_AS_PYTORCH).glob("*.mlpackage"):
        with pytest.raises(NotInterpreted, match="behind all of 9 elements"):
            results(package)


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed(packages: Path, name: str) -> None:
    """As coremltools makes the weights whole, and not far from what they were."""
    folder = packages / "compressed" / name
    main = program.read(folder / "compressed.mlpackage").functions["main"]
    assert COMPRESSED[name] in {each.type for each in main.block.operations}
    (right,), (found,) = results(folder / "compressed.mlpackage", "fp32")
    _, (plain,) = results(folder / "plain.mlpackage", "fp32")
    assert snr_db(plain, found) > (110 if main.opset < 18 else 60)  # From iOS18 on in float16: scales are rounded.
    assert snr_db(right, found) > (3 if "pruned" in name else 15)


def test_every_family_is_written(packages: Path) -> None:
    """What the programs have of each family; what the frontend does not write is held against other things."""
    written = {
        each.type
        for package in packages.rglob("*.mlpackage")
        for function in program.read(package).functions.values()
        for each in function.block.operations
    }
    assert not EXPECTED - written


EXPECTED = {
    *(
        "avg_pool",
        "batch_norm",
        "quantize",
        "dequantize",
        "conv",
        "conv_transpose",
        "einsum",
        "gather",
        "gather_along_axis",
        "gather_nd",
    ),
    *("instance_norm", "layer_norm", "linear", "lstm", "matmul", "max_pool", "pixel_shuffle", "pixel_unshuffle"),
    *("resample", "affine", "rnn", "scaled_dot_product_attention", "scatter_along_axis", "scatter_nd", "softmax"),
    *("upsample_bilinear", "upsample_nearest_neighbor", "while_loop", "cond"),
}
