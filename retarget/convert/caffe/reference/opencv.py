"""OpenCV's own Caffe reader as a second opinion, and the list of what it has otherwise than Caffe.

``FLAWS`` was found by holding OpenCV 4.14 and the reference in numpy against each other on nets of one layer, and the
tests hold it to that: each flaw must still show, and where none is listed the two must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retarget.convert.caffe.net import Blob, Layer, Message, Net
from retarget.errors import Unsupported

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds

THREADS = 2
ROWS = ("DetectionOutput", "Proposal")
"""Layers whose outputs are rows: OpenCV gives as many as there may be, those that it did not find all zeros."""


@dataclass(frozen=True)
class Flaw:
    """What OpenCV does otherwise than Caffe, and in which layers."""

    reason: str
    shows: Callable[[Layer, Net], bool] = lambda layer, net: True  # noqa: ARG005 - in each layer of the type


def flaws(net: Net) -> list[str]:
    """What OpenCV has otherwise in the layers of ``net``, as ``layer 'x' (Log): …``."""
    return [
        f"layer '{layer.name}' ({layer.type}): {flaw.reason}"
        for layer in net.layers
        for flaw in FLAWS.get(layer.type, ())
        if flaw.shows(layer, net)
    ]


class OpenCv:
    """``prototxt`` and its weights in OpenCV's Caffe reader. Raises ``Unsupported`` where it does not take them."""

    def __init__(self, net: Net, prototxt: Path, caffemodel: Path | None) -> None:
        import cv2

        self._cv2 = cv2
        self.version: str = cv2.__version__
        self._net = net
        try:
            self._read = cv2.dnn.readNetFromCaffe(str(prototxt), "" if caffemodel is None else str(caffemodel))
        except cv2.error as error:
            raise Unsupported(_words(error)) from error

    def run(self, feeds: Feeds) -> dict[str, Blob]:
        """The net's outputs, rows of zeros left out."""
        threads = self._cv2.getNumThreads()
        self._cv2.setNumThreads(THREADS)
        try:
            for name, feed in feeds.items():
                self._read.setInput(np.asarray(feed), name)
            makers = [self._maker(blob) for blob in self._net.outputs]
            found = self._read.forwardAndRetrieve(list(dict.fromkeys(name for name, _ in makers)))
        except self._cv2.error as error:
            raise Unsupported(_words(error)) from error
        finally:
            self._cv2.setNumThreads(threads)
        tops = dict(zip(dict.fromkeys(name for name, _ in makers), found, strict=True))
        outputs = {}
        for blob, (name, index) in zip(self._net.outputs, makers, strict=True):
            outputs[blob] = np.asarray(tops[name][index], np.float32)
        return outputs

    def _maker(self, blob: str) -> tuple[str, int]:
        """OpenCV's layer that makes ``blob`` last, and which of its outputs that is."""
        layer = next(layer for layer in reversed(self._net.layers) if blob in layer.tops)
        # A Convolution is taken apart into one a bottom, called as its top is.
        name = blob if layer.type == "Convolution" and self._read.getLayerId(blob) >= 0 else layer.name
        return name, 0 if name != layer.name else layer.tops.index(blob)


def rows(net: Net, blob: str) -> bool:
    """Whether ``blob`` holds detections: rows in no certain order, of which there may be fewer than there is room."""
    layer = next(layer for layer in reversed(net.layers) if blob in layer.tops)
    return layer.type in ROWS


def sorted_rows(array: Array) -> Array:
    """Rows of detections in an order of their own, without those of zeros or -1 that say that nothing was found."""
    flat = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(-1, 1)
    flat = flat[np.any(flat != 0, axis=1) & ~np.all(flat[:, 1:] == -1, axis=1)] if flat.shape[1] > 1 else flat
    return flat[np.lexsort(flat.T)]


def _words(error: Exception) -> str:
    """What OpenCV says, without the file and line of its own source."""
    lines = str(error).strip().splitlines()
    return lines[0].partition("error: ")[2] or lines[0] if lines else "no reason given"


def _has(*names: str) -> Callable[[Layer, Net], bool]:
    return lambda layer, net: any(name in _parameters(layer) for name in names)  # noqa: ARG005


def _lacks(*names: str) -> Callable[[Layer, Net], bool]:
    return lambda layer, net: any(name not in _parameters(layer) for name in names)  # noqa: ARG005


def _when(condition: Callable[[Message], bool]) -> Callable[[Layer, Net], bool]:
    return lambda layer, net: condition(_parameters(layer))  # noqa: ARG005


def _parameters(layer: Layer) -> Message:
    """The message of the layer's own parameters: the only one but those of training."""
    names = [name for name in layer.message.fields if name.endswith("_param") and name not in ("transform_param",)]
    return layer.message.message(names[-1]) if names else Message(layer.message.place)


def _volume(layer: Layer, net: Net) -> bool:  # noqa: ARG001
    return bool(layer.blobs) and layer.blobs[0].ndim > 4


def _gaps(parameters: Message) -> bool:
    order = parameters.integers("order")
    return sorted(order) != list(range(len(order)))


def _shared_norm(parameters: Message) -> bool:
    return parameters.flag("across_spatial", default=True) and not parameters.flag("channel_shared", default=True)


