"""Many nodes in one package, apart from each other, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import target_testing as t
from node_models import Node, model
from written import interpreted

from retarget.targets.coreml import DeploymentTarget


def agrees(*nodes: Node, target: DeploymentTarget = "iOS17", rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Assert that the interpreted package has what ONNX Runtime has. ``atol`` is of the largest number."""
    made, feeds = model(*nodes)
    expected = t.oracle(made, feeds)
    for value in made.graph.outputs:  # shapes that ONNX does not infer of what it defines by a function
        array = expected[value.name or ""]
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    (actual,) = interpreted(made, feeds, target=target)
    for output, right in expected.items():
        case = str(nodes[int(output[1:].partition("_")[0])])
        left = actual[output]
        assert (left.dtype, left.shape) == (right.dtype, right.shape), case
        finite = np.abs(right[np.isfinite(right)].astype(np.float64)) if right.dtype.kind == "f" else np.zeros(0)
        tolerance = atol * max(1.0, float(finite.max(initial=0))) if right.dtype.kind == "f" else 0.0
        wide = (left.astype(np.float64), right.astype(np.float64))
        np.testing.assert_allclose(*wide, rtol=rtol if right.dtype.kind == "f" else 0, atol=tolerance, err_msg=case)
