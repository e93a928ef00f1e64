"""The body of a Scan: a graph of its own, which sees the values of the graph around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from retarget.convert.caffe.build import Builder, Shape, Value
from retarget.convert.caffe.net import Layer


def body(layer: Layer, what: str, inputs: Mapping[str, Shape]) -> tuple[ir.Graph, Builder, list[Value]]:
    """A graph with ``inputs``, what builds it, and the inputs; its outputs are for the caller to add.

    ``what`` it does names it and, after the layer, all that is in it.
    """
    name = f"{layer.name}/{what}"
    values = [
        Value(ir.Value(name=f"{name}/{role}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape)), shape)
        for role, shape in inputs.items()
    ]
    graph = ir.Graph([each.value for each in values], [], nodes=[], opset_imports={}, name=name)
    build = Builder(graph)
    build.begin(replace(layer, name=name))
    return graph, build, values
