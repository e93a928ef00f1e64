"""Caffe nets to ONNX. There is no framework to ask: the net is read, and lowered layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from retarget import graph
from retarget.convert.caffe import Options, files, network
from retarget.convert.caffe import reference as numpy_reference
from retarget.convert.caffe.lower import lower
from retarget.convert.caffe.net import Net
from retarget.source import Exported, Source
from retarget.spec import DEFAULT_RANGE

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Runner


def export(source: Source, example: Feeds | None, out: Path) -> Exported:  # noqa: ARG001 - the file says the shapes
    """Write ``out/model.onnx``, in the normal form already."""
    net = open_net(source)
    model = lower(net, source.inputs, source.outputs)
    graph.save(model, out / "model.onnx")
    return Exported(
        rung="a lowering of its layers",
        inputs=tuple(graph.value_spec(value) for value in model.graph.inputs),
        outputs=tuple(value.name or "" for value in model.graph.outputs),
        notes=(*net.notes, *_peculiar(net)),
    )


def reference(source: Source, exported: Exported) -> Runner:
    """Caffe's arithmetic in numpy, and OpenCV asked about the first feeds."""
    net = open_net(source)
    if not _options(source).opencv:
        return numpy_reference.open(net, exported.outputs)
    prototxt, caffemodel = _files(source)
    return numpy_reference.open(net, exported.outputs, prototxt=prototxt, caffemodel=caffemodel)


def open_net(source: Source) -> Net:
    """The net of ``source``; inputs that the file gives no shape have the one that the user wants."""
    prototxt, caffemodel = _files(source)
    options = _options(source)
    sizes = {symbol: source.shapes.get(symbol, DEFAULT_RANGE).opt for spec in source.inputs for symbol in spec.symbols}
    return network.read(
        prototxt,
        caffemodel,
        shapes={spec.name: spec.at(sizes) for spec in source.inputs},
        stages=options.stages,
        level=options.level,
    )


def _options(source: Source) -> Options:
    return msgspec.convert(dict(source.options), Options)


def _files(source: Source) -> tuple[Path, Path | None]:
    """The prototxt and the caffemodel."""
    return files.pair(source.path, source.parts.get("weights", source.parts.get("net")))


def _peculiar(net: Net) -> list[str]:
    """What the net does that its author may not have meant."""
    batch = [
        layer.name
        for layer in net.layers
        if layer.type == "BatchNorm" and not layer.message.message("batch_norm_param").flag("use_global_stats", True)
    ]
    if not batch:
        return []
    named = ", ".join([*batch[:3], *(["…"] if len(batch) > 3 else [])])
    return [f"BatchNorm takes statistics of each batch, not the trained ones, as use_global_stats is false in {named}"]
