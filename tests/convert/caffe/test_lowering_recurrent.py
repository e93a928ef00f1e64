"""Recurrent layers against torch's cells, stepped by hand so that states can be reset in mid-sequence."""

from __future__ import annotations

from collections.abc import Sequence

import caffe_files
import numpy as np
import pytest
import torch
from caffe_lowered import Floats, execute, lowered, openvino

from retarget import graph
from retarget.compare import snr_db
from retarget.convert.caffe.layers import recurrent
from retarget.errors import RetargetError

SIZE, WIDTH, STREAMS = 6, 4, 3
ENOUGH = 110
"""Decibels: torch sums in another order."""

RESETS = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]], np.float32)
"""``cont`` of five steps: each stream begins anew at a step of its own."""


def draw(*shape: int, seed: int, scale: float = 1.0) -> Floats:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def net(kind: str, cont: Floats, *, static: bool = False, exposed: bool = False, axes: Sequence[int] = (WIDTH,)) -> str:
    steps, streams = cont.shape
    shapes: dict[str, Sequence[int]] = {"x": (steps, streams, *axes), "cont": cont.shape}
    if static:
        shapes["static"] = (streams, 2)
    tops = ["out"]
    if exposed:
        states = ["h", "c"] if kind == "LSTM" else ["h"]
        shapes |= dict.fromkeys((f"{state}0" for state in states), (1, streams, SIZE))
        tops += [f"{state}1" for state in states]
    parameters = f"recurrent_param {{ num_output: {SIZE} expose_hidden: {str(exposed).lower()} }}"
    return caffe_files.inputs(**shapes) + caffe_files.layer("rec", kind, tuple(shapes), tops, parameters)


def feeds(cont: Floats, *, static: bool = False, states: Sequence[str] = ()) -> dict[str, Floats]:
    steps, streams = cont.shape
    found = {"x": draw(steps, streams, WIDTH, seed=1), "cont": cont}
    if static:
        found["static"] = draw(streams, 2, seed=2)
    return found | {state: draw(1, streams, SIZE, seed=3 + index) for index, state in enumerate(states)}


def blobs(kind: str, *, static: bool = False) -> list[Floats]:
    rows = 4 * SIZE if kind == "LSTM" else SIZE
    shapes: list[tuple[int, ...]] = [(rows, WIDTH), (rows,), *([(rows, 2)] if static else []), (rows, SIZE)]
    if kind == "RNN":
        shapes += [(SIZE, SIZE), (SIZE,)]
    return [draw(*shape, seed=10 + index, scale=0.5) for index, shape in enumerate(shapes)]


def by_torch(kind: str, weights: Sequence[Floats], given: dict[str, Floats]) -> list[Floats]:
    """The tops: outputs of all steps, then the last states."""
    tensors = [torch.from_numpy(weight) for weight in weights]
    static = torch.from_numpy(given["static"]) @ tensors.pop(2).T if "static" in given else None
    x, cont = torch.from_numpy(given["x"]), torch.from_numpy(given["cont"])
    cell = torch.nn.LSTMCell(WIDTH, SIZE) if kind == "LSTM" else torch.nn.RNNCell(WIDTH, SIZE)
    order = list(range(len(tensors[1])))
    if kind == "LSTM":  # Caffe's i, f, o, g are torch's i, f, g, o.
        order = [*order[: 2 * SIZE], *order[3 * SIZE :], *order[2 * SIZE : 3 * SIZE]]
    h, c = (torch.from_numpy(given.get(name, np.zeros((1, x.shape[1], SIZE), np.float32)))[0] for name in ("h0", "c0"))
    outputs = []
    with torch.no_grad():
        for parameter, tensor in zip(
            (cell.weight_ih, cell.bias_ih, cell.weight_hh), (tensors[0], tensors[1], tensors[2]), strict=True
        ):
            parameter.copy_(tensor[order])
        cell.bias_hh.zero_()
        for step in range(len(x)):
            reset = cont[step][:, None]
            if static is not None:  # What it adds differs from stream to stream: as a second bias.
                rows = []
                for stream in range(x.shape[1]):
                    cell.bias_hh.copy_(static[stream][order])
                    old = (h[stream : stream + 1] * reset[stream], c[stream : stream + 1] * reset[stream])
                    rows.append(cell(x[step, stream : stream + 1], old if kind == "LSTM" else old[0]))
                h, c = (
                    (torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows]))
                    if kind == "LSTM"
                    else (torch.cat(rows), c)
                )
            elif kind == "LSTM":
                h, c = cell(x[step], (h * reset, c * reset))
            else:
                h = cell(x[step], h * reset)
            outputs.append(h)
        out = torch.stack(outputs)
        if kind == "RNN":
            out = torch.tanh(out @ tensors[3].T + tensors[4])
    return [out.numpy(), h[None].numpy(), *([c[None].numpy()] if kind == "LSTM" else [])]


