"""What the tests of the quantizer share: a model from text, its ranges, and the model after Quantize."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pass_testing as testing

from retarget.calibration.observers import observe
from retarget.compare import snr_db
from retarget.passes.quantize import Quantize
from retarget.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retarget.protocols import Array, Feeds, Outputs
    from retarget.schemes import Grid, QuantScheme

Choose = Callable[[str, "Grid"], tuple[float, float] | None]


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.float32(scale) * np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def f32(*values: float) -> Array:
    return np.array(values, np.float32)


def min_max(model: ir.Model, feeds: Sequence[Feeds]) -> Choose:
    """Everything that was seen."""
    ranges = observe(model, feeds, threads=1)

    def choose(name: str, grid: Grid) -> tuple[float, float] | None:
        if name not in ranges:
            return None
        low, high = ranges[name].min, ranges[name].max
        return (-max(-low, high), max(-low, high)) if grid.symmetric else (low, high)

    return choose


def run(model: ir.Model, feeds: Feeds, *, optimize: bool = False) -> Outputs:
    with Session(model, optimize=optimize) as session:
        return session.run(feeds)


def executed(model: ir.Model, folder: Path) -> list[str]:
    """Operators that ONNX Runtime makes of the model."""
    with Session(model, optimize=True, save_optimized=folder / "optimized.onnx"):
        return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


class Quantized:
    """A model before and after Quantize, held to what every quantized model owes."""

    def __init__(
        self,
        text: str,
        scheme: QuantScheme,
        constants: Mapping[str, Array] | None = None,
        *,
        feeds: Mapping[str, Array] | None = None,
        choose: Choose | None = None,
        keep: Collection[str] = (),
        modified: bool = True,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        self.model = testing.parse(text, constants)
        self.feeds = dict(feeds or testing.feeds_for(self.model, sizes or {"N": 3}))
        self.expected = run(self.model, self.feeds)
        interface = [(v.name, v.dtype) for v in (*self.model.graph.inputs, *self.model.graph.outputs)]
        choose = choose or min_max(self.model, [self.feeds])
        self.quantize = Quantize(scheme, choose, keep)
        assert self.quantize(self.model).modified == modified
        onnx.checker.check_model(ir.to_proto(self.model), full_check=True)
        assert [(v.name, v.dtype) for v in (*self.model.graph.inputs, *self.model.graph.outputs)] == interface
        assert all(value.uses() for value in self.model.graph.initializers.values())
        self.outputs = run(self.model, self.feeds)
        before = [node.name for node in self.model.graph]
        assert not Quantize(scheme, choose, keep)(self.model).modified, "a second run changes something"
        assert [node.name for node in self.model.graph] == before

    @property
    def snr(self) -> float:
        """In dB, the smallest of the outputs."""
        return min(snr_db(array, self.outputs[name]) for name, array in self.expected.items())

    @property
    def optimized_snr(self) -> float:
        """Likewise, with ONNX Runtime's integer kernels."""
        found = run(self.model, self.feeds, optimize=True)
        return min(snr_db(array, found[name]) for name, array in self.expected.items())

    @property
    def ops(self) -> list[str]:
        return testing.ops(self.model)

    @property
    def compute(self) -> list[str]:
        """Operators other than Quantize- and DequantizeLinear."""
        return [op for op in self.ops if op not in ("QuantizeLinear", "DequantizeLinear")]

    @property
    def kept(self) -> dict[str, str]:
        """Reasons by node name or operator."""
        return {one.name: one.reason for one in self.quantize.kept}

    @property
    def ranges(self) -> Mapping[str, tuple[float, int]]:
        return self.quantize.ranges

    def node(self, name: str) -> ir.Node:
        """The node that made ``name`` before."""
        return next(n for n in self.model.graph if n.outputs[0].name in (name, f"{name}_float"))

    def constant(self, name: str) -> Array:
        """The constant ``name``, or the first with that beginning."""
        found = self.model.graph.initializers
        value = found.get(name) or next(value for key, value in found.items() if key.startswith(name))
        assert value.const_value is not None
        return value.const_value.numpy()

    def numbers(self, name: str) -> NDArray[np.float64]:
        """``constant`` in float64, which holds all integers and floats of them exactly."""
        return self.constant(name).astype(np.float64)

    def is_rounded(self, node: str, at: int) -> bool:
        """Whether input ``at`` of the node that made ``node`` comes out of a DequantizeLinear."""
        value = self.node(node).inputs[at]
        maker = value.producer() if value is not None else None
        return maker is not None and maker.op_type == "DequantizeLinear"


RESIDUAL = """m (float[N,4,12,12] x) => (float[N,5] y) {
    [first] c0 = Conv<pads = [1,1,1,1]>(x, w0, b0)
    r0 = Relu(c0)
    [inner] c1 = Conv<pads = [1,1,1,1]>(r0, w1, b1)
    r1 = Relu(c1)
    [last] c2 = Conv<pads = [1,1,1,1]>(r1, w2, b2)
    [sum] s = Add(c2, r0)
    r2 = Relu(s)
    [pool] m = MaxPool<kernel_shape = [2,2], strides = [2,2]>(r2)
    [wide] c3 = Conv(m, w3, b3)
    [mean] g = GlobalAveragePool(c3)
    [flat] f = Flatten(g)
    [head] y = Gemm(f, w4, b4)
}"""
RESIDUAL_WEIGHTS = {
    "w0": drawn(8, 4, 3, 3, scale=0.2),
    "w1": drawn(8, 8, 3, 3, seed=2, scale=0.15),
    "w2": drawn(8, 8, 3, 3, seed=4, scale=0.15),
    "w3": drawn(16, 8, 1, 1, seed=6, scale=0.4),
    "w4": drawn(16, 5, seed=8, scale=0.3),
    **{f"b{at}": drawn(size, seed=20 + at) for at, size in enumerate((8, 8, 8, 16, 5))},
}
