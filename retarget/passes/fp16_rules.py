"""Which nodes and tensors stay in float32 when a model is cast to float16, and why.

float16 ends at 65504, has 11 significant bits, and everything below 2⁻²⁴ is zero. So these stay in float32:

1. operators that are known to need it (``KEPT``), and those whose definition has no float16;
2. tensors whose recorded magnitude comes within a factor of 4 of the end, or that lie below the smallest normal
   number altogether, each with the node that makes it and the nodes that take it;
3. sums inside an operator that go beyond its inputs and outputs: the sum of a mean, the squares of a norm;
4. inputs of Log, Reciprocal and Div that would become zero, and with them the nodes that make them;
5. angles of Sin and Cos, and floats that become integers, too large to be told apart in 11 bits: with all that
   computes them, as a position that was rounded early stays wrong;
6. nodes with subgraphs or sequences: their insides are left as they are;
7. what is quantized already, from DequantizeLinear to QuantizeLinear: a Cast between them and the node would take the
   integer kernel away. Weights alone in integers do not make a node quantized.

Numbers of -1e7 and less that only reach a Softmax are masks, not values: they do not count, and as constants become
``MASK``, of which two can be added.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

LARGEST = 65504.0
LIMIT = LARGEST / 4
SMALLEST_NORMAL = 2.0**-14
VANISHING = 2.0**-17
"""Constants below it keep fewer than 7 of their 11 bits; an epsilon of 1e-5 is above, one of 1e-6 below."""
MASK = -30000.0
MASK_FLOOR = -1e7
EXACT_INTEGERS = 2048.0
EXACT_ANGLE = 16.0
"""Radians, up to which the spacing of float16 is at most 2⁻⁷."""
UPSTREAM_NODES = 32

KEPT: Mapping[str, str] = {
    "Bernoulli": "random draws must not depend on the precision",
    "CumSum": "rounding errors add up along the axis",
    "DFT": "rounding errors add up over the window",
    "DequantizeLinear": "scales are often below float16's smallest normal number",
    "Det": "products of many elements leave float16's range",
    "GridSample": "coordinates need more than 11 bits",
    "MaxRoiPool": "coordinates need more than 11 bits",
    "Multinomial": "random draws must not depend on the precision",
    "QuantizeLinear": "scales are often below float16's smallest normal number",
    "RandomNormal": "random draws must not depend on the precision",
    "RandomNormalLike": "random draws must not depend on the precision",
    "RandomUniform": "random draws must not depend on the precision",
    "RandomUniformLike": "random draws must not depend on the precision",
    "RoiAlign": "coordinates need more than 11 bits",
    "STFT": "rounding errors add up over the window",
}
"""Operators that stay in float32 whatever their ranges are."""

MOVING = frozenset(
    {
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad",
        "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators that move values and do not change them."""

_ARITHMETIC = frozenset({"Add", "Cast", "Div", "Einsum", "MatMul", "Mul", "Neg", "Sub"})
_MASKING = MOVING | {"Add", "Cast", "Clip", "Max", "Min", "Mul", "Sub", "Where"}


class TensorRange(Protocol):
    """What calibration recorded of a tensor."""

    @property
    def min(self) -> float:
        """Smallest finite value."""

    @property
    def max(self) -> float:
        """Largest finite value."""

    @property
    def absmin(self) -> float:
        """Smallest magnitude other than zero."""

    @property
    def values(self) -> NDArray[np.float64]:
        """The values that occur, to the width of a bin."""


@dataclass(frozen=True)
class Signature:
    """Positions of a node's float32 inputs and outputs that its definition lets be float16."""

    inputs: frozenset[int]
    outputs: frozenset[int]


@dataclass
class Rules:
    """What stays in float32. ``kept`` maps a node to the reason."""

    kept: dict[ir.Node, str] = field(default_factory=dict)
    following: set[ir.Node] = field(default_factory=set)
    """Nodes without float outputs: they take floats as they come."""
    signatures: dict[ir.Node, Signature] = field(default_factory=dict)
    masks: set[ir.Value] = field(default_factory=set)
    """Constants that become ``MASK`` where they are below ``MASK_FLOOR``."""
    wide: dict[ir.Value, str] = field(default_factory=dict)
    """Values that must not be float16, and why."""


