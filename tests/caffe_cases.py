"""Single-layer Caffe nets, two or more a layer type, that together cover what parameters change.

``CASES`` is the table. ``case.prototxt``, ``case.weights`` and ``case.feeds()`` are the net, the last two drawn from
the case's seed; ``write(case, folder)`` leaves a prototxt and a caffemodel. ``opencv`` says whether OpenCV's reader is
an oracle for the case; the reference in numpy always is, and ``convert/caffe/reference/opencv.py`` has the reasons.
What Caffe itself does (and a lowering must do too) where its forks differ is said beside the case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import caffe_files
import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Judge: TypeAlias = Literal["right", "wrong", "lacking", "unsteady"]
"""As Caffe has it, otherwise, refused, or at times one and at times the other."""

# What OpenCV 4.14 makes of the cases; the tests hold it to this.
# fmt: off
ABSENT = (
    "ArgMax", "BN", "BatchReindex", "Bias", "Clip", "DepthwiseConvolution", "DummyData", "Embed", "Im2col",
    "LSTM", "LSTMUnit", "Parameter", "Python", "RNN", "Reduction", "SPP", "Threshold", "Tile", "Upsample",
)
LACKING = (
    "axpy_flat", "axpy_plain", "batchnorm_batch", "convolution_axis", "detectionoutput_corner_size",
    "detectionoutput_defaults", "detectionoutput_encoded", "detectionoutput_encoded_corner",
    "detectionoutput_no_background", "interp_like", "interp_shrink", "normalize_scale", "permute_partial",
    "pooling_ave_floor", "pooling_ave_floor_pad", "pooling_max_floor", "pooling_max_floor_pad",
    "priorbox_default_variance", "reorg_reverse", "reorg_three", "reshape_end", "reshape_insert", "reshape_negative",
    "scale_scalar", "slice_outputs",
)
WRONG = (
    "concat_dim", "deconvolution_dilation", "innerproduct_transpose", "interp_both", "interp_pad", "log_all",
    "log_base", "log_shift", "lrn_default", "lrn_k", "mvn_eps", "priorbox_default_clip", "priorbox_fraction",
    "priorbox_img_sides", "priorbox_img_size", "priorboxclustered_default_clip", "proposal_small",
    "scale_two_bottoms_bias", "slice_dim", "swish_beta",
)
UNSTEADY = ("convolution_volume", "convolution_volume_stride", "deconvolution_volume")
# fmt: on


@dataclass(frozen=True)
class Drawn:
    """An array to be drawn: every Caffe blob is float32, also one that holds indices."""

    shape: tuple[int, ...]
    kind: Literal["normal", "uniform", "whole", "exact"]
    low: float = 0.0
    """Of ``normal``: the mean. ``whole``: integers from ``low`` up to and without ``high``."""
    high: float = 1.0
    """Of ``normal``: the standard deviation."""
    values: tuple[float, ...] = ()

    def draw(self, random: np.random.Generator) -> Floats:
        found: NDArray[np.generic]
        if self.kind == "normal":
            found = random.normal(self.low, self.high, self.shape)
        elif self.kind == "uniform":
            found = random.uniform(self.low, self.high, self.shape)
        elif self.kind == "whole":
            found = random.integers(int(self.low), int(self.high), self.shape)
        else:
            found = np.array(self.values).reshape(self.shape)
        return found.astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A net of one layer (now and then two), its inputs and its weights."""

    name: str
    """``<type in lower case>_<what is special>``."""
    type: str
    layers: str
    """Prototxt of the layers, without the inputs; the one of ``type`` is called ``layer``."""
    inputs: Mapping[str, Drawn]
    blobs: tuple[Drawn, ...] = ()
    """The weights of ``layer``."""
    seed: int = 0
    outputs: Literal["values", "detections"] = "values"
    """``detections``: rows whose order among equals is open, and whose number the data decides."""

    @property
    def opencv(self) -> Judge:
        """What OpenCV's reader makes of it."""
        if self.type in ABSENT or self.name in LACKING:
            return "lacking"
        return "unsteady" if self.name in UNSTEADY else "wrong" if self.name in WRONG else "right"

    @property
    def prototxt(self) -> str:
        shapes = {name: drawn.shape for name, drawn in self.inputs.items()}
        return f'name: "{self.name}"\n{caffe_files.inputs(**shapes)}{self.layers}'

    @property
    def weights(self) -> list[caffe_files.Saved]:
        """What the caffemodel holds: as Caffe saves it, also a layer that has no weights."""
        random = np.random.default_rng((self.seed, 2))
        return [("layer", self.type, [drawn.draw(random) for drawn in self.blobs])]

    def feeds(self) -> dict[str, Floats]:
        random = np.random.default_rng((self.seed, 1))
        return {name: drawn.draw(random) for name, drawn in self.inputs.items()}


def write(case: Case, folder: Path) -> tuple[Path, Path]:
    """``<name>.prototxt`` and ``<name>.caffemodel`` in ``folder``."""
    prototxt, weights = caffe_files.write(folder, case.prototxt, case.weights, stem=case.name)
    assert weights is not None
    return prototxt, weights


# ---- how a case is spelled


def normal(*shape: int, mean: float = 0.0, scale: float = 1.0) -> Drawn:
    return Drawn(shape, "normal", mean, scale)


def uniform(*shape: int, low: float = 0.1, high: float = 1.0) -> Drawn:
    return Drawn(shape, "uniform", low, high)


def whole(*shape: int, high: int, low: int = 0) -> Drawn:
    return Drawn(shape, "whole", low, high)


def exact(values: Sequence[float], *shape: int) -> Drawn:
    return Drawn(shape, "exact", values=tuple(values))


def layer(type_: str, parameters: str = "", bottoms: Sequence[str] = ("data",), tops: Sequence[str] = ("out",)) -> str:
    """The layer that a case is about."""
    return caffe_files.layer("layer", type_, bottoms, tops, parameters)


DATA = normal(2, 4, 9, 10)
BANDS = normal(2, 7, 6, 5)


def _one(name: str, type_: str, parameters: str = "", *blobs: Drawn, data: Drawn = DATA) -> Case:
    return Case(name, type_, layer(type_, parameters), {"data": data}, blobs)


