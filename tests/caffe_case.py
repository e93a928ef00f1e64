"""A Caffe net of one layer to be tested with, and how one is spelled: ``caffe_cases`` has the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    "pooling_stochastic", "pooling_stochastic_negative",
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


def one(name: str, type_: str, parameters: str = "", *blobs: Drawn, data: Drawn = DATA) -> Case:
    return Case(name, type_, layer(type_, parameters), {"data": data}, blobs)


def many(
    name: str,
    type_: str,
    parameters: str,
    inputs: Mapping[str, Drawn],
    *blobs: Drawn,
    tops: Sequence[str] = ("out",),
) -> Case:
    return Case(name, type_, layer(type_, parameters, tuple(inputs), tops), inputs, blobs)
