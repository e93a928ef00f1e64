"""Dimensions that stay open in the file. Oracles: LiteRT, resized, against ONNX Runtime at the same sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
import target_testing as t
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from retarget.errors import RetargetError
from retarget.session import Session
from retarget.spec import DimRange, batch_symbol
from retarget.targets.tflite import resizable
from retarget.targets.tflite.emit import FILE, emit
from retarget.targets.tflite.program import Constant, Operator, Options, Program, Tensor
from retarget.targets.tflite.resizable import opened
from retarget.targets.tflite.write import write

if TYPE_CHECKING:
    from retarget.protocols import Feeds

F4, I4 = np.dtype("float32"), np.dtype("int32")
KERNELS = {
    "xnnpack": OpResolverType.BUILTIN,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}

OPEN = {
    "convolutions": """g (float[N,4,8,8] x, float[8,4,3,3] w_a, float[32,5] w_b) => (float[N,5] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w_a)
        r = Relu(c)
        p = MaxPool <kernel_shape = [4, 4], strides = [4, 4]> (r)
        f = Flatten(p)
        y = MatMul(f, w_b)
    }""",
    "the best of each row": """g (float[N,3,6] x) => (float[N,3,2] y, int64[N,3,2] places) {
        r = Relu(x)
        k = Constant <value_ints = [2]> ()
        b, places = TopK(r, k)
        y = Exp(b)
    }""",
    "image of any size": """g (float[N,4,H,W] x, float[8,4,3,3] w_a) => (float[N,8,H,W] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w_a)
        y = Sigmoid(c)
    }""",
    "tokens and a class token": """g (float[N,4,8,8] x, float[8,4,4,4] w_a, float[1,1,8] w_b) => (float[N,5,8] y) {
        c = Conv <strides = [4, 4]> (x, w_a)
        s = Constant <value_ints = [0, 8, 4]> ()
        r = Reshape(c, s)
        t = Transpose <perm = [0, 2, 1]> (r)
        n = Shape <start = 0, end = 1> (x)
        one = Constant <value_ints = [1, 1]> ()
        full = Concat <axis = 0> (n, one)
        b = Expand (w_b, full)
        y = Concat <axis = 1> (b, t)
    }""",
    "heads of two open dimensions": """g (float[N,S,8] x, float[8,8] w_a) => (float[N,S,8] y) {
        h = MatMul (x, w_a)
        split = Constant <value_ints = [0, 0, 2, 4]> ()
        r = Reshape (h, split)
        heads = Transpose <perm = [0, 2, 1, 3]> (r)
        keys = Transpose <perm = [0, 1, 3, 2]> (heads)
        scores = MatMul (heads, keys)
        p = Softmax <axis = -1> (scores)
        m = MatMul (p, heads)
        back = Transpose <perm = [0, 2, 1, 3]> (m)
        join = Constant <value_ints = [0, 0, 8]> ()
        y = Reshape (back, join)
    }""",
    "last step": """g (float[N,S,4] x, float[4,3] w_a) => (float[N,3] y) {
        last = Constant <value_int = -1> ()
        g = Gather <axis = 1> (x, last)
        y = MatMul (g, w_a)
    }""",
    "all but the first and the last": """g (float[N,S,4] x) => (float[N,T,4] y) {
        start = Constant <value_ints = [1]> ()
        end = Constant <value_ints = [-1]> ()
        axis = Constant <value_ints = [1]> ()
        y = Slice (x, start, end, axis)
    }""",
    "every other one, from behind": """g (float[N,S,4] x) => (float[N,T,4] y) {
        start = Constant <value_ints = [-1]> ()
        end = Constant <value_ints = [-9223372036854775808]> ()
        axis = Constant <value_ints = [1]> ()
        step = Constant <value_ints = [-2]> ()
        y = Slice (x, start, end, axis, step)
    }""",
    "positions": """g (float[N,S,4] x) => (float[N,S,4] y) {
        n = Shape <start = 1, end = 2> (x)
        zero = Constant <value_int = 0> ()
        one = Constant <value_int = 1> ()
        last = Squeeze (n)
        r = Range (zero, last, one)
        f = Cast <to = 1> (r)
        shape = Constant <value_ints = [-1, 1]> ()
        p = Reshape (f, shape)
        y = Add (x, p)
    }""",
    "triangle and ones": """g (float[N,S,S] x, float[1,1] w_a) => (float[N,S,S] y) {
        s = Shape <start = 1, end = 3> (x)
        ones = Expand (w_a, s)
        low = Trilu <upper = 0> (ones)
        m = Mul (x, low)
        y = Add (m, x)
    }""",
    "positions of two heads a row": """g (float[N,2,S,1] x, float[2,1,1] w_a) => (float[M,S,4] wide, float[M,S,4] y) {
        n = Shape <start = 0, end = 1> (x)
        s = Shape <start = 2, end = 3> (x)
        zero = Constant <value_int = 0> ()
        one = Constant <value_int = 1> ()
        last = Squeeze (s)
        r = Range (zero, last, one)
        f = Cast <to = 1> (r)
        column = Constant <value_ints = [-1, 1]> ()
        p = Reshape (f, column)
        heads = Mul (p, w_a)
        ones = Constant <value_ints = [1, 1]> ()
        times = Concat <axis = 0> (n, ones)
        all = Tile (heads, times)
        rest = Constant <value_ints = [-1]> ()
        single = Constant <value_ints = [1]> ()
        joined = Concat <axis = 0> (rest, s, single)
        rows = Reshape (x, joined)
        width = Constant <value_ints = [1, 1, 4]> ()
        wide = Expand (rows, width)
        y = Add (wide, all)
    }""",
    "images twice as large": """g (float[N,4,H,W] x, float[8,4,1,1] w_a) => (float[N,8,Y,X] y) {
        c = Conv (x, w_a)
        scales = Constant <value_floats = [1.0, 1.0, 2.0, 3.0]> ()
        y = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (c, , scales)
    }""",
    "halves of the channels": """g (float[N,4,6] x) => (float[N,4,3] a, float[N,4,3] b) {
        a, b = Split <axis = 2, num_outputs = 2> (x)
    }""",
}


def _feeds(model: ir.Model, sizes: Mapping[str, int]) -> Feeds:
    rng = np.random.default_rng(0)
    found = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        shape = [size if isinstance(size, int) else sizes[str(size.value)] for size in value.shape]
        found[value.name or ""] = rng.standard_normal(shape).astype("f4")
    return found


@pytest.mark.parametrize("name", OPEN)
def test_dimensions_are_open_and_resized_by_all_kernels(name: str, tmp_path: Path) -> None:
    model = t.model(OPEN[name])
    facts = emit(model, t.job("tflite", model), tmp_path)
    assert not facts.sizes, facts.notes
    with Session(model) as session:
        for kernels in KERNELS.values():
            interpreter = Interpreter(str(tmp_path / FILE), num_threads=1, experimental_op_resolver_type=kernels)
            for sizes in (
                {"N": 1, "S": 3, "H": 5, "W": 7},
                {"N": 6, "S": 8, "H": 8, "W": 4},
                {"N": 4, "S": 4, "H": 4, "W": 4},
            ):
                feeds = _feeds(model, sizes)
                right = session.run(feeds)
                for output, array in interpreter.get_signature_runner()(**feeds).items():
                    t.assert_close(array, right[output])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_large_constants_grow_in_every_precision(precision: str, tmp_path: Path) -> None:
    """Positions of 20 numbers each, from a table of 8: enough to be stored as halves."""
    model = t.model("""g (float[N,S,20] x, float[8,20] w_a) => (float[N,S,20] y) {
        n = Shape <start = 1, end = 2> (x)
        zero = Constant <value_ints = [0]> ()
        p = Slice (w_a, zero, n, zero)
        y = Add (x, p)
    }""")
    facts = emit(model, t.job("tflite", model, precision), tmp_path)
    assert not facts.sizes, facts.notes
    for size in (1, 3, 8):
        feeds = _feeds(model, {"N": 2, "S": size})
        right = t.oracle(model, feeds)
        for output, array in Interpreter(str(tmp_path / FILE)).get_signature_runner()(**feeds).items():
            t.assert_close(array, right[output], 1e-5 if precision == "fp32" else 1e-3)


def test_file_has_the_likely_sizes_until_it_is_resized(tmp_path: Path) -> None:
    """Also where those have one element, with which it would be written otherwise."""
    model = t.model(OPEN["heads of two open dimensions"])
    job = t.job("tflite", model)
    shapes = {"N": DimRange(1, 1, 8), "S": DimRange(1, 6, 8)}
    facts = emit(model, replace(job, shapes=shapes), tmp_path)
    assert not facts.sizes
    interpreter = Interpreter(str(tmp_path / FILE), experimental_op_resolver_type=KERNELS["builtin"])
    (given,) = interpreter.get_input_details()
    assert (list(given["shape"]), list(given["shape_signature"])) == ([1, 6, 8], [-1, -1, 8])
    before = {each["index"]: list(each["shape"]) for each in interpreter.get_tensor_details()}
    interpreter.allocate_tensors()
    assert all(
        before.get(each["index"], list(each["shape"])) == list(each["shape"])
        for each in interpreter.get_tensor_details()
    )


def test_halves_are_widened_whatever_size_a_state_has(tmp_path: Path) -> None:
    """The arena moves what it keeps when the batch, and with it the state of an LSTM, has another size."""
    model = t.model("""g (float[S,N,9] x, float[1,64,9] w_i, float[1,64,16] w_r, float[16,8] w_o) => (float[S,N,8] y) {
        h = LSTM <hidden_size = 16> (x, w_i, w_r)
        axis = Constant <value_ints = [1]> ()
        s = Squeeze (h, axis)
        y = MatMul (s, w_o)
    }""")
    facts = emit(model, t.job("tflite", model, "fp16"), tmp_path)
    assert facts.precision.weights == "float16"
    assert not facts.sizes, facts.notes
    with Session(model) as session:
        for kernels in KERNELS.values():
            interpreter = Interpreter(str(tmp_path / FILE), num_threads=1, experimental_op_resolver_type=kernels)
            for sizes in ({"N": 4, "S": 4}, {"N": 5, "S": 3}, {"N": 8, "S": 5}, {"N": 4, "S": 4}):
                feeds = _feeds(model, sizes)
                right = session.run(feeds)
                for output, array in interpreter.get_signature_runner()(**feeds).items():
                    t.assert_close(array, right[output], 1e-3)


def test_dimensions_whose_sizes_are_in_proportion(tmp_path: Path) -> None:
    """A length of 8 or 12 is no batch of 2 or 3 four times over."""
    model = t.model(OPEN["positions"])
    shapes = {"N": DimRange(1, 2, 3), "S": DimRange(5, 8, 12)}
    facts = emit(model, replace(t.job("tflite", model), shapes=shapes), tmp_path)
    assert not facts.sizes, facts.notes
    for sizes in ({"N": 3, "S": 5}, {"N": 1, "S": 12}):
        feeds = _feeds(model, sizes)
        right = t.oracle(model, feeds)
        for output, array in Interpreter(str(tmp_path / FILE)).get_signature_runner()(**feeds).items():
            t.assert_close(array, right[output])


FIXED = {
    "shares of the size": (
        """g (float[N,S,4] x) => (float[N,S,4] y) {
            n = Shape <start = 1, end = 2> (x)
            zero = Constant <value_int = 0> ()
            one = Constant <value_int = 1> ()
            last = Squeeze (n)
            r = Range (zero, last, one)
            f = Cast <to = 1> (r)
            shape = Constant <value_ints = [-1, 1]> ()
            p = Reshape (f, shape)
            count = Cast <to = 1> (last)
            share = Div (p, count)
            [add] y = Add (x, share)
        }""",
        {"S": "ADD of 'add' needs a constant of that size"},
    ),
}


@pytest.mark.parametrize("name", FIXED)
def test_what_holds_a_size_is_named(name: str, tmp_path: Path) -> None:
    text, reasons = FIXED[name]
    model = t.model(text)
    job = t.job("tflite", model)
    facts = emit(model, job, tmp_path)
    assert facts.sizes == dict.fromkeys(reasons, 4)
    *held, others = facts.notes
    assert held == [f"{symbol} is 4 in the file: {reason}" for symbol, reason in reasons.items()]
    assert others.startswith("N may have any size, the largest first")
    feeds = _feeds(model, {"N": 4, "S": 4})
    for output, array in Interpreter(str(tmp_path / FILE)).get_signature_runner()(**feeds).items():
        t.assert_close(array, t.oracle(model, feeds)[output])


# ---- programs that no model is lowered to


def _ints(*numbers: int) -> Tensor:
    return Tensor((len(numbers),), I4, constant=Constant.of(list(numbers), "int32"))


def _one(lower: Callable[[int], tuple[tuple[int, ...], Operator]]) -> Callable[[Mapping[str, int]], Program]:
    """Programs of one operator with an input of the given shape."""

    def at(sizes: Mapping[str, int]) -> Program:
        shape, operator = lower(sizes["N"])
        x = next(tensor for tensor in operator.inputs if tensor is not None and tensor.constant is None)
        assert x.shape == shape
        return Program([operator], {"x": x}, {"y": operator.outputs[0]})

    return at


RANGES = {"N": DimRange(1, 4, 8)}


def _fixed(lower: Callable[[int], tuple[tuple[int, ...], Operator]]) -> str:
    result = opened(_one(lower), RANGES, "N")
    assert [tensor.shape[0] for tensor in result.program.inputs.values()] == [4]
    assert not any(tensor.open_axes for tensor in result.program.tensors)
    return result.fixed["N"]


def test_other_options_at_other_sizes() -> None:
    def lower(size: int) -> tuple[tuple[int, ...], Operator]:
        x, y = Tensor((size, 4), F4), Tensor((size, 4), F4)
        return (size, 4), Operator("LEAKY_RELU", (x,), (y,), Options("LeakyReluOptions", {"alpha": 1 / size}), "leak")

    assert _fixed(lower) == "LEAKY_RELU of 'leak' has it among its options"


def test_other_operators_at_other_sizes() -> None:
    def lower(size: int) -> tuple[tuple[int, ...], Operator]:
        x, y = Tensor((size, 4), F4), Tensor((size, 4), F4)
        return (size, 4), Operator("RELU" if size == 4 else "TANH", (x,), (y,), None, "f")

    assert _fixed(lower) == "with another size there is another operator in place of RELU of 'f'"


def test_shapes_that_the_kernel_must_know_up_front() -> None:
    """A TRANSPOSE_CONV would take a computed one, but then nothing behind it is known before it runs."""
    kernel = Tensor((2, 2, 2, 4), F4, constant=Constant.of(np.ones((2, 2, 2, 4), "f4")))

    def lower(size: int) -> tuple[tuple[int, ...], Operator]:
        x, y = Tensor((size, 3, 3, 4), F4), Tensor((size, 6, 6, 2), F4)
        options = Options("TransposeConvOptions", {"strideH": 2, "strideW": 2, "padding": "VALID"})
        return (size, 3, 3, 4), Operator("TRANSPOSE_CONV", (_ints(size, 6, 6, 2), kernel, x), (y,), options, "up")

    assert _fixed(lower) == "TRANSPOSE_CONV of 'up' holds it as a number"


def test_other_numbers_of_operators_at_other_sizes() -> None:
    def lower(sizes: Mapping[str, int]) -> Program:
        tensors = [Tensor((sizes["N"], 4), F4) for _ in range(sizes["N"] + 1)]
        operators = [Operator("RELU", (one,), (two,), None, "loop") for one, two in itertools.pairwise(tensors)]
        return Program(operators, {"x": tensors[0]}, {"y": tensors[-1]})

    reason = "with another size 'loop' is written with other operators"
    assert opened(lower, RANGES, "N").fixed == {"N": reason}


def test_what_the_runtime_makes_otherwise_is_not_believed() -> None:
    """The comparison has no objection here: it knows nothing of what operators do."""

    def lower(size: int) -> tuple[tuple[int, ...], Operator]:
        x, y = Tensor((size, 4), F4), Tensor((size, 3), F4)
        return (size, 4), Operator("RELU", (x,), (y,))

    assert _fixed(lower) == "the runtime makes [3, 4] of 'y', which is [3, 3]"


def test_what_the_runtime_does_not_resize_is_not_believed() -> None:
    def lower(size: int) -> tuple[tuple[int, ...], Operator]:
        x, y = Tensor((size, 4), F4), Tensor((size, 4), F4)
        bias = Tensor((3,), F4, constant=Constant.of(np.ones(3, "f4")))
        return (size, 4), Operator("ADD", (x, bias), (y,), Options("AddOptions"))

    reason = "the runtime does not take another size: the interpreter cannot resize: Given shapes, [3,4] and [3], "
    assert _fixed(lower).startswith(reason)


def test_models_that_cannot_be_written_at_another_size() -> None:
    def lower(sizes: Mapping[str, int]) -> Program:
        if sizes["N"] != 4:
            raise RetargetError("too odd")
        x, y = Tensor((4,), F4), Tensor((4,), F4)
        return Program([Operator("RELU", (x,), (y,))], {"x": x}, {"y": y})

    assert opened(lower, RANGES, None).fixed == {"N": "the model cannot be written with N=8: too odd"}


def test_custom_operators_are_not_tried() -> None:
    def lower(size: int) -> tuple[tuple[int, ...], Operator]:
        x, y = Tensor((size, 4), F4), Tensor((size, 4), F4)
        return (size, 4), Operator("CUSTOM", (x,), (y,), custom="Mine")

    assert _fixed(lower) == "the custom operators are not here to try other sizes"


def test_one_size_is_all_that_is_asked_for() -> None:
    def lower(sizes: Mapping[str, int]) -> Program:
        assert sizes == {"N": 3}
        x, y = Tensor((3,), F4), Tensor((3,), F4)
        return Program([Operator("RELU", (x,), (y,))], {"x": x}, {"y": y})

    assert opened(lower, {"N": DimRange(3, 3, 3)}, "N").fixed == {"N": "no other size is asked for"}


def test_states_have_one_size() -> None:
    rng = np.random.default_rng(0)
    kept = [rng.standard_normal(shape).astype("f4") for shape in ((2, 3), (2, 2), (2,))]

    def lower(size: int) -> tuple[tuple[int, ...], Operator]:
        weights = [Tensor(array.shape, F4, constant=Constant.of(array)) for array in kept]
        state = Tensor((size, 2), F4, is_variable=True)
        x, y = Tensor((size, 3), F4), Tensor((size, 2), F4)
        return (size, 3), Operator("RNN", (x, *weights, state), (y,), Options("RNNOptions"), "rnn")

    assert _fixed(lower) == "RNN of 'rnn' keeps a state of one size"


def test_large_weights_are_not_made_to_try_sizes(tmp_path: Path) -> None:
    made = 0

    def make() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        nonlocal made
        made += 1
        return np.ones((300, 200), np.float32)

    def lower(size: int) -> tuple[tuple[int, ...], Operator]:
        x, y = Tensor((size, 200), F4), Tensor((size, 300), F4)
        weight = Tensor((300, 200), F4, constant=Constant((300, 200), F4, "weight", make))
        return (size, 200), Operator("FULLY_CONNECTED", (x, weight, None), (y,), Options("FullyConnectedOptions"))

    result = opened(_one(lower), RANGES, "N")
    assert not result.fixed
    assert made == 0
    write(result.program, tmp_path / "m.tflite", description="")
    found = Interpreter(str(tmp_path / "m.tflite")).get_signature_runner()(x=np.ones((7, 200), "f4"))["y"]
    np.testing.assert_array_equal(found, np.full((7, 300), 200, "f4"))


def test_batch_stays_open_where_another_dimension_cannot() -> None:
    shapes = {"S": DimRange(2, 4, 6), "N": DimRange(1, 1, 8)}

    def lower(sizes: Mapping[str, int]) -> Program:
        n, s = sizes["N"], sizes["S"]
        table = Tensor((s,), F4, constant=Constant.of(np.arange(s, dtype="f4") / np.float32(s)))
        x, y = Tensor((n, s), F4), Tensor((n, s), F4)
        return Program([Operator("ADD", (x, table), (y,), Options("AddOptions"), "add")], {"x": x}, {"y": y})

    result = opened(lower, shapes, "N")
    assert result.fixed == {"S": "ADD of 'add' needs a constant of that size"}
    assert [(tensor.shape, tensor.open_axes) for tensor in result.program.outputs.values()] == [((1, 4), (0,))]


def test_activations_too_large_to_try_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the largest size the shapes are not asked of the runtime, which would allocate it."""
    monkeypatch.setattr(resizable, "LARGE", 4 * 100)

    def lower(size: int) -> tuple[tuple[int, ...], Operator]:
        x, y = Tensor((size, 4), F4), Tensor((size, 4 if size < 50 else 5), F4)
        return (size, 4), Operator("RELU", (x,), (y,))

    assert not opened(_one(lower), {"N": DimRange(1, 4, 64)}, "N").fixed


def test_batch_is_told_by_the_specs() -> None:
    model = t.model(OPEN["heads of two open dimensions"])
    job = t.job("tflite", model)
    assert batch_symbol(job.inputs, job.outputs) == "N"