def _many(
    name: str,
    type_: str,
    parameters: str,
    inputs: Mapping[str, Drawn],
    *blobs: Drawn,
    tops: Sequence[str] = ("out",),
) -> Case:
    return Case(name, type_, layer(type_, parameters, tuple(inputs), tops), inputs, blobs)


# ---- the table, by family


def _convolutions() -> Iterator[Case]:
    def conv(name: str, parameters: str, *blobs: Drawn, data: Drawn = DATA) -> Case:
        return _one(
            f"convolution_{name}",
            "Convolution",
            f"convolution_param {{ {parameters} }}",
            *blobs,
            data=data,
        )

    w = 0.3
    yield conv("plain", "num_output: 6 kernel_size: 3", normal(6, 4, 3, 3, scale=w), normal(6))
    yield conv(
        "group", "num_output: 6 kernel_size: 3 pad: 1 stride: 2 group: 2", normal(6, 2, 3, 3, scale=w), normal(6)
    )
    yield conv(
        "sides",
        "num_output: 5 kernel_h: 3 kernel_w: 1 pad_h: 1 pad_w: 0 stride_h: 1 stride_w: 2 bias_term: false",
        normal(5, 4, 3, 1, scale=w),
    )
    yield conv(
        "repeated",
        "num_output: 5 kernel_size: 3 kernel_size: 2 pad: 1 pad: 2 stride: 2 stride: 1 dilation: 1 dilation: 2",
        normal(5, 4, 3, 2, scale=w),
        normal(5),
    )
    yield conv("dilation", "num_output: 6 kernel_size: 3 pad: 2 dilation: 2", normal(6, 4, 3, 3, scale=w), normal(6))
    yield conv("pointwise", "num_output: 8 kernel_size: 1 stride: 2", normal(8, 4, 1, 1, scale=w), normal(8))
    yield conv("depthwise", "num_output: 4 kernel_size: 3 pad: 1 group: 4", normal(4, 1, 3, 3, scale=w), normal(4))
    yield conv("legacy_blobs", "num_output: 6 kernel_size: 3", normal(6, 4, 3, 3, scale=w), normal(1, 1, 1, 6))
    yield conv(
        "volume",
        "num_output: 3 kernel_size: 3 kernel_size: 2 kernel_size: 2 pad: 1 stride: 1 stride: 1 stride: 1",
        normal(3, 2, 3, 2, 2, scale=w),
        normal(3),
        data=normal(2, 2, 5, 6, 7),
    )
    yield conv(
        "volume_stride",
        "num_output: 3 kernel_size: 3 kernel_size: 2 kernel_size: 2 pad: 1 stride: 1 stride: 2 stride: 1",
        normal(3, 2, 3, 2, 2, scale=w),
        normal(3),
        data=normal(2, 2, 5, 6, 7),
    )
    yield conv(
        "line",
        "num_output: 5 kernel_size: 3 pad: 1",
        normal(5, 4, 3, scale=w),
        normal(5),
        data=normal(2, 4, 11),
    )
    yield conv(
        "axis",
        "num_output: 3 kernel_size: 3 axis: 2",
        normal(3, 2, 3, 3, scale=w),
        normal(3),
        data=normal(2, 3, 2, 6, 7),
    )
    yield Case(
        "convolution_two_bottoms",
        "Convolution",
        layer("Convolution", "convolution_param { num_output: 3 kernel_size: 3 }", ("data", "other"), ("out", "out2")),
        {"data": DATA, "other": DATA},
        (normal(3, 4, 3, 3, scale=w), normal(3)),
    )
    for type_ in ("ConvolutionDepthwise", "DepthwiseConvolution"):
        # As the forks have it: one group a channel, whether `group` says so or not.
        yield _one(
            f"{type_.lower()}_plain",
            type_,
            "convolution_param { num_output: 4 kernel_size: 3 pad: 1 }",
            normal(4, 1, 3, 3, scale=w),
            normal(4),
        )
        yield _one(
            f"{type_.lower()}_stride",
            type_,
            "convolution_param { num_output: 4 kernel_size: 3 pad: 1 stride: 2 group: 4 bias_term: false }",
            normal(4, 1, 3, 3, scale=w),
        )

    def deconv(name: str, parameters: str, *blobs: Drawn, data: Drawn = DATA) -> Case:
        return _one(
            f"deconvolution_{name}", "Deconvolution", f"convolution_param {{ {parameters} }}", *blobs, data=data
        )

    yield deconv("plain", "num_output: 3 kernel_size: 3", normal(4, 3, 3, 3, scale=w), normal(3))
    yield deconv(
        "group", "num_output: 6 kernel_size: 4 pad: 1 stride: 2 group: 2", normal(4, 3, 4, 4, scale=w), normal(6)
    )
    yield deconv(
        "bilinear",
        "num_output: 4 kernel_size: 4 pad: 1 stride: 2 group: 4 bias_term: false",
        normal(4, 1, 4, 4, scale=w),
    )
    yield deconv(
        "sides",
        "num_output: 3 kernel_h: 3 kernel_w: 5 pad_h: 0 pad_w: 2 stride_h: 2 stride_w: 3",
        normal(4, 3, 3, 5, scale=w),
        normal(3),
    )
    yield deconv("dilation", "num_output: 3 kernel_size: 3 dilation: 2 pad: 1", normal(4, 3, 3, 3, scale=w), normal(3))
    yield deconv(
        "volume",
        "num_output: 3 kernel_size: 2 stride: 2",
        normal(2, 3, 2, 2, 2, scale=w),
        normal(3),
        data=normal(1, 2, 3, 4, 5),
    )
    yield _one("im2col_plain", "Im2col", "convolution_param { kernel_size: 3 }")
    yield _one("im2col_all", "Im2col", "convolution_param { kernel_size: 3 pad: 2 stride: 2 dilation: 2 }")
    yield _one(
        "im2col_sides",
        "Im2col",
        "convolution_param { kernel_h: 2 kernel_w: 3 pad_h: 1 pad_w: 0 stride_w: 2 stride_h: 1 }",
    )


