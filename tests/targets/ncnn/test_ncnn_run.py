"""How the files are executed: options, types at the border, and what is said where something fails."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import target_testing
from ncnn_written import check, executed, job, written

from retarget import catalog
from retarget.errors import NotExecutable, RetargetError, ToolchainFailure
from retarget.protocols import EmitJob
from retarget.spec import DimRange
from retarget.targets.ncnn import Options, emit, run, sidecar

THREE = DimRange(3, 3, 3)
FC = """g ({t}[N,64] x, {t}[64,32] w_a) => ({t}[N,32] y) {{
    [fc] a = MatMul(x, w_a)
    y = Relu(a)
}}"""


@pytest.mark.parametrize("parity", [True, False])
def test_settings_say_how_it_is_executed(tmp_path: Path, parity: bool) -> None:
    facts = written(target_testing.model(FC.format(t="float")), tmp_path, N=THREE)
    with catalog.target_run("ncnn").open(tmp_path, facts, parity=parity, threads=2) as runner:
        assert runner.settings.startswith("ncnn 1.")
        assert runner.settings.endswith(
            "CPU, float32, 2 threads" if parity else "CPU, float16 where it is faster, 2 threads"
        )


def test_parity_is_computed_in_float32(tmp_path: Path) -> None:
    """ncnn by itself rounds weights to float16 here, too."""
    model = target_testing.model(FC.format(t="float"))
    facts = written(model, tmp_path, N=THREE)
    feeds = {"x": target_testing.normal(3, 64)}
    right = target_testing.oracle(model, feeds)["y"]
    exact, default = (
        np.abs(np.subtract(target_testing.run("ncnn", tmp_path, facts, feeds, parity=parity)["y"], right)).max()
        for parity in (True, False)
    )
    assert exact < 1e-5
    assert 1e-5 < default < 1e-2


def test_float16_weights_are_what_both_ways_compute_with(tmp_path: Path) -> None:
    model = target_testing.model(FC.format(t="float"))
    facts = written(model, tmp_path, "fp16", N=THREE)
    feeds = {"x": target_testing.normal(3, 64)}
    weight = np.asarray(model.graph.initializers["w_a"].const_value.numpy())  # type: ignore[union-attr]
    rounded = np.maximum(feeds["x"] @ weight.astype(np.float16).astype(np.float32), 0)
    for parity in (True, False):
        found = target_testing.run("ncnn", tmp_path, facts, feeds, parity=parity)["y"]
        assert np.abs(found - rounded).max() < (1e-5 if parity else 1e-2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
def test_other_floats_are_float32_inside(dtype: str) -> None:
    model = target_testing.model(f"g ({dtype}[N,4] x) => ({dtype}[N,4] y) {{ y = Relu(x) }}")
    feeds = target_testing.feeds(model, 3)
    (found,) = executed(model, feeds, N=THREE)
    target_testing.assert_near(found["y"], np.maximum(feeds["x"], 0), 1e-6)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "int8", "bool"])
@pytest.mark.parametrize("shape", ["", "N", "N,4", "1,1", "N,1,2,3,2"])
def test_types_and_shapes_come_back_as_they_are(dtype: str, shape: str) -> None:
    kind = f"{dtype}[{shape}]" if shape else dtype
    model = target_testing.model(f"g ({kind} x) => ({kind} y) {{ y = Identity(x) }}")
    feeds = {name: np.asarray(array) for name, array in target_testing.feeds(model, 3).items()}
    if dtype in ("int8", "int64"):
        feeds = {"x": np.asarray(np.negative(feeds["x"]))}
    check(model, feeds, N=THREE)


def test_integers_that_a_float_does_not_hold_are_no_feed(tmp_path: Path) -> None:
    model = target_testing.model("g (int64[N,4] x) => (int64[N,4] y) { y = Identity(x) }")
    facts = written(model, tmp_path, N=THREE)
    with pytest.raises(RetargetError, match="'x' holds 16777217, beyond what float32 holds each integer of"):
        target_testing.run("ncnn", tmp_path, facts, {"x": np.full((3, 4), 2**24 + 1)})
    (found,) = executed(model, {"x": np.full((3, 4), 2**24)}, N=THREE)
    assert (found["y"] == 2**24).all()


def test_inputs_that_share_a_dimension_have_one_size_of_it(tmp_path: Path) -> None:
    """ncnn's product of matrices reads beyond the end of one that is too short."""
    model = target_testing.model("g (float[N,2,T] a, float[N,T,3] b) => (float[N,2,3] y) { y = MatMul(a, b) }")
    facts = written(model, tmp_path, N=DimRange(1, 2, 4), T=DimRange(1, 5, 9))
    feeds = {"a": target_testing.normal(2, 2, 5), "b": target_testing.normal(2, 5, 3)}
    assert target_testing.run("ncnn", tmp_path, facts, feeds)["y"].shape == (2, 2, 3)
    with pytest.raises(RetargetError, match="T is 5 in 'a' and 4 in 'b'"):
        target_testing.run("ncnn", tmp_path, facts, {**feeds, "b": target_testing.normal(2, 4, 3)})
    with pytest.raises(RetargetError, match="N is 2 in 'a' and 1 in 'b'"):
        target_testing.run("ncnn", tmp_path, facts, {**feeds, "b": target_testing.normal(1, 5, 3)})


