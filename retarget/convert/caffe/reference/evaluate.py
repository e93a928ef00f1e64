"""A net layer by layer: the table from a layer's type to the function that evaluates it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from retarget.convert.caffe.net import Blob, Layer, Net
from retarget.convert.caffe.reference import (
    activation,
    constants,
    convolution,
    detection,
    joining,
    normalization,
    pooling,
    product,
    recurrent,
    regions,
    resizing,
    shaping,
)
from retarget.convert.caffe.reference.checks import wrong
from retarget.errors import did_you_mean

Function: TypeAlias = Callable[[Layer, Sequence[Blob]], list[Blob]]


@dataclass(frozen=True)
class Kind:
    """A type of layer: what evaluates it, and how many bottoms it takes."""

    function: Function
    least: int = 1
    most: int | None = 1
    """None: any number."""


_ANY = None
LAYERS: Mapping[str, Kind] = {
    "AbsVal": Kind(activation.simple(np.abs)),
    "ArgMax": Kind(shaping.arg_max),
    "Axpy": Kind(normalization.axpy, 3, 3),
    "BN": Kind(normalization.bn),
    "BNLL": Kind(activation.simple(activation.bnll)),
    "BatchNorm": Kind(normalization.batch_norm),
    "BatchReindex": Kind(joining.batch_reindex, 2, 2),
    "Bias": Kind(normalization.bias, 1, 2),
    "Clip": Kind(activation.clip),
    "Concat": Kind(joining.concat, 1, _ANY),
    "Convolution": Kind(convolution.convolution, 1, _ANY),
    "ConvolutionDepthwise": Kind(convolution.depthwise, 1, _ANY),
    "Crop": Kind(joining.crop, 2, 2),
    "Deconvolution": Kind(convolution.deconvolution, 1, _ANY),
    "DepthwiseConvolution": Kind(convolution.depthwise, 1, _ANY),
    "DetectionOutput": Kind(detection.detection_output, 3, 3),
    "Dropout": Kind(activation.dropout),
    "DummyData": Kind(constants.dummy_data, 0, 0),
    "ELU": Kind(activation.elu),
    "Eltwise": Kind(joining.eltwise, 2, _ANY),
    "Embed": Kind(product.embed),
    "Exp": Kind(activation.exp),
    "Flatten": Kind(shaping.flatten),
    "Im2col": Kind(convolution.im2col),
    "InnerProduct": Kind(product.inner_product),
    "Interp": Kind(resizing.interp, 1, 2),
    "LRN": Kind(normalization.lrn),
    "LSTM": Kind(recurrent.lstm, 2, 5),
    "LSTMUnit": Kind(recurrent.lstm_unit, 3, 3),
    "Log": Kind(activation.log),
    "MVN": Kind(normalization.mvn),
    "Mish": Kind(activation.simple(activation.mish)),
    "Normalize": Kind(normalization.normalize),
    "PReLU": Kind(activation.prelu),
    "PSROIPooling": Kind(regions.psroi_pooling, 2, 2),
    "Parameter": Kind(constants.parameter, 0, 0),
    "Permute": Kind(shaping.permute),
    "Pooling": Kind(pooling.pooling),
    "Power": Kind(activation.power),
    "PriorBox": Kind(detection.prior_box, 1, 2),
    "PriorBoxClustered": Kind(detection.prior_box_clustered, 1, 2),
    "Proposal": Kind(regions.proposal, 3, 3),
    "Python": Kind(regions.python, 1, _ANY),
    "RNN": Kind(recurrent.rnn, 2, 4),
    "ROIPooling": Kind(regions.roi_pooling, 2, 2),
    "ReLU": Kind(activation.relu),
    "ReLU6": Kind(activation.relu6),
    "Reduction": Kind(shaping.reduction),
    "Reorg": Kind(shaping.reorg),
    "Reshape": Kind(shaping.reshape),
    "SPP": Kind(pooling.spp),
    "Scale": Kind(normalization.scale, 1, 2),
    "ShuffleChannel": Kind(shaping.shuffle_channel),
    "Sigmoid": Kind(activation.simple(activation.logistic)),
    "Silence": Kind(joining.silence, 1, _ANY),
    "Slice": Kind(joining.slice_),
    "Softmax": Kind(activation.softmax),
    "Split": Kind(joining.split),
    "Swish": Kind(activation.swish),
    "TanH": Kind(activation.simple(np.tanh)),
    "Threshold": Kind(activation.threshold),
    "Tile": Kind(shaping.tile),
    "Upsample": Kind(resizing.upsample, 1, 2),
}


def check(net: Net) -> None:
    """Raise ``RetargetError`` for a layer that is not known or whose wires cannot be right."""
    for layer in net.layers:
        kind = LAYERS.get(layer.type)
        if kind is None:
            raise wrong(layer, "no reference for this type of layer", did_you_mean(layer.type, LAYERS))
        count = len(layer.bottoms)
        if count < kind.least or (kind.most is not None and count > kind.most):
            wanted = str(kind.least) if kind.most == kind.least else f"{kind.least} to {kind.most or 'any number of'}"
            raise wrong(layer, f"takes {wanted} bottoms, not {count}")


def evaluate(net: Net, feeds: Mapping[str, Blob]) -> dict[str, Blob]:
    """The net's outputs by the names of their blobs. What no later layer takes is let go at once."""
    check(net)
    waiting = Counter(name for layer in net.layers for name in layer.bottoms)
    waiting.update(net.outputs)
    blobs = dict(feeds)
    for layer in net.layers:
        for name in layer.bottoms:
            if name not in blobs:
                raise wrong(layer, f"takes '{name}', which no layer before it makes")
        tops = _evaluate_layer(layer, [blobs[name] for name in layer.bottoms])
        for name in layer.bottoms:
            waiting[name] -= 1
            if not waiting[name]:
                del blobs[name]
        blobs.update({name: top for name, top in zip(layer.tops, tops, strict=True) if waiting[name]})
    return {name: blobs[name] for name in net.outputs}


def _evaluate_layer(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    try:
        # Caffe lets numbers overflow as well.
        with np.errstate(all="ignore"):
            tops = LAYERS[layer.type].function(layer, inputs)
    except (MemoryError, OverflowError, ValueError) as error:
        # Sizes beyond what an array may have: numpy's own words say which.
        raise wrong(layer, f"cannot be computed ({str(error) or type(error).__name__})") from error
    if len(tops) != len(layer.tops):
        raise wrong(layer, f"makes {len(tops)} tops, not {len(layer.tops)}")
    return tops
