"""Write ``model.xml`` and ``model.bin`` and read back what is in them and what the CPU plugin makes of it here."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from retarget import graph
from retarget.errors import ToolchainFailure, unsupported
from retarget.facts import EmitFacts, IoEntry, Precision
from retarget.protocols import EmitJob
from retarget.spec import DimRange, TensorSpec
from retarget.targets import legal, machine, work
from retarget.targets.openvino.executed import (
    COMPRESSED,
    Executed,
    activations,
    at,
    compressed_elements,
    executed,
    weights,
)
from retarget.targets.openvino.legal import LEGAL, dft_axis, dft_length
from retarget.targets.openvino.runtime import core, dtype_name, failure, openvino, scopes, set_shapes, words

if TYPE_CHECKING:
    from retarget.protocols import Array

FILE = "model.xml"

LARGEST = float(np.finfo(np.float16).max)

_MADE = re.compile(r"(\w+)_\d+")


def check(model: ir.Model, job: EmitJob) -> list[legal.Refusal]:
    """Every node that OpenVINO computes wrongly or says that it cannot take."""
    del job
    return legal.refused_or_tried(model, LEGAL, _trial)


def emit(model: ir.Model, job: EmitJob, out: Path) -> EmitFacts:
    """``out/model.xml`` and ``out/model.bin``; with precision fp16 the weights are stored as float16."""
    if legal.refused(model, LEGAL, closed=False):
        raise unsupported("openvino", check(model, job))
    try:
        wide = _write(model, job, out / FILE)
        return _facts(job, out / FILE, wide)
    except ToolchainFailure as error:
        if refusals := check(model, job):
            raise unsupported("openvino", refusals) from error
        raise


def _write(model: ir.Model, job: EmitJob, path: Path) -> tuple[str, ...]:
    """Write both files. Returns the names of the constants that stay float32 where float16 was asked for."""
    converted = _read(_adjusted(model))
    try:
        set_shapes(converted, [_partial(spec, job.shapes) for spec in job.inputs])
        _order_ties(converted)
        if job.io == "float16":
            converted = _with_float16_io(converted)
        _number(converted, model)
        if job.precision != "fp16":
            openvino.save_model(converted, path, compress_to_fp16=False)
            return ()
        wide = _wide(converted)
        openvino.save_model(converted, path, compress_to_fp16=True)
        if wide:
            _widen(path, wide)
    except RuntimeError as error:
        raise failure("OpenVINO cannot write the model", error) from error
    return tuple(sorted(wide))


def _with_float16_io(converted: openvino.Model) -> openvino.Model:
    """Float inputs and outputs as float16, cast at the border: what computes inside stays the plugin's choice."""
    border = openvino.preprocess.PrePostProcessor(converted)
    for index, port in enumerate(converted.inputs):
        if port.get_element_type() == openvino.Type.f32:
            border.input(index).tensor().set_element_type(openvino.Type.f16)
    for index, port in enumerate(converted.outputs):
        if port.get_element_type() == openvino.Type.f32:
            border.output(index).tensor().set_element_type(openvino.Type.f16)
    return border.build()


def _wide(converted: openvino.Model) -> dict[str, Array]:
    """The constants that OpenVINO would clamp to float16's range without a word, NaN too, by the names to them."""
    wide: dict[str, Array] = {}
    for place, scope in scopes(converted):
        for node in scope.get_ops():
            if node.get_type_name() == "Constant" and node.get_element_type().get_type_name() in ("f32", "f64"):
                values = node.data
                if not np.all(np.abs(values) <= LARGEST):
                    wide[place + node.get_friendly_name()] = values
    return wide


def _widen(path: Path, wide: Mapping[str, Array]) -> None:
    """Put the constants ``wide`` back, as they were, into the compressed model at ``path``."""
    with TemporaryDirectory(prefix="retarget-openvino-") as folder:
        compressed = Path(folder) / path.name
        for file in (path, path.with_suffix(".bin")):
            shutil.move(file, compressed.with_name(file.name))
        # Not mapped: the folder goes away.
        model = core().read_model(compressed, config={"ENABLE_MMAP": False})
        left = set(wide)
        for place, scope in scopes(model):
            for node in scope.get_ordered_ops():
                name = node.get_friendly_name()
                if place + name not in left:
                    continue
                if node.get_type_name() == "Convert":
                    constant = openvino.op.Constant(wide[place + name])
                    constant.set_friendly_name(name)
                    constant.output(0).get_tensor().set_names(node.output(0).get_names())
                    node.output(0).replace(constant.output(0))
                # One of which most values are beyond the range it leaves as it is.
                left.remove(place + name)
        if left:
            raise ToolchainFailure(f"OpenVINO stored what float16 cannot hold under other names: {', '.join(left)}")
        openvino.save_model(model, path, compress_to_fp16=False)


