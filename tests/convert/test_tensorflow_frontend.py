"""The TensorFlow frontend: every form of model from file to ONNX Runtime, held against TensorFlow itself."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tensorflow_testing import (
    converted,
    normal,
    round_trip,
    save_checkpoint,
    save_function,
    save_graph,
    source_of,
    weights,
)

from retarget.convert.tensorflow import lower, matches, parts
from retarget.convert.tensorflow.framework import quiet, tf
from retarget.errors import RetargetError, Unsupported
from retarget.protocols import JSON
from retarget.spec import TensorSpec

with quiet():
    import keras

F32 = tf.float32


def spec(*shape: int | None, name: str = "x", dtype: tf.DType = F32) -> tf.TensorSpec:
    return tf.TensorSpec(shape, dtype, name=name)


X = [{"x": normal(2, 8)}, {"x": normal(5, 8)}]


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two signatures, one of them of two inputs and two outputs, whose order is not that of their names."""
    folder = tmp_path_factory.mktemp("saved") / "two_heads"
    module = tf.Module()
    module.kernel, module.shift = tf.Variable(weights(8, 4)), tf.constant(normal(4))

    def pair(right: tf.Tensor, left: tf.Tensor) -> dict[str, tf.Tensor]:
        hidden = (right + 2 * left) @ module.kernel + module.shift
        return {"probabilities": tf.nn.softmax(hidden), "logits": hidden}

    def single(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"doubled": 2 * (x @ module.kernel)}

    signatures = {
        "pair": tf.function(pair, input_signature=[spec(None, 8, name="right"), spec(None, 8, name="left")]),
        "single": tf.function(single, input_signature=[spec(None, 8)]),
    }
    with quiet():
        tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder


PAIRS = [{"left": normal(n, 8), "right": normal(n, 8, seed=1)} for n in (2, 5)]


# ---- SavedModels


def test_a_signature_is_chosen_by_name(two_heads: Path, tmp_path: Path) -> None:
    assert matches(two_heads) == "SavedModel"
    exported, _ = round_trip(source_of(two_heads, signature="pair"), tmp_path / "out", PAIRS)
    assert exported.inputs == (
        TensorSpec("left", "float32", ("N", 8)),
        TensorSpec("right", "float32", ("N", 8)),
    )
    assert exported.outputs == ("logits", "probabilities")
    assert exported.notes == ("the signature is 'pair'",)
    exported, _ = round_trip(source_of(two_heads, signature="single"), tmp_path / "single", X)
    assert exported.outputs == ("doubled",)


def test_an_unknown_signature_is_met_with_the_list(two_heads: Path, tmp_path: Path) -> None:
    with pytest.raises(RetargetError, match="has no signature 'pairs'") as caught:
        converted(source_of(two_heads, signature="pairs"), tmp_path)
    assert caught.value.hint == "did you mean 'pair'? its signatures: pair, single"
    with pytest.raises(RetargetError, match="several signatures, none of them 'serving_default'") as caught:
        converted(source_of(two_heads), tmp_path)
    assert caught.value.hint == "choose one; its signatures: pair, single"


def test_names_and_dimensions_are_the_users(two_heads: Path, tmp_path: Path) -> None:
    source = source_of(
        two_heads, "right=float32[B,8]", "left=float32[B,8]", signature="pair", outputs=("scores", "shares")
    )
    exported, model = round_trip(source, tmp_path / "out", PAIRS)
    assert [str(spec) for spec in exported.inputs] == ["left=float32[B,8]", "right=float32[B,8]"]
    assert exported.outputs == ("scores", "shares")
    assert [value.shape.dims[0].value for value in model.graph.outputs] == ["B", "B"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("inputs", "outputs", "message", "hint"),
    [
        (("left=float32[N,8]", "rigth=float32[N,8]"), (), "has no input 'rigth'", "did you mean 'right'?"),
        (("left=float32[N,8]",), (), "input 'right' is not named", r"left=float32\[\?,8\], right=float32\[\?,8\]"),
        (("left=float32[N,8]", "right=int32[N,8]"), (), "int32 was given, .* has float32", "its inputs"),
        (("left=float32[N,8]", "right=float32[8]"), (), "1 dimensions were given, .* has 2", "its inputs"),
        (("left=float32[N,8]", "right=float32[N,9]"), (), "'9' was given, .* has it fixed at 8", "write 8"),
        (("left=float32[N,8]", "right=float32[N,C]"), (), "'C' was given, .* has it fixed at 8", "write 8"),
        ((), ("logits",), "1 outputs are named .* has 2: logits, probabilities", "name all of them"),
        ((), ("left", "b"), "two tensors have one name", "outputs"),
    ],
)
def test_a_border_that_is_not_the_models(
    inputs: tuple[str, ...], outputs: tuple[str, ...], message: str, hint: str, two_heads: Path, tmp_path: Path
) -> None:
    with pytest.raises(RetargetError, match=message) as caught:
        converted(source_of(two_heads, *inputs, outputs=outputs, signature="pair"), tmp_path)
    assert re.search(hint, str(caught.value.hint))


