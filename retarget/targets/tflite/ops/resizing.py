"""Resize; DepthToSpace and SpaceToDepth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from retarget.targets.interpolation import CLOSE, Along, How, Scaled, along, requested
from retarget.targets.tflite.call import Call, Int8, Op
from retarget.targets.tflite.layout import Layout, Way
from retarget.targets.tflite.ops import interpolation
from retarget.targets.tflite.ops.convolution import IMAGE, LINE, VOLUME
from retarget.targets.tflite.ops.windows import kept
from retarget.targets.tflite.program import Constant, Options
from retarget.targets.tflite.values import Value

if TYPE_CHECKING:
    pass


def resize(call: Call) -> Value:
    value, found = call.value(0), _along(call)
    shape = tuple(each.axis.out for each in found)
    changed = [axis for axis, each in enumerate(found) if not each.is_nothing]
    made = value
    if changed and changed[0] > 1 and LINE <= value.rank <= VOLUME and call.layout is Layout.LAST:
        made = _over(call, value, found)
    else:
        for axis in changed:
            made = _one(call, made, axis, found[axis])
    masks = [each.inside for each in found]
    if all(mask is None for mask in masks):
        return made
    inside = np.ones(shape, bool)
    for axis, mask in enumerate(masks):
        if mask is not None:
            inside &= mask.reshape([-1 if other == axis else 1 for other in range(len(found))])
    beyond = call.attributes.get_float("extrapolation_value", 0.0)
    return call.emit("SELECT_V2", [inside, made, beyond], shape, np.float32, Options("SelectV2Options"))


# ---- what the node says


def _along(call: Call) -> list[Along]:
    """What happens along each axis of operand 0."""
    how = How.of(call.node)
    regions = call.array(1, "the region").reshape(-1).tolist() if how.coordinates == "tf_crop_and_resize" else None
    sizes = call.numbers(3, "the size") if call.has(3) else None
    scales = None if sizes else call.array(2, "the scale").reshape(-1).tolist()
    return [along(axis, how) for axis in requested(call.node, call.operand(0).shape, sizes, scales, regions)]


# ---- writing


def _over(call: Call, value: Value, found: Sequence[Along]) -> Value:
    """Along the axes behind the channels, which are last; of a volume along the last two, and then the first."""
    batch, channels, *spatial = value.shape
    outs = [each.axis.out for each in found[2:]]
    if value.rank == LINE:
        made = _plane(call, _turned(call, value, (batch, channels, 1, *spatial)), (_whole(1), found[2]))
        return _turned(call, made, (batch, channels, *outs))
    if value.rank == IMAGE:
        return _plane(call, value, (found[2], found[3]))
    planes = _turned(call, value, (batch * spatial[0], channels, *spatial[1:]))
    planes = _plane(call, planes, (found[3], found[4]))
    size = math.prod(outs[1:])
    made = _plane(call, _turned(call, planes, (batch, channels, spatial[0], size)), (found[2], _whole(size)))
    return _turned(call, made, (batch, channels, *outs))


def _whole(size: int) -> Along:
    """Of an axis that stays as it is."""
    return Along(Scaled(size, size, 1.0))


def _plane(call: Call, value: Value, found: Sequence[Along]) -> Value:
    """Along the last two axes of four: by a kernel where one does the same, else along one axis after the other."""
    if all(each.is_nothing for each in found):
        return value
    shape = (*value.shape[:2], *(each.axis.out for each in found))
    for corners, half in ((False, False), (False, True), (True, False)):
        if all(_agrees(each, corners=corners, half=half) for each in found):
            is_nearest = all(each.matrix is None for each in found)
            code, name = ("NEAREST_NEIGHBOR", "NearestNeighbor") if is_nearest else ("BILINEAR", "Bilinear")
            fields = {"alignCorners": corners, "halfPixelCenters": half}
            # Which elements are the nearest may agree by chance, for these sizes alone.
            options = Options(f"Resize{name}Options", fields, tuple(value.shape[2:]) if is_nearest else ())
            return call.emit(f"RESIZE_{code}", [value, call.ints(shape[2:])], shape, options=options)
    for axis, each in enumerate(found, start=2):
        value = value if each.is_nothing else _one(call, value, axis, each)
    return value


def _agrees(each: Along, *, corners: bool, half: bool) -> bool:
    """Whether TFLite's kernel does the same along this axis."""
    if each.is_nothing:
        return True
    if each.indices is not None:
        own = interpolation.kernel_nearest(each.axis, align_corners=corners, half_pixel=half)
        return bool(np.array_equal(own, each.indices))
    assert each.matrix is not None
    weights = interpolation.kernel_linear(each.axis, align_corners=corners, half_pixel=half)
    return bool(np.allclose(weights, each.matrix, rtol=0, atol=CLOSE))


def _one(call: Call, value: Value, axis: int, each: Along) -> Value:
    """Along one axis, by a GATHER or a product with a constant matrix."""
    shape = (*value.shape[:axis], each.axis.out, *value.shape[axis + 1 :])
    place = call.position(axis, value.rank)
    if each.indices is not None:
        options = Options("GatherOptions", {"axis": place})
        return kept(call, "GATHER", value, [call.ints([int(index) for index in each.indices])], shape, options)
    assert each.matrix is not None
    matrix = Constant.of(each.matrix.astype(np.float32))
    stored = call.placed(value.shape)
    before, size, after = math.prod(stored[:place]), stored[place], math.prod(stored[place + 1 :])
    if after == 1:
        rows = _turned(call, value, (before, size))
        options = Options("FullyConnectedOptions")
        weight = call.lowering.constant(matrix)
        made = call.emit("FULLY_CONNECTED", [rows, weight, None], (before, each.axis.out), options=options)
    else:
        columns = _turned(call, value, _stored_as(call, before, size, after))
        left = call.lowering.constant(matrix.reshaped((1, *matrix.shape)))
        wide = _stored_as(call, before, each.axis.out, after)
        made = call.emit("BATCH_MATMUL", [left, columns], wide, np.float32, Options("BatchMatMulOptions"))
    return _turned(call, made, shape)


