"""OpenCV's own Caffe reader as a second opinion, and the list of what it has otherwise than Caffe.

``FLAWS`` was found by holding OpenCV 4.14 and the reference in numpy against each other on nets of one layer, and the
tests hold it to that: each flaw must still show, and where none is listed the two must agree.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from retarget.compare import SNR_CAP, snr_db
from retarget.convert.caffe.net import Blob, Layer, Message, Net
from retarget.errors import Unsupported

if TYPE_CHECKING:
    from retarget.protocols import Array

CHILD = Path(__file__).with_name("opencv_child.py")
PATIENCE_S = 300
ROWS = ("DetectionOutput", "Proposal", "Python")
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


@dataclass(frozen=True)
class Opinion:
    """What OpenCV gave."""

    version: str
    outputs: Mapping[str, Blob]
    """By blob."""


def ask(net: Net, prototxt: Path, caffemodel: Path | None, feeds: Mapping[str, Blob]) -> Opinion:
    """OpenCV's outputs for ``feeds``. Raises ``Unsupported`` where it does not take the net, or breaks down over it."""
    wanted = makers(net)
    with TemporaryDirectory(prefix="opencv-") as folder:
        given, found = Path(folder) / "feeds.npz", Path(folder) / "outputs.npz"
        np.savez(given, *feeds.values())
        question = {
            "prototxt": str(prototxt),
            "caffemodel": "" if caffemodel is None else str(caffemodel),
            "inputs": list(feeds),
            "feeds": str(given),
            "outputs": str(found),
            "makers": wanted,
        }
        try:
            child = subprocess.run(
                [sys.executable, "-P", str(CHILD)],
                input=json.dumps(question),
                capture_output=True,
                encoding="utf-8",
                timeout=PATIENCE_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Unsupported(f"no answer in {PATIENCE_S} s") from error
        if child.returncode:
            words = child.stderr.strip().splitlines()
            raise Unsupported(words[-1] if child.returncode > 0 and words else f"it ended with {child.returncode}")
        reply = json.loads(child.stdout)
        if "error" in reply:
            raise Unsupported(reply["error"])
        with np.load(found, allow_pickle=False) as arrays:
            return Opinion(reply["version"], {blob: arrays[f"arr_{at}"] for at, blob in enumerate(net.outputs)})


def makers(net: Net) -> list[tuple[str, int, str]]:
    """Of each output: the layer that makes it last, which of its tops that is, and the top's name."""
    made = [_maker(net, blob) for blob in net.outputs]
    return [(layer.name, layer.tops.index(blob), blob) for layer, blob in zip(made, net.outputs, strict=True)]


def _maker(net: Net, blob: str) -> Layer:
    for layer in reversed(net.layers):
        if blob in layer.tops:
            return layer
    raise Unsupported(f"'{blob}' is an input as well as an output")


def agreement(net: Net, ours: Mapping[str, Blob], theirs: Mapping[str, Blob]) -> tuple[float, str]:
    """The least agreement of all outputs in decibels, and the blob where it is; detections as sets."""
    return min((_agreement(_maker(net, blob), ours[blob], theirs[blob]), blob) for blob in net.outputs)


def _agreement(maker: Layer, ours: Array, theirs: Array) -> float:
    if maker.type in ROWS:
        ours, theirs = sorted_rows(ours), sorted_rows(theirs)
    if ours.size != theirs.size:
        return -SNR_CAP
    # OpenCV has no blobs of fewer than two axes, and gives scores a second one.
    return snr_db(ours, theirs.reshape(ours.shape))


def sorted_rows(array: Array) -> Array:
    """Rows of detections in an order of their own, without those of zeros or -1 that say that nothing was found."""
    flat = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(-1, 1)
    flat = flat[np.any(flat != 0, axis=1) & ~np.all(flat[:, 1:] == -1, axis=1)] if flat.shape[1] > 1 else flat
    return flat[np.lexsort(flat.T)]


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
    "BN": _ABSENT,
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
        Flaw("three spatial axes break it down", _volume),
    ),
    "DepthwiseConvolution": _ABSENT,
    "DetectionOutput": (
        Flaw("does not know the defaults", _lacks("share_location", "background_label_id", "keep_top_k")),
        Flaw("takes priors without variances", _when(lambda p: p.flag("variance_encoded_in_target"))),
        Flaw("has no CORNER_SIZE", _when(lambda p: p.word("code_type") in ("CORNER_SIZE", "3"))),
        Flaw("has no net without a background", _when(lambda p: p.integer("background_label_id") < 0)),
    ),
    "DummyData": _ABSENT,
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
    "LSTMUnit": _ABSENT,
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
    "Parameter": _ABSENT,
    "Permute": (Flaw("needs every axis in order", _when(_gaps)),),
    "Pooling": (
        Flaw("does not read round_mode", _has("round_mode")),
        Flaw("has no STOCHASTIC", _when(lambda p: p.word("pool") in ("STOCHASTIC", "2"))),
    ),
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
    "Python": _ABSENT,
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
