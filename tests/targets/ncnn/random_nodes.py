"""Random single nodes: attributes over their ranges, all types, ranks up to six, sizes of one."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx
from node_models import Attribute
from onnx import helper, numpy_helper

from retarget import graph
from retarget.spec import DimRange

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds

POINTS = ({"N": 1, "S": 3}, {"N": 3, "S": 2})
"""Sizes of open dimensions that a node is fed at."""
SHAPES = {"N": DimRange(1, 2, 3), "S": DimRange(2, 3, 4)}
LARGEST = 600
"""Elements of an operand."""

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
TYPES = {"float": "float32", "double": "float64", **{name: name for name in ("float16", "bool", *INTEGERS)}}
"""ONNX's names of types → numpy's."""

Dim: TypeAlias = int | str


@dataclass(frozen=True)
class Operand:
    """Numbers from ``low`` to ``high``, some of them one of ``special``; or those of ``array``."""

    shape: tuple[Dim, ...]
    dtype: str
    low: float = -3
    high: float = 3
    special: tuple[float, ...] = ()
    is_constant: bool = False
    array: Array | None = None

    def filled(self, sizes: Mapping[str, int], seed: int) -> Array:
        if self.array is not None:
            return self.array
        rng = np.random.default_rng(seed)
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in self.shape]
        if self.dtype == "bool":
            return np.asarray(rng.random(shape) < 0.5)
        if "int" in self.dtype:
            low = max(int(self.low), int(np.iinfo(self.dtype).min))
            return np.asarray(rng.integers(low, max(int(self.high), low + 1), shape), self.dtype)
        numbers = rng.uniform(self.low, self.high, shape)
        if self.special:
            numbers = np.where(rng.random(shape) < 0.4, rng.choice(self.special, shape), numbers)
        with np.errstate(over="ignore"):  # of float16
            return np.asarray(numbers, self.dtype)


@dataclass
class Drawn:
    """One node."""

    rng: random.Random
    operator: str = ""
    operands: list[Operand | None] = field(default_factory=list)
    attributes: dict[str, Attribute] = field(default_factory=dict)
    outputs: int = 1

    def node(
        self, operator: str, *operands: Operand | None, outputs: int = 1,
        given: Mapping[str, Attribute | None] | None = None, **attributes: Attribute | None,
    ) -> None:  # fmt: skip
        """Attributes and operands that are None are left out."""
        self.operator, self.operands, self.outputs = operator, list(operands), outputs
        while self.operands[-1:] == [None]:
            self.operands.pop()
        self.attributes = {name: value for name, value in {**(given or {}), **attributes}.items() if value is not None}

    def happens(self, share: float) -> bool:
        return self.rng.random() < share

    def flag(self) -> int | None:
        return self.rng.choice((None, 0, 1))

    def shape(self, low: int = 0, high: int = 6, opens: float = 0.5) -> tuple[Dim, ...]:
        sizes = [self.rng.choice((1, 1, 2, 2, 3, 4, 5)) for _ in range(self.rng.randint(low, high))]
        while np.prod(sizes) > LARGEST:
            sizes[self.rng.randrange(len(sizes))] = 1
        dims: list[Dim] = [*sizes]
        if dims and self.happens(opens):
            dims[0] = "N"
        if dims and self.happens(opens / 4):
            dims[self.rng.randrange(len(dims))] = "S"
        return tuple(dims)

    def beside(self, shape: Sequence[Dim]) -> tuple[Dim, ...]:
        """What broadcasts with ``shape``."""
        dims: list[Dim] = [1 if self.happens(0.35) else dim for dim in shape]
        return tuple(dims[self.rng.choice((0, 0, self.rng.randint(0, len(dims)))) :])

    def type(self, operator: str, index: int = 0) -> str:
        schema = onnx.defs.get_schema(operator, graph.OPSET)
        allowed = sorted(TYPES[name] for name in TYPES if f"tensor({name})" in schema.inputs[index].types)
        return "float32" if "float32" in allowed and self.happens(0.6) else self.rng.choice(allowed)

    def x(
        self, shape: Sequence[Dim], dtype: str, low: float = -3, high: float = 3, constant: float = 0.1,
        special: tuple[float, ...] = (),
    ) -> Operand:  # fmt: skip
        is_constant = self.happens(constant) and not any(isinstance(dim, str) for dim in shape)
        return Operand(tuple(shape), dtype, low, high, special, is_constant)

    def weight(self, *shape: int) -> Operand:
        return self.x(shape, "float32", -1, 1, constant=0.8)

    def ints(self, *numbers: int) -> Operand:
        return Operand((len(numbers),), "int64", is_constant=True, array=np.array(numbers, np.int64))

    def scalar(self, number: int) -> Operand:
        return Operand((), "int64", is_constant=True, array=np.array(number, np.int64))

    def axis(self, shape: Sequence[Dim]) -> int:
        return self.rng.randrange(-len(shape), len(shape))

    def axes(self, shape: Sequence[Dim], most: int = 6) -> list[int]:
        """Some, counted from the front or the end."""
        chosen = self.rng.sample(range(len(shape)), self.rng.randint(1, min(len(shape), most)))
        return [axis - len(shape) * self.rng.choice((0, 1)) for axis in chosen]

    def image(self, spatial: int, channels: int) -> tuple[Dim, ...]:
        sizes = [self.rng.randint(1, 6) for _ in range(spatial)]
        return (self.rng.choice((1, 2, "N")), channels, *sizes)


def closed(dim: Dim) -> int:
    """A size that ``dim`` has at every point, or less."""
    return 1 if isinstance(dim, str) else dim


# ---- families

SMOOTH = (
    "Abs", "Asinh", "Atan", "BitwiseNot", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "LeakyRelu", "Mish", "Neg", "Not", "Relu", "Selu", "Shrink", "Sigmoid", "Sin", "Sinh",
    "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
)  # fmt: skip
UNARY: dict[str, tuple[float, float, tuple[float, ...]]] = {
    **dict.fromkeys(SMOOTH, (-3, 3, ())),
    **dict.fromkeys(("Round", "Ceil", "Floor", "Sign"), (-3, 3, (0.5, -0.5, 1.5, 2.5, -0.0, -2.0, 1e7, 3e9))),
    **dict.fromkeys(("Sqrt", "Log", "Reciprocal"), (0.3, 5, ())),
    **dict.fromkeys(("Asin", "Acos", "Atanh"), (-0.95, 0.95, ())),
    "IsInf": (-3, 3, (np.inf, -np.inf)),
    "IsNaN": (-3, 3, (np.inf, np.nan)),
    "Acosh": (1, 3, ()),
}
NUMBERS: dict[str, tuple[str, ...]] = {
    "Celu": ("alpha",), "Elu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "LeakyRelu": ("alpha",),
    "Selu": ("alpha", "gamma"), "Shrink": ("bias", "lambd"), "ThresholdedRelu": ("alpha",),
}  # fmt: skip
"""Their attributes."""


def unary(d: Drawn) -> None:
    name = d.rng.choice([*UNARY])
    low, high, special = UNARY[name]
    numbers = {each: d.rng.choice((None, 0.3, 1.0, 2.0)) for each in NUMBERS.get(name, ())}
    d.node(name, d.x(d.shape(), d.type(name), low, high, special=special), given=numbers)


def along(d: Drawn) -> None:
    name = d.rng.choice(
        ("Softmax", "LogSoftmax", "Hardmax", "Flatten", "LpNormalization", "ArgMax", "ArgMin", "CumSum")
    )
    shape, ties = d.shape(1), (1.0, 1.0, 3.0, -3.0)
    x, axis = d.x(shape, d.type(name), special=ties if name.startswith("Arg") else ()), d.axis(shape)
    if name.startswith("Arg"):
        d.node(name, x, axis=axis, keepdims=d.flag(), select_last_index=d.flag())
    elif name == "CumSum":
        d.node(name, x, d.scalar(axis), exclusive=d.flag(), reverse=d.flag())
    else:
        d.node(name, x, axis=axis)


def binary(d: Drawn) -> None:
    plain = ("Add", "Sub", "Mul", "Max", "Min", "And", "Or", "Xor", "Mean", "Sum", "PRelu")
    name = d.rng.choice((*plain, "Div", "Pow", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"))
    shape, dtype = d.shape(), d.type(name)
    left = shape if name == "PRelu" or d.happens(0.7) else d.beside(shape)
    low, special = (1, ()) if name in ("Div", "Pow") else (-4, (1.0, 0.0, -0.0, 2.0))
    d.node(name, d.x(left, dtype, low, 4, special=special), d.x(d.beside(shape), dtype, low, 4, 0.5, special))


def where(d: Drawn) -> None:
    shape, dtype = d.shape(), d.type("Where", 1)
    chosen = [d.x(d.rng.choice((shape, d.beside(shape))), dtype, constant=0.4, special=(np.inf, 0.0)) for _ in "ab"]
    d.node("Where", d.x(d.beside(shape), "bool"), *chosen)


def clip(d: Drawn) -> None:
    dtype = d.type("Clip")
    d.node("Clip", d.x(d.shape(), dtype, -6, 6), *(d.x((), dtype, low, low + 2, 0.8) for low in (0, 2)))


def cast(d: Drawn) -> None:
    to = helper.np_dtype_to_tensor_dtype(np.dtype(d.rng.choice([*TYPES.values()])))
    d.node("Cast", d.x(d.shape(), d.type("Cast"), -5, 9, special=(0.5, -1.9, 0.0, -0.0)), to=int(to))


def reduction(d: Drawn) -> None:
    name = "Reduce" + d.rng.choice(
        ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    )
    shape = d.shape()
    axes = d.ints(*d.axes(shape)) if shape and d.happens(0.8) else d.rng.choice((None, d.ints()))
    x = d.x(shape, d.type(name), 0.2 if name == "ReduceLogSum" else -3)
    d.node(name, x, axes, keepdims=d.flag(), noop_with_empty_axes=d.flag())


def gather(d: Drawn) -> None:
    shape = d.shape(1)
    axis = d.axis(shape)
    x, size = d.x(shape, d.type("Gather"), constant=0.25), closed(shape[axis])
    kind = d.rng.random()
    low = 0 if x.is_constant else d.rng.choice((0, -size))  # what is fed for a table counts from the front
    if kind < 0.4:
        d.node("Gather", x, d.x(d.shape(0, 3), "int64", low, size, 0.5), axis=axis)
    elif kind < 0.7:
        wanted: list[Dim] = [dim if isinstance(dim, str) else d.rng.randint(1, dim) for dim in shape]
        wanted[axis] = d.rng.choice((1, 2, 4))
        d.node("GatherElements", x, d.x(wanted, "int64", low, size, 0.5), axis=axis)
    else:
        depth = d.rng.randint(1, len(shape))
        least = min(map(closed, shape[:depth]))
        d.node("GatherND", x, d.x((*d.shape(0, 2), depth), "int64", d.rng.choice((0, -least)), least, 0.5))


def scatter(d: Drawn) -> None:
    """Never at places of an axis that is open, which of one element leave nothing else."""
    name = d.rng.choice(("ScatterElements", "ScatterND"))
    shape, dtype = tuple(map(closed, d.shape(1, opens=0))), d.type(name)
    reduction = d.rng.choice(("add", "mul", "max", "min"))
    if name == "ScatterElements":
        axis = d.axis(shape)
        wanted = [d.rng.randint(1, dim) for dim in shape]
        indices = d.x(wanted, "int64", -shape[axis], shape[axis], 0.5)
        d.node(name, d.x(shape, dtype), indices, d.x(wanted, dtype), axis=axis, reduction=reduction)
    else:
        depth = d.rng.randint(1, len(shape))
        count, least = d.shape(0, 2, opens=0), min(shape[:depth])
        updates = d.x((*count, *shape[depth:]), dtype)
        d.node(name, d.x(shape, dtype), d.x((*count, depth), "int64", -least, least, 0.5), updates, reduction=reduction)


def shaped(d: Drawn) -> None:
    name = d.rng.choice(("Transpose", "Squeeze", "Unsqueeze", "Tile", "Expand", "Concat", "Trilu", "Shape"))
    shape, dtype = d.shape(2, 5), d.type(name)
    x = d.x(shape, dtype)
    match name:
        case "Transpose":
            d.node(name, x, perm=d.rng.sample(range(len(shape)), len(shape)))
        case "Squeeze":
            axes = d.axes(shape)
            gone = {axis % len(shape) for axis in axes}
            ones = [1 if axis in gone else dim for axis, dim in enumerate(shape)]
            d.node(name, d.x(ones, dtype), d.ints(*axes))
        case "Unsqueeze":
            d.node(name, x, d.ints(*d.rng.sample(range(len(shape) + 2), 2)))
        case "Tile":
            d.node(name, x, d.ints(*(d.rng.choice((1, 1, 2, 3)) for _ in shape)))
        case "Expand":
            d.node(name, x, d.ints(2, *(d.rng.randint(1, 3) if dim == 1 else 1 for dim in shape)))
        case "Concat":
            axis = d.axis(shape)
            others = [[*shape[:axis], d.rng.randint(1, 3), *shape[axis:][1:]] for _ in range(d.rng.randint(0, 2))]
            d.node(name, x, *(d.x(each, dtype, constant=0.3) for each in others), axis=axis)
        case "Trilu":
            d.node(name, x, d.scalar(d.rng.randint(-4, 4)), upper=d.flag())
        case _:
            d.node(name, x, start=d.rng.choice((None, -2, 0, 1)), end=d.rng.choice((None, -1, 4)))


def reshape(d: Drawn) -> None:
    shape = d.shape(1)
    left, to = int(np.prod([dim for dim in shape if isinstance(dim, int)])), [-1]
    for _ in range(d.rng.randint(0, 3)):
        to.append(d.rng.choice([each for each in range(1, left + 1) if left % each == 0]))
        left //= to[-1]
    d.rng.shuffle(to)
    d.node("Reshape", d.x(shape, d.type("Reshape")), d.ints(*to))


def slice_(d: Drawn) -> None:
    shape = d.shape(1)
    axes = d.axes(shape, 3)
    steps = [d.rng.choice((1, 1, 2, 3, -1, -2)) for _ in axes]
    starts = [d.rng.choice((0, -1, d.rng.randint(-4, 3))) for _ in axes]
    ends = [d.rng.choice((step << 60, d.rng.randint(-5, 5))) for step in steps]
    d.node("Slice", d.x(shape, d.type("Slice")), *(d.ints(*each) for each in (starts, ends, axes, steps)))


def split(d: Drawn) -> None:
    shape = d.shape(1)
    axis = d.axis(shape)
    parts = d.rng.randint(1, closed(shape[axis]))
    d.node("Split", d.x(shape, d.type("Split")), axis=axis, num_outputs=parts, outputs=parts)


def top(d: Drawn) -> None:
    shape = d.shape(1)
    axis = d.axis(shape)
    count = d.ints(d.rng.randint(1, closed(shape[axis])))
    d.node("TopK", d.x(shape, d.type("TopK"), special=(1.0, -1.0)), count, axis=axis, largest=d.flag(), outputs=2)


def pad(d: Drawn) -> None:
    shape, dtype = d.shape(1, 5), d.type("Pad")
    mode, axes = d.rng.choice(("constant", "reflect", "edge", "wrap")), d.axes(shape)
    most = [2 if mode in ("constant", "edge") else closed(shape[axis]) - 1 for axis in (*axes, *axes)]
    value = d.x((), dtype, constant=1, special=(np.inf, -1e30)) if mode == "constant" and d.happens(0.6) else None
    pads = d.ints(*(d.rng.randint(0, each) for each in most))
    d.node("Pad", d.x(shape, dtype), pads, value, d.ints(*axes), mode=mode)


def windows(d: Drawn) -> None:
    spatial, group, each = d.rng.randint(1, 3), d.rng.choice((1, 1, 2, 3)), d.rng.randint(1, 3)
    name = d.rng.choice(("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"))
    kernel, x = [d.rng.randint(1, 3) for _ in range(spatial)], d.x(d.image(spatial, group * each), "float32")
    how: dict[str, Attribute | None] = {
        "kernel_shape": kernel,
        "strides": [d.rng.randint(1, 3) for _ in kernel],
    }
    if name.startswith("Conv"):  # a window of a pool may not lie in pads alone
        how["dilations"] = [d.rng.choice((1, 1, 2)) for _ in kernel]
    if d.happens(0.3):
        how["auto_pad"] = d.rng.choice(("SAME_UPPER", "SAME_LOWER", "VALID"))
    else:
        how["pads"] = [d.rng.randint(0, size - 1) for size in (*kernel, *kernel)]
    if name.startswith("Conv"):
        out = d.rng.choice((1, 2))
        weight = (group * each, out, *kernel) if name == "ConvTranspose" else (group * out, each, *kernel)
        d.node(name, x, d.weight(*weight), d.weight(group * out) if d.happens(0.5) else None, group=group, given=how)
    else:
        if name == "AveragePool":
            how["count_include_pad"] = d.flag()
        if name == "LpPool":
            how["p"] = d.rng.choice((None, 1, 3))
        d.node(name, x, ceil_mode=d.flag(), given=how)


def product(d: Drawn) -> None:
    (m, k, n), lead = (d.rng.choice((1, 2, 3, 5)) for _ in range(3)), d.shape(0, 3)
    if d.happens(0.7):
        left, right = (*lead, m, k), (*d.beside(lead), k, n)
        d.node("MatMul", d.x(left, "float32"), d.x(d.rng.choice((right, (k,))), "float32", constant=0.5))
        return
    turned = [d.flag(), d.flag()]
    bias = d.rng.choice((None, (), (1,), (n,), (m, n), (1, n), (m, 1)))
    left, right = ((b, a) if flag else (a, b) for flag, (a, b) in zip(turned, ((m, k), (k, n)), strict=True))
    added = None if bias is None else d.x(bias, "float32", constant=0.6)
    factors = {name: d.rng.choice((None, 0.5, 0.0)) for name in ("alpha", "beta")}
    d.node("Gemm", d.x(left, "float32"), d.x(right, "float32", constant=0.7), added,
           transA=turned[0], transB=turned[1], given=factors)  # fmt: skip


FAMILIES: tuple[Callable[[Drawn], None], ...] = (
    unary, unary, along, along, binary, binary, where, clip, cast, reduction, reduction, gather, gather, scatter,
    shaped, shaped, reshape, slice_, split, top, pad, windows, windows, product,
)  # fmt: skip


def made(seed: int) -> tuple[Drawn, onnx.ModelProto, list[Feeds]]:
    """A node, alone in a model, and what it is fed at each of ``POINTS``."""
    d = Drawn(random.Random(seed))
    d.rng.choice(FAMILIES)(d)
    feeds: list[Feeds] = [{} for _ in POINTS]
    named = [(f"x{at}", operand) for at, operand in enumerate(d.operands) if operand is not None]
    inputs, constants = [], []
    for name, operand in named:
        if operand.is_constant:
            constants.append(numpy_helper.from_array(operand.filled({}, seed), name))
            continue
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(operand.dtype))
        inputs.append(helper.make_tensor_value_info(name, kind, operand.shape))
        for at, sizes in enumerate(POINTS):
            feeds[at] = {**feeds[at], name: operand.filled(sizes, seed + at + int(name[1:]))}
    names = ["" if operand is None else f"x{at}" for at, operand in enumerate(d.operands)]
    outputs = [helper.make_empty_tensor_value_info(f"y{at}") for at in range(d.outputs)]
    node = helper.make_node(d.operator, names, [each.name for each in outputs], "node")
    node.attribute.extend(helper.make_attribute(name, value) for name, value in d.attributes.items())
    graph_proto = helper.make_graph([node], "g", inputs, outputs, constants)
    opset = helper.make_opsetid("", graph.OPSET)
    return d, helper.make_model(graph_proto, opset_imports=[opset], ir_version=10), feeds