@pytest.mark.parametrize("unrolled", [True, False], ids=["unrolled", "scan"])
@pytest.mark.parametrize("options", ["plain", "static", "exposed", "static exposed"])
@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
def test_streams_are_reset_where_cont_says_so(
    kind: str, options: str, unrolled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    static, exposed = "static" in options, "exposed" in options
    monkeypatch.setattr(recurrent, "UNROLLED", len(RESETS) if unrolled else len(RESETS) - 1)
    weights = blobs(kind, static=static)
    model = lowered(net(kind, RESETS, static=static, exposed=exposed), [("rec", kind, weights)])
    assert any(node.op_type == "Scan" for node in model.graph) == (not unrolled)

    cont = RESETS.copy()
    if exposed:
        cont[0] = 1  # The state that is given counts.
    states = ("h0", "c0")[: 2 if kind == "LSTM" else 1] if exposed else ()
    given = feeds(cont, static=static, states=states)
    expected = by_torch(kind, weights, given)
    found = execute(model, given)
    assert len(found) == (1 + len(states))
    for actual, right in zip(found, expected, strict=False):
        assert snr_db(right, actual) > ENOUGH
    if options in ("plain", "static exposed"):
        for actual, right in zip(openvino(model, given), expected, strict=False):
            assert snr_db(right, actual) > ENOUGH


def test_one_sequence_is_what_torch_makes_of_it() -> None:
    cont = np.ones((7, STREAMS), np.float32)
    cont[0] = 0
    weights = blobs("LSTM")
    given = feeds(cont)
    whole = torch.nn.LSTM(WIDTH, SIZE)
    order = [*range(2 * SIZE), *range(3 * SIZE, 4 * SIZE), *range(2 * SIZE, 3 * SIZE)]
    parts = dict(zip(("weight_ih_l0", "bias_ih_l0", "weight_hh_l0"), weights, strict=True))
    parts["bias_hh_l0"] = np.zeros(4 * SIZE, np.float32)
    whole.load_state_dict({name: torch.from_numpy(part)[order] for name, part in parts.items()})
    with torch.no_grad():
        expected = whole(torch.from_numpy(given["x"]))[0].numpy()
    (found,) = execute(lowered(net("LSTM", cont), [("rec", "LSTM", weights)]), given)
    assert snr_db(expected, found) > ENOUGH


@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
def test_a_single_step(kind: str) -> None:
    cont = np.ones((1, STREAMS), np.float32)
    weights, given = blobs(kind), feeds(cont)
    (found,) = execute(lowered(net(kind, cont), [("rec", kind, weights)]), given)
    assert snr_db(by_torch(kind, weights, given)[0], found) > ENOUGH


@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
def test_time_and_streams_may_be_open(kind: str) -> None:
    weights = blobs(kind)
    model = lowered(net(kind, RESETS), [("rec", kind, weights)], {"x": ("steps", "N", WIDTH), "cont": ("steps", "N")})
    for cont in (RESETS, RESETS[:2, :1]):
        given = feeds(np.ascontiguousarray(cont))
        (expected, *_) = by_torch(kind, weights, given)
        assert snr_db(expected, execute(model, given)[0]) > ENOUGH
    assert snr_db(expected, openvino(model, given)[0]) > ENOUGH


def test_all_axes_of_x_after_the_second_are_features() -> None:
    weights, given = blobs("LSTM"), feeds(RESETS)
    model = lowered(net("LSTM", RESETS, axes=(2, 2)), [("rec", "LSTM", weights)])
    (found,) = execute(model, given | {"x": given["x"].reshape(5, STREAMS, 2, 2)})
    assert snr_db(by_torch("LSTM", weights, given)[0], found) > ENOUGH


def test_a_unit_of_its_own() -> None:
    shapes = {"c": (1, STREAMS, SIZE), "gates": (1, STREAMS, 4 * SIZE), "cont": (1, STREAMS)}
    model = lowered(caffe_files.inputs(**shapes) + caffe_files.layer("u", "LSTMUnit", tuple(shapes), ("c1", "h1")))
    given = {name: draw(*shape, seed=len(name)) for name, shape in shapes.items()}
    given["cont"] = np.array([[1, 0, 1]], np.float32)
    i, f, o, g = np.split(given["gates"].astype(np.float64), 4, axis=-1)
    sigmoid = [1 / (1 + np.exp(-each)) for each in (i, f, o)]
    c = given["cont"][..., None] * sigmoid[1] * given["c"] + sigmoid[0] * np.tanh(g)
    for found, right in zip(execute(model, given), (c, sigmoid[2] * np.tanh(c)), strict=True):
        assert snr_db(right.astype(np.float32), found) > ENOUGH


def test_few_nodes_a_step() -> None:
    counts = [
        len(
            list(
                graph.all_nodes(lowered(net("LSTM", np.ones((steps, 1), np.float32)), [("rec", "LSTM", blobs("LSTM"))]))
            )
        )
        for steps in (10, 20)
    ]
    assert (counts[1] - counts[0]) / 10 <= 13


@pytest.mark.parametrize(
    ("prototxt", "saved", "message"),
    [
        (net("LSTM", RESETS), [], "needs 3 weight blobs"),
        (net("LSTM", RESETS), blobs("RNN"), "weight blob"),
        (net("LSTM", RESETS).replace("num_output: 6", ""), blobs("LSTM"), "num_output is 0"),
        (net("RNN", RESETS).replace('bottom: "cont"', ""), blobs("RNN"), "has 1 bottoms"),
        (net("RNN", RESETS).replace("dim: 5 dim: 3 }", "dim: 5 dim: 2 }"), blobs("RNN"), r"cont of \[T,N\]"),
        (net("LSTM", RESETS, exposed=True).replace('bottom: "c0"', ""), blobs("LSTM"), "has 3 bottoms, needs 4 or 5"),
    ],
)
def test_what_caffe_would_not_take_is_refused(prototxt: str, saved: list[Floats], message: str) -> None:
    kind = "LSTM" if '"LSTM"' in prototxt else "RNN"
    with pytest.raises(RetargetError, match=message) as caught:
        lowered(prototxt, [("rec", kind, saved)])
    assert "layer 'rec'" in str(caught.value)
