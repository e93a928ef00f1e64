"""Many nodes in one model, apart from each other, against ONNX Runtime: in both layouts, by two kernel sets.

To load a model costs more than to compute a node: many are held against ONNX Runtime at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
import target_testing as t
from node_models import Node, model

from retarget import catalog, graph
from retarget.protocols import EmitJob
from retarget.spec import TensorSpec
from retarget.targets.tflite import Options, emit
from retarget.targets.tflite.layout import FIRST_AXES, Arranged, Layout, Way, Wish

if TYPE_CHECKING:
    from collections.abc import Callable

    from retarget.protocols import Array

LAYOUTS = ("first", "last")
KERNELS = ("xnnpack", "builtin")


def agrees(
    nodes: Sequence[Node],
    layout: str,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    expected: Mapping[str, Array] | None = None,
    kernels: Sequence[str] = KERNELS,
) -> None:
    """Assert that LiteRT has what ONNX Runtime has, or what is ``expected``, by each of ``kernels``.

    ``layout``: that of all values which the nodes can work on in it. ``atol`` is of the largest number.
    """
    made, feeds = model(*nodes)
    expected = t.oracle(made, feeds) if expected is None else expected
    if layout == "last":
        monkeypatch.setattr(emit, "arrange", channels_last)
    facts = emit.emit(made, job(made, expected), out)
    for name in kernels:
        chosen = msgspec.structs.replace(facts, settings={**facts.settings, "kernels": name})
        with catalog.target_run("tflite").open(out, chosen, parity=True, threads=1) as runner:
            actual = runner.run(feeds)
        for output, right in expected.items():
            case = f"{nodes[int(output[1:].partition('_')[0])]} by {name}"
            assert actual[output].dtype == right.dtype, case
            assert actual[output].shape == right.shape, case
            finite = np.abs(right[np.isfinite(right)]) if right.dtype.kind == "f" else np.zeros(0)
            tolerance = atol * float(finite.max(initial=0))
            left, wide = actual[output].astype(np.float64), right.astype(np.float64)
            np.testing.assert_allclose(left, wide, rtol=rtol, atol=tolerance, err_msg=case)


def job(model: ir.Model, outputs: Mapping[str, Array]) -> EmitJob:
    return EmitJob(
        precision="fp32",
        inputs=tuple(graph.value_spec(value) for value in model.graph.inputs),
        outputs=tuple(TensorSpec(name, array.dtype.name, array.shape) for name, array in outputs.items()),
        shapes={},
        options=Options(),
    )


def channels_last(
    graph: ir.Graph,
    wish: Callable[[ir.Node], Wish | None],
    sizes: Mapping[str, int],
    border: Mapping[str, Layout],
) -> dict[ir.Node, Arranged]:
    """Wherever a node can work on values with the channels last, it has to."""
    del sizes, border
    made: dict[ir.Node, Arranged] = {}
    for node in graph:
        wished = wish(node)
        way = Way.FIRST if wished is None else wished.way
        shape = node.outputs[0].shape
        if way is Way.EITHER and (shape is None or len(shape) < FIRST_AXES):
            way = Way.FIRST
        made[node] = Arranged(
            Layout.FIRST if way is Way.FIRST else Layout.LAST,
            Layout.LAST if way in (Way.LAST, Way.EITHER) else Layout.FIRST,
        )
    return made
