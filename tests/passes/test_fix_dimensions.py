from __future__ import annotations

import onnx_ir as ir
from pass_testing import feeds_for, outputs, parse

from retarget.passes import presets
from retarget.passes.fix_dimensions import FixDimensions
from retarget.spec import DimRange

TEXT = "g (float[N,S,4] x) => (float[N,S,4] y) { a = Relu(x) y = Tanh(a) }"


def shapes(model: ir.Model) -> list[str]:
    return [str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)]


def test_dimensions_of_one_size() -> None:
    model = parse(TEXT)
    before = outputs(model, feeds_for(model, {"N": 2, "S": 3}))
    one = FixDimensions({"N": DimRange(2, 2, 2), "S": DimRange(1, 3, 8)})
    assert one(model).modified
    assert shapes(model) == ["[2,S,4]", "[2,S,4]"]
    assert (outputs(model, feeds_for(model, {"S": 3}))[0] == before[0]).all()
    assert not one(model).modified


def test_ranges_stay_symbols() -> None:
    model = parse(TEXT)
    assert not FixDimensions({"N": DimRange(1, 1, 8)})(model).modified
    assert not FixDimensions({})(model).modified
    assert shapes(model) == ["[N,S,4]", "[N,S,4]"]


def test_the_preset_knows_the_users_sizes() -> None:
    text = """
    g (float[N,S,8] x) => (float[N,S,2,4] y) {
      s = Shape(x)
      f = Constant <value_ints = [2, 4]> ()
      z = Constant <value_ints = [0, 1]> ()
      h = Gather(s, z)
      c = Concat <axis = 0> (h, f)
      y = Reshape(x, c)
    }
    """
    model = parse(text)
    for _, one in presets.build("default", {"N": DimRange(2, 2, 2), "S": DimRange(3, 3, 3)}):
        one(model)
    (reshape,) = model.graph
    assert reshape.inputs[1] is not None
    assert reshape.inputs[1].const_value is not None
    assert reshape.inputs[1].const_value.numpy().tolist() == [2, 3, 2, 4]
