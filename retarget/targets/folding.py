"""Nodes without computed operands: their results, from ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from retarget import graph
from retarget.errors import ToolchainFailure
from retarget.session import Session
from retarget.targets import legal

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds

_NOT_FOLDED = frozenset({"Bernoulli", "DequantizeLinear", "If", "Loop", "Multinomial", "QuantizeLinear", "Scan"})
"""Integers must be known behind their floats, subgraphs read values around them, and the rest is random."""


def is_foldable(node: ir.Node) -> bool:
    """Whether a node of this operator may be replaced by what it computes of constants."""
    return node.op_type not in _NOT_FOLDED and not node.op_type.startswith("Random")


def folded(node: ir.Node, operands: Mapping[str, Array]) -> list[Array] | None:
    """The results of ``node`` for ``operands`` by their names; None where a type of one is unknown, or nothing here
    takes these types."""
    alone = legal.isolated(node, {"": graph.OPSET})
    if alone is None:
        return None
    for value in list(alone.graph.initializers.values()):
        # Small constants may have been folded from others: the operand is what counts.
        value.const_value = ir.tensor(operands[value.name or ""], name=value.name)
    feeds = {value.name or "": operands[value.name or ""] for value in alone.graph.inputs}
    return _computed(alone, feeds)


def window(node: ir.Node, length: int | None) -> Array | None:
    """A Hann, Hamming or Blackman window, also where its size is an input: it must be ``length`` then, which ONNX says
    of the result. None where that, or the type of the size, is not known."""
    (source,) = node.inputs
    if length is None or source is None or source.dtype is None:
        return None
    computed = folded(node, {source.name or "": np.asarray(length, source.dtype.numpy())})
    return None if computed is None else computed[0]


def _computed(alone: ir.Model, feeds: Feeds) -> list[Array] | None:
    """The outputs of a model of one node. ONNX's own evaluator is wrong in places, and asked only where it must be."""
    try:
        with Session(alone) as session:
            return list(session.run(feeds).values())
    except ToolchainFailure:  # ONNX Runtime lacks kernels of rare types
        evaluator = ReferenceEvaluator(ir.to_proto(alone))
    try:
        # What ONNX leaves open, as an integer divided by 0, numpy warns of where ONNX Runtime says nothing.
        with np.errstate(all="ignore"):
            return [np.asarray(array) for array in evaluator.run(None, dict(feeds))]
    except TypeError:  # and that does not take all operands that ONNX allows
        return None