def decide(model: ir.Model, ranges: Mapping[str, TensorRange]) -> Rules:
    """Hold every node of the main graph against the rules of the module."""
    nodes = list(model.graph)
    rules = Rules()
    masking = _softmax_only(model.graph)
    for node in nodes:
        signature, reason = _signature(node, model.opset_imports)
        if signature is not None:
            rules.signatures[node] = signature
            if not signature.outputs and not any(is_float(value) for value in node.outputs):
                rules.following.add(node)
        if reason is not None:
            rules.kept[node] = reason
    _keep_quantized(nodes, rules)
    _hold_values(model.graph, nodes, ranges, masking, rules)
    for node in nodes:
        _hold_node(node, ranges, rules)
    for value, reason in list(rules.wide.items()):
        for node in _around(value, model.graph):
            if node in rules.signatures and node not in rules.following:
                rules.kept.setdefault(node, reason)
    _keep_between(nodes, model.graph, rules)
    return rules


# ---- definitions


def _signature(node: ir.Node, opsets: Mapping[str, int]) -> tuple[Signature | None, str | None]:
    """What of ``node`` can be float16, and why it stays in float32; (None, None) for a node without floats."""
    values = [*node.inputs, *node.outputs]
    inner = any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    )
    if not inner and not any(is_float(value) for value in values):
        return None, None
    if node.op_type == "Constant" and node.domain == "":
        # All others were lifted: this one is an output of the model and computes nothing.
        return None, None
    nothing = Signature(frozenset(), frozenset())
    if inner:
        return nothing, "its subgraphs stay in float32"
    if node.op_type in KEPT and node.domain == "":
        return nothing, KEPT[node.op_type]
    if any(
        value is not None and value.type is not None and not isinstance(value.type, ir.TensorType) for value in values
    ):
        return nothing, "it works on sequences or optional values"
    schema = _schema(node.op_type, opsets.get(node.domain, 1), node.domain)
    if schema is None:
        return nothing, f"the definition of {node.domain or 'ai.onnx'}.{node.op_type} is not known"
    if node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT16:
        return nothing, None
    half = {
        one.type_param_str
        for one in schema.type_constraints
        if {"tensor(float)", "tensor(float16)"} <= set(one.allowed_type_strs)
    }
    inputs = _formals(node.inputs, schema.inputs)
    outputs = _formals(node.outputs, schema.outputs)
    unknown = {kind for value, kind in (*inputs, *outputs) if value is not None and value.dtype is None}
    if unknown & half:
        return nothing, "the type of one of its values is not known"
    signature = Signature(
        frozenset(at for at, (value, kind) in enumerate(inputs) if kind in half and is_float(value)),
        frozenset(at for at, (value, kind) in enumerate(outputs) if kind in half and is_float(value)),
    )
    if not signature.inputs and not signature.outputs:
        return nothing, "its definition has no float16"
    return signature, None


def _formals(
    values: Sequence[ir.Value | None], parameters: Sequence[onnx.defs.OpSchema.FormalParameter]
) -> list[tuple[ir.Value | None, str]]:
    """Each value with its type variable; the last parameter may be variadic."""
    return [(value, parameters[min(at, len(parameters) - 1)].type_str) for at, value in enumerate(values)]


@cache
def _schema(op: str, version: int, domain: str) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None


def is_float(value: ir.Value | None) -> bool:
    return (
        value is not None
        and value.dtype == ir.DataType.FLOAT
        and not isinstance(value.type, (ir.SequenceType, ir.OptionalType))
    )


# ---- quantized nodes


def _keep_quantized(nodes: list[ir.Node], rules: Rules) -> None:
    quantized: set[ir.Node] = set()
    for node in nodes:
        if node not in rules.signatures or node in rules.kept:
            continue
        operands = [node.inputs[at] for at in rules.signatures[node].inputs]
        makers = [value.producer() for value in operands if value is not None and not value.is_initializer()]
        if any(_dequantizes_activations(maker) for maker in makers):
            keep = all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
        else:
            # What follows such a node, an activation function most often, up to the quantization of its result.
            ends = all(user.op_type == "QuantizeLinear" for output in node.outputs for user, _ in output.uses())
            keep = bool(makers) and ends and all(maker in quantized for maker in makers)
        if keep:
            quantized.add(node)
            rules.kept[node] = "it is quantized: casts would part it from its DequantizeLinear and QuantizeLinear"


