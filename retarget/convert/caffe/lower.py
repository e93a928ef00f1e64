"""From a Caffe net to the normal form: its layers in order, each by the function of its type in ``layers``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from retarget import graph
from retarget.convert.caffe.build import Builder, Value, show
from retarget.convert.caffe.layers import LAYERS
from retarget.convert.caffe.net import Layer, Net
from retarget.convert.normal_form import IR_VERSION, normal_form
from retarget.errors import RetargetError, Unsupported, did_you_mean
from retarget.spec import TensorSpec


def lower(net: Net, inputs: Sequence[TensorSpec] = (), outputs: Sequence[str] = ()) -> ir.Model:
    """``net`` as a model in the normal form.

    ``inputs``: names, sizes and symbols of the inputs; empty: as the file has them. ``outputs``: names for the net's
    outputs, in order; empty: its own. Raises ``RetargetError`` for a net that Caffe would not take and ``Unsupported``
    for layers that have no exact form in ONNX.
    """
    _refuse_unknown(net)
    specs = input_specs(net, inputs)
    names = output_names(net, specs, outputs)
    body = ir.Graph(
        [ir.Value(name=spec.name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(spec.shape)) for spec in specs],
        [],
        nodes=[],
        opset_imports={"": graph.OPSET},
        name=net.name or "caffe",
    )
    build = Builder(body, names)
    blobs = {spec.name: Value(value, spec.shape) for spec, value in zip(specs, body.inputs, strict=True)}
    for layer in net.layers:
        _lower_layer(layer, blobs, build)
    for blob, name in zip(net.outputs, names, strict=True):
        build.output(blobs[blob], name)
    return normal_form(ir.Model(body, ir_version=IR_VERSION, producer_name="retarget"), net.place)


def input_specs(net: Net, wanted: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The net's inputs with the sizes and symbols of ``wanted``, in the net's order.

    Caffe reshapes a net to any input size, so sizes other than the file's are taken. Raises ``RetargetError`` where
    names, dtypes or ranks do not fit the net.
    """
    own = {name: TensorSpec(name, "float32", shape) for name, shape in net.inputs.items()}
    if not wanted:
        return tuple(own.values())
    listing = f"its inputs: {', '.join(map(str, own.values()))}"
    given = {spec.name: spec for spec in wanted}
    for name, spec in given.items():
        if name not in own:
            raise RetargetError(f"{net.place}: has no input '{name}'", listing)
        if spec.dtype != "float32":
            raise RetargetError(f"input '{name}': {spec.dtype} was given, Caffe's blobs are float32", listing)
        if len(spec.shape) != len(own[name].shape):
            raise RetargetError(
                f"input '{name}': {len(spec.shape)} dimensions were given, {net.place} has {len(own[name].shape)}",
                listing,
            )
    for name in own:
        if name not in given:
            raise RetargetError(f"{net.place}: input '{name}' is not named", f"name all inputs: {listing}")
    return tuple(given[name] for name in own)


def output_names(net: Net, inputs: Sequence[TensorSpec], wanted: Sequence[str]) -> tuple[str, ...]:
    """What the outputs are called: ``wanted``, or as their blobs; ``<blob>_out`` where that is an input's name too."""
    taken = {spec.name for spec in inputs}
    if not wanted:
        return tuple(_free(blob, taken) for blob in net.outputs)
    if len(wanted) != len(net.outputs):
        raise RetargetError(
            f"{net.place}: {len(wanted)} output names were given, the net has {len(net.outputs)} outputs",
            f"its outputs: {', '.join(net.outputs)}",
        )
    for name in wanted:
        if name in taken:
            raise RetargetError(
                f"{net.place}: output name '{name}' is taken", "inputs and outputs need names of their own"
            )
        taken.add(name)
    return tuple(wanted)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_out"
    taken.add(name)
    return name


def _refuse_unknown(net: Net) -> None:
    """One error for all layers of types that are not in ``LAYERS``."""
    unknown = [layer for layer in net.layers if layer.type not in LAYERS]
    if not unknown:
        return
    types = sorted({layer.type for layer in unknown})
    count = f"{len(unknown)} layer{'s' if len(unknown) != 1 else ''}"
    lines = [f"{net.place}: {count} of unknown type{'s' if len(types) != 1 else ''}:"]
    lines += [f"  {layer.place}" for layer in unknown]
    alike = {known.lower(): known for known in LAYERS}
    word = next((alike[each.lower()] for each in types if each.lower() in alike), types[0])
    raise Unsupported("\n".join(lines), did_you_mean(word, LAYERS))


def _lower_layer(layer: Layer, blobs: dict[str, Value], build: Builder) -> None:
    """Add ``layer`` to the graph; ``blobs`` is what each name stands for by now, as layers may compute in place."""
    build.begin(layer)
    made = LAYERS[layer.type](layer, [_bottom(layer, name, blobs) for name in layer.bottoms], build)
    if len(made) < len(layer.tops):
        raise RetargetError(f"{layer.place}: names {len(layer.tops)} tops, but makes {len(made)}")
    tops = dict(zip(layer.tops, made, strict=False))
    for top, value in tops.items():
        for size in value.shape:
            if isinstance(size, int) and size <= 0:
                raise RetargetError(
                    f"{layer.place}: its top '{top}' would be {show(value.shape)}", "the input is too small for the net"
                )
    build.finish(layer, tops)
    blobs.update(tops)


def _bottom(layer: Layer, name: str, blobs: Mapping[str, Value]) -> Value:
    if name not in blobs:
        raise RetargetError(f"{layer.place}: no layer before it makes its bottom '{name}'", did_you_mean(name, blobs))
    return blobs[name]
