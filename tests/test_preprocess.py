from __future__ import annotations

import pytest

from retarget.errors import RetargetError
from retarget.preprocess import Preprocess, per_channel


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"resize": (1, 2, 3)}, "resize has 3 numbers"),
        ({"crop": (1, 2, 3)}, "crop has 3 numbers"),
        ({"mean": (1.0, 2.0)}, "mean has 2 numbers, and rgb 3 channels"),
        ({"std": (1.0, 2.0, 3.0), "color": "gray"}, "std has 3 numbers, and gray 1 channels"),
        ({"std": (1.0, 0.0, 3.0)}, "std holds a 0"),
        ({"std": 0.0}, "std holds a 0"),
        ({"scale": 0.0}, r"scale is 0\.0"),
        ({"scale": "0/255"}, "scale is 0/255"),
        ({"scale": "1/0"}, "a division by 0"),
        ({"length": 5}, "length is for sound"),
        ({"sample_rate": 5, "crop": 3, "scale": 2.0}, "crop, scale: not for sound"),
    ],
)
def test_blocks_that_mean_nothing(block: dict[str, object], message: str) -> None:
    with pytest.raises(RetargetError, match=message):
        Preprocess(**block)  # type: ignore[arg-type]


def test_scale_and_channels() -> None:
    assert Preprocess(scale="1/255").factor == 1 / 255
    assert Preprocess(scale="0.5/4").factor == 0.125
    assert Preprocess(scale=2.0).factor == 2.0
    assert Preprocess().factor == 1.0
    assert per_channel(0.5, 3) == (0.5, 0.5, 0.5)
    assert per_channel((1.0, 2.0, 3.0), 3) == (1.0, 2.0, 3.0)
    assert Preprocess(sample_rate=8000, length=3).media == "audio"
