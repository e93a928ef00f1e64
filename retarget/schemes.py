"""The quantization schemes: which integers each runtime really computes with, as data.

One quantizer (``passes/quantize.py``) reads them, so a target's dialect of QuantizeLinear and DequantizeLinear is what
stands here and nothing else. A scheme is an option of the `quantize` step: targets of equal schemes share that step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

Method: TypeAlias = Literal["minmax", "percentile", "mse", "entropy"]
"""How a clipping range is found in what calibration recorded of a tensor."""
Choice: TypeAlias = Literal["auto", "minmax", "percentile", "mse", "entropy"]
"""A method, or to try those of `AUTO` and take the one that measures best."""
AUTO: tuple[Method, ...] = ("mse", "minmax")
"""Long tails that matter, as a GELU's, want all of their range; others are better clipped."""


@dataclass(frozen=True)
class Grid:
    """The integers that an activation is rounded to, ``low`` to ``high``; symmetric: zero is the integer 0."""

    low: int
    high: int
    symmetric: bool


class QuantScheme(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A runtime's int8, or int16 with int8 weights. Operators are those of the default ONNX domain.

    Weights are int8 with zero point 0 and a scale for each output channel. Operators that no field names stay in
    float32.
    """

    name: str
    activation: Literal["uint8", "int8", "int16"]
    low: int
    high: int
    """The first and last integer of an activation."""
    symmetric: bool
    """Whether the zero point of activations is 0; else it follows the range."""
    headroom: float = 1.0
    """How many times as far as what was seen the integers of activations reach."""
    weight_low: int = -127
    """The first integer of a weight; the last is 127."""
    bias: Literal["int32", "float32"]
    """int32: its scale is that of the input times those of the weight, as the accumulator's. float32: the runtime has
    floats, or the target rounds them to integers that ONNX has no DequantizeLinear of."""
    weighted: tuple[str, ...]
    """Operators that compute in int8 with a constant weight: what the others are quantized for."""
    products: bool = False
    """Whether a MatMul of two activations computes in int8."""
    rounded: tuple[str, ...] = ()
    """Those of ``weighted`` (and MatMul of two activations) whose int8 kernel has no float output."""
    positive: tuple[str, ...] = ()
    """Those of ``weighted`` whose int8 kernel takes no zero point, and so no activation below zero."""
    apart: tuple[str, ...] = ()
    """Operators that must not stand between Dequantize- and QuantizeLinear: what they give is not rounded."""
    fused: tuple[str, ...] = ()
    """Operators that run inside the int8 kernel in front of them, in float: quantized is what comes out of them."""
    fusing: tuple[str, ...] | None = None
    """Operators whose kernels do that; None: all that compute in int8."""
    clips: tuple[tuple[float, float], ...] | None = None
    """Bounds that a Clip among ``fused`` may have; None: any."""
    arithmetic: tuple[str, ...] = ()
    """Operators that compute in int8 where they stand between int8 nodes."""
    moving: tuple[str, ...] = ()
    """Operators that move integers without looking at them: input and output have one scale."""
    same_scale: tuple[str, ...] = ()
    """Those of ``arithmetic`` that need one scale for all inputs and the output. What has another scale, because that
    is fixed, is rounded again in front of them."""
    fixed: Mapping[str, tuple[float, int]] = {}
    """Scale and zero point of the output of operators that have no other."""
    residual: Literal["both", "skip"] = "both"
    """``skip``: an Add runs inside the kernel that makes its one input, only the other one is quantized."""

    merged: bool = False
    """Whether the runtime leaves out the rounding of a result that its kernel adds to another."""
    rounds: bool = False
    """Whether int8 kernels round what they take and give floats: what is read in float as well is not rounded there."""
    spatial: tuple[int, ...] | None = None
    """Along how many axes the windows of a Conv may slide for its int8 kernel; None: any."""
    grouped: bool = True
    """Whether a Conv of several groups computes in int8."""

    @property
    def grid(self) -> Grid:
        """What activations are rounded to."""
        return Grid(self.low, self.high, self.symmetric)

    @property
    def word(self) -> str:
        """What its activations are called, whatever their sign."""
        return "int16" if self.activation == "int16" else "int8"

    @property
    def simulated(self) -> QuantScheme:
        """The scheme whose graph, executed as it is written, computes what the runtime makes of this one's."""
        return msgspec.structs.replace(self, residual="skip", merged=False) if self.merged else self


_LAYOUT = (
    "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip

U8S8 = QuantScheme(
    name="u8s8",
    activation="uint8",
    low=0,
    high=255,
    symmetric=False,
    bias="int32",
    # Not ConvTranspose: it runs in float behind its DequantizeLinear. Not MatMul of two activations: at 197 tokens
    # those of attention take 1.0 to 3 times as long as in float.
    weighted=("Conv", "Gemm", "MatMul"),
    # Without a QuantizeLinear right behind it a Conv runs in float. Gemm and MatMul have kernels with float outputs.
    rounded=("Conv",),
    # Between convolutions it would compute a QLinearSoftmax along another axis: it changes the layout around it (1.31).
    apart=("Softmax",),
    # It removes both where the QuantizeLinear behind them cuts off as much, and fuses no other activation function:
    # behind those a Conv would run in float.
    fused=("Relu", "Clip"),
    # What it has int8 kernels for, but for Softmax: 256 levels are too few for its small values. Six convolutions with
    # x * sigmoid(x) take 1.2 to 1.5 times as long where that is in float, and are no more exact.
    arithmetic=("Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid"),
    moving=(*_LAYOUT, "MaxPool", "Resize"),
)
"""ONNX Runtime on CPUs: read off the graphs that it executes."""

OPENVINO = msgspec.structs.replace(
    U8S8,
    name="openvino",
    weighted=("Conv", "ConvTranspose", "Gemm", "MatMul"),
    rounded=(),
    positive=("ConvTranspose",),
    apart=(),
    # All of them run as post-operations of the int8 kernel.
    fused=(
        "Clip",
        "Elu",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mish",
        "PRelu",
        "Relu",
        "Sigmoid",
        "Swish",
        "Tanh",
    ),
    arithmetic=("Add", "AveragePool", "Concat", "GlobalAveragePool", "Mul"),
    # A sum runs inside a convolution where both of its inputs are rounded (ResNet-50 takes 15 % longer where one is),
    # and there the convolution's own result is not rounded any more.
    merged=True,
)
"""OpenVINO on CPUs: U8S8 whose kernels have float outputs and more that runs inside them."""

TENSORRT = QuantScheme(
    name="tensorrt",
    activation="int8",
    low=-128,
    high=127,
    symmetric=True,
    bias="float32",
    weighted=("Conv", "ConvTranspose", "Gemm", "MatMul"),
    fused=("Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Swish", "Tanh"),
    arithmetic=("Add", "AveragePool", "GlobalAveragePool"),
    # It moves QuantizeLinear in front of Concat and what only changes the layout by itself.
    moving=("MaxPool",),
    residual="skip",
)
"""TensorRT and TensorRT-RTX: zero point 0 everywhere, float32 bias."""

TFLITE = QuantScheme(
    name="tflite",
    activation="int8",
    low=-128,
    high=127,
    symmetric=False,
    bias="int32",
    weighted=("Conv", "ConvTranspose", "Gemm", "MatMul"),
    # In attention of 197 tokens they take a third to a half of the time that they take in float.
    products=True,
    # An int8 operator has int8 outputs.
    rounded=("Conv", "ConvTranspose", "Gemm", "MatMul"),
    fused=("Relu", "Clip"),
    fusing=("Add", "AveragePool", "Conv", "ConvTranspose", "Gemm", "MatMul", "Mul", "Sub"),
    clips=((0.0, 6.0),),
    # Only those whose kernels, probed one at a time, are within a step of exact at any scales. Not Div and Neg, which
    # compute with the integers as they are, not ReduceSum, which the reference kernels do so too, and not Softmax: its
    # output has 256 levels at most, and in float with both roundings it takes a third of the time.
    arithmetic=(
        "Abs", "Add", "AveragePool", "Concat", "Elu", "Gelu", "GlobalAveragePool", "HardSwish", "LeakyRelu", "Max",
        "Min", "Mul", "PRelu", "ReduceMean", "Relu", "Resize", "Sigmoid", "Sub", "Tanh",
    ),
    moving=(*_LAYOUT, "GlobalMaxPool", "MaxPool", "Pad", "ReduceMax", "ReduceMin", "Resize"),
    # Concat is refused when scales differ, the others are wrong without a word. Linear Resize is within a step in
    # XNNPACK, and up to four off in the other kernels, which weigh in 1/1024.
    same_scale=("AveragePool", "Concat", "Max", "Min", "Resize"),
    # Sigmoid is refused with another scale.
    fixed={"Sigmoid": (1 / 256, -128), "Tanh": (1 / 128, 0)},
)  # fmt: skip
"""TensorFlow Lite's int8: asymmetric activations, a scale for each channel of weights, all in int8 kernels."""

TFLITE_16X8 = msgspec.structs.replace(
    TFLITE,
    name="tflite_16x8",
    activation="int16",
    low=-32768,
    high=32767,
    symmetric=True,
    # One bit is nothing among 16, and to cut off what calibration did not see costs 1 to 4 dB (ViT, YOLO, MobileNetV2).
    headroom=2.0,
    # The kernels add int64 of the accumulator's scale: floats of 24 bits lose nothing that a step of int16 shows.
    bias="float32",
    # Without those that have no int16 kernel (Elu, HardSwish) or one whose error is beyond a step (Tanh by two, Gelu,
    # PRelu, linear Resize by more).
    arithmetic=(
        "Abs", "Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Max", "Min", "Mul", "ReduceMean",
        "Relu", "Sigmoid", "Sub",
    ),
    moving=tuple(op for op in TFLITE.moving if op not in ("DepthToSpace", "SpaceToDepth")),
    same_scale=("AveragePool", "Concat", "Max", "Min"),
    fixed={"Sigmoid": (1 / 32768, 0)},
)  # fmt: skip
"""TensorFlow Lite's int16 activations with int8 weights: zero point 0 everywhere."""

COREML = QuantScheme(
    name="coreml",
    activation="int8",
    low=-128,
    high=127,
    symmetric=True,
    bias="float32",
    weighted=("Conv", "ConvTranspose", "Gemm", "MatMul"),
    fused=("Clip", "Gelu", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Swish", "Tanh"),
    arithmetic=("Add", "AveragePool", "GlobalAveragePool"),
    moving=("MaxPool",),
)
"""Core ML's ``quantize`` and ``dequantize`` of iOS 17: symmetric, float bias."""

NCNN = QuantScheme(
    name="ncnn",
    activation="int8",
    low=-127,
    high=127,
    symmetric=True,
    bias="float32",
    weighted=("Conv", "Gemm", "MatMul"),
    rounds=True,
    spatial=(1, 2),
    # In int8 depthwise ones take 1.7 to 3.7 times as long as in float on a CPU with AVX-512, and groups of several
    # channels, of which its own int8 kernel gives what was in memory, 1.3 to 2 times as one convolution each.
    grouped=False,
)
"""ncnn: Convolution rounds what it takes and gives back floats, or int8 where nothing but Convolution reads them."""