def _dequantizes_activations(node: ir.Node | None) -> bool:
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return False
    return not node.inputs[0].is_initializer()


# ---- masks


def _softmax_only(graph: ir.Graph) -> set[ir.Value]:
    """Values that reach nothing but Softmax, through operators that do not change the sense of a mask."""
    only: set[ir.Value] = set()

    def check(value: ir.Value) -> None:
        uses = value.uses()
        if uses and not value.is_graph_output() and all(ends(node) for node, _ in uses):
            only.add(value)

    def ends(node: ir.Node) -> bool:
        if node.graph is not graph:
            return False
        return node.op_type == "Softmax" or (node.op_type in _MASKING and all(out in only for out in node.outputs))

    for node in reversed(graph):
        for output in node.outputs:
            check(output)
    for value in (*graph.inputs, *graph.initializers.values()):
        check(value)
    return only


def _is_mask(values: NDArray[np.float64]) -> bool:
    """Whether all values beyond the limit are masks."""
    beyond = np.abs(values) > LIMIT
    return bool((values[beyond] <= MASK_FLOOR).all())


# ---- values


def _hold_values(
    graph: ir.Graph, nodes: list[ir.Node], ranges: Mapping[str, TensorRange], masking: set[ir.Value], rules: Rules
) -> None:
    for value in (*graph.inputs, *(output for node in nodes for output in node.outputs)):
        recorded = ranges.get(value.name or "")
        if recorded is None or not is_float(value):
            continue
        largest = max(abs(recorded.min), abs(recorded.max))
        if largest > LIMIT and not (value in masking and _is_mask(recorded.values)):
            rules.wide[value] = f"'{value.name}' reaches {largest:.3g}, float16 ends at {LARGEST:g}"
        elif 0 < largest < SMALLEST_NORMAL:
            rules.wide[value] = f"'{value.name}' stays below {largest:.3g}, where float16 loses its bits"
    for value in graph.initializers.values():
        if not is_float(value) or value.const_value is None or not value.const_value.size:
            continue
        low, high = _extent(value.const_value)
        largest = max(abs(low), abs(high))
        if largest > LARGEST:
            if value in masking and _is_mask(np.asarray(value.const_value.numpy(), np.float64)):
                rules.masks.add(value)
            else:
                rules.wide[value] = f"the constant '{value.name}' reaches {largest:.3g}, float16 ends at {LARGEST:g}"
        elif 0 < largest < VANISHING and not _is_lost(value, largest, ranges):
            rules.wide[value] = f"the constant '{value.name}' stays below {largest:.3g}, where float16 loses its bits"


def _is_lost(value: ir.Value, largest: float, ranges: Mapping[str, TensorRange]) -> bool:
    """Whether the constant is only added to tensors so much larger that float16 does not see it: most epsilons."""
    for node, at in value.uses():
        other = node.inputs[1 - at] if node.op_type == "Add" else None
        recorded = ranges.get(other.name or "") if other is not None else None
        # Zeros do not enter ``absmin``: a smallest value above it rules them out.
        if recorded is None or recorded.min <= 0 or recorded.absmin < largest * EXACT_INTEGERS:
            return False
    return True


def _extent(tensor: ir.TensorProtocol) -> tuple[float, float]:
    """Smallest and largest finite value."""
    array = np.asarray(tensor.numpy())
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        finite = array[np.isfinite(array)]
        return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return low, high


# ---- nodes