def test_open_dimensions_get_names_that_a_recipe_can_hold(tmp_path: Path) -> None:
    folder = save_function(
        lambda image, tokens: {"y": tf.reduce_mean(image, [1, 2, 3]) + tf.reduce_sum(tokens, 1)},
        tmp_path / "m",
        spec(None, None, None, 3, name="image"),
        spec(None, None, name="tokens"),
    )
    feeds = [{"image": normal(n, 4, 4 + n, 3), "tokens": normal(n, 3 + n)} for n in (2, 3)]
    exported, _ = round_trip(source_of(folder), tmp_path / "out", feeds)
    assert [str(spec) for spec in exported.inputs] == [
        "image=float32[N,image_h,image_w,3]",
        "tokens=float32[N,tokens_dim1]",
    ]


def test_sizes_of_the_user_are_those_of_the_graph(tmp_path: Path) -> None:
    folder = save_function(
        lambda x: {"y": tf.reshape(x, [tf.shape(x)[0], -1]) * 2}, tmp_path / "m", spec(None, None, 3)
    )
    exported, model = round_trip(source_of(folder, "x=float32[N,4,3]"), tmp_path / "out", [{"x": normal(2, 4, 3)}])
    assert exported.inputs == (TensorSpec("x", "float32", ("N", 4, 3)),)
    assert tuple(model.graph.outputs[0].shape or ())[1] == 12


def test_an_unknown_rank_is_asked_for(tmp_path: Path) -> None:
    folder = save_function(lambda x: {"y": tf.sin(x)}, tmp_path / "m", tf.TensorSpec(None, F32, name="x"))
    with pytest.raises(RetargetError, match="does not say how many dimensions its input 'x' has") as caught:
        converted(source_of(folder), tmp_path / "out")
    assert "--input 'x=float32[N,224,224,3]'" in str(caught.value.hint)
    round_trip(source_of(folder, "x=float32[N,8]"), tmp_path / "out", X)


def test_an_input_that_is_not_used_and_one_that_is_given_back(tmp_path: Path) -> None:
    folder = save_function(
        lambda x, idle: {"x": x, "same": x, "y": x + 1}, tmp_path / "m", spec(None, 8), spec(None, 2, name="idle")
    )
    feeds = [{**feed, "idle": normal(len(feed["x"]), 2)} for feed in X]
    exported, _ = round_trip(source_of(folder), tmp_path / "out", feeds)
    assert [spec.name for spec in exported.inputs] == ["idle", "x"]
    assert exported.outputs == ("same", "x_out", "y")


def test_a_saved_model_of_tensorflow_1(tmp_path: Path) -> None:
    v1 = tf.compat.v1
    with quiet(), tf.Graph().as_default():
        x = v1.placeholder(F32, [None, 8], name="fed")
        keep = v1.placeholder_with_default(1.0, [], name="keep")
        kernel = v1.get_variable("kernel", initializer=weights(8, 4), use_resource=False)
        bias = v1.get_variable("bias", initializer=normal(4), use_resource=True)
        y = tf.nn.relu(x @ kernel + bias) * keep
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            v1.saved_model.simple_save(session, str(tmp_path / "m"), {"images": x}, {"scores": y, "again": y})
    exported, _ = round_trip(source_of(tmp_path / "m"), tmp_path / "out", [{"images": feed["x"]} for feed in X])
    assert [str(spec) for spec in exported.inputs] == ["images=float32[N,8]"]
    assert exported.outputs == ("again", "scores")


def test_a_part_of_a_saved_model_names_the_folder(two_heads: Path, tmp_path: Path) -> None:
    assert matches(two_heads / "saved_model.pb") == "SavedModel"
    with pytest.raises(RetargetError, match="is a part of a SavedModel") as caught:
        converted(source_of(two_heads / "saved_model.pb"), tmp_path)
    assert str(two_heads) in str(caught.value.hint)