def _products() -> Iterator[Case]:
    def product(name: str, parameters: str, *blobs: Drawn, data: Drawn = DATA) -> Case:
        text = f"inner_product_param {{ {parameters} }}"
        return _one(f"innerproduct_{name}", "InnerProduct", text, *blobs, data=data)

    w = 0.1
    yield product("plain", "num_output: 7", normal(7, 360, scale=w), normal(7))
    yield product("no_bias", "num_output: 7 bias_term: false", normal(7, 360, scale=w))
    yield product("axis", "num_output: 7 axis: 2", normal(7, 90, scale=w), normal(7))
    yield product("last", "num_output: 7 axis: -1", normal(7, 10, scale=w), normal(7))
    yield product("transpose", "num_output: 7 transpose: true", normal(360, 7, scale=w), normal(7))
    yield product("legacy_blobs", "num_output: 7", normal(1, 1, 7, 360, scale=w), normal(1, 1, 1, 7))
    yield product("flat", "num_output: 5", normal(5, 12, scale=w), normal(5), data=normal(3, 12))
    yield _one(
        "embed_plain",
        "Embed",
        "embed_param { num_output: 6 input_dim: 11 }",
        normal(11, 6),
        normal(6),
        data=whole(4, 3, high=11),
    )
    yield _one(
        "embed_no_bias",
        "Embed",
        "embed_param { num_output: 6 input_dim: 11 bias_term: false }",
        normal(11, 6),
        data=whole(5, high=11),
    )


def _poolings() -> Iterator[Case]:
    def pool(name: str, parameters: str, data: Drawn = DATA) -> Case:
        return _one(f"pooling_{name}", "Pooling", f"pooling_param {{ {parameters} }}", data=data)

    for kind in ("MAX", "AVE"):
        low = kind.lower()
        # Kernel, stride, pad: even and uneven, ceil that rounds, the last window that would lie in the padding.
        for k, s, p in ((2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1), (5, 3, 2), (4, 2, 1)):
            yield pool(f"{low}_{k}{s}{p}", f"pool: {kind} kernel_size: {k} stride: {s} pad: {p}")
        yield pool(f"{low}_sides", f"pool: {kind} kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 3 pad_h: 1 pad_w: 0")
        yield pool(f"{low}_global", f"pool: {kind} global_pooling: true")
        yield pool(f"{low}_floor", f"pool: {kind} kernel_size: 2 stride: 2 round_mode: FLOOR")
        yield pool(
            f"{low}_floor_pad", f"pool: {kind} kernel_size: 3 stride: 2 pad: 1 round_mode: FLOOR", normal(2, 3, 8, 8)
        )
        yield pool(f"{low}_ceil_mode", f"pool: {kind} kernel_size: 2 stride: 2 ceil_mode: false")
        # The stride leaps over the padding: Caffe clips the last window to H + pad, and drops one that starts there.
        yield pool(f"{low}_stride_above_kernel", f"pool: {kind} kernel_size: 2 stride: 3", normal(2, 3, 8, 10))
        yield pool(f"{low}_pad_dropped", f"pool: {kind} kernel_size: 2 stride: 2 pad: 1", normal(2, 3, 7, 8))
    yield pool("default", "kernel_size: 3 stride: 2")
    yield pool("negative", "pool: MAX kernel_size: 3 stride: 2 pad: 1", uniform(2, 3, 7, 7, low=-2, high=-1))
    yield Case(
        "pooling_mask",
        "Pooling",
        layer("Pooling", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }", tops=("out", "mask")),
        {"data": DATA},
    )
    yield _one("spp_max", "SPP", "spp_param { pyramid_height: 3 pool: MAX }")
    yield _one("spp_ave", "SPP", "spp_param { pyramid_height: 2 pool: AVE }")
    yield _one("spp_one", "SPP", "spp_param { pyramid_height: 1 }")


def _normalizations() -> Iterator[Case]:
    def lrn(name: str, parameters: str, data: Drawn = BANDS) -> Case:
        return _one(f"lrn_{name}", "LRN", f"lrn_param {{ {parameters} }}", data=data)

    yield lrn("across", "local_size: 5 alpha: 0.5 beta: 0.75")
    yield lrn("default", "")
    yield lrn("across_three", "local_size: 3 alpha: 0.1 beta: 0.5 norm_region: ACROSS_CHANNELS")
    yield lrn("k", "local_size: 3 alpha: 0.5 beta: 0.75 k: 2")
    yield lrn("within", "local_size: 3 alpha: 0.5 beta: 0.75 norm_region: WITHIN_CHANNEL")
    # Caffe builds it of layers and leaves `k` out: it is 1 within a channel.
    yield lrn("within_k", "local_size: 5 alpha: 2 beta: 0.5 k: 3 norm_region: WITHIN_CHANNEL")

    def norm(name: str, parameters: str, *blobs: Drawn, data: Drawn = DATA) -> Case:
        return _one(f"batchnorm_{name}", "BatchNorm", parameters, *blobs, data=data)

    variance = uniform(4, low=0.5, high=4.0)
    yield norm("plain", "", normal(4), variance, exact([1], 1))
    yield norm("factor", "batch_norm_param { eps: 1e-3 }", normal(4, scale=3), variance, exact([3], 1))
    yield norm("factor_0", "batch_norm_param { eps: 0.01 }", normal(4), variance, exact([0], 1))
    yield norm(
        "legacy_blobs",
        "batch_norm_param { use_global_stats: true }",
        normal(1, 4, 1, 1),
        uniform(1, 4, 1, 1),
        exact([2], 1, 1, 1, 1),
    )
    yield norm("flat", "", normal(6), uniform(6), exact([1], 1), data=normal(5, 6))
    # Statistics of the batch, as in training: what `use_global_stats: false` says is done in any phase.
    yield norm("batch", "batch_norm_param { use_global_stats: false }", normal(4), variance, exact([1], 1))

    # Two forks, two layers of one name: PSPNet's with four blobs, SegNet's with two.
    pspnet = (normal(4), normal(4), normal(4), variance)
    yield _one("bn_plain", "BN", "bn_param { eps: 1e-3 frozen: true }", *pspnet)
    yield _one("bn_legacy_blobs", "BN", "", *(Drawn((1, 4, 1, 1), each.kind, each.low, each.high) for each in pspnet))
    yield _one("bn_inference", "BN", "bn_param { bn_mode: INFERENCE }", normal(1, 4, 1, 1), normal(1, 4, 1, 1))
    yield _one("bn_learn", "BN", "", normal(1, 4, 1, 1), normal(1, 4, 1, 1), data=normal(2, 4, 9, 10, mean=1, scale=2))

    yield _one("mvn_plain", "MVN", "", data=normal(2, 4, 9, 10, mean=1, scale=2))
    yield _one("mvn_across", "MVN", "mvn_param { across_channels: true }", data=normal(2, 4, 9, 10, mean=1, scale=2))
    yield _one("mvn_mean", "MVN", "mvn_param { normalize_variance: false }", data=normal(2, 4, 9, 10, mean=1))
    yield _one("mvn_eps", "MVN", "mvn_param { eps: 0.5 across_channels: true }")
    yield _one("normalize_plain", "Normalize", "", uniform(1, low=1, high=20))
    yield _one(
        "normalize_channels",
        "Normalize",
        "norm_param { across_spatial: false channel_shared: false }",
        uniform(4, low=1, high=20),
    )
    yield _one(
        "normalize_eps", "Normalize", "norm_param { across_spatial: false channel_shared: true eps: 0.5 }", uniform(1)
    )
    yield _one("normalize_scale", "Normalize", "norm_param { channel_shared: false }", uniform(4, low=1, high=20))


