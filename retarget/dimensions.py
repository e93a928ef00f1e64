"""Names for the open dimensions of a model's outputs, from the sizes that the source itself gave them.

Exporters leave names of their own there, such as ``unk__15``, where shape inference cannot follow the arithmetic.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from retarget.convert.normal_form import identifier, rename_symbols
from retarget.spec import TensorSpec, symbols


def name_output_dimensions(
    model: ir.Model,
    inputs: Sequence[TensorSpec],
    sizes: Sequence[Mapping[str, int]],
    shapes: Mapping[str, Sequence[tuple[int, ...]]],
) -> None:
    """Name each open dimension of an output after the input's dimension that it was as large as, at every size.

    ``sizes``: those of the inputs' dimensions, a parity case each; ``shapes``: what each output then had. Of several
    that were always alike it is the one that inputs have along the same axis. A dimension that followed none, or that
    cannot be told from others, is called after its output and axis.
    """
    known = set(symbols(inputs))
    names: dict[str, int | str] = {}
    for value in model.graph.outputs:
        if value.shape is None:
            continue
        for axis, dim in enumerate(value.shape):
            symbol = None if isinstance(dim, int) else dim.value
            if symbol is None or symbol in known or symbol in names:
                continue
            found = [shape[axis] for shape in shapes[value.name or ""] if axis < len(shape)]
            along = {spec.shape[axis] for spec in inputs if axis < len(spec.shape)}
            names[symbol] = _followed(found, sizes, along) or identifier(f"{value.name}_{axis}")
    rename_symbols(model, names)


def _followed(found: Sequence[int], sizes: Sequence[Mapping[str, int]], along: Collection[int | str]) -> str | None:
    """The one dimension that ``found`` has followed; of several, the one that is in ``along``."""
    if len(found) != len(sizes) or len(set(found)) < 2:
        return None
    pairs = list(zip(sizes, found, strict=True))
    fits = [symbol for symbol in sizes[0] if all(one.get(symbol) == size for one, size in pairs)]
    fits = fits if len(fits) == 1 else [symbol for symbol in fits if symbol in along]
    return fits[0] if len(fits) == 1 else None
