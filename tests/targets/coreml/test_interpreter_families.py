"""Operations beyond elements and shapes: against PyTorch, coremltools' own inference of values, or what devices give.

The last are numbers that coremltools' tests expect of Core ML itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import packaged
import pytest
import torch
from called import RANDOM, assert_close, floats, inferred, result, results, tensor
from torch.nn import functional as F

from retarget.targets.coreml.interpreter.call import Dictionary, NotInterpreted
from retarget.targets.coreml.interpreter.evaluate import Interpreter
from retarget.targets.coreml.interpreter.ops import convolution
from retarget.targets.coreml.interpreter.program import read
from retarget.targets.coreml.library import Function, Var, mb, types

if TYPE_CHECKING:
    from retarget.protocols import Array


# ---- convolutions

CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "line": ((2, 4, 13), (6, 4, 3), {"strides": [2], "dilations": [2], "pad": [3, 3]}),
    "image": ((2, 4, 9, 10), (6, 4, 3, 2), {"strides": [2, 3], "pad": [1, 1, 2, 2]}),
    "dilations": ((1, 4, 12, 11), (6, 4, 3, 3), {"dilations": [2, 3], "strides": [1, 2]}),
    "groups": ((2, 6, 7, 8), (9, 2, 3, 3), {"groups": 3, "pad": [1, 1, 1, 1]}),
    "each channel": ((2, 6, 9, 8), (12, 1, 3, 5), {"groups": 6, "strides": [1, 2], "pad": [0, 0, 2, 2]}),
    "one tap": ((2, 6, 7, 8), (4, 3, 1, 1), {"groups": 2, "strides": [2, 3]}),
    "one tap with pads": ((1, 3, 4, 5), (2, 3, 1, 1), {"pad": [1, 1, 0, 0]}),
    "volume": ((1, 2, 5, 6, 7), (3, 2, 2, 3, 2), {"strides": [1, 2, 1], "pad": [1, 1, 0, 0, 1, 1]}),
}
"""Shapes of what is convolved and of the weights, and parameters. Pads are symmetric, as PyTorch has them."""


@pytest.mark.parametrize("largest", [convolution.LARGEST, 1000], ids=["at once", "in pieces"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv(name: str, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "LARGEST", largest)
    shape, weights, options = CONVOLUTIONS[name]
    x, weight, bias = floats(*shape), floats(*weights), floats(weights[0])
    rank = len(shape) - 2
    torch_conv = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    right = torch_conv(
        tensor(x),
        tensor(weight),
        tensor(bias),
        options.get("strides", 1),
        options.get("pad", [0] * 2 * rank)[::2],
        options.get("dilations", 1),
        options.get("groups", 1),
    )
    kind = "custom" if "pad" in options else "valid"
    assert_close(result("conv", x=x, weight=weight, bias=bias, pad_type=kind, **options), right, 1e-5)


@pytest.mark.parametrize("kind", ["same", "same_lower"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("taps", [2, 3, 4])
def test_an_odd_pad_is_behind_or_in_front(kind: str, stride: int, taps: int) -> None:
    x, weight = floats(1, 3, 8), floats(2, 3, taps)
    total = max((-(-8 // stride) - 1) * stride + taps - 8, 0)
    pads = (total // 2, total - total // 2)
    right = F.conv1d(F.pad(tensor(x), pads if kind == "same" else pads[::-1]), tensor(weight), stride=stride)
    assert_close(result("conv", x=x, weight=weight, pad_type=kind, strides=[stride]), right, 1e-5)
    assert right.shape[2] == -(-8 // stride)


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"strides": [2, 3], "dilations": [2, 1], "pad": [1, 1, 2, 2]}])
def test_conv_transpose(options: dict[str, Any]) -> None:
    x, weight, bias = floats(2, 4, 5, 6), floats(4, 3, 3, 4), floats(3 * options.get("groups", 1))
    right = F.conv_transpose2d(
        tensor(x),
        tensor(weight),
        tensor(bias),
        options.get("strides", 1),
        options.get("pad", [0, 0, 0, 0])[::2],
        groups=options.get("groups", 1),
        dilation=options.get("dilations", 1),
    )
    kind = "custom" if "pad" in options else "valid"
    assert_close(result("conv_transpose", x=x, weight=weight, bias=bias, pad_type=kind, **options), right, 1e-5)


@pytest.mark.parametrize("size", [11, 12])
@pytest.mark.parametrize("taps", [1, 2, 4, 5])
def test_conv_transpose_of_the_same_size(taps: int, size: int) -> None:
    """The gradient of a convolution that pads to the same size, as in TensorFlow: that leaves the size open."""
    y, weight = floats(1, 2, 6), floats(2, 3, taps)
    x = torch.zeros(1, 3, size, requires_grad=True)
    total = max(5 * 2 + taps - size, 0)
    F.conv1d(F.pad(x, (total // 2, total - total // 2)), tensor(weight), stride=2).backward(tensor(y))  # type: ignore[no-untyped-call]
    assert x.grad is not None
    options = {"pad_type": "same", "strides": [2], "output_shape": [1, 3, size]}
    assert_close(result("conv_transpose", x=y, weight=weight, **options), x.grad, 1e-5)
    if size == 12:
        del options["output_shape"]
        assert_close(result("conv_transpose", x=y, weight=weight, **options), x.grad, 1e-5)


def test_conv_transpose_behind_all_windows() -> None:
    x, weight = floats(1, 2, 4), floats(2, 3, 2)
    options = {"pad_type": "valid", "strides": [3], "output_shape": [1, 3, 13]}
    found = result("conv_transpose", x=x, weight=weight, bias=np.ones(3, np.float32), **options)
    right = F.conv_transpose1d(tensor(x), tensor(weight), tensor(np.ones(3, np.float32)), stride=3)
    assert_close(found[..., :11], right, 1e-5)
    assert (found[..., 11:] == 1).all()


# ---- pooling


def test_pooling_on_devices() -> None:
    x = np.array([[[1, 2, 3, 4, 5, 6, 7]]], np.float32)
    same = {"x": x, "kernel_sizes": [3], "strides": [3], "pad_type": "same"}
    assert_close(result("max_pool", **same), [[[2, 5, 7]]])
    assert_close(result("avg_pool", **same, exclude_padding_from_average=True), [[[1.5, 4, 6.5]]])
    assert_close(result("l2_pool", **same), [[[2.236068, 7.071068, 9.219544]]])
    lower = {"kernel_sizes": [2, 2], "pad_type": "same_lower"}
    square = np.arange(1, 5, dtype=np.float32).reshape(1, 1, 2, 2)
    assert_close(result("avg_pool", x=square, **lower), [[[[0.25, 0.75], [1, 2.5]]]])
    assert_close(result("max_pool", x=square, **lower), square)


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("size", range(5, 10))
def test_pooling_rounded_up(size: int, pad: int) -> None:
    x = floats(1, 2, size, size + 1) - 5
    given = {
        "x": x,
        "kernel_sizes": [3, 3],
        "strides": [2, 3],
        "pad_type": "custom",
        "pad": [pad] * 4,
        "ceil_mode": True,
    }
    assert_close(result("max_pool", **given), F.max_pool2d(tensor(x), 3, (2, 3), pad, ceil_mode=True))
    for exclude in (False, True):
        right = F.avg_pool2d(tensor(x), 3, (2, 3), pad, ceil_mode=True, count_include_pad=not exclude)
        assert_close(result("avg_pool", **given, exclude_padding_from_average=exclude), right)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pad_type": "same", "ceil_mode": True}, "defines no size"),
        ({"pad_type": "custom", "pad": [0, 1], "ceil_mode": True}, "defines no size"),
        ({"pad_type": "valid", "kernel_sizes": [1], "strides": [5], "ceil_mode": True}, "behind all of 5 elements"),
    ],
)
def test_sizes_that_are_not_defined(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotInterpreted, match=reason):
        results("max_pool", **{"x": floats(1, 1, 5), "kernel_sizes": [2], "strides": [2], **options})


# ---- normalization and products


def test_normalizations() -> None:
    x, gamma, beta = floats(2, 6, 5, 4), floats(6), floats(6)
    mean, variance = floats(6), np.abs(floats(6)) + 0.1
    given = {"x": x, "gamma": gamma, "beta": beta, "epsilon": np.float32(1e-3)}
    right = F.batch_norm(tensor(x), tensor(mean), tensor(variance), tensor(gamma), tensor(beta), eps=1e-3)
    assert_close(result("batch_norm", mean=mean, variance=variance, **given), right, 1e-5)
    right = F.instance_norm(tensor(x), weight=tensor(gamma), bias=tensor(beta), eps=1e-3)
    assert_close(result("instance_norm", **given), right, 1e-5)
    for size in (2, 3, 5):
        right = torch.nn.LocalResponseNorm(size, alpha=0.1, beta=0.6, k=1.5)(tensor(x))
        assert_close(result("local_response_norm", x=x, size=size, alpha=0.1, beta=0.6, k=1.5), right)
    assert_close(result("l2_norm", x=x), inferred("l2_norm", x=x))
    for axes, shape in (([-1], (4,)), ([1, -1], (6, 4)), ([0, 1, 2, 3], x.shape)):
        scaled = {"x": x, "axes": axes, "gamma": floats(*shape), "beta": floats(*shape)}
        assert_close(result("layer_norm", **scaled), inferred("layer_norm", **scaled), 1e-5)
    assert_close(result("layer_norm", x=x), F.layer_norm(tensor(x), x.shape), 1e-5)


def test_products() -> None:
    x, weight, bias = floats(2, 3, 5), floats(4, 5), floats(4)
    assert_close(result("linear", x=x, weight=weight, bias=bias), inferred("linear", x=x, weight=weight, bias=bias))
    whole = {"x": np.array([[1, 2]], np.int32), "weight": np.array([[3, 4], [5, 6]], np.int32)}
    assert result("linear", **whole).tolist() == [[11, 17]]
    for left, right, options in (
        ((2, 1, 3, 5), (4, 5, 2), {}),
        ((3, 5), (3, 2), {"transpose_x": True}),
        ((2, 3, 5), (4, 5), {"transpose_y": True}),
        ((5,), (2, 5, 3), {}),
    ):
        given = {"x": floats(*left), "y": floats(*right), **options}
        assert_close(result("matmul", **given), inferred("matmul", **given))
    for equation, shapes in (
        ("bchw,bwhu->bchu", ((2, 3, 4, 5), (2, 5, 4, 6))),
        ("nabc,ncbd->nabd", ((1, 3, 4, 5), (2, 5, 1, 6))),
        ("chw,whu->chu", ((3, 4, 5), (5, 4, 6))),
    ):
        values = tuple(floats(*shape) for shape in shapes)
        right = inferred("einsum", values=values, equation=equation)
        assert_close(result("einsum", values=values, equation=equation), right)
    with pytest.raises(NotInterpreted, match="is not of the form"):
        results("einsum", values=(x, x), equation="abc,abc->ab")


@pytest.mark.parametrize("mask", [None, np.tri(4, 6, 2, dtype=np.bool_), floats(3, 1, 4, 6)])
def test_attention(mask: Array | None) -> None:
    given = {"query": floats(3, 2, 4, 5), "key": floats(3, 2, 6, 5), "value": floats(3, 2, 6, 7)}
    query, key, value = (tensor(each) for each in given.values())
    right = F.scaled_dot_product_attention(query, key, value, None if mask is None else tensor(mask))
    masked = given if mask is None else {**given, "attn_mask": mask}
    assert_close(result("scaled_dot_product_attention", 18, **masked), right)
    assert_close(inferred("scaled_dot_product_attention", 18, **masked), right)


def test_attention_to_large_scores() -> None:
    given = {"query": floats(1, 2, 4, 5) * 1000, "key": floats(1, 2, 6, 5), "value": floats(1, 2, 6, 7)}
    query, key, value = (tensor(each) for each in given.values())
    right = F.scaled_dot_product_attention(query, key, value)
    assert_close(result("scaled_dot_product_attention", 18, **given), right, 1e-5)


# ---- recurrent layers


def rows(weight: Array, order: str) -> Array:
    """PyTorch's gates (input, forget, cell, output) in another order."""
    parts = dict(zip("ifgo", np.split(weight, 4), strict=True))
    return np.concatenate([parts[each] for each in order])


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("sequence", [False, True])
def test_lstm(direction: str, sequence: bool) -> None:
    both = direction == "bidirectional"
    module = torch.nn.LSTM(3, 4, bidirectional=both)
    x, h, c = floats(5, 2, 3), floats(1 + both, 2, 4), floats(1 + both, 2, 4)
    with torch.no_grad():
        ordered = tensor(x).flip(0) if direction == "reverse" else tensor(x)
        y, (last_h, last_c) = module(ordered, (tensor(h), tensor(c)))
    weights: dict[str, Array] = {}
    for suffix, ending in (("", ""), ("_reverse", "_back"))[: 1 + both]:
        parts = {name: getattr(module, f"{name}_l0{suffix}").detach().numpy() for name in ("weight_ih", "weight_hh")}
        weights |= {name + ending: rows(part, "ifog") for name, part in parts.items()}
        biases = (getattr(module, f"bias_{name}_l0{suffix}").detach().numpy() for name in ("ih", "hh"))
        weights["bias" + ending] = rows(sum(biases), "ifog")
    given = {"initial_h": np.concatenate([*h], 1), "initial_c": np.concatenate([*c], 1), "direction": direction}
    found = results("lstm", x=x, **given, **weights, output_sequence=sequence)
    if not sequence:
        y = torch.cat([*last_h], 1)[None]
    for each, right in zip(found, (y, torch.cat([*last_h], 1), torch.cat([*last_c], 1)), strict=True):
        assert_close(each, right, 1e-5)


