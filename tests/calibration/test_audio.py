"""Sound that is read is held against scipy's own reader of .wav files."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import wavfile

from retarget.calibration.data import open_samples
from retarget.errors import RetargetError
from retarget.preprocess import Preprocess
from retarget.spec import TensorSpec

SOUND = TensorSpec.parse("sound=float32[N,T]")
RATE = 8000


def write(path: Path, samples: NDArray[np.generic], rate: int = RATE) -> None:
    wavfile.write(path, rate, samples)


def read(folder: Path, spec: TensorSpec = SOUND, length: int | None = None) -> list[NDArray[np.float32]]:
    block = Preprocess(sample_rate=RATE, length=length)
    return [
        cast("NDArray[np.float32]", batch["sound"])
        for batch in open_samples(folder, [spec], function=None, limit=None, preprocess=block).batches(1)
    ]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32"])
@pytest.mark.parametrize("channels", [1, 2])
def test_widths_and_channels(tmp_path: Path, dtype: str, channels: int) -> None:
    limits = np.iinfo(dtype)
    samples = np.random.default_rng(0).integers(limits.min, limits.max, (50, channels), endpoint=True, dtype=dtype)
    samples[0], samples[1] = limits.min, limits.max
    write(tmp_path / "a.wav", samples)
    _, again = wavfile.read(tmp_path / "a.wav")
    middle, full = (128.0, 128.0) if dtype == "uint8" else (0.0, limits.max + 1.0)
    expected = (again.reshape(50, channels).astype(np.float64) - middle).mean(axis=1) / full
    (found,) = read(tmp_path)
    assert found.dtype == np.float32
    assert found.shape == (1, 50)
    assert found[0, 0] == -1
    np.testing.assert_allclose(found[0], expected, atol=1e-7)


def test_24_bits(tmp_path: Path) -> None:
    values = np.array([-(2**23), -1, 0, 1, 2**23 - 1], "<i4")
    with wave.open(str(tmp_path / "a.wav"), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(3)
        stream.setframerate(RATE)
        stream.writeframes(values.view(np.uint8).reshape(-1, 4)[:, :3].tobytes())
    np.testing.assert_allclose(read(tmp_path)[0][0], values / 2**23, atol=1e-9)


@pytest.mark.parametrize(("length", "expected"), [(3, [0.25, 0.25, 0.25]), (5, [0.25] * 4 + [0]), (None, [0.25] * 4)])
def test_length(tmp_path: Path, length: int | None, expected: list[float]) -> None:
    write(tmp_path / "a.wav", np.full(4, 8192, np.int16))
    assert read(tmp_path, length=length)[0].tolist() == [expected]
    with_channel = TensorSpec.parse("sound=float32[N,1,T]")
    assert read(tmp_path, with_channel, length)[0].tolist() == [[expected]]


def test_what_does_not_fit(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", np.zeros(4, np.int16), rate=44100)
    with pytest.raises(RetargetError, match=r"a\.wav: 44100 samples a second, and `preprocess:` says 8000") as caught:
        read(tmp_path)
    assert caught.value.hint == "resample it: ffmpeg -i a.wav -ar 8000 resampled/a.wav"
    write(tmp_path / "a.wav", np.zeros(4, np.int16))
    with pytest.raises(RetargetError, match=r"has 4 samples, and the input is sound=float32\[N,6\]") as caught:
        read(tmp_path, TensorSpec.parse("sound=float32[N,6]"))
    assert caught.value.hint == "write `length: 6` in `preprocess:`"
    for spec in ("sound=float32[N,2,T]", "sound=int16[N,T]", "sound=float32[T]"):
        with pytest.raises(RetargetError, match="not an input for sound"):
            read(tmp_path, TensorSpec.parse(spec))
    with pytest.raises(RetargetError, match="sound needs a `preprocess:` block") as caught:
        open_samples(tmp_path, [SOUND], function=None, limit=None)
    assert "sample_rate: 16000" in (caught.value.hint or "")


@pytest.mark.parametrize("content", [b"", b"RIFF", b"fLaC and more"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(RetargetError, match=r"a\.wav: not a readable \.wav"):
        read(tmp_path)


def test_floats_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", np.zeros(4, np.float32))
    with pytest.raises(RetargetError, match=r"not a readable \.wav of whole numbers \(unknown format: 3\)"):
        read(tmp_path)


def test_silence_of_no_length_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", np.zeros(0, np.int16))
    with pytest.raises(RetargetError, match="holds no sound"):
        read(tmp_path, length=10)
