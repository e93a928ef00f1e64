"""A folder of images as samples: decoded, resized, cropped and normalised as ``preprocess`` says.

The arithmetic is Pillow's and a table: a pixel has 256 values, so scale, mean and std are done once for each.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from retarget.errors import MissingToolchain, RetargetError
from retarget.preprocess import per_channel

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from retarget.preprocess import Preprocess
    from retarget.protocols import Array
    from retarget.spec import TensorSpec

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")
"""What may be decoded, whatever a file is called: other decoders of Pillow start programs."""
_WIDE = ("I", "F")
"""Modes of more than 8 bits, of which Pillow would keep what is below 256."""


class ImageReader:
    """Files → arrays for the input ``spec``, without its first axis.

    Raises ``RetargetError`` where that input takes no images, and ``MissingToolchain``.
    """

    def __init__(self, spec: TensorSpec, preprocess: Preprocess) -> None:
        if len(spec.shape) not in (3, 4):
            raise RetargetError(f"{spec}: not an input for images, which have 4 axes", "give arrays, as .npz")
        try:
            import PIL.Image
        except ImportError as error:
            raise MissingToolchain("images need Pillow", "pip install 'retarget[images]'") from error
        self._open = PIL.Image.open
        self._too_large = PIL.Image.DecompressionBombWarning
        self._spec = spec
        self._preprocess = preprocess
        channels = preprocess.channels
        mean = np.array(per_channel(preprocess.mean, channels))
        std = np.array(per_channel(preprocess.std, channels))
        self._table: Array | None = ((np.arange(256)[:, None] * preprocess.factor - mean) / std).astype(np.float32)
        if "float" not in spec.dtype:
            if not np.array_equal(self._table, np.repeat(np.arange(256)[:, None], channels, axis=1)):
                raise RetargetError(
                    f"{spec}: takes whole numbers, and `preprocess:` has a scale, mean or std",
                    "leave them out where the model itself scales its pixels",
                )
            self._table = None

    def read(self, file: Path) -> Array:
        """[channels, height, width], or [height, width, channels]; float32, or uint8 for an input of integers."""
        with warnings.catch_warnings():
            # Pillow warns of metadata that it cannot read, which are in many a set, and of images of a size that they
            # only have to do harm.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", self._too_large)
            try:
                image = self._upright(file)
            except RetargetError:
                raise
            except Exception as error:  # each of Pillow's decoders raises in its own ways
                words = " ".join(str(error).split()) or type(error).__name__
                raise RetargetError(
                    f"{file}: not a readable image ({words})", "replace it, or take it out of the folder"
                ) from error
        pixels = np.asarray(self._cropped(file, self._resized(image)))
        return self._laid_out(file, pixels[:, :, None] if pixels.ndim == 2 else pixels)

    def _upright(self, file: Path) -> Image.Image:
        """The first frame as its EXIF data say it is to be seen, in 8 bits a channel; alpha is dropped."""
        from PIL import ImageOps

        with self._open(file, formats=FORMATS) as opened:
            opened.load()
            if opened.mode.startswith(_WIDE):
                raise RetargetError(
                    f"{file}: has more than 8 bits a pixel ({opened.mode})",
                    "convert it as in training, or give arrays, as .npz",
                )
            image = ImageOps.exif_transpose(opened)
            return image.convert("L" if self._preprocess.color == "gray" else "RGB")

    def _resized(self, image: Image.Image) -> Image.Image:
        from PIL import Image

        size = self._preprocess.resize
        if size is None:
            return image
        if isinstance(size, tuple):
            height, width = size
        else:
            short = min(image.size)
            # The longer side is cut to whole pixels, as torchvision and transformers do.
            width, height = (size if side == short else int(size * side / short) for side in image.size)
        method = Image.Resampling[self._preprocess.interpolation.upper()]
        return image.resize((width, height), method)

    def _cropped(self, file: Path, image: Image.Image) -> Image.Image:
        size = self._preprocess.crop
        if size is None:
            return image
        height, width = size if isinstance(size, tuple) else (size, size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        if left < 0 or top < 0:
            raise RetargetError(
                f"{file}: {image.width}×{image.height} pixels, and crop takes {width}×{height}", "resize it first"
            )
        return image.crop((left, top, left + width, top + height))

    def _laid_out(self, file: Path, pixels: Array) -> Array:
        preprocess = self._preprocess
        if preprocess.color == "bgr":
            pixels = pixels[:, :, ::-1]
        if self._table is not None:
            pixels = self._table[pixels, np.arange(preprocess.channels)]
        if preprocess.layout == "nchw":
            pixels = pixels.transpose(2, 0, 1)
        dims = self._spec.shape[-3:]
        if not _fits(pixels.shape, dims):
            raise RetargetError(
                f"{file}: becomes {list(pixels.shape)}, and the input is {self._spec}", self._advice(pixels.shape)
            )
        return np.ascontiguousarray(pixels)

    def _advice(self, shape: tuple[int, ...]) -> str:
        dims, nchw = self._spec.shape[-3:], self._preprocess.layout == "nchw"
        other = (*shape[1:], shape[0]) if nchw else (shape[2], *shape[:2])
        if _fits(other, dims):
            return f"write `layout: {'nhwc' if nchw else 'nchw'}` in `preprocess:`"
        if dims[0 if nchw else 2] != self._preprocess.channels:
            return "`color` in `preprocess:` says what the channels are: rgb, bgr or gray"
        return "give `resize` or `crop` in `preprocess:`, so that all images have the input's size"


def _fits(shape: tuple[int, ...], dims: tuple[int | str, ...]) -> bool:
    return all(isinstance(dim, str) or dim == size for size, dim in zip(shape, dims, strict=True))
