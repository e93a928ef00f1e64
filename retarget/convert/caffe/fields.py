"""Which fields layers may have: a name that is not known may be misspelt, or change what a fork of Caffe computes.

Caffe refuses to parse a net with a field that it does not know. A reader without a schema would take it and compute
something else, and so would a reference that is made of the same net.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence

from retarget.convert.caffe.net import Layer, Message
from retarget.errors import Unsupported

_WINDOW = "pad pad_h pad_w kernel_size kernel_h kernel_w stride stride_h stride_w"
_KNOWN: Mapping[str, frozenset[str]] = {
    name: frozenset(fields.split())
    for name, fields in {
        "argmax_param": "out_max_val top_k axis",
        "batch_norm_param": "use_global_stats eps",
        "bias_param": "axis num_axes",
        "bn_param": "bn_mode eps",
        "clip_param": "min max",
        "concat_param": "axis concat_dim",
        "convolution_param": f"num_output bias_term dilation group axis {_WINDOW}",
        "crop_param": "axis offset",
        "detection_output_param": "num_classes share_location background_label_id nms_param code_type keep_top_k "
        "variance_encoded_in_target confidence_threshold",
        "dropout_param": "dropout_ratio scale_train sample_weights_test",
        "dummy_data_param": "data_filler shape num channels height width",
        "eltwise_param": "operation coeff",
        "elu_param": "alpha",
        "embed_param": "num_output input_dim bias_term",
        "exp_param": "base scale shift",
        "flatten_param": "axis end_axis",
        "inner_product_param": "num_output bias_term axis transpose",
        "input_param": "shape",
        "interp_param": "height width zoom_factor shrink_factor pad_beg pad_end",
        "log_param": "base scale shift",
        "lrn_param": "local_size alpha beta norm_region k",
        "mvn_param": "normalize_variance across_channels eps",
        "norm_param": "across_spatial channel_shared eps",
        "parameter_param": "shape",
        "permute_param": "order",
        "pooling_param": f"pool global_pooling round_mode ceil_mode {_WINDOW}",
        "power_param": "power scale shift",
        "prelu_param": "channel_shared",
        "prior_box_param": "min_size max_size aspect_ratio flip clip variance img_size img_h img_w step step_h step_w "
        "offset width height",
        "proposal_param": "feat_stride base_size min_size ratio scale pre_nms_topn post_nms_topn nms_thresh",
        "psroi_pooling_param": "spatial_scale output_dim group_size",
        "python_param": "module layer param_str",
        "recurrent_param": "num_output expose_hidden",
        "reduction_param": "operation axis coeff",
        "relu_param": "negative_slope",
        "reorg_param": "stride reverse",
        "reshape_param": "shape axis num_axes",
        "roi_pooling_param": "pooled_h pooled_w spatial_scale",
        "scale_param": "axis num_axes bias_term",
        "shuffle_channel_param": "group",
        "sigmoid_param": "",
        "slice_param": "axis slice_point slice_dim",
        "softmax_param": "axis",
        "spp_param": "pyramid_height pool",
        "swish_param": "beta",
        "tanh_param": "",
        "threshold_param": "threshold",
        "tile_param": "axis tiles",
        "upsample_param": "scale scale_h scale_w pad_out_h pad_out_w upsample_h upsample_w",
    }.items()
}
"""Parameters of layers to their fields that say what is computed."""
# fmt: off
_SILENT = frozenset({
    "engine", "force_nd_im2col", "conv_algorithm", "cudnn_convolution_algo_seeker", "workspace_limit",  # how, not what
    "weight_filler", "bias_filler", "filler", "scale_filler", "slope_filler", "shift_filler",  # what weights began as
    "moving_average_fraction", "momentum", "frozen", "stats_batch_size", "stable_prod_grad", "per_fla_fuse",  # training
    "debug_info", "share_in_parallel", "visualize", "visualize_threshold", "save_output_param", "save_file",  # effects
})
"""Fields of any parameters that do not say what is computed from trained weights."""
_LAYER = frozenset({
    "name", "type", "bottom", "top", "phase", "loss_weight", "param", "blobs", "propagate_down", "include", "exclude",
    "transform_param", "loss_param",
})
# fmt: on


def refuse_unknown(layers: Sequence[Layer]) -> None:
    """Raise ``Unsupported`` for the first field that is not known, with the count of the others of its name."""
    found = [(layer, holder, name) for layer in layers for holder, name in _unknown(layer)]
    if not found:
        return
    layer, holder, name = found[0]
    others = sum(each[1:] == (holder, name) for each in found) - 1
    more = f", as {others} other layer{'s' if others != 1 else ''}" if others else ""
    near = difflib.get_close_matches(name, _KNOWN.get(holder, (*_KNOWN, *_LAYER)), n=1)
    raise Unsupported(
        f"{layer.place}: has a field '{name}'{f' in {holder}' if holder else ''} that is not known{more}",
        f"did you mean '{near[0]}'?" if near else "remove it if it does not change what the net computes",
    )


def _unknown(layer: Layer) -> Iterator[tuple[str, str]]:
    """The message that holds it, or nothing for the layer itself, and the field."""
    for name, values in layer.message.fields.items():
        if name in _KNOWN:
            for value in values:
                if isinstance(value, Message):
                    yield from ((name, field) for field in value.fields if field not in _KNOWN[name] | _SILENT)
        elif name not in _LAYER and difflib.get_close_matches(name, (*_KNOWN, *_LAYER), n=1, cutoff=0.9):
            # Others are parameters of types that retarget may not know: the lowering says so of the type.
            yield "", name