@pytest.mark.parametrize("clip", [50.0, 0.2, 0.01])
@pytest.mark.parametrize("activation", ["relu", "scaled_tanh", "hard_sigmoid", "linear"])
def test_lstm_with_peepholes(activation: str, clip: float) -> None:
    """Step by step, as coremltools' tests expect it of devices."""
    x, weight, recurrent, bias, peephole = floats(4, 2, 3), floats(8, 3), floats(8, 2), floats(8), floats(6)
    functions: dict[str, Any] = {
        "relu": lambda v: np.maximum(v, 0),
        "scaled_tanh": np.tanh,
        "hard_sigmoid": lambda v: np.clip(0.2 * v + 0.5, 0, 1),
        "linear": lambda v: v,
    }
    h, c, right = np.zeros((2, 2)), np.zeros((2, 2)), []
    for step in x:
        i, f, o, g = np.split(step @ weight.T + h @ recurrent.T + bias, 4, 1)
        i, f = (1 / (1 + np.exp(-(each + c * hole))) for each, hole in ((i, peephole[:2]), (f, peephole[2:4])))
        c = np.clip(c * f + i * np.tanh(g), -clip, clip)
        h = functions[activation](c) / (1 + np.exp(-(o + c * peephole[4:])))
        right.append(h)
    states = {"initial_h": np.zeros((2, 2), np.float32), "initial_c": np.zeros((2, 2), np.float32)}
    weights = {"weight_ih": weight, "weight_hh": recurrent, "bias": bias, "peephole": peephole}
    options = {"activation": activation, "clip": np.float32(clip), "output_sequence": True}
    found, *_ = results("lstm", x=x, **states, **weights, **options)
    assert_close(found, np.stack(right), 1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_rnn_and_gru(direction: str) -> None:
    """``gru`` as coremltools' tests expect it of devices: what is remembered is reset before the product."""
    x, h = floats(5, 2, 3), floats(2, 4)
    ordered = x if direction == "forward" else x[::-1]
    given = {"x": x, "initial_h": h, "direction": direction, "output_sequence": True}
    weight, recurrent, bias = floats(4, 3), floats(4, 4), floats(4)
    state, right = h, []
    for step in ordered:
        state = np.maximum(step @ weight.T + state @ recurrent.T + bias, 0)
        right.append(state)
    found = results("rnn", **given, weight_ih=weight, weight_hh=recurrent, bias=bias, activation="relu")
    assert_close(found[0], np.stack(right), 1e-5)
    assert_close(found[1], state, 1e-5)
    weight, recurrent, bias = floats(12, 3), floats(12, 4), floats(12)
    (w_r, w_o, w_z), (r_r, r_o, r_z), (b_r, b_o, b_z) = (np.split(each, 3) for each in (weight, recurrent, bias))
    state, right = h, []
    for step in ordered:
        z = 1 / (1 + np.exp(-(step @ w_z.T + state @ r_z.T + b_z)))
        r = 1 / (1 + np.exp(-(step @ w_r.T + state @ r_r.T + b_r)))
        o = np.tanh(step @ w_o.T + (state * r) @ r_o.T + b_o)
        state = (1 - z) * o + z * state
        right.append(state)
    found = results("gru", **given, weight_ih=weight, weight_hh=recurrent, bias=bias)
    assert_close(found[0], np.stack(right), 1e-5)
    assert_close(
        results("gru", **{**given, "output_sequence": False}, weight_ih=weight, weight_hh=recurrent, bias=bias)[0],
        state[None],
        1e-5,
    )


# ---- quantization


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("axis", [None, 1])
def test_quantize(dtype: str, axis: int | None) -> None:
    x, kind = floats(3, 4, 5) * 20, np.dtype(dtype).type
    steps: dict[str, Any] = {"scale": np.float32(0.3), "zero_point": kind(7)}
    if axis is not None:
        steps = {"scale": np.abs(floats(4)) + 0.05, "zero_point": np.arange(4, dtype=dtype), "axis": axis}
    codes = result("quantize", 17, dtype, input=x, output_dtype=dtype, **steps)
    assert codes.dtype == kind
    np.testing.assert_array_equal(codes, inferred("quantize", input=x, output_dtype=dtype, **steps))
    with Function({}, opset_version=packaged.OPSETS[17]):
        right = mb.dequantize(input=codes, **steps).op.materialized_val_inference()
    assert_close(result("dequantize", input=codes, **steps), right)


def test_weights_that_are_made_whole() -> None:
    codes = RANDOM.integers(0, 256, (4, 6), dtype=np.uint8)
    given: dict[str, Any] = {"quantized_data": codes, "zero_point": np.uint8(3), "scale": floats(6), "axis": 1}
    assert_close(
        result("constexpr_affine_dequantize", 16, **given), inferred("constexpr_affine_dequantize", 16, **given)
    )
    for bits in (1, 2, 4, 6, 8):
        packed = RANDOM.integers(0, 256, -(-15 * bits // 8), dtype=np.uint8)
        given = {"indices": packed, "lut": floats(2**bits), "shape": np.array([3, 5], np.uint32)}
        assert_close(result("constexpr_lut_to_dense", 16, **given), inferred("constexpr_lut_to_dense", 16, **given))
    mask = np.array([0b10110, 0b11], np.uint8)
    given = {"nonzero_data": floats(5), "mask": mask, "shape": np.array([2, 5], np.uint32)}
    assert_close(result("constexpr_sparse_to_dense", 16, **given), inferred("constexpr_sparse_to_dense", 16, **given))
    half = floats(3).astype(np.float16)
    assert_close(result("constexpr_cast", 16, source_val=half, output_dtype="fp32"), half.astype(np.float32))


def sub_byte(values: Array, bits: str) -> Array:
    """As coremltools holds integers narrower than a byte."""
    return values.astype(types.nptype_from_builtin(types.string_to_builtin(bits)))


def test_weights_of_blocks_that_are_made_whole() -> None:
    codes, scale, offset = (
        RANDOM.integers(-8, 8, (4, 6), dtype=np.int8),
        floats(2, 3),
        np.array([[1, 0, -3], [2, 5, 7]]),
    )
    found = result("constexpr_blockwise_shift_scale", 18, data=codes, scale=scale, offset=offset.astype(np.int8))
    given = {"data": sub_byte(codes, "int4"), "scale": scale, "offset": sub_byte(offset, "int4")}
    assert_close(found, inferred("constexpr_blockwise_shift_scale", 18, **given))
    indices = RANDOM.integers(0, 4, (6, 4), dtype=np.uint8)
    for shape, axis in (((2, 1, 4, 1), None), ((3, 2, 4, 3), 0), ((1, 2, 4, 2), -1)):
        lut, vector = floats(*shape), {} if axis is None else {"vector_axis": np.int32(axis)}
        right = inferred("constexpr_lut_to_dense", 18, indices=sub_byte(indices, "uint2"), lut=lut, **vector)
        assert_close(result("constexpr_lut_to_dense", 18, indices=indices, lut=lut, **vector), right)


def test_sparse_weights_that_are_made_whole() -> None:
    """coremltools' documented examples."""
    mask = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1], [0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]], np.uint8)
    at = np.array([0, 1, 1, 0, 1, 1, 0, 0, 1], np.uint8)
    two = ("uint1", "float32")
    given = {"indices_mask": mask, "indices_nonzero_data": at}
    lut = np.array([2, 3], np.float32).reshape(1, 1, 2, 1)
    same, values = results("constexpr_lut_to_sparse", 18, two, **given, lut=lut)
    assert values.tolist() == [2, 3, 3, 2, 3, 3, 2, 2, 3]
    assert (same == mask).all()
    pairs = np.array([[2, 20], [3, 30]], np.float32).reshape(1, 1, 2, 2)
    wide, values = results("constexpr_lut_to_sparse", 18, two, **given, lut=pairs, vector_axis=0)
    assert (wide == mask.repeat(2, 0)).all()
    dense = result("constexpr_sparse_to_dense", 18, nonzero_data=values, mask=wide)
    assert dense[:4].tolist() == [[2, 3, 0, 0, 0, 0], [20, 30, 0, 0, 0, 0], [3, 2, 0, 0, 0, 3], [30, 20, 0, 0, 0, 30]]
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]], np.uint8)
    scaled = {"scale": np.array([[0.1, 0.2, 0.3, 0.4]], np.float32), "offset": np.array([[1, 2, 3, 4]], np.int8)}
    codes = np.array([10, 11, 3, 4, 5, 6, 7, 8, 9], np.int8)
    _, values = results("constexpr_sparse_blockwise_shift_scale", 18, two, data_mask=mask, nonzero_data=codes, **scaled)
    assert_close(values, [0.9, 1.8, 0.2, 0.4, 0.6, 0.9, 1.2, 0.7, 1.4])


