"""The trained CNN of ``examples/digits`` as ONNX without PyTorch: BatchNorms folded, what `default` would leave."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from retarget.protocols import Array

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"
CALIBRATION = EXAMPLE / "calibration.npz"
EVALUATION = EXAMPLE / "evaluation.npz"
BLOCKS = ("stage1.0", "stage1.1", "stage2.0", "stage2.1")


def digits_model() -> onnx.ModelProto:
    """``image`` float32[N,1,32,32] to ``logits`` float32[N,10]; nodes are called after their modules."""
    checkpoint = load_file(EXAMPLE / "digits_cnn.safetensors")
    weights: dict[str, Array] = {"head.w": checkpoint["head.weight"], "head.b": checkpoint["head.bias"]}
    lines = [_convolution(weights, checkpoint, "stem.0", "stem.1", "image", "strides = [2, 2], pads = [1, 1, 1, 1]")]
    x = "stem.0_relu"
    for block in BLOCKS:
        if block == "stage2.0":
            lines.append(
                _convolution(weights, checkpoint, "down.0", "down.1", x, "strides = [2, 2], pads = [1, 1, 1, 1]")
            )
            x = "down.0_relu"
        first, second = f"{block}.depthwise", f"{block}.pointwise"
        group = checkpoint[f"{first}.weight"].shape[0]
        lines += [
            _convolution(weights, checkpoint, first, f"{first}_norm", x, f"group = {group}, pads = [1, 1, 1, 1]"),
            _convolution(weights, checkpoint, second, f"{second}_norm", f"{first}_relu", "group = 1", relu=False),
            f'["{block}.add"] "{block}.sum" = Add("{x}", "{second}")',
            f'["{block}.relu"] "{block}.out" = Relu("{block}.sum")',
        ]
        x = f"{block}.out"
    lines += [
        f'["pool"] pooled = ReduceMean <keepdims = 0> ("{x}", axes)',
        '["head"] logits = Gemm <transB = 1> (pooled, "head.w", "head.b")',
    ]
    text = "\n  ".join(lines)
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 23]>\n'
        f"digits (float[N,1,32,32] image) => (float[N,10] logits)\n<int64[2] axes = {{2, 3}}> {{\n  {text}\n}}"
    )
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
    return onnx.shape_inference.infer_shapes(model)


def _convolution(
    weights: dict[str, Array],
    checkpoint: Mapping[str, Array],
    name: str,
    norm: str,
    x: str,
    attributes: str,
    *,
    relu: bool = True,
) -> str:
    """A convolution of ``x`` with the BatchNorm behind it folded in, as text; its weights go into ``weights``."""
    gamma, beta, mean, variance = (
        checkpoint[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gamma / np.sqrt(np.add(variance, np.float32(1e-5)))
    weights[f"{name}.w"] = checkpoint[f"{name}.weight"] * factor[:, None, None, None]
    weights[f"{name}.b"] = beta - mean * factor
    out = f'["{name}"] "{name}" = Conv <{attributes}> ("{x}", "{name}.w", "{name}.b")'
    return f'{out}\n  ["{name}_relu"] "{name}_relu" = Relu("{name}")' if relu else out


def rows(path: Path, start: int, stop: int) -> dict[str, Array]:
    """Arrays of those rows of a set, by name."""
    with np.load(path) as arrays:
        return {name: arrays[name][start:stop] for name in arrays.files}
