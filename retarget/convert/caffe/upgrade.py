"""Nets of V0 and V1 as nets of today, by the rules of Caffe's own ``upgrade_proto.cpp``.

V0 has ``layers { layer { type: "conv" kernelsize: 5 } }`` with padding in layers of its own, V1 has
``layers { type: CONVOLUTION convolution_param {} }``, V2 has ``layer { type: "Convolution" }``. All three may name
their inputs in fields of the net. What is for training alone (rates, decays) is left where it is or dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from retarget.convert.caffe.net import Message, Scalar
from retarget.errors import RetargetError, did_you_mean

Fields: TypeAlias = "dict[str, Sequence[Scalar | Message]]"

# fmt: off
V1_TYPES: Mapping[str, tuple[int, str]] = {
    "ACCURACY": (1, "Accuracy"), "BNLL": (2, "BNLL"), "CONCAT": (3, "Concat"), "CONVOLUTION": (4, "Convolution"),
    "DATA": (5, "Data"), "DROPOUT": (6, "Dropout"), "EUCLIDEAN_LOSS": (7, "EuclideanLoss"), "FLATTEN": (8, "Flatten"),
    "HDF5_DATA": (9, "HDF5Data"), "HDF5_OUTPUT": (10, "HDF5Output"), "IM2COL": (11, "Im2col"),
    "IMAGE_DATA": (12, "ImageData"), "INFOGAIN_LOSS": (13, "InfogainLoss"), "INNER_PRODUCT": (14, "InnerProduct"),
    "LRN": (15, "LRN"), "MULTINOMIAL_LOGISTIC_LOSS": (16, "MultinomialLogisticLoss"), "POOLING": (17, "Pooling"),
    "RELU": (18, "ReLU"), "SIGMOID": (19, "Sigmoid"), "SOFTMAX": (20, "Softmax"),
    "SOFTMAX_LOSS": (21, "SoftmaxWithLoss"), "SPLIT": (22, "Split"), "TANH": (23, "TanH"),
    "WINDOW_DATA": (24, "WindowData"), "ELTWISE": (25, "Eltwise"), "POWER": (26, "Power"),
    "SIGMOID_CROSS_ENTROPY_LOSS": (27, "SigmoidCrossEntropyLoss"), "HINGE_LOSS": (28, "HingeLoss"),
    "MEMORY_DATA": (29, "MemoryData"), "ARGMAX": (30, "ArgMax"), "THRESHOLD": (31, "Threshold"),
    "DUMMY_DATA": (32, "DummyData"), "SLICE": (33, "Slice"), "MVN": (34, "MVN"), "ABSVAL": (35, "AbsVal"),
    "SILENCE": (36, "Silence"), "CONTRASTIVE_LOSS": (37, "ContrastiveLoss"), "EXP": (38, "Exp"),
    "DECONVOLUTION": (39, "Deconvolution"),
}
# fmt: on
_V1_NUMBERS = {str(number): name for number, name in V1_TYPES.values()}


@dataclass(frozen=True)
class _V0Type:
    type: str
    parameters: str = ""
    """The message that today holds its parameters."""
    fields: tuple[str, ...] = ()


_WEIGHTED = ("num_output", "biasterm", "weight_filler", "bias_filler")
_WINDOW = ("det_fg_threshold", "det_bg_threshold", "det_fg_fraction", "det_context_pad", "det_crop_mode")
_IMAGES = ("rand_skip", "shuffle_images", "new_height", "new_width")

V0_TYPES: Mapping[str, _V0Type] = {
    "accuracy": _V0Type("Accuracy"),
    "bnll": _V0Type("BNLL"),
    "concat": _V0Type("Concat", "concat_param", ("concat_dim",)),
    "conv": _V0Type("Convolution", "convolution_param", (*_WEIGHTED, "pad", "kernelsize", "group", "stride")),
    "data": _V0Type("Data", "data_param", ("source", "batchsize", "rand_skip")),
    "dropout": _V0Type("Dropout", "dropout_param", ("dropout_ratio",)),
    "euclidean_loss": _V0Type("EuclideanLoss"),
    "flatten": _V0Type("Flatten"),
    "hdf5_data": _V0Type("HDF5Data", "hdf5_data_param", ("source", "batchsize")),
    "hdf5_output": _V0Type("HDF5Output"),
    "im2col": _V0Type("Im2col", "convolution_param", ("pad", "kernelsize", "stride")),
    "images": _V0Type("ImageData", "image_data_param", ("source", "batchsize", *_IMAGES)),
    "infogain_loss": _V0Type("InfogainLoss", "infogain_loss_param", ("source",)),
    "innerproduct": _V0Type("InnerProduct", "inner_product_param", _WEIGHTED),
    "lrn": _V0Type("LRN", "lrn_param", ("local_size", "alpha", "beta", "k")),
    "multinomial_logistic_loss": _V0Type("MultinomialLogisticLoss"),
    "pool": _V0Type("Pooling", "pooling_param", ("pool", "pad", "kernelsize", "stride")),
    "relu": _V0Type("ReLU"),
    "sigmoid": _V0Type("Sigmoid"),
    "softmax": _V0Type("Softmax"),
    "softmax_loss": _V0Type("SoftmaxWithLoss"),
    "split": _V0Type("Split"),
    "tanh": _V0Type("TanH"),
    "window_data": _V0Type("WindowData", "window_data_param", ("source", "batchsize", *_WINDOW)),
}
_V0_RENAMED = {
    "biasterm": "bias_term",
    "kernelsize": "kernel_size",
    "batchsize": "batch_size",
    "shuffle_images": "shuffle",
} | {name: name.removeprefix("det_") for name in _WINDOW}
_V0_TRANSFORM = {"scale": "scale", "meanfile": "mean_file", "cropsize": "crop_size", "mirror": "mirror"}
_PADDING = "padding"

_V1_DROPPED = frozenset({"type", "param", "blob_share_mode", "blobs_lr", "weight_decay", "layer", "blobs"})
_V1_TRANSFORMED = {"Data": "data_param", "ImageData": "image_data_param", "WindowData": "window_data_param"}


def version(net: Message) -> str:
    """``V0``, ``V1`` or ``V2``: which format the net is written in."""
    if "layers" not in net:
        return "V2"
    return "V0" if any("layer" in layer for layer in net.messages("layers")) else "V1"


def upgrade(net: Message) -> tuple[Message, ...]:
    """All layers of ``net`` as ``layer`` messages of today; inputs that the net names are ``Input`` layers."""
    old = net.messages("layers")
    if old and "layer" in net:
        raise RetargetError(
            f"{net.messages('layer')[0].place}: `layer` of today beside the `layers` of V1",
            'write all of them as `layer { type: "Convolution" … }`',
        )
    if any("layer" in layer for layer in old):
        old = tuple(_from_v0(layer) for layer in _without_padding(old))
    return (*_inputs(net), *(_from_v1(layer) for layer in old), *net.messages("layer"))


def _inputs(net: Message) -> list[Message]:
    names = net.words("input")
    shapes: list[Sequence[int]] = [shape.integers("dim") for shape in net.messages("input_shape")]
    dims = net.integers("input_dim")
    if not shapes and dims:
        if len(dims) != 4 * len(names):
            raise RetargetError(
                f"{net.place}: {len(dims)} times `input_dim` for {len(names)} `input`",
                "each input has four: batch, channels, height, width",
            )
        shapes = [dims[at : at + 4] for at in range(0, len(dims), 4)]
    if shapes and len(shapes) != len(names):
        raise RetargetError(
            f"{net.place}: {len(shapes)} times `input_shape` for {len(names)} `input`", "each input has one"
        )
    return [
        Message(
            net.place,
            {
                "name": [name],
                "type": ["Input"],
                "top": [name],
                "input_param": [Message(net.place, {"shape": [Message(net.place, {"dim": shapes[index]})]})]
                if shapes
                else [],
            },
        )
        for index, name in enumerate(names)
    ]


# ---- V0


def _without_padding(layers: Sequence[Message]) -> list[Message]:
    """V0 ``layers`` with those that pad folded into the convolution or pooling that takes what they make."""
    paddings: dict[str, Message] = {}
    kept = []
    for outer in layers:
        layer = outer.message("layer")
        kind = layer.word("type")
        bottoms = outer.words("bottom")
        for index, bottom in enumerate(bottoms):
            padding = paddings.get(bottom)
            if padding is None:
                continue
            if kind not in ("conv", "pool") or len(bottoms) != 1:
                raise RetargetError(
                    f"{layer.place}: layer '{layer.word('name')}' ({kind}) takes what a padding layer makes",
                    "only a convolution or a pooling may: give that its `pad`",
                )
            inner = Message(layer.place, {**layer.fields, "pad": [padding.message("layer").integer("pad")]})
            renamed = [*bottoms[:index], *padding.words("bottom"), *bottoms[index + 1 :]]
            outer = Message(outer.place, {**outer.fields, "bottom": renamed, "layer": [inner]})
        for top in outer.words("top"):
            paddings.pop(top, None)
        if kind != _PADDING:
            kept.append(outer)
            continue
        if len(bottoms) != 1 or len(outer.words("top")) != 1:
            raise RetargetError(
                f"{layer.place}: layer '{layer.word('name')}' ({kind}) must have one bottom and one top",
                "write a padding layer for each blob",
            )
        paddings[outer.words("top")[0]] = outer
    return kept


def _from_v0(outer: Message) -> Message:
    """A V0 layer with the fields of V1; its type is that of today already."""
    layer = outer.message("layer")
    if "layer" not in outer:
        return outer
    kind = layer.word("type")
    if kind not in V0_TYPES:
        raise RetargetError(
            f"{layer.place}: layer '{layer.word('name')}' has the type '{kind}', which V0 does not know",
            did_you_mean(kind, V0_TYPES),
        )
    known = V0_TYPES[kind]
    fields: Fields = {
        "name": [layer.word("name")],
        "type": [known.type],
        **{name: outer.fields[name] for name in ("bottom", "top") if name in outer},
    }
    parameters = {_V0_RENAMED.get(name, name): layer.fields[name] for name in known.fields if name in layer}
    if parameters:
        fields[known.parameters] = [Message(layer.place, parameters)]
    transform = {new: layer.fields[name] for name, new in _V0_TRANSFORM.items() if name in layer}
    if transform:
        fields["transform_param"] = [Message(layer.place, transform)]
    if "hdf5_output_param" in layer:
        fields["hdf5_output_param"] = layer.fields["hdf5_output_param"]
    return Message(layer.place, fields)


# ---- V1


def _from_v1(layer: Message) -> Message:
    fields: Fields = {name: values for name, values in layer.fields.items() if name not in _V1_DROPPED}
    kind = _v1_type(layer)
    fields["type"] = [kind]
    if "param" in layer:  # names of weights that layers share
        fields["param"] = [Message(layer.place, {"name": [name]}) for name in layer.words("param")]
    if holder := _V1_TRANSFORMED.get(kind):
        own = layer.message(holder)
        moved = {name: own.fields[name] for name in ("scale", "mean_file", "crop_size", "mirror") if name in own}
        if moved:
            transform = layer.message("transform_param")
            fields["transform_param"] = [Message(transform.place, {**transform.fields, **moved})]
    return Message(layer.place, fields)


def _v1_type(layer: Message) -> str:
    written = layer.word("type")
    if written in V1_TYPES:
        return V1_TYPES[written][1]
    if written in _V1_NUMBERS:
        return _V1_NUMBERS[written]
    if any(written == name for _, name in V1_TYPES.values()):
        return written  # upgraded from V0, or written as today
    raise RetargetError(
        f"{layer.place}: layer '{layer.word('name')}' has the type '{written}', which V1 does not know",
        f'{did_you_mean(written, V1_TYPES)}; newer types are written as `layer {{ type: "…" }}`',
    )
