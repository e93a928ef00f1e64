"""What apps see of a package: images, labels, descriptions. Values are held against ONNX Runtime on the model's own."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
import target_testing
from written import job

from retarget import catalog
from retarget.errors import NotExecutable, RetargetError
from retarget.facts import EmitFacts
from retarget.interface import Layout
from retarget.spec import DimRange
from retarget.targets.coreml import Classifier, Image, Metadata, Options
from retarget.targets.coreml.library import ct, proto
from retarget.targets.coreml.run import picture

if TYPE_CHECKING:
    from retarget.protocols import Array

NET = """g (float[N,{c},8,8] image, float[5,{c},3,3] w_c) => (float[N,5,1,1] scores, float[N,5] best) {{
    c = Conv <pads = [1, 1, 1, 1]> (image, w_c)
    p = GlobalMaxPool(c)
    f = Flatten(p)
    best = Softmax <axis = 1> (f)
    scores = Neg(p)
}}"""
LAST = """g (float[N,8,8,3] image, float[5,3,3,3] w_c) => (float[N,5] best) {
    t = Transpose <perm = [0, 3, 1, 2]> (image)
    c = Conv <pads = [1, 1, 1, 1]> (t, w_c)
    p = GlobalMaxPool(c)
    best = Flatten(p)
}"""
ONE = DimRange(1, 1, 1)
LABELS = ("ant", "bee", "cat", "dog", "elk")


def emitted(
    model: ir.Model,
    out: Path,
    options: Options,
    *,
    n: DimRange = ONE,
    layout: Layout = "nchw",
    precision: str = "fp32",
) -> EmitFacts:
    made = dataclasses.replace(
        job(model, precision=precision), options=options, shapes={"N": n}, layouts={"image": layout}
    )
    return catalog.target_emit("coreml").emit(model, made, out)


def description(out: Path) -> proto.Model_pb2.ModelDescription:
    return ct.utils.load_spec(str(out / "model.mlpackage")).description


def held(model: ir.Model, out: Path, facts: EmitFacts, feeds: Mapping[str, Array], atol: float = 1e-5) -> None:
    found = target_testing.run("coreml", out, facts, feeds)
    for name, right in target_testing.oracle(model, feeds).items():
        assert found[name].shape == right.shape
        target_testing.assert_close(found[name], right, atol * max(1.0, float(np.abs(right).max())))


@pytest.mark.parametrize(
    ("image", "channels", "space"),
    [
        (Image(scale="1/58", bias=(-2.1, -2.0, -1.8)), 3, "RGB"),
        (Image(color_layout="BGR", scale=0.0039), 3, "BGR"),
        (Image(color_layout="GRAYSCALE", scale=0.1, bias=-12.5), 1, "GRAYSCALE"),
        (Image(color_layout="GRAYSCALE_FLOAT16", bias=0.5), 1, "GRAYSCALE_FLOAT16"),
    ],
)
def test_an_image_gives_the_model_what_scale_and_bias_make_of_its_pixels(
    tmp_path: Path, image: Image, channels: int, space: str
) -> None:
    model = target_testing.model(NET.format(c=channels))
    facts = emitted(model, tmp_path, Options(images={"image": image}))
    (shown,) = description(tmp_path).input
    assert (shown.type.imageType.width, shown.type.imageType.height) == (8, 8)
    assert proto.FeatureTypes_pb2.ImageFeatureType.ColorSpace.Name(shown.type.imageType.colorSpace) == space
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1, channels, 8, 8))
    values = pixels * image.factor + np.reshape(image.biases, (-1, 1, 1))
    atol = 2e-3 if "16" in space else 1e-5
    held(model, tmp_path, facts, {"image": values.astype(np.float32)}, atol)
    held(model, tmp_path, facts, {"image": target_testing.normal(1, channels, 8, 8)}, atol)
    assert any("is an image" in note for note in facts.notes)


def test_an_image_of_a_model_with_the_channels_last_is_turned_in_the_package(tmp_path: Path) -> None:
    model = target_testing.model(LAST)
    facts = emitted(model, tmp_path, Options(images={"image": Image(scale=0.02, bias=-1.0)}), layout="nhwc")
    assert facts.inputs[0].permutation == (0, 3, 1, 2)
    held(model, tmp_path, facts, {"image": target_testing.normal(1, 8, 8, 3)})


@pytest.mark.parametrize("color_layout", ["GRAYSCALE", "GRAYSCALE_FLOAT16"])
def test_an_image_of_a_model_in_float16_becomes_float16_behind_its_scale(
    tmp_path: Path, color_layout: Literal["GRAYSCALE", "GRAYSCALE_FLOAT16"]
) -> None:
    model = target_testing.model(NET.format(c=1).replace("float[", "float16["))
    single = target_testing.model(NET.format(c=1))
    options = Options(images={"image": Image(color_layout=color_layout, scale=1 / 64, bias=-2.0)})
    made = dataclasses.replace(job(single), options=options, shapes={"N": ONE}, precision="fp16", io="float16")
    facts = catalog.target_emit("coreml").emit(model, made, tmp_path)
    assert facts.precision.weights == "float16"
    pixels = np.random.default_rng(0).integers(0, 256, (1, 1, 8, 8))
    held(single, tmp_path, facts, {"image": (pixels / 64 - 2).astype(np.float32)}, 4e-3)


def test_writing_a_package_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    emitted(target_testing.model(NET.format(c=3)), tmp_path, Options(), precision="palette6")
    assert capfd.readouterr() == ("", "")


def test_a_batch_of_images_becomes_one_image(tmp_path: Path) -> None:
    model = target_testing.model(NET.format(c=3))
    facts = emitted(model, tmp_path, Options(images={"image": Image()}), n=DimRange(1, 4, 8))
    assert facts.sizes == {"N": 1}
    assert "N is 1 in the package: coreml.images.image: an image is taken at a time" in facts.notes
    held(model, tmp_path, facts, {"image": target_testing.normal(1, 3, 8, 8)})


@pytest.mark.parametrize("images", [{}, {"image": Image(scale=1 / 255)}])
@pytest.mark.parametrize("output", ["best", "scores"])
def test_a_classifier_gives_its_labels_the_values_of_the_output(
    tmp_path: Path, output: str, images: dict[str, Image]
) -> None:
    text = NET.format(c=3).replace("float[N,5,1,1] scores", "float[N,5] scores").replace("Neg(p)", "Neg(f)")
    model = target_testing.model(text)
    classifier = Classifier(labels=LABELS, predicted_feature_name="animal", probabilities=output)
    told = Metadata(outputs={output: "How likely each is."})
    options = Options(classifier=classifier, images=images, metadata=told)
    facts = emitted(model, tmp_path, options, n=DimRange(1, 4, 8))
    assert facts.precision.io == "float32"
    shown = description(tmp_path)
    assert {each.name: each.shortDescription for each in shown.output}["animal_probs"] == "How likely each is."
    assert shown.predictedFeatureName == "animal"
    assert shown.predictedProbabilitiesName == "animal_probs"
    assert {each.name for each in shown.output} == {"animal", "animal_probs", "best", "scores"} - {output}
    assert facts.sizes == {"N": 1}
    held(model, tmp_path, facts, {"image": target_testing.normal(1, 3, 8, 8)})


def test_a_package_with_all_of_it_is_the_same_each_time_and_loads(tmp_path: Path) -> None:
    model = target_testing.model(NET.format(c=3))
    options = Options(
        images={"image": Image(scale="1/255", bias=(0.5, 0.25, 0.125))},
        classifier=Classifier(labels=LABELS, probabilities="best"),
        metadata=Metadata(author="A. Person", outputs={"best": "How likely.", "scores": "Others."}),
    )
    packages = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        emitted(model, tmp_path / name, options)
        files = (path for path in sorted((tmp_path / name).rglob("*")) if path.is_file())
        packages.append({str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files})
    assert packages[0] == packages[1]
    loaded = ct.models.MLModel(str(tmp_path / "one" / "model.mlpackage"), skip_model_load=True)
    assert loaded.author == "A. Person"
    load = import_module("coremltools.converters.mil.frontend.milproto.load").load
    program = load(loaded.get_spec(), loaded.get_spec().specificationVersion, loaded.weights_dir)
    assert [op.op_type for op in program.functions["main"].operations][-1] == "classify"


def test_metadata_stands_in_the_package(tmp_path: Path) -> None:
    model = target_testing.model(NET.format(c=3))
    told = Metadata(
        author="A. Person",
        license="Apache-2.0",
        version="3",
        description="Finds animals.",
        inputs={"image": "A photograph."},
        outputs={"best": "How likely each is."},
    )
    emitted(model, tmp_path, Options(metadata=told))
    shown = description(tmp_path)
    metadata = shown.metadata
    assert (metadata.author, metadata.license, metadata.versionString) == ("A. Person", "Apache-2.0", "3")
    assert metadata.shortDescription == "Finds animals."
    assert [each.shortDescription for each in shown.input] == ["A photograph."]
    assert {each.name: each.shortDescription for each in shown.output} == {"scores": "", "best": "How likely each is."}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(images={"imge": Image()}), "coreml.images.imge: the model has no input 'imge'\n\nhint: did you mean"),
        (
            Options(images={"image": Image(color_layout="GRAYSCALE")}),
            "1 channel, and float32[N,3,8,8] has 3",
        ),
        (
            Options(classifier=Classifier(labels=("a", "b"), probabilities="best")),
            "coreml.classifier.labels: there are 2 labels, and 'best' is float32[N,5]",
        ),
        (Options(classifier=Classifier(labels=LABELS)), "coreml.classifier: the model has 2 outputs"),
        (
            Options(classifier=Classifier(labels=LABELS, probabilities="worst")),
            "coreml.classifier.probabilities: the model has no output 'worst'",
        ),
        (
            Options(classifier=Classifier(labels=LABELS, probabilities="scores")),
            "coreml.classifier.labels: there are 5 labels, and 'scores' is float32[N,5,1,1]",
        ),
        (Options(metadata=Metadata(inputs={"x": ""})), "coreml.metadata.inputs.x: the model has no input 'x'"),
        (Options(metadata=Metadata(outputs={"x": ""})), "coreml.metadata.outputs.x: the model has no output 'x'"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(tmp_path: Path, options: Options, words: str) -> None:
    with pytest.raises(RetargetError) as error:
        emitted(target_testing.model(NET.format(c=3)), tmp_path, options)
    assert words in str(error.value)


def test_a_batch_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RetargetError, match=r"an image is taken at a time, and the model takes 2:4:8"):
        emitted(
            target_testing.model(NET.format(c=3)), tmp_path, Options(images={"image": Image()}), n=DimRange(2, 4, 8)
        )


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: Image(bias=(1.0, 2.0)), "bias has 2 numbers, and RGB 3 channels"),
        (lambda: Image(scale=0.0), "scale is 0.0"),
        (lambda: Classifier(labels=("a", "b", "a")), "the label 'a' stands there 2 times"),
        (
            lambda: Options(images={"x": Image(color_layout="GRAYSCALE_FLOAT16")}, minimum_deployment_target="iOS15"),
            "images.x: GRAYSCALE_FLOAT16 needs minimum_deployment_target iOS16",
        ),
    ],
)
def test_options_that_contradict_themselves_are_refused(made: object, words: str) -> None:
    assert callable(made)
    with pytest.raises(RetargetError, match=words.replace("[", r"\[")):
        made()


# ---- a Mac, played


class Played:
    """What coremltools' MLModel does on a Mac: images in, dictionaries of labels out."""

    def __init__(self, path: str, *, compute_units: object) -> None:
        self.units = compute_units
        self.fed: dict[str, object] = {}

    def predict(self, data: dict[str, object]) -> dict[str, object]:
        self.fed = data
        picture = np.asarray(data["image"]).astype(np.float64).transpose(2, 0, 1)[None]
        return {
            "animal": "bee",
            "animal_probs": dict(zip(reversed(LABELS), [*picture.mean((0, 2, 3)), 7.0, 8.0], strict=True)),
            "scores": np.zeros((1, 5, 1, 1), np.float32),
        }