# ---- graphs without signatures


def frozen() -> None:
    x = tf.compat.v1.placeholder(F32, [None, 8], name="net/x")
    hidden = tf.nn.tanh(x @ weights(8, 6), name="net/hidden")
    left, _ = tf.split(hidden, 2, axis=1, name="net/halves")
    tf.nn.softmax(left, name="net/left")
    tf.identity(hidden * 2, name="net/whole")


def test_a_frozen_graph(tmp_path: Path) -> None:
    path = save_graph(frozen, tmp_path / "m.pb")
    assert matches(path) == "frozen graph"
    feeds = [{"net/x": feed["x"]} for feed in X]
    exported, _ = round_trip(source_of(path), tmp_path / "out", feeds)
    assert [str(spec) for spec in exported.inputs] == ["net/x=float32[N,8]"]
    assert exported.outputs == ("net/left", "net/whole")


def test_a_part_of_a_frozen_graph(tmp_path: Path) -> None:
    path = save_graph(frozen, tmp_path / "m.pb")
    options: dict[str, JSON] = {"outputs": ["net/halves:1", "net/left"]}
    feeds = [{"net/hidden": normal(n, 6)} for n in (2, 3)]
    source = source_of(path, "net/hidden=float32[N,6]", options=options, outputs=("right", "left"))
    exported, _ = round_trip(source, tmp_path / "out", feeds)
    assert exported.outputs == ("right", "left")
    with pytest.raises(RetargetError, match="has no tensor 'net/halvs'") as caught:
        converted(source_of(path, options={"outputs": ["net/halvs"]}), tmp_path / "out")
    assert caught.value.hint == "did you mean 'net/halves'?"


def test_a_graph_as_text(tmp_path: Path) -> None:
    from google.protobuf import text_format

    with tf.Graph().as_default() as built:
        frozen()
    (tmp_path / "m.pbtxt").write_text(text_format.MessageToString(built.as_graph_def()))
    assert matches(tmp_path / "m.pbtxt") == "frozen graph"
    round_trip(source_of(tmp_path / "m.pbtxt"), tmp_path / "out", [{"net/x": feed["x"]} for feed in X])


def trained() -> None:
    v1 = tf.compat.v1
    x = v1.placeholder(F32, [None, 8], name="x")
    kernel = v1.get_variable("kernel", initializer=weights(8, 4), use_resource=False)
    tf.nn.softmax(x @ kernel, name="shares")


@pytest.mark.parametrize("given", ["m", "m/net-7.meta", "m/net-7.index", "m/net-7", "m/net-7.data-00000-of-00001"])
def test_a_checkpoint(given: str, tmp_path: Path) -> None:
    save_checkpoint(trained, tmp_path / "m" / "net-7")
    path = tmp_path / given
    assert matches(path) == "TensorFlow 1 checkpoint"
    others = {"graph": "net-7.meta", "index": "net-7.index", "data-00000-of-00001": "net-7.data-00000-of-00001"}
    assert {role: file.name for role, file in parts(path).items()} == {
        role: name for role, name in others.items() if name != path.name
    }
    if given == "m":
        exported, _ = round_trip(source_of(path), tmp_path / "out", X)
        assert exported.outputs == ("shares",)
    else:
        assert converted(source_of(path), tmp_path / "out")[0].outputs == ("shares",)


def test_a_checkpoint_without_its_graph(tmp_path: Path) -> None:
    folder = save_checkpoint(trained, tmp_path / "m" / "net")
    (folder / "net.meta").unlink()
    with pytest.raises(RetargetError, match=r"net.meta, its graph, is missing") as caught:
        converted(source_of(folder), tmp_path / "out")
    assert "SavedModel" in str(caught.value.hint)


# ---- what models are made of


def test_convolutions_keep_the_channels_last(tmp_path: Path) -> None:
    def net(x: tf.Tensor) -> dict[str, tf.Tensor]:
        h = tf.nn.relu(tf.nn.conv2d(x, weights(3, 3, 3, 8), 2, "SAME"))
        h = tf.nn.depthwise_conv2d(h, weights(3, 3, 8, 1), [1, 1, 1, 1], "SAME")
        return {"y": tf.reduce_mean(tf.nn.relu6(h), [1, 2]) @ weights(8, 5)}

    folder = save_function(net, tmp_path / "m", spec(None, 16, 16, 3))
    feeds = [{"x": normal(n, 16, 16, 3)} for n in (1, 3)]
    exported, _ = round_trip(source_of(folder), tmp_path / "out", feeds)
    assert exported.inputs == (TensorSpec("x", "float32", ("N", 16, 16, 3)),)


