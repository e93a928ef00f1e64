"""What there is, by name: one literal table each. A new frontend, pass or target is a module and one line here."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import cast

from retarget.errors import RetargetError, did_you_mean
from retarget.protocols import Frontend, FrontendExport, FrontendLoad, Target, TargetEmit, TargetRun

FRONTENDS = {
    "caffe": "retarget.convert.caffe",
    "keras": "retarget.convert.keras",
    "onnx": "retarget.convert.onnx",
    "pytorch": "retarget.convert.pytorch",
    "tensorflow": "retarget.convert.tensorflow",
    "tflite": "retarget.convert.tflite",
}

PASSES = {
    "canonical_arithmetic": "retarget.passes.canonical_arithmetic:CanonicalArithmetic",
    "deduplicate_constants": "retarget.passes.library:DeduplicateConstants",
    "delay_transposes": "retarget.passes.delay_transposes:DelayTransposes",
    "equalize_channels": "retarget.passes.equalize_channels:EqualizeChannels",
    "fix_dimensions": "retarget.passes.fix_dimensions:FixDimensions",
    "fix_names": "retarget.passes.library:FixNames",
    "fold_channels": "retarget.passes.fold_channels:FoldChannels",
    "fold_constants": "retarget.passes.library:FoldConstants",
    "fold_scales": "retarget.passes.fold_scales:FoldScales",
    "fold_shapes": "retarget.passes.fold_shapes:FoldShapes",
    "fold_weights": "retarget.passes.fold_weights:FoldWeights",
    "fuse_attention": "retarget.passes.fuse_attention:FuseAttention",
    "fuse_conv_bn": "retarget.passes.fuse_conv_bn:FuseConvBn",
    "fuse_gelu": "retarget.passes.fuse_gelu:FuseGelu",
    "fuse_gemm": "retarget.passes.fuse_gemm:FuseGemm",
    "fuse_layer_norm": "retarget.passes.fuse_layer_norm:FuseLayerNorm",
    "fuse_pad": "retarget.passes.fuse_pad:FusePad",
    "fuse_repeat": "retarget.passes.fuse_repeat:FuseRepeat",
    "infer_shapes": "retarget.passes.library:InferShapes",
    "inline_functions": "retarget.passes.library:InlineFunctions",
    "keep_reduced_axes": "retarget.passes.keep_reduced_axes:KeepReducedAxes",
    "lift_constants": "retarget.passes.library:LiftConstants",
    "merge_equal_nodes": "retarget.passes.library:MergeEqualNodes",
    "move_transposes": "retarget.passes.move_transposes:MoveTransposes",
    "pick_codes": "retarget.passes.pick_codes:PickCodes",
    "remove_noops": "retarget.passes.remove_noops:RemoveNoops",
    "remove_softmax_guards": "retarget.passes.remove_softmax_guards:RemoveSoftmaxGuards",
    "remove_unused": "retarget.passes.library:RemoveUnused",
    "rewrite_known_patterns": "retarget.passes.library:RewriteKnownPatterns",
    "simplify": "retarget.passes.simplify:Simplify",
    "unify_scales": "retarget.passes.unify_scales:UnifyScales",
    "unsigned_activations": "retarget.passes.unsigned_activations:UnsignedActivations",
}
"""Name in recipes → "module:Class"; the class's constructor arguments are the options."""

TARGETS = {
    "coreml": "retarget.targets.coreml",
    "ncnn": "retarget.targets.ncnn",
    "onnxruntime": "retarget.targets.onnxruntime",
    "openvino": "retarget.targets.openvino",
    "tensorrt": "retarget.targets.tensorrt",
    "tensorrt_rtx": "retarget.targets.tensorrt_rtx",
    "tflite": "retarget.targets.tflite",
}


def frontend(name: str) -> Frontend:
    """The light half of frontend ``name``."""
    return cast("Frontend", _module("frontend", name, FRONTENDS))


def frontend_export(name: str) -> FrontendExport:
    """The half of frontend ``name`` that imports its framework."""
    return cast("FrontendExport", _module("frontend", name, FRONTENDS, ".export"))


def frontend_load(name: str) -> FrontendLoad:
    """What brings the export of frontend ``name`` to the normal form: needs no framework."""
    return cast("FrontendLoad", _module("frontend", name, FRONTENDS, ".load"))


def target(name: str) -> Target:
    """The light half of target ``name``."""
    return cast("Target", _module("target", name, TARGETS))


def target_emit(name: str) -> TargetEmit:
    """The emitter of target ``name``: imports its library."""
    return cast("TargetEmit", _module("target", name, TARGETS, ".emit"))


def target_run(name: str) -> TargetRun:
    """The runner of target ``name``: imports its runtime."""
    return cast("TargetRun", _module("target", name, TARGETS, ".run"))


def _module(what: str, name: str, table: dict[str, str], part: str = "") -> ModuleType:
    if name not in table:
        raise RetargetError(f"unknown {what} '{name}'", did_you_mean(name, table))
    return importlib.import_module(table[name] + part)
