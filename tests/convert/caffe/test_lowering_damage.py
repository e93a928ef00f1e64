"""Single-layer nets with wrong numbers, bottoms, tops and shapes: a net, or an error that says why."""

from __future__ import annotations

import random
import re
import warnings

import caffe_lowered
import pytest
from caffe_cases import CASES, Case

from retarget.errors import RetargetError

NUMBERS = (
    *("0", "-1", "1", "2", "7", "-3", "0.5", "100000", "2147483647", "4294967296", "99999999999999", "1e30", "1e400"),
    *("nan", "inf", "true", "FOO", '"x"'),
)
VALUE = re.compile(r":\s*(-?[\d.]+(?:e-?\d+)?|[A-Z_]{3,}|true|false)")
WIRE = re.compile(r'  (?:bottom|top): "\w+"\n')
SHAPE = re.compile(r"input_param \{ shape \{([^}]*)\}")


def damaged(case: Case, chance: random.Random) -> str:
    """The net with a number replaced, a line with a bottom or top left out or twice, or an input of another shape."""
    inputs, text = case.prototxt.removesuffix(case.layers), case.layers
    kind = chance.random()
    if kind < 0.7 and (values := list(VALUE.finditer(text))):
        value = chance.choice(values)
        return inputs + text[: value.start(1)] + chance.choice(NUMBERS) + text[value.end(1) :]
    if kind < 0.85:
        wire = chance.choice(list(WIRE.finditer(text)))
        return inputs + text[: wire.start()] + wire[0] * chance.choice((0, 2)) + text[wire.end() :]
    shape = chance.choice(list(SHAPE.finditer(inputs)))
    dims = shape[1].split()[1::2]
    dims[chance.randrange(len(dims))] = str(chance.choice((1, 2, 3, 50)))
    written = " ".join(f"dim: {dim}" for dim in dims[: chance.randint(1, 5)])
    return f"{inputs[: shape.start(1)]} {written} {inputs[shape.end(1) :]}{text}"


def outcome(case: Case, text: str) -> str | None:
    """Why the net is refused, None if it is not. Anything but a ``RetargetError`` is an error of the lowering's own."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            caffe_lowered.lowered(text, case.weights)
    except RetargetError as error:
        return error.message
    except Exception as error:
        raise AssertionError(f"{error!r} of\n{text}") from error
    return None


def check(seeds: range) -> None:
    cases = list(CASES.values())
    refused = 0
    for seed in seeds:
        chance = random.Random(seed)
        case = chance.choice(cases)
        text = damaged(case, chance)
        reason = outcome(case, text)
        refused += reason is not None
        # It would mean that the lowering itself wrote what is not ONNX.
        assert "not a valid ONNX model" not in (reason or ""), text
    assert 0.3 < refused / len(seeds) < 0.95


def test_damage_is_refused_or_lowered() -> None:
    check(range(500))


@pytest.mark.stress
def test_much_damage_is_refused_or_lowered() -> None:
    check(range(500, 20_000))