def test_functions_that_are_marked_for_xla_or_not_to_be_inlined(tmp_path: Path) -> None:
    kernel = tf.constant(normal(3, 3, 2, 8))

    grouped = tf.function(lambda x: tf.nn.conv2d(x, kernel, 1, "SAME"), jit_compile=True)
    squashed = tf.function(tf.nn.tanh, experimental_attributes={"_noinline": True})
    folder = save_function(lambda x: {"y": squashed(grouped(x))}, tmp_path / "saved", spec(None, 6, 6, 4))
    round_trip(source_of(folder), tmp_path / "out", [{"x": normal(n, 6, 6, 4)} for n in (1, 3)])


def test_exact_gelu_and_attention(tmp_path: Path) -> None:
    def net(x: tf.Tensor) -> dict[str, tf.Tensor]:
        q, k, v = (tf.einsum("nld,dhe->nhle", x, weights(8, 2, 4) * np.float32(scale)) for scale in (1.0, 0.7, 0.4))
        heads = tf.nn.softmax(tf.einsum("nhle,nhme->nhlm", q, k) / 2.0) @ v
        return {"y": tf.nn.gelu(tf.reshape(tf.transpose(heads, [0, 2, 1, 3]), [-1, tf.shape(x)[1], 8]))}

    folder = save_function(net, tmp_path / "m", spec(None, None, 8))
    _, model = round_trip(source_of(folder), tmp_path / "out", [{"x": normal(n, 3 + n, 8)} for n in (1, 3)])
    assert "Erf" in {node.op_type for node in model.graph}


@pytest.mark.parametrize("layer", ["LSTM", "GRU"])
def test_recurrent_layers_of_variable_length(layer: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 4), name="steps")
    hidden = getattr(keras.layers, layer)(6, return_sequences=True)(inputs)
    model = keras.Model(
        inputs, {"all": hidden, "last": keras.layers.Bidirectional(getattr(keras.layers, layer)(3))(hidden)}
    )
    with quiet():
        model.export(str(tmp_path / "m"), verbose=False)
    feeds = [{"steps": normal(n, 5 + n, 4)} for n in (1, 3)]
    exported, _ = round_trip(source_of(tmp_path / "m"), tmp_path / "out", feeds)
    assert [str(spec) for spec in exported.inputs] == ["steps=float32[N,steps_dim1,4]"]
    assert exported.outputs == ("all", "last")


def test_one_dimensional_convolutions_and_norms_of_keras(tmp_path: Path) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((12, 4)),
            layers.Conv1D(8, 3, padding="causal", dilation_rate=2),
            layers.BatchNormalization(),
            layers.LayerNormalization(),
            layers.MaxPooling1D(2),
            layers.GlobalAveragePooling1D(),
            layers.Dense(5, activation="gelu"),
        ]
    )
    with quiet():
        model.export(str(tmp_path / "m"), verbose=False)
    name = converted(source_of(tmp_path / "m"), tmp_path / "out")[0].inputs[0].name
    round_trip(source_of(tmp_path / "m"), tmp_path / "out", [{name: normal(n, 12, 4)} for n in (1, 3)])


def test_captured_constants_are_no_inputs(tmp_path: Path) -> None:
    normalize = keras.layers.Normalization()
    normalize.adapt(normal(50, 4) * 3 + 1)
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, keras.layers.Dense(3)(normalize(inputs)))
    with quiet():
        model.export(str(tmp_path / "m"), verbose=False)
    exported, _ = round_trip(source_of(tmp_path / "m"), tmp_path / "out", [{"x": normal(n, 4)} for n in (1, 3)])
    assert [spec.name for spec in exported.inputs] == ["x"]


def test_control_flow(tmp_path: Path) -> None:
    scale = tf.Variable(1.5)

    def net(x: tf.Tensor, steps: tf.Tensor) -> dict[str, tf.Tensor]:
        _, y = tf.while_loop(
            lambda i, y: i < steps[0], lambda i, y: (i + 1, tf.tanh(y @ weights(8, 8)) * scale), (0, x)
        )
        return {"y": tf.cond(tf.reduce_sum(x) > 0, lambda: y * 2 + scale, lambda: -y)}

    folder = save_function(net, tmp_path / "m", spec(None, 8), spec(1, name="steps", dtype=tf.int32), scale=scale)
    feeds = [
        {"x": sign * abs(normal(n, 8)), "steps": np.array([n], "i4")} for n, sign in ((2, 1), (3, -1), (0, 1)) if n
    ]
    _, model = round_trip(source_of(folder), tmp_path / "out", feeds)
    assert {"Loop", "If"} <= {node.op_type for node in model.graph}


