"""How files of images or sound become a model's input: one block of the recipe, for every set that is a folder of them.

Light: recipes and plans are made of it. ``calibration.images`` and ``calibration.audio`` carry it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from retarget.errors import RetargetError
from retarget.walk import files_below

Media: TypeAlias = Literal["images", "audio"]
Size: TypeAlias = Annotated[int, Meta(ge=1)]
Sizes: TypeAlias = Size | Annotated[tuple[Size, ...], Meta(min_length=2)]
Numbers: TypeAlias = float | Annotated[tuple[float, ...], Meta(min_length=1)]
Classes: TypeAlias = Literal["sorted", "numbers"] | tuple[str, ...]
"""How the names of classes become their numbers."""

SUFFIXES: dict[Media, frozenset[str]] = {
    "images": frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}),
    "audio": frozenset({".wav"}),
}
BLOCKS: dict[Media, str] = {
    "images": "{resize: 256, crop: 224, scale: 1/255, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}",
    "audio": "{sample_rate: 16000, length: 16000}",
}
"""An example of the block."""
READERS: dict[Media, tuple[str, ...]] = {"images": ("pillow",), "audio": ()}
"""Distributions that read the files."""


class Preprocess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done to each file, in the order of the keys; what is absent is not done.

    With ``sample_rate`` it is for sound, and without it for images.
    """

    color: Annotated[Literal["rgb", "bgr", "gray"], Meta(description="What the channels are.")] = "rgb"
    resize: Annotated[Sizes | None, Meta(description="Length of the shorter side, or [height, width].")] = None
    interpolation: Annotated[
        Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"],
        Meta(description="Of resize. All pixels that a smaller one stands for take part, as in Pillow."),
    ] = "bilinear"
    crop: Annotated[Sizes | None, Meta(description="Side of a square in the centre, or [height, width].")] = None
    scale: Annotated[
        float | Annotated[str, Meta(pattern=r"^\d+(\.\d+)?/\d+(\.\d+)?$")],
        Meta(description="Factor on the pixels, which are 0 to 255; may be written 1/255."),
    ] = 1.0
    mean: Annotated[
        Numbers, Meta(description="Subtracted from the scaled pixels: one number, or one for each channel.")
    ] = 0.0
    std: Annotated[Numbers, Meta(description="Divided by in the end: one number, or one for each channel.")] = 1.0
    layout: Annotated[Literal["nchw", "nhwc"], Meta(description="Order of the axes.")] = "nchw"
    sample_rate: Annotated[Size | None, Meta(description="Of sound: samples a second, which its files must have.")] = (
        None
    )
    length: Annotated[Size | None, Meta(description="Of sound: samples that it is cut to, or filled up to with 0.")] = (
        None
    )

    def __post_init__(self) -> None:
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            if isinstance(size, tuple) and len(size) != 2:
                raise RetargetError(f"{name} has {len(size)} numbers", "write one number, or [height, width]")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if isinstance(numbers, tuple) and len(numbers) != self.channels:
                raise RetargetError(f"{name} has {len(numbers)} numbers, and {self.color} {self.channels} channels")
        if 0 in per_channel(self.std, self.channels):
            raise RetargetError("std holds a 0, and pixels are divided by it")
        if not self.factor:
            raise RetargetError(f"scale is {self.scale}, which would make all pixels 0")
        if self.sample_rate is None and self.length is not None:
            raise RetargetError("length is for sound, which needs its sample_rate", f"write {BLOCKS['audio']}")
        if self.sample_rate is not None and (odd := self._for_images()):
            raise RetargetError(f"{', '.join(odd)}: not for sound, which sample_rate says this is")

    def _for_images(self) -> list[str]:
        """Keys that only images have and that are set."""
        fields = (field for field in msgspec.structs.fields(self) if field.name not in ("sample_rate", "length"))
        return [field.name for field in fields if getattr(self, field.name) != field.default]

    @property
    def media(self) -> Media:
        """What the block is for."""
        return "images" if self.sample_rate is None else "audio"

    @property
    def channels(self) -> int:
        """How many an image has."""
        return 1 if self.color == "gray" else 3

    @property
    def factor(self) -> float:
        """``scale`` as a number."""
        return as_factor(self.scale)


def as_factor(scale: float | str) -> float:
    """``scale`` as a number, also where it is written as a fraction. Raises ``RetargetError`` for one over 0."""
    if isinstance(scale, float):
        return scale
    above, _, below = scale.partition("/")
    if not float(below):
        raise RetargetError(f"scale is {scale}, a division by 0")
    return float(above) / float(below)


def per_channel(numbers: float | tuple[float, ...], channels: int) -> tuple[float, ...]:
    """``numbers`` for each of the channels."""
    return numbers if isinstance(numbers, tuple) else (numbers,) * channels


# ---- folders


def media_in(folder: Path) -> Media | None:
    """What the files below ``folder`` are; None where they are arrays, or there are none."""
    suffixes = {file.suffix.lower() for file in shown_below(folder)}
    if ".npy" in suffixes:  # a picture beside arrays is only that
        return None
    return next((media for media, known in SUFFIXES.items() if suffixes & known), None)


def check_folder(folder: Path, preprocess: Preprocess | None) -> Media | None:
    """What the files below ``folder`` are. Raises ``RetargetError`` where ``preprocess`` is not for such files."""
    media = media_in(folder)
    if media is None or (preprocess is not None and preprocess.media == media):
        return media
    what = "images need" if media == "images" else "sound needs"
    raise RetargetError(
        f"{folder}: {what} a `preprocess:` block{'' if preprocess is None else ' of their own'}",
        f"say what was done in training: under `data:` in the recipe, or with --preprocess, as in "
        f"`preprocess: {BLOCKS[media]}`",
    )


def shown_below(folder: Path) -> Iterator[Path]:
    """All files below ``folder`` that are not hidden."""
    files = files_below(folder, leave_out=lambda name: name.startswith("."))
    return (file for file in files if not file.name.startswith("."))
