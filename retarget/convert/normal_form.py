"""From any ONNX opset to the normal form: one opset, functions inlined, shapes inferred, checked, the user's names.

Lifting was measured on the 3,600 node cases that onnx 1.5, 1.10, 1.13 and 1.16 shipped, run by ONNX Runtime before
and after. onnx's own converter is right from opset 7 up, except for what `_flatten_hardmax` and `_resize_as_at_10`
mend, and wrong on GroupNormalization 18; onnxscript's is right from 18 and lacks nearly all below. Each does its half.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript import version_converter

from retarget import graph
from retarget.errors import RetargetError, ToolchainFailure, Unsupported, did_you_mean
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from onnx_ir.passes import InPlacePass

logger = logging.getLogger(__name__)

OLDEST = 7
"""ONNX Runtime itself takes nothing older, so nothing could be verified."""

IR_VERSION = 11
"""The file format version that came with opset 23."""

_HANDOVER = 18
"""Below: onnx's converter. From here on: onnxscript's."""

_SMALL = 1024
"""Elements: smaller constants stay in a skeleton, as converters and shape inference read shapes and axes from them."""


def normal_form(model: ir.Model, place: str) -> ir.Model:
    """``model`` in the normal form; the argument must not be used any more.

    ``place`` names the model in errors. Raises ``RetargetError`` for an opset that cannot be lifted and for a graph
    that is not valid ONNX.
    """
    _use_one_name_for_the_default_domain(model)
    _hold_small_constants(model)
    for tidy in (
        passes.TopologicalSortPass(),  # finds cycles, which converters report as failures of their own
        passes.InlinePass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.LiftConstantsToInitializersPass(lift_all_constants=False),
        passes.LiftSubgraphInitializersToMainGraphPass(),
    ):
        _run(tidy, model, place)
    opset = default_opset(model, place)
    model.ir_version = IR_VERSION
    if opset > graph.OPSET:
        _lower(model, opset, place)
    if opset < _HANDOVER:
        model = _lift_with_onnx(model, opset, place)
    _lift_with_onnxscript(model, place)
    _run(passes.RemoveUnusedNodesPass(), model, place)
    _run(passes.RemoveUnusedOpsetsPass(), model, place)
    model.graph.opset_imports[""] = graph.OPSET
    infer_shapes(model, place)
    check(model, place)
    return model


def default_opset(model: ir.Model, place: str) -> int:
    """The opset of the default domain. Raises ``RetargetError`` where it is missing though needed, or too old."""
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
    if opset is None:
        if any(node.domain in ("", "ai.onnx") for node in graph.all_nodes(model)):
            raise RetargetError(
                f"{place}: declares no opset for the default domain", "the file is damaged, or was not written by ONNX"
            )
        return graph.OPSET
    if opset < OLDEST:
        raise RetargetError(
            f"{place}: opset {opset} is older than {OLDEST}, the oldest that can be executed and so verified",
            f"export the model again at opset {OLDEST} or newer; opset {graph.OPSET} needs no conversion",
        )
    return opset


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """``model`` without its large weights: each becomes a graph input, so that the proto stays far below 2 GB."""
    light = model.clone()
    for name, value in _large(light).items():
        tensor = value.const_value
        assert tensor is not None
        value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
        value.const_value = None
        light.graph.initializers.pop(name)
        if not value.is_graph_input():
            light.graph.inputs.append(value)
    return ir.to_proto(light)


def check(model: ir.Model, place: str) -> None:
    """onnx's checker on the skeleton. Raises ``RetargetError`` with its first line."""
    proto = skeleton(model)
    for output in proto.graph.output:
        # The checker wants a shape; of a custom operator's output nobody knows it.
        output.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(proto)
    except Exception as error:
        raise RetargetError(
            f"{place}: not a valid ONNX model ({_first_line(error)})",
            "the file may be damaged: compare its sha256 with the original, or export it again",
        ) from error