def _affine() -> Iterator[Case]:
    yield _one("scale_plain", "Scale", "", normal(4))
    yield _one("scale_bias", "Scale", "scale_param { bias_term: true }", normal(4), normal(4))
    yield _one("scale_axis", "Scale", "scale_param { axis: 2 bias_term: true }", normal(9), normal(9))
    yield _one("scale_axes", "Scale", "scale_param { axis: 1 num_axes: 2 bias_term: true }", normal(4, 9), normal(4, 9))
    yield _one("scale_rest", "Scale", "scale_param { axis: 1 num_axes: -1 }", normal(4, 9, 10))
    yield _one("scale_scalar", "Scale", "scale_param { num_axes: 0 }", exact([1.5]))
    yield _one("scale_legacy_blobs", "Scale", "scale_param { bias_term: true }", normal(1, 4, 1, 1), normal(1, 4, 1, 1))
    yield _one("scale_flat", "Scale", "scale_param { bias_term: true }", normal(6), normal(6), data=normal(5, 6))
    yield _many("scale_two_bottoms", "Scale", "scale_param { axis: 0 }", {"data": DATA, "factor": normal(2, 4)})
    yield _many(
        "scale_two_bottoms_bias",
        "Scale",
        "scale_param { axis: 0 bias_term: true }",
        {"data": DATA, "factor": normal(2, 4)},
        normal(2, 4),
    )
    yield _one("bias_plain", "Bias", "", normal(4))
    yield _one("bias_axes", "Bias", "bias_param { axis: 2 num_axes: 2 }", normal(9, 10))
    yield _many("bias_two_bottoms", "Bias", "bias_param { axis: 0 }", {"data": DATA, "term": normal(2, 4)})
    yield _many("axpy_plain", "Axpy", "", {"a": normal(2, 4, 1, 1), "x": DATA, "y": DATA})
    yield _many("axpy_flat", "Axpy", "", {"a": normal(2, 4), "x": DATA, "y": DATA})


def _activations() -> Iterator[Case]:
    yield _one("relu_plain", "ReLU")
    yield _one("relu_leaky", "ReLU", "relu_param { negative_slope: 0.1 }")
    yield _one("relu_vector", "ReLU", data=normal(2, 7))
    yield _one("relu6_plain", "ReLU6", data=normal(2, 4, 9, 10, scale=6))
    yield _one("relu6_flat", "ReLU6", data=normal(3, 7, scale=6))
    yield _one("prelu_plain", "PReLU", "", normal(4, mean=0.2, scale=0.1))
    yield _one("prelu_shared", "PReLU", "prelu_param { channel_shared: true }", exact([0.3], 1))
    yield _one("prelu_flat", "PReLU", "", normal(6, mean=0.2, scale=0.1), data=normal(5, 6))
    yield _one("elu_plain", "ELU")
    yield _one("elu_alpha", "ELU", "elu_param { alpha: 0.4 }")
    yield _one("sigmoid_plain", "Sigmoid")
    yield _one("sigmoid_wide", "Sigmoid", data=normal(2, 7, scale=20))
    yield _one("tanh_plain", "TanH")
    yield _one("tanh_wide", "TanH", data=normal(2, 7, scale=10))
    yield _one("mish_plain", "Mish", data=normal(2, 4, 9, 10, scale=3))
    yield _one("mish_flat", "Mish", data=normal(2, 7, scale=10))
    yield _one("absval_plain", "AbsVal")
    yield _one("absval_flat", "AbsVal", data=normal(2, 7))
    positive = uniform(2, 4, 9, 10, low=0.2, high=3)
    yield _one("power_line", "Power", "power_param { scale: 0.5 shift: 3 }")
    yield _one("power_square", "Power", "power_param { scale: 0.5 shift: 3 power: 2 }")
    yield _one("power_root", "Power", "power_param { power: 0.5 shift: 0.1 }", data=positive)
    yield _one("power_inverse", "Power", "power_param { power: -1 scale: 2 }", data=positive)
    yield _one("power_default", "Power")
    # Caffe does not read its input then: a constant, shift to the power.
    yield _one("power_scale_0", "Power", "power_param { power: 2 scale: 0 shift: 3 }")
    yield _one("power_0", "Power", "power_param { power: 0 scale: 2 shift: 1 }")
    yield _one("exp_plain", "Exp")
    yield _one("exp_base", "Exp", "exp_param { base: 2 scale: 0.5 shift: 1 }")
    yield _one("exp_e", "Exp", "exp_param { scale: 0.5 shift: 1 }")
    yield _one("log_plain", "Log", data=positive)
    yield _one("log_shift", "Log", "log_param { scale: 0.5 shift: 2 }", data=positive)
    yield _one("log_base", "Log", "log_param { base: 10 }", data=positive)
    yield _one("log_all", "Log", "log_param { base: 2 scale: 0.5 shift: 2 }", data=positive)
    yield _one("bnll_plain", "BNLL")
    yield _one("bnll_wide", "BNLL", data=normal(2, 7, scale=40))
    yield _one("threshold_plain", "Threshold")
    yield _one("threshold_value", "Threshold", "threshold_param { threshold: 0.5 }")
    yield _one("swish_plain", "Swish")
    yield _one("swish_beta", "Swish", "swish_param { beta: 2.5 }")
    yield _one("clip_plain", "Clip", "clip_param { min: -0.5 max: 0.7 }")
    yield _one("clip_above", "Clip", "clip_param { min: 0 max: 1 }", data=normal(3, 7))
    yield _one("softmax_plain", "Softmax", data=normal(2, 4, 9, 10, scale=3))
    yield _one("softmax_last", "Softmax", "softmax_param { axis: -1 }")
    yield _one("softmax_rows", "Softmax", "softmax_param { axis: 2 }")
    yield _one("softmax_flat", "Softmax", data=normal(3, 12, scale=30))
    yield _one("dropout_plain", "Dropout")
    yield _one("dropout_ratio", "Dropout", "dropout_param { dropout_ratio: 0.9 }")
    # Fast R-CNN's fork: not scaled while it is trained, so scaled when it is used.
    yield _one("dropout_scale_train", "Dropout", "dropout_param { dropout_ratio: 0.3 scale_train: false }")


