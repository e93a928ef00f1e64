"""``retarget check`` as a user runs it: real models, real workers, real exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from retarget.preflight import NAMED

RESIZES = 5
"""Nodes of one kind that OpenVINO and TensorRT-RTX refuse and ONNX Runtime takes."""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``net.onnx``, which every target takes, and ``resize.onnx``."""
    folder = tmp_path_factory.mktemp("check")
    net = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        net (float[N,8] x) => (float[N,4] scores) <float[8,4] w> { h = MatMul(x, w)  scores = Sigmoid(h) }"""
    )
    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    net.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(net, folder / "net.onnx")
    np.savez(folder / "data.npz", x=np.random.default_rng(1).normal(size=(40, 8)).astype(np.float32))
    names = ["x", *(f"h{index}" for index in range(RESIZES))]
    body = "".join(
        f'r{index} = Resize <mode = "linear", antialias = 1> ({before}, , scales)  h{index} = Tanh(r{index})\n'
        for index, before in enumerate(names[:-1])
    )
    resize = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        net (float[N,3,64,64] x) => (float[N,3,2,2] y) <float[4] scales = {{1, 1, 0.5, 0.5}}> {{
            {body} y = Identity({names[-1]})
        }}"""
    )
    onnx.save(resize, folder / "resize.onnx")
    return folder


@pytest.fixture
def run(folder: Path) -> Run:
    def run(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            [sys.executable, "-m", "retarget.cli", *arguments, "--store", "store", "--shape", "N=1:2:4"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert ended.returncode == expect, f"{ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        assert "Traceback" not in ended.stderr
        return ended

    return run


def test_a_model_that_all_targets_take(folder: Path, run: Run) -> None:
    before = set(folder.iterdir())
    targets = ("onnxruntime", "openvino", "tflite")
    ended = run("check", "net.onnx", *(word for name in targets for word in ("--to", name)), "--precision", "fp32")
    assert ended.stdout.splitlines() == [f"{name}/fp32: takes the model, 2 nodes" for name in targets]
    assert set(folder.iterdir()) - before <= {folder / "store"}, "nothing is built"


def test_every_node_that_a_target_refuses_is_listed(run: Run) -> None:
    targets = ("--to", "openvino", "--to", "tensorrt_rtx", "--to", "onnxruntime")
    shown = run("check", "resize.onnx", *targets, expect=1).stdout
    openvino, _, rest = shown.partition("tensorrt_rtx/fp32: cannot take 5 of 10 nodes")
    assert openvino.startswith("openvino/fp32: cannot take 5 of 10 nodes\n")
    # Equal refusals are one row: how many, and which are the first.
    (row,) = (line for line in openvino.splitlines() if "antialias=1: OpenVINO does not filter" in line)
    assert row.split()[:2] == ["Resize", "5"]
    assert row.count("node") == NAMED
    assert "2 more" in row
    assert "what to do: docs/reference/support-openvino.md lists what openvino takes" in openvino
    assert "Antialiasing is not supported" in rest
    assert rest.endswith("onnxruntime/fp32: takes the model, 10 nodes\n")

    told = {
        answer["target"]: answer
        for answer in json.loads(run("check", "resize.onnx", *targets, "--json", expect=1).stdout)
    }
    assert list(told) == ["openvino", "tensorrt_rtx", "onnxruntime"]
    assert [told[name]["takes"] for name in told] == [False, False, True]
    refused = told["openvino"]["refused"]
    assert len({refusal["node"] for refusal in refused}) == RESIZES
    assert {(refusal["operator"], refusal["reason"]) for refusal in refused} == {
        ("Resize", "antialias=1: OpenVINO does not filter, and says nothing")
    }
    assert told["openvino"]["hint"]
    assert told["onnxruntime"]["hint"] is None


def test_precisions_are_those_that_would_be_built(run: Run) -> None:
    fp16 = ("check", "net.onnx", "--to", "tensorrt_rtx", "--to", "openvino", "--precision", "fp16", "--json")
    told = json.loads(run(*fp16).stdout)
    # TensorRT computes in float16, with casts at the ends; OpenVINO stores its weights so.
    assert [(answer["target"], answer["precision"], answer["nodes"], answer["takes"]) for answer in told] == [
        ("tensorrt_rtx", "fp16", 4, True),
        ("openvino", "fp16", 2, True),
    ]


def test_int8_is_not_guessed_without_calibration(run: Run) -> None:
    int8 = ("check", "net.onnx", "--to", "openvino", "--precision", "int8")
    refused = run(*int8, expect=1)
    assert refused.stdout == ""
    assert "'int8' needs data to be calibrated with, and there is none" in refused.stderr
    assert "--calibration" in refused.stderr
    assert run(*int8, "--calibration", "data.npz").stdout.startswith("openvino/int8: takes the model")


def test_what_cannot_be_asked_is_said(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "unknown target 'openvin'" in run("check", "net.onnx", "--to", "openvin", expect=1).stderr
    assert "no such file" in run("check", "nowhere.onnx", "--to", "openvino", expect=1).stderr

    missing = folder / "missing"
    missing.mkdir()
    (missing / "sitecustomize.py").write_text(
        "import importlib.metadata as metadata\n"
        "real = metadata.version\n"
        "def version(name):\n"
        "    if name == 'openvino':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "metadata.version = version\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(missing))
    told = run("check", "net.onnx", "--to", "openvino", "--to", "onnxruntime", expect=1).stderr
    assert "openvino is not installed" in told
    assert "pip install 'retarget[openvino]'" in told


def test_a_model_that_cannot_be_converted_is_no_answer(folder: Path, run: Run) -> None:
    # Rows that need another number of columns than they have: found when the reference runs.
    wrong = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        net (float[N,8] x) => (float[M] y) <int64[1] size = {-1}, int64[1] width = {7}> {
            s = Concat <axis = 0> (size, width)  r = Reshape(x, s)  y = ReduceSum <keepdims = 0> (r, width)
        }"""
    )
    onnx.save(wrong, folder / "wrong.onnx")
    ended = run("check", "wrong.onnx", "--to", "onnxruntime", "--to", "openvino", "--json", expect=1)
    for answer in json.loads(ended.stdout):
        assert (answer["takes"], answer["nodes"], answer["refused"]) == (False, None, [])
        assert answer["error"].startswith("'convert' failed")
    assert "convert" in ended.stderr
