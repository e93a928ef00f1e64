from __future__ import annotations

import pytest

from retarget import figures


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_345, "12.3 kB"), (999_499, "999 kB")),
        *((999_600, "1.00 MB"), (45_200_000, "45.2 MB"), (2_700_000_000, "2.70 GB"), (3 * 10**12, "3.00 TB")),
        (None, figures.NONE),
    ],
)
def test_bytes(count: int | None, text: str) -> None:
    assert figures.bytes_text(count) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0.0123, "12.3 µs"),
        (0.1, "0.10 ms"),
        (9.994, "9.99 ms"),
        (9.996, "10.0 ms"),
        (123.4, "123 ms"),
        (25_000, "25.0 s"),
    ],
)
def test_milliseconds(ms: float, text: str) -> None:
    assert figures.milliseconds_text(ms) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (0.012, "12 ms"), (0.4, "0.4 s"), (9.96, "10 s"), (48.2, "48 s"), (119.6, "2 min 00 s")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert figures.seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("snr_db", "text"), [(64.62, "64.6 dB"), (-3.0, "-3.0 dB"), (300.0, "exact"), (-300.0, "lost"), (0.0, "0.0 dB")]
)
def test_decibels(snr_db: float, text: str) -> None:
    assert figures.decibel_text(snr_db) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (1e-9, "< 1 %"), (0.97, "97 %"), (0.9971, "99.7 %"), (0.9999999, "99.9 %"), (1.0, "100 %")],
)
def test_a_share_is_whole_only_when_it_is(share: float, text: str) -> None:
    assert figures.percent_text(share) == text


def test_a_drop_is_said_as_a_change() -> None:
    assert figures.drop_text(0.0027) == f"{figures.MINUS}0.0027"
    assert figures.drop_text(-0.01) == "+0.0100"
    assert figures.drop_text(1e-9) == "\N{PLUS-MINUS SIGN}0"
    assert figures.drop_text(None) == figures.NONE


def test_counts() -> None:
    assert figures.count_text(1, "gate") == "1 gate"
    assert figures.count_text(1204, "node") == "1,204 nodes"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("it fails\nbecause", "it fails"),
        ("\n  ncnn cannot take 2 nodes:\n  a (Loop): no loops", "ncnn cannot take 2 nodes"),
        (" \n", "no message"),
    ],
)
def test_the_first_line_of_a_message(text: str, line: str) -> None:
    assert figures.first_line(text) == line
