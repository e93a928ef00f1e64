"""The one ONNX Runtime session wrapper: reference runs, pass checks, calibration and the ``onnxruntime`` target.

An ``ir.Model`` becomes a session without its weights being copied. Mapped external tensors are handed to ONNX
Runtime as references to the user's own files, which it maps too. ONNX Runtime refuses absolute locations and
anything that resolves outside one folder, so the folder that it is told is the nearest one that holds all data
files and each location is written relative to it. Weights that live in memory (a pass changed them) travel inline
while they are few; beyond ``INLINE_LIMIT`` they are spilled to a temporary file, as a protobuf ends at 2 GB.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from retarget.errors import RetargetError, ToolchainFailure, did_you_mean
from retarget.ort_words import ort_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from retarget.protocols import Array, Feeds, Outputs

INLINE_LIMIT = 256 << 20
"""Bytes of in-memory initializers that are written into the protobuf; more than that go to a temporary file."""

_REFERENCE_FLOOR = 1024
"""Smaller tensors stay inline: ONNX Runtime wants the value of a shape or an axis while it loads."""

_DTYPES: Mapping[str, np.dtype[np.generic]] = {
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(bfloat16)": np.dtype(ml_dtypes.bfloat16),
    **{f"tensor(int{bits})": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"tensor(uint{bits})": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    "tensor(string)": np.dtype(np.object_),
}

_ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    member for member in vars(ort_state).values() if isinstance(member, type) and issubclass(member, Exception)
)
"""ONNX Runtime's exceptions share no base of their own."""


class Session:
    """A model in ONNX Runtime on the CPU; a ``Runner``.

    ``extra_outputs`` names any values of the main graph; ``run`` returns them with the model's own outputs.
    ``optimize`` lets ONNX Runtime rewrite the graph and repack weights (faster, one more copy of them in memory);
    without it the graph runs as it is written. ``save_optimized`` is where ONNX Runtime writes the graph that it
    executes. ``arena`` keeps what a run has freed for the next one, and never gives it back. Raises ``RetargetError``
    for a missing file or an unknown name, ``ToolchainFailure`` when ONNX Runtime refuses the model or fails on it.
    """

    def __init__(
        self,
        model: ir.Model | Path,
        *,
        extra_outputs: Sequence[str] = (),
        optimize: bool = False,
        threads: int = 1,
        save_optimized: Path | None = None,
        arena: bool = True,
    ) -> None:
        self._spill: Path | None = None
        self._label = str(model) if isinstance(model, Path) else (model.graph.name or "model")
        self.settings = (
            f"ONNX Runtime {ort.__version__}, CPU, optimizations {'on' if optimize else 'off'}, "
            f"{threads} thread{'s' if threads != 1 else ''}"
        )
        options = _session_options(optimize, threads, save_optimized)
        options.enable_cpu_mem_arena = arena
        try:
            source = self._source(model, extra_outputs, options)
            try:
                self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            except _ORT_ERRORS as error:
                raise _failure(f"ONNX Runtime cannot load {self._label}", error) from error
        except BaseException:
            self.close()
            raise
        self._inputs = {node.name: node for node in self._session.get_inputs()}
        self._types = {node.name: node.type for node in self._session.get_outputs()}
        # An input may be asked for as an extra output: it is echoed, the graph itself cannot return it.
        self.input_names = tuple(self._inputs)
        self.output_names = tuple(dict.fromkeys([*self._types, *(n for n in extra_outputs if n in self._inputs)]))

    def _source(self, model: ir.Model | Path, extra: Sequence[str], options: ort.SessionOptions) -> str | bytes:
        if isinstance(model, Path):
            if not model.is_file():
                raise RetargetError(f"{model}: no such file")
            if not extra:
                return str(model)
            model = ir.load(model)
        proto, folder, self._spill = _serialize(model)
        if folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        _append_outputs(proto, model, extra)
        serialized: bytes = proto.SerializeToString()
        return serialized

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Outputs:
        """The values of ``outputs`` (default: all) by name.

        Raises ``RetargetError`` for a feed that does not fit an input (name, dtype or shape) and for an unknown
        output, ``ToolchainFailure`` when a node fails.
        """
        names = self.output_names if outputs is None else tuple(outputs)
        for name in names:
            if name not in self.output_names:
                raise RetargetError(
                    f"{self._label} has no output '{name}'", did_you_mean(name, self.output_names or ("no outputs",))
                )
        self._check(feeds)
        computed = [name for name in names if name in self._types]
        try:
            values = self._execute(feeds, computed)
        except _ORT_ERRORS as error:
            raise _failure(f"ONNX Runtime failed on {self._label}", error) from error
        return {name: values[name] if name in values else np.asarray(feeds[name]) for name in names}

    def _execute(self, feeds: Feeds, names: list[str]) -> Outputs:
        if not names:
            return {}
        kinds = [node.type for node in self._inputs.values()] + [self._types[name] for name in names]
        if "tensor(bfloat16)" not in kinds:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        values = self._session.run_with_ort_values(names, {name: _ort_value(array) for name, array in feeds.items()})
        return dict(zip(names, map(_array, values), strict=True))

    def _check(self, feeds: Feeds) -> None:
        for name in feeds:
            if name not in self._inputs:
                raise RetargetError(
                    f"{self._label} has no input '{name}'", did_you_mean(name, self._inputs or ("no inputs",))
                )
        missing = [name for name in self._inputs if name not in feeds]
        if missing:
            raise RetargetError(f"{self._label}: input '{missing[0]}' is not fed", f"feed {', '.join(self._inputs)}")
        for name, node in self._inputs.items():
            _check_feed(name, np.asarray(feeds[name]), node.type, node.shape)

    def close(self) -> None:
        """Release the session and its temporary file. Safe to call twice."""
        # The session maps the spilled file, and a mapped file cannot be removed everywhere.
        self.__dict__.pop("_session", None)
        if self._spill is not None:
            shutil.rmtree(self._spill, ignore_errors=True)
            self._spill = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


