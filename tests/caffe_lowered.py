"""Caffe nets of the tests, lowered and executed: by ONNX Runtime with and without optimizations, and by OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import caffe_files
import cv2
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retarget import graph
from retarget.convert.caffe import text
from retarget.convert.caffe.lower import lower
from retarget.convert.caffe.net import Layer, Net
from retarget.protocols import EmitJob
from retarget.session import Session
from retarget.spec import DimRange, TensorSpec, symbols
from retarget.targets.openvino import Options, emit, run

Floats = NDArray[np.float32]


def read(prototxt: str, saved: Sequence[caffe_files.Saved] = ()) -> Net:
    """The net of a deploy prototxt of today's format, with blobs as they would be saved.

    Not by the frontend's own reader: its checks come first, and layers of any kind are to be met by the lowering's.
    """
    blobs = {name: tuple(np.asarray(blob, np.float32) for blob in arrays) for name, _, arrays in saved}
    inputs: dict[str, tuple[int, ...]] = {}
    layers = []
    for message in text.parse(prototxt.encode(), "net.prototxt").messages("layer"):
        name, tops = message.word("name"), message.words("top")
        if message.word("type") == "Input":
            inputs[tops[0]] = message.message("input_param").message("shape").integers("dim")
        else:
            kind = message.word("type")
            layers.append(Layer(name, kind, message.words("bottom"), tops, message, blobs.get(name, ())))
    used = {bottom for layer in layers for bottom in layer.bottoms}
    outputs = tuple(dict.fromkeys(top for layer in layers for top in layer.tops if top not in used))
    return Net("net", "net.prototxt", inputs, tuple(layers), outputs)


def lowered(
    prototxt: str, saved: Sequence[caffe_files.Saved] = (), shapes: Mapping[str, Sequence[int | str]] | None = None
) -> ir.Model:
    """The model of ``prototxt``; ``shapes`` of inputs where others than the file's are wanted."""
    net = read(prototxt, saved)
    specs = [TensorSpec(name, "float32", tuple((shapes or {}).get(name, shape))) for name, shape in net.inputs.items()]
    return lower(net, specs)


def execute(model: ir.Model, feeds: Mapping[str, Floats]) -> list[Floats]:
    """The outputs by ONNX Runtime, as the graph is written; they are the same, or nearly, when it optimizes."""
    with Session(model) as session:
        plain = session.run(feeds)
    with Session(model, optimize=True) as session:
        optimized = session.run(feeds)
    found = [np.asarray(array, np.float32) for array in plain.values()]
    for name, expected in zip(plain, found, strict=True):
        np.testing.assert_allclose(np.asarray(optimized[name], np.float32), expected, rtol=1e-5, atol=1e-6)
    return found


def openvino(model: ir.Model, feeds: Mapping[str, Floats]) -> list[Floats]:
    """The outputs by OpenVINO's CPU plugin, in float32; open dimensions are of 1 to 8."""
    inputs, outputs = (
        tuple(graph.value_spec(value) for value in values) for values in (model.graph.inputs, model.graph.outputs)
    )
    ranges = {symbol: DimRange(1, 4, 8) for symbol in symbols(inputs)}
    with TemporaryDirectory() as folder:
        facts = emit.emit(model, EmitJob("fp32", inputs, outputs, ranges, Options()), Path(folder))
        with run.open(Path(folder), facts, parity=True, threads=1) as runner:
            found = runner.run(feeds)
    return [np.asarray(found[spec.name], np.float32) for spec in outputs]


def opencv(
    prototxt: str, saved: Sequence[caffe_files.Saved], feeds: Mapping[str, Floats], *outputs: str
) -> list[Floats]:
    """The blobs ``outputs`` by OpenCV's own reader of Caffe nets."""
    net = cv2.dnn.readNetFromCaffe(np.frombuffer(prototxt.encode(), np.uint8), _bytes(saved))
    for name, array in feeds.items():
        net.setInput(array, name)
    return [np.asarray(array) for array in net.forward(list(outputs))]


def _bytes(saved: Sequence[caffe_files.Saved]) -> NDArray[np.uint8]:
    return np.frombuffer(caffe_files.caffemodel(saved), np.uint8)
