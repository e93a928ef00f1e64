"""The presets: ordered lists of passes, the reason beside each line.

A pass stands where what it looks for exists and what it makes is still wanted: no pass relies on a second run of the
list. ``retarget list passes`` shows the names; a recipe may give a list of its own.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias, cast, get_type_hints

import msgspec
import onnx_ir as ir

from retarget import catalog
from retarget.errors import RetargetError, did_you_mean
from retarget.spec import DimRange

Line: TypeAlias = tuple[str, Mapping[str, object]]


class NamedPass(NamedTuple):
    """A pass under the name that recipes and reports use."""

    name: str
    run: ir.passes.PassBase


NONE: tuple[Line, ...] = (
    ("inline_functions", {}),  # emitters know operators, not functions
    ("lift_constants", {}),  # one place where constants stand: every later pass asks only for initializers
    ("infer_shapes", {}),  # folding asks for types and shapes
    ("fold_constants", {}),  # what no input reaches is a number
    ("remove_unused", {}),  # what folding left behind
    ("deduplicate_constants", {}),  # folding makes equal numbers many times over
    ("fix_names", {}),  # sorted, unique names, no output twice
    ("infer_shapes", {}),  # emitters ask for types and shapes
)
"""Only the normal form: what every emitter counts on, and nothing more."""

DEFAULT: tuple[Line, ...] = (
    ("inline_functions", {}),
    ("lift_constants", {}),
    ("fix_dimensions", {}),  # before shapes are inferred: a fixed size decides more of them
    ("infer_shapes", {}),
    ("remove_noops", {}),  # cheap, and half of an export: before what is not cheap
    ("fuse_repeat", {}),  # before Reshapes in a row are one: half of the next pattern would be in this one
    ("fold_shapes", {}),  # likewise: the shape arithmetic of every layer
    ("fold_constants", {}),  # CastLike and Expand of constants hide weights below; infers what a folded one decides
    ("remove_noops", {}),  # nothing that gives back its input shall stand between the nodes of a pattern
    ("canonical_arithmetic", {}),  # one form for each pattern to look for
    ("fold_shapes", {}),  # on what folding made known; Reshape and Transpose then meet
    ("fold_weights", {}),  # Transpose of weights, which only now are MatMul's own
    ("remove_softmax_guards", {}),
    ("move_transposes", {}),  # before the fusions: a Transpose in a pattern hides it
    ("fuse_pad", {}),  # before Conv takes its normalization: Conv is then one node
    ("fuse_conv_bn", {}),  # the largest gain of all in convolutional nets
    ("fold_channels", {}),  # after Pad is in the convolution: what scales pixels then stands right in front of it
    ("fuse_gelu", {}),
    ("fuse_layer_norm", {}),
    ("fold_scales", {}),  # after the fusions, whose formulas hold the same multiplications
    ("fuse_gemm", {}),
    ("rewrite_known_patterns", {}),  # onnxscript's rules, some of which look at the biases made above
    ("remove_noops", {}),  # what the passes above reduced to nothing
    ("remove_unused", {}),
    ("deduplicate_constants", {}),
    ("merge_equal_nodes", {}),  # after constants are one: equal inputs are then the same value
    ("fix_names", {}),
    ("infer_shapes", {}),
)
"""Exact up to rounding, and cheap."""

AGGRESSIVE: tuple[Line, ...] = (
    *DEFAULT,
    ("remove_softmax_guards", {"every_row_sees_something": True}),  # not for inputs that are masked throughout
    ("simplify", {}),  # folds by execution; loads all weights, and leaves models of 2 GB and more alone
    ("lift_constants", {}),  # onnxsim writes what it folded as it likes
    ("remove_noops", {}),
    ("remove_unused", {}),
    ("deduplicate_constants", {}),
    ("merge_equal_nodes", {}),
    ("fix_names", {}),
    ("infer_shapes", {}),
)
"""What can change rounding more, costs more, or holds only for inputs that a model is meant to see."""

PRESETS: Mapping[str, tuple[Line, ...]] = {"none": NONE, "default": DEFAULT, "aggressive": AGGRESSIVE}


def build(preset: str | Sequence[tuple[str, Mapping[str, object]]], shapes: Mapping[str, DimRange]) -> list[NamedPass]:
    """The passes of a preset, or of a list of (name, options). Raises ``RetargetError`` for what does not exist.

    ``shapes`` are the user's ranges; a dimension of one size is fixed by the pass `fix_dimensions`.
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise RetargetError(f"unknown preset '{preset}'", did_you_mean(preset, PRESETS))
        preset = PRESETS[preset]
    return [NamedPass(name, _make(name, options, shapes)) for name, options in preset]


def _make(name: str, options: Mapping[str, object], shapes: Mapping[str, DimRange]) -> ir.passes.PassBase:
    if name not in catalog.PASSES:
        raise RetargetError(f"unknown pass '{name}'", did_you_mean(name, catalog.PASSES))
    module, _, attribute = catalog.PASSES[name].partition(":")
    maker = cast("type[ir.passes.PassBase]", getattr(importlib.import_module(module), attribute))
    parameters = [parameter for parameter in inspect.signature(maker).parameters if parameter != "shapes"]
    hints = get_type_hints(maker.__init__)
    arguments: dict[str, object] = {}
    for option, value in options.items():
        if option not in parameters:
            hint = did_you_mean(option, parameters) if parameters else f"'{name}' has no options"
            raise RetargetError(f"pass '{name}': unknown option '{option}'", hint)
        try:
            arguments[option] = msgspec.convert(value, hints[option])
        except msgspec.ValidationError as error:
            raise RetargetError(f"pass '{name}': option '{option}': {error}") from error
    if "shapes" in hints:
        arguments["shapes"] = shapes
    return maker(**arguments)
