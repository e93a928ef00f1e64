"""Elements taken by computed or constant indices.

From iOS17 on MIL's operators take no indices from the end. Those of constants are counted from the front here, computed
ones when the model runs, unless their producers show that there are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from retarget.targets.coreml.call import ANY, NUMBERS, Call, Op
from retarget.targets.coreml.dims import part_of, plain, product, sized
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.joined import beside, reshaped
from retarget.targets.coreml.ops.parts import part
from retarget.targets.coreml.ops.shape import count
from retarget.targets.coreml.ops.slices import Part, cut
from retarget.targets.coreml.values import MOST_AXES, Dim, Joined, Result, is_known
from retarget.targets.indices import is_every_place, is_never_negative


def from_front(call: Call, index: int, axes: Sequence[int]) -> Var:
    """Operand ``index``, indices of one of the first operand's ``axes`` or of each in turn, none from the end."""
    indices = call.operand(index)
    if isinstance(indices, np.ndarray):
        negative = np.less(indices, 0)
        if not negative.any():
            return call.var(index)
        dims = [plain(call.shape(0)[axis]) for axis in axes]
        if all(map(is_known, dims)):
            # Of one axis a number, so that an index that is a scalar stays one.
            sizes = np.array(dims if len(axes) > 1 else dims[0])
            return call.mil.const(val=np.where(negative, indices + sizes, indices))
        added = call.mil.mul(x=negative.astype(np.int32), y=_sizes(call, axes))
        return call.mil.add(x=call.var(index), y=added)
    var = call.var(index)
    value = call.node.inputs[index]
    if value is not None and is_never_negative(value):
        return var
    below = call.mil.less(x=var, y=np.int32(0))
    return call.mil.select(cond=below, a=call.mil.add(x=var, y=_sizes(call, axes)), b=var)


def _sizes(call: Call, axes: Sequence[int]) -> Var | np.ndarray[tuple[int, ...], np.dtype[np.int32]] | np.int32:
    """The sizes of the first operand's ``axes``, which stand side by side; of one axis a scalar."""
    dims = [plain(call.shape(0)[axis]) for axis in axes]
    if all(map(is_known, dims)):
        return np.array(dims, np.int32) if len(dims) > 1 else np.array(dims, np.int32)[0]
    found = part_of(call, call.mil.shape(x=call.var(0)), axes[0], axes[-1] + 1)
    return found if len(axes) > 1 else call.mil.squeeze(x=found, axes=[0])


def gather(call: Call) -> Result:
    operand, axis = call.operand(0), call.axis(0)
    own, wanted = [plain(dim) for dim in call.shape(0)], [plain(dim) for dim in call.shape(1)]
    sizes = [*own[:axis], *wanted, *own[axis + 1 :]]
    if isinstance(operand, Joined):
        # The same along one axis of three.
        indices = call.mil.reshape(x=from_front(call, 1, [axis]), shape=[-1])
        return reshaped(call, call.mil.gather(x=beside(call, operand, axis), indices=indices, axis=1), sizes)
    indices = from_front(call, 1, [axis])
    if len(sizes) > MOST_AXES:
        # The last axes of the indices are joined, as many as there are too many.
        apart = MOST_AXES - len(own)
        indices = sized(call, indices, [*wanted[:apart], product(wanted[apart:])])
        return reshaped(call, call.mil.gather(x=call.var(0), indices=indices, axis=axis), sizes)
    if not wanted:
        # The runtime takes no scalars, and of those made vectors no five axes.
        place = call.numbers(1, "the index")[0] if call.is_constant(1) else -1
        whole = own[axis]
        place = place + whole if place < 0 and isinstance(whole, int) and call.is_constant(1) else place
        if len(own) == MOST_AXES and place >= 0:
            # One part of it, so that no sizes around the axis need be known.
            return call.mil.squeeze(x=part(call, call.var(0), axis, slice(place, place + 1)), axes=[axis])
        if len(own) == MOST_AXES:
            var = sized(call, call.var(0), [product(own[:axis]), own[axis], product(own[axis + 1 :])])
            indices = call.mil.expand_dims(x=indices, axes=[0])
            return reshaped(call, call.mil.gather(x=var, indices=indices, axis=1), sizes)
        found = call.mil.gather(x=call.var(0), indices=call.mil.expand_dims(x=indices, axes=[0]), axis=axis)
        return call.mil.squeeze(x=found, axes=[axis])
    return call.mil.gather(x=call.var(0), indices=indices, axis=axis)