def _joins() -> Iterator[Case]:
    pair = {"data": DATA, "other": DATA}
    triple = {**pair, "third": DATA}
    yield _many("eltwise_sum", "Eltwise", "", pair)
    yield _many("eltwise_coeff", "Eltwise", "eltwise_param { operation: SUM coeff: 1 coeff: -0.5 }", pair)
    yield _many("eltwise_coeff_three", "Eltwise", "eltwise_param { coeff: 0.5 coeff: 2 coeff: -1 }", triple)
    yield _many("eltwise_prod", "Eltwise", "eltwise_param { operation: PROD }", triple)
    yield _many("eltwise_max", "Eltwise", "eltwise_param { operation: MAX }", triple)
    yield _many("eltwise_number", "Eltwise", "eltwise_param { operation: 2 }", pair)
    yield _many("concat_plain", "Concat", "", {"data": DATA, "other": normal(2, 3, 9, 10)})
    yield _many("concat_axis", "Concat", "concat_param { axis: 2 }", {"data": DATA, "other": normal(2, 4, 2, 10)})
    yield _many("concat_negative", "Concat", "concat_param { axis: -1 }", {"data": DATA, "other": normal(2, 4, 9, 1)})
    yield _many("concat_dim", "Concat", "concat_param { concat_dim: 0 }", pair)
    yield _one("concat_single", "Concat")
    halves, ends = ("a", "b"), _follow("a", "ReLU") + _follow("b", "Sigmoid")
    for name, parameters in (
        ("plain", ""),
        ("negative", "slice_param { axis: -1 }"),
        ("dim", "slice_param { slice_dim: 0 }"),
    ):
        yield Case(f"slice_{name}", "Slice", layer("Slice", parameters, tops=halves) + ends, {"data": DATA})
    yield _many("slice_outputs", "Slice", "", {"data": DATA}, tops=halves)
    yield _many(
        "slice_points", "Slice", "slice_param { slice_point: 1 slice_point: 3 }", {"data": DATA}, tops=(*halves, "c")
    )
    yield _many("slice_axis", "Slice", "slice_param { axis: 2 slice_point: 4 }", {"data": DATA}, tops=halves)
    yield Case(
        "split_plain",
        "Split",
        layer("Split", tops=halves) + _follow("a", "ReLU") + _follow("b", "Sigmoid"),
        {"data": DATA},
    )
    yield Case(
        "split_three",
        "Split",
        layer("Split", tops=(*halves, "c")) + _follow("a", "TanH") + _follow("b", "ReLU") + _follow("c", "AbsVal"),
        {"data": DATA},
    )
    yield _many(
        "crop_plain", "Crop", "crop_param { axis: 2 offset: 1 offset: 2 }", {"data": DATA, "like": normal(2, 4, 5, 6)}
    )
    yield _many("crop_one", "Crop", "crop_param { offset: 2 }", {"data": DATA, "like": normal(2, 4, 5, 6)})
    yield _many("crop_none", "Crop", "", {"data": DATA, "like": normal(2, 4, 5, 6)})
    # Axes before `axis` are not cropped, whatever the second bottom's sizes are.
    yield _many(
        "crop_channels",
        "Crop",
        "crop_param { axis: 1 offset: 1 offset: 0 offset: 3 }",
        {"data": DATA, "like": normal(1, 2, 9, 6)},
    )
    yield _many("crop_last", "Crop", "crop_param { axis: -1 offset: 3 }", {"data": DATA, "like": normal(1, 1, 1, 6)})
    yield _many(
        "batchreindex_plain",
        "BatchReindex",
        "",
        {"data": normal(3, 4, 5), "index": exact([2, 0, 0, 1, 2], 5)},
    )
    yield _many("batchreindex_one", "BatchReindex", "", {"data": DATA, "index": exact([1], 1)})
    # What a Silence layer takes is no output of the net.
    yield Case(
        "silence_plain",
        "Silence",
        _follow("data", "ReLU")
        + caffe_files.layer("slice", "Slice", "data", halves, "slice_param { slice_point: 1 }")
        + _sink("a")
        + _follow("b", "TanH"),
        {"data": DATA},
    )
    yield Case(
        "silence_two",
        "Silence",
        _follow("data", "ReLU") + caffe_files.layer("slice", "Slice", "data", halves) + _sink("a", "b"),
        {"data": DATA},
    )


def _follow(bottom: str, type_: str) -> str:
    return caffe_files.layer(f"{bottom}_{type_}", type_, bottom)


def _sink(*bottoms: str) -> str:
    return caffe_files.layer("sink", "Silence", bottoms, ())


