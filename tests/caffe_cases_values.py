"""Cases of the Caffe layers that compute: convolution, products, pooling, normalization, activation."""

from __future__ import annotations

from collections.abc import Iterator

from caffe_case import BANDS, DATA, Case, Drawn, exact, layer, many, normal, one, uniform, whole


def _convolutions() -> Iterator[Case]:
    def conv(name: str, parameters: str, *blobs: Drawn, data: Drawn = DATA) -> Case:
        return one(
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
        yield one(
            f"{type_.lower()}_plain",
            type_,
            "convolution_param { num_output: 4 kernel_size: 3 pad: 1 }",
            normal(4, 1, 3, 3, scale=w),
            normal(4),
        )
        yield one(
            f"{type_.lower()}_stride",
            type_,
            "convolution_param { num_output: 4 kernel_size: 3 pad: 1 stride: 2 group: 4 bias_term: false }",
            normal(4, 1, 3, 3, scale=w),
        )

    def deconv(name: str, parameters: str, *blobs: Drawn, data: Drawn = DATA) -> Case:
        return one(f"deconvolution_{name}", "Deconvolution", f"convolution_param {{ {parameters} }}", *blobs, data=data)

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
    yield one("im2col_plain", "Im2col", "convolution_param { kernel_size: 3 }")
    yield one("im2col_all", "Im2col", "convolution_param { kernel_size: 3 pad: 2 stride: 2 dilation: 2 }")
    yield one(
        "im2col_sides",
        "Im2col",
        "convolution_param { kernel_h: 2 kernel_w: 3 pad_h: 1 pad_w: 0 stride_w: 2 stride_h: 1 }",
    )


def _products() -> Iterator[Case]:
    def product(name: str, parameters: str, *blobs: Drawn, data: Drawn = DATA) -> Case:
        text = f"inner_product_param {{ {parameters} }}"
        return one(f"innerproduct_{name}", "InnerProduct", text, *blobs, data=data)

    w = 0.1
    yield product("plain", "num_output: 7", normal(7, 360, scale=w), normal(7))
    yield product("no_bias", "num_output: 7 bias_term: false", normal(7, 360, scale=w))
    yield product("axis", "num_output: 7 axis: 2", normal(7, 90, scale=w), normal(7))
    yield product("last", "num_output: 7 axis: -1", normal(7, 10, scale=w), normal(7))
    yield product("transpose", "num_output: 7 transpose: true", normal(360, 7, scale=w), normal(7))
    yield product("legacy_blobs", "num_output: 7", normal(1, 1, 7, 360, scale=w), normal(1, 1, 1, 7))
    yield product("flat", "num_output: 5", normal(5, 12, scale=w), normal(5), data=normal(3, 12))
    yield one(
        "embed_plain",
        "Embed",
        "embed_param { num_output: 6 input_dim: 11 }",
        normal(11, 6),
        normal(6),
        data=whole(4, 3, high=11),
    )
    yield one(
        "embed_no_bias",
        "Embed",
        "embed_param { num_output: 6 input_dim: 11 bias_term: false }",
        normal(11, 6),
        data=whole(5, high=11),
    )


def _poolings() -> Iterator[Case]:
    def pool(name: str, parameters: str, data: Drawn = DATA) -> Case:
        return one(f"pooling_{name}", "Pooling", f"pooling_param {{ {parameters} }}", data=data)

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
    # Drawn while training; else the mean whose weights are the elements, and 0 where their sum is not above 0.
    yield pool("stochastic", "pool: STOCHASTIC kernel_size: 3 stride: 2", uniform(2, 4, 9, 9))
    yield pool("stochastic_negative", "pool: STOCHASTIC kernel_size: 2", uniform(2, 3, 5, 6, low=-3, high=1))
    yield pool("negative", "pool: MAX kernel_size: 3 stride: 2 pad: 1", uniform(2, 3, 7, 7, low=-2, high=-1))
    yield Case(
        "pooling_mask",
        "Pooling",
        layer("Pooling", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }", tops=("out", "mask")),
        {"data": DATA},
    )
    yield one("spp_max", "SPP", "spp_param { pyramid_height: 3 pool: MAX }")
    yield one("spp_ave", "SPP", "spp_param { pyramid_height: 2 pool: AVE }")
    yield one("spp_one", "SPP", "spp_param { pyramid_height: 1 }")


def _normalizations() -> Iterator[Case]:
    def lrn(name: str, parameters: str, data: Drawn = BANDS) -> Case:
        return one(f"lrn_{name}", "LRN", f"lrn_param {{ {parameters} }}", data=data)

    yield lrn("across", "local_size: 5 alpha: 0.5 beta: 0.75")
    yield lrn("default", "")
    yield lrn("across_three", "local_size: 3 alpha: 0.1 beta: 0.5 norm_region: ACROSS_CHANNELS")
    yield lrn("k", "local_size: 3 alpha: 0.5 beta: 0.75 k: 2")
    yield lrn("within", "local_size: 3 alpha: 0.5 beta: 0.75 norm_region: WITHIN_CHANNEL")
    # Caffe builds it of layers and leaves `k` out: it is 1 within a channel.
    yield lrn("within_k", "local_size: 5 alpha: 2 beta: 0.5 k: 3 norm_region: WITHIN_CHANNEL")

    def norm(name: str, parameters: str, *blobs: Drawn, data: Drawn = DATA) -> Case:
        return one(f"batchnorm_{name}", "BatchNorm", parameters, *blobs, data=data)

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
    yield one("bn_plain", "BN", "bn_param { eps: 1e-3 frozen: true }", *pspnet)
    yield one("bn_legacy_blobs", "BN", "", *(Drawn((1, 4, 1, 1), each.kind, each.low, each.high) for each in pspnet))
    yield one("bn_inference", "BN", "bn_param { bn_mode: INFERENCE }", normal(1, 4, 1, 1), normal(1, 4, 1, 1))
    yield one("bn_learn", "BN", "", normal(1, 4, 1, 1), normal(1, 4, 1, 1), data=normal(2, 4, 9, 10, mean=1, scale=2))

    yield one("mvn_plain", "MVN", "", data=normal(2, 4, 9, 10, mean=1, scale=2))
    yield one("mvn_across", "MVN", "mvn_param { across_channels: true }", data=normal(2, 4, 9, 10, mean=1, scale=2))
    yield one("mvn_mean", "MVN", "mvn_param { normalize_variance: false }", data=normal(2, 4, 9, 10, mean=1))
    yield one("mvn_eps", "MVN", "mvn_param { eps: 0.5 across_channels: true }")
    yield one("normalize_plain", "Normalize", "", uniform(1, low=1, high=20))
    yield one(
        "normalize_channels",
        "Normalize",
        "norm_param { across_spatial: false channel_shared: false }",
        uniform(4, low=1, high=20),
    )
    yield one(
        "normalize_eps", "Normalize", "norm_param { across_spatial: false channel_shared: true eps: 0.5 }", uniform(1)
    )
    yield one("normalize_scale", "Normalize", "norm_param { channel_shared: false }", uniform(4, low=1, high=20))


def _affine() -> Iterator[Case]:
    yield one("scale_plain", "Scale", "", normal(4))
    yield one("scale_bias", "Scale", "scale_param { bias_term: true }", normal(4), normal(4))
    yield one("scale_axis", "Scale", "scale_param { axis: 2 bias_term: true }", normal(9), normal(9))
    yield one("scale_axes", "Scale", "scale_param { axis: 1 num_axes: 2 bias_term: true }", normal(4, 9), normal(4, 9))
    yield one("scale_rest", "Scale", "scale_param { axis: 1 num_axes: -1 }", normal(4, 9, 10))
    yield one("scale_scalar", "Scale", "scale_param { num_axes: 0 }", exact([1.5]))
    yield one("scale_legacy_blobs", "Scale", "scale_param { bias_term: true }", normal(1, 4, 1, 1), normal(1, 4, 1, 1))
    yield one("scale_flat", "Scale", "scale_param { bias_term: true }", normal(6), normal(6), data=normal(5, 6))
    yield many("scale_two_bottoms", "Scale", "scale_param { axis: 0 }", {"data": DATA, "factor": normal(2, 4)})
    yield many(
        "scale_two_bottoms_bias",
        "Scale",
        "scale_param { axis: 0 bias_term: true }",
        {"data": DATA, "factor": normal(2, 4)},
        normal(2, 4),
    )
    yield one("bias_plain", "Bias", "", normal(4))
    yield one("bias_axes", "Bias", "bias_param { axis: 2 num_axes: 2 }", normal(9, 10))
    yield many("bias_two_bottoms", "Bias", "bias_param { axis: 0 }", {"data": DATA, "term": normal(2, 4)})
    yield many("axpy_plain", "Axpy", "", {"a": normal(2, 4, 1, 1), "x": DATA, "y": DATA})
    yield many("axpy_flat", "Axpy", "", {"a": normal(2, 4), "x": DATA, "y": DATA})


def _activations() -> Iterator[Case]:
    yield one("relu_plain", "ReLU")
    yield one("relu_leaky", "ReLU", "relu_param { negative_slope: 0.1 }")
    yield one("relu_vector", "ReLU", data=normal(2, 7))
    yield one("relu6_plain", "ReLU6", data=normal(2, 4, 9, 10, scale=6))
    yield one("relu6_flat", "ReLU6", data=normal(3, 7, scale=6))
    yield one("prelu_plain", "PReLU", "", normal(4, mean=0.2, scale=0.1))
    yield one("prelu_shared", "PReLU", "prelu_param { channel_shared: true }", exact([0.3], 1))
    yield one("prelu_flat", "PReLU", "", normal(6, mean=0.2, scale=0.1), data=normal(5, 6))
    yield one("elu_plain", "ELU")
    yield one("elu_alpha", "ELU", "elu_param { alpha: 0.4 }")
    yield one("sigmoid_plain", "Sigmoid")
    yield one("sigmoid_wide", "Sigmoid", data=normal(2, 7, scale=20))
    yield one("tanh_plain", "TanH")
    yield one("tanh_wide", "TanH", data=normal(2, 7, scale=10))
    yield one("mish_plain", "Mish", data=normal(2, 4, 9, 10, scale=3))
    yield one("mish_flat", "Mish", data=normal(2, 7, scale=10))
    yield one("absval_plain", "AbsVal")
    yield one("absval_flat", "AbsVal", data=normal(2, 7))
    positive = uniform(2, 4, 9, 10, low=0.2, high=3)
    yield one("power_line", "Power", "power_param { scale: 0.5 shift: 3 }")
    yield one("power_square", "Power", "power_param { scale: 0.5 shift: 3 power: 2 }")
    yield one("power_root", "Power", "power_param { power: 0.5 shift: 0.1 }", data=positive)
    yield one("power_inverse", "Power", "power_param { power: -1 scale: 2 }", data=positive)
    yield one("power_default", "Power")
    # Caffe does not read its input then: a constant, shift to the power.
    yield one("power_scale_0", "Power", "power_param { power: 2 scale: 0 shift: 3 }")
    yield one("power_0", "Power", "power_param { power: 0 scale: 2 shift: 1 }")
    yield one("exp_plain", "Exp")
    yield one("exp_base", "Exp", "exp_param { base: 2 scale: 0.5 shift: 1 }")
    yield one("exp_e", "Exp", "exp_param { scale: 0.5 shift: 1 }")
    yield one("log_plain", "Log", data=positive)
    yield one("log_shift", "Log", "log_param { scale: 0.5 shift: 2 }", data=positive)
    yield one("log_base", "Log", "log_param { base: 10 }", data=positive)
    yield one("log_all", "Log", "log_param { base: 2 scale: 0.5 shift: 2 }", data=positive)
    yield one("bnll_plain", "BNLL")
    yield one("bnll_wide", "BNLL", data=normal(2, 7, scale=40))
    yield one("threshold_plain", "Threshold")
    yield one("threshold_value", "Threshold", "threshold_param { threshold: 0.5 }")
    yield one("swish_plain", "Swish")
    yield one("swish_beta", "Swish", "swish_param { beta: 2.5 }")
    yield one("clip_plain", "Clip", "clip_param { min: -0.5 max: 0.7 }")
    yield one("clip_above", "Clip", "clip_param { min: 0 max: 1 }", data=normal(3, 7))
    yield one("softmax_plain", "Softmax", data=normal(2, 4, 9, 10, scale=3))
    yield one("softmax_last", "Softmax", "softmax_param { axis: -1 }")
    yield one("softmax_rows", "Softmax", "softmax_param { axis: 2 }")
    yield one("softmax_flat", "Softmax", data=normal(3, 12, scale=30))
    yield one("dropout_plain", "Dropout")
    yield one("dropout_ratio", "Dropout", "dropout_param { dropout_ratio: 0.9 }")
    # Fast R-CNN's fork: not scaled while it is trained, so scaled when it is used.
    yield one("dropout_scale_train", "Dropout", "dropout_param { dropout_ratio: 0.3 scale_train: false }")


FAMILIES = (_convolutions, _products, _poolings, _normalizations, _affine, _activations)
