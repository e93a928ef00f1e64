"""Rows or columns of pixels that are written several times → Resize to the nearest pixel.

Given::   Reshape(Tile(Unsqueeze(x, 3), [1, 1, 1, 2, 1]), [N, C, 2H, W])     # Keras's UpSampling2D, once an axis
Result::  Resize(x, scales=[1, 1, 2, 1])

A Transpose may stand between, as tf2onnx leaves them, or in front: Resize then stands in front of it. Two Resizes that
meet so become one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from retarget.passes.rewriting import (
    Rewriting,
    Rule,
    Verdict,
    constant,
    dims,
    initializer,
    insert,
    ints,
    node,
    own,
    producer,
    rank,
    replace,
)

_NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


class FuseRepeat(Rewriting):
    """See the module."""

    def rules(self) -> Mapping[str, Rule]:
        return {"Reshape": _repeat}


def _repeat(reshape: ir.Node) -> Verdict:
    between = producer(reshape.inputs[0], "Transpose")
    tile = producer((between or reshape).inputs[0], "Tile")
    split = producer(tile.inputs[0], "Unsqueeze") if tile is not None else None
    if tile is None or split is None:
        return False
    x, size = split.inputs[0], rank(split.inputs[0])
    axes, counts = ints(split.inputs[1]), ints(tile.inputs[1])
    if x is None or size is None or axes is None or len(axes) != 1 or counts is None or len(counts) != size + 1:
        return False
    at = axes[0] % (size + 1)
    perm = _perm(between, size + 1)
    place = perm.index(at)
    if at == 0 or place == 0 or perm[place - 1] != at - 1 or any(n != 1 for i, n in enumerate(counts) if i != at):
        return False
    if not own(tile, split) or not own(between or reshape, tile) or (between is not None and not own(reshape, between)):
        return "what is written several times is read elsewhere too"
    kept = [axis - (axis > at) for axis in perm if axis != at]
    if not _only_merges(reshape, x, at - 1, counts[at], kept):
        return "it is given another shape as well"
    scales = np.ones(size, np.float32)
    scales[at - 1] = counts[at]
    reader, front = split, producer(x, "Transpose")
    if front is not None and front.inputs[0] is not None and _only_read_by(x, split):
        first = _perm(front, size)
        reader, x = front, front.inputs[0]
        scales, kept = scales[[first.index(axis) for axis in range(size)]], [first[axis] for axis in kept]
    before = producer(x, "Resize")
    earlier = _repeats(before)
    if before is not None and earlier is not None and _only_read_by(x, reader):
        x, scales = before.inputs[0], scales * earlier
    made = node("Resize", [x, None, initializer(reshape, f"{reshape.name}_scales", scales)], _NEAREST, like=reshape)
    if kept != sorted(kept):
        out = dims(reshape.outputs[0]) or ()
        resized = insert(reshape, made)
        resized.type = reshape.outputs[0].type
        resized.shape = ir.Shape([out[kept.index(axis)] for axis in range(size)])
        made = node("Transpose", [resized], {"perm": kept}, like=reshape)
    replace(reshape, made)
    return True


def _only_read_by(value: ir.Value, reader: ir.Node) -> bool:
    """Whether ``reader`` alone takes the numbers of ``value``: others may ask for its shape, which will be folded."""
    return not value.is_graph_output() and all(user is reader or user.op_type == "Shape" for user, _ in value.uses())


def _perm(transpose: ir.Node | None, size: int) -> list[int]:
    return list(range(size)) if transpose is None else list(transpose.attributes.get_ints("perm", range(size)[::-1]))


def _only_merges(reshape: ir.Node, x: ir.Value, axis: int, count: int, kept: list[int]) -> bool:
    """Whether the shape that ``reshape`` gives is that of ``x``, ``axis`` times ``count``, in the order ``kept``."""
    sizes, found = dims(x), dims(reshape.outputs[0])
    if sizes is None or found is None or len(found) != len(sizes) or not isinstance(sizes[axis], int):
        return False
    wanted = [size * count if at == axis and isinstance(size, int) else size for at, size in enumerate(sizes)]
    wanted = [wanted[at] for at in kept]
    # As many elements go out as came in: where all sizes but one are equal, that one is too.
    unknown = sum(not isinstance(size, int) for size in wanted)
    return unknown <= 1 and all(
        not isinstance(size, int) or size == there for size, there in zip(wanted, found, strict=True)
    )


def _repeats(resize: ir.Node | None) -> np.ndarray | None:
    """The scales of a Resize that this pass made."""
    if resize is None or len(resize.inputs) != 3 or resize.inputs[1] is not None:
        return None
    if any(resize.attributes.get_string(name, "") != value for name, value in _NEAREST.items()):
        return None
    scales = constant(resize.inputs[2])
    return None if scales is None or (scales != np.rint(scales)).any() else scales
