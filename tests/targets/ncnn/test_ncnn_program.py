"""Layers before they are written: what is left out, the Split layers, names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retarget.targets.ncnn import files
from retarget.targets.ncnn.program import LONGEST_NAME, Blob, Layer, Param, Program, Weight, word


def line(program: Program, **names: str) -> list[str]:
    """The layers as the file has them, white space aside."""
    wanted = {name: names.get(name, name) for name in (*program.inputs, *program.outputs)}
    return [" ".join(files.line(layer).split()) for layer in program.finished(wanted).layers]


def fed(dims: tuple[int, ...] = (4,), kind: str = "float") -> tuple[Program, Blob]:
    x = Blob(dims, kind="index" if kind == "index" else "float")
    return Program([Layer("Input", (), (x,), {0: 4})], {"x": [x]}), x


def add(program: Program, type_: str, *bottoms: Blob, origin: str = "", value: str | None = None) -> Blob:
    top = Blob((4,), value=value)
    program.layers.append(Layer(type_, bottoms, (top,), origin=origin))
    return top


def test_a_blob_of_one_reader_has_no_split() -> None:
    program, x = fed()
    program.outputs["y"] = add(program, "ReLU", x, origin="relu")
    assert line(program) == ["Input input 0 1 x 0=4", "ReLU relu 1 1 x y"]


def test_every_reader_gets_a_copy_of_its_own() -> None:
    program, x = fed()
    left = add(program, "ReLU", x, origin="left")
    program.outputs["y"] = add(program, "BinaryOp", left, x, origin="sum")
    assert line(program) == [
        "Input input 0 1 x 0=4",
        "Split split 1 2 x split split_1",
        "ReLU left 1 1 split left",
        "BinaryOp sum 2 1 left split_1 y",
    ]


def test_a_layer_may_read_a_blob_twice() -> None:
    program, x = fed()
    program.outputs["y"] = add(program, "BinaryOp", x, x, origin="square")
    assert line(program)[1:] == ["Split split 1 2 x split split_1", "BinaryOp square 2 1 split split_1 y"]


def test_an_output_that_is_read_on_is_a_copy() -> None:
    program, x = fed()
    middle = add(program, "ReLU", x, origin="relu", value="middle")
    program.outputs["middle"] = middle
    program.outputs["y"] = add(program, "TanH", middle, origin="tanh")
    assert line(program)[1:] == [
        "ReLU relu 1 1 x middle_1",
        "Split relu_1 1 2 middle_1 middle_2 middle",
        "TanH tanh 1 1 middle_2 y",
    ]


def test_what_no_output_hangs_on_is_left_out_but_for_inputs() -> None:
    program, x = fed()
    add(program, "Exp", x, origin="unused")
    constant = Blob((4,))
    program.layers.append(Layer("MemoryData", (), (constant,), {0: 4}, (Weight(np.ones(4, np.float32), tagged=False),)))
    program.outputs["y"] = constant
    assert line(program) == ["Input input 0 1 x 0=4", "MemoryData memorydata 0 1 y 0=4"]


def test_int32_is_never_rounded_as_if_it_were_floats() -> None:
    program, ids = fed(kind="index")
    words, places = add(program, "Embed", ids, origin="words"), add(program, "Embed", ids, origin="places")
    program.outputs["y"] = add(program, "BinaryOp", words, places, origin="sum")
    assert [text for text in line(program) if "31=" in text] == ["Split split 1 2 x split split_1 31=23"]


def test_names_are_words_of_at_most_so_many_characters_and_differ() -> None:
    program, x = fed()
    first = add(program, "ReLU", x, origin="a b", value="y")
    second = add(program, "ReLU", first, origin="a b", value="n" * 300)
    program.outputs["y"] = add(program, "ReLU", second, origin="a b")
    assert line(program)[1:] == [
        "ReLU a_b 1 1 x y_1",
        f"ReLU a_b_1 1 1 y_1 {'n' * LONGEST_NAME}",
        f"ReLU a_b_2 1 1 {'n' * LONGEST_NAME} y",
    ]
    assert word("\tmy  layer\n") == "my_layer"
    assert word(" ") == "_"


def test_the_file_says_what_the_program_is(tmp_path: Path) -> None:
    program, x = fed()
    top = Blob((2, 2))
    params: dict[int, Param] = {
        0: -3,
        1: 0.1,
        2: 1e-12,
        3: (1, -2),
        4: (0.5, 3.4028235e38),
        5: "-1,*(0w,2)",
        6: 1.0,
        7: -3.4028235e38,
    }
    weights = (Weight(np.array([1.0, 70000.0], np.float32)), Weight(np.arange(3, dtype=np.int8)))
    program.layers.append(Layer("Any", (x,), (top,), params, weights, "any"))
    program.outputs["y"] = top
    made = program.finished({"x": "x", "y": "y"})
    files.write(made.layers, tmp_path / "a.param", tmp_path / "a.bin", half=True)
    _, read = files.read(tmp_path / "a.param")
    assert (read.type, read.name, read.bottoms, read.tops) == ("Any", "any", ("x",), ("y",))
    assert all(
        len(token) <= 15 for value in read.params.values() for token in value.split(",") if value != read.params[5]
    )
    assert read.integer(0) == -3
    floats = [np.float32(value) for value in params.values() if isinstance(value, float)]
    assert [np.float32(read.params[key]) for key in (1, 2, 6, 7)] == floats
    assert read.params[3] == "1,-2"
    assert np.array(read.params[4].split(","), np.float32).tolist() == [0.5, np.finfo(np.float32).max]
    assert read.params[5] == params[5]
    tag32, tag8 = (0).to_bytes(4, "little"), (0x000D4B38).to_bytes(4, "little")
    # 70000 is too large for float16, so none of its weight is; three int8 are filled up to four bytes.
    expected = tag32 + np.array([1, 70000], "<f4").tobytes() + tag8 + bytes([0, 1, 2, 0])
    assert (tmp_path / "a.bin").read_bytes() == expected