def gather_elements(call: Call) -> Result:
    axis = call.axis(0)
    own, wanted = [plain(dim) for dim in call.shape(0)], [plain(dim) for dim in call.shape(1)]
    parts: dict[int, Part] = {}
    dims: dict[int, Dim] = {}
    for other, (size, most) in enumerate(zip(own, wanted, strict=True)):
        if other != axis and size != most:
            # Along the other axes only as much is read as there are indices.
            parts[other], dims[other] = (None, count(call, 1, other), 1), most
    var = cut(call, call.var(0), parts, dims)
    return call.mil.gather_along_axis(x=var, indices=from_front(call, 1, [axis]), axis=axis)


def gather_nd(call: Call) -> Result:
    batch = call.attributes.get_int("batch_dims", 0)
    own, indices = [plain(dim) for dim in call.shape(0)], call.operand(1)
    (depth,) = call.sizes(1, [-1])
    axes = list(range(batch, batch + depth))
    sizes = [own[axis] for axis in axes]
    known = [size for size in sizes if isinstance(size, int)]
    if not batch and isinstance(indices, np.ndarray) and len(known) == depth and is_every_place(indices, known):
        return sized(call, call.var(0), [*indices.shape[:-1], *own[depth:]])
    # By a number for each place: of computed indices `gather_nd` takes the first place, whatever they are.
    at, number = from_front(call, 1, axes), None
    for axis in range(batch + depth):
        if axis < batch:
            here = _along(call, axis, call.rank(1))
        else:
            here = part(call, at, -1, slice(axis - batch, axis - batch + 1))
        if number is not None:
            here = call.mil.add(x=call.mil.mul(x=number, y=_sizes(call, [axis])), y=here)
        number = here
    joined = sized(call, call.var(0), [product(own[: batch + depth]), *own[batch + depth :]])
    if call.rank(1) == 1:
        return call.mil.squeeze(x=call.mil.gather(x=joined, indices=number, axis=0), axes=[0])
    return call.mil.gather(x=joined, indices=call.mil.squeeze(x=number, axes=[-1]), axis=0)


def _along(call: Call, axis: int, rank: int) -> Var:
    """The places along ``axis`` of the first operand, with ``rank`` axes."""
    size = _sizes(call, [axis])
    if isinstance(size, Var):
        places = call.mil.range_1d(start=np.int32(0), end=size, step=np.int32(1))
    else:
        places = call.mil.const(val=np.arange(int(size), dtype=np.int32))
    return call.mil.expand_dims(x=places, axes=[other for other in range(rank) if other != axis])


def one_hot(call: Call) -> Result:
    """What stands where is taken from the two values by whether a place is the index: none of them is computed with."""
    rank = call.rank(0)
    axis = call.attributes.get_int("axis", -1) % (rank + 1)
    indices = call.var(0)
    if call.dtype(0).kind == "f":
        indices = call.mil.cast(x=indices, dtype="int32")
    if call.is_constant(1):
        depth: Var | np.int32 = np.array(int(call.array(1, "the depth").reshape(-1)[0]), np.int32)[()]
        places = call.mil.const(val=np.arange(depth, dtype=np.int32))
    else:
        depth = sized(call, call.var(1), [])
        if call.dtype(1).kind == "f":
            depth = call.mil.cast(x=depth, dtype="int32")
        places = call.mil.range_1d(start=np.int32(0), end=depth, step=np.int32(1))
    below = call.mil.less(x=indices, y=np.int32(0))
    indices = call.mil.select(cond=below, a=call.mil.add(x=indices, y=depth), b=indices)
    if rank - axis:
        places = call.mil.expand_dims(x=places, axes=list(range(1, rank - axis + 1)))
    is_there = call.mil.equal(x=call.mil.expand_dims(x=indices, axes=[axis]), y=places)
    chosen = call.mil.cast(x=is_there, dtype="int32")
    values = call.var(2)
    if call.dtype(2) != np.bool_:
        return call.mil.gather(x=values, indices=chosen, axis=0)
    found = call.mil.gather(x=call.mil.cast(x=values, dtype="int32"), indices=chosen, axis=0)
    return call.mil.cast(x=found, dtype="bool")


def reverse_sequence(call: Call) -> Result:
    rank = call.rank(0)
    along, batch = call.attributes.get_int("time_axis", 0) % rank, call.attributes.get_int("batch_axis", 1) % rank
    return call.mil.reverse_sequence(x=call.var(0), lengths=call.var(1), seq_axis=along, batch_axis=batch)


OPS: Mapping[str, Op] = {
    "Gather": Op(gather, ANY, moves=True),
    "GatherElements": Op(gather_elements, ANY, moves=True),
    "GatherND": Op(gather_nd, ANY, moves=True),
    "OneHot": Op(one_hot, NUMBERS),
    "ReverseSequence": Op(reverse_sequence, ANY, moves=True),
}