def _shapes() -> Iterator[Case]:
    yield _one("flatten_plain", "Flatten")
    yield _one("flatten_axis", "Flatten", "flatten_param { axis: 2 }")
    yield _one("flatten_end", "Flatten", "flatten_param { axis: 1 end_axis: 2 }")
    yield _one("flatten_negative", "Flatten", "flatten_param { axis: -3 end_axis: -2 }")
    yield _one("flatten_all", "Flatten", "flatten_param { axis: 0 }")
    yield _one("reshape_plain", "Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 5 } }")
    yield _one("reshape_axis", "Reshape", "reshape_param { shape { dim: 2 dim: 2 } axis: 1 num_axes: 1 }")
    yield _one("reshape_insert", "Reshape", "reshape_param { shape { dim: 1 } axis: 2 num_axes: 0 }")
    yield _one("reshape_negative", "Reshape", "reshape_param { shape { dim: 5 dim: -1 } axis: -2 }")
    yield _one("reshape_end", "Reshape", "reshape_param { shape { dim: 1 dim: 1 } axis: -1 num_axes: 0 }")
    yield _one("reshape_zeros", "Reshape", "reshape_param { shape { dim: 0 dim: 0 dim: -1 } }")
    yield _one("permute_plain", "Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }")
    # What `order` leaves out follows in its own order.
    yield _one("permute_partial", "Permute", "permute_param { order: 2 order: 0 }")
    yield _one("tile_plain", "Tile", "tile_param { axis: 1 tiles: 2 }")
    yield _one("tile_last", "Tile", "tile_param { axis: -1 tiles: 3 }")
    for operation in ("SUM", "ASUM", "SUMSQ", "MEAN"):
        yield _one(
            f"reduction_{operation.lower()}", "Reduction", f"reduction_param {{ operation: {operation} axis: 1 }}"
        )
    yield _one("reduction_all", "Reduction", "")
    yield _one("reduction_coeff", "Reduction", "reduction_param { operation: MEAN axis: 2 coeff: 2.5 }")
    yield _one("reduction_last", "Reduction", "reduction_param { operation: SUMSQ axis: -1 coeff: 0.5 }")
    yield _one("argmax_axis", "ArgMax", "argmax_param { axis: 1 }")
    yield _one("argmax_plain", "ArgMax", "")
    yield _one("argmax_top", "ArgMax", "argmax_param { axis: 1 top_k: 3 }")
    yield _one("argmax_value", "ArgMax", "argmax_param { axis: -1 top_k: 2 out_max_val: true }")
    # Without an axis: over all but the batch; indices in row 0 and values in row 1.
    yield _one("argmax_both", "ArgMax", "argmax_param { top_k: 3 out_max_val: true }")
    yield _one("argmax_top_flat", "ArgMax", "argmax_param { top_k: 4 }", data=normal(3, 12))
    yield _one("shufflechannel_plain", "ShuffleChannel", "shuffle_channel_param { group: 2 }", data=normal(2, 6, 4, 5))
    yield _one("shufflechannel_three", "ShuffleChannel", "shuffle_channel_param { group: 3 }", data=normal(2, 6, 4, 5))
    # As in Darknet, whose weights such nets carry: see the reference for what is read as what.
    yield _one("reorg_plain", "Reorg", "reorg_param { stride: 2 }", data=normal(2, 4, 6, 8))
    yield _one("reorg_three", "Reorg", "reorg_param { stride: 3 }", data=normal(1, 9, 6, 3))
    yield _one("reorg_reverse", "Reorg", "reorg_param { stride: 2 reverse: true }", data=normal(2, 8, 3, 4))


def _resizes() -> Iterator[Case]:
    yield _one("interp_size", "Interp", "interp_param { height: 17 width: 23 }")
    yield _one("interp_smaller", "Interp", "interp_param { height: 4 width: 3 }")
    yield _one("interp_one", "Interp", "interp_param { height: 1 width: 1 }")
    # DeepLab: (h - 1) * zoom + 1, corners aligned.
    yield _one("interp_zoom", "Interp", "interp_param { zoom_factor: 3 }")
    yield _one("interp_shrink", "Interp", "interp_param { shrink_factor: 2 }")
    # PSPNet: first shrink, then zoom.
    yield _one("interp_both", "Interp", "interp_param { shrink_factor: 2 zoom_factor: 3 }")
    # A negative pad crops before sampling.
    yield _one("interp_pad", "Interp", "interp_param { height: 11 width: 12 pad_beg: -1 pad_end: -2 }")
    yield _many("interp_like", "Interp", "", {"data": DATA, "like": normal(2, 1, 13, 14)})
    yield _one("upsample_scale", "Upsample", "upsample_param { scale: 2 }", data=normal(2, 3, 4, 5))
    yield _one("upsample_three", "Upsample", "upsample_param { scale: 3 }", data=normal(1, 2, 3, 4))
    # SegNet: the mask of a max pooling says where each value goes; what none goes to is 0.
    pooled = "pooling_param { kernel_size: 2 stride: 2 }"
    masked = caffe_files.layer("pool", "Pooling", "data", ("pool", "mask"), pooled)
    wires = ("pool", "mask")
    yield Case(
        "upsample_mask",
        "Upsample",
        masked + layer("Upsample", "upsample_param { scale: 2 }", wires),
        {"data": normal(2, 3, 8, 6)},
    )
    yield Case(
        "upsample_size",
        "Upsample",
        masked + layer("Upsample", "upsample_param { upsample_h: 7 upsample_w: 9 }", wires),
        {"data": normal(1, 2, 7, 9)},
    )
    yield Case(
        "upsample_pad_out",
        "Upsample",
        masked + layer("Upsample", "upsample_param { scale: 2 pad_out_h: true pad_out_w: true }", wires),
        {"data": normal(1, 2, 7, 9)},
    )


