"""What is read back from the files, held against what ncnn itself takes of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import target_testing
from ncnn_written import written

from retarget.errors import RetargetError
from retarget.spec import DimRange
from retarget.targets.ncnn import executed, files

THREE = DimRange(3, 3, 3)

LAYERS = [
    "BatchNorm 0=6",
    "Bias 0=5",
    "Convolution 0=4 1=3 5=1 6=108",
    "Convolution 0=4 1=3 6=108",
    "Convolution 0=4 1=3 5=1 6=108 8=2",
    "Convolution 0=4 1=3 5=1 6=108 8=102",
    "Convolution1D 0=4 1=3 5=1 6=36",
    "Convolution3D 0=4 1=3 5=1 6=324",
    "ConvolutionDepthWise 0=4 1=3 5=1 6=36 7=4",
    "ConvolutionDepthWise 0=4 1=3 5=1 6=36 7=4 8=1",
    "ConvolutionDepthWise 0=4 1=3 5=1 6=36 7=4 8=101",
    "ConvolutionDepthWise 0=4 1=3 6=36 7=4 8=2",
    "ConvolutionDepthWise 0=4 1=3 6=36 7=4 8=102",
    "ConvolutionDepthWise1D 0=4 1=3 5=1 6=12 7=4",
    "ConvolutionDepthWise3D 0=4 1=3 5=1 6=108 7=4",
    "Deconvolution 0=4 1=3 5=1 6=108",
    "Deconvolution1D 0=4 1=3 5=1 6=36",
    "Deconvolution3D 0=4 1=3 5=1 6=324",
    "DeconvolutionDepthWise 0=4 1=3 5=1 6=36 7=4",
    "DeconvolutionDepthWise1D 0=4 1=3 5=1 6=12 7=4",
    "DeconvolutionDepthWise3D 0=4 1=3 5=1 6=108 7=4",
    "DeformableConv2D 0=4 1=3 5=1 6=108",
    "Dequantize 0=3 1=3",
    "Embed 0=4 1=7 2=1 3=28",
    "Embed 0=4 1=7 3=28 18=1",
    "GRU 0=5 1=90 2=0",
    "GRU 0=5 1=180 2=2",
    "GRU 0=5 1=90 8=2",
    "Gemm 4=1 7=3 9=5",
    "Gemm 3=1 5=1 8=4 9=5",
    "Gemm 3=1 5=1 6=1 8=4 9=5 10=4",
    "Gemm 4=1 5=1 6=1 7=3 8=4 9=5 10=3",
    "Gemm 3=1 4=0 5=1 6=1 7=0 8=4 9=5 10=0",
    "Gemm 3=1 5=1 8=4 9=5 18=2",
    "GroupNorm 0=2 1=6",
    "GroupNorm 0=2 1=6 3=0",
    "InnerProduct 0=4 1=1 2=20",
    "InnerProduct 0=4 1=1 2=20 8=2",
    "InstanceNorm 0=6",
    "LSTM 0=5 1=120",
    "LSTM 0=5 1=240 2=2",
    "LSTM 0=3 1=120 3=5",
    "LSTM 0=5 1=120 8=2",
    "LayerNorm 0=6 2=1",
    "LayerNorm 0=6 2=0",
    "MemoryData 0=6",
    "MemoryData 0=6 1=2 11=3 2=2 21=0",
    "MultiHeadAttention 0=8 1=2 2=48 3=5 4=7",
    "MultiHeadAttention 0=8 1=2 2=64 18=2",
    "Normalize 0=0 4=1 3=6",
    "PReLU 0=4",
    "Padding 0=1 1=1 4=0 6=4",
    "Quantize 0=3",
    "RMSNorm 0=6 2=1",
    "RNN 0=5 1=30",
    "RNN 0=5 1=60 2=2",
    "Requantize 0=3 1=1 2=3",
    "Scale 0=6 1=1",
    "Scale 0=-233",
    "ReLU",
]


MARKS = [3.0, 5.0, 7.0]


def one_layer(text: str, folder: Path) -> tuple[Path, Path]:
    """A layer with weights of as many elements as we say that it takes, and behind it one that holds `MARKS`."""
    kind, _, params = text.partition(" ")
    names = [] if kind == "MemoryData" else ["a", "b"] if text == "Scale 0=-233" else ["a"]
    inputs = [f"Input {name} 0 1 {name}" for name in names]
    layer = " ".join([kind, "it", str(len(names)), "1", *names, "out", params])
    lines = [*inputs, layer, f"MemoryData last 0 1 mark 0={len(MARKS)}"]
    param, weights = folder / "a.param", folder / "a.bin"
    param.write_text("\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines]) + "\n")
    held = []
    layer_read = files.read(param)[-2]
    for count, tagged in executed.LOADS[kind](layer_read) if kind in executed.LOADS else ():
        held += [bytes(4)] if tagged else []
        held.append(np.ones(count, np.float32).tobytes())
    weights.write_bytes(b"".join([*held, np.array(MARKS, np.float32).tobytes()]))
    return param, weights


@pytest.mark.parametrize("text", LAYERS)
def test_each_layer_takes_of_the_file_what_we_say(text: str, tmp_path: Path) -> None:
    """The layer behind it finds its own numbers only where it took no more and no less."""
    ncnn = pytest.importorskip("ncnn")
    param, weights = one_layer(text, tmp_path)
    assert list(executed.stored(files.read(param), weights))[-1].count == len(MARKS)
    net = ncnn.Net()
    assert net.load_param(str(param)) == 0
    assert net.load_model(str(weights)) == 0
    code, mat = net.create_extractor().extract("mark")
    assert code == 0
    assert np.array(mat.numpy()).tolist() == MARKS
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(RetargetError, match="it ends within what 'last'"):
        list(executed.stored(files.read(param), weights))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Convolution 0=4 1=3 6=many", "the numbers of 'it' (Convolution) say of none: invalid literal"),
        ("Convolution 0=4 1=3 6=-108", "'it' (Convolution) says that it takes less than nothing"),
        ("MultiHeadAttention 1=2 2=48", "the numbers of 'it' (MultiHeadAttention) say of none: integer division"),
        ("Gemm 5=1 6=1 8=4 9=5 10=7", "the numbers of 'it' (Gemm) say of none: 7"),
    ],
)
def test_numbers_that_say_of_no_weights_are_a_clear_line(text: str, reason: str, tmp_path: Path) -> None:
    kind, _, params = text.partition(" ")
    (tmp_path / "a.param").write_text(f"7767517\n2 2\nInput a 0 1 a\n{kind} it 1 1 a out {params}\n")
    (tmp_path / "a.bin").write_bytes(bytes(64))
    with pytest.raises(RetargetError, match=re.escape(reason)):
        list(executed.stored(files.read(tmp_path / "a.param"), tmp_path / "a.bin"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"tensors": [{"name": "a"}]}', '{"tensors": 1}', "\xff"])
def test_shapes_that_are_not_read_are_a_clear_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "tensors.json").write_text(text, encoding="latin-1")
    with pytest.raises(RetargetError, match=r"tensors.json: not read: "):
        executed.executed([], None, None, tmp_path / "tensors.json")


def test_every_layer_that_has_weights_is_tried() -> None:
    assert {text.split()[0] for text in LAYERS} - {"ReLU"} == set(executed.LOADS)


CASES = {
    "conv": ("g (float[N,4,8,8] x, float[6,4,3,3] w_a) => (float[N,6,6,6] y) { y = Conv(x, w_a) }", 36 * 6 * 36),
    "depthwise": (
        "g (float[N,4,8,8] x, float[4,1,3,3] w_a) => (float[N,4,6,6] y) { y = Conv<group = 4>(x, w_a) }",
        9 * 4 * 36,
    ),
    "transposed": (
        "g (float[N,4,8,8] x, float[4,6,3,3] w_a) => (float[N,6,10,10] y) { y = ConvTranspose(x, w_a) }",
        54 * 4 * 64,
    ),
    "constant": ("g (float[N,7,12] x, float[12,5] w_a) => (float[N,7,5] y) { y = MatMul(x, w_a) }", 7 * 12 * 5),
    "recurrent": (
        """g (float[5,N,3] x, float[1,16,3] w_a, float[1,16,4] w_r) => (float[5,1,N,4] y) {
            y = LSTM<hidden_size = 4>(x, w_a, w_r)
        }""",
        5 * 16 * (3 + 4),
    ),
    "product": (
        "g (float[N,2,7,12] x, float[N,2,12,5] z) => (float[N,2,7,5] y) { y = MatMul(x, z) }",
        2 * 7 * 12 * 5,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [1, 3])
def test_multiply_accumulates_are_those_of_the_model(case: str, rows: int, tmp_path: Path) -> None:
    text, macs = CASES[case]
    written(target_testing.model(text), tmp_path, N=DimRange(rows, rows, rows))
    done = executed.executed(
        files.read(tmp_path / "model.ncnn.param"), tmp_path / "model.ncnn.bin", None, tmp_path / "tensors.json"
    )
    assert dict(done.computed) == {"float32": rows * macs}


def test_precision_is_what_the_files_say(tmp_path: Path) -> None:
    model = target_testing.model(CASES["conv"][0])
    for precision, weights in (("fp32", "float32"), ("fp16", "float16")):
        said = written(model, tmp_path, precision, N=THREE).precision
        assert (said.weights, said.activations, said.io) == (weights, "float32", "float32")
        assert said.low_precision_share == 0.0
    said = written(
        target_testing.model("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"), tmp_path, N=THREE
    ).precision
    assert (said.weights, said.low_precision_share) == ("none", None)