def test_what_is_looked_up_is_not_negative(tmp_path: Path) -> None:
    model = target_testing.model("g (int64[N,2] x, float[5,3] w_a) => (float[N,2,3] y) { y = Gather(w_a, x) }")
    facts = written(model, tmp_path, N=THREE)
    feeds = {"x": np.array([[0, 1], [4, 3], [2, 0]])}
    found, right = target_testing.run("ncnn", tmp_path, facts, feeds), target_testing.oracle(model, feeds)
    np.testing.assert_array_equal(found["y"], right["y"])
    with pytest.raises(RetargetError, match="'x' holds -2: the model counts from the end"):
        target_testing.run("ncnn", tmp_path, facts, {"x": feeds["x"] - 2})


def edited(param: Path, layer: str, before: str, after: str, more: str = "") -> None:
    """Replace ``before`` in the line of the one layer of the type ``layer``, and write ``more`` at its end."""
    lines = param.read_text().splitlines()
    (at,) = [place for place, line in enumerate(lines) if line.split()[0] == layer]
    assert before in lines[at]
    lines[at] = lines[at].replace(before, after, 1) + more
    param.write_text("\n".join(lines) + "\n")


RESHAPED = """g (float[1,3,8,4] x) => (float[1,96] y) {
    [first] r = Add(x, x)
    [second] f = Flatten(r)
    [third] y = Relu(f)
}"""


def test_a_layer_that_fails_is_named(tmp_path: Path) -> None:
    facts = written(target_testing.model(RESHAPED), tmp_path)
    edited(tmp_path / emit.PARAM, "ReLU", "ReLU", "PixelShuffle", " 0=5")
    with pytest.raises(ToolchainFailure, match=r"ncnn ends with -\d+ in the layer '\S+' \(PixelShuffle\)"):
        target_testing.run("ncnn", tmp_path, facts, {"x": target_testing.normal(1, 3, 8, 4)})


def test_an_output_of_another_size_is_not_taken_for_the_models(tmp_path: Path) -> None:
    facts = written(target_testing.model(RESHAPED), tmp_path)
    edited(tmp_path / emit.PARAM, "Reshape", "0=96", "0=48 1=2")
    with pytest.raises(ToolchainFailure, match=r"ncnn gave 'y' as \[1, 2, 48\], rows first, which is no \[1, 96\]"):
        target_testing.run("ncnn", tmp_path, facts, {"x": target_testing.normal(1, 3, 8, 4)})


def test_files_that_do_not_load_say_so(tmp_path: Path) -> None:
    facts = written(target_testing.model(RESHAPED), tmp_path)
    edited(tmp_path / emit.PARAM, "ReLU", "ReLU", "NoSuchLayer")
    with pytest.raises(ToolchainFailure, match=r"ncnn 1\.\S+ does not load model.ncnn.param: it ends with -1"):
        target_testing.run("ncnn", tmp_path, facts, {"x": target_testing.normal(1, 3, 8, 4)})


@pytest.mark.parametrize("weights", [b"", b"abcd" + bytes(4 * 64 * 32), bytes(4 + 4 * 64 * 32) + b"more"])
def test_weights_that_are_not_of_the_layers_are_not_executed(weights: bytes, tmp_path: Path) -> None:
    """ncnn loads the last two."""
    facts = written(target_testing.model(FC.format(t="float")), tmp_path, N=THREE)
    (tmp_path / emit.BIN).write_bytes(weights)
    with pytest.raises(RetargetError, match=r"model.ncnn.bin: not the weights of the param file"):
        target_testing.run("ncnn", tmp_path, facts, {"x": target_testing.normal(3, 64)})


