"""The TFLite frontend on files that TensorFlow's converter writes. Oracle: the interpreter, its reference kernels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from retarget import graph
from retarget.catalog import frontend, frontend_export, frontend_load, target
from retarget.compare import snr_db
from retarget.convert.tflite import Options
from retarget.convert.tflite.names import cleaned
from retarget.errors import RetargetError, Unsupported
from retarget.interface import Interface, Layout
from retarget.interface_graph import apply
from retarget.interface_runner import wrap
from retarget.passes import presets
from retarget.recognise import recognise
from retarget.session import Session
from retarget.source import Exported, Source
from retarget.spec import DimRange, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retarget.protocols import Array, Feeds, Outputs

# TensorFlow and Keras warn of each other.
pytestmark = pytest.mark.filterwarnings("ignore")

EXPORT = frontend_export("tflite")
LOAD = frontend_load("tflite")
IMAGE = (12, 12, 3)


def _source(path: Path, **given: Any) -> Source:
    options = {"kernels": given.pop("kernels", Options().kernels)}
    return Source(path, given.pop("inputs", ()), {}, options=options, **given)


def _samples(rows: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, *IMAGE)).astype("f4")


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def network(tf: Any) -> Any:
    """A network of what TFLite quantizes in ways of its own: fused activations, depthwise, Add, Concat, Dense."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    image = keras.Input(IMAGE, name="image")
    x = layers.Conv2D(8, 3, padding="same")(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, strides=2, padding="same")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Add()([x, layers.Conv2D(8, 1)(x)])
    x = layers.Concatenate()([layers.MaxPooling2D()(x), layers.Conv2D(4, 2, strides=2)(x)])
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same")(x)
    features = layers.Conv2D(6, 3, name="features")(x)
    logits = layers.Dense(5, name="logits")(layers.Flatten()(x))
    model = keras.Model(image, {"features": features, "logits": logits})
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if not weight.path.endswith("kernel"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


def _converter(tf: Any, network: Any) -> Any:
    return tf.lite.TFLiteConverter.from_keras_model(network)


def _int8(tf: Any, network: Any) -> Any:
    converter = _converter(tf, network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([_samples(1, seed)] for seed in range(16))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter


def _written(tf: Any, network: Any, kind: str) -> bytes:
    converter = _int8(tf, network) if "int8" in kind else _converter(tf, network)
    if kind == "float16":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    if kind != "int8 of floats" and "int8" in kind:
        converter.inference_input_type = converter.inference_output_type = getattr(tf, kind)
    data: bytes = converter.convert()
    return data


@pytest.fixture(scope="module")
def files(tf: Any, network: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("tflite")

    def file(kind: str) -> Path:
        path = folder / f"{kind}.tflite"
        if not path.exists():
            path.write_bytes(_written(tf, network, kind))
        return path

    return file


def _of_function(tf: Any, path: Path, function: Any, *specs: Any, custom: bool = False) -> Path:
    converter = tf.lite.TFLiteConverter.from_concrete_functions([tf.function(function).get_concrete_function(*specs)])
    converter.allow_custom_ops = custom
    path.write_bytes(converter.convert())
    return path


def _convert(source: Source, out: Path) -> tuple[ir.Model, Exported]:
    exported = EXPORT.export(source, None, out)
    model = LOAD.load(out, source, exported)
    assert model.opset_imports[""] == graph.OPSET
    assert tuple(graph.value_spec(value) for value in model.graph.inputs) == exported.inputs
    assert tuple(value.name for value in model.graph.outputs) == exported.outputs
    return model, exported


def _both(source: Source, feeds: Feeds, out: Path) -> Iterator[tuple[str, Array, Array]]:
    """Name of each output, what the interpreter gives, and what ONNX Runtime on the converted model does."""
    model, exported = _convert(source, out)
    with EXPORT.reference(source, exported) as runner, Session(model) as session:
        expected: Outputs = runner.run(feeds)
        actual = session.run(feeds)
    assert list(expected) == list(actual)
    for name, value in expected.items():
        assert value.std() > 0
        assert (actual[name].shape, actual[name].dtype) == (value.shape, value.dtype)
        yield name, value, actual[name]


# ---- precisions


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_float_file_gives_what_the_interpreter_gives(
    files: Callable[[str], Path], tmp_path: Path, kind: str, rows: int
) -> None:
    for _, expected, actual in _both(_source(files(kind)), {"image": _samples(rows, 7)}, tmp_path):
        assert snr_db(expected, actual) >= 110


@pytest.mark.parametrize("kernels", ["builtin", "reference"])
@pytest.mark.parametrize("kind", ["int8", "uint8", "int8 of floats"])
def test_int8_file_is_within_one_step_of_the_interpreter(
    files: Callable[[str], Path], tmp_path: Path, kind: str, kernels: str
) -> None:
    samples = _samples(4, 7)
    feed: Array = samples
    if kind != "int8 of floats":
        limits = np.iinfo(kind)
        codes = np.clip(np.round(samples * 32) + (limits.max + limits.min + 1) // 2, limits.min, limits.max)
        feed = codes.astype(np.dtype(kind))
    outputs = _both(_source(files(kind), kernels=kernels), {"image": feed}, tmp_path)
    # Fixed-point and floating-point arithmetic differ where a value is half way between two codes: TFLite rounds that
    # away from zero, and ONNX to even. (Means of few codes, as of average pooling, lie there often.)
    steps_apart = []
    for _, expected, actual in outputs:
        values = np.unique(np.append(expected, actual).astype("f8"))
        step = 1.0 if kind != "int8 of floats" else np.diff(values)[np.diff(values) > 1e-5].min()
        steps_apart.append(np.abs(expected.astype("f8") - actual.astype("f8")).ravel() / step)
    apart = np.concatenate(steps_apart)
    assert apart.max() < 1.01
    assert (apart > 0.5).mean() <= 0.08


def test_int8_of_the_file_is_kept(files: Callable[[str], Path], tmp_path: Path) -> None:
    model, exported = _convert(_source(files("int8")), tmp_path)
    assert exported.narrow == "int8"
    assert any("int8" in note for note in exported.notes)
    dequantized: dict[ir.Value | None, Sequence[ir.Value | None]] = {
        node.outputs[0]: node.inputs for node in model.graph if node.op_type == "DequantizeLinear"
    }
    convolutions = [node for node in model.graph if node.op_type in ("Conv", "ConvTranspose")]
    assert convolutions
    for node in convolutions:
        x, scale, _ = dequantized[node.inputs[1]]
        assert x is not None
        assert x.dtype == ir.DataType.INT8
        assert scale is not None
        assert scale.shape is not None
        assert scale.shape.numpy() == (x.shape[1 if node.op_type == "ConvTranspose" else 0],)  # type: ignore[index]
        if len(node.inputs) > 2:
            bias = dequantized[node.inputs[2]][0]
            assert bias is not None
            assert bias.dtype == ir.DataType.INT32
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) >= 8


def test_weights_of_a_dynamic_range_file_are_multiplied_in_float(tf: Any, tmp_path: Path) -> None:
    """The interpreter rounds the floats too: what is converted is nearer to the network than the interpreter is."""
    import keras

    keras.utils.set_random_seed(0)
    image = keras.Input(IMAGE, name="image")
    x = keras.layers.Conv2D(64, 5, activation="relu")(image)
    network = keras.Model(image, keras.layers.Dense(16)(keras.layers.Flatten()(x)))
    converter = _converter(tf, network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    path = tmp_path / "m.tflite"
    path.write_bytes(converter.convert())
    feeds = {"image": _samples(3)}
    wanted = np.asarray(network(feeds["image"]))
    for _, interpreted, converted in _both(_source(path), feeds, tmp_path):
        assert snr_db(interpreted, converted) >= 30
        assert snr_db(wanted, converted) > snr_db(wanted, interpreted)
    model, exported = _convert(_source(path), tmp_path)
    assert exported.narrow == "int8"
    assert any("weights are int8" in note for note in exported.notes)
    assert not any(node.op_type == "DynamicQuantizeLinear" for node in model.graph)


def test_float_file_says_nothing_of_int8(files: Callable[[str], Path], tmp_path: Path) -> None:
    _, exported = _convert(_source(files("float16")), tmp_path)
    assert exported.narrow is None
    assert exported.notes == ()


def test_settings_name_the_kernels(files: Callable[[str], Path], tmp_path: Path) -> None:
    path = files("float32")
    exported = EXPORT.export(_source(path), None, tmp_path)
    for kernels, words in (("builtin", "no delegates"), ("reference", "reference"), ("xnnpack", "XNNPACK")):
        with EXPORT.reference(_source(path, kernels=kernels), exported) as runner:
            assert re.match(rf"LiteRT [\d.]+, CPU, .*{words}.*, 2 threads", runner.settings)
            assert runner.run({"image": _samples(2)})["logits"].shape == (2, 5)


# ---- through the passes


@pytest.mark.parametrize("kind", ["float32", "int8 of floats"])
@pytest.mark.parametrize(("layout", "left"), [("nchw", 0), ("nhwc", 2)])
def test_transposes_that_are_left(
    files: Callable[[str], Path], tmp_path: Path, kind: str, layout: Layout, left: int
) -> None:
    source = _source(files(kind))
    model, exported = _convert(source, tmp_path)
    interface = Interface("nhwc", layout)
    apply(model, interface)
    for _, run in presets.build("default", {"N": DimRange(1, 2, 4)}):
        model = run(model).model
    assert sum(node.op_type == "Transpose" for node in model.graph) == left
    feeds = {"image": _samples(2).transpose(0, 3, 1, 2) if layout == "nchw" else _samples(2)}
    with wrap(EXPORT.reference(source, exported), interface, exported.inputs) as runner, Session(model) as session:
        expected, actual = runner.run(feeds), session.run(feeds)
    for name, value in expected.items():
        assert value.shape == actual[name].shape
        assert snr_db(value, actual[name]) >= (100 if kind == "float32" else 30)


def test_onnxruntime_computes_int8_in_int8(files: Callable[[str], Path], tmp_path: Path) -> None:
    model, _ = _convert(_source(files("int8")), tmp_path)
    ranges = {"N": DimRange(1, 2, 4)}
    lowering = presets.build([(name, {}) for name in target("onnxruntime").lower], ranges)
    for _, run in [*presets.build("default", ranges), *lowering]:
        model = run(model).model
    executed = tmp_path / "executed.onnx"
    with Session(model, optimize=True, save_optimized=executed):
        ops = Counter(node.op_type for node in graph.load(executed).graph)
    assert ops["QLinearConv"] >= 4
    assert ops["QLinearConv"] > ops["Conv"] + ops["FusedConv"]


# ---- names, signatures, borders


def test_names_and_dimensions_are_those_of_the_signature(files: Callable[[str], Path], tmp_path: Path) -> None:
    model, exported = _convert(_source(files("float32")), tmp_path)
    assert [str(spec) for spec in exported.inputs] == ["image=float32[N,12,12,3]"]
    specs = {graph.value_spec(value).name: graph.value_spec(value).type for value in model.graph.outputs}
    assert specs == {"features": "float32[N,4,4,6]", "logits": "float32[N,5]"}


def test_user_names_dimensions_and_outputs(files: Callable[[str], Path], tmp_path: Path) -> None:
    inputs = (TensorSpec.parse("image=float32[batch,12,12,3]"),)
    model, exported = _convert(_source(files("float32"), inputs=inputs, outputs=("a", "b")), tmp_path)
    assert exported.outputs == ("a", "b")
    assert {graph.value_spec(value).shape[0] for value in model.graph.outputs} == {"batch"}
    with pytest.raises(RetargetError, match="outputs are named"):
        EXPORT.export(_source(files("float32"), outputs=("a",)), None, tmp_path)
    with pytest.raises(RetargetError, match=r"has no input 'picture'[\s\S]*image=float32\[\?,12,12,3\]"):
        EXPORT.export(_source(files("float32"), inputs=(TensorSpec("picture", "float32", ("N", 1)),)), None, tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("serving_default_x:0", "x"),
        ("serving_default_x:1", "x_1"),
        ("StatefulPartitionedCall:0", "otherwise"),
        ("StatefulPartitionedCall_1:0", "otherwise"),
        ("PartitionedCall:2", "otherwise"),
        ("model/dense/BiasAdd;model/dense/MatMul", "model/dense/BiasAdd"),
        ("import/a b=c", "import/a_b_c"),
        ("", "otherwise"),
    ],
)
def test_cleaned(name: str, expected: str) -> None:
    assert cleaned(name, "otherwise") == expected


def test_tensors_that_are_input_and_output_twice(tf: Any, tmp_path: Path) -> None:
    """An input given out, one tensor given out twice, and an input that nothing reads."""
    spec = tf.TensorSpec([None, 4], tf.float32)

    def function(x: Any, unused: Any) -> Any:
        y = tf.sin(x)
        return {"same": x, "y": y, "again": y}

    path = _of_function(tf, tmp_path / "m.tflite", function, spec, spec)
    feeds = {name: np.random.default_rng(0).standard_normal((3, 4)).astype("f4") for name in ("x", "unused")}
    for _, expected, actual in _both(_source(path), feeds, tmp_path):
        assert snr_db(expected, actual) >= 110


@pytest.fixture(scope="module")
def several(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two signatures, each a graph of its own."""
    module = tf.Module()
    spec = tf.TensorSpec([None, 3], tf.float32)
    module.w = tf.constant(np.random.default_rng(0).standard_normal((3, 4)).astype("f4"))
    module.encode = tf.function(lambda x: {"code": tf.matmul(x, module.w)}, input_signature=[spec])
    module.scale = tf.function(lambda y: {"scaled": y * 2.0 + 1.0}, input_signature=[spec])
    folder = tmp_path_factory.mktemp("saved")
    tf.saved_model.save(module, str(folder), signatures={"encode": module.encode, "scale": module.scale})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=["encode", "scale"])
    path = folder / "several.tflite"
    path.write_bytes(converter.convert())
    return path


@pytest.mark.parametrize(("signature", "given", "gives"), [("encode", "x", "code"), ("scale", "y", "scaled")])
def test_signature_is_chosen_by_name(several: Path, tmp_path: Path, signature: str, given: str, gives: str) -> None:
    source = _source(several, signature=signature)
    _, exported = _convert(source, tmp_path)
    assert (exported.inputs[0].name, exported.outputs) == (given, (gives,))
    feeds = {given: np.random.default_rng(0).standard_normal((3, 3)).astype("f4")}
    for _, expected, actual in _both(source, feeds, tmp_path):
        assert snr_db(expected, actual) >= 110


def test_signature_must_be_named_and_exist(several: Path, tmp_path: Path) -> None:
    with pytest.raises(RetargetError, match=r"2 signatures[\s\S]*encode, scale"):
        EXPORT.export(_source(several), None, tmp_path)
    with pytest.raises(RetargetError, match=r"no signature 'encod'[\s\S]*'encode'"):
        EXPORT.export(_source(several, signature="encod"), None, tmp_path)


# ---- operators that tf2onnx has wrong or lacks


def test_transposed_convolution_with_bias_and_clip(tf: Any, tmp_path: Path) -> None:
    spec = tf.TensorSpec([2, 5, 5, 4], tf.float32)
    kernel = np.random.default_rng(0).standard_normal((3, 3, 4, 4)).astype("f4")

    def function(x: Any) -> Any:
        biased = tf.nn.conv2d_transpose(x, kernel, [2, 10, 10, 4], 2) + tf.constant([1.0, -2.0, 3.0, 0.5])
        return {"clipped": tf.clip_by_value(x, -1.0, 1.0), "biased": tf.nn.relu(biased)}

    path = _of_function(tf, tmp_path / "m.tflite", function, spec)
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 5, 5, 4)).astype("f4")}
    for _, expected, actual in _both(_source(path), feeds, tmp_path):
        assert snr_db(expected, actual) >= 110


def test_gelu(tf: Any, tmp_path: Path) -> None:
    import keras

    x = keras.Input((4,), name="x")
    path = tmp_path / "m.tflite"
    # Of one tensor, their common part would keep the converter from seeing what they are.
    outputs = {"exact": keras.activations.gelu(2 * x), "by_tanh": keras.activations.gelu(3 * x, approximate=True)}
    path.write_bytes(_converter(tf, keras.Model(x, outputs)).convert())
    feeds = {"x": np.random.default_rng(1).standard_normal((64, 4)).astype("f4")}
    for _, expected, actual in _both(_source(path), feeds, tmp_path):
        assert snr_db(expected, actual) >= 110


def test_loop_is_converted(tf: Any, tmp_path: Path) -> None:
    import keras

    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((6, 3), batch_size=1, name="x"), keras.layers.LSTM(4)])
    path = tmp_path / "m.tflite"
    path.write_bytes(_converter(tf, network).convert())
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 6, 3)).astype("f4")}
    for _, expected, actual in _both(_source(path), feeds, tmp_path):
        assert snr_db(expected, actual) >= 100


def test_all_unknown_operators_are_listed(tf: Any, tmp_path: Path) -> None:
    spec = tf.TensorSpec([2, 3], tf.float32)

    def function(x: Any) -> Any:
        return tf.math.igamma(tf.math.erfinv(x), tf.math.erfinv(x * 0.5)) + tf.math.erfinv(x * 0.1)

    path = _of_function(tf, tmp_path / "m.tflite", function, spec, custom=True)
    with pytest.raises(Unsupported, match=r"3 Erfinv\n  1 Igamma"):
        EXPORT.export(_source(path), None, tmp_path)


# ---- what is and is not a TFLite file


def test_detection_is_by_content(files: Callable[[str], Path], tmp_path: Path) -> None:
    light = frontend("tflite")
    renamed = tmp_path / "model.bin"
    renamed.write_bytes(files("float32").read_bytes())
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(b"nothing")
    (tmp_path / "other.bin").write_bytes(b"\x08\x09\x12\x00TFL2....")
    assert light.matches(renamed) == "TFLite"
    assert light.matches(damaged) is None
    assert recognise(damaged) == ("tflite", "TFLite")
    assert light.matches(tmp_path / "other.bin") is None
    assert light.matches(tmp_path) is None
    assert light.layout == "nhwc"


def test_factory_is_refused(files: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(RetargetError, match="needs no factory"):
        EXPORT.export(_source(files("float32"), factory=(tmp_path, "f")), None, tmp_path)
