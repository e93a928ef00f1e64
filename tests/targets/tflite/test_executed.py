"""What is read back of written files. Oracles: products counted by hand, and what LiteRT makes of int8 weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from retarget.targets.tflite import write as module
from retarget.targets.tflite.executed import executed, transposes
from retarget.targets.tflite.program import Constant, Operator, Options, Program, Quantization, Tensor
from retarget.targets.tflite.write import write

if TYPE_CHECKING:
    from retarget.protocols import Array

F4, I4, I1, I2 = (np.dtype(name) for name in ("float32", "int32", "int8", "int16"))
KERNELS = [OpResolverType.BUILTIN, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, OpResolverType.BUILTIN_REF]


def weights(*shape: int, dtype: np.dtype[np.generic] = F4, scale: float | None = None) -> Tensor:
    array = np.random.default_rng(0).integers(-100, 100, shape).astype(dtype)
    quantization = None if scale is None else Quantization.of(scale, 0)
    return Tensor(shape, dtype, constant=Constant.of(array), quantization=quantization)


def values(*shape: int, dtype: np.dtype[np.generic] = F4, scale: float | None = None) -> Tensor:
    return Tensor(shape, dtype, quantization=None if scale is None else Quantization.of(scale, 0))


def written(tmp_path: Path, *operators: Operator) -> Path:
    """The operators as a file, of which all that nothing makes is an input."""
    made = {tensor for operator in operators for tensor in operator.outputs}
    read = [tensor for operator in operators for tensor in operator.inputs if tensor is not None]
    given = [tensor for tensor in read if tensor.constant is None and not tensor.is_variable and tensor not in made]
    path = tmp_path / "m.tflite"
    inputs = {f"x{index}": tensor for index, tensor in enumerate(dict.fromkeys(given))}
    write(Program(list(operators), inputs, {"y": operators[-1].outputs[0]}), path, description="")
    return path


STATE = Tensor((2, 4), F4, is_variable=True)
LSTM = (
    *(weights(4, 3) for _ in range(4)),
    *(weights(4, 4) for _ in range(4)),
    *(None for _ in range(3)),
    *(weights(4) for _ in range(4)),
    *(None for _ in range(2)),
)

COUNTED = {
    "convolution": (
        Operator("CONV_2D", (values(2, 8, 8, 4), weights(6, 3, 3, 4), None), (values(2, 4, 4, 6),)),
        2 * 4 * 4 * 6 * 3 * 3 * 4,
    ),
    "groups": (
        Operator("CONV_2D", (values(2, 8, 8, 4), weights(6, 3, 3, 2), None), (values(2, 4, 4, 6),)),
        2 * 4 * 4 * 6 * 3 * 3 * 2,
    ),
    "depthwise": (
        Operator("DEPTHWISE_CONV_2D", (values(2, 8, 8, 4), weights(1, 3, 3, 8), None), (values(2, 4, 4, 8),)),
        2 * 4 * 4 * 8 * 3 * 3,
    ),
    "transposed": (
        Operator(
            "TRANSPOSE_CONV", (weights(4, dtype=I4), weights(6, 2, 2, 4), values(2, 3, 3, 4)), (values(2, 6, 6, 6),)
        ),
        2 * 3 * 3 * 4 * 6 * 2 * 2,
    ),
    "volume": (
        Operator("CONV_3D", (values(2, 4, 4, 4, 3), weights(2, 2, 2, 3, 5), None), (values(2, 2, 2, 2, 5),)),
        2 * 2**3 * 5 * 2**3 * 3,
    ),
    "matrix": (Operator("FULLY_CONNECTED", (values(2, 5, 8), weights(6, 8), None), (values(2, 5, 6),)), 2 * 5 * 6 * 8),
    "product": (Operator("BATCH_MATMUL", (values(2, 5, 8), values(2, 8, 6)), (values(2, 5, 6),)), 2 * 5 * 8 * 6),
    "turned product": (
        Operator(
            "BATCH_MATMUL",
            (values(2, 8, 5), values(2, 8, 6)),
            (values(2, 5, 6),),
            Options("BatchMatMulOptions", {"adjX": True}),
        ),
        2 * 5 * 8 * 6,
    ),
    "recurrence": (
        Operator("UNIDIRECTIONAL_SEQUENCE_LSTM", (values(7, 2, 3), *LSTM, STATE, STATE), (values(7, 2, 4),)),
        7 * 2 * 4 * (4 * 3 + 4 * 4),
    ),
    "both ways": (
        Operator(
            "BIDIRECTIONAL_SEQUENCE_LSTM",
            (values(7, 2, 3), *LSTM, *LSTM, STATE, STATE, STATE, STATE),
            (values(7, 2, 4), values(7, 2, 4)),
        ),
        2 * 7 * 2 * 4 * (4 * 3 + 4 * 4),
    ),
    "simple recurrence": (
        Operator(
            "UNIDIRECTIONAL_SEQUENCE_RNN",
            (values(7, 2, 3), weights(4, 3), weights(4, 4), weights(4), STATE),
            (values(7, 2, 4),),
        ),
        7 * 2 * (4 * 3 + 4 * 4),
    ),
    "nothing to multiply": (Operator("RELU", (values(2, 3),), (values(2, 3),)), 0),
}


@pytest.mark.parametrize("name", COUNTED)
def test_products_are_counted(name: str, tmp_path: Path) -> None:
    operator, count = COUNTED[name]
    found = executed(written(tmp_path, operator), "fp32")
    assert found.work.get("float32", 0) == count
    assert sum(found.work.values()) == count
    assert found.low_precision_share == (0 if count else None)
    assert (found.activations, found.io) == ("float32", "float32")


def test_types_of_a_file_of_integers(tmp_path: Path) -> None:
    x, codes, y, back = values(1, 8), values(1, 8, dtype=I1, scale=0.1), values(1, 4, dtype=I1, scale=9.0), values(1, 4)
    bias = weights(4, dtype=I4, scale=0.05)
    matrix = weights(4, 8, dtype=I1, scale=0.5)
    found = executed(
        written(
            tmp_path,
            Operator("QUANTIZE", (x,), (codes,)),
            Operator("FULLY_CONNECTED", (codes, matrix, bias), (y,)),
            Operator("DEQUANTIZE", (y,), (back,)),
        ),
        "int8",
    )
    assert (found.weights, found.activations, found.io) == ("int8", "int8", "float32")
    assert found.work == {"int8": 32}
    assert found.low_precision_share == 1


def test_integers_of_sixteen_bits_are_low_for_their_own_precision(tmp_path: Path) -> None:
    x, y = values(1, 8, dtype=I2, scale=0.1), values(1, 4, dtype=I2, scale=9.0)
    path = written(tmp_path, Operator("FULLY_CONNECTED", (x, weights(4, 8, dtype=I1, scale=0.5), None), (y,)))
    assert executed(path, "int16x8").work == {"int16": 32}
    assert executed(path, "int16x8").low_precision_share == 1
    assert executed(path, "int16x8").io == "int16"
    assert executed(path, "int8").low_precision_share == 0


def test_halves_are_widened_before_they_are_multiplied(tmp_path: Path) -> None:
    half, wide = weights(4, 8, dtype=np.dtype(np.float16)), values(4, 8)
    found = executed(
        written(
            tmp_path,
            Operator("DEQUANTIZE", (half,), (wide,)),
            Operator("FULLY_CONNECTED", (values(1, 8), wide, None), (values(1, 4),)),
        ),
        "fp16",
    )
    assert (found.weights, found.activations, found.work) == ("float16", "float32", {"float32": 32})
    assert found.low_precision_share == 0


def test_activations_without_products_are_those_of_most_values(tmp_path: Path) -> None:
    found = executed(written(tmp_path, Operator("RELU", (values(2, 3),), (values(2, 3),))), "fp32")
    assert (found.weights, found.activations) == ("none", "float32")


def hybrid(tmp_path: Path) -> tuple[Path, Array]:
    matrix = weights(16, 32, dtype=I1, scale=0.01)
    assert matrix.constant is not None
    operator = Operator(
        "FULLY_CONNECTED", (values(1, 32), matrix, None), (values(1, 16),), Options("FullyConnectedOptions")
    )
    return written(tmp_path, operator), matrix.constant.array().astype("f4") * np.float32(0.01)


@pytest.mark.parametrize("kernels", KERNELS)
def test_floats_are_rounded_where_they_meet_integer_weights(kernels: object, tmp_path: Path) -> None:
    """That is why it counts as int8 arithmetic: eight bits are left of the activations."""
    path, matrix = hybrid(tmp_path)
    x = np.random.default_rng(1).standard_normal((1, 32)).astype("f4")
    interpreter = Interpreter(str(path), num_threads=1, experimental_op_resolver_type=kernels)
    (found,) = interpreter.get_signature_runner()(x0=x).values()
    error = np.abs(found - x @ matrix.T).max()
    step = np.abs(x).max() / 127
    assert step * 1e-2 < error < step * np.abs(matrix).sum(1).max()


def test_integer_weights_of_floats_count_as_integer_arithmetic(tmp_path: Path) -> None:
    path, _ = hybrid(tmp_path)
    found = executed(path, "int8")
    assert (found.weights, found.activations, found.work) == ("int8", "float32", {"int8": 512})
    assert found.low_precision_share == 1


def test_constants_outside_of_the_flatbuffer_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 64)
    path, _ = hybrid(tmp_path)
    assert executed(path, "int8").weights == "int8"


def test_transposes_are_counted(tmp_path: Path) -> None:
    x, y, z = values(2, 3), values(3, 2), values(3, 2)
    perm = Tensor((2,), I4, constant=Constant.of([1, 0], "int32"))
    path = written(tmp_path, Operator("TRANSPOSE", (x, perm), (y,)), Operator("RELU", (y,), (z,)))
    assert transposes(path) == 1