def _stored_as(call: Call, *stored: int) -> tuple[int, int, int]:
    """The shape, in ONNX's order of axes, of what is stored as ``stored``."""
    first, second, third = stored
    return (first, second, third) if call.layout is Layout.FIRST else (first, third, second)


def _turned(call: Call, value: Value, shape: Sequence[int]) -> Value:
    """What is stored of ``value`` with other axes."""
    if tuple(shape) == value.shape:
        return value
    return kept(call, "RESHAPE", value, [call.ints(call.placed(shape))], shape, Options("ReshapeOptions"))


def _way(node: ir.Node) -> Way:
    """Channels last for the kernels that resize images; others have each axis on its own."""
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    rank = 0 if shape is None else len(shape)
    if not LINE <= rank <= VOLUME:
        return Way.FIRST
    axes = [axis % rank for axis in node.attributes.get_ints("axes") or range(rank)]
    factors = [None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs[2:4]]
    scales = next((each.numpy().reshape(-1) for each in factors if each is not None and each.size), None)
    result = node.outputs[0].shape
    if shape is None or result is None:
        return Way.FIRST
    if scales is None:
        # Sizes that are known when the file is written, and what they come to by now.
        return Way.LAST if shape[:2] == result[:2] else Way.FIRST
    kept_ones = scales if factors[0] is not None and factors[0].size else None
    for axis, factor in zip(axes, scales, strict=True):
        same = factor == 1 if kept_ones is not None else factor == shape[axis]
        if axis < 2 and not same:
            return Way.FIRST
    return Way.LAST


# ---- blocks


def depth_to_space(call: Call) -> Value:
    value, block = call.value(0), call.attributes.get_int("blocksize")
    batch, channels, height, width = value.shape
    depth = channels // block**2
    shape = (batch, depth, height * block, width * block)
    if call.attributes.get_string("mode") == "CRD":
        # Stored: [rows, width, depth, block, block] to [rows, block, width, block, depth].
        rows = batch * height
        apart = _turned(call, value, (rows, block, width, depth, block))
        perm = call.ints([0, 3, 1, 4, 2])
        placed = kept(call, "TRANSPOSE", apart, [perm], (rows, depth, block, width, block), Options("TransposeOptions"))
        return _turned(call, placed, shape)
    return laid_out(call, value, (block, block))


def laid_out(call: Call, blocks: Value, strides: Sequence[int]) -> Value:
    """[N, rows * columns * C, H, W] as [N, C, H * rows, W * columns]."""
    batch, channels, height, width = blocks.shape
    rows, columns = strides
    depth = channels // (rows * columns)
    shape = (batch, depth, height * rows, width * columns)
    # LiteRT's reference kernels lack a DEPTH_TO_SPACE of integers, and all kernels one of 16 bits.
    if rows == columns and rows > 1 and not call.int8:
        return kept(call, "DEPTH_TO_SPACE", blocks, [], shape, Options("DepthToSpaceOptions", {"blockSize": rows}))
    if rows > 1:
        # Stored: [lines, width, rows, columns * C] to [lines, rows, width, columns * C].
        apart = (batch * height, columns * depth, width, rows)
        blocks = kept(call, "RESHAPE", blocks, [call.ints(call.placed(apart))], apart, Options("ReshapeOptions"))
        turned = (batch * height, columns * depth, rows, width)
        blocks = kept(call, "TRANSPOSE", blocks, [call.ints([0, 2, 1, 3])], turned, Options("TransposeOptions"))
    if blocks.shape == shape:
        return blocks
    return kept(call, "RESHAPE", blocks, [call.ints(call.placed(shape))], shape, Options("ReshapeOptions"))


def space_to_depth(call: Call) -> Value:
    value, block = call.value(0), call.attributes.get_int("blocksize")
    batch, channels, height, width = value.shape
    shape = (batch, channels * block**2, height // block, width // block)
    return call.emit("SPACE_TO_DEPTH", [value], shape, options=Options("SpaceToDepthOptions", {"blockSize": block}))


# ---- integers


def _integers(call: Call) -> Int8:
    """Elements that are moved stay what they are; sums are rounded to the scale of the operand."""
    found = _along(call)
    if any(each.inside is not None for each in found):
        return "no"
    if all(each.matrix is None for each in found):
        return "moves"
    if call.lowering.job.precision == "int16x8":
        # RESIZE_BILINEAR takes weights of 10 bits.
        return "no"
    source = call.operand(0)
    same = not isinstance(source, Constant) and source.quantization == call.quantization
    options = itertools.product((False, True), (False, True))
    fits = any(
        all(_agrees(each, corners=corners, half=half) for each in found[2:])
        for corners, half in options
        if not (corners and half)
    )
    is_image = len(found) == IMAGE and found[0].is_nothing and found[1].is_nothing
    return "computes" if same and fits and is_image else "no"


OPS: Mapping[str, Op] = {
    "DepthToSpace": Op(depth_to_space, Way.LAST, int8="moves"),
    "Resize": Op(resize, _way, operands=(0,), dtypes=frozenset({"float32", "int32"}), int8=_integers),
    "SpaceToDepth": Op(space_to_depth, Way.LAST, int8="moves", int16=False),
}
