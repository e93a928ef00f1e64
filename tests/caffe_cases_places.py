"""Cases of the Caffe layers that join, move, resize, recur and detect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import caffe_files
import numpy as np
from caffe_case import DATA, Case, Drawn, exact, layer, many, normal, one, uniform


def _joins() -> Iterator[Case]:
    pair = {"data": DATA, "other": DATA}
    triple = {**pair, "third": DATA}
    yield many("eltwise_sum", "Eltwise", "", pair)
    yield many("eltwise_coeff", "Eltwise", "eltwise_param { operation: SUM coeff: 1 coeff: -0.5 }", pair)
    yield many("eltwise_coeff_three", "Eltwise", "eltwise_param { coeff: 0.5 coeff: 2 coeff: -1 }", triple)
    yield many("eltwise_prod", "Eltwise", "eltwise_param { operation: PROD }", triple)
    yield many("eltwise_max", "Eltwise", "eltwise_param { operation: MAX }", triple)
    yield many("eltwise_number", "Eltwise", "eltwise_param { operation: 2 }", pair)
    yield many("concat_plain", "Concat", "", {"data": DATA, "other": normal(2, 3, 9, 10)})
    yield many("concat_axis", "Concat", "concat_param { axis: 2 }", {"data": DATA, "other": normal(2, 4, 2, 10)})
    yield many("concat_negative", "Concat", "concat_param { axis: -1 }", {"data": DATA, "other": normal(2, 4, 9, 1)})
    yield many("concat_dim", "Concat", "concat_param { concat_dim: 0 }", pair)
    yield one("concat_single", "Concat")
    halves, ends = ("a", "b"), _follow("a", "ReLU") + _follow("b", "Sigmoid")
    for name, parameters in (
        ("plain", ""),
        ("negative", "slice_param { axis: -1 }"),
        ("dim", "slice_param { slice_dim: 0 }"),
    ):
        yield Case(f"slice_{name}", "Slice", layer("Slice", parameters, tops=halves) + ends, {"data": DATA})
    yield many("slice_outputs", "Slice", "", {"data": DATA}, tops=halves)
    yield many(
        "slice_points", "Slice", "slice_param { slice_point: 1 slice_point: 3 }", {"data": DATA}, tops=(*halves, "c")
    )
    yield many("slice_axis", "Slice", "slice_param { axis: 2 slice_point: 4 }", {"data": DATA}, tops=halves)
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
    yield many(
        "crop_plain", "Crop", "crop_param { axis: 2 offset: 1 offset: 2 }", {"data": DATA, "like": normal(2, 4, 5, 6)}
    )
    yield many("crop_one", "Crop", "crop_param { offset: 2 }", {"data": DATA, "like": normal(2, 4, 5, 6)})
    yield many("crop_none", "Crop", "", {"data": DATA, "like": normal(2, 4, 5, 6)})
    # Axes before `axis` are not cropped, whatever the second bottom's sizes are.
    yield many(
        "crop_channels",
        "Crop",
        "crop_param { axis: 1 offset: 1 offset: 0 offset: 3 }",
        {"data": DATA, "like": normal(1, 2, 9, 6)},
    )
    yield many("crop_last", "Crop", "crop_param { axis: -1 offset: 3 }", {"data": DATA, "like": normal(1, 1, 1, 6)})
    yield many(
        "batchreindex_plain",
        "BatchReindex",
        "",
        {"data": normal(3, 4, 5), "index": exact([2, 0, 0, 1, 2], 5)},
    )
    yield many("batchreindex_one", "BatchReindex", "", {"data": DATA, "index": exact([1], 1)})
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
    yield one("flatten_plain", "Flatten")
    yield one("flatten_axis", "Flatten", "flatten_param { axis: 2 }")
    yield one("flatten_end", "Flatten", "flatten_param { axis: 1 end_axis: 2 }")
    yield one("flatten_negative", "Flatten", "flatten_param { axis: -3 end_axis: -2 }")
    yield one("flatten_all", "Flatten", "flatten_param { axis: 0 }")
    yield one("reshape_plain", "Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 5 } }")
    yield one("reshape_axis", "Reshape", "reshape_param { shape { dim: 2 dim: 2 } axis: 1 num_axes: 1 }")
    yield one("reshape_insert", "Reshape", "reshape_param { shape { dim: 1 } axis: 2 num_axes: 0 }")
    yield one("reshape_negative", "Reshape", "reshape_param { shape { dim: 5 dim: -1 } axis: -2 }")
    yield one("reshape_end", "Reshape", "reshape_param { shape { dim: 1 dim: 1 } axis: -1 num_axes: 0 }")
    yield one("reshape_zeros", "Reshape", "reshape_param { shape { dim: 0 dim: 0 dim: -1 } }")
    yield one("permute_plain", "Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }")
    # What `order` leaves out follows in its own order.
    yield one("permute_partial", "Permute", "permute_param { order: 2 order: 0 }")
    yield one("tile_plain", "Tile", "tile_param { axis: 1 tiles: 2 }")
    yield one("tile_last", "Tile", "tile_param { axis: -1 tiles: 3 }")
    for operation in ("SUM", "ASUM", "SUMSQ", "MEAN"):
        yield one(
            f"reduction_{operation.lower()}", "Reduction", f"reduction_param {{ operation: {operation} axis: 1 }}"
        )
    yield one("reduction_all", "Reduction", "")
    yield one("reduction_coeff", "Reduction", "reduction_param { operation: MEAN axis: 2 coeff: 2.5 }")
    yield one("reduction_last", "Reduction", "reduction_param { operation: SUMSQ axis: -1 coeff: 0.5 }")
    yield one("argmax_axis", "ArgMax", "argmax_param { axis: 1 }")
    yield one("argmax_plain", "ArgMax", "")
    yield one("argmax_top", "ArgMax", "argmax_param { axis: 1 top_k: 3 }")
    yield one("argmax_value", "ArgMax", "argmax_param { axis: -1 top_k: 2 out_max_val: true }")
    # Without an axis: over all but the batch; indices in row 0 and values in row 1.
    yield one("argmax_both", "ArgMax", "argmax_param { top_k: 3 out_max_val: true }")
    yield one("argmax_top_flat", "ArgMax", "argmax_param { top_k: 4 }", data=normal(3, 12))
    yield one("shufflechannel_plain", "ShuffleChannel", "shuffle_channel_param { group: 2 }", data=normal(2, 6, 4, 5))
    yield one("shufflechannel_three", "ShuffleChannel", "shuffle_channel_param { group: 3 }", data=normal(2, 6, 4, 5))
    # As in Darknet, whose weights such nets carry: see the reference for what is read as what.
    yield one("reorg_plain", "Reorg", "reorg_param { stride: 2 }", data=normal(2, 4, 6, 8))
    yield one("reorg_three", "Reorg", "reorg_param { stride: 3 }", data=normal(1, 9, 6, 3))
    yield one("reorg_reverse", "Reorg", "reorg_param { stride: 2 reverse: true }", data=normal(2, 8, 3, 4))


def _resizes() -> Iterator[Case]:
    yield one("interp_size", "Interp", "interp_param { height: 17 width: 23 }")
    yield one("interp_smaller", "Interp", "interp_param { height: 4 width: 3 }")
    yield one("interp_one", "Interp", "interp_param { height: 1 width: 1 }")
    # DeepLab: (h - 1) * zoom + 1, corners aligned.
    yield one("interp_zoom", "Interp", "interp_param { zoom_factor: 3 }")
    yield one("interp_shrink", "Interp", "interp_param { shrink_factor: 2 }")
    # PSPNet: first shrink, then zoom.
    yield one("interp_both", "Interp", "interp_param { shrink_factor: 2 zoom_factor: 3 }")
    # A negative pad crops before sampling.
    yield one("interp_pad", "Interp", "interp_param { height: 11 width: 12 pad_beg: -1 pad_end: -2 }")
    yield many("interp_like", "Interp", "", {"data": DATA, "like": normal(2, 1, 13, 14)})
    yield one("upsample_scale", "Upsample", "upsample_param { scale: 2 }", data=normal(2, 3, 4, 5))
    yield one("upsample_three", "Upsample", "upsample_param { scale: 3 }", data=normal(1, 2, 3, 4))
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
    yield many("lstm_plain", "LSTM", number, {"x": x, "cont": cont}, *gates, back)
    yield many(
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
    yield many(
        "lstm_exposed",
        "LSTM",
        exposed,
        {"x": x, "cont": exact([1] * 15, time, batch), "h0": state, "c0": state},
        *gates,
        back,
        tops=("out", "h", "c"),
    )
    yield many("lstm_wide", "LSTM", number, {"x": normal(time, batch, 2, 2), "cont": cont}, *gates, back)
    unit = {"c": normal(1, batch, hidden), "x": normal(1, batch, 4 * hidden)}
    yield many("lstmunit_plain", "LSTMUnit", "", {**unit, "cont": exact([1, 1, 1], 1, batch)}, tops=("cell", "out"))
    yield many("lstmunit_begins", "LSTMUnit", "", {**unit, "cont": exact([1, 0, 1], 1, batch)}, tops=("cell", "out"))
    recurrent = (normal(hidden, size, scale=0.5), normal(hidden, scale=0.5))
    output = (normal(hidden, hidden, scale=0.5), normal(hidden, hidden, scale=0.5), normal(hidden, scale=0.5))
    yield many("rnn_plain", "RNN", number, {"x": x, "cont": cont}, *recurrent, *output)
    yield many(
        "rnn_static",
        "RNN",
        number,
        {"x": x, "cont": cont, "static": normal(batch, 2)},
        *recurrent,
        normal(hidden, 2, scale=0.5),
        *output,
    )
    yield many(
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
        yield many(
            f"roipooling_{name}", "ROIPooling", f"roi_pooling_param {{ {parameters} }}", {"data": feature, "rois": rois}
        )
    yield many(
        "psroipooling_plain",
        "PSROIPooling",
        "psroi_pooling_param { spatial_scale: 0.25 output_dim: 2 group_size: 3 }",
        {"data": normal(2, 18, 12, 16), "rois": rois},
    )
    yield many(
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
        return many(
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


FAMILIES = (_joins, _shapes, _resizes, _recurrents, _constants, _regions, _detections)