def play_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.target("coreml"), "interpreted", None)
    monkeypatch.setattr(platform, "mac_ver", lambda: ("14.5", ("", "", ""), "arm64"))
    monkeypatch.setattr(ct.models, "MLModel", Played)


def test_on_a_mac_pixels_go_in_and_the_models_own_outputs_come_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = target_testing.model(NET.format(c=3))
    options = Options(
        images={"image": Image(scale=0.5, bias=-1.0)},
        classifier=Classifier(labels=LABELS, predicted_feature_name="animal", probabilities="best"),
    )
    facts = emitted(model, tmp_path, options)
    play_a_mac(monkeypatch)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1, 3, 8, 8))
    feeds = {"image": (pixels * 0.5 - 1.0).astype(np.float32)}
    for parity, units in ((True, "CPU_ONLY"), (False, "ALL")):
        with catalog.target_run("coreml").open(tmp_path, facts, parity=parity, threads=1) as runner:
            assert runner.settings == f"Core ML, {units}"
            found = runner.run(feeds)
        assert found["best"].shape == (1, 5)
        # The dictionary has another order than the labels: (elk, dog, cat) are the means of the channels.
        expected = [8.0, 7.0, *pixels.mean((0, 2, 3))[::-1]]
        np.testing.assert_allclose(found["best"][0], expected, rtol=1e-6)
        assert found["scores"].shape == (1, 5, 1, 1)
    with (
        catalog.target_run("coreml").open(tmp_path, facts, parity=True, threads=1) as runner,
        pytest.raises(NotExecutable, match="the feeds are no images"),
    ):
        runner.run({"image": target_testing.normal(1, 3, 8, 8)})


