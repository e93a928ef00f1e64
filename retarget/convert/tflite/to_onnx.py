"""tf2onnx on a TFLite file that was read and checked: what it leaves out, it is made to say.

tf2onnx knows tensors by names that need not be unique, takes the
first graph for the model, and asks TensorFlow's interpreter for shapes, whose default kernels end the process on some
valid int8 files (LiteRT 2.3: `failed to create XNNPACK runtime`, then a double free). So it is given the file through
views that name everything once, shapes of the interpreter that also is the reference, and its log is read.
Syntax and library of Python 3.8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx

from retarget.convert.tensorflow.framework import quiet
from retarget.convert.tensorflow.lower import OPSET, check_nodes, lean_optimizers, set_inputs
from retarget.convert.tensorflow.runner import said
from retarget.convert.tflite import handlers
from retarget.convert.tflite.names import cleaned, distinct
from retarget.convert.tflite.read import CUSTOM, File, Operator, Signature, Subgraph
from retarget.errors import ToolchainFailure, Unsupported
from retarget.spec import TensorSpec

with quiet():
    from tf2onnx import handler, optimizer, tflite_utils, tfonnx
    from tf2onnx.tflite.BuiltinOperator import BuiltinOperator
    from tf2onnx.tflite.Model import Model

_CODES: dict[int, str] = {number: name for name, number in vars(BuiltinOperator).items() if not name.startswith("_")}


def to_onnx(
    file: File,
    signature: Signature,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    shapes: Mapping[int, list[int]],
) -> onnx.ModelProto:
    """The graph of ``signature`` with ``inputs``, and outputs of the names ``outputs``.

    ``shapes`` are those that the interpreter found, by tensor. Raises ``Unsupported`` with all nodes that are not
    converted, ``ToolchainFailure`` where tf2onnx fails.
    """
    handlers.register()
    order = _order(file, signature.subgraph)
    names = _tensor_names(file, order, signature, [spec.name for spec in inputs], outputs)
    views = _Views(file, order, names)
    known = {names[signature.subgraph][index]: list(shape) for index, shape in shapes.items()}
    try:
        with quiet() as errors, views.instead_of_reading(known):
            lowered = tfonnx.process_tf_graph(None, opset=OPSET, tflite_path=file.place, continue_on_error=True)
            lowered = optimizer.optimize_graph(lowered, catch_errors=False, optimizers=lean_optimizers())
            model: onnx.ModelProto = lowered.make_model("from TFLite")
    except Exception as error:
        raise ToolchainFailure(
            f"{file.place}: tf2onnx fails: {type(error).__name__}: {said(error)}",
            "convert from the model that this file was made of",
        ) from error
    check_nodes(model.graph, errors, file.place)
    set_inputs(model.graph, inputs, file.place)
    _set_outputs(model, file.subgraphs[signature.subgraph], outputs, names[signature.subgraph])
    return model


# ---- what is not converted


def refuse_unknown(file: File, signature: Signature) -> None:
    """Raise ``Unsupported`` with all operators of ``signature`` that have no way to ONNX."""
    handlers.register()
    known = {*handler.tf_op.create_mapping(OPSET, None), *handler.tfl_op.create_tfl_to_tf_mapping()}
    lacking = Counter(
        name
        for index in _order(file, signature.subgraph)
        for operator in file.subgraphs[index].operators
        if f"TFL_{(name := _op_name(operator))}" not in known
    )
    if lacking:
        lines = [f"  {count} {name}" for name, count in sorted(lacking.items())]
        hint = "convert from the model that this file was made of, which may not need them"
        if any(name.startswith("Flex") for name in lacking):
            hint = "operators of TensorFlow itself (Flex) are no part of TFLite: convert from the SavedModel"
        raise Unsupported("\n".join([f"{file.place}: operators that have no way to ONNX:", *lines]), hint)


def _op_name(operator: Operator) -> str:
    if operator.code == CUSTOM:
        return operator.custom
    return _CODES.get(operator.code, f"builtin operator number {operator.code}")


# ---- what tf2onnx is given


def _order(file: File, main: int) -> list[int]:
    """The graphs that ``main`` calls, each before its callers, ``main`` last. Raises ``Unsupported`` for recursion."""
    model = Model.GetRootAsModel(file.data, 0)
    order: list[int] = []

    def visit(index: int, callers: tuple[int, ...]) -> None:
        if index in callers:
            raise Unsupported(f"{file.place}: graph {index} calls itself")
        if index in order:
            return
        if not 0 <= index < len(file.subgraphs):
            raise Unsupported(f"{file.place}: calls graph {index} of {len(file.subgraphs)}")
        try:
            dependencies = tflite_utils.get_subgraph_dependencies(model, index)
        except Exception as error:
            raise ToolchainFailure(
                f"{file.place}: tf2onnx cannot read the options of its operators ({said(error)})",
                "the file is damaged, or newer than tf2onnx: convert from the model that it was made of",
            ) from error
        for called in dependencies:
            visit(called, (*callers, index))
        order.append(index)

    visit(main, ())
    return order


def _tensor_names(
    file: File, order: Sequence[int], signature: Signature, inputs: Sequence[str], outputs: Sequence[str]
) -> dict[int, list[str]]:
    """A name for each tensor of each graph, no two alike in the file; at the border the user's."""
    main = file.subgraphs[signature.subgraph]
    fixed = dict(zip(reversed(main.outputs), reversed(outputs)))
    fixed.update(zip(main.inputs, inputs))
    border = [*inputs, *outputs]
    tensors = [(index, at, tensor) for index in order for at, tensor in enumerate(file.subgraphs[index].tensors)]
    every = distinct([*border, *(cleaned(tensor.name, "tensor") for _, _, tensor in tensors)])[len(border) :]
    names: dict[int, list[str]] = {index: [] for index in order}
    for (index, at, _), name in zip(tensors, every):
        names[index].append(fixed.get(at, name) if index == signature.subgraph else name)
    return names


