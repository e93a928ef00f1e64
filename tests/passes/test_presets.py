from __future__ import annotations

import onnx_ir as ir
import pytest

from retarget import catalog
from retarget.errors import RetargetError
from retarget.passes import presets
from retarget.protocols import JSON


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_line_of_a_preset_can_be_built(name: str) -> None:
    built = presets.build(name, {})
    assert [one.name for one in built] == [line for line, _ in presets.PRESETS[name]]
    assert all(isinstance(one.run, ir.passes.PassBase) for one in built)


@pytest.mark.parametrize("name", catalog.PASSES)
def test_every_pass_of_the_catalogue_can_be_built_and_says_what_it_does(name: str) -> None:
    (built,) = presets.build([(name, {})], {})
    assert type(built.run).__doc__
    assert type(built.run).__name__ == "".join(word.capitalize() for word in name.split("_"))


def test_options() -> None:
    (built,) = presets.build([("fold_constants", {"limit": 7})], {})
    assert vars(built.run)["limit"] == 7


FOLD = "pass 'fold_constants': "


@pytest.mark.parametrize(
    ("preset", "message", "hint"),
    [
        ("defualt", "unknown preset 'defualt'", "did you mean 'default'?"),
        ([("fuse_gelus", {})], "unknown pass 'fuse_gelus'", "did you mean 'fuse_gelu'?"),
        (
            [("fold_constants", {"limits": 1})],
            FOLD + "unknown option 'limits'",
            "did you mean 'limit'?",
        ),
        ([("fuse_gelu", {"limit": 1})], "pass 'fuse_gelu': unknown option 'limit'", "'fuse_gelu' has no options"),
        (
            [("fold_constants", {"limit": "x"})],
            FOLD + "option 'limit': Expected `int`, got `str`",
            None,
        ),
    ],
)
def test_mistakes(preset: str | list[tuple[str, dict[str, JSON]]], message: str, hint: str | None) -> None:
    with pytest.raises(RetargetError) as caught:
        presets.build(preset, {})
    assert (caught.value.message, caught.value.hint) == (message, hint)