def infer_shapes(model: ir.Model, place: str) -> None:
    """Fill in the types and shapes of values as far as they can be inferred."""
    try:
        inferred = ir.from_proto(onnx.shape_inference.infer_shapes(skeleton(model), data_prop=True))
    except Exception as error:
        raise RetargetError(
            f"{place}: its shapes cannot be inferred ({_first_line(error)})",
            "the file may be damaged; or check the shapes given with --input against the model",
        ) from error
    for here, there in zip(model.graphs(), inferred.graphs(), strict=True):
        found = ir.convenience.create_value_mapping(there)
        for name, value in ir.convenience.create_value_mapping(here).items():
            source = found.get(name)
            if source is None or value.is_graph_input():
                continue
            value.type = source.type or value.type
            value.shape = _better(value.shape, source.shape)


def apply_specs(model: ir.Model, specs: Sequence[TensorSpec], place: str) -> None:
    """Give the inputs the user's symbols and fixed sizes; ``specs`` must name each input once.

    Raises ``RetargetError`` where a name, dtype, rank or dimension does not fit the model.
    """
    inputs = {value.name or "": value for value in model.graph.inputs}
    listing = ", ".join(describe(value) for value in inputs.values())
    for spec in specs:
        if spec.name not in inputs:
            raise RetargetError(f"{place}: has no input '{spec.name}'", f"its inputs: {listing}")
    named = {spec.name for spec in specs}
    for name in inputs:
        if name not in named:
            raise RetargetError(f"{place}: input '{name}' is not named", f"name all inputs: {listing}")

    symbols: dict[str, int | str] = {}
    for spec in specs:
        value = inputs[spec.name]
        if value.dtype is not None and graph.dtype_name(value.dtype) != spec.dtype:
            raise RetargetError(
                f"input '{spec.name}': {spec.dtype} was given, {place} has {graph.dtype_name(value.dtype)}",
                f"its inputs: {listing}",
            )
        if value.shape is not None:
            _match_dimensions(spec, value.shape, symbols, place, listing)
    for spec in specs:
        value = inputs[spec.name]
        value.shape, value.dtype = ir.Shape(spec.shape), graph.data_type(spec.dtype)
    rename_symbols(model, symbols)


def rename_symbols(model: ir.Model, symbols: Mapping[str, int | str]) -> None:
    """Replace symbolic dimensions everywhere by another symbol or a size."""
    for scope in model.graphs():
        for value in itertools.chain(scope.inputs, *(node.outputs for node in scope)):
            if value.shape is not None and any(_symbol(dim) in symbols for dim in value.shape):
                value.shape = ir.Shape(
                    symbols.get(symbol, symbol) if (symbol := _symbol(dim)) else dim for dim in value.shape
                )


def identifier(text: str) -> str:
    """``text`` as the name of a dimension, which a spec can hold."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")
    return name if re.match(r"[A-Za-z_]", name) else f"dim_{name}"


def describe(value: ir.Value) -> str:
    """``image=float32[N,3,224,224]``, with ``?`` where the file says nothing."""
    dims = ["?"] if value.shape is None else [str(d) if isinstance(d, int) else d.value or "?" for d in value.shape]
    return f"{value.name}={graph.dtype_name(value.dtype)}[{','.join(dims)}]"


def select_outputs(model: ir.Model, names: Sequence[str], place: str) -> None:
    """Keep the outputs ``names``, in this order."""
    found = {value.name or "": value for value in model.graph.outputs}
    for name in names:
        if name not in found:
            raise RetargetError(f"{place}: has no output '{name}'", did_you_mean(name, found))
    model.graph.outputs[:] = [found[name] for name in names]


# ---- lifting


def _lift_with_onnx(model: ir.Model, opset: int, place: str) -> ir.Model:
    """To `_HANDOVER`, by onnx's converter on the skeleton; weights are put back after it."""
    for node in graph.all_nodes(model):
        if node.op_type == "Scan" and node.domain == "" and opset < 9:
            raise Unsupported(
                f"{place}: node '{node.name}' is Scan of opset 8, which no converter lifts",
                "export it again at opset 9 or newer",
            )
    if opset < 13:
        _flatten_hardmax(model)
    weights = {name: value.const_value for name, value in _large(model).items()}
    try:
        lifted = ir.from_proto(onnx.version_converter.convert_version(skeleton(model), _HANDOVER))
    except Exception as error:
        raise ToolchainFailure(
            f"{place}: onnx cannot lift it from opset {opset} to {_HANDOVER} ({_first_line(error)})",
            f"export the model again at opset {_HANDOVER} or newer",
        ) from error
    inputs = {value.name: value for value in lifted.graph.inputs}
    for name, tensor in weights.items():
        value = inputs[name]
        value.const_value = tensor
        lifted.graph.inputs.remove(value)
        lifted.graph.register_initializer(value)
    if opset < 11:
        _resize_as_at_10(lifted, place)
    lifted.ir_version = IR_VERSION
    lifted.metadata_props.update(model.metadata_props)
    return lifted


