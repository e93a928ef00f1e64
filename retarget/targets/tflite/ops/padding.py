"""Pad in its modes, and CenterCropPad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from retarget.targets.pads import Pair, of_center_crop_pad, of_pad
from retarget.targets.tflite.call import Call, Int8, Op
from retarget.targets.tflite.ops.parts import around, cut, three, up_to
from retarget.targets.tflite.ops.shape import reshaped
from retarget.targets.tflite.program import Codes, Constant, Options, Quantization, Tensor
from retarget.targets.tflite.values import TYPES, Operand, Refusal, Value

PADDED_AXES = 5
"""PAD and PADV2 take no more."""


def pad(call: Call) -> Operand:
    operand = call.operand(0)
    axes = call.numbers(3, "the axes") if call.has(3) else None
    pairs = of_pad(len(operand.shape), call.numbers(1, "the padding"), axes)
    inside = _cropped(call, operand, pairs)
    fronts, backs = [max(front, 0) for front, _ in pairs], [max(back, 0) for _, back in pairs]
    mode = call.attributes.get_string("mode", "constant")
    if mode == "constant":
        return _framed(call, inside, fronts, backs, _value(call))
    return _continued(call, inside, fronts, backs, mode)


def center_crop_pad(call: Call) -> Operand:
    operand = call.operand(0)
    wanted, rank = call.numbers(1, "the shape"), len(operand.shape)
    axes = [axis % rank for axis in call.attributes.get_ints("axes", range(rank))]
    pairs = of_center_crop_pad(rank, axes, [operand.shape[axis] for axis in axes], wanted)
    inside = _cropped(call, operand, pairs)
    fronts, backs = [max(front, 0) for front, _ in pairs], [max(back, 0) for _, back in pairs]
    return _framed(call, inside, fronts, backs, Constant.of(np.zeros((), operand.dtype)))


def _cropped(call: Call, operand: Operand, pairs: Sequence[Pair]) -> Operand:
    """``operand`` without what negative padding cuts off."""
    cuts: dict[int, slice] = {}
    for axis, (front, back) in enumerate(pairs):
        if min(front, back) < 0:
            cuts[axis] = slice(max(-front, 0), back if back < 0 else None)
    return cut(call, operand, cuts)


def _value(call: Call) -> Constant:
    """What is padded with, of no axes."""
    if call.has(2):
        return call.fixed(2, "the value to pad with").reshaped(())
    return Constant.of(np.zeros((), call.operand(0).dtype))


def _framed(call: Call, operand: Operand, fronts: Sequence[int], backs: Sequence[int], value: Constant) -> Operand:
    """``operand`` with ``value`` around it."""
    pads = list(zip(fronts, backs, strict=True))
    shape = tuple(size + front + back for size, (front, back) in zip(operand.shape, pads, strict=True))
    if shape == operand.shape:
        return operand
    if 0 in operand.shape:
        return Constant.of(np.full(shape, value.array()))
    if len(shape) <= PADDED_AXES:
        placed = list(zip(call.placed(fronts), call.placed(backs), strict=True))
        return _pad(call, operand, placed, shape, value)
    for axis, sides in enumerate(pads):
        if any(sides):
            to = (*operand.shape[:axis], shape[axis], *operand.shape[axis + 1 :])
            framed = _pad(call, around(call, operand, axis), [(0, 0), sides, (0, 0)], three(to, axis), value)
            operand = reshaped(call, framed, to)
    return operand


def _pad(
    call: Call, operand: Operand, placed: Sequence[tuple[int, int]], shape: Sequence[int], value: Constant
) -> Value:
    if not value.array().any():
        return call.emit("PAD", [operand, _pairs(call, placed)], shape, options=Options("PadOptions"))
    filler = call.lowering.codes(_codes(value, call.moved)) if call.int8 else value
    return call.emit("PADV2", [operand, _pairs(call, placed), filler], shape, options=Options("PadV2Options"))


def _pairs(call: Call, placed: Sequence[tuple[int, int]]) -> Tensor:
    return call.lowering.constant(Constant.of(np.array(placed, np.int32)))


def _codes(value: Constant, quantization: Quantization) -> Codes:
    """The integer that stands for ``value``: the nearest that there is."""
    (scale,), (zero_point,) = quantization.scales, quantization.zero_points
    code = np.rint(np.float32(value.array().item()) / np.float32(scale)) + zero_point
    return Codes(Constant.of(np.clip(code, -128, 127).astype(np.int8)), quantization)


def _integers(call: Call) -> Int8:
    """Whether an integer stands for what is padded with, or its rounding is what follows anyway."""
    operand = call.operand(0)
    if call.attributes.get_string("mode", "constant") != "constant":
        return "moves"
    if not isinstance(operand, Value) or operand.quantization is None:
        return "no"
    value = _value(call)
    if call.lowering.job.precision == "int16x8":
        return "no" if value.array().any() else "moves"
    codes = _codes(value, operand.quantization)
    (scale,), (zero_point,) = operand.quantization.scales, operand.quantization.zero_points
    is_exact = np.float32(codes.integers.array().item() - zero_point) * np.float32(scale) == value.array()
    return "moves" if is_exact or call.quantization == operand.quantization else "no"


def _continued(call: Call, operand: Operand, fronts: Sequence[int], backs: Sequence[int], mode: str) -> Operand:
    """``operand`` with what ``mode`` makes of its own elements around it."""
    if not any((*fronts, *backs)):
        return operand
    if 0 in operand.shape:
        raise Refusal(f"mode={mode}: there is nothing to pad with")
    pads = list(zip(fronts, backs, strict=True))
    mirror = {"reflect": "REFLECT", "edge": "SYMMETRIC"}.get(mode)
    most = [size - 1 if mode == "reflect" else 1 for size in operand.shape]
    if mirror and all(max(sides) <= limit for sides, limit in zip(pads, most, strict=True)):
        shape = tuple(size + sum(sides) for size, sides in zip(operand.shape, pads, strict=True))
        placed = list(zip(call.placed(fronts), call.placed(backs), strict=True))
        options = Options("MirrorPadOptions", {"mode": mirror})
        return call.emit("MIRROR_PAD", [operand, _pairs(call, placed)], shape, options=options)
    for axis, sides in enumerate(pads):
        if any(sides):
            taken = np.pad(np.arange(operand.shape[axis]), sides, mode=mode)  # type: ignore[call-overload]
            to = (*operand.shape[:axis], taken.size, *operand.shape[axis + 1 :])
            options = Options("GatherOptions", {"axis": call.position(axis, len(to))})
            operand = call.emit("GATHER", [operand, call.ints(taken.tolist())], to, options=options)
    return operand


OPS: Mapping[str, Op] = {
    "CenterCropPad": Op(center_crop_pad, up_to(PADDED_AXES), (0,), dtypes=TYPES, int8="moves"),
    "Pad": Op(pad, up_to(PADDED_AXES), (0,), dtypes=TYPES, int8=_integers),
}
