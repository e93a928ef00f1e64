"""LiteRT's interpreter, for the TFLite files that are read and for those that are written. Syntax of Python 3.8.

Measured with LiteRT 2.3 on 76 int8 models of one layer: the slow reference kernels lack operators (Tile, Ceil, Elu,
DepthToSpace) and sum wrongly; where both are right they and the builtin ones agree but for single steps in six of the
models. XNNPACK, the default of the library, ends the process on valid int8 files that it cannot take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from retarget.errors import MissingToolchain, RetargetError, ToolchainFailure

if TYPE_CHECKING:
    from retarget.protocols import Array

KERNELS = {
    "builtin": ("BUILTIN_WITHOUT_DEFAULT_DELEGATES", "builtin kernels, no delegates"),
    "reference": ("BUILTIN_REF", "reference kernels"),
    "xnnpack": ("BUILTIN", "XNNPACK"),
}
"""Option → the resolver that has them, and what reports call them."""


class Loaded:
    """The first subgraph of the file ``path``; tensors are called by their number in it.

    Raises ``MissingToolchain`` without an interpreter, ``ToolchainFailure`` where it does not load the file.
    """

    def __init__(self, path: str, kernels: str, threads: int) -> None:
        library, maker, resolvers = _library()
        resolver, words = KERNELS[kernels]
        self.settings = f"{library}, CPU, {words}, {threads} thread{'s' if threads != 1 else ''}"
        self._path = path
        self._sizes: dict[int, tuple[int, ...]] = {}
        kind = getattr(resolvers, resolver)
        self._open: Callable[[], Any] = partial(
            maker, model_path=path, num_threads=threads, experimental_op_resolver_type=kind
        )
        # Resized beyond the sizes that it was prepared with, XNNPACK goes on with memory that was let go: values are
        # wrong, or the process ends (LiteRT 2.3, where only parts of the graph are XNNPACK's).
        self._grows = kernels != "xnnpack"
        try:
            self._interpreter: Any = self._open()
        except (RuntimeError, ValueError) as error:
            raise failure(f"the interpreter cannot load {path}", error) from error

    def run(self, feeds: Mapping[int, Array], outputs: Sequence[int]) -> list[Array]:
        """The tensors ``outputs``. Raises ``ToolchainFailure`` for feeds that do not fit, or from a kernel."""
        try:
            self._resize({index: tuple(array.shape) for index, array in feeds.items()})
            for index, array in feeds.items():
                self._interpreter.set_tensor(index, array)
            self._interpreter.invoke()
            return [self._read(index) for index in outputs]
        except (RuntimeError, ValueError) as error:
            raise failure(f"the interpreter fails on {self._path}", error) from error

    def call(self, signature: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run a signature, of whichever subgraph, by its own names."""
        try:
            found: dict[str, Array] = self._interpreter.get_signature_runner(signature)(**feeds)
        except (RuntimeError, ValueError) as error:
            raise failure(f"the interpreter fails on {self._path}", error) from error
        return found

    def borders(self) -> tuple[dict[str, int], dict[str, int]]:
        """Inputs and outputs, each by the name of its tensor."""
        both = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        inputs, outputs = ({each["name"]: int(each["index"]) for each in details} for details in both)
        return inputs, outputs

    def details(self) -> list[dict[str, Any]]:
        """What the interpreter says of each tensor once its kernels are prepared. Executes nothing."""
        try:
            self._interpreter.allocate_tensors()
            details: list[dict[str, Any]] = self._interpreter.get_tensor_details()
        except (RuntimeError, ValueError) as error:
            raise failure(f"the interpreter cannot prepare {self._path}", error) from error
        return details

    def shapes(self, sizes: Mapping[int, Sequence[int]]) -> dict[int, tuple[int, ...]]:
        """The shape of each tensor where the inputs have ``sizes``. Executes nothing. Raises ``ToolchainFailure``."""
        try:
            self._resize({index: tuple(shape) for index, shape in sizes.items()})
        except (RuntimeError, ValueError) as error:
            raise failure(f"the interpreter cannot resize {self._path}", error) from error
        return {each["index"]: tuple(int(size) for size in each["shape"]) for each in self.details()}

    def close(self) -> None:
        """Let go of the model."""
        self._interpreter = None

    def _read(self, index: int) -> Array:
        """A tensor after a run. What came out without elements the interpreter does not give."""
        try:
            array: Array = self._interpreter.get_tensor(index)
        except ValueError:
            details = next(each for each in self._interpreter.get_tensor_details() if each["index"] == index)
            if 0 not in details["shape"]:
                raise
            import numpy as np

            array = np.zeros(tuple(details["shape"]), details["dtype"])
        return array

    def _resize(self, sizes: dict[int, tuple[int, ...]]) -> None:
        if sizes != self._sizes:
            if not self._grows and _grow(self._sizes, sizes):
                self._interpreter = self._open()
            for index, shape in sizes.items():
                self._interpreter.resize_tensor_input(index, list(shape), strict=True)
            self._interpreter.allocate_tensors()
            self._sizes = sizes


def _grow(before: Mapping[int, Sequence[int]], after: Mapping[int, Sequence[int]]) -> bool:
    """Whether any axis is longer than it was, if it was anything."""
    return any(new > old for index, shape in before.items() for old, new in zip(shape, after.get(index, ())))


def _library() -> tuple[str, Any, Any]:
    """Name with version, the interpreter's class and its kinds of kernels: LiteRT, else an older TensorFlow's own."""
    try:
        import ai_edge_litert
        from ai_edge_litert import interpreter
    except ImportError:
        try:
            import tensorflow
        except ImportError as error:
            raise MissingToolchain(
                "TFLite files need LiteRT's interpreter", "pip install ai-edge-litert, or 'retarget[tflite]'"
            ) from error
        return f"TensorFlow Lite {tensorflow.__version__}", tensorflow.lite.Interpreter, _resolvers(tensorflow)
    return f"LiteRT {ai_edge_litert.__version__}", interpreter.Interpreter, interpreter.OpResolverType


def _resolvers(tensorflow: Any) -> Any:
    return tensorflow.lite.experimental.OpResolverType


def failure(what: str, error: Exception) -> RetargetError:
    """The interpreter's own words as an error, the first line of them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hint = None
    if "select TensorFlow op" in str(error) or "custom op" in str(error):
        hint = "it needs operators that are no part of TFLite: convert from the model that this file was made of"
    if "Didn't find op" in str(error):
        hint = "these kernels lack the operator, or this version of it: choose others by `kernels`, or a newer LiteRT"
    return ToolchainFailure(f"{what}: {lines[0] if lines else type(error).__name__}", hint)
