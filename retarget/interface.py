"""A model's inputs and outputs as the user wants them: another layout of axes, and raw pixels for normalised ones.

Light: recipes and plans are made of it. ``interface_graph.apply`` builds it into a model, and ``interface_runner.wrap``
lets the source framework take and give the same.

There are two views of an input. The *source's* is what the framework takes: its own layout, normalised floats. The
*user's* is what the finished artifacts take, and what the recipe's ``inputs`` and the data speak of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from retarget.errors import RetargetError, did_you_mean
from retarget.preprocess import Numbers, as_factor, per_channel
from retarget.spec import TensorSpec

Layout: TypeAlias = Literal["nchw", "nhwc"]
Layouts: TypeAlias = Layout | dict[str, Layout]
"""For all inputs and outputs of rank 4, or for those named: channels after the batch, or last, of 3 to 5 axes."""

IMAGE_AXES = 4
"""Axes of what is a batch of images where nobody says otherwise."""


class Normalize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the model itself is to do to raw pixels, in the order of the keys; the words are those of ``preprocess``."""

    input: Annotated[str | None, Meta(description="Which input; the only one with 4 axes if absent.")] = None
    dtype: Annotated[Literal["float32", "uint8"], Meta(description="Type of the raw pixels.")] = "float32"
    swap_channels: Annotated[
        bool, Meta(description="Reverse the channels: RGB pixels for a model that takes BGR, or the other way round.")
    ] = False
    scale: Annotated[
        float | Annotated[str, Meta(pattern=r"^\d+(\.\d+)?/\d+(\.\d+)?$")],
        Meta(description="Factor on the pixels, which are 0 to 255; may be written 1/255."),
    ] = 1.0
    mean: Annotated[
        Numbers, Meta(description="Subtracted from the scaled pixels: one number, or one for each channel.")
    ] = 0.0
    std: Annotated[Numbers, Meta(description="Divided by in the end: one number, or one for each channel.")] = 1.0

    def __post_init__(self) -> None:
        numbers = self.std if isinstance(self.std, tuple) else (self.std,)
        if 0 in numbers:
            raise RetargetError("std holds a 0, and pixels are divided by it")
        if not self.factor:
            raise RetargetError(f"scale is {self.scale}, which would make all pixels 0")
        if len({len(value) for value in (self.mean, self.std) if isinstance(value, tuple)}) > 1:
            raise RetargetError("mean and std hold a different count of numbers", "write one for each channel")

    @property
    def factor(self) -> float:
        """``scale`` as a number."""
        return as_factor(self.scale)

    def channels(self, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """mean and std for each of ``count`` channels. Raises ``RetargetError`` where they are of another count."""
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if isinstance(numbers, tuple) and len(numbers) != count:
                raise RetargetError(
                    f"normalize: {name} has {len(numbers)} numbers, and the input {count} channels",
                    "write one number, or one for each channel in the model's order",
                )
        return per_channel(self.mean, count), per_channel(self.std, count)


@dataclass(frozen=True)
class Interface:
    """How the user's view of a model differs from the source's. Without arguments it does not."""

    source: Mapping[str, Layout] | Layout = "nchw"
    """The layout of the framework, or of each of the tensors that differ from ``nchw``."""
    layout: Layouts | None = None
    """The recipe's ``io_layout``."""
    normalize: Normalize | None = None
    """The recipe's ``normalize``."""

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return self.layout is not None or self.normalize is not None

    def source_specs(self, inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """The source's view of the ``inputs`` that the recipe gives in the user's. Empty stays empty."""
        raw = self.normalized(inputs)
        specs = []
        for spec in inputs:
            turned = _turned(spec, self.permutation(spec.name, len(spec.shape)))
            specs.append(self._as_source(turned) if spec.name == raw else turned)
        return tuple(specs)

    def user_inputs(self, inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """The user's view of the source's ``inputs``."""
        raw = self.normalized(inputs)
        return tuple(
            replace(spec, dtype=self.normalize.dtype) if self.normalize and spec.name == raw else spec
            for spec in self.user_outputs(inputs)
        )

    def user_outputs(self, outputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """The user's view of the source's ``outputs``."""
        return tuple(_turned(spec, inverse(self.permutation(spec.name, len(spec.shape)))) for spec in outputs)

    def permutation(self, name: str, rank: int) -> tuple[int, ...] | None:
        """``perm`` of the Transpose from the user's view of tensor ``name`` to the source's; None for none."""
        wanted = self._wanted(name, rank)
        own = self.source_layout(name)
        if wanted is None or wanted == own:
            return None
        if not 3 <= rank <= 5:
            raise RetargetError(
                f"io_layout: '{name}' has {rank} axes, and a layout needs 3 to 5", "leave it out of `io_layout`"
            )
        return to_channels_first(rank) if own == "nchw" else to_channels_last(rank)

    def channel_axis(self, name: str, rank: int) -> int:
        """Where the channels of tensor ``name`` stand in the source's view."""
        return 1 if self.source_layout(name) == "nchw" else rank - 1

    def source_layout(self, name: str) -> Layout:
        """The layout of tensor ``name`` in the source."""
        return self.source if isinstance(self.source, str) else self.source.get(name, "nchw")

    def layout_of(self, name: str, rank: int) -> Layout:
        """The layout of tensor ``name`` in the user's view."""
        return self._wanted(name, rank) or self.source_layout(name)

    def normalized(self, inputs: Sequence[TensorSpec]) -> str | None:
        """The input that ``normalize`` is of; None where there is none. Raises ``RetargetError`` if that is unclear."""
        if self.normalize is None or not inputs:
            return None
        names = [spec.name for spec in inputs]
        if self.normalize.input is not None:
            if self.normalize.input not in names:
                raise RetargetError(
                    f"normalize: there is no input '{self.normalize.input}'", did_you_mean(self.normalize.input, names)
                )
            return self.normalize.input
        images = [spec.name for spec in inputs if len(spec.shape) == IMAGE_AXES]
        if len(images) != 1:
            raise RetargetError(
                f"normalize: {len(images)} inputs have {IMAGE_AXES} axes",
                f"say which one `input` is: {', '.join(names)}",
            )
        return images[0]

    def check(self, inputs: Iterable[str], outputs: Iterable[str]) -> None:
        """Raise ``RetargetError`` where ``io_layout`` names what is neither input nor output."""
        known = [*inputs, *outputs]
        for name in self.layout if isinstance(self.layout, Mapping) else ():
            if name not in known:
                raise RetargetError(f"io_layout: there is no input or output '{name}'", did_you_mean(name, known))

    def _wanted(self, name: str, rank: int) -> Layout | None:
        if isinstance(self.layout, Mapping):
            return self.layout.get(name)
        return self.layout if rank == IMAGE_AXES else None

    def _as_source(self, spec: TensorSpec) -> TensorSpec:
        assert self.normalize is not None
        if spec.dtype != self.normalize.dtype:
            raise RetargetError(
                f"input '{spec.name}' is {spec.dtype}, and `normalize` says that its pixels are {self.normalize.dtype}",
                f"write `dtype: {spec.dtype}` in `normalize`, or {self.normalize.dtype} in the input's spec"
                if spec.dtype in ("float32", "uint8")
                else "pixels are float32 or uint8",
            )
        return replace(spec, dtype="float32")


def to_channels_first(rank: int) -> tuple[int, ...]:
    """``perm`` from channels last: (0, 3, 1, 2) of 4 axes."""
    return (0, rank - 1, *range(1, rank - 1))


def to_channels_last(rank: int) -> tuple[int, ...]:
    """``perm`` from channels first: (0, 2, 3, 1) of 4 axes."""
    return (0, *range(2, rank), 1)


def _turned(spec: TensorSpec, perm: tuple[int, ...] | None) -> TensorSpec:
    return spec if perm is None else replace(spec, shape=tuple(spec.shape[axis] for axis in perm))


def inverse(perm: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """``perm`` of the Transpose back."""
    return None if perm is None else tuple(perm.index(axis) for axis in range(len(perm)))