def _recurrents() -> Iterator[Case]:
    time, batch, size, hidden = 5, 3, 4, 6
    x = normal(time, batch, size)
    # 0 begins a sequence anew: what was kept of the one before is forgotten there.
    cont = exact([0, 0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0], time, batch)
    number = f"recurrent_param {{ num_output: {hidden} }}"
    gates = (normal(4 * hidden, size, scale=0.5), normal(4 * hidden, scale=0.5))
    back = normal(4 * hidden, hidden, scale=0.5)
    yield _many("lstm_plain", "LSTM", number, {"x": x, "cont": cont}, *gates, back)
    yield _many(
        "lstm_static",
        "LSTM",
        number,
        {"x": x, "cont": cont, "static": normal(batch, 2)},
        *gates,
        normal(4 * hidden, 2, scale=0.5),
        back,
    )
    state = normal(1, batch, hidden)
    exposed = f"recurrent_param {{ num_output: {hidden} expose_hidden: true }}"
    yield _many(
        "lstm_exposed",
        "LSTM",
        exposed,
        {"x": x, "cont": exact([1] * 15, time, batch), "h0": state, "c0": state},
        *gates,
        back,
        tops=("out", "h", "c"),
    )
    yield _many("lstm_wide", "LSTM", number, {"x": normal(time, batch, 2, 2), "cont": cont}, *gates, back)
    unit = {"c": normal(1, batch, hidden), "x": normal(1, batch, 4 * hidden)}
    yield _many("lstmunit_plain", "LSTMUnit", "", {**unit, "cont": exact([1, 1, 1], 1, batch)}, tops=("cell", "out"))
    yield _many("lstmunit_begins", "LSTMUnit", "", {**unit, "cont": exact([1, 0, 1], 1, batch)}, tops=("cell", "out"))
    recurrent = (normal(hidden, size, scale=0.5), normal(hidden, scale=0.5))
    output = (normal(hidden, hidden, scale=0.5), normal(hidden, hidden, scale=0.5), normal(hidden, scale=0.5))
    yield _many("rnn_plain", "RNN", number, {"x": x, "cont": cont}, *recurrent, *output)
    yield _many(
        "rnn_static",
        "RNN",
        number,
        {"x": x, "cont": cont, "static": normal(batch, 2)},
        *recurrent,
        normal(hidden, 2, scale=0.5),
        *output,
    )
    yield _many(
        "rnn_exposed",
        "RNN",
        exposed,
        {"x": x, "cont": exact([1] * 15, time, batch), "h0": state},
        *recurrent,
        *output,
        tops=("out", "h"),
    )


def _constants() -> Iterator[Case]:
    def added(name: str, type_: str, parameters: str, *blobs: Drawn, tops: Sequence[str] = ("c",)) -> Case:
        first = layer(type_, parameters, (), tops)
        last = caffe_files.layer("sum", "Eltwise", ("data", *tops), "out")
        return Case(name, type_, first + last, {"data": normal(2, 3)}, blobs)

    yield added(
        "dummydata_shape", "DummyData", "dummy_data_param { data_filler { value: 2.5 } shape { dim: 2 dim: 3 } }"
    )
    both = "shape { dim: 2 dim: 3 }"
    values = 'data_filler { type: "constant" value: -3 } data_filler { value: 1.5 }'
    yield added("dummydata_two", "DummyData", f"dummy_data_param {{ {values} {both} }}", tops=("c", "d"))
    yield added("parameter_plain", "Parameter", "parameter_param { shape { dim: 2 dim: 3 } }", normal(2, 3))
    yield added("parameter_flat", "Parameter", "", normal(2, 3, scale=5))


def _regions() -> Iterator[Case]:
    # Batch index, x1, y1, x2, y2 in pixels of the image: one reaches beyond it, one is upside down.
    rois = exact(
        [0, 0, 0, 63, 47, 1, 10, 12, 40, 30, 0, 30, 20, 31, 21, 1, 50, 30, 90, 70, 0, 40, 40, 20, 20, 1, 7, 9, 25, 44],
        6,
        5,
    )
    feature = normal(2, 4, 12, 16)
    for name, parameters in (
        ("plain", "pooled_h: 3 pooled_w: 4 spatial_scale: 0.25"),
        ("square", "pooled_h: 6 pooled_w: 6 spatial_scale: 0.25"),
        ("default_scale", "pooled_h: 2 pooled_w: 2"),
    ):
        yield _many(
            f"roipooling_{name}", "ROIPooling", f"roi_pooling_param {{ {parameters} }}", {"data": feature, "rois": rois}
        )
    yield _many(
        "psroipooling_plain",
        "PSROIPooling",
        "psroi_pooling_param { spatial_scale: 0.25 output_dim: 2 group_size: 3 }",
        {"data": normal(2, 18, 12, 16), "rois": rois},
    )
    yield _many(
        "psroipooling_two",
        "PSROIPooling",
        "psroi_pooling_param { spatial_scale: 0.0625 output_dim: 5 group_size: 2 }",
        {"data": normal(2, 20, 12, 16), "rois": rois},
    )
    heights, widths = 5, 6
    image = exact([80, 96, 1], 1, 3)
    few = "post_nms_topn: 10 nms_thresh: 0.5 min_size: 1"
    for name, parameters, anchors in (
        ("plain", "feat_stride: 16 ratio: 0.5 ratio: 1 ratio: 2 scale: 2 scale: 4 post_nms_topn: 12 min_size: 1", 6),
        # Most boxes are too small, and come with a score of 0 after those that are not.
        ("small", "ratio: 1 scale: 2 scale: 4 post_nms_topn: 20 nms_thresh: 0.5 min_size: 40", 2),
        (
            "base",
            f"feat_stride: 16 base_size: 8 ratio: 1 scale: 3 scale: 6 pre_nms_topn: 40 {few}",
            2,
        ),
    ):
        # Few survive: fewer rows than post_nms_topn come out of Caffe.
        yield Case(
            f"proposal_{name}",
            "Proposal",
            layer("Proposal", f"proposal_param {{ {parameters} }}", ("scores", "deltas", "image")),
            {
                "scores": uniform(1, 2 * anchors, heights, widths, low=0.01, high=0.99),
                "deltas": normal(1, 4 * anchors, heights, widths, scale=0.3),
                "image": image,
            },
            outputs="detections",
        )
    yield Case(
        "proposal_scores",
        "Proposal",
        layer(
            "Proposal",
            "proposal_param { ratio: 1 scale: 2 scale: 4 post_nms_topn: 8 min_size: 1 }",
            ("scores", "deltas", "image"),
            ("out", "score"),
        ),
        {
            "scores": uniform(1, 4, heights, widths, low=0.01, high=0.99),
            "deltas": normal(1, 8, heights, widths, scale=0.3),
            "image": image,
        },
        outputs="detections",
    )
    # py-faster-rcnn's own, whose other settings stand in its code; a box that is too small is dropped.
    for name, text, anchors in (
        ("proposal", "'feat_stride': 16", 9),
        ("proposal_scales", "'feat_stride': 16\\n'scales': !!python/tuple [1, 2]", 6),
    ):
        own = f"python_param {{ module: 'rpn.proposal_layer' layer: 'ProposalLayer' param_str: \"{text}\" }}"
        yield Case(
            f"python_{name}",
            "Python",
            layer("Python", own, ("scores", "deltas", "image"), ("out", "score")),
            {
                "scores": uniform(1, 2 * anchors, heights, widths, low=0.01, high=0.99),
                "deltas": normal(1, 4 * anchors, heights, widths, scale=0.3),
                "image": image,
            },
            outputs="detections",
        )


