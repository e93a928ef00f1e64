"""Builds from sources of two files, in another layout, from raw pixels, and run by another interpreter: the wiring."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import caffe_files
import numpy as np
import onnx
import pytest
from small_net import NET, Net

from retarget import build as builds
from retarget import plan as plans
from retarget import recipe as recipes
from retarget.engine import Limits
from retarget.errors import RetargetError
from retarget.facts import ConvertFacts
from retarget.plan import Invocation, Plan
from retarget.quick import files_of
from retarget.report_schema import Report
from retarget.store import Store, read_manifest


class Project:
    """A folder with a recipe, its store and what was built."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found = ""

    def recipe(self, text: str) -> recipes.Recipe:
        (self.folder / "recipe.yaml").write_text(text)
        return recipes.load(self.folder / "recipe.yaml")

    def plan(self, text: str, invocation: Invocation | None = None) -> Plan:
        store = Store(self.folder / "store")
        try:
            return plans.make(self.recipe(text), store, invocation or Invocation(threads=1, bench=False))
        finally:
            store.close()

    def build(self, text: str) -> tuple[Report, ConvertFacts]:
        def display(steps: int, found: str) -> nullcontext[object]:
            self.found = found
            return nullcontext(lambda event: None)

        store = Store(self.folder / "store")
        try:
            report = builds.build(
                self.recipe(text),
                store,
                self.folder / "out",
                invocation=Invocation(threads=1, bench=False),
                limits=Limits(memory_bytes=None, seconds=None),
                jobs=2,
                display=display,  # type: ignore[arg-type]
            ).report
            artifacts = [store.get(entry.key) for entry in store.entries()]
            manifests = [read_manifest(artifact.path) for artifact in artifacts if artifact]
        finally:
            store.close()
        (facts,) = [each.facts_as(ConvertFacts) for each in manifests if each.kind == "convert"]
        return report, facts


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


CAFFE = """
version: 1
name: spots
model:
  path: spots.prototxt
  weights: trained.caffemodel
  inputs: {data: "uint8[N,12,10,3]"}
  io_layout: nhwc
  normalize: {dtype: uint8, swap_channels: true, mean: [104, 117, 123], std: 60}
data:
  samples: pixels.npz
  evaluation: {path: pixels.npz, labels: label}
targets: [onnxruntime, openvino]
"""


def write_spots(folder: Path) -> None:
    """A net that sees which channel is the brightest, its weights under another name, and images with labels."""
    rng = np.random.default_rng(0)
    prototxt = (
        caffe_files.inputs(data=(1, 3, 12, 10))
        + caffe_files.layer("conv", "Convolution", "data", None, "convolution_param { num_output: 6 kernel_size: 3 }")
        + caffe_files.layer("relu", "ReLU", "conv", "conv")
        + caffe_files.layer("pool", "Pooling", "conv", parameters="pooling_param { pool: AVE global_pooling: true }")
        + caffe_files.layer("fc", "InnerProduct", "pool", parameters="inner_product_param { num_output: 3 }")
    )
    weights = rng.normal(0, 0.01, (6, 3, 3, 3)).astype(np.float32)
    for channel in range(6):
        weights[channel, channel % 3] += 0.1 if channel < 3 else -0.1
    fc = np.concatenate([np.eye(3), -np.eye(3)], axis=1).astype(np.float32)
    blobs = [
        ("conv", "Convolution", [weights, np.zeros(6, np.float32)]),
        ("fc", "InnerProduct", [fc, np.zeros(3, np.float32)]),
    ]
    _, model = caffe_files.write(folder, prototxt, blobs, stem="spots")
    assert model is not None
    model.rename(folder / "trained.caffemodel")
    labels = rng.integers(0, 3, 20)
    pixels = rng.integers(60, 140, (20, 12, 10, 3))
    # The net was trained on BGR, and the user's pixels are RGB.
    pixels[np.arange(20), :, :, 2 - labels] += 60
    np.savez(folder / "pixels.npz", data=pixels.astype(np.uint8), label=labels)