def test_control_flow_of_tensorflow_1(tmp_path: Path) -> None:
    def build() -> None:
        x = tf.compat.v1.placeholder(F32, [None, 8], name="x")
        _, y = tf.compat.v1.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tf.tanh(y) * 1.5), (0, x))
        tf.identity(y, name="y")

    path = save_graph(build, tmp_path / "m.pb")
    round_trip(source_of(path), tmp_path / "out", X)


def test_other_types(tmp_path: Path) -> None:
    folder = save_function(
        lambda ids, flags: {
            "row": tf.gather(weights(16, 4), ids),
            "any": tf.reduce_any(flags, 1),
            "best": tf.argmax(tf.gather(weights(16, 4), ids)[:, 0], axis=-1),
        },
        tmp_path / "m",
        spec(None, 3, name="ids", dtype=tf.int64),
        spec(None, 3, name="flags", dtype=tf.bool),
    )
    rng = np.random.default_rng(0)
    feeds = [{"ids": rng.integers(0, 16, (n, 3)), "flags": rng.random((n, 3)) < 0.3} for n in (5, 9)]
    round_trip(source_of(folder), tmp_path / "out", feeds)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    def net(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.cast(tf.tanh(tf.cast(x, tf.float16) @ weights(8, 6).astype("f2")), F32)}

    folder = save_function(net, tmp_path / "m", spec(None, 8))
    exported, model = round_trip(source_of(folder), tmp_path / "out", X, least=50)
    assert exported.narrow == "float16"
    assert "widened from float16" in exported.notes[-1]
    assert {value.const_value.dtype for value in model.graph.initializers.values()} <= {  # type: ignore[union-attr]
        ir.DataType.FLOAT,
        ir.DataType.INT64,
    }


def test_weights_beyond_the_limit_of_protobuf_lie_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lower, "_PROTOBUF_LIMIT", 1000)
    kernel = tf.Variable(weights(8, 512))
    folder = save_function(lambda x: {"y": x @ kernel}, tmp_path / "m", spec(None, 8), kernel=kernel)
    round_trip(source_of(folder), tmp_path / "out", X)
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size >= 8 * 512 * 4


# ---- what cannot be converted


def test_all_nodes_without_a_form_in_onnx_are_listed(tmp_path: Path) -> None:
    def net(x: tf.Tensor) -> dict[str, tf.Tensor]:
        h = tf.math.igamma(abs(x) + 1, x * x, name="first")
        return {"y": tf.math.zeta(h + 2, abs(x) + 1, name="second")}

    folder = save_function(net, tmp_path / "m", spec(None, 8))
    with pytest.raises(Unsupported, match="2 nodes have no form in ONNX") as caught:
        converted(source_of(folder), tmp_path / "out")
    assert "first (Igamma)" in str(caught.value)
    assert "second (Zeta)" in str(caught.value)


@pytest.mark.parametrize("where", ["in the function", "in a branch"])
def test_python_functions_are_listed(where: str, tmp_path: Path) -> None:
    def net(x: tf.Tensor) -> dict[str, tf.Tensor]:
        def called() -> tf.Tensor:
            return tf.ensure_shape(tf.numpy_function(lambda a: a * 2, [x], F32, name="mine"), [None, 8])

        if where == "in a branch":
            return {"y": tf.cond(tf.reduce_sum(x) > 0, called, lambda: x)}
        return {"y": called() + 1}

    folder = save_function(net, tmp_path / "m", spec(None, 8))
    with pytest.raises(Unsupported, match=r"mine.* \(PyFunc\): calls Python code, which is not in the file"):
        converted(source_of(folder, trust=True), tmp_path / "out")


def test_a_state_that_changes_is_refused(tmp_path: Path) -> None:
    calls = tf.Variable(0.0)
    folder = save_function(
        lambda x: {"y": x + calls.assign_add(1.0, name="counts")}, tmp_path / "m", spec(None, 8), calls=calls
    )
    with pytest.raises(Unsupported, match=r"nothing outlives a call:\n  .*counts.* \(AssignAddVariableOp\)"):
        converted(source_of(folder), tmp_path / "out")


