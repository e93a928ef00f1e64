"""The files of an artifact, and what is said of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import target_testing
from ncnn_written import check, executed, job, written

from retarget import catalog
from retarget.protocols import EmitJob
from retarget.spec import DimRange
from retarget.targets.ncnn import Options, cpp, emit, files, sidecar

THREE = DimRange(3, 3, 3)
TWICE = """g (int64[N,5] ids, float[7,4] w_table) => (float[N,5,4] y, float[N,5] z) {
    y = Gather <axis = 0> (w_table, ids)
    z = Cast <to = 1> (ids)
}"""


def test_equal_models_become_equal_bytes(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        written(target_testing.model(SMALL), tmp_path / str(number), N=THREE)
    names = {path.name for path in (tmp_path / "1").iterdir()}
    assert names == {"model.ncnn.param", "model.ncnn.bin", "model.ncnn.json", "tensors.json"}
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


SMALL = """g (float[N,2,4] x, float[2,4] w_a) => (float[N,8] y) {
    [add] a = Add(x, w_a)
    [relu] r = Relu(a)
    [flat] y = Flatten(r)
}"""


def test_tensors_say_which_blob_is_which_value(tmp_path: Path) -> None:
    written(target_testing.model(SMALL), tmp_path, N=THREE)
    tensors = {entry["value"]: entry for entry in json.loads((tmp_path / "tensors.json").read_text())["tensors"]}
    assert {"x", "a", "y"} <= set(tensors)
    assert tensors["x"]["shape"] == [3, 2, 4]
    assert tensors["a"]["node"] == "add"
    assert tensors["y"]["name"] == "y"


def test_names_that_are_no_single_word_are_others_in_the_files(tmp_path: Path) -> None:
    model = target_testing.model(
        "g (float[N,4] x, float[N,4] z) => (float[N,4] y, float[N,4] v) { y = Relu(x) v = Add(x, z) }"
    )
    long = "a" * 300
    for value, name in zip(
        (*model.graph.inputs, *model.graph.outputs), ("my input", "my_input", "the output", long), strict=True
    ):
        value.name = name
    facts = written(model, tmp_path, N=THREE)
    called = {entry.name: entry.artifact_name for entry in (*facts.inputs, *facts.outputs)}
    assert called["my_input"] == "my_input"
    assert called["my input"] == "my_input_1"
    assert called["the output"] == "the_output"
    assert len(called[long]) < 250
    assert any("'my input' is called 'my_input_1' in the files" in note for note in facts.notes)
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((3, 4)).astype(np.float32) for name in ("my input", "my_input")}
    check(model, feeds, N=THREE)


@pytest.mark.parametrize("name", ["Ünïcode-名前", 'quo"ted', "a=b,c", "-233", "x" * 256, "名" * 120, "7=1"])
def test_names_that_ncnn_reads_are_kept_or_cut(name: str) -> None:
    model = target_testing.model("g (float[N,4] x) => (float[N,4] y) { a = Add(x, x) y = Relu(a) }")
    model.graph.inputs[0].name, model.graph.outputs[0].name = name, f"{name}/out"
    model.graph.node(0).name = name
    check(model, {name: target_testing.normal(3, 4)}, N=THREE)


def test_an_output_that_is_an_input_has_a_blob_of_its_own(tmp_path: Path) -> None:
    model = target_testing.model("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    model.graph.outputs.append(model.graph.inputs[0])
    facts = written(model, tmp_path, N=THREE)
    assert [entry.artifact_name for entry in facts.outputs] == ["y", "x_1"]
    feeds = {"x": target_testing.normal(3, 4)}
    found = target_testing.run("ncnn", tmp_path, facts, feeds)
    np.testing.assert_array_equal(found["x"], feeds["x"])


def test_what_stays_float32_of_float16_weights_is_said(tmp_path: Path) -> None:
    model = target_testing.model("""g (float[N,4] x, float[4,5] w_a, float[5] w_b) => (float[N,5] y) {
        m = MatMul(x, w_a)
        s = Sigmoid(m)
        y = Mul(s, w_b)
    }""")
    facts = written(model, tmp_path, "fp16", N=THREE)
    assert facts.precision.weights == "float16"
    assert "20% of the weights stay float32: constants, and what float16 does not reach" in facts.notes


def test_an_input_of_numbers_and_of_places_has_two_blobs(tmp_path: Path) -> None:
    model = target_testing.model(TWICE)
    facts = written(model, tmp_path, N=THREE)
    (value,) = sidecar.read(tmp_path / sidecar.FILE).inputs
    assert {held.dtype for held in value.blobs} == {"float32", "int32"}
    assert facts.inputs[0].artifact_dtype == "float32"
    assert any("must be fed twice" in note for note in facts.notes)
    check(model, {"ids": np.arange(15).reshape(3, 5) % 7}, N=THREE)


def test_fixed_sizes_are_said() -> None:
    made = target_testing.model(SMALL)
    (found,) = executed(made, {"x": target_testing.normal(4, 2, 4)})
    assert found["y"].shape == (4, 8)


def test_a_program_of_cpp_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    model = target_testing.model(SMALL)
    asked: EmitJob = dataclasses.replace(job(model, N=THREE), options=Options(emit_cpp=True))
    catalog.target_emit("ncnn").emit(model, asked, tmp_path)
    assert "ncnn::Net net;" in (tmp_path / cpp.FILE).read_text()


def test_what_is_written_and_what_is_read_back_must_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*args: object, **options: object) -> None:
        write(*args, **options)  # type: ignore[arg-type]
        (tmp_path / emit.BIN).write_bytes((tmp_path / emit.BIN).read_bytes()[:-4])

    write = files.write
    monkeypatch.setattr(files, "write", cut)
    with pytest.raises(AssertionError, match=r"model.ncnn.bin: not the weights of the param file: it ends within"):
        written(target_testing.model(SMALL), tmp_path, N=THREE)
