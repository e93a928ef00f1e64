"""What the default preset costs: calls by the number of nodes, memory by the size of the weights."""

from __future__ import annotations

import cProfile
import pstats
import tracemalloc
from pathlib import Path

import numpy as np
import onnx_ir as ir
from pass_testing import ops, parse

from retarget.passes import presets

RNG = np.random.default_rng(0)
LAYER = """
m{0} = MatMul({1}, w)
a{0} = Add(m{0}, b)
r{0} = Relu(a{0})
s{0} = Shape(r{0})
g{0} = Gather(s{0}, zero)
u{0} = Unsqueeze(g{0}, axis)
c{0} = Concat <axis = 0> (u{0}, size)
v{0} = Reshape(r{0}, c{0})
t{0} = Transpose <perm = [1, 0]> (v{0})
i{0} = Identity(t{0})
o{0} = Transpose <perm = [1, 0]> (i{0})
x{0} = Mul(o{0}, one)
"""
CONSTANTS = {
    "w": RNG.normal(0, 0.5, (4, 4)).astype("f"),
    "b": RNG.standard_normal(4).astype("f"),
    "zero": np.array(0),
    "axis": np.array([0]),
    "size": np.array([4]),
    "one": np.ones((), "f"),
}


def optimize(model: ir.Model) -> ir.Model:
    for one in presets.build("default", {}):
        model = one.run(model).model
    return model


def calls(layers: int) -> int:
    """Function calls that the preset makes on ``layers`` layers of 12 nodes."""
    body = "".join(LAYER.format(layer, f"x{layer - 1}" if layer else "x") for layer in range(layers))
    model = parse(f"g (float[N,4] x) => (float[N,4] y) {{ {body} y = Abs(x{layers - 1}) }}", CONSTANTS)
    profile = cProfile.Profile()
    profile.enable()
    made = optimize(model)
    profile.disable()
    assert ops(made) == ["Gemm", "Relu"] * layers + ["Abs"]
    return sum(count for count, *_ in pstats.Stats(profile).stats.values())  # type: ignore[attr-defined]


def test_cost_is_small_and_grows_linearly() -> None:
    calls(2)  # what is imported or made only once
    many = calls(120)
    assert many / calls(40) < 3.3, "linear is 3, quadratic 9"
    assert many / (120 * 12) < 820, "calls a node: 720 where this was written, 940 before repeated work was mended"


def test_weights_stay_where_they_are(tmp_path: Path) -> None:
    size, layers = 1024, 6
    data = tmp_path / "weights"
    RNG.normal(0, size**-0.5, (layers, size, size)).astype("f").tofile(data)
    body = "".join(
        f"t{layer} = Transpose(w{layer}) m{layer} = MatMul({f's{layer - 1}' if layer else 'x'}, t{layer}) "
        f"s{layer} = Mul(m{layer}, c) "
        for layer in range(layers)
    )
    inputs = "".join(f", float[{size},{size}] w{layer}" for layer in range(layers))
    model = parse(
        f"g (float[N,{size}] x{inputs}) => (float[N,{size}] y) {{ {body} y = Relu(s{layers - 1}) }}",
        {"c": np.array(0.5, "f")},
    )
    for layer, value in enumerate(model.graph.inputs[1:]):
        value.const_value = ir.ExternalTensor(
            data.name,
            layer * size * size * 4,
            size * size * 4,
            ir.DataType.FLOAT,
            shape=ir.Shape([size, size]),
            name=value.name or "",
            base_dir=tmp_path,
        )
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)

    optimize(parse("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }", {}))  # what is imported or made only once
    tracemalloc.start()
    made = optimize(model)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ops(made) == ["MatMul"] * layers + ["Relu"]
    assert peak < size * size * 4 / 2, "half of one weight matrix"

    weights = [value.const_value for value in made.graph.initializers.values()]
    assert len(weights) == layers
    assert all(isinstance(weight, ir.LazyTensor) for weight in weights)
    original = np.fromfile(data, "f").reshape(layers, size, size)
    assert weights[2] is not None
    np.testing.assert_array_equal(weights[2].numpy(), original[2].T * np.float32(0.5))
