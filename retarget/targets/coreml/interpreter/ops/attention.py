"""Attention as one operation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from retarget.targets.coreml.interpreter.call import Call, OpFunction, Tensor


def scaled_dot_product_attention(call: Call) -> Tensor:
    query, key, value = call.array("query"), call.array("key"), call.array("value")
    scores = query @ key.swapaxes(-1, -2) / np.float32(np.sqrt(query.shape[-1]))
    mask = call.optional("attn_mask")
    if mask is not None:
        scores = np.where(mask, scores, np.float32(-np.inf)) if mask.dtype == np.bool_ else scores + mask
    weights: Tensor = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return weights @ value


OPS: Mapping[str, OpFunction] = {"scaled_dot_product_attention": scaled_dot_product_attention}