def test_text_and_tables_are_refused(tmp_path: Path) -> None:
    folder = save_function(lambda x: {"y": tf.strings.length(x)}, tmp_path / "m", spec(None, dtype=tf.string))
    with pytest.raises(Unsupported, match="'x' is of type string, and only tensors of numbers") as caught:
        converted(source_of(folder), tmp_path / "out")
    assert "outside the model" in str(caught.value.hint)

    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant([1, 2], tf.int64), tf.constant([7, 9], tf.int64)), 0
    )
    folder = save_function(
        lambda x: {"y": table.lookup(x, name="looked_up")}, tmp_path / "t", spec(None, dtype=tf.int64), table=table
    )
    with pytest.raises(Unsupported, match="looks up a table"):
        converted(source_of(folder), tmp_path / "out")


@pytest.mark.parametrize("form", ["saved model", "TensorFlow 1", "frozen", "checkpoint"])
def test_files_are_not_touched_without_trust(form: str, tmp_path: Path) -> None:
    v1, target = tf.compat.v1, tmp_path / "written"

    def net(x: tf.Tensor) -> tf.Tensor:
        with tf.control_dependencies([tf.io.write_file(str(target), "gotcha", name="writes")]):
            return tf.identity(tf.tanh(x), name="y")

    def build() -> tuple[tf.Tensor, tf.Tensor]:
        x = v1.placeholder(F32, [None, 8], name="x")
        y = net(x * v1.get_variable("w", initializer=2.0) if form != "frozen" else x)
        return x, y

    path = tmp_path / "m"
    if form == "saved model":
        save_function(lambda x: {"y": net(x)}, path, spec(None, 8))
    elif form == "TensorFlow 1":
        with quiet(), tf.Graph().as_default(), v1.Session() as session:
            x, y = build()
            session.run(v1.global_variables_initializer())
            v1.saved_model.simple_save(session, str(path), {"x": x}, {"y": y})
    elif form == "frozen":
        path = save_graph(build, tmp_path / "m.pb")
    else:
        save_checkpoint(build, path / "net")
    with pytest.raises(RetargetError, match=r"1 node would read or write files:\n  writes \(WriteFile\)") as caught:
        converted(source_of(path), tmp_path / "out")
    assert "--trust" in str(caught.value.hint)
    assert not target.exists()
    round_trip(source_of(path, trust=True), tmp_path / "out", X)
    assert target.read_text() == "gotcha"


def test_checkpoints_are_not_written_by_what_is_run(tmp_path: Path) -> None:
    def build() -> None:
        x = tf.compat.v1.placeholder(F32, [None, 8], name="x")
        saved = tf.raw_ops.SaveV2(
            prefix=str(tmp_path / "gotcha"), tensor_names=["w"], shape_and_slices=[""], tensors=[tf.constant(1.0)]
        )
        with tf.control_dependencies([saved]):
            tf.identity(tf.tanh(x), name="y")

    path = save_graph(build, tmp_path / "m.pb")
    with pytest.raises(RetargetError, match=r"SaveV2 \(SaveV2\)"):
        converted(source_of(path), tmp_path / "out")
    assert not list(tmp_path.glob("gotcha*"))


def test_a_graph_that_is_not_frozen(tmp_path: Path) -> None:
    path = save_graph(trained, tmp_path / "m.pb")
    with pytest.raises(RetargetError, match=r"cannot freeze its variables: .*kernel") as caught:
        converted(source_of(path), tmp_path / "out")
    assert "needs its checkpoint" in str(caught.value.hint)


def test_operators_that_nobody_here_knows(tmp_path: Path) -> None:
    path = save_graph(frozen, tmp_path / "m.pb")
    path.write_bytes(path.read_bytes().replace(b"\x12\x04Tanh", b"\x12\x04Tamh"))
    with pytest.raises(RetargetError, match=r"not a readable frozen graph .*Tamh") as caught:
        converted(source_of(path), tmp_path / "out")
    assert "toolchains" in str(caught.value.hint)


def test_a_factory_and_a_signature_where_there_is_none(two_heads: Path, tmp_path: Path) -> None:
    path = save_graph(frozen, tmp_path / "m.pb")
    with pytest.raises(RetargetError, match="a frozen graph has no signatures"):
        converted(source_of(path, signature="x"), tmp_path)