def _lift_with_onnxscript(model: ir.Model, place: str) -> None:
    """To the normal form's opset. The converter logs and carries on when a node fails: look at each node after it."""
    if model.graph.opset_imports.get("", graph.OPSET) == graph.OPSET:
        return
    epsilons = {
        node.outputs[0].name: node.attributes["epsilon"]
        for node in graph.all_nodes(model)
        if node.op_type == "GroupNormalization" and node.domain == "" and "epsilon" in node.attributes
    }
    try:
        version_converter.convert_version(model, graph.OPSET)
    except Exception as error:
        raise ToolchainFailure(
            f"{place}: onnxscript cannot lift it to opset {graph.OPSET} ({_first_line(error)})",
            f"export the model again at opset {graph.OPSET}",
        ) from error
    for node in graph.all_nodes(model):
        if node.domain == "" and node.version not in (None, graph.OPSET):
            raise Unsupported(
                f"{place}: node '{node.name}' ({node.op_type}) cannot be lifted from opset "
                f"{node.version} to {graph.OPSET}",
                "a shape may be missing: give it with --input, or export the model at a newer opset",
            )
        if node.op_type == "GroupNormalization" and node.outputs[0].name in epsilons:
            # Its adapter from 20 to 21 forgets the attribute.
            node.attributes["epsilon"] = epsilons[node.outputs[0].name]


def _lower(model: ir.Model, opset: int, place: str) -> None:
    """Relabel a newer opset, where every op that is used has the same signature in the normal form's."""
    changed = []
    for node in graph.all_nodes(model):
        if node.domain == "":
            node.version = None
            if not _same_signature(node, opset):
                changed.append(f"  {node.name} ({node.op_type})")
    if changed:
        heading = f"{place}: is of opset {opset}, newer than {graph.OPSET}, and uses what changed since:"
        raise Unsupported("\n".join([heading, *changed]), f"export the model again at opset {graph.OPSET}")
    model.graph.opset_imports[""] = graph.OPSET


def _same_signature(node: ir.Node, opset: int) -> bool:
    try:
        new = onnx.defs.get_schema(node.op_type, opset, "")
        old = onnx.defs.get_schema(node.op_type, graph.OPSET, "")
    except onnx.defs.SchemaError:
        return False

    def signature(schema: onnx.defs.OpSchema) -> object:
        # An attribute or trailing input that is new does no harm to a node that does not use it.
        attributes = {
            name: (item.type, str(item.default_value))
            for name, item in schema.attributes.items()
            if name in old.attributes or name in node.attributes
        }
        return attributes, [item.name for item in schema.inputs][: len(node.inputs)], len(schema.outputs)

    return new.since_version == old.since_version or signature(new) == signature(old)


