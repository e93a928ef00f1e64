"""Q/DQ models for the tests of the targets, made by ONNX Runtime's own quantizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import target_testing
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from retarget import graph

if TYPE_CHECKING:
    from retarget.protocols import Array

CNN = """g (float[N,3,16,16] image, float[16,3,3,3] w_a, float[16] w_b, float[16,1,3,3] w_c, float[32,16,1,1] w_d,
            float[32,32,3,3] w_e, float[32,10] w_f) => (float[N,10] logits) {
    [stem] c1 = Conv <pads = [1, 1, 1, 1]> (image, w_a, w_b)
    [relu1] r1 = Relu(c1)
    [depthwise] c2 = Conv <pads = [1, 1, 1, 1], group = 16> (r1, w_c)
    [relu2] r2 = Relu(c2)
    [point] c3 = Conv(r2, w_d)
    [block] c4 = Conv <pads = [1, 1, 1, 1]> (c3, w_e)
    [add] a = Add(c3, c4)
    [relu3] r3 = Relu(a)
    [pool] p = GlobalAveragePool(r3)
    [flat] f = Flatten(p)
    [fc] logits = Gemm(f, w_f)
}"""

MLP = """g (float[N,6,64] x, float[64,128] w_a, float[128,64] w_b) => (float[N,6,6] y) {
    [first] h = MatMul(x, w_a)
    [gelu] g = Gelu(h)
    [second] o = MatMul(g, w_b)
    [turn] t = Transpose <perm = [0, 2, 1]> (o)
    [scores] y = MatMul(o, t)
}"""

RECURRENT = """g (float[6,N,16] x, float[1,36,16] w_a, float[1,36,12] w_b, float[12,64] w_c) => (float[6,1,N,64] y) {
    [gru] h = GRU <hidden_size = 12> (x, w_a, w_b)
    [product] y = MatMul(h, w_c)
}"""


def model(text: str, *, signed: bool = False, only: tuple[str, ...] = ()) -> ir.Model:
    """The graph of ``text`` with uint8 activations (``signed``: int8, zero point 0) and int8 weights by channel.

    ``only``: the operators that are quantized; empty is all that ONNX Runtime knows.
    """
    source = target_testing.model(text)
    spec = graph.value_spec(source.graph.inputs[0])
    with TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"
        graph.save(source, before)
        quantize_static(
            before,
            after,
            _Samples(spec.name, spec.at({"N": 2})),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(only) or None,
            per_channel=True,
            activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": signed, "QuantizeBias": not signed},
        )
        return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(after)))


class _Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(3)
        self._rest: Iterator[Mapping[str, Array]] = iter(
            [{name: rng.standard_normal(shape).astype(np.float32)} for _ in range(4)]
        )

    def get_next(self) -> Mapping[str, Array] | None:
        return next(self._rest, None)