# ---- making the session


def _session_options(optimize: bool, threads: int, save_optimized: Path | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that go on waiting for work by spinning would take the cores of the artifact that `bench` times next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if not optimize:
        # Packed weights are an anonymous copy of mapped ones; a session for a few runs is better without.
        options.add_session_config_entry("session.disable_prepacking", "1")
    if save_optimized is not None:
        options.optimized_model_filepath = str(save_optimized)
        data = save_optimized.name + ".data"
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", data)
    return options


def _serialize(model: ir.Model) -> tuple[onnx.ModelProto, Path | None, Path | None]:
    """The proto, the folder that its external locations are relative to, and the temporary folder if one was made."""
    clone = model.clone()
    values = [value for graph in clone.graphs() for value in graph.initializers.values()]
    mapped = [value for value in values if isinstance(value.const_value, ir.ExternalTensor)]
    loaded = [
        value
        for value in values
        if value.const_value is not None
        and not isinstance(value.const_value, ir.ExternalTensor)
        and value.const_value.nbytes >= _REFERENCE_FLOOR
        and value.const_value.dtype != ir.DataType.STRING
    ]
    for value in mapped:
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor)
        if tensor.nbytes < _REFERENCE_FLOOR:
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
    mapped = [value for value in mapped if isinstance(value.const_value, ir.ExternalTensor)]
    spill: Path | None = None
    if sum(_nbytes(value) for value in loaded) > INLINE_LIMIT:
        spill = Path(tempfile.mkdtemp(prefix="retarget-session-"))
        try:
            _spill_to(spill / "weights", loaded)
        except BaseException:
            shutil.rmtree(spill, ignore_errors=True)
            raise
        mapped += loaded
    folder = _relative_locations(mapped)
    return ir.to_proto(clone), folder, spill


