"""Tensor specifications and dimension ranges as a user types them: no numpy.

>>> TensorSpec.parse("image=float32[N,3,224,224]")
TensorSpec(name='image', dtype='float32', shape=('N', 3, 224, 224))
>>> DimRange.parse("1:8:32")
DimRange(min=1, opt=8, max=32)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from retarget.errors import RetargetError, did_you_mean

DTYPES = frozenset(
    {"float64", "float32", "float16", "bfloat16", "bool"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)

_SPEC = re.compile(r"\s*(?P<dtype>[A-Za-z_][\w]*)\s*\[(?P<shape>[^\[\]]*)\]\s*")
SPEC_PATTERN = rf"^\s*({'|'.join(sorted(DTYPES))})\s*\[[^\[\]]*\]\s*$"
"""What ``TensorSpec.of`` takes, as far as a regular expression can say it: for JSON Schema."""
_DIM = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_SIZE = re.compile(r"[0-9]{1,18}")
"""Of a dimension: ASCII digits that fit into an int64."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of an input or output. A ``str`` in the shape is a symbolic dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @classmethod
    def parse(cls, text: str) -> TensorSpec:
        """``image=float32[N,3,224,224]``. Raises ``RetargetError`` with the place in the text."""
        name, equals, rest = text.partition("=")
        if not equals or not name.strip():
            raise RetargetError(
                f"input spec '{text}' has no name", "write NAME=DTYPE[SHAPE], as in image=float32[N,3,224,224]"
            )
        return cls.of(name.strip(), rest)

    @classmethod
    def of(cls, name: str, text: str) -> TensorSpec:
        """The spec of input ``name`` from ``float32[N,3,224,224]``."""
        match = _SPEC.fullmatch(text)
        if match is None:
            raise RetargetError(
                f"input '{name}': '{text}' is not a tensor spec", "write DTYPE[SHAPE], as in float32[N,3,224,224]"
            )
        dtype = match["dtype"]
        if dtype not in DTYPES:
            raise RetargetError(f"input '{name}': unknown dtype '{dtype}'", did_you_mean(dtype, DTYPES))
        parts = [part.strip() for part in match["shape"].split(",")] if match["shape"].strip() else []
        return cls(name, dtype, tuple(_dimension(name, part) for part in parts))

    def __str__(self) -> str:
        return f"{self.name}={self.type}"

    @property
    def type(self) -> str:
        """``float32[N,3,224,224]``."""
        return f"{self.dtype}[{','.join(str(dim) for dim in self.shape)}]"

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbolic dimensions, in order, each once."""
        return tuple(dict.fromkeys(dim for dim in self.shape if isinstance(dim, str)))

    def at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape with each symbolic dimension replaced by its size in ``sizes``."""
        return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in self.shape)


@dataclass(frozen=True)
class DimRange:
    """Smallest, most likely and largest size of a symbolic dimension."""

    min: int
    opt: int
    max: int

    @classmethod
    def parse(cls, text: str) -> DimRange:
        """``1:8:32``, or ``8`` for a fixed size. Raises ``RetargetError``."""
        parts = [part.strip() for part in text.split(":")]
        sizes = [int(part) for part in parts if _SIZE.fullmatch(part)]
        if len(sizes) == len(parts) == 1:
            sizes, parts = sizes * 3, parts * 3
        if not len(sizes) == len(parts) == 3 or not 0 < sizes[0] <= sizes[1] <= sizes[2]:
            raise RetargetError(
                f"'{text}' is not a dimension range", "write MIN:OPT:MAX with 0 < MIN <= OPT <= MAX, as in 1:8:32"
            )
        return cls(*sizes)

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


DEFAULT_RANGE = DimRange(1, 1, 8)


def symbols(specs: Iterable[TensorSpec]) -> tuple[str, ...]:
    """All symbolic dimensions of ``specs``, in order, each once."""
    return tuple(dict.fromkeys(symbol for spec in specs for symbol in spec.symbols))


def batch_symbol(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str | None:
    """The symbol at axis 0 of all outputs and of the inputs that have rows; None where there is none.

    An input without it is the same for every row: a scalar, or floats such as anchors. Integers and masks of a rank
    may speak of rows that are not there when the batch is cut, as the edges of a graph do of its nodes.
    """
    firsts = {spec.shape[0] if spec.shape else None for spec in outputs}
    first = firsts.pop() if len(firsts) == 1 else None
    if not isinstance(first, str):
        return None
    batched = batched_inputs(inputs, first)
    if any(first in spec.shape[1:] for spec in inputs):
        return None
    if any(spec.shape and "float" not in spec.dtype for spec in inputs if spec.name not in batched):
        return None
    return first if batched else None


def batched_inputs(inputs: Sequence[TensorSpec], batch: str) -> tuple[str, ...]:
    """The names of the inputs whose axis 0 is the batch."""
    return tuple(spec.name for spec in inputs if spec.shape[:1] == (batch,))


def _dimension(name: str, text: str) -> int | str:
    if _SIZE.fullmatch(text) and int(text) > 0:
        return int(text)
    if _DIM.fullmatch(text):
        return text
    raise RetargetError(
        f"input '{name}': '{text}' is not a dimension", "a dimension is a positive number or a name such as N"
    )