def _flatten_hardmax(model: ir.Model) -> None:
    """Hardmax flattened its input to two dimensions before opset 13; onnx's converter leaves that out."""
    for node in list(graph.all_nodes(model)):
        if node.op_type != "Hardmax" or node.domain != "":
            continue
        scope = node.graph
        assert scope is not None
        shape = ir.node("Shape", [node.inputs[0]])
        flat = ir.node("Flatten", [node.inputs[0]], {"axis": node.attributes.get_int("axis", 1)})
        hard = ir.node("Hardmax", [flat.outputs[0]], {"axis": 1})
        back = ir.node("Reshape", [hard.outputs[0], shape.outputs[0]])
        new = [shape, flat, hard, back]
        ir.convenience.replace_nodes_and_values(scope, node, [node], new, node.outputs, back.outputs)
        passes.NameFixPass()(model)


def _resize_as_at_10(model: ir.Model, place: str) -> None:
    """Resize 10 and Upsample take the pixel at ``x / scale``, which onnx's converter leaves out of the lifted Resize.

    Nearest means the pixel below when enlarging, above when shrinking, as ONNX Runtime defines what the
    specification left open (``GetNearestPixelFromOriginal``, mode ``SIMPLE``).
    """
    for node in graph.all_nodes(model):
        if node.op_type != "Resize" or node.domain != "":
            continue
        scales = ir.convenience.get_const_tensor(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
        shrinks = scales is not None and bool((scales.numpy() < 1).any())
        if shrinks and scales is not None and (scales.numpy() > 1).any():
            raise Unsupported(
                f"{place}: node '{node.name}' (Resize of opset 10) shrinks one axis and enlarges another",
                "export the model again at opset 11 or newer",
            )
        attributes = {
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "ceil" if shrinks else "floor",
        }
        for name, value in attributes.items():
            node.attributes[name] = ir.AttrString(name, value)


# ---- small pieces


def _use_one_name_for_the_default_domain(model: ir.Model) -> None:
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        if "ai.onnx" in imports:
            imports.setdefault("", imports.pop("ai.onnx"))
    for node in graph.all_nodes(model):
        if node.domain == "ai.onnx":
            node.domain = ""


def _hold_small_constants(model: ir.Model) -> None:
    """Bring small external tensors into memory: a skeleton goes without data files."""
    for value in graph.initializers(model):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.size <= _SMALL:
            value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)


def _run(tidy: InPlacePass | Callable[[ir.Model], object], model: ir.Model, place: str) -> None:
    try:
        tidy(model)
    except Exception as error:
        raise RetargetError(
            f"{place}: not a valid ONNX model ({_first_line(error)})", "the file may be damaged: export it again"
        ) from error


def _large(model: ir.Model) -> dict[str, ir.Value]:
    return {
        name: value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.size > _SMALL
    }


def _match_dimensions(
    spec: TensorSpec, shape: ir.Shape, symbols: dict[str, int | str], place: str, listing: str
) -> None:
    """Hold ``spec`` against the file's ``shape``; collect what each of the file's symbols becomes in ``symbols``."""
    if len(shape) != len(spec.shape):
        raise RetargetError(
            f"input '{spec.name}': {len(spec.shape)} dimensions were given, {place} has {len(shape)}",
            f"its inputs: {listing}",
        )
    for axis, (here, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
        where = f"input '{spec.name}', dimension {axis}: '{wanted}' was given"
        if isinstance(here, int):
            if here != wanted:
                raise RetargetError(
                    f"{where}, {place} has it fixed at {here}",
                    f"write {here}, or export the model with this dimension dynamic",
                )
        elif here.value is not None and symbols.setdefault(here.value, wanted) != wanted:
            raise RetargetError(
                f"{where}, but {place} calls it '{here.value}' as another, which is '{symbols[here.value]}'",
                "use the same name or size for both",
            )


def _symbol(dim: int | ir.SymbolicDim) -> str | None:
    return None if isinstance(dim, int) else dim.value


def _better(old: ir.Shape | None, new: ir.Shape | None) -> ir.Shape | None:
    """Dimension by dimension: a size before a symbol, and the old symbol before an inferred one."""
    if old is None or new is None or len(old) != len(new):
        return old if new is None else new
    return ir.Shape(
        there if isinstance(there, int) else here if isinstance(here, int) else here.value or there.value
        for here, there in zip(old, new, strict=True)
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
