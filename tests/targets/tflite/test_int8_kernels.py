"""The kernels of integers, one operator at a time, against what QuantizeLinear and DequantizeLinear mean.

Everywhere within one step. What is a step off: ties, which kernels round away from zero (an average of four integers is
one in a fourth of the cases); what XNNPACK rounds from one scale to another, a few in a hundred; and what is multiplied
by fixed-point factors, one in a hundred of the convolutions of the other kernels, and one in six of all with 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import many_nodes
import msgspec
import numpy as np
import one_node
import pytest
import target_testing as t
from probes import Attribute, Bias, Built, Data, Levels, Numbers, Operand, Precision, Probe, Weights, built, of_floats

from retarget.compare import snr_db
from retarget.errors import ToolchainFailure
from retarget.targets.tflite import emit
from retarget.targets.tflite.executed import executed
from retarget.targets.tflite.layout import FIRST_AXES
from retarget.targets.tflite.ops import OPS

if TYPE_CHECKING:
    from retarget.facts import EmitFacts
    from retarget.protocols import Array, Outputs

KERNELS = ("xnnpack", "builtin", "reference")
PRECISIONS: tuple[Precision, ...] = ("int8", "int16x8")

LACKING: Mapping[tuple[str, str], Sequence[Precision]] = {
    ("Elu", "reference"): PRECISIONS,
    ("Abs", "reference"): ("int16x8",),
}
"""Operators that kernels lack: the reference ones have no ELU, not even of floats, and no ABS of 16 bits."""

IMAGE = Data((2, 4, 6, 5))
LINE = Data((2, 4, 7))
ROWS = Data((3, 10))
ONES = Data((2, 4, 1, 1))
NEITHER, NARROW, WIDE = (False, False), (True, False), (False, True)
"""Whether integers are computed with: of 8 bits, and of 16."""

AROUND = [0, 0, 1, 2, 0, 0, 0, 1]
DOUBLED = [1.0, 1.0, 2.0, 2.0]

OTHERS = Levels(0.0613, -9)
SHARE_OF_16 = Levels(256 / 32768, 0)
SHARE, LOGARITHM = Levels(1 / 256, -128), Levels(1 / 16, 127)


def convolutions() -> list[Probe]:
    around: Mapping[str, Attribute] = {"pads": [1, 1, 1, 1]}
    full: list[Operand] = [IMAGE, Weights((8, 4, 3, 3)), Bias(8)]
    return [
        Probe(full, around),
        Probe(full, around, "Relu"),
        Probe(full, around, "Clip"),
        Probe(full, {"strides": [2, 2]}),
        Probe(full, {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
        Probe(full, {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
        Probe(full[:2], around),
        Probe([IMAGE, Weights((8, 4, 3, 3), None), Bias(8)], around),
        Probe([IMAGE, Weights((4, 1, 3, 3)), Bias(4)], {**around, "group": 4}, "Relu"),
        Probe([IMAGE, Weights((8, 1, 3, 3)), Bias(8)], {**around, "group": 4, "strides": [2, 2]}),
        Probe([IMAGE, Weights((4, 2, 3, 3)), Bias(4)], {**around, "group": 2}),
        Probe([Data((2, 4, 6, 5), 0.02, -128), Weights((8, 4, 1, 1)), Bias(8)], results=Levels(0.02, -128)),
        Probe([LINE, Weights((6, 4, 3)), Bias(6)], {"pads": [1, 1]}),
        Probe([Data((1, 2, 3, 4, 4)), Weights((3, 2, 2, 2, 2))], integers=NEITHER),
    ]


def transposed() -> list[Probe]:
    return [
        Probe([IMAGE, Weights((4, 3, 2, 2), 1), Bias(3)], {"strides": [2, 2]}),
        Probe([IMAGE, Weights((4, 3, 3, 3), 1), Bias(3)], {"strides": [2, 2], "pads": [1, 1, 1, 1]}, "Relu"),
        Probe([IMAGE, Weights((4, 3, 3, 3), None)], {"output_padding": [1, 1], "strides": [2, 2]}),
        Probe([LINE, Weights((4, 3, 2), 1), Bias(3)], {"strides": [2]}),
    ]


def products() -> list[Probe]:
    left, right = Data((2, 3, 4, 5)), Data((2, 3, 5, 6), 0.02, -7)
    return [
        Probe([Data((2, 5, 8)), Weights((8, 6), 1)]),
        Probe([ROWS, Weights((10, 6), 1)], {}, "Relu"),
        Probe([ROWS, Weights((10, 6), None)], {}, "Clip"),
        Probe([Data((2, 3, 5, 8)), Weights((8, 6), 1)]),
        Probe([left, right]),
        Probe([Data((2, 1, 4, 5)), Data((1, 3, 5, 6), 0.02, -7)]),
        Probe([Data((4, 5)), Data((5, 6), 0.02, -7)]),
        Probe([Data((2, 4, 5)), Data((2, 5, 6), 0.02, -7)]),
        Probe([left, right], {}, "Relu"),
    ]


def layers() -> list[Probe]:
    return [
        Probe([ROWS, Weights((10, 6), 1), Bias(6)]),
        Probe([ROWS, Weights((6, 10), 0), Bias(6)], {"transB": 1}, "Relu"),
        Probe([ROWS, Weights((6, 10), None), Bias(6)], {"transB": 1}, "Clip"),
        Probe([ROWS, Weights((6, 10), 0)], {"transB": 1}),
        Probe([ROWS, Weights((6, 10), 0)], {"transB": 1, "alpha": 0.5}, integers=NEITHER),
    ]


def arithmetic() -> list[Probe]:
    other = Data(IMAGE.shape, 0.02, -20)
    return [
        Probe([IMAGE, other]),
        Probe([IMAGE, other], {}, "Relu"),
        Probe([IMAGE, other], {}, "Clip"),
        Probe([IMAGE, IMAGE], results="operand"),
        Probe([IMAGE, Data((1, 4, 1, 1), 0.01, 5)]),
        Probe([Data((4, 1, 1), 0.01, 5), IMAGE]),
        Probe([IMAGE, Data((1, 4, 1, 1), 0.03, 5, held=True)]),
        Probe([IMAGE, Data((), 0.03, 5, held=True)]),
        Probe([Data((1,), 0.03, 5, held=True), IMAGE]),
        Probe([ROWS, Data((10,), 0.2, 100)]),
        Probe([LINE, Data((2, 4, 7), 0.3, 0)]),
        Probe([IMAGE, [0.5]], integers=NEITHER),
    ]


def extremes() -> list[Probe]:
    return [
        Probe([IMAGE, IMAGE], results="operand"),
        Probe([IMAGE, IMAGE, Data((1, 4, 1, 1))], results="operand"),
        Probe([IMAGE, Data((1, 4, 1, 1), held=True)], results="operand"),
        Probe([ROWS, Data((10,))]),
        Probe([ROWS, ROWS], {}, "Relu"),
        Probe([IMAGE, Data(IMAGE.shape, 0.02, -20)], integers=NEITHER),
        Probe([IMAGE, Data(IMAGE.shape, 0.02, -20, held=True)], integers=NEITHER),
    ]


def function(*attributes: Mapping[str, Attribute], integers: tuple[bool, bool] = (True, True)) -> list[Probe]:
    """Around zero, with other levels behind it and with the same."""
    return [
        probe
        for each in attributes or [{}]
        for probe in (
            Probe([IMAGE], each, integers=integers),
            Probe([IMAGE], each, results="operand", integers=integers),
            Probe([LINE], each, results=OTHERS, integers=integers),
        )
    ]


def over_an_axis(levels: Levels) -> list[Probe]:
    return [
        *(Probe([IMAGE], {"axis": axis}, results=levels, integers=NARROW) for axis in (1, 2, -1)),
        Probe([ROWS], {}, results=levels, integers=NARROW),
        Probe([ROWS], {}, integers=NEITHER),
    ]


def reductions(*, moves: bool = False) -> list[Probe]:
    chosen = ([2, 3], [1], [-1], [0, 1, 2, 3])
    return [
        *(Probe([IMAGE, axes], {"keepdims": keep}) for axes in chosen for keep in (0, 1)),
        Probe([LINE, [1]], {"keepdims": 1}, results="operand"),
        Probe([ROWS, [0]], {"keepdims": 0}),
        *([] if moves else [Probe([IMAGE, [2, 3]], {"keepdims": 1}, "Relu", integers=NEITHER)]),
    ]


def places() -> list[Probe]:
    return [
        Probe([IMAGE], {"axis": axis, "keepdims": keep}, integers=NARROW) for axis in (1, -1) for keep in (0, 1)
    ] + [Probe([ROWS], {"axis": 0}, integers=NARROW)]


def pools(*, average: bool = False) -> list[Probe]:
    """Averages are computed with integers where the levels stay."""
    square = {"kernel_shape": [2, 2]}
    others = (True, True) if not average else NEITHER
    return [
        Probe([IMAGE], {**square, "strides": [2, 2]}, results="operand"),
        Probe([IMAGE], {**square, "strides": [2, 2]}, results=Levels(0.08, -3), integers=others),
        Probe([IMAGE], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, results="operand"),
        Probe([LINE], {"kernel_shape": [3], "strides": [2]}, results="operand"),
    ]


def moved(operands: Sequence[Data | Numbers | None], outputs: int = 1, **attributes: Attribute) -> list[Probe]:
    """With the same levels behind it and with others, to which the integers are then rounded."""
    return [
        Probe(operands, attributes, results="operand", outputs=outputs),
        Probe(operands, attributes, results=OTHERS, outputs=outputs),
    ]


PROBES: Mapping[str, Sequence[Probe]] = {
    "Abs": function(),
    "Add": arithmetic(),
    "ArgMax": places(),
    "ArgMin": places(),
    "AveragePool": pools(average=True),
    "CenterCropPad": [*moved([IMAGE, [4, 8]], axes=[2, 3])],
    "Clip": [Probe([IMAGE, [0.0], [6.0]], integers=NARROW)],
    "Concat": [
        *moved([IMAGE, IMAGE], axis=1),
        *moved([IMAGE, IMAGE], axis=-1),
        *moved([IMAGE, Data((2, 2, 6, 5), held=True), IMAGE], axis=1),
        *moved([ROWS, ROWS], axis=0),
        Probe([IMAGE, Data(IMAGE.shape, 0.02, -20)], {"axis": 1}, integers=NEITHER),
        Probe([IMAGE, Data(IMAGE.shape, 0.02, -20, held=True)], {"axis": 1}, integers=NEITHER),
    ],
    "Conv": convolutions(),
    "ConvTranspose": transposed(),
    "DepthToSpace": [probe for mode in ("DCR", "CRD") for probe in moved([IMAGE], blocksize=2, mode=mode)],
    "Elu": function(integers=NARROW),
    "Expand": moved([ONES, [2, 4, 3, 5]]),
    "Flatten": moved([IMAGE]),
    "Gather": [*moved([IMAGE, [0, -1, 2]], axis=1), *moved([ROWS, [0, 2, 2]], axis=0)],
    "GatherElements": moved([ROWS, [[0, 2, -1], [1, 1, 0], [9, 3, 3]]], axis=1),
    "GatherND": moved([ROWS, [[0, 2], [1, 9]]]),
    "Gelu": function({}, {"approximate": "tanh"}, integers=NARROW),
    "Gemm": layers(),
    "GlobalAveragePool": [Probe([IMAGE]), Probe([IMAGE], results="operand"), Probe([LINE])],
    "GlobalMaxPool": [*moved([IMAGE]), *moved([LINE])],
    "HardSwish": function(integers=NARROW),
    "LeakyRelu": function({}, {"alpha": 0.3}),
    "LogSoftmax": over_an_axis(LOGARITHM),
    "MatMul": products(),
    "Max": extremes(),
    "MaxPool": pools(),
    "Min": extremes(),
    "Mul": arithmetic(),
    "PRelu": [
        Probe([IMAGE, Data((4, 1, 1), 0.004, 0, held=True)], integers=NARROW),
        Probe([IMAGE, Data((4, 1, 1), 0.004, 10, held=True)], integers=NARROW),
        Probe([IMAGE, Data((1,), 0.004, 10, held=True)], integers=NARROW),
        Probe([IMAGE, [0.25]], integers=NEITHER),
    ],
    "Pad": [
        *moved([IMAGE, AROUND, [0.0]]),
        *moved([IMAGE, AROUND], mode="reflect"),
        *moved([IMAGE, AROUND], mode="edge"),
        Probe([IMAGE, AROUND, [1.234]], results="operand", integers=NARROW),
        Probe([IMAGE, AROUND, [1.234]], results=Levels(0.013, 0), integers=NEITHER),
    ],
    "ReduceMax": reductions(moves=True),
    "ReduceMean": reductions(),
    "ReduceMin": reductions(moves=True),
    "Relu": function(),
    "Reshape": moved([IMAGE, [2, -1, 10]]),
    "Resize": [
        *moved([IMAGE, None, DOUBLED], mode="nearest", coordinate_transformation_mode="asymmetric"),
        *(
            Probe(
                [IMAGE, None, DOUBLED],
                {"mode": "linear", "coordinate_transformation_mode": mode},
                results="operand",
                integers=NARROW,
            )
            for mode in ("half_pixel", "align_corners", "asymmetric")
        ),
        Probe([IMAGE, None, DOUBLED], {"mode": "linear"}, results=OTHERS, integers=NEITHER),
        Probe([IMAGE, None, DOUBLED], {"mode": "cubic"}, integers=NEITHER),
    ],
    "Sigmoid": [
        *(Probe([data], results=SHARE, integers=NARROW) for data in (IMAGE, LINE, ROWS)),
        *(Probe([data], results=SHARE_OF_16, integers=WIDE) for data in (IMAGE, LINE, ROWS)),
        Probe([IMAGE], integers=NEITHER),
    ],
    "Slice": [
        *moved([IMAGE, [1, 0], [4, 5], [1, 3], [2, 2]]),
        *moved([ROWS, [9], [0], [1], [-3]]),
    ],
    "Softmax": over_an_axis(SHARE),
    "SpaceToDepth": [replace(each, integers=NARROW) for each in moved([Data((2, 4, 6, 4))], blocksize=2)],
    "Split": [*moved([IMAGE], 2, axis=1, num_outputs=2), *moved([ROWS, [3, 7]], 2, axis=1)],
    "Squeeze": moved([ONES, [2, 3]]),
    "Sub": arithmetic(),
    "Tanh": [
        *(Probe([Data(data.shape, 0.02)], results=Levels(1 / 128, 0), integers=NARROW) for data in (IMAGE, LINE, ROWS)),
        Probe([Data(IMAGE.shape, 0.02)], integers=NARROW),
    ],
    "TopK": moved([ROWS, [4]], 2),
    "Transpose": [*moved([IMAGE], perm=[0, 2, 3, 1]), *moved([IMAGE], perm=[3, 1, 0, 2]), *moved([ROWS], perm=[1, 0])],
    "Unsqueeze": moved([ROWS, [0, 3]]),
}


def test_every_operator_of_integers_has_probes() -> None:
    assert set(PROBES) == {name for name, op in OPS.items() if op.int8 != "no"}


@pytest.mark.parametrize("layout", many_nodes.LAYOUTS)
@pytest.mark.parametrize("operator", PROBES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_kernels_are_within_a_step(
    precision: Precision, operator: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if layout == "last":
        monkeypatch.setattr(emit, "arrange", many_nodes.channels_last)
    for place, probe in enumerate(PROBES[operator]):
        made = built(operator, probe, precision)
        if layout == "last" and all(array.ndim < FIRST_AXES for array in made.feeds.values()):
            continue
        out = tmp_path / str(place)
        out.mkdir()
        facts = t.emit("tflite", made.model, out, precision)
        # Of the results alone, if nothing in between is a float.
        computes = one_node.operators(out).count("DEQUANTIZE") == len(made.levels)
        assert computes == probe.integers[PRECISIONS.index(precision)], probe
        for kernels in KERNELS:
            if precision in LACKING.get((operator, kernels), ()):
                with pytest.raises(ToolchainFailure, match="Didn't find op"):
                    _run(out, facts, made, kernels)
                continue
            for name, steps in _steps(made, _run(out, facts, made, kernels)).items():
                assert steps.max() <= (1 if name in made.levels else 0), f"{kernels} {name} {probe}"


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "Gemm", "MatMul"])
def test_products_of_xnnpack_are_equal(operator: str, tmp_path: Path) -> None:
    """That is why it is what int8 is held against."""
    for place, probe in enumerate(_weighted(operator)):
        made = built(operator, probe, "int8", seed=1)
        out = tmp_path / str(place)
        out.mkdir()
        facts = t.emit("tflite", made.model, out, "int8")
        (steps,) = _steps(made, _run(out, facts, made, "xnnpack")).values()
        assert steps.max() == 0, probe


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "Gemm", "MatMul"])
def test_integer_weights_of_floats(operator: str, tmp_path: Path) -> None:
    """Kernels that round floats to 8 bits as they run, by all sets; where there is none the weights are widened."""
    for place, probe in enumerate(_weighted(operator)):
        model, feeds, right = of_floats(operator, probe)
        out = tmp_path / str(place)
        out.mkdir()
        facts = t.emit("tflite", model, out, "int8_dynamic")
        # Weights that the kernels of integers do not take are floats here, too.
        weights, done = ("int8", "int8") if any(probe.integers) else ("float32", "float32")
        assert (facts.precision.weights, facts.precision.activations) == (weights, "float32"), probe
        assert set(executed(out / emit.FILE, "int8_dynamic").work) == {done}
        for kernels in KERNELS:
            chosen = msgspec.structs.replace(facts, settings={**facts.settings, "kernels": kernels})
            found = t.run("tflite", out, chosen, feeds)["y0"].astype(np.float64)
            assert snr_db(right, found) > (40 if any(probe.integers) else 110), f"{kernels} {probe}"


def _weighted(operator: str) -> list[Probe]:
    return [probe for probe in PROBES[operator] if any(isinstance(each, Weights) for each in probe.operands)]


def _run(out: Path, facts: EmitFacts, made: Built, kernels: str) -> Outputs:
    chosen = msgspec.structs.replace(facts, settings={**facts.settings, "kernels": kernels})
    return t.run("tflite", out, chosen, made.feeds)


def _steps(made: Built, found: Outputs) -> dict[str, Array]:
    """How many steps each element is away; of integers by how much."""
    steps: dict[str, Array] = {}
    for name, right in made.codes.items():
        actual, levels = found[name].astype(np.float64), made.levels.get(name)
        if levels is not None:
            actual = np.rint(actual / levels.scale) + levels.zero
        steps[name] = np.abs(actual - right.astype(np.float64))
    return steps