# ---- the rest


def test_classify() -> None:
    label, probabilities = results(
        "classify", probabilities=np.array([[0.2, 0.7, 0.1]], np.float32), classes=("a", "b", "c")
    )
    assert label == "b"
    assert isinstance(probabilities, Dictionary)
    assert probabilities.keys.tolist() == ["a", "b", "c"]
    assert_close(probabilities.values, [0.2, 0.7, 0.1])


@pytest.mark.parametrize("op", ["random_normal", "read_state", "make_list"])
def test_what_is_not_of_operands_alone(op: str) -> None:
    with pytest.raises(NotInterpreted, match=op):
        results(op)


FROM_DISK: dict[str, dict[str, Any]] = {
    "resize": {"shape": np.array([7, 0], np.int32), "resized_dims": np.uint32(2)},
    "resize_nearest_neighbor": {"target_size_height": 7, "target_size_width": 3},
    "crop": {"crop_height": [1, 0], "crop_width": [0, 2]},
    "l2_norm": {"epsilon": np.float32(1e-3)},
    "local_response_norm": {"size": 3, "alpha": np.float32(0.5)},
    "l2_pool": {"kernel_sizes": [2, 3], "strides": [2, 1], "pad_type": "same_lower"},
    "quantize": {"scale": np.float32(0.02), "zero_point": np.int8(3), "output_dtype": "int8"},
    "gather": {"indices": np.array([1, 0, 1], np.int32), "axis": 1, "validate_indices": True},
    "crop_resize": {"boxes": np.array([[0, 1, 3, 2.5]], np.float32), "sampling_mode": "ALIGN_CORNERS"},
}
"""Operations that the frontend of PyTorch does not write, or not with these parameters."""


def test_parameters_as_packages_have_them(tmp_path: Path) -> None:
    x, sequence = floats(1, 2, 4, 5), floats(3, 2, 4)
    layer = {"weight_ih": floats(9, 4), "weight_hh": floats(9, 3), "bias": floats(9)}
    layer |= {"initial_h": np.zeros((2, 3), np.float32)}
    first = {"quantize": "input"}
    states: list[str] = []

    def build(values: Mapping[str, Var]) -> Var:
        for op, given in FROM_DISK.items():
            getattr(mb, op)(**{first.get(op, "x"): values["x"]}, **given, name=op)
        states.extend(each.name for each in mb.gru(x=values["sequence"], **layer))
        return mb.identity(x=values["x"], name="done")

    path = tmp_path / "m.mlpackage"
    feeds = packaged.saved(path, {"x": x, "sequence": sequence}, build, 17)
    trace: dict[str, Array] = {}
    Interpreter(read(path)).run(feeds, trace)
    for op, given in FROM_DISK.items():
        declared = "int8" if op == "quantize" else "float32"
        assert_close(trace[op], result(op, 17, declared, **{first.get(op, "x"): x}, **given))
    for name, right in zip(states, results("gru", x=sequence, **layer), strict=True):
        assert_close(trace[name], right)