def _number(converted: openvino.Model, model: ir.Model) -> None:
    """Name the nodes that OpenVINO made by their place: it counts them over the life of the process."""
    given = {node.name for node in graph.all_nodes(model)}
    given |= {value.name for node in graph.all_nodes(model) for value in node.outputs}
    for _, scope in tuple(scopes(converted)):
        for place, node in enumerate(scope.get_ordered_ops()):
            name = node.get_friendly_name()
            if name not in given and (made := _MADE.fullmatch(name)):
                node.set_friendly_name(f"{made[1]}_made_{place}")


def _adjusted(model: ir.Model) -> ir.Model:
    """``model`` with what OpenVINO takes by another convention brought to that one.

    NonMaxSuppression: ONNX drops a box that overlaps by more than the threshold, OpenVINO also one that overlaps by
    just as much. The next float32 above the threshold means the same to OpenVINO.

    DFT: OpenVINO takes axis 1 whatever is asked for, and returns an axis too many with onesided=1. Transposes, and a
    Slice of the whole transform, mean the same to both.

    PRelu: a slope of one axis is the last axis to ONNX, the channels to OpenVINO. With all axes it is the same to both.
    """
    adjusted = model.clone()
    for node in list(graph.all_nodes(adjusted)):
        if node.op_type == "NonMaxSuppression" and len(node.inputs) > 3:
            _replace_constant(node, 3, lambda threshold: np.nextafter(threshold, np.float32(np.inf)))
        elif node.op_type == "DFT":
            _replace_dft(node)
        elif node.op_type == "PRelu" and node.inputs[0] is not None and node.inputs[0].shape is not None:
            _replace_constant(node, 1, partial(_with_axes, rank=len(node.inputs[0].shape)))
    return adjusted


