"""Values of more axes than Core ML has, as Swin's windows: held with axes joined that stay side by side."""

from __future__ import annotations

from collections.abc import Sequence

from retarget.targets.coreml.call import Call
from retarget.targets.coreml.dims import Size, product, sized
from retarget.targets.coreml.library import Var, new_symbol
from retarget.targets.coreml.values import MOST_AXES, Dim, Joined


def held(call: Call, index: int) -> Var:
    """What holds the elements of operand ``index``, in their order."""
    operand = call.operand(index)
    return operand.held if isinstance(operand, Joined) else call.var(index)


def reshaped(call: Call, var: Var, sizes: Sequence[Size | None]) -> Var | Joined:
    """The elements of ``var`` with the axes ``sizes``, of which there may be more than Core ML has."""
    if len(sizes) <= MOST_AXES:
        return sized(call, var, sizes)
    return Joined(var, tuple(new_symbol() if size is None or isinstance(size, Var) else size for size in sizes))


def transposed(call: Call, operand: Joined, perm: Sequence[int]) -> Joined:
    """Axes of one element are left out, those that stay side by side are joined; what is left is transposed."""
    moved = [axis for axis in perm if operand.shape[axis] != 1]
    runs: list[list[int]] = []
    for axis in moved:
        # What stands between two axes may be of one element, and so not there.
        if runs and sorted(moved).index(axis) == sorted(moved).index(runs[-1][-1]) + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    order = sorted(runs)
    sizes = [product([operand.shape[axis] for axis in run]) for run in order]
    goal = [order.index(run) for run in runs]
    return Joined(_permuted(call, operand.held, sizes, goal), tuple(operand.shape[axis] for axis in perm))


def _permuted(call: Call, var: Var, sizes: Sequence[Dim], goal: Sequence[int]) -> Var:
    """``var``, of axes ``sizes``, in the order ``goal``: at once, or where there are too many, one axis at a time."""
    if len(goal) < 2:
        return var
    if len(goal) <= MOST_AXES:
        return call.mil.transpose(x=sized(call, var, sizes), perm=list(goal))
    order = list(range(len(goal)))
    for place, axis in enumerate(goal):
        at = order.index(axis)
        if at == place:
            continue
        groups = (order[:place], order[place:at], [axis], order[at + 1 :])
        cut = sized(call, var, [product([sizes[each] for each in group]) for group in groups])
        var = call.mil.transpose(x=cut, perm=[0, 2, 1, 3])
        order.insert(place, order.pop(at))
    return var


def beside(call: Call, operand: Joined, axis: int) -> Var:
    """``operand`` as three axes: those before ``axis`` joined, itself, and those after it joined."""
    before, after = operand.shape[:axis], operand.shape[axis + 1 :]
    return sized(call, operand.held, [product(before), operand.shape[axis], product(after)])
