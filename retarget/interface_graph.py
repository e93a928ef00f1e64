"""Build the user's view of inputs and outputs into a model: the nodes at its border that ``interface`` asks for.

Transposes are put at the border, where `move_transposes` takes them up: a network of a channels-last framework holds
their counterparts around each convolution, and all of them cancel. Normalization is put as (x - a) * b, which
`fold_channels` moves into the first convolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from retarget import graph
from retarget.errors import RetargetError
from retarget.interface import Interface, Layout, Normalize, inverse, to_channels_first

if TYPE_CHECKING:
    from retarget.protocols import Array

_PASSED = frozenset({"Cast", "Identity", "Mul", "Add", "Sub", "Div", "Relu", "Clip", "Pad"})
"""What may stand between an input and the Transpose that says what layout it has."""


def apply(model: ir.Model, interface: Interface) -> None:
    """Let ``model``, in the source's view, take and give the user's. Names stay. Raises ``RetargetError``."""
    inputs, outputs = model.graph.inputs, model.graph.outputs
    interface.check((value.name or "" for value in inputs), (value.name or "" for value in outputs))
    raw = interface.normalized([graph.value_spec(value) for value in inputs])
    names = _Names(model)
    for value in outputs:
        perm = inverse(interface.permutation(value.name or "", _rank(value)))
        if perm is not None:
            _give(model.graph, value, perm, names)
    # Each is put before what stands first by then: they come last, and stand before the others.
    for value in reversed(inputs):
        perm = interface.permutation(value.name or "", _rank(value))
        normalize = interface.normalize if value.name == raw else None
        if perm is not None or normalize is not None:
            axis = interface.channel_axis(value.name or "", _rank(value))
            _take(model.graph, value, perm, normalize, axis, names)


def source_layouts(model: ir.Model) -> dict[str, Layout]:
    """The layout of each input and output of 4 axes, of an ONNX file that nobody can say the framework of.

    It is ``nchw``, unless all that reads an input, but for arithmetic, is a Transpose to that; an output has the layout
    of the inputs, if those have one and the same.
    """
    found: dict[str, Layout] = {}
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape) == 4:
            found[value.name or ""] = "nhwc" if _is_channels_last(value) else "nchw"
    of_outputs: Layout = "nhwc" if set(found.values()) == {"nhwc"} else "nchw"
    return found | {value.name or "": of_outputs for value in model.graph.outputs}


def _is_channels_last(value: ir.Value) -> bool:
    pending, seen = [value], set()
    while pending:
        current = pending.pop()
        seen.add(current)
        users = [user for user, _ in current.uses()]
        if not users or current.is_graph_output():
            return False
        for user in users:
            if user.op_type == "Transpose" and tuple(user.attributes.get_ints("perm", ())) == to_channels_first(4):
                continue
            if user.op_type not in _PASSED or user.domain:
                return False
            pending += [out for out in user.outputs if out not in seen]
    return True


# ---- nodes at the border


def _take(
    scope: ir.Graph,
    value: ir.Value,
    perm: tuple[int, ...] | None,
    normalize: Normalize | None,
    axis: int,
    names: _Names,
) -> None:
    """Put what makes of input ``value`` in the user's view what it was in the source's in front of all that reads it.

    ``axis`` is that of the channels in the source's view.
    """
    uses = tuple(value.uses())
    shape, dtype = value.shape, value.dtype
    assert shape is not None
    assert dtype is not None
    if normalize is not None and dtype != ir.DataType.FLOAT:
        raise RetargetError(
            f"normalize: the model takes {graph.dtype_name(dtype)} for input '{value.name}', and normalized pixels are"
            " float32",
            "leave `normalize` out, or name another `input` in it",
        )
    back = inverse(perm)
    value.shape = shape if back is None else ir.Shape([shape[at] for at in back])
    value.dtype = dtype if normalize is None else graph.data_type(normalize.dtype)
    nodes: list[ir.Node] = []

    def then(op: str, attributes: Mapping[str, int | Sequence[int]], *constants: ir.Value) -> None:
        before = nodes[-1].outputs[0] if nodes else value
        made = ir.node(op, [before, *constants], attributes, name=names.free(f"{value.name}_{op.lower()}"))
        out = made.outputs[0]
        out.name, out.dtype = names.free(f"{value.name}_{op.lower()}"), dtype
        out.shape = shape if op == "Transpose" else before.shape
        nodes.append(made)

    if value.dtype != dtype:
        then("Cast", {"to": int(dtype)})
    if perm is not None:
        then("Transpose", {"perm": perm})
    if normalize is not None:
        for op, array in _arithmetic(normalize, shape[axis], axis, len(shape), value.name or ""):
            constant = ir.Value(name=names.free(f"{value.name}_{op.lower()}"), const_value=ir.Tensor(array))
            constant.dtype, constant.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
            scope.register_initializer(constant)
            then(op, {"axis": axis} if op == "Gather" else {}, constant)
    if not nodes:
        return
    if len(scope):
        scope.insert_before(scope[0], nodes)
    else:
        scope.extend(nodes)
    for user, at in uses:
        user.replace_input_with(at, nodes[-1].outputs[0])


def _arithmetic(
    normalize: Normalize, channels: int | ir.SymbolicDim, axis: int, rank: int, name: str
) -> list[tuple[str, Array]]:
    """Operators and their constants: Sub, Gather to swap, and Mul. What changes nothing is left out."""
    steps: list[tuple[str, Array]] = []
    if isinstance(channels, int):
        count = channels
    elif normalize.swap_channels or isinstance(normalize.mean, tuple) or isinstance(normalize.std, tuple):
        raise RetargetError(
            f"normalize: the channels of input '{name}' have no fixed size", "give it with --input, as in [N,224,224,3]"
        )
    else:
        count = 1
    mean, std = (np.array(numbers, np.float64) for numbers in normalize.channels(count))
    # (x · scale - mean) / std, with the subtraction in front: what no convolution takes in then stands there alone.
    less, times = mean / normalize.factor, normalize.factor / std
    if normalize.swap_channels:
        less = less[::-1]
    shape = [count if at == axis else 1 for at in range(rank)]
    if less.any():
        steps.append(("Sub", less.reshape(shape).astype(np.float32)))
    if normalize.swap_channels:
        steps.append(("Gather", np.arange(count, dtype=np.int64)[::-1].copy()))
    if (times != 1).any():
        steps.append(("Mul", times.reshape(shape).astype(np.float32)))
    return steps


def _give(scope: ir.Graph, value: ir.Value, perm: tuple[int, ...], names: _Names) -> None:
    """Give out ``value`` through a Transpose, under its name."""
    name, shape, dtype = value.name, value.shape, value.dtype
    assert shape is not None
    assert dtype is not None
    turned = ir.node("Transpose", [value], {"perm": perm}, name=names.free(f"{name}_transpose"))
    out = turned.outputs[0]
    value.name = names.free(f"{name}_source")
    out.name, out.dtype, out.shape = name, dtype, ir.Shape([shape[axis] for axis in perm])
    scope.append(turned)
    scope.outputs[list(scope.outputs).index(value)] = out


def _rank(value: ir.Value) -> int:
    return 0 if value.shape is None else len(value.shape)


class _Names:
    """Names that nothing in the model has."""

    def __init__(self, model: ir.Model) -> None:
        scopes = list(model.graphs())
        values = itertools.chain.from_iterable(
            (*scope.inputs, *scope.initializers.values(), *(out for node in scope for out in node.outputs))
            for scope in scopes
        )
        self._taken = {value.name for value in values} | {node.name for scope in scopes for node in scope}

    def free(self, wish: str) -> str:
        free, count = wish, 0
        while free in self._taken:
            count += 1
            free = f"{wish}_{count}"
        self._taken.add(free)
        return free