def test_a_mac_that_is_too_old_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = emitted(target_testing.model(NET.format(c=3)), tmp_path, Options(minimum_deployment_target="iOS18"))
    play_a_mac(monkeypatch)
    with pytest.raises(NotExecutable, match=r"this is macOS 14.5, and the package needs macOS 15"):
        catalog.target_run("coreml").open(tmp_path, facts, parity=True, threads=1)


def test_pictures_have_the_channels_as_pillow_has_them() -> None:
    values = np.arange(3 * 4 * 5, dtype=np.float32).reshape(1, 3, 4, 5)
    for layout, order in (("RGB", (0, 1, 2)), ("BGR", (2, 1, 0))):
        image = msgspec.convert({"color_layout": layout, "scale": 2.0, "bias": -4.0}, Image)
        shown = np.asarray(picture(values * 2 - 4, image))
        np.testing.assert_array_equal(shown, values[0][list(order)].transpose(1, 2, 0))
    gray = np.asarray(picture(values[:, :1], Image(color_layout="GRAYSCALE")))
    np.testing.assert_array_equal(gray, values[0, 0])
    half = np.asarray(picture(values[:, :1] / 4, Image(color_layout="GRAYSCALE_FLOAT16")))
    np.testing.assert_array_equal(half, values[0, 0] / 4)
