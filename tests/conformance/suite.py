"""The conformance suite: ONNX's own node tests as cases for an emitter.

A case is a model of the normal form's opset, feeds, and the outputs that ONNX stores for them. Kept are the cases that
a deployed model could hold: plain tensors, dense types, static shapes, at least one input left once the operands that
models hold as constants (shapes, axes, weights) are frozen, and ONNX Runtime, optimizations off, agreeing with the
stored outputs.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import pickle
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.shape_inference
import onnx.version_converter
import onnx_ir as ir
from onnx import numpy_helper

from retarget import graph
from retarget.errors import RetargetError
from retarget.session import Session

if TYPE_CHECKING:
    from onnx.backend.test.case.test_case import TestCase

    from retarget.protocols import Array

DTYPES = frozenset({"float32", "int32", "int64", "bool"})
RTOL, ATOL = 1e-3, 1e-4
"""ONNX's own relative bound, and an absolute one for values that cancel."""

FROZEN: dict[str, tuple[int, ...]] = {
    # Shapes, axes, bounds and modes: constants in every model that an exporter writes.
    "AffineGrid": (1,),
    "CenterCropPad": (1,),
    "Clip": (1, 2),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "MaxUnpool": (2,),
    "NonMaxSuppression": (2, 3, 4),
    "OneHot": (1, 2),
    "Pad": (1, 2, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    # Weights.
    "BatchNormalization": (1, 2, 3, 4),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "DequantizeLinear": (1, 2),
    "GRU": (1, 2, 3, 4, 5),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 4, 5, 6, 7),
    "LayerNormalization": (1, 2),
    "PRelu": (1,),
    "QuantizeLinear": (1, 2),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3, 4, 5),
} | {
    f"Reduce{name}": (1,)
    for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
}


@dataclass(frozen=True)
class Case:
    """One node test. ``model`` is a serialized ``ModelProto``."""

    name: str
    op: str
    model: bytes
    feeds: dict[str, Array]
    expected: dict[str, Array]

    def load(self) -> ir.Model:
        return ir.from_proto(onnx.load_from_string(self.model))


@cache
def cases() -> tuple[Case, ...]:
    """All cases, from a file of this user's temporary folder when this suite and these versions made one."""
    versions = [importlib.metadata.version(name) for name in ("onnx", "onnx-ir", "onnxruntime", "numpy")]
    identity = hashlib.sha256("\n".join([Path(__file__).read_text(), *versions]).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / "retarget-conformance"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = folder / f"{identity}.pickle"
    # The lock lets the second of two test processes wait for the first rather than do the same work.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            part = file.with_suffix(".part")
            part.write_bytes(pickle.dumps(tuple(_build())))
            part.replace(file)
    suite: tuple[Case, ...] = pickle.loads(file.read_bytes())
    return suite


def _build() -> Iterator[Case]:
    with warnings.catch_warnings():
        # The generators of the node tests divide by zero and overflow on purpose.
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        loaded = load_model_tests(kind="node")
    for test in loaded:
        case = _case(test)
        if case is not None:
            yield case


def _case(test: TestCase) -> Case | None:
    """``test`` as a case, None if it is not one for us."""
    model = test.model
    if model is None or not test.data_sets or "_expanded" in test.name:
        return None
    if {node.domain for node in model.graph.node} - {"", "ai.onnx"}:
        return None
    values = [*model.graph.input, *model.graph.output]
    if not all(value.type.HasField("tensor_type") and _dense(value) for value in values):
        return None
    inputs, outputs = test.data_sets[0]
    lifted = _lifted(model)
    if lifted is None or len(inputs) != len(model.graph.input):
        return None
    arrays = {value.name: np.asarray(array) for value, array in zip(model.graph.input, inputs, strict=True)}
    expected = {value.name: np.asarray(array) for value, array in zip(model.graph.output, outputs, strict=True)}
    feeds = _freeze(lifted, arrays)
    if not feeds:
        return None
    try:
        typed = ir.from_proto(onnx.shape_inference.infer_shapes(lifted, check_type=True))
    except onnx.shape_inference.InferenceError:
        # Types that the operator has only in a later opset.
        return None
    if not _agrees(typed, feeds, expected):
        return None
    operators = dict.fromkeys(node.op_type for node in model.graph.node)
    return Case(test.name, "+".join(operators), ir.to_proto(typed).SerializeToString(), feeds, expected)


def _dense(value: onnx.ValueInfoProto) -> bool:
    """Whether the value's type is one that models are made of, and its shape known, without empty axes."""
    kind = value.type.tensor_type
    if graph.dtype_name(ir.DataType(kind.elem_type)) not in DTYPES or not kind.HasField("shape"):
        return False
    return all(dim.dim_value > 0 for dim in kind.shape.dim)


def _lifted(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """``model`` at the normal form's opset; a newer one is stamped back, and ONNX Runtime has the last word on that."""
    version = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    try:
        if version < graph.OPSET:
            lifted = onnx.version_converter.convert_version(model, graph.OPSET)
        else:
            lifted = onnx.ModelProto()
            lifted.CopyFrom(model)
            for entry in lifted.opset_import:
                if entry.domain in ("", "ai.onnx"):
                    entry.version = graph.OPSET
        lifted.ir_version = 10
        onnx.checker.check_model(lifted)
    except (RuntimeError, onnx.checker.ValidationError, onnx.version_converter.ConvertError):
        return None
    return lifted


def _freeze(model: onnx.ModelProto, arrays: dict[str, Array]) -> dict[str, Array]:
    """Turn the operands that are constants in real models into initializers; returns the feeds that are left."""
    frozen = {
        node.input[index]
        for node in model.graph.node
        for index in FROZEN.get(node.op_type, ())
        if index < len(node.input) and node.input[index] in arrays
    }
    model.graph.initializer.extend(numpy_helper.from_array(arrays[name], name) for name in sorted(frozen))
    kept = [value for value in model.graph.input if value.name not in frozen]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return {value.name: arrays[value.name] for value in kept}


def _agrees(model: ir.Model, feeds: dict[str, Array], expected: dict[str, Array]) -> bool:
    try:
        with Session(model) as session:
            return difference(session.run(feeds), expected) is None
    except RetargetError:
        return False


def difference(actual: dict[str, Array], expected: dict[str, Array]) -> str | None:
    """How the outputs differ, None if they agree."""
    for name, right in expected.items():
        got = actual[name]
        if got.shape != right.shape:
            return f"'{name}' has the shape {list(got.shape)}, not {list(right.shape)}"
        if got.dtype != right.dtype:
            return f"'{name}' is {got.dtype}, not {right.dtype}"
        if not np.allclose(got, right, rtol=RTOL, atol=ATOL, equal_nan=True):
            with np.errstate(invalid="ignore", over="ignore"):
                largest = np.nanmax(np.abs(got.astype(np.float64) - right.astype(np.float64)))
            return f"'{name}' is off by up to {largest:.3g}"
    return None