def test_vulkan_without_a_gpu_is_a_limit_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ncnn

    model = target_testing.model(FC.format(t="float"))
    asked: EmitJob = dataclasses.replace(job(model, N=THREE), options=Options(vulkan=True))
    facts = catalog.target_emit("ncnn").emit(model, asked, tmp_path)
    assert facts.settings == {"vulkan": "on"}
    monkeypatch.setattr(ncnn, "get_gpu_count", lambda: 0)
    with pytest.raises(NotExecutable, match="`vulkan` asks for a GPU, and ncnn finds none"):
        target_testing.run("ncnn", tmp_path, facts, {"x": target_testing.normal(3, 64)})


TABLES = """g (int64[N,6] ids, float[900,8] w_one, float[900,8] w_other, float[8,16] w_x) => (float[N,6,16] y) {{
    one = Gather(w_one, ids)
    other = Gather(w_other, ids)
    both = Add(one, other)
    share = Softmax(both)
    y = MatMul(share, w_x)
}}"""


@pytest.mark.parametrize("text", [target_testing.CNN, TABLES])
def test_vulkan(text: str, tmp_path: Path) -> None:
    """On whatever Vulkan driver there is: one for CPUs, such as Mesa's, does.

    In a process of its own, as every target's steps are: LLVM, which Mesa's driver loads, and TensorFlow, which another
    test may have imported here, do not live in one process.
    """
    model = target_testing.model(text.format(t="float"))
    asked: EmitJob = dataclasses.replace(job(model), options=Options(vulkan=True))
    facts = catalog.target_emit("ncnn").emit(model, asked, tmp_path)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        for size in (1, 3):
            feeds = target_testing.feeds(model, size)
            try:
                found = process.submit(target_testing.run, "ncnn", tmp_path, facts, feeds).result()
            except NotExecutable as error:
                pytest.skip(str(error))
            for name, right in target_testing.oracle(model, feeds).items():
                target_testing.assert_near(found[name], right, 1e-5)


def output(shape: tuple[int | str, ...], dims: tuple[tuple[int, ...], ...], rows: bool) -> sidecar.Value:
    names: tuple[Literal["n", "w", "h", "d", "c"], ...] = (
        *(("n",) if rows else ()),
        *sidecar.NAMES[len(dims) - rows],
    )
    held = sidecar.Held(
        name="y", dtype="float32", layout="", dropped=(),
        dims=tuple(sidecar.Dim(dim=name, size=1, axes=axes) for name, axes in zip(names, dims, strict=True)),
    )  # fmt: skip
    return sidecar.Value(name="y", dtype="float32", shape=shape, blobs=(held,))


@pytest.mark.parametrize(
    ("shape", "dims", "rows", "given", "symbols", "right"),
    [
        (("N", 3, "T"), ((0,), (1,), (2,)), True, (4, 3, 7), {"N": 4, "T": 7}, (4, 3, 7)),
        (("N", 3, "T"), ((0,), (1,), (2,)), True, (4, 3, 7), {"N": 4}, (4, 3, 7)),
        (("N", 3, "T"), ((0,), (1,), (2,)), True, (4, 3, 7), {"N": 5, "T": 7}, None),
        (("M", 3), ((0,), (0,), (1,)), True, (4, 2, 3), {}, (8, 3)),
        ((1, "T"), ((1,),), False, (1, 7), {}, (1, 7)),
        (("T", 3), ((0, 1),), False, (1, 21), {}, (7, 3)),
        (("T", "U"), ((0, 1),), False, (1, 21), {}, None),
        ((2, "T"), ((1,),), False, (2, 7), {}, None),
        ((), ((),), False, (1, 1), {}, ()),
    ],
)  # fmt: skip
def test_the_shape_of_an_output_follows_from_its_blob(
    shape: tuple[int | str, ...],
    dims: tuple[tuple[int, ...], ...],
    rows: bool,
    given: tuple[int, ...],
    symbols: dict[str, int],
    right: tuple[int, ...] | None,
) -> None:
    assert run.shape_of(output(shape, dims, rows), given, symbols) == right
