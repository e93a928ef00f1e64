"""Add to each layer's bias what rounding takes from its output on average (Nagel et al. 2019, section 4.2, measured).

Given::

    y = Conv(x, w, b)           # E[y] was measured in float and, of the same model quantized, in integers

Result::

    y = Conv(x, w, b + E[y in float] - E[y in integers])

Rounding one weight shifts all products with it to the same side, so the error of an output channel has a mean, which a
bias takes back at no cost. The pass works on the float model, which is then quantized once more: so it holds for every
scheme, whatever it makes of a bias. It is no gain by itself: see `retarget.correction`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retarget.passes.rewriting import dims, initializer, is_constant, only_user, rank, rewire

Floats: TypeAlias = NDArray[np.float64]


def correctable(model: ir.Model) -> dict[str, int]:
    """Values of the main graph that a bias can be added to, by name, and the axis that holds their channels.

    Outputs of Conv, ConvTranspose and Gemm with constant weights, and of the Add of a bias behind a MatMul.
    """
    return {name: axis for name, (_, _, axis) in _sites(model.graph).items()}


class CorrectBias(ir.passes.InPlacePass):
    """See the module. Both mappings hold, for values of `correctable`, the mean for each channel.

    What was added once is not added again by a second run. ``corrected`` names the values of the last run.
    """

    def __init__(self, float_means: Mapping[str, Floats], quantized_means: Mapping[str, Floats]) -> None:
        super().__init__()
        self._missing = {
            name: mean - quantized_means[name] for name, mean in float_means.items() if name in quantized_means
        }
        self.corrected: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        done = []
        for name, (node, at, _) in _sites(model.graph).items():
            missing = self._missing.pop(name, None)
            if missing is not None and missing.any() and np.isfinite(missing).all():
                _add(node, at, missing)
                done.append(name)
        self.corrected = tuple(done)
        return ir.passes.PassResult(model, bool(done))


def _sites(graph: ir.Graph) -> dict[str, tuple[ir.Node, int, int]]:
    """Value name → (the node that takes the bias, at which input, the axis of the channels in the output)."""
    found = {}
    for node in graph:
        if node.domain or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        weight, out, at = node.inputs[1], node.outputs[0], 2
        if weight is None or not is_constant(weight) or weight.dtype != ir.DataType.FLOAT:
            continue
        place: ir.Node | None = node
        if node.op_type == "MatMul":
            place = only_user(out, "Add")
            if place is None:
                continue
            at = 1 if place.inputs[0] is out else 0
            out = place.outputs[0]
        if place is None or (node.op_type == "Gemm" and node.attributes.get_float("beta", 1.0) != 1):
            continue
        channels, bias, size = _outputs(node), place.inputs[at] if len(place.inputs) > at else None, rank(out)
        if bias is not None and not (is_constant(bias) and dims(bias) in ((channels,), (1,), ())):
            continue
        if out.name and channels is not None and size is not None and (bias is not None or place is node):
            found[out.name] = place, at, 1 if "Conv" in node.op_type else size - 1
    return found


def _outputs(node: ir.Node) -> int | None:
    """How many output channels a layer has."""
    shape = dims(node.inputs[1]) or ()
    if node.op_type == "ConvTranspose":
        size = shape[1] if len(shape) > 2 else None
        return size * node.attributes.get_int("group", 1) if isinstance(size, int) else None
    if len(shape) < 2 or (node.op_type == "MatMul" and len(shape) > 2):
        return None
    first = node.op_type == "Conv" or bool(node.attributes.get_int("transB", False))
    size = shape[0] if first else shape[1]
    return size if isinstance(size, int) else None


def _add(node: ir.Node, at: int, missing: Floats) -> None:
    before = node.inputs[at] if len(node.inputs) > at else None
    held = np.zeros(1) if before is None or before.const_value is None else before.const_value.numpy()
    name = f"{node.outputs[0].name}_bias" if before is None else f"{before.name}"
    value = initializer(node, name, (held.astype(np.float64) + missing).astype(np.float32))
    if len(node.inputs) > at:
        rewire(node, at, value)
    else:
        node.resize_inputs(at + 1)
        node.replace_input_with(at, value)