def _replace_dft(node: ir.Node) -> None:
    """Put a DFT along axis 1, of both sides, in place of ``node``; its axis and length are known, see ``legal``."""
    axis, length, source, scope = dft_axis(node), dft_length(node), node.inputs[0], node.graph
    onesided = node.attributes.get_int("onesided", 0) and length is not None
    if axis is None or source is None or source.shape is None or scope is None or (axis == 1 and not onesided):
        return
    order = list(range(len(source.shape)))
    order[1], order[axis] = axis, 1

    def constant(values: int | list[int]) -> ir.Value:
        made.append(ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(np.array(values, np.int64)))]))
        return made[-1].outputs[0]

    def swapped(value: ir.Value) -> ir.Value:
        made.append(ir.Node("", "Transpose", [value], [ir.AttrInt64s("perm", order)]))
        return made[-1].outputs[0]

    made: list[ir.Node] = []
    operands = [swapped(source), node.inputs[1] if len(node.inputs) > 1 else None, constant(1)]
    made.append(ir.Node("", "DFT", operands, [ir.AttrInt64("inverse", node.attributes.get_int("inverse", 0))]))
    result = made[-1].outputs[0]
    if onesided and length is not None:
        bounds = [constant([0]), constant([length // 2 + 1]), constant([1])]
        made.append(ir.Node("", "Slice", [result, *bounds]))
        result = made[-1].outputs[0]
    ir.convenience.replace_nodes_and_values(scope, node, [node], made, node.outputs, [swapped(result)])


def _with_axes(array: Array, rank: int) -> Array:
    """``array`` with axes of size 1 put before its own, ``rank`` in all."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def _replace_constant(node: ir.Node, index: int, change: Callable[[Array], Array]) -> None:
    """Give ``node`` another constant in place of its constant operand ``index``; one that is not constant stays."""
    operand = node.inputs[index]
    tensor = None if operand is None else ir.convenience.get_const_tensor(operand)
    if tensor is not None and node.graph is not None:
        constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(change(tensor.numpy())))])
        node.graph.insert_before(node, constant)
        node.replace_input_with(index, constant.outputs[0])


def _order_ties(converted: openvino.Model) -> None:
    """Make every TopK stable: ONNX puts the lower index first among equals, OpenVINO's reader asks for any order."""
    for node in [node for _, scope in scopes(converted) for node in scope.get_ordered_ops()]:
        if node.get_type_name() == "TopK":
            told = node.get_attributes()
            stable = openvino.opset11.topk(
                node.input_value(0),
                node.input_value(1),
                told["axis"],
                told["mode"],
                "value" if told["sort"] == "none" else told["sort"],  # no order at all cannot be stable
                told["index_element_type"],
                stable=True,
            )
            stable.set_friendly_name(node.get_friendly_name())
            for old, new in zip(node.outputs(), stable.outputs(), strict=True):
                names = old.get_names()
                old.replace(new)
                new.get_tensor().set_names(names)


def _read(model: ir.Model) -> openvino.Model:
    """``model`` as OpenVINO reads it, through a file: in memory it would have to be one protobuf, 2 GB at most."""
    with TemporaryDirectory(prefix="retarget-openvino-") as folder:
        path = Path(folder) / "model.onnx"
        graph.save(model, path)
        try:
            return core().read_model(path)
        except RuntimeError as error:
            raise failure("OpenVINO cannot read the model", error) from error


def _partial(spec: TensorSpec, shapes: Mapping[str, DimRange]) -> openvino.PartialShape:
    """The shape with its symbolic dimensions open, but for those of one size.

    Not bounded by their ranges: OpenVINO 2026.4 does not check an input against a bound. It takes one beyond it as
    empty, and then crashes.
    """
    extents = [shapes[dim] if isinstance(dim, str) else DimRange(dim, dim, dim) for dim in spec.shape]
    return openvino.PartialShape([extent.min if extent.min == extent.max else -1 for extent in extents])


def _facts(job: EmitJob, path: Path, wide: tuple[str, ...]) -> EmitFacts:
    sizes = {symbol: extent.opt for symbol, extent in job.shapes.items()}
    # The plugin takes less with open dimensions than with those that the work is counted at, and may run it otherwise.
    is_open = any(extent.min < extent.max for extent in job.shapes.values())
    written = at(path, job.inputs, sizes)
    done = executed(written, core().read_model(path) if is_open else None)
    share = work.low_precision_share(done.work, job.precision)
    held, computed = weights(written), activations(written)
    notes = []
    if job.precision == "int8" or computed in work.INT8:
        if share != 1:
            notes.append(f"OpenVINO's multiply-accumulates on this machine, by type: {work.shares(done.work)}.")
        if machine.saturates():
            notes.append(
                "The CPU of this machine adds products of 8-bit integers in 16 bits, and large ones saturate: results"
                " differ from those of CPUs with VNNI."
            )
    elif held in COMPRESSED:
        notes += _of_compressed(done, compressed_elements(written))
    elif share:
        low = work.joined(dtype for dtype, count in done.work.items() if count and dtype not in work.FULL)
        notes.append(
            f"By default OpenVINO's CPU plugin computes {share:.0%} of the multiply-accumulates in {low} on this"
            " machine, whatever the precision of the files; parity is held at float32."
        )
    elif held == "float16":
        notes.append(
            "OpenVINO stores the weights as float16 and its CPU plugin computes in float32 on this machine:"
            " float16 saves storage here, not time."
        )
    if wide:
        notes.append(f"Stored as float32, for values that OpenVINO would clamp to float16's range: {', '.join(wide)}.")
    results = {spec.name for spec in job.outputs}
    inputs, outputs = _entries(job.inputs, written.inputs, results), _entries(job.outputs, written.outputs, set())
    if any(entry.artifact_dtype == "int64" for entry in (*inputs, *outputs)):
        notes.append("OpenVINO's CPU plugin computes int64 in int32; larger inputs are refused.")
    return EmitFacts(
        target="openvino",
        variant_precision=job.precision,
        inputs=inputs,
        outputs=outputs,
        precision=Precision(
            weights=held,
            activations=computed,
            io=work.joined(entry.artifact_dtype for entry in (*inputs, *outputs)),
            low_precision_share=share,
        ),
        notes=tuple(notes),
    )


def _of_compressed(done: Executed, elements: int) -> Iterator[str]:
    """What the plugin makes of ``elements`` of the weights that are in few bits, activations being float."""
    yield f"OpenVINO's multiply-accumulates on this machine, by type: {work.shares(done.work)}."
    if done.work.get("int8"):
        yield (
            "By default OpenVINO's CPU plugin rounds activations to int8, in blocks, where it multiplies them by"
            " compressed weights; parity is held without that."
        )
    if done.compressed < elements:
        yield (
            f"OpenVINO's CPU plugin expands {1 - done.compressed / elements:.0%} of the compressed weights when it"
            " loads them: that saves storage, not memory or time."
        )


def _entries(specs: Sequence[TensorSpec], ports: Sequence[openvino.Output], results: set[str]) -> tuple[IoEntry, ...]:
    """How the ports stand to ``specs``. A port that is one of ``results`` too bears the name of that output alone."""
    entries = []
    for spec, port in zip(specs, ports, strict=True):
        names = port.get_names()
        if spec.name not in names and not names & results:
            raise ToolchainFailure(f"OpenVINO calls '{spec.name}' {', '.join(sorted(names)) or 'nothing'}")
        name = spec.name if spec.name in names else min(names)
        kind = dtype_name(port.get_element_type().get_type_name())
        entries.append(IoEntry(name=spec.name, artifact_name=name, spec=spec, artifact_dtype=kind))
    return tuple(entries)


def _trial(alone: ir.Model) -> str | None:
    try:
        read = _read(alone)
        core().compile_model(read, "CPU", {"INFERENCE_NUM_THREADS": 1})
    except ToolchainFailure as error:
        return error.message.partition(": ")[2]
    except RuntimeError as error:
        return words(error)
    return None
