"""What the tests of the targets share: models from text, jobs for them, and ONNX Runtime as the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from retarget import catalog, graph
from retarget.facts import EmitFacts
from retarget.protocols import EmitJob
from retarget.session import Session
from retarget.spec import DimRange, symbols

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds, Outputs

CNN = """g ({t}[N,4,8,8] image, {t}[8,4,3,3] w_conv, {t}[32,5] w_fc) => ({t}[N,5] logits, int64[N] label) {{
    [conv] c = Conv <pads = [1, 1, 1, 1]> (image, w_conv)
    [relu] r = Relu(c)
    [pool] p = MaxPool <kernel_shape = [4, 4], strides = [4, 4]> (r)
    [flat] f = Flatten(p)
    [fc] logits = MatMul(f, w_fc)
    [best] label = ArgMax <axis = 1, keepdims = 0> (logits)
}}"""


def model(text: str, *domains: str) -> ir.Model:
    """The graph of ``text``, shapes inferred; its inputs called ``w_…`` become random initializers."""
    imports = ", ".join(f'"{domain}" : {version}' for domain, version in (("", 23), *((name, 1) for name in domains)))
    parsed = ir.from_onnx_text(f"<ir_version: 10, opset_import: [{imports}]>\n{text}")
    rng = np.random.default_rng(0)
    for value in list(parsed.graph.inputs):
        if (value.name or "").startswith("w_"):
            shape = graph.static_shape(value, {})
            assert shape is not None
            assert value.dtype is not None
            value.const_value = ir.tensor((rng.standard_normal(shape) / 4).astype(value.dtype.numpy()), name=value.name)
            parsed.graph.inputs.remove(value)
            parsed.graph.register_initializer(value)
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(parsed)))


def job(target: str, model: ir.Model, precision: str = "fp32") -> EmitJob:
    """Dimensions from 1 over 4 to 8, the target's default options."""
    inputs = tuple(graph.value_spec(value) for value in model.graph.inputs)
    return EmitJob(
        precision=precision,
        inputs=inputs,
        outputs=tuple(graph.value_spec(value) for value in model.graph.outputs),
        shapes={symbol: DimRange(1, 4, 8) for symbol in symbols(inputs)},
        options=catalog.target(target).Options(),
    )


def emit(target: str, model: ir.Model, out: Path, precision: str = "fp32") -> EmitFacts:
    return catalog.target_emit(target).emit(model, job(target, model, precision), out)


def run(target: str, out: Path, facts: EmitFacts, feeds: Feeds, *, parity: bool = True) -> Outputs:
    with catalog.target_run(target).open(out, facts, parity=parity, threads=1) as runner:
        return runner.run(feeds)


def oracle(model: ir.Model, feeds: Feeds) -> Outputs:
    """ONNX Runtime on the graph as it is written."""
    with Session(model) as session:
        return session.run(feeds)


def normal(*shape: int, seed: int = 1) -> Array:
    array: Array = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return array


def feeds(model: ir.Model, size: int, seed: int = 1) -> Feeds:
    """Random feeds, all symbolic dimensions of ``size``: normal floats, integers below 8, both truths."""
    rng = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for value in model.graph.inputs:
        spec = graph.value_spec(value)
        shape = [size if isinstance(dim, str) else dim for dim in spec.shape]
        if spec.dtype == "bool":
            made[spec.name] = rng.random(shape) < 0.7
        elif "int" in spec.dtype:
            made[spec.name] = rng.integers(0, 8, shape).astype(spec.dtype)
        else:
            made[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    return made


def assert_close(actual: Array, expected: Array, atol: float = 1e-5) -> None:
    """Equal within ``atol``, and not by being all the same value."""
    right = expected.astype(np.float64)
    assert right.std() > 0.05
    np.testing.assert_allclose(actual.astype(np.float64), right, rtol=0, atol=atol)


def assert_near(found: Array, right: Array, atol: float) -> None:
    """Equal, floats within ``atol`` times the largest that is finite; NaN and infinities where they should be."""
    assert found.dtype == right.dtype
    if right.dtype.kind != "f":
        np.testing.assert_array_equal(found, right)
        return
    wide = right.astype(np.float64)
    largest = np.abs(wide[np.isfinite(wide)]).max(initial=1.0)
    np.testing.assert_allclose(found.astype(np.float64), wide, rtol=0, atol=atol * largest)
