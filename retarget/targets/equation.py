"""What the equation of an Einsum says: letters for the axes of each operand, and how two operands become one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from string import ascii_letters

import onnx_ir as ir

from retarget.targets.walk import Refusal


def terms(node: ir.Node, shapes: Sequence[Sequence[int | None]], target: str) -> tuple[list[str], str]:
    """The letters of each operand and of the result, with some for what `...` stands for.

    ``shapes`` are those of the operands, with None for what is open; ``target`` is named where it lacks something.
    Raises ``Refusal`` for an equation that does not fit them, and for one with a letter twice in an operand.
    """
    equation = node.attributes.get_string("equation").replace(" ", "")
    left, arrow, result = equation.partition("->")
    found = left.split(",")
    if len(found) != len(shapes):
        raise Refusal(f"equation={equation}: it has {len(found)} operands, and the node {len(shapes)}")
    free = [letter for letter in ascii_letters if letter not in equation]
    counts = [len(shape) - len(term.replace("...", "")) for shape, term in zip(shapes, found, strict=True)]
    dotted = [count for term, count in zip(found, counts, strict=True) if "..." in term]
    most = "".join(free[: max(dotted, default=0)])
    found = [term.replace("...", most[len(most) - count :]) for term, count in zip(found, counts, strict=True)]
    if not arrow:
        counted = left.replace("...", "")
        result = most + "".join(sorted(each for each in set(counted) - {","} if counted.count(each) == 1))
    result = result.replace("...", most)
    if any(len(set(term)) < len(term) for term in (*found, result)):
        raise Refusal(
            f"equation={equation}: a letter twice in one operand is its diagonal, which {target} does not read"
        )
    for letter in set(equation) & set(ascii_letters):
        along = (shape[term.index(letter)] for shape, term in zip(shapes, found, strict=True) if letter in term)
        sizes = {size for size in along if size is not None}
        if len(sizes) > 1:
            raise Refusal(f"equation={equation}: {letter} is {' and '.join(map(str, sorted(sizes)))}")
    return found, result


@dataclass(frozen=True)
class Contraction:
    """The letters of two operands, as a product of matrices [batch, rows, inner] and [batch, inner, columns]."""

    batch: str
    rows: str
    inner: str
    columns: str

    @staticmethod
    def of(left: str, right: str, kept: Collection[str]) -> Contraction:
        """Of operands with the letters ``left`` and ``right``, of which ``kept`` are asked for behind them."""
        shared = [letter for letter in left if letter in right]
        return Contraction(
            "".join(letter for letter in shared if letter in kept),
            "".join(letter for letter in left if letter not in shared),
            "".join(letter for letter in shared if letter not in kept),
            "".join(letter for letter in right if letter not in shared),
        )

    @property
    def letters(self) -> str:
        """Of the product."""
        return self.batch + self.rows + self.columns
