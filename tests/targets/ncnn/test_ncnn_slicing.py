"""Crops that become one Slice: the layers that are written, and the same numbers as ONNX Runtime at every size."""

from __future__ import annotations

from pathlib import Path

import ncnn_written as written
import pytest
import target_testing as testing

from retarget import catalog
from retarget.spec import DimRange
from retarget.targets.ncnn import files
from retarget.targets.ncnn.emit import PARAM
from retarget.targets.ncnn.ops.slices import AXES, ENDS, REST, STARTS
from retarget.targets.ncnn.program import MASK, NO_HALF, Blob, Layer, Param, Program
from retarget.targets.ncnn.slicing import sliced

FAR = 2**63 - 1
RANGE = DimRange(4, 6, 9)


def layers(shape: str, folder: Path, *parts: tuple[int, int, int]) -> list[files.Line]:
    """What is written for a Slice for each (start, end, axis), held against ONNX Runtime at several sizes."""
    outputs = ", ".join(f"float[n_{part},c_{part},w_{part}] part_{part}" for part in range(len(parts)))
    lines = []
    for part, numbers in enumerate(parts):
        operands = [f"{name}_{part}" for name in ("start", "end", "axis")]
        lines += [f"{name} = Constant<value_ints=[{n}]>()" for name, n in zip(operands, numbers, strict=True)]
        lines.append(f"part_{part} = Slice(x, {', '.join(operands)})")
    model = testing.model(f"g (float[{shape}] x) => ({outputs}) {{\n" + "\n".join(lines) + "\n}")
    facts = written.written(model, folder, N=RANGE, T=RANGE)
    assert not facts.sizes, facts.notes
    with catalog.target_run("ncnn").open(folder, facts, parity=True, threads=1) as runner:
        for size in (4, 6, 9):
            feeds = testing.feeds(model, size)
            found = runner.run(feeds)
            for name, right in testing.oracle(model, feeds).items():
                testing.assert_near(found[name], right, 0.0)
    return [layer for layer in files.read(folder / PARAM) if layer.type in ("Crop", "Slice")]


@pytest.mark.parametrize(
    ("shape", "parts", "sizes", "order"),
    [
        ("N,8,5", [(0, 2, 1), (2, 6, 1), (6, 8, 1)], "2,4,-233", [0, 1, 2]),
        ("N,8,5", [(6, FAR, -2), (0, 2, -2), (2, 6, -2)], "2,4,-233", [1, 2, 0]),
        ("N,T,5", [(0, 2, 1), (2, FAR, 1)], "2,-233", [0, 1]),
        ("1,T,5", [(3, FAR, 1), (0, 3, 1)], "3,-233", [1, 0]),
    ],
)
def test_parts_that_are_all_of_it_are_one_slice(
    shape: str, parts: list[tuple[int, int, int]], sizes: str, order: list[int], tmp_path: Path
) -> None:
    (layer,) = layers(shape, tmp_path, *parts)
    assert layer.type == "Slice"
    assert layer.params[0] == sizes
    assert layer.tops == tuple(f"part_{part}" for part in order)


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ("N,8,5", [(0, 2, 1), (3, 8, 1)]),  # a gap
        ("N,8,5", [(0, 3, 1), (2, 8, 1)]),  # some is in both
        ("N,8,5", [(0, 3, 1), (3, 7, 1)]),  # the last is missing
        ("N,8,5", [(1, 3, 1), (3, 8, 1)]),  # the first is
        ("N,8,5", [(0, 4, 1), (0, 4, 1), (4, 8, 1)]),  # one part twice
        ("N,8,5", [(0, 4, 1), (4, 5, 2)]),  # of two axes
        ("N,T,5", [(0, 2, 1), (2, 4, 1)]),  # all of it at one size alone
        ("N,T,5", [(0, -2, 1), (-2, FAR, 1)]),  # where they meet hangs on the size
    ],
)
def test_other_parts_are_crops(shape: str, parts: list[tuple[int, int, int]], tmp_path: Path) -> None:
    assert [layer.type for layer in layers(shape, tmp_path, *parts)] == ["Crop"] * len(parts)


def test_crops_that_say_more_stay_as_they_are() -> None:
    """One that is not to be rounded to float16 would be."""
    x = Blob((6,))
    cuts = [(0, 2), (2, REST)]
    params: list[dict[int, Param]] = [{STARTS: [start], ENDS: [end], AXES: [0], MASK: NO_HALF} for start, end in cuts]
    crops = [Layer("Crop", (x,), (Blob((size,)),), each) for size, each in zip((2, 4), params, strict=True)]
    assert [layer.type for layer in sliced(Program(crops)).layers] == ["Crop", "Crop"]
    for crop in crops:
        del crop.params[MASK]
    assert [layer.type for layer in sliced(Program(crops)).layers] == ["Slice"]