def _hold_node(node: ir.Node, ranges: Mapping[str, TensorRange], rules: Rules) -> None:
    if node not in rules.signatures or node in rules.kept:
        return

    def recorded(value: ir.Value | None) -> TensorRange | None:
        return ranges.get(value.name or "") if value is not None else None

    def largest(value: ir.Value | None) -> float:
        found = recorded(value)
        return max(abs(found.min), abs(found.max)) if found is not None else 0.0

    data = node.inputs[0]
    match node.op_type:
        case "ReduceMean" | "GlobalAveragePool" | "AveragePool":
            count = _averaged(node)
            if largest(node.outputs[0]) * count > LARGEST:
                rules.kept[node] = f"its sum over {count} elements may leave float16's range"
        case "ReduceL2" if largest(node.outputs[0]) ** 2 > LIMIT:
            rules.kept[node] = "its sum of squares leaves float16's range"
        case "InstanceNormalization" | "LpNormalization" | "MeanVarianceNormalization" if largest(data) ** 2 > LIMIT:
            rules.kept[node] = "its squares leave float16's range"
        case "Log" | "Reciprocal" | "Div":
            divisor = node.inputs[1] if node.op_type == "Div" else data
            found = recorded(divisor)
            if found is not None and 0 < found.absmin < SMALLEST_NORMAL and divisor is not None:
                rules.wide.setdefault(divisor, f"'{divisor.name}' reaches down to {found.absmin:.3g}, zero in float16")
            elif divisor is not None and divisor.const_value is not None and _vanishes(divisor.const_value):
                rules.wide.setdefault(divisor, f"elements of the constant '{divisor.name}' become zero in float16")
        case "Sin" | "Cos" if largest(data) > EXACT_ANGLE:
            _keep_upstream(node, f"angles of up to {largest(data):.3g} need more than 11 bits", rules)
        case "Cast" | "Ceil" | "Floor" | "Round" | "Mod" if largest(data) > EXACT_INTEGERS and _makes_integers(node):
            _keep_upstream(node, f"whole numbers of up to {largest(data):.3g} need more than 11 bits", rules)
        case _:
            pass


def _makes_integers(node: ir.Node) -> bool:
    dtype = node.outputs[0].dtype
    return node.op_type != "Cast" or (dtype is not None and dtype.is_integer())


def _averaged(node: ir.Node) -> int:
    """How many elements go into one of a mean; 1 where that is unknown."""
    if node.op_type == "AveragePool":
        return int(np.prod(node.attributes.get_ints("kernel_shape", ())))
    before, after = (_size(value) for value in (node.inputs[0], node.outputs[0]))
    return max(before // after, 1) if before and after else 1


def _size(value: ir.Value | None) -> int:
    """Elements with symbolic dimensions at 1, which cancel out in a ratio; 0 where the rank is unknown."""
    if value is None or value.shape is None:
        return 0
    return int(np.prod([dim if isinstance(dim, int) else 1 for dim in value.shape], dtype=np.int64))


def _vanishes(tensor: ir.TensorProtocol) -> bool:
    if tensor.dtype != ir.DataType.FLOAT:
        return False
    array = np.asarray(tensor.numpy())
    return bool(((array != 0) & (np.abs(array) < SMALLEST_NORMAL)).any())


def _keep_upstream(node: ir.Node, reason: str, rules: Rules) -> None:
    """Keep ``node`` and the arithmetic that leads to it, up to integers, inputs and other operators."""
    rules.kept[node] = reason
    queue = deque([node])
    for _ in range(UPSTREAM_NODES):
        if not queue:
            return
        for value in queue.popleft().inputs:
            producer = value.producer() if value is not None else None
            if (
                producer is not None
                and producer.op_type in _ARITHMETIC | MOVING
                and producer in rules.signatures
                and producer not in rules.kept
                and any(is_float(output) for output in producer.outputs)
            ):
                rules.kept[producer] = reason
                queue.append(producer)


def _around(value: ir.Value, graph: ir.Graph) -> Iterator[ir.Node]:
    producer = value.producer()
    if producer is not None:
        yield producer
    for node, _ in value.uses():
        if node.graph is graph:
            yield node


def _keep_between(nodes: list[ir.Node], graph: ir.Graph, rules: Rules) -> None:
    """Moves of values from a node in float32 to nodes in float32 stay there: a trip to float16 only loses bits."""

    def movable(node: ir.Node) -> bool:
        return node.op_type in MOVING and node in rules.signatures and node not in rules.kept

    wanted: set[ir.Node] = set()
    for node in reversed(nodes):
        uses = [user for output in node.outputs for user, _ in output.uses()]
        if (
            movable(node)
            and uses
            and all(user.graph is not graph or user in rules.kept or user in wanted for user in uses)
        ):
            wanted.add(node)
    for node in nodes:
        if node not in wanted:
            continue
        floats = [node.inputs[at] for at in rules.signatures[node].inputs]
        producers = [value.producer() for value in floats if value is not None and not value.is_initializer()]
        if (
            producers
            and all(producer in rules.kept for producer in producers if producer is not None)
            and None not in producers
        ):
            rules.kept[node] = "it lies between nodes in float32"
