"""Versions of operators against those that TensorFlow's converter gives to the same operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated

from retarget.targets.tflite import schema, versions
from retarget.targets.tflite.program import Operator, Options, Quantization, Tensor

# TensorFlow and Keras warn of each other.
pytestmark = pytest.mark.filterwarnings("ignore")

ROW = (1, 4, 6, 16)


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def function(tf: Any) -> Any:
    """One of everything that has versions and that the converter leaves as it is."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> Any:
        return tf.constant(rng.standard_normal(shape).astype("f4"))

    matrix, bias = weights(16, 80), weights(80)
    kernel, grouped, depth = weights(3, 3, 16, 16), weights(1, 1, 8, 16), weights(9, 9, 16, 1)
    up, many = weights(4, 4, 16, 16), weights(1, 2, 1, 2, 16)

    @tf.function(input_signature=[tf.TensorSpec(ROW, tf.float32, "x")])  # type: ignore[untyped-decorator]
    def call(x: Any) -> list[Any]:
        found = [
            tf.nn.conv2d(x, kernel, 1, "SAME"),
            tf.nn.conv2d(x, grouped, 1, "SAME"),
            tf.nn.depthwise_conv2d(x, depth, [1, 1, 1, 1], "SAME"),
            tf.nn.depthwise_conv2d(x, depth, [1, 1, 1, 1], "SAME", dilations=[2, 2]),
            tf.nn.conv2d_transpose(x, up, [1, 8, 12, 16], 2, "SAME"),
            tf.nn.bias_add(tf.nn.conv2d_transpose(x, up, [1, 8, 12, 16], 2, "SAME"), bias[:16]),
            tf.nn.relu(tf.nn.bias_add(tf.matmul(tf.reshape(x, [24, 16]), matrix), bias)),
            tf.matmul(tf.reshape(x, [24, 16]), matrix),
            tf.matmul(x, tf.transpose(x, [0, 1, 3, 2])),
            tf.nn.max_pool2d(x, 2, 2, "VALID"),
            tf.nn.avg_pool2d(x, 2, 2, "VALID"),
            tf.gather(x, [1, 0], axis=1),
            tf.gather_nd(x, [[0, 1, 2]]),
            x + x * x,
            x - tf.nn.relu(x),
            x / 3.0,
            tf.reshape(x, [1, 2, 2, 6, 16]) - many[:, :, :, :1],
            tf.maximum(tf.reshape(x, [1, 2, 2, 6, 16]), many[:, :, :, :1]),
            tf.transpose(tf.reshape(x, [1, 2, 2, 6, 16]), [0, 4, 1, 2, 3]),
            tf.transpose(tf.reshape(x, [1, 2, 2, 2, 3, 16]), [0, 5, 4, 1, 2, 3]),
            tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]),
            tf.pad(tf.reshape(x, [1, 2, 2, 6, 16]), [[0, 0], [1, 1], [1, 1], [0, 0], [0, 0]]),
            x[:, 1:3, ::2],
            tf.slice(x, [0, 1, 0, 0], [1, 2, 6, 16]),
            tf.image.resize(x, [8, 12]),
            tf.compat.v1.image.resize_nearest_neighbor(x, [8, 12], half_pixel_centers=True),
            tf.concat([x, tf.nn.relu6(x)], 3),
            *tf.split(x, 2, 3),
            tf.nn.softmax(x),
            tf.nn.log_softmax(x),
            tf.reduce_mean(x, [1, 2]),
            tf.reduce_max(x, 3),
            tf.reduce_sum(x, 3),
            tf.tanh(x),
            tf.sigmoid(x),
            tf.nn.leaky_relu(x),
            tf.exp(x),
            tf.abs(x),
            tf.argmax(x, 3, output_type=tf.int32),
            tf.math.top_k(x, 2)[0],
            tf.nn.space_to_depth(x, 2),
            tf.broadcast_to(x[:, :, :1], [2, 4, 6, 16]),
            tf.tile(x, [2, 1, 1, 1]),
            tf.where(x > 0.5, x, tf.zeros_like(x)),
            tf.cast(x, tf.int32) + 1,
            tf.reverse(x, [2]),
            tf.math.squared_difference(x, many[0, :1, :, :1]),
            tf.nn.gelu(x),
        ]
        return [tf.identity(each, name=f"out{index}") for index, each in enumerate(found)]

    return call


def _converted(tf: Any, function: Any, precision: str) -> Any:
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    if precision != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision in ("int8", "int16x8"):
        rng = np.random.default_rng(0)
        converter.representative_dataset = lambda: ([rng.uniform(0, 1, ROW).astype("f4")] for _ in range(2))
    if precision == "int16x8":
        wide = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [wide, tf.lite.OpsSet.TFLITE_BUILTINS]
    return generated.ModelT.InitFromPackedBuf(converter.convert())


def _tensor(table: Any) -> Tensor:
    dtype = np.dtype(schema.names_of_types()[table.type])
    made = Tensor(tuple(int(size) for size in (() if table.shape is None else table.shape)), dtype)
    held = table.quantization
    if held is not None and held.scale is not None:
        made.quantization = Quantization(tuple(held.scale), tuple(held.zeroPoint), held.quantizedDimension)
    return made


def _operators(model: Any) -> list[tuple[Operator, int]]:
    """The converter's operators as ours, each with the version that the converter gave it."""
    (graph,) = model.subgraphs
    tensors: list[Tensor | None] = [*map(_tensor, graph.tensors), None]
    found = []
    for table in graph.operators:
        code = model.operatorCodes[table.opcodeIndex]
        options = table.builtinOptions
        made = Operator(
            schema.names_of_operators()[code.builtinCode],
            tuple(tensors[index] for index in table.inputs),
            tuple(each for index in table.outputs if (each := tensors[index]) is not None),
            Options(type(options).__name__.removesuffix("T"), vars(options)) if options is not None else None,
        )
        found.append((made, code.version))
    return found


@pytest.mark.parametrize("precision", ["float", "hybrid", "int8"])
def test_versions_are_those_of_the_converter(tf: Any, function: Any, precision: str) -> None:
    model = _converted(tf, function, precision)
    ours: dict[str, int] = {}
    theirs: dict[str, int] = {}
    # The converter gives all operators of a kind the highest version among them.
    for operator, version in _operators(model):
        theirs[operator.code] = version
        ours[operator.code] = max(versions.version(operator), ours.get(operator.code, 1))
    assert ours == theirs
    assert len(ours) > 35
    (metadata,) = [each for each in model.metadata if each.name == b"min_runtime_version"]
    released = bytes(model.buffers[metadata.buffer].data).rstrip(b"\0").decode()
    assert versions.runtime(dict.fromkeys(theirs.items())) == released


def test_release_of_what_the_table_does_not_know_is_left_out() -> None:
    assert versions.runtime({("RELU", 1): None, ("CUSTOM", 1): None, ("BROADCAST_TO", 2): None}) == "2.5.0"
    assert versions.runtime({("GELU", 9): None}) == ""
