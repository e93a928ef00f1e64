"""How each type of Caffe's layers is lowered to ONNX: a module for each family, and the table of all."""

from __future__ import annotations

from retarget.convert.caffe.build import Lowering
from retarget.convert.caffe.layers import (
    activation,
    arithmetic,
    convolution,
    detection,
    normalization,
    pooling,
    proposals,
    recurrent,
    regions,
    resampling,
    shape,
)

FAMILIES = (
    convolution,
    pooling,
    activation,
    normalization,
    arithmetic,
    shape,
    recurrent,
    detection,
    proposals,
    regions,
    resampling,
)

LAYERS: dict[str, Lowering] = {
    layer_type: lowering for family in FAMILIES for layer_type, lowering in family.LAYERS.items()
}
"""Type as it stands in a prototxt to its lowering."""
