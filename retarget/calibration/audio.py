"""A folder of .wav files as samples: float32 from -1 to 1, the mean of all channels."""

from __future__ import annotations

import wave
from typing import TYPE_CHECKING

import numpy as np

from retarget.errors import RetargetError

if TYPE_CHECKING:
    from pathlib import Path

    from retarget.preprocess import Preprocess
    from retarget.protocols import Array
    from retarget.spec import TensorSpec


class SoundReader:
    """Files → arrays for the input ``spec``, without its first axis: [samples], or [1, samples]."""

    def __init__(self, spec: TensorSpec, preprocess: Preprocess) -> None:
        if "float" not in spec.dtype or not (len(spec.shape) == 2 or (len(spec.shape) == 3 and spec.shape[1] == 1)):
            raise RetargetError(
                f"{spec}: not an input for sound, which is float32[N,samples] or float32[N,1,samples]",
                "give arrays, as .npz, where the model takes spectra or other features",
            )
        self._spec = spec
        self._preprocess = preprocess

    def read(self, file: Path) -> Array:
        """The sound of ``file``. Raises ``RetargetError`` for another rate and for what the input does not take."""
        rate, sound = _decoded(file)
        if rate != self._preprocess.sample_rate:
            wanted = self._preprocess.sample_rate
            raise RetargetError(
                f"{file}: {rate} samples a second, and `preprocess:` says {wanted}",
                f"resample it: ffmpeg -i {file.name} -ar {wanted} resampled/{file.name}",
            )
        if self._preprocess.length is not None:
            sound = sound[: self._preprocess.length]
            sound = np.pad(sound, (0, self._preprocess.length - len(sound)))
        samples = self._spec.shape[-1]
        if isinstance(samples, int) and samples != len(sound):
            raise RetargetError(
                f"{file}: has {len(sound)} samples, and the input is {self._spec}",
                f"write `length: {samples}` in `preprocess:`",
            )
        return sound if len(self._spec.shape) == 2 else sound[None]


def _decoded(file: Path) -> tuple[int, Array]:
    """Samples a second, and the samples."""
    try:
        with wave.open(str(file), "rb") as stream:
            width, channels, rate = stream.getsampwidth(), stream.getnchannels(), stream.getframerate()
            data = stream.readframes(stream.getnframes())
    except (wave.Error, EOFError, OSError) as error:
        raise RetargetError(
            f"{file}: not a readable .wav of whole numbers ({str(error) or 'cut short'})",
            f"write it again: ffmpeg -i {file.name} -c:a pcm_s16le converted/{file.name}",
        ) from error
    frame = width * channels
    data = data[: len(data) // frame * frame]
    if width == 1:
        values = np.frombuffer(data, np.uint8).astype(np.float32) - 128  # the only width without a sign
    else:
        # Each number in the upper bytes of an int32, whatever its width: 24 bits are no dtype.
        wide = np.zeros((len(data) // width, 4), np.uint8)
        wide[:, 4 - width :] = np.frombuffer(data, np.uint8).reshape(-1, width)
        values = (wide.view("<i4")[:, 0] / 2.0 ** (32 - 8 * width)).astype(np.float32)
    mono = values.reshape(-1, channels).mean(axis=1, dtype=np.float64) / 2.0 ** (8 * width - 1)
    if not len(mono):
        raise RetargetError(f"{file}: holds no sound", "take it out of the folder")
    return rate, mono.astype(np.float32)
