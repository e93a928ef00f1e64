"""TFLite's own interpreter as the reference. Syntax and library of Python 3.8.

It computes with the builtin kernels, without delegates. Measured with LiteRT 2.3 on 76 int8 models of one layer: the
slow reference kernels lack operators (Tile, Ceil, Elu, DepthToSpace) and sum wrongly; where both are right they agree
but for single steps in six of the models. XNNPACK, the default of the library, ends the process on valid int8 files
that it cannot take.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from retarget.convert.tflite.read import Signature, Subgraph
from retarget.errors import MissingToolchain, RetargetError, ToolchainFailure

if TYPE_CHECKING:
    from typing import Self

    from retarget.protocols import Array, Feeds, Outputs

THREADS = 2
KERNELS = {
    "builtin": ("BUILTIN_WITHOUT_DEFAULT_DELEGATES", "builtin kernels, no delegates"),
    "reference": ("BUILTIN_REF", "reference kernels"),
    "xnnpack": ("BUILTIN", "XNNPACK"),
}
"""Option → the resolver that has them, and what reports call them."""


class Interpreter:
    """One signature of a file, with the user's names for its inputs and outputs; a ``Runner``."""

    def __init__(
        self,
        path: Path,
        graph: Subgraph,
        signature: Signature,
        inputs: Sequence[str],
        outputs: Sequence[str],
        kernels: str,
    ) -> None:
        library, maker, resolvers = _library()
        resolver, words = KERNELS[kernels]
        self.settings = f"{library}, CPU, {words}, {THREADS} threads"
        self._place = str(path)
        try:
            self._interpreter: Any = maker(
                model_path=self._place,
                num_threads=THREADS,
                experimental_op_resolver_type=getattr(resolvers, resolver),
            )
        except (RuntimeError, ValueError) as error:
            raise _failure(f"the interpreter cannot load {self._place}", error) from error
        self._inputs = dict(zip(inputs, graph.inputs))
        self._outputs = dict(zip(outputs, graph.outputs))
        self._signature = signature
        self._tensors = len(graph.tensors)
        self._sizes: dict[str, tuple[int, ...]] = {}

    def shapes(self) -> dict[int, list[int]]:
        """Tensor → its shape as the kernels find it, -1 where a size is open. Executes nothing."""
        if self._signature.subgraph != 0:
            return {}  # the interpreter prepares such a graph only to run it
        try:
            self._interpreter.allocate_tensors()
            details = self._interpreter.get_tensor_details()
        except (RuntimeError, ValueError) as error:
            raise _failure(f"the interpreter cannot prepare {self._place}", error) from error
        return {
            each["index"]: [int(size) for size in each.get("shape_signature", each["shape"])]
            for each in details
            if each["index"] < self._tensors  # behind these are the kernels' own
        }

    def run(self, feeds: Feeds) -> Outputs:
        """Outputs by name. Raises ``RetargetError`` for feeds that do not fit, ``ToolchainFailure`` from a kernel."""
        for name in self._inputs:
            if name not in feeds:
                raise RetargetError(f"input '{name}' is not fed", f"feed {', '.join(self._inputs)}")
        try:
            return self._run_one_of_many(feeds) if self._signature.subgraph else self._run_main(feeds)
        except (RuntimeError, ValueError) as error:
            raise _failure(f"the interpreter fails on {self._place}", error) from error

    def _run_main(self, feeds: Feeds) -> Outputs:
        sizes = {name: tuple(feeds[name].shape) for name in self._inputs}
        if sizes != self._sizes:
            for name, index in self._inputs.items():
                self._interpreter.resize_tensor_input(index, list(sizes[name]), strict=True)
            self._interpreter.allocate_tensors()
            self._sizes = sizes
        for name, index in self._inputs.items():
            self._interpreter.set_tensor(index, feeds[name])
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}

    def _run_one_of_many(self, feeds: Feeds) -> Outputs:
        call = self._interpreter.get_signature_runner(self._signature.key)
        named = {self._signature.inputs[index]: feeds[name] for name, index in self._inputs.items()}
        found: dict[str, Array] = call(**named)
        return {name: found[self._signature.outputs[index]] for name, index in self._outputs.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._interpreter = None


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


def _failure(what: str, error: Exception) -> ToolchainFailure:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hint = None
    if "select TensorFlow op" in str(error) or "custom op" in str(error):
        hint = "it needs operators that are no part of TFLite: convert from the model that this file was made of"
    return ToolchainFailure(f"{what}: {lines[0] if lines else type(error).__name__}", hint)
