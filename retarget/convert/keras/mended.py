"""What Keras 3 gets wrong, or writes out at length, when it is traced for open sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from retarget.convert.keras.framework import generation
from retarget.convert.tensorflow.framework import tf


@contextlib.contextmanager
def mended(keras: ModuleType) -> Iterator[None]:
    """Trace models in this.

    ``TimeDistributed`` of Keras 3 repeats its layer for each step where their number is fixed; where it is open, it
    takes the batch for it (seen in 3.15). The layer called once, batch and steps as one axis, is right for both.
    """
    if generation(keras) == 2:
        yield
        return
    layer = keras.layers.TimeDistributed
    call = layer.call
    layer.call = _time_distributed
    try:
        yield
    finally:
        layer.call = call


def _time_distributed(self: Any, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
    keywords: dict[str, Any] = {}
    if self.layer._call_has_mask_arg and mask is not None:
        keywords["mask"] = tf.reshape(mask, [-1, *_sizes(mask)[2:]])
    if self.layer._call_has_training_arg:
        keywords["training"] = training
    outer = _sizes(inputs)[:2]
    result = self.layer.call(tf.reshape(inputs, [-1, *_sizes(inputs)[2:]]), **keywords)
    return tf.reshape(result, [*outer, *_sizes(result)[1:]])


def _sizes(tensor: Any) -> list[Any]:
    """The size of each dimension: a number where it is fixed."""
    open_sizes = tf.shape(tensor)
    return [open_sizes[axis] if size is None else size for axis, size in enumerate(tensor.shape)]