def _taken_by_none(layer: Layer, net: Net) -> bool:
    taken = {name for other in net.layers for name in other.bottoms}
    return not _parameters(layer).integers("slice_point") and any(top not in taken for top in layer.tops)


_ABSENT = (Flaw("there is none"),)
FLAWS: Mapping[str, Sequence[Flaw]] = {
    "ArgMax": _ABSENT,
    "Axpy": (Flaw("takes its bottoms for others"),),
    "BatchNorm": (Flaw("has no statistics of a batch", _when(lambda p: not p.flag("use_global_stats", default=True))),),
    "BatchReindex": _ABSENT,
    "Bias": _ABSENT,
    "Clip": _ABSENT,
    "Concat": (Flaw("does not read concat_dim", _has("concat_dim")),),
    "Convolution": (
        Flaw("does not read axis", _when(lambda p: p.integer("axis", 1) != 1)),
        Flaw("three spatial axes give sizes that differ from run to run", _volume),
    ),
    "Deconvolution": (
        Flaw("does not read dilation", _when(lambda p: any(each != 1 for each in p.integers("dilation")))),
        Flaw("has two spatial axes only", _volume),
    ),
    "DepthwiseConvolution": _ABSENT,
    "DetectionOutput": (
        Flaw("does not know the defaults", _lacks("share_location", "background_label_id", "keep_top_k")),
        Flaw("takes priors without variances", _when(lambda p: p.flag("variance_encoded_in_target"))),
        Flaw("has no CORNER_SIZE", _when(lambda p: p.word("code_type") in ("CORNER_SIZE", "3"))),
        Flaw("has no net without a background", _when(lambda p: p.integer("background_label_id") < 0)),
    ),
    "Embed": _ABSENT,
    "Im2col": _ABSENT,
    "InnerProduct": (Flaw("does not read transpose", _when(lambda p: p.flag("transpose"))),),
    "Interp": (
        Flaw("does not read shrink_factor", _has("shrink_factor")),
        Flaw("does not read pad_beg and pad_end", _when(lambda p: bool(p.integer("pad_beg") or p.integer("pad_end")))),
        Flaw("takes one bottom only", lambda layer, net: len(layer.bottoms) > 1),  # noqa: ARG005
    ),
    "LRN": (
        Flaw("does not know the default of alpha", _lacks("alpha")),
        Flaw(
            "does not read k",
            _when(lambda p: p.number("k", 1.0) != 1 and p.word("norm_region") not in ("WITHIN_CHANNEL", "1")),
        ),
    ),
    "LSTM": (Flaw("is of another layout, and has no cont"),),
    "Log": (
        Flaw(
            "does not read base, scale and shift as Caffe does",
            _when(lambda p: (p.number("base", -1), p.number("scale", 1), p.number("shift")) != (-1, 1, 0)),
        ),
    ),
    "MVN": (
        Flaw(
            "adds eps to the variance, not to the deviation",
            _when(lambda p: p.number("eps", 1e-9) > 1e-7 and p.flag("normalize_variance", default=True)),
        ),
    ),
    "Normalize": (Flaw("has no scale a channel for a norm over all", _when(_shared_norm)),),
    "Permute": (Flaw("needs every axis in order", _when(_gaps)),),
    "Pooling": (Flaw("does not read round_mode", _has("round_mode")),),
    "PriorBox": (
        Flaw("clips where clip is not given", _lacks("clip")),
        Flaw("does not read img_size", _has("img_size", "img_h", "img_w")),
        Flaw("does not know the default of variance", _lacks("variance")),
        Flaw(
            "does not cut sizes to whole pixels",
            _when(lambda p: any(size % 1 for size in (*p.numbers("min_size"), *p.numbers("max_size")))),
        ),
    ),
    "PriorBoxClustered": (
        Flaw("clips where clip is not given", _lacks("clip")),
        Flaw("does not read img_size", _has("img_size", "img_h", "img_w")),
        Flaw("does not know the default of variance", _lacks("variance")),
    ),
    "Proposal": (Flaw("does not read min_size", _when(lambda p: p.integer("min_size", 16) > 1)),),
    "RNN": _ABSENT,
    "Reduction": _ABSENT,
    "Reorg": (Flaw("has a stride of 2 only", _when(lambda p: p.integer("stride") != 2 or p.flag("reverse"))),),
    "Reshape": (
        Flaw(
            "has no negative axis and no num_axes of 0",
            _when(lambda p: p.integer("axis") < 0 or p.integer("num_axes", -1) == 0),
        ),
    ),
    "SPP": _ABSENT,
    "Scale": (
        Flaw("has no single factor", _when(lambda p: p.integer("num_axes", 1) == 0)),
        Flaw(
            "does not add terms to a product of two bottoms",
            lambda layer, net: len(layer.bottoms) > 1 and _parameters(layer).flag("bias_term"),  # noqa: ARG005
        ),
    ),
    "Slice": (
        Flaw("does not read slice_dim", _has("slice_dim")),
        Flaw("counts only the parts that a layer takes", _taken_by_none),
    ),
    "Swish": (Flaw("does not read beta", _when(lambda p: p.number("beta", 1.0) != 1)),),
    "Threshold": _ABSENT,
    "Tile": _ABSENT,
    "Upsample": _ABSENT,
}
