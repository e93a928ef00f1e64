"""``Einsum`` of two tensors as one ``MatMul``, as attention is written by hand.

tf2onnx takes an einsum apart one label at a time, with shapes computed at run time and up to seven Transposes in an
attention of Keras. What is a product of matrices at heart needs no more than the axes brought into its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tf2onnx.onnx_opset.math import Einsum

if TYPE_CHECKING:
    from tf2onnx.graph import Graph, Node


@dataclass(frozen=True)
class Product:
    """``first @ second``, each label in one role. All are strings of labels, such as ``ab``."""

    swapped: bool
    """Whether ``first`` is the second operand of the einsum."""
    first: str
    second: str
    batch: str
    rows: str
    inner: str
    columns: str
    out: str

    @property
    def transposes(self) -> tuple[bool, bool, bool]:
        """Whether each operand and the result have to be transposed."""
        return (
            self.first != self.batch + self.rows + self.inner,
            self.second != self.batch + self.inner + self.columns,
            self.out != self.batch + self.rows + self.columns,
        )


def products(equation: str) -> Iterator[Product]:
    """The ways to compute ``abc,cd->abd`` as a product; none for sums, diagonals, outer products and ellipses."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != 2 or not (left + out).replace(",", "").isalpha():
        return
    if any(len(set(labels)) != len(labels) for labels in (*terms, out)):
        return
    for swapped in (False, True):
        first, second = reversed(terms) if swapped else terms
        inner = "".join(label for label in first if label in second and label not in out)
        batch = "".join(label for label in out if label in first and label in second)
        rows = "".join(label for label in out if label in first and label not in second)
        columns = "".join(label for label in out if label in second and label not in first)
        complete = set(first) == set(batch + rows + inner) and set(second) == set(batch + inner + columns)
        single = len(rows) == len(inner) == len(columns) == 1
        if complete and inner and rows and columns and (single or not batch):
            yield Product(swapped, first, second, batch, rows, inner, columns, out)


def einsum(context: Graph, node: Node, name: str, arguments: Sequence[str]) -> None:  # noqa: ARG001 - tf2onnx's own call
    """The handler for tf2onnx."""
    constant = [operand.is_const() for operand in node.inputs]
    shapes = [context.get_shape(operand) for operand in node.input]
    best = None
    for product in products(node.get_attr_value("equation").decode()):
        sizes = _sizes(product, shapes)
        if sizes is None:
            continue
        first, second, result = product.transposes
        operands = constant[::-1] if product.swapped else constant
        # What is constant is transposed once and for all.
        cost = (first and not operands[0]) + (second and not operands[1]) + result
        if best is None or cost < best[0]:
            best = (cost, product, sizes)
    if best is None:
        Einsum.version_12(context, node)
        return
    _build(context, node, name, best[1], best[2])


def _sizes(product: Product, shapes: Sequence[Sequence[int] | None]) -> dict[str, int] | None:
    """The size of each label, -1 where it is open; None where one is that has to be merged with another."""
    sizes: dict[str, int] = {}
    terms = (product.second, product.first) if product.swapped else (product.first, product.second)
    for labels, shape in zip(terms, shapes):
        if shape is None or len(shape) != len(labels):
            return None
        for label, size in zip(labels, shape):
            sizes[label] = max(size, sizes.get(label, -1))
    merged = [
        *(product.inner if len(product.inner) > 1 else ""),
        *(product.columns if len(product.columns) > 1 else ""),
    ]
    if merged:
        merged += [*product.inner, *product.columns]
    return None if any(sizes[label] < 0 for label in merged) else sizes


def _build(context: Graph, node: Node, name: str, product: Product, sizes: dict[str, int]) -> None:
    dtype, shape, outputs = context.get_dtype(node.output[0]), context.get_shape(node.output[0]), list(node.output)
    first, second = reversed(list(node.input)) if product.swapped else node.input
    context.remove_node(node.name)

    def transposed(value: str, labels: str, order: str) -> str:
        if labels == order:
            return value
        made = context.make_node("Transpose", [value], attr={"perm": [labels.index(label) for label in order]})
        return str(made.output[0])

    def reshaped(value: str, dims: Sequence[int]) -> str:
        # 0: as it is.
        constant = context.make_const(f"{value.replace(':', '_')}_dims_{len(dims)}_{name}", np.array(dims, np.int64))
        return str(context.make_node("Reshape", [value, constant.output[0]]).output[0])

    kept = [0] * len(product.rows)
    inner, columns = ([sizes[label] for label in labels] for labels in (product.inner, product.columns))
    first = transposed(first, product.first, product.batch + product.rows + product.inner)
    second = transposed(second, product.second, product.batch + product.inner + product.columns)
    if len(inner) > 1:
        first = reshaped(first, [*kept, int(np.prod(inner))])
    if len(inner) > 1 or len(columns) > 1:
        second = reshaped(second, [int(np.prod(inner)), int(np.prod(columns))])
    result = str(context.make_node("MatMul", [first, second]).output[0])
    if len(columns) > 1:
        result = reshaped(result, [*kept, *columns])
    result = transposed(result, product.batch + product.rows + product.columns, product.out)
    context.make_node("Identity", [result], outputs=outputs, dtypes=[dtype], shapes=[shape], name=name)