def test_a_caffe_net_takes_raw_pixels_with_channels_last(project: Project) -> None:
    write_spots(project.folder)
    report, facts = project.build(CAFFE)
    assert report.verdict == "pass", report.reasons
    assert project.found.startswith("spots.prototxt with trained.caffemodel: Caffe")
    assert [str(spec) for spec in facts.inputs] == ["data=uint8[N,12,10,3]"]
    for row in report.artifacts:
        assert row.verified == "executed"
        assert min(output.snr_db for output in row.parity) >= 80
        assert row.accuracy is not None
        assert row.accuracy.reference == row.accuracy.value == 1.0
    with np.load(project.folder / "out" / "reference.npz") as reference:
        feeds = [name for name in reference.files if name.startswith("feeds/")]
        assert feeds
        assert all(reference[name].dtype == np.uint8 for name in feeds)
    model = onnx.load(project.folder / "out" / "onnxruntime" / "fp32" / "model.onnx")
    # The convolution has no padding, so the mean is folded into it as well as the rest.
    assert [node.op_type for node in model.graph.node][:3] == ["Cast", "Transpose", "Conv"]


def test_a_second_file_is_an_input_of_the_plan_like_the_first(project: Project) -> None:
    write_spots(project.folder)
    before = project.plan(CAFFE)
    assert project.folder / "trained.caffemodel" in before.inputs
    beside = project.plan(CAFFE.replace("  weights: trained.caffemodel\n", ""))
    assert beside.steps[0].key == before.steps[0].key
    weights = project.folder / "trained.caffemodel"
    weights.write_bytes(weights.read_bytes() + b"\x0a\x00")
    assert project.plan(CAFFE).steps[0].key != before.steps[0].key


def test_weights_are_for_formats_of_two_files(project: Project) -> None:
    write_spots(project.folder)
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> net (float[1] x) => (float[1] y) { y = Relu(x) }'
    )
    onnx.save(model, project.folder / "net.onnx")
    text = "version: 1\nname: net\nmodel: {path: net.onnx, weights: trained.caffemodel}\ntargets: [onnxruntime]\n"
    with pytest.raises(RetargetError, match="has no second file"):
        project.plan(text)


def test_a_pair_on_the_command_line(tmp_path: Path) -> None:
    write_spots(tmp_path)
    first, second = tmp_path / "spots.prototxt", tmp_path / "trained.caffemodel"
    assert files_of(first) == (first, None)
    assert files_of(Path(f"{first},{second}")) == (first, second)
    with pytest.raises(RetargetError, match=r"none\.caffemodel: no such file"):
        files_of(Path(f"{first},{tmp_path / 'none.caffemodel'}"))


PYTORCH = """
version: 1
name: net
model:
  path: weights.pt
  factory: net.py:build
  inputs: {x: "float32[N,4]"}
  options: {rung: torchscript}
targets: [onnxruntime]
"""


def test_a_framework_runs_where_the_toolchain_says(project: Project) -> None:
    import torch

    torch.manual_seed(0)
    (project.folder / "net.py").write_text(NET)
    torch.save(Net().state_dict(), project.folder / "weights.pt")
    here = project.plan(PYTORCH)
    text = f"{PYTORCH}toolchains: {{pytorch: {sys.executable}}}\n"
    there = project.plan(text)
    assert [step.id for step in there.steps if step.python is not None] == ["convert"]
    assert there.steps[0].key != here.steps[0].key
    assert there.versions["pytorch/torch"] == torch.__version__
    configured = project.plan(PYTORCH, Invocation(bench=False, toolchains={"pytorch": Path(sys.executable)}))
    assert configured.steps[0].key == there.steps[0].key

    report, facts = project.build(text)
    assert report.verdict == "pass", report.reasons
    assert project.found == f"weights.pt: state dict (pytorch, run by {sys.executable})"
    assert facts.rung == "torchscript"
    assert facts.reference.startswith("PyTorch")
    (convert,) = [step for step in project.plan(text).steps if step.kind == "convert"]
    (project.folder / "net.py").write_text(NET + "\n# changed\n")
    (again,) = [step for step in project.plan(text).steps if step.kind == "convert"]
    assert again.key != convert.key


def test_an_interpreter_that_is_none_is_said_before_anything_runs(project: Project) -> None:
    (project.folder / "weights.pt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(RetargetError, match="no such file"):
        project.plan(f"{PYTORCH}toolchains: {{pytorch: {{python: /no/such/python}}}}\n")
