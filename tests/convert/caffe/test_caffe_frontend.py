"""The Caffe frontend as a conversion uses it: export, load and reference of a prototxt and a caffemodel on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import caffe_files
import caffe_nets
import numpy as np
import pytest

from retarget import graph
from retarget.catalog import frontend, frontend_export, frontend_load
from retarget.compare import snr_db
from retarget.errors import RetargetError
from retarget.session import Session
from retarget.source import Source
from retarget.spec import DimRange, TensorSpec

EXPORT, LOAD = frontend_export("caffe"), frontend_load("caffe")
IMAGE = (1, 28, 28)


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``deploy.prototxt`` and ``deploy.caffemodel``."""
    folder = tmp_path_factory.mktemp("lenet")
    writer = caffe_nets.lenet()
    caffe_files.write(folder, writer.prototxt, writer.saved, stem="deploy")
    return folder


def source(path: Path, *inputs: str, outputs: tuple[str, ...] = (), **options: object) -> Source:
    specs = tuple(map(TensorSpec.parse, inputs))
    shapes = {symbol: DimRange(1, 2, 8) for spec in specs for symbol in spec.symbols}
    return Source(path, specs, shapes, outputs, parts=frontend("caffe").parts(path), options=options)


@pytest.mark.parametrize("name", ["deploy.prototxt", "deploy.caffemodel", "."])
def test_the_net_is_found_from_either_file_or_their_folder(lenet: Path, name: str, tmp_path: Path) -> None:
    given = source(lenet / name)
    exported = EXPORT.export(given, None, tmp_path)
    assert exported.inputs == (TensorSpec("data", "float32", (2, *IMAGE)),)
    assert exported.outputs == ("prob",)
    assert exported.notes == ()
    model = LOAD.load(tmp_path, given, exported)
    assert model.opset_imports[""] == graph.OPSET
    assert tuple(graph.value_spec(value) for value in model.graph.inputs) == exported.inputs
    assert [value.name for value in model.graph.outputs] == ["prob"]


def test_names_and_dimensions_are_the_users_at_any_size(lenet: Path, tmp_path: Path) -> None:
    given = source(lenet / "deploy.prototxt", "data=float32[N,1,28,28]", outputs=("digit",))
    exported = EXPORT.export(given, None, tmp_path)
    assert exported.inputs == given.inputs
    assert exported.outputs == ("digit",)
    model = LOAD.load(tmp_path, given, exported)
    with Session(model) as session, EXPORT.reference(given, exported) as reference:
        for batch in (1, 5):
            feeds = {"data": np.random.default_rng(batch).normal(size=(batch, *IMAGE)).astype(np.float32)}
            expected = reference.run(feeds)
            assert expected["digit"].shape == (batch, 10)
            assert snr_db(expected["digit"], session.run(feeds)["digit"]) >= 100


def test_an_input_of_a_training_net_has_the_size_that_the_user_gives(lenet: Path, tmp_path: Path) -> None:
    """The database knows it, the file does not."""
    text = (lenet / "deploy.prototxt").read_text()
    start, end = text.index("layer {"), text.index("layer {", text.index("layer {") + 1)
    data = caffe_files.layer("mnist", "Data", (), ("data", "label"), 'data_param { source: "train_lmdb" }')
    loss = caffe_files.layer("loss", "SoftmaxWithLoss", ("ip2", "label"))
    path, _ = caffe_files.write(tmp_path, text[:start] + data + text[end:] + loss, None, stem="train")
    (tmp_path / "train.caffemodel").write_bytes((lenet / "deploy.caffemodel").read_bytes())
    with pytest.raises(RetargetError, match="size of 'data'"):
        EXPORT.export(source(path), None, tmp_path)
    exported = EXPORT.export(source(path, "data=float32[N,1,28,28]"), None, tmp_path)
    assert exported.inputs == (TensorSpec("data", "float32", ("N", *IMAGE)),)
    assert "SoftmaxWithLoss" in " ".join(exported.notes)


def test_statistics_of_a_batch_are_noted(tmp_path: Path) -> None:
    text = caffe_files.inputs(data=(4, 3, 5, 5))
    text += caffe_files.layer("norm", "BatchNorm", "data", "x", "batch_norm_param { use_global_stats: false }")
    blobs = [np.zeros(3), np.ones(3), np.ones(1)]
    path, _ = caffe_files.write(tmp_path, text, [("norm", "BatchNorm", blobs)])
    exported = EXPORT.export(source(path), None, tmp_path)
    assert exported.notes == (
        "BatchNorm takes statistics of each batch, not the trained ones, as use_global_stats is false in norm",
    )


def test_stages_choose_layers(tmp_path: Path) -> None:
    text = caffe_files.inputs(data=(1, 3))
    text += caffe_files.layer("always", "Power", "data", "x", "power_param { scale: 2 }")
    text += caffe_files.layer("some", "Power", "x", "x", 'power_param { scale: 3 } include { stage: "deploy" }')
    path, _ = caffe_files.write(tmp_path, text, None)
    for stages, factor in (([], 2), (["deploy"], 6)):
        given = source(path, stages=stages)
        exported = EXPORT.export(given, None, tmp_path)
        with EXPORT.reference(given, exported) as reference, Session(LOAD.load(tmp_path, given, exported)) as session:
            for runner in (reference, session):
                found = runner.run({"data": np.ones((1, 3), np.float32)})
                np.testing.assert_array_equal(found["x"], np.full((1, 3), factor))


def test_a_file_of_another_net_is_refused(lenet: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.caffemodel"
    other.write_bytes(caffe_files.caffemodel([("conv1", "Convolution", [np.zeros((20, 1, 3, 3)), np.zeros(20)])]))
    given = replace(source(lenet / "deploy.prototxt"), parts={"weights": other})
    with pytest.raises(RetargetError, match="layer 'conv"):
        EXPORT.export(given, None, tmp_path)
