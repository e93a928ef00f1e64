"""InnerProduct and Embed (``inner_product_layer``, ``embed_layer``)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retarget.convert.caffe.net import Blob, Layer
from retarget.convert.caffe.reference.checks import canonical, narrow, positive, shaped, weights, whole, wide


def inner_product(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """All axes from ``axis`` on, K, become one. Weights [num_output, K], or [K, num_output] with ``transpose``."""
    blob = inputs[0]
    parameters = layer.message.message("inner_product_param")
    outputs = positive(layer, parameters, "num_output")
    at = canonical(layer, parameters.integer("axis", 1), blob.ndim)
    size = int(np.prod(blob.shape[at:]))
    bias = parameters.flag("bias_term", default=True)
    blobs = weights(layer, 2 if bias else 1)
    if parameters.flag("transpose"):
        matrix = shaped(layer, blobs[0], (size, outputs), "weights")
    else:
        matrix = shaped(layer, blobs[0], (outputs, size), "weights").T
    top = wide(blob).reshape(-1, size) @ matrix
    if bias:
        top += shaped(layer, blobs[1], (outputs,), "biases")
    return [narrow(top).reshape(*blob.shape[:at], outputs)]


def embed(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Rows of a table [input_dim, num_output] by the indices that the input holds."""
    parameters = layer.message.message("embed_param")
    outputs, rows = positive(layer, parameters, "num_output"), positive(layer, parameters, "input_dim")
    bias = parameters.flag("bias_term", default=True)
    blobs = weights(layer, 2 if bias else 1)
    top = shaped(layer, blobs[0], (rows, outputs), "weights")[whole(layer, inputs[0], rows, "indices")]
    if bias:
        top = top + shaped(layer, blobs[1], (outputs,), "biases")
    return [narrow(top)]
