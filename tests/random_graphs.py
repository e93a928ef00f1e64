"""Random graphs over the operator families, each node evaluated by ONNX Runtime as it is added.

A node stays in the graph if its results are finite, not all the same, and do not turn on what rounding changes. So
what a runtime makes of the whole graph can be held against the values of the single nodes: a large difference is a
fault.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from retarget import catalog, graph
from retarget.errors import ToolchainFailure
from retarget.passes.presets import build
from retarget.passes.quantize import Quantize
from retarget.session import Session
from retarget.spec import DimRange, TensorSpec

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds, Outputs
    from retarget.schemes import Grid, QuantScheme

Attribute: TypeAlias = int | float | str | list[int]

SIZES = (1, 3)
"""Of the batch, at which all values are known."""
LARGEST = 4096
"""Elements of a value."""
GAIN = 8.0
"""A node may make so much more of a small change than it is."""


@dataclass
class Maker:
    """A graph that grows. ``change``: what may happen to a value, as a share of the largest."""

    seed: int
    change: float
    rng: random.Random = field(init=False)
    numbers: np.random.Generator = field(init=False)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    values: dict[str, tuple[Array, ...]] = field(default_factory=dict)
    """Each value at each of ``SIZES``."""

    def __post_init__(self) -> None:
        self.rng, self.numbers = random.Random(self.seed), np.random.default_rng(self.seed)

    # ---- what there is

    def shape(self, name: str) -> tuple[int | str, ...]:
        one, other = (array.shape for array in self.values[name])
        return tuple(a if a == b else "N" for a, b in zip(one, other, strict=True))

    def dims(self, name: str) -> tuple[int, ...]:
        """With the batch as 0."""
        return tuple(0 if isinstance(dim, str) else dim for dim in self.shape(name))

    def floats(self, rank: int | None = None) -> list[str]:
        return [
            name
            for name, arrays in self.values.items()
            if arrays[0].dtype == np.float32 and (rank is None or arrays[0].ndim == rank)
        ]

    def read(self) -> set[str]:
        return {name for node in self.nodes for name in node.input}

    # ---- growing

    def input(self, *shape: int | str) -> None:
        name = f"x{len(self.inputs)}"
        self.inputs.append(name)
        most = [max(SIZES) if isinstance(dim, str) else dim for dim in shape]
        array = self.numbers.standard_normal(most).astype(np.float32)
        self.values[name] = tuple(np.ascontiguousarray(array[:size]) for size in SIZES)

    def weight(self, *shape: int, scale: float = 1.0, offset: float = 0.0) -> str:
        return self.constant((self.numbers.standard_normal(shape) * scale + offset).astype(np.float32))

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def constant(self, array: Array | np.generic) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def node(
        self,
        operator: str,
        *operands: str,
        outputs: int = 1,
        given: Mapping[str, Attribute] | None = None,
        **attributes: Attribute,
    ) -> list[str] | None:
        """The names of its results; None, and no node, where they are not fit for comparison."""
        names = [f"v{len(self.nodes)}_{index}" if outputs > 1 else f"v{len(self.nodes)}" for index in range(outputs)]
        node = helper.make_node(operator, operands, names, f"n{len(self.nodes)}")
        every = {**(given or {}), **attributes}
        node.attribute.extend(helper.make_attribute(word, value) for word, value in every.items())
        fed = [name for name in dict.fromkeys(operands) if name in self.values]
        made = helper.make_graph(
            [node],
            "g",
            [
                helper.make_tensor_value_info(name, _kind(self.values[name][0]), [None] * _rank(self, name))
                for name in fed
            ],
            [helper.make_empty_tensor_value_info(name) for name in names],
            [numpy_helper.from_array(self.constants[name], name) for name in operands if name in self.constants],
        )
        results: list[dict[str, Array]] = []
        try:
            with Session(ir.from_proto(_model(made))) as session:
                for at in range(len(SIZES)):
                    feeds = {name: self.values[name][at] for name in fed}
                    right = dict(session.run(feeds))
                    if not self._fit(right, dict(session.run({name: self._changed(a) for name, a in feeds.items()}))):
                        return None
                    results.append(right)
        except ToolchainFailure:
            return None
        found = {name: tuple(result[name] for result in results) for name in names}
        for arrays in found.values():
            pairs = zip(*(array.shape for array in arrays), strict=True)
            if any(pair not in (SIZES, (pair[0], pair[0])) for pair in pairs):
                return None
        self.nodes.append(node)
        self.values.update(found)
        return names

    def _changed(self, array: Array) -> Array:
        if array.dtype != np.float32 or not array.size:
            return array
        noise = self.numbers.uniform(-1, 1, array.shape) * self.change * np.abs(array).max()
        changed: Array = (array + noise).astype(np.float32)
        return changed

    def _fit(self, right: Feeds, changed: Feeds) -> bool:
        for name, array in right.items():
            if not 0 < array.size <= LARGEST or array.ndim > 6:
                return False
            if array.dtype != np.float32:
                if not np.array_equal(array, changed[name]):
                    return False
                continue
            if not np.isfinite(array).all() or not np.isfinite(changed[name]).all():
                return False
            most = float(np.abs(array).max())
            if not 1e-2 < most < 100 or (array.size > 1 and array.std() < 0.02 * most):
                return False
            if np.abs(np.subtract(array, changed[name])).max() > GAIN * self.change * most:
                return False
        return True

    # ---- what becomes of it

    def outputs(self) -> list[str]:
        read = self.read()
        return [name for node in self.nodes for name in node.output if name not in read]

    def model(self) -> ir.Model:
        used = self.read()
        made = helper.make_graph(
            self.nodes,
            "g",
            [self._info(name) for name in self.inputs if name in used],
            [self._info(name) for name in self.outputs()],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items() if name in used],
            value_info=[self._info(name) for node in self.nodes for name in node.output],
        )
        return ir.from_proto(_model(made))

    def feeds(self, at: int) -> Feeds:
        used = self.read()
        return {name: self.values[name][at] for name in self.inputs if name in used}

    def _info(self, name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, _kind(self.values[name][0]), self.shape(name))


def _rank(maker: Maker, name: str) -> int:
    return maker.values[name][0].ndim


def _kind(array: Array) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))


def _model(made: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", graph.OPSET)], ir_version=10)


def made(seed: int, *, change: float = 1e-5, quantizable: bool = False) -> Maker:
    """A graph of 5 to 25 nodes."""
    maker = Maker(seed, change)
    rng = maker.rng
    maker.input("N", rng.choice((1, 2, 3, 4, 8)), rng.choice((4, 5, 6, 8)), rng.choice((4, 6, 7, 8)))
    maker.input("N", rng.choice((1, 3, 4, 6)), rng.choice((2, 4, 8)))
    wanted = rng.randint(5, 25)
    families = [*(FAMILIES if not quantizable else QUANTIZABLE)]
    for _ in range(wanted * 6):
        if len(maker.nodes) >= wanted:
            break
        names = maker.floats()
        unread = [name for name in names if name not in maker.read()]
        of = rng.choice(unread) if unread and rng.random() < 0.7 else rng.choice(names)
        rng.choice(families)(maker, of)
    return maker


# ---- families: each adds a node, or a few, that read ``x``


PLAIN = (
    "Abs", "Atan", "Ceil", "Cos", "Erf", "Exp", "Floor", "Gelu", "HardSwish", "Log", "Mish", "Neg", "Reciprocal",
    "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Tanh",
)  # fmt: skip
FORMED: Mapping[str, Mapping[str, Attribute]] = {
    "LeakyRelu": {"alpha": 0.2},
    "Elu": {"alpha": 0.7},
    "Celu": {"alpha": 0.6},
    "HardSigmoid": {"alpha": 0.25, "beta": 0.4},
    "ThresholdedRelu": {"alpha": 0.3},
    "Shrink": {"lambd": 0.2, "bias": 0.1},
}


def unary(m: Maker, x: str) -> None:
    name = m.rng.choice((*PLAIN, *FORMED))
    m.node(name, x, given=FORMED.get(name))


def smooth(m: Maker, x: str) -> None:
    name = m.rng.choice(("Relu", "Relu", "Sigmoid", "Tanh", "HardSwish", "Gelu", "LeakyRelu", "Elu", "Abs"))
    m.node(name, x)


def clip(m: Maker, x: str) -> None:
    low, high = m.rng.choice(((0.0, 6.0), (-1.0, 1.0), (0.0, 1.0), (-0.5, 2.0)))
    m.node("Clip", x, m.constant(np.float32(low)), m.constant(np.float32(high)))


def binary(m: Maker, x: str) -> None:
    name = m.rng.choice(("Add", "Sub", "Mul", "Add", "Mul", "Div", "Max", "Min"))
    other = _other(m, x)
    operands = (x, other) if m.rng.random() < 0.6 else (other, x)
    m.node(name, *operands)


def arithmetic(m: Maker, x: str) -> None:
    other = _other(m, x)
    operands = (x, other) if m.rng.random() < 0.6 else (other, x)
    m.node(m.rng.choice(("Add", "Sub", "Mul", "Max", "Min")), *operands)


def _other(m: Maker, x: str) -> str:
    """What broadcasts with ``x``: a constant or a value."""
    shape = m.shape(x)
    fitting = [name for name in m.floats() if _broadcasts(shape, m.shape(name))]
    if fitting and m.rng.random() < 0.6:
        return m.rng.choice(fitting)
    of = [1 if isinstance(dim, str) or m.rng.random() < 0.5 else dim for dim in shape][m.rng.randint(0, len(shape)) :]
    return m.weight(*of, offset=m.rng.choice((0.0, 2.0)))


def _broadcasts(one: Sequence[int | str], other: Sequence[int | str]) -> bool:
    pairs = zip(one[::-1], other[::-1], strict=False)
    return all(a == b or 1 in (a, b) for a, b in pairs)


def convolution(m: Maker, x: str) -> None:
    dims = m.dims(x)
    if len(dims) not in (3, 4) or dims[0] or not all(dims[1:]):
        return
    channels, spatial = dims[1], len(dims) - 2
    group = m.rng.choice([each for each in (1, 1, 2, channels) if channels % each == 0])
    out = group * m.rng.choice((1, 2, 4))
    kernel = [m.rng.choice((1, 2, 3)) for _ in range(spatial)]
    strides = [m.rng.choice((1, 1, 2))] * spatial
    padding: dict[str, Attribute] = {"pads": [m.rng.choice((0, 1)) for _ in range(2 * spatial)]}
    if m.rng.random() < 0.3:
        padding = {"auto_pad": m.rng.choice(("SAME_UPPER", "SAME_LOWER", "VALID"))}
    weight = m.weight(out, channels // group, *kernel, scale=0.5)
    bias = [m.weight(out)] if m.rng.random() < 0.5 else []
    if m.rng.random() < 0.2 and spatial == 2:
        across = m.weight(channels, 3, *kernel, scale=0.5)
        m.node("ConvTranspose", x, across, strides=strides)
        return
    dilated: dict[str, Attribute] = {"dilations": [2] * spatial} if m.rng.random() < 0.15 else {}
    m.node("Conv", x, weight, *bias, group=group, strides=strides, given={**padding, **dilated})


def pool(m: Maker, x: str) -> None:
    dims = m.dims(x)
    if len(dims) not in (3, 4) or dims[0] or not all(dims[1:]):
        return
    name = m.rng.choice(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "AveragePool"))
    if name.startswith("Global"):
        m.node(name, x)
        return
    spatial = len(dims) - 2
    attributes: dict[str, Attribute] = {
        "kernel_shape": [m.rng.choice((2, 3)) for _ in range(spatial)],
        "strides": [m.rng.choice((1, 2))] * spatial,
        "pads": [m.rng.choice((0, 1)) for _ in range(2 * spatial)],
        "ceil_mode": m.rng.choice((0, 0, 1)),
    }
    if name == "AveragePool":
        attributes["count_include_pad"] = m.rng.choice((0, 1))
    m.node(name, x, given=attributes)


def transpose(m: Maker, x: str) -> None:
    perm = [*range(len(m.dims(x)))]
    if m.rng.random() < 0.7 and len(perm) > 2:
        rest = perm[1:]
        m.rng.shuffle(rest)
        perm = [0, *rest]
    else:
        m.rng.shuffle(perm)
    m.node("Transpose", x, perm=perm)


def reshape(m: Maker, x: str) -> None:
    dims = m.dims(x)
    if dims[:1] != (0,) or not all(dims[1:]):
        return
    total = int(np.prod(dims[1:], dtype=np.int64))
    to: list[int] = []
    for _ in range(m.rng.randint(0, 2)):
        to.append(m.rng.choice([each for each in range(1, total + 1) if total % each == 0][:8]))
        total //= to[-1]
    kind = m.rng.random()
    if kind < 0.2:
        m.node("Flatten", x)
    elif kind < 0.35:
        m.node("Unsqueeze", x, m.ints(m.rng.randint(0, len(dims))))
    else:
        m.node("Reshape", x, m.ints(0, *to, m.rng.choice((-1, total))))


def squeeze(m: Maker, x: str) -> None:
    ones = [axis for axis, dim in enumerate(m.dims(x)) if dim == 1]
    if ones:
        m.node("Squeeze", x, m.ints(*m.rng.sample(ones, m.rng.randint(1, len(ones)))))


def concat(m: Maker, x: str) -> None:
    shape = m.shape(x)
    if not shape:
        return
    axis = m.rng.choice([axis for axis, dim in enumerate(shape) if dim != "N"] or [0])
    rest = (*shape[:axis], *shape[axis + 1 :])
    alike = [
        name
        for name in m.floats(len(shape))
        if (*m.shape(name)[:axis], *m.shape(name)[axis + 1 :]) == rest and m.shape(name)[axis] != "N"
    ]
    operands = [x, *(m.rng.choice([*alike, x]) for _ in range(m.rng.randint(1, 2)))]
    if "N" not in shape and m.rng.random() < 0.5:
        operands.append(m.weight(*m.dims(x)))
    m.node("Concat", *operands, axis=m.rng.choice((axis, axis - len(shape))))


def split(m: Maker, x: str) -> None:
    dims = m.dims(x)
    axes = [axis for axis, dim in enumerate(dims) if dim > 1]
    if axes:
        axis = m.rng.choice(axes)
        first = m.rng.randint(1, dims[axis] - 1)
        m.node("Split", x, m.ints(first, dims[axis] - first), outputs=2, axis=axis)


def slice_(m: Maker, x: str) -> None:
    dims = m.dims(x)
    axes = [axis for axis, dim in enumerate(dims) if dim > 1]
    chosen = m.rng.sample(axes, min(len(axes), m.rng.randint(1, 2)))
    if not chosen:
        return
    starts, ends, steps = [], [], []
    for axis in chosen:
        dim = dims[axis]
        kind = m.rng.random()
        if kind < 0.5:
            starts.append(m.rng.randint(0, dim - 1))
            ends.append(m.rng.choice((dim, 1 << 40)))
            steps.append(m.rng.choice((1, 1, 2)))
        elif kind < 0.75:
            starts.append(-m.rng.randint(1, dim))
            ends.append(1 << 40)
            steps.append(1)
        else:
            starts.append(-1)
            ends.append(-(1 << 40))
            steps.append(m.rng.choice((-1, -2)))
    m.node("Slice", x, m.ints(*starts), m.ints(*ends), m.ints(*chosen), m.ints(*steps))


def pad(m: Maker, x: str) -> None:
    dims = m.dims(x)
    mode = m.rng.choice(("constant", "constant", "reflect", "edge"))
    pads = [m.rng.randint(0, 1) if dim > 1 else 0 for dim in (*dims, *dims)]
    value = [m.constant(np.float32(m.rng.choice((0.0, 0.5))))] if mode == "constant" and m.rng.random() < 0.5 else []
    m.node("Pad", x, m.ints(*pads), *value, mode=mode)


def reduction(m: Maker, x: str) -> None:
    kinds = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")
    _reduce(m, x, m.rng.choice((*kinds, "ReduceL1", "ReduceProd")))


def mean(m: Maker, x: str) -> None:
    _reduce(m, x, m.rng.choice(("ReduceMean", "ReduceMax", "ReduceMin")))


def _reduce(m: Maker, x: str, name: str) -> None:
    axes = [axis for axis, dim in enumerate(m.dims(x)) if dim]
    if axes:
        chosen = m.rng.sample(axes, m.rng.randint(1, min(2, len(axes))))
        m.node(name, x, m.ints(*chosen), keepdims=m.rng.choice((0, 1)))


def softmax(m: Maker, x: str) -> None:
    m.node(m.rng.choice(("Softmax", "Softmax", "LogSoftmax")), x, axis=m.rng.choice((-1, 1, len(m.dims(x)) - 1)))


def matmul(m: Maker, x: str) -> None:
    dims = m.dims(x)
    if len(dims) < 2 or not dims[-1]:
        return
    kind = m.rng.random()
    if kind < 0.5 or not dims[-2]:
        result = m.node("MatMul", x, m.weight(dims[-1], m.rng.choice((1, 3, 4, 8)), scale=0.5))
        if result and m.rng.random() < 0.4:
            m.node("Add", result[0], m.weight(m.dims(result[0])[-1]))
    elif kind < 0.65 and len(dims) == 2:
        transposed = m.rng.choice((0, 1))
        shape = (4, dims[1]) if transposed else (dims[1], 4)
        m.node("Gemm", x, m.weight(*shape, scale=0.5), m.weight(4), transB=transposed, alpha=m.rng.choice((1.0, 0.5)))
    else:
        perm = [*range(len(dims))]
        perm[-2:] = perm[-1], perm[-2]
        turned = m.node("Transpose", x, perm=perm)
        if turned:
            m.node("MatMul", x, turned[0])


def gather(m: Maker, x: str) -> None:
    axes = [axis for axis, dim in enumerate(m.dims(x)) if dim]
    if axes:
        axis = m.rng.choice(axes)
        dim = m.dims(x)[axis]
        shape = m.rng.choice(((), (1,), (3,), (2, 2)))
        m.node("Gather", x, m.constant(m.numbers.integers(-dim, dim, shape)), axis=axis)


def resize(m: Maker, x: str) -> None:
    dims = m.dims(x)
    if len(dims) != 4 or dims[0] or not all(dims[1:]):
        return
    mode, way = m.rng.choice((("nearest", "asymmetric"), ("linear", "half_pixel"), ("linear", "align_corners")))
    attributes: dict[str, Attribute] = {"mode": mode, "coordinate_transformation_mode": way}
    if mode == "nearest":
        attributes["nearest_mode"] = "floor"
    m.node("Resize", x, "", m.constant(np.array([1, 1, 2, m.rng.choice((1, 2, 3))], np.float32)), given=attributes)


def normalization(m: Maker, x: str) -> None:
    dims = m.dims(x)
    if len(dims) < 3 or dims[0] or not all(dims[1:]):
        return
    channels = dims[1]
    match m.rng.randint(0, 4):
        case 0:
            scale, bias = m.weight(dims[-1], offset=1.0), m.weight(dims[-1])
            m.node("LayerNormalization", x, scale, bias, axis=-1)
        case 1:
            m.node("InstanceNormalization", x, m.weight(channels, offset=1.0), m.weight(channels))
        case 2:
            spread = m.constant(m.numbers.uniform(0.5, 2, channels).astype(np.float32))
            mean = m.weight(channels)
            m.node("BatchNormalization", x, m.weight(channels, offset=1.0), m.weight(channels), mean, spread)
        case 3:
            groups = m.rng.choice([each for each in (1, 2, channels) if channels % each == 0])
            scale, bias = m.weight(channels, offset=1.0), m.weight(channels)
            m.node("GroupNormalization", x, scale, bias, num_groups=groups)
        case _:
            m.node("RMSNormalization", x, m.weight(dims[-1], offset=1.0))


def shuffle(m: Maker, x: str) -> None:
    dims = m.dims(x)
    if len(dims) != 4 or dims[0] or not all(dims[1:]):
        return
    if dims[1] % 4 == 0 and m.rng.random() < 0.6:
        m.node("DepthToSpace", x, blocksize=2, mode=m.rng.choice(("DCR", "CRD")))
    elif dims[2] % 2 == dims[3] % 2 == 0:
        m.node("SpaceToDepth", x, blocksize=2)


def repeat(m: Maker, x: str) -> None:
    dims = m.dims(x)
    if m.rng.random() < 0.5:
        m.node("Tile", x, m.ints(*(1 if not dim else m.rng.choice((1, 1, 2)) for dim in dims)))
    else:
        m.node("Expand", x, m.ints(*(m.rng.choice((1, 3)) if dim == 1 else 1 for dim in dims)))


def chosen(m: Maker, x: str) -> None:
    """Comparisons and what is picked by them."""
    kind = m.rng.random()
    if kind < 0.6:
        compared = m.node(m.rng.choice(("Less", "Greater", "LessOrEqual")), x, _other(m, x))
        if compared:
            m.node("Where", compared[0], x, _other(m, x))
    elif kind < 0.8 and m.dims(x) and m.dims(x)[-1]:
        best = m.node("ArgMax", x, axis=-1, keepdims=m.rng.choice((0, 1)))
        if best:
            m.node("Cast", best[0], to=1)
    elif m.dims(x) and m.dims(x)[-1] > 1:
        m.node("TopK", x, m.ints(2), outputs=2, axis=-1)


def along(m: Maker, x: str) -> None:
    dims = m.dims(x)
    if len(dims) < 2 or not dims[-1]:
        return
    kind = m.rng.random()
    if kind < 0.35:
        m.node("CumSum", x, m.constant(np.int64(len(dims) - 1)), exclusive=m.rng.choice((0, 1)))
    elif kind < 0.6:
        m.node("PRelu", x, m.weight(*(dims[1], *(1,) * (len(dims) - 2)), offset=0.3))
    elif kind < 0.8 and dims[-2]:
        m.node("Trilu", x, upper=m.rng.choice((0, 1)))
    else:
        m.node("LpNormalization", x, axis=-1, p=m.rng.choice((1, 2)))


def recurrent(m: Maker, x: str) -> None:
    dims = m.dims(x)
    if len(dims) != 3 or dims[0] or not all(dims[1:]):
        return
    steps_first = m.node("Transpose", x, perm=[1, 0, 2])
    if not steps_first:
        return
    name, gates = m.rng.choice((("LSTM", 4), ("GRU", 3), ("RNN", 1)))
    hidden, both = 4, m.rng.choice((1, 2))
    weights = [m.weight(both, gates * hidden, size, scale=0.4) for size in (dims[2], hidden)]
    direction = "bidirectional" if both == 2 else m.rng.choice(("forward", "reverse"))
    m.node(name, steps_first[0], *weights, m.weight(both, 2 * gates * hidden), hidden_size=hidden, direction=direction)


Family: TypeAlias = Callable[[Maker, str], None]

FAMILIES: tuple[Family, ...] = (
    unary, unary, unary, clip, binary, binary, binary, convolution, convolution, convolution, pool, pool, transpose,
    transpose, reshape, reshape, squeeze, concat, concat, split, slice_, pad, reduction, softmax, matmul, matmul,
    gather, resize, normalization, normalization, shuffle, repeat, chosen, along, recurrent,
)  # fmt: skip

QUANTIZABLE: tuple[Family, ...] = (
    smooth, smooth, clip, arithmetic, arithmetic, convolution, convolution, convolution, pool, transpose, reshape,
    squeeze, concat, split, slice_, pad, mean, softmax, matmul, matmul, gather, resize, shuffle, repeat,
)  # fmt: skip
"""What does not turn on small changes."""

SHAPES = {"N": DimRange(1, 3, 4)}


def specs(maker: Maker, names: Sequence[str]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, maker.values[name][0].dtype.name, maker.shape(name)) for name in names)


def quantized(maker: Maker, scheme: QuantScheme, target: str) -> ir.Model:
    """With all quantized that ``scheme`` quantizes, clipped to what was seen, and lowered as ``target`` has it."""

    def seen(name: str, grid: Grid) -> tuple[float, float] | None:
        del grid
        arrays = [array for array in maker.values.get(name, ()) if array.dtype == np.float32]
        return (min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)) if arrays else None

    model = Quantize(scheme, seen)(maker.model()).model
    for _, lowering in build([(name, {}) for name in catalog.target(target).lower], SHAPES):
        model = lowering(model).model
    return model


def assert_close(case: str, actual: Outputs, right: Outputs, bounds: Mapping[str, float]) -> None:
    """Floats within ``bounds`` by output; all others equal."""
    assert set(actual) == set(right), case
    for name, array in right.items():
        assert (actual[name].shape, actual[name].dtype) == (array.shape, array.dtype), f"{case}: {name}"
        left, wide = actual[name].astype(np.float64), array.astype(np.float64)
        bound = bounds[name] if array.dtype.kind == "f" else 0
        np.testing.assert_allclose(left, wide, rtol=0, atol=bound, err_msg=f"{case}: {name}")
