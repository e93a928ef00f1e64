"""Models of one node from short text, and their TFLite files against ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import node_models
import numpy as np
import onnx_ir as ir
import target_testing as t
from ai_edge_litert import schema_py_generated as generated

from retarget import catalog
from retarget.facts import EmitFacts
from retarget.targets.tflite import Options, schema
from retarget.targets.tflite.emit import FILE

if TYPE_CHECKING:
    from retarget.protocols import Feeds

model, constants = node_models.of_text, node_models.constants

KERNELS = ("xnnpack", "builtin", "reference")


def emitted(model: ir.Model, out: Path, **options: str) -> EmitFacts:
    job = replace(t.job("tflite", model), options=Options(**options))  # type: ignore[arg-type]
    return catalog.target_emit("tflite").emit(model, job, out)


def assert_same(model: ir.Model, feeds: Feeds, out: Path, facts: EmitFacts) -> None:
    """With all kernels: what moves numbers changes none, the rest is within what float32 rounds."""
    right = t.oracle(model, feeds)
    for kernels in KERNELS:
        chosen = msgspec.structs.replace(facts, settings={**facts.settings, "kernels": kernels})
        for name, array in t.run("tflite", out, chosen, feeds).items():
            assert array.dtype == right[name].dtype
            actual, expected = array.astype(np.float64), right[name].astype(np.float64)
            np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=0, err_msg=kernels)


def operators(out: Path) -> list[str]:
    """The operators of the file, by their names in the schema."""
    names = schema.names_of_operators()
    model = generated.ModelT.InitFromPackedBuf((out / FILE).read_bytes())
    return [names[model.operatorCodes[each.opcodeIndex].builtinCode] for each in model.subgraphs[0].operators]
