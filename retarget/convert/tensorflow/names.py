"""The names, types and shapes at the border of a model, its own held against those that the user gives."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from retarget.errors import RetargetError, Unsupported, did_you_mean
from retarget.source import Source
from retarget.spec import DTYPES, TensorSpec

DEFAULT_SIGNATURE = "serving_default"

_AXES = {4: "?hwc", 5: "?dhwc"}
"""What the axes of images and volumes are called, the channels last, where their size is open."""


@dataclass(frozen=True)
class Border:
    """An input or output as the model has it. ``None`` for an open dimension, or for a shape of which nobody knows."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        dims = "…" if self.shape is None else ",".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name}={self.dtype}[{dims}]"


def choose_signature(names: Sequence[str], wanted: str | None, place: str) -> str:
    """The signature to convert: the one that is ``wanted``, the default, or the only one. Raises ``RetargetError``."""
    if not names:
        raise RetargetError(
            f"{place}: has no signature, and so nothing that says its inputs and outputs",
            "save it with signatures: tf.saved_model.save(model, path, signatures=model.call.get_concrete_function(…))",
        )
    listing = f"its signatures: {', '.join(sorted(names))}"
    if wanted is not None:
        if wanted not in names:
            near = did_you_mean(wanted, names)
            raise RetargetError(
                f"{place}: has no signature '{wanted}'",
                f"{near} {listing}" if near.startswith("did") else listing,
            )
        return wanted
    if DEFAULT_SIGNATURE in names:
        return DEFAULT_SIGNATURE
    if len(names) > 1:
        raise RetargetError(
            f"{place}: has several signatures, none of them '{DEFAULT_SIGNATURE}'", f"choose one; {listing}"
        )
    return names[0]


def check_types(borders: Iterable[Border], place: str) -> None:
    """Raise ``Unsupported`` that lists each input or output that is not of numbers."""
    wrong = [f"'{border.name}' is of type {border.dtype}" for border in borders if border.dtype not in DTYPES]
    if wrong:
        raise Unsupported(
            f"{place}: {', '.join(wrong)}, and only tensors of numbers can be converted",
            "do text and table processing outside the model, and export the part after it",
        )


def input_specs(own: Sequence[Border], given: Sequence[TensorSpec], place: str) -> tuple[TensorSpec, ...]:
    """The specs of the model's ``own`` inputs, in their order: as ``given``, or with names for the open dimensions.

    Raises ``RetargetError`` where a name, type, rank or fixed size in ``given`` is not the model's.
    """
    check_types(own, place)
    if not given:
        return tuple(_default(border, place) for border in own)
    listing = "its inputs: " + ", ".join(map(str, own))
    specs = {spec.name: spec for spec in given}
    names = [border.name for border in own]
    for name in specs:
        if name not in names:
            near = did_you_mean(name, names)
            raise RetargetError(f"{place}: has no input '{name}'", near if near.startswith("did") else listing)
    for border in own:
        if border.name not in specs:
            raise RetargetError(f"{place}: input '{border.name}' is not named", f"name all of them; {listing}")
        _match(border, specs[border.name], listing, place)
    return tuple(specs[name] for name in names)


def output_names(own: Sequence[str], source: Source, inputs: Iterable[TensorSpec]) -> tuple[str, ...]:
    """The user's names for the outputs, or the model's ``own``. Raises ``RetargetError`` where their numbers differ."""
    names = source.outputs or tuple(own)
    if len(names) != len(own):
        raise RetargetError(
            f"{len(names)} outputs are named ({', '.join(names)}), {source.path} has {len(own)}: {', '.join(own)}",
            "name all of them, in this order",
        )
    taken = {spec.name for spec in inputs}
    # A signature may give back what it takes under the same name; one graph cannot hold both.
    names = tuple(f"{name}_out" if name in taken and not source.outputs else name for name in names)
    if len(set(names)) != len(names) or taken & set(names):
        raise RetargetError(
            f"outputs {', '.join(names)}: two tensors have one name", "name the outputs with `outputs:`"
        )
    return names


def _default(border: Border, place: str) -> TensorSpec:
    if border.shape is None:
        raise RetargetError(
            f"{place}: does not say how many dimensions its input '{border.name}' has",
            f"give its shape, as in --input '{border.name}={border.dtype}[N,224,224,3]'",
        )
    if any(dim == 0 for dim in border.shape):
        raise Unsupported(f"{place}: input '{border}' is empty", "export the model with inputs that hold something")
    letters = _AXES.get(len(border.shape), "")
    stem = re.sub(r"\W+", "_", border.name, flags=re.ASCII).strip("_") or "input"
    stem = stem if re.match("[A-Za-z_]", stem) else f"input_{stem}"

    def name(axis: int) -> str:
        return "N" if axis == 0 else f"{stem}_{letters[axis] if letters else f'dim{axis}'}"

    return TensorSpec(
        border.name,
        border.dtype,
        tuple(name(axis) if dim is None else dim for axis, dim in enumerate(border.shape)),
    )


def _match(border: Border, spec: TensorSpec, listing: str, place: str) -> None:
    if border.dtype != spec.dtype:
        raise RetargetError(f"input '{spec.name}': {spec.dtype} was given, {place} has {border.dtype}", listing)
    if border.shape is None:
        return
    if len(border.shape) != len(spec.shape):
        raise RetargetError(
            f"input '{spec.name}': {len(spec.shape)} dimensions were given, {place} has {len(border.shape)}", listing
        )
    for axis, (here, wanted) in enumerate(zip(border.shape, spec.shape)):
        if here is not None and here != wanted:
            raise RetargetError(
                f"input '{spec.name}', dimension {axis}: '{wanted}' was given, {place} has it fixed at {here}",
                f"write {here}, or export the model with this dimension open (None)",
            )