def _boxes(count: int, seed: int) -> list[float]:
    """Corners x1 y1 x2 y2 of ``count`` boxes within the unit square, neither thin nor all alike."""
    random = np.random.default_rng(seed)
    centre, half = random.uniform(0.2, 0.8, (count, 2)), random.uniform(0.05, 0.2, (count, 2))
    return [float(value) for value in np.concatenate([centre - half, centre + half], axis=1).ravel()]


def _detections() -> Iterator[Case]:
    def prior(name: str, parameters: str, *, type_: str = "PriorBox") -> Case:
        return _many(
            f"{type_.lower()}_{name}",
            type_,
            f"prior_box_param {{ {parameters} }}",
            {"data": normal(1, 4, 3, 4), "image": normal(1, 3, 48, 64)},
        )

    variances = "variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2"
    whole_ = f"clip: false {variances}"
    yield prior("plain", f"min_size: 10 max_size: 24 aspect_ratio: 2 flip: true {whole_}")
    yield prior("ratios", f"min_size: 10 aspect_ratio: 2 aspect_ratio: 3 aspect_ratio: 1 aspect_ratio: 2 {whole_}")
    yield prior("no_flip", "min_size: 10 aspect_ratio: 2 flip: false clip: false variance: 0.1")
    yield prior("clip", f"min_size: 30 max_size: 60 clip: true {variances}")
    yield prior("default_clip", f"min_size: 30 max_size: 60 {variances}")
    yield prior("step", f"min_size: 10 step: 20 offset: 0.25 {whole_}")
    yield prior("steps", f"min_size: 10 step_h: 12 step_w: 20 {whole_}")
    yield prior("img_size", f"min_size: 10 img_size: 100 {whole_}")
    yield prior("img_sides", f"min_size: 10 img_h: 100 img_w: 50 {whole_}")
    yield prior("several", f"min_size: 8 min_size: 16 max_size: 12 max_size: 32 aspect_ratio: 2 {whole_}")
    # SSD holds both in integers: 10 and 24.
    yield prior("fraction", f"min_size: 10.7 max_size: 24.9 aspect_ratio: 2 {whole_}")
    yield prior("default_variance", "min_size: 10 clip: false")
    yield prior("plain", f"width: 9 width: 20 height: 12 height: 7 {whole_}", type_="PriorBoxClustered")
    yield prior(
        "all",
        f"width: 9 width: 60 height: 50 height: 7 clip: true step: 14 offset: 0.4 {variances}",
        type_="PriorBoxClustered",
    )

    yield prior("default_clip", f"width: 90 height: 12 {variances}", type_="PriorBoxClustered")

    count, classes = 12, 3
    spread = [value for _ in range(count) for value in (0.1, 0.1, 0.2, 0.2)]
    boxes = exact([*_boxes(count, 7), *spread], 1, 2, 4 * count)

    def output(name: str, parameters: str, batch: int = 1, per_class: bool = False) -> Case:
        parameters = f"num_classes: {classes} {parameters}"
        return Case(
            f"detectionoutput_{name}",
            "DetectionOutput",
            layer("DetectionOutput", f"detection_output_param {{ {parameters} }}", ("loc", "conf", "prior")),
            {
                "loc": normal(batch, 4 * count * (classes if per_class else 1), scale=0.5),
                "conf": uniform(batch, classes * count, low=0.01, high=0.99),
                "prior": boxes,
            },
            outputs="detections",
        )

    # Spelled out where the default would do, for OpenCV asks for it.
    shared, all_, nms = "share_location: true", "keep_top_k: 200", "nms_param { nms_threshold: 0.45 top_k: 400 }"
    ssd = f"{shared} background_label_id: 0 code_type: CENTER_SIZE"
    some = "confidence_threshold: 0.3"
    yield output("plain", f"{ssd} {nms} {all_} {some}")
    yield output("batch", f"{ssd} {nms} {all_} {some}", batch=2)
    yield output("keep", f"{ssd} {nms} keep_top_k: 4 {some}", batch=2)
    yield output("top_k", f"{ssd} nms_param {{ nms_threshold: 0.3 top_k: 3 }} {all_} confidence_threshold: 0.1")
    # Not given: every box, whatever its confidence.
    yield output("no_threshold", f"{ssd} {nms} {all_}")
    yield output("corner", f"{shared} background_label_id: 0 code_type: CORNER {nms} {all_} {some}")
    yield output("encoded", f"{ssd} {nms} {all_} {some} variance_encoded_in_target: true")
    yield output(
        "encoded_corner",
        f"{shared} background_label_id: 0 code_type: CORNER {nms} {all_} {some} variance_encoded_in_target: true",
    )
    yield output("corner_size", f"{shared} background_label_id: 0 code_type: CORNER_SIZE {nms} {all_} {some}")
    yield output("background", f"{shared} background_label_id: 2 code_type: CENTER_SIZE {nms} {all_} {some}")
    yield output("no_background", f"{shared} background_label_id: -1 code_type: CENTER_SIZE {nms} {all_} {some}")
    apart = "share_location: false background_label_id: 0 code_type: CENTER_SIZE"
    yield output("per_class", f"{apart} {nms} {all_} {some}", per_class=True)
    adaptive = "nms_param { nms_threshold: 0.7 top_k: 400 eta: 0.9 }"
    yield output("eta", f"{ssd} {adaptive} {all_} confidence_threshold: 0.1")
    # Nothing found: one row an image, its number and then -1.
    yield output("none", f"{ssd} {nms} {all_} confidence_threshold: 0.999", batch=2)
    # Boxes by corners, labels from 1 on, no limit: Caffe's defaults.
    yield output("defaults", some)


CASES: Mapping[str, Case] = {
    case.name: case
    for family in (
        _convolutions,
        _products,
        _poolings,
        _normalizations,
        _affine,
        _activations,
        _joins,
        _shapes,
        _resizes,
        _recurrents,
        _constants,
        _regions,
        _detections,
    )
    for case in family()
}