class _View:
    """An object of the generated classes, but for some of its methods."""

    def __init__(self, real: Any, **methods: Any) -> None:
        self._real = real
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Views:
    """The file as tf2onnx is to see it."""

    def __init__(self, file: File, order: Sequence[int], names: Mapping[int, Sequence[str]]) -> None:
        self._file = file
        self._order = order
        self._names = names
        self._real = Model.GetRootAsModel(file.data, 0)

    @contextmanager
    def instead_of_reading(self, shapes: Mapping[str, list[int]]) -> Iterator[None]:
        """Let tf2onnx see these views, whatever path it is given."""
        graphs = {index: self._graph(index) for index in self._order}
        model = _View(self._real, Subgraphs=lambda index: graphs[index])
        codes = {
            index: _op_name(Operator(*self._code(index), inputs=(), outputs=()))
            for index in range(self._real.OperatorCodesLength())
        }
        read = tflite_utils.read_tflite_model
        tflite_utils.read_tflite_model = lambda _: ([graphs[index] for index in self._order], codes, model, shapes)
        try:
            yield
        finally:
            tflite_utils.read_tflite_model = read

    def _code(self, index: int) -> tuple[int, str]:
        code = self._real.OperatorCodes(index)
        return max(code.DeprecatedBuiltinCode(), code.BuiltinCode()), (code.CustomCode() or b"").decode()

    def _graph(self, index: int) -> _View:
        real = self._real.Subgraphs(index)
        names = self._names[index]
        return _View(
            real,
            Name=lambda: f"graph{index}".encode(),
            Tensors=lambda at: _View(real.Tensors(at), Name=lambda: names[at].encode()),
        )


# ---- the border


def _set_outputs(model: onnx.ModelProto, graph: Subgraph, outputs: Sequence[str], names: Sequence[str]) -> None:
    # Sizes are those of a batch of one, or none: inference knows better.
    del model.graph.value_info[:]
    del model.graph.output[:]
    for name, index in zip(outputs, graph.outputs):
        if names[index] != name:
            # An input, or a tensor that is given out twice.
            model.graph.node.add(op_type="Identity", name=f"output_{name}", input=[names[index]], output=[name])
        tensor = graph.tensors[index]
        # Without sizes the file means a number, or anything.
        shape = [size if size >= 0 else None for size in tensor.shape] or None
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, _onnx_type(tensor.dtype), shape))


def _onnx_type(dtype: str) -> int:
    return {
        "float32": onnx.TensorProto.FLOAT,
        "float64": onnx.TensorProto.DOUBLE,
        "float16": onnx.TensorProto.FLOAT16,
    }.get(dtype) or int(onnx.TensorProto.DataType.Value(dtype.upper()))