def _spill_to(path: Path, values: Iterable[ir.Value]) -> None:
    """Write the tensors of ``values`` to ``path`` one after the other, and let the values refer to it."""
    alignment = 4096
    written: dict[int, ir.ExternalTensor] = {}
    # Ids must stay taken while they are keys.
    originals: list[ir.TensorProtocol] = []
    with path.open("wb") as file:
        for value in values:
            tensor = value.const_value
            assert tensor is not None
            if id(tensor) not in written:
                originals.append(tensor)
                file.seek(-(-file.tell() // alignment) * alignment)
                offset = file.tell()
                file.write(tensor.tobytes())
                written[id(tensor)] = _reference(tensor, path.parent, path.name, offset)
            value.const_value = written[id(tensor)]


def _relative_locations(values: Sequence[ir.Value]) -> Path | None:
    """Make every external tensor relative to one folder. Symlinks are resolved: ONNX Runtime looks where they lead."""
    if not values:
        return None
    real: dict[str, str] = {}
    for value in values:
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor)
        path = os.fspath(tensor.path)
        if path not in real:
            real[path] = str(Path(path).resolve())
            if not Path(path).is_file():
                raise RetargetError(
                    f"{path}: no such file", f"it holds the weights of '{value.name}': move it with its model"
                )
    folder = os.path.commonpath([str(Path(path).parent) for path in real.values()])
    for value in values:
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor)
        location = os.path.relpath(real[os.fspath(tensor.path)], folder)
        value.const_value = _reference(tensor, Path(folder), location, tensor.offset or 0)
    return Path(folder)


def _reference(tensor: ir.TensorProtocol, folder: Path, location: str, offset: int) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        base_dir=folder,
    )


def _append_outputs(proto: onnx.ModelProto, model: ir.Model, extra: Sequence[str]) -> None:
    graph = model.graph
    inputs = {value.name for value in graph.inputs}
    values = {value.name for node in graph for value in node.outputs if value.name} | set(graph.initializers)
    outputs = {value.name for value in graph.outputs}
    for name in dict.fromkeys(extra):
        if name in outputs or name in inputs:
            continue
        if name not in values:
            raise RetargetError(
                f"the graph has no value '{name}'", did_you_mean(name, [known for known in values if known])
            )
        # Without a type: ONNX Runtime infers it, and refuses one that is stale.
        proto.graph.output.append(onnx.ValueInfoProto(name=name))


def _nbytes(value: ir.Value) -> int:
    assert value.const_value is not None
    return value.const_value.nbytes


# ---- feeds, outputs, failures


def _check_feed(name: str, array: Array, kind: str, shape: Sequence[int | str | None]) -> None:
    expected = _DTYPES.get(kind)
    if expected is None:
        raise RetargetError(f"input '{name}' is a {kind}: only tensors can be fed")
    found = array.dtype
    if found != expected and not (expected.kind == "O" and found.kind in "UST"):
        raise RetargetError(f"input '{name}': expected {expected.name}, found {found.name}")
    written = f"[{','.join('?' if dim is None else str(dim) for dim in shape)}]"
    if len(shape) != array.ndim:
        raise RetargetError(f"input '{name}': expected rank {len(shape)} {written}, found shape {list(array.shape)}")
    if any(isinstance(dim, int) and dim != size for dim, size in zip(shape, array.shape, strict=True)):
        raise RetargetError(f"input '{name}': expected shape {written}, found {list(array.shape)}")


def _ort_value(array: Array) -> ort.OrtValue:
    array = np.ascontiguousarray(array).reshape(array.shape)  # a scalar becomes an axis of one
    if array.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), onnx.TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _array(value: ort.OrtValue) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    # ONNX Runtime gives no numpy array of a type that numpy does not know.
    shape = tuple(value.shape())
    raw = ctypes.string_at(value.data_ptr(), int(np.prod(shape, dtype=np.int64)) * 2)
    return np.frombuffer(raw, ml_dtypes.bfloat16).reshape(shape)


def _failure(what: str, error: Exception) -> ToolchainFailure:
    return ToolchainFailure(f"{what}: {ort_words(error)}")
