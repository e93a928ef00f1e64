"""Recipes as users write them: the contract's example, mistakes, and files that are no recipes."""

import datetime
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings
from recipe_texts import CONTRACT, LEAST, load_text, options_of, problems

from retarget import catalog
from retarget.errors import RecipeError
from retarget.preprocess import Preprocess
from retarget.recipe import (
    AccuracyGate,
    Code,
    Data,
    Evaluation,
    Fp16,
    Fp32,
    Gates,
    Int8,
    Int8Dynamic,
    Int16x8,
    LatencyGate,
    Model,
    PassEntry,
    Recipe,
    Samples,
    Shape,
    Source,
    TargetEntry,
    Variant,
    Waiver,
    WeightsOnly,
    check,
    load,
)
from retarget.recipe_write import dump
from retarget.spec import DEFAULT_RANGE, DimRange, TensorSpec
from retarget.tolerance import Tolerance

# ---- reading


def test_the_contracts_example_is_read(tmp_path: Path) -> None:
    recipe = load_text(tmp_path, CONTRACT)
    assert recipe == Recipe(
        version=1,
        name="digits",
        model=Model(
            path=tmp_path / "digits_cnn.safetensors",
            factory=Code(tmp_path / "model.py", "build"),
            inputs={"image": "float32[N,1,32,32]"},
            shapes={"N": Shape(min=1, opt=8, max=32)},
        ),
        data=Data(
            samples=Samples(path=Source(tmp_path / "samples.npz")),
            calibration=Samples(path=Source(tmp_path / "calibration.npz"), samples=256),
            evaluation=Evaluation(path=Source(tmp_path / "evaluation.npz"), labels="label", metric="top1"),
        ),
        optimize="default",
        variants=(
            Variant(name="fp32", precision="fp32", options=Fp32()),
            Variant(name="fp16", precision="fp16", options=Fp16()),
            Variant(name="half", precision="fp16", options=Fp16(io="float16")),
        ),
        targets=(
            TargetEntry(name="onnxruntime", options=options_of("onnxruntime")),
            TargetEntry(name="openvino", options=options_of("openvino")),
            TargetEntry(
                name="tensorrt_rtx",
                variants=("fp16", "half"),
                optional=True,
                options=options_of("tensorrt_rtx", compute_capability=["8.9"]),
            ),
        ),
        gates=Gates(
            parity={"fp32": Tolerance(max_abs=1e-4), "fp16": Tolerance(snr_db=40), "int8": Tolerance(snr_db=15)},
            accuracy=AccuracyGate(max_drop=0.01),
            latency=LatencyGate(max_ratio=1.1),
            verified=("openvino",),
        ),
        waivers=(
            Waiver(gate="parity", target="openvino", variant="fp16", reason="…", expires=datetime.date(2027, 1, 31)),
        ),
    )


def test_what_a_recipe_says_of_itself(tmp_path: Path) -> None:
    recipe = load_text(tmp_path, CONTRACT)
    assert recipe.input_specs() == (TensorSpec("image", "float32", ("N", 1, 32, 32)),)
    assert recipe.dim_ranges() == {"N": DimRange(1, 8, 32)}
    assert [f"{target.name}/{variant.name}" for target, variant in recipe.requested()] == [
        "onnxruntime/fp32",
        "onnxruntime/fp16",
        "onnxruntime/half",
        "openvino/fp32",
        "openvino/fp16",
        "openvino/half",
        "tensorrt_rtx/fp16",
        "tensorrt_rtx/half",
    ]
    fp32, _, half = recipe.variants
    assert recipe.tolerance(fp32) == Tolerance(max_abs=1e-4)
    assert recipe.tolerance(half) == Tolerance(snr_db=40), "by its precision, where its name has none"


def test_the_least_recipe_builds_fp32_with_the_default_preset(tmp_path: Path) -> None:
    recipe = load_text(tmp_path, LEAST)
    assert recipe.model == Model(path=tmp_path / "m.onnx")
    assert [variant.name for variant in recipe.variants] == ["fp32"]
    assert recipe.optimize == "default"
    assert recipe.tolerance(recipe.variants[0]) is None
    assert recipe.input_specs() == ()


def test_dimensions_without_a_range_get_the_default_one(tmp_path: Path) -> None:
    model = "{path: m.onnx, inputs: {a: 'int64[N,S]', b: 'bool[T]'}, shapes: {S: 128, T: {min: 2, opt: 3, max: 4}}}"
    recipe = load_text(tmp_path, LEAST.replace("m.onnx", model))
    assert recipe.dim_ranges() == {"N": DEFAULT_RANGE, "S": DimRange(128, 128, 128), "T": DimRange(2, 3, 4)}
    other = [TensorSpec("c", "float32", ("U",))]
    assert recipe.dim_ranges(other)["U"] == DEFAULT_RANGE, "specs that the model file said"


def test_data_is_a_bare_path_or_a_function(tmp_path: Path) -> None:
    data = "data:\n  samples: s.npz\n  calibration: load.py:rows\n  evaluation: {path: e, metric: score.py:f1}\n"
    recipe = load_text(tmp_path, LEAST + data)
    assert recipe.data == Data(
        samples=Samples(path=Source(tmp_path / "s.npz")),
        calibration=Samples(path=Source(tmp_path / "load.py", "rows")),
        evaluation=Evaluation(path=Source(tmp_path / "e"), metric=Code(tmp_path / "score.py", "f1")),
    )


def test_passes_are_names_or_names_with_options(tmp_path: Path) -> None:
    name = next(iter(catalog.PASSES))
    recipe = load_text(tmp_path, LEAST + f"optimize: [{name}]\n")
    assert recipe.optimize == (PassEntry(name=name),)
    recipe = load_text(tmp_path, LEAST + f"optimize:\n  - {name}: {{limit: 3, names: [a]}}\n")
    assert recipe.optimize == (PassEntry(name=name, options={"limit": 3, "names": ["a"]}),)
    recipe = load_text(tmp_path, LEAST + f"optimize: [{name}, {name}]\n")
    assert recipe.optimize == (PassEntry(name=name), PassEntry(name=name)), "a pass may run again"
    assert problems(tmp_path, LEAST + f"optimize: [{name[:-1]}]\n") == [
        f"5:12: optimize[0]: unknown pass '{name[:-1]}'\nhint: did you mean '{name}'?"
    ]


def test_extends_resolves_paths_where_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "base.yaml").write_text(CONTRACT)
    recipe = load_text(
        tmp_path,
        "extends: base/base.yaml\nname: child\nvariants: [fp16]\ntargets: [openvino]\ndata: {samples: own.npz}\n",
    )
    assert recipe.name == "child"
    assert recipe.model.path == tmp_path / "base" / "digits_cnn.safetensors"
    assert recipe.data.samples == Samples(path=Source(tmp_path / "own.npz"))
    assert recipe.data.calibration == Samples(path=Source(tmp_path / "base" / "calibration.npz"), samples=256)
    assert [target.name for target in recipe.targets] == ["openvino"]


def test_a_problem_in_what_is_extended_has_its_own_place(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(CONTRACT)
    found = problems(tmp_path, "extends: base.yaml\ntargets: [onnxruntime]\nvariants: [fp16]\nnmae: x\n")
    assert [text.partition("\n")[0].removeprefix(f"{tmp_path}/") for text in found] == [
        "4:1: nmae: unknown key",
        "base.yaml:26:14: gates.verified[0]: the recipe has no target 'openvino'",
        "base.yaml:28:28: waivers[0].target: the recipe has no target 'openvino'",
    ]


# ---- mistakes


def test_all_mistakes_are_reported_at_once_in_their_order(tmp_path: Path) -> None:
    text = """\
version: 2
name: a/b
model:
  path:
  factory: model.py
  inputs: {image: "float33[N]", mask: "bool[M]"}
  shapes: {N: {min: 9, opt: 8, max: 32}}
  sha257: aa
variants:
  - fp32
  - fp16: {io: float17}
  - palette6: {method: mse}
  - fast
  - fp32
targets:
  - onnxruntime: {variants: [fp23, palette6]}
  - openvino: {varients: [fp16]}
  - opnvino
gates:
  parity: {fp32: {max_abs: -1}, fp6: {snr_db: 40}, fp16: {}}
  accuracy: {max_drop: 0.01}
  verified: [openvin]
waivers:
  - {gate: parity, target: openvino, variant: fp17, reason: slow, expires: 2027-01-31}
  - {gate: parity, target: openvino, reason: "", expires: 2027-21-31}
"""
    assert (
        "\n".join(problems(tmp_path, text))
        == """\
1:10: version: expected 1, got the number 2
2:7: name: 'a/b' does not have the form ^[A-Za-z0-9][A-Za-z0-9_.-]*$
4:8: model.path: expected a path, got nothing
5:12: model.factory: 'model.py' does not name a function
hint: write FILE.py:FUNCTION, as in model.py:build
6:12: model.inputs.image: input 'image': unknown dtype 'float33'
hint: did you mean 'float32'?
7:15: model.shapes.N: sizes must be min <= opt <= max, got 9, 8, 32
8:3: model.sha257: unknown key
hint: did you mean 'sha256'?
11:16: variants[1].io: expected one of float16, float32, got 'float17'
hint: did you mean 'float16'?
12:16: variants[2].method: unknown key
hint: known: keep, precision
13:5: variants[3]: 'fast' is no precision, so it must be told one
hint: write `fast: {precision: fp16}`
14:5: variants[4]: duplicate 'fp32'
hint: it stands in line 10 already
16:5: targets[0]: onnxruntime cannot take variant 'palette6' (palette6)
hint: name those that it takes: `onnxruntime: {variants: [fp32, fp16]}`
16:30: targets[0].variants[0]: the recipe has no variant 'fp23'
hint: did you mean 'fp32'?
17:5: targets[1]: openvino cannot take variant 'palette6' (palette6)
hint: name those that it takes: `openvino: {variants: [fp32, fp16]}`
17:16: targets[1].varients: unknown key
hint: did you mean 'variants'?
18:5: targets[2]: unknown target 'opnvino'
hint: did you mean 'openvino'?
20:28: gates.parity.fp32.max_abs: must be at least 0, got -1
20:33: gates.parity.fp6: the recipe has no variant 'fp6'
hint: did you mean 'fp16'?
20:58: gates.parity.fp16: no bound is given
hint: known: max_abs, mean_abs, snr_db, cosine, top1_agreement
21:13: gates.accuracy: there is no data to measure accuracy on
hint: give `data.evaluation`
22:14: gates.verified[0]: the recipe has no target 'openvin'
hint: did you mean 'openvino'?
24:47: waivers[0].variant: the recipe has no variant 'fp17'
hint: did you mean 'fp16'?
25:46: waivers[1].reason: the text is empty
25:59: waivers[1].expires: expected a date, got '2027-21-31'
hint: write YEAR-MONTH-DAY, as in 2027-01-31"""
    )


def test_data_and_how_files_become_inputs(tmp_path: Path) -> None:
    text = LEAST.replace(
        "name: x",
        """name: x
data:
  calibration: {synthetic: normal, samples: 32}
  selection: held/
  evaluation: {path: images, labels: folder, classes: [cat, dog]}
  preprocess: {resize: 256, crop: [224, 192], scale: 1/255, mean: 0.5, std: [0.5, 0.25, 1], color: bgr}
""",
    )
    data = load_text(tmp_path, text).data
    assert data == Data(
        calibration=Samples(synthetic="normal", samples=32),
        selection=Samples(path=Source(tmp_path / "held")),
        evaluation=Evaluation(path=Source(tmp_path / "images"), labels="folder", classes=("cat", "dog")),
        preprocess=Preprocess(resize=256, crop=(224, 192), scale="1/255", mean=0.5, std=(0.5, 0.25, 1.0), color="bgr"),
    )
    written = dump(load_text(tmp_path, text), relative_to=tmp_path)
    assert "preprocess:\n    color: bgr\n    resize: 256\n" in written
    assert "scale: 1/255\n" in written
    assert load_text(tmp_path, written).data == data


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("version: 1\n", "", "1:1: version: this key is missing"),
        ("version: 1", "version: '1'", "1:10: version: expected 1, got '1'"),
        ("targets: [onnxruntime]", "targets: []", "4:10: targets: the list is empty"),
        ("targets: [onnxruntime]", "targets: onnxruntime", "4:10: targets: expected a list, got 'onnxruntime'"),
        ("targets: [onnxruntime]", "targets: [onnxruntime, onnxruntime]", "4:24: targets[1]: duplicate 'onnxruntime'"),
        ("m.onnx", "{path: m.onnx, format: onx}", "3:31: model.format: unknown frontend 'onx'"),
        ("m.onnx", "{path: m.onnx, sha256: abc}", "3:31: model.sha256: 'abc' does not have the form"),
        ("m.onnx", "{path: m.onnx, shapes: {N: 0}}", "3:35: model.shapes.N: must be at least 1, got 0"),
        ("m.onnx", "{path: m.onnx, shapes: {N: '1:8:32'}}", "3:35: model.shapes.N: expected a whole number"),
        ("m.onnx", "{path: m.onnx, inputs: {a: 'int8[N]'}, shapes: {M: 3}}", "no input has a dimension 'M'"),
        ("m.onnx", "{path: m.onnx, inputs: {a: 'int8[3]'}, shapes: {M: 3}}", "have no symbolic dimension"),
        ("m.onnx", "{path: m.onnx, trust: yes}", "3:30: model.trust: expected true or false, got 'yes'"),
        ("name: x", "name: x\noutputs: [a, a]", "outputs: two outputs have the same name"),
        ("name: x", "name: x\ntoolchains: {tf: /bin/python}", "'tf' is no frontend, and only frontends run elsewhere"),
        ("name: x", "name: x\ntoolchains: {onnx: {pyton: a}}", "toolchains.onnx.pyton: unknown key"),
        ("name: x", "name: x\ntoolchains: {caffe: /bin/python}", "'caffe' needs no framework, and so no environment"),
        ("name: x", "name: x\nextend: a.yaml", "3:1: extend: unknown key\nhint: did you mean 'extends'?"),
        ("name: x", "name: x\noptimize: agressive", "optimize: expected one of aggressive, default, none"),
        (
            "name: x",
            "name: x\ndata: {calibration: {samples: 8}}",
            "data.calibration: no data is given\nhint: give path",
        ),
        ("name: x", "name: x\ndata: {calibration: {path: a, synthetic: normal}}", "path and synthetic are both given"),
        ("name: x", "name: x\ndata: {calibration: {synthetic: yes}}", "data.calibration.synthetic: expected normal"),
        ("name: x", "name: x\ndata: {samples: {synthetic: normal}}", "data.samples: synthetic data is for calibration"),
        ("name: x", "name: x\ndata: {evaluation: {synthetic: normal}}", "data.evaluation.synthetic: unknown key"),
        ("name: x", "name: x\ndata: {preprocess: {resise: 8}}", "data.preprocess.resise: unknown key\nhint: did you"),
        ("name: x", "name: x\ndata: {preprocess: {scale: 1:255}}", "data.preprocess.scale: expected a number or"),
        ("name: x", "name: x\ndata: {preprocess: {mean: [1, 2]}}", "3:20: data.preprocess: mean has 2 numbers"),
        ("name: x", "name: x\ndata: {preprocess: {length: 9}}", "data.preprocess: length is for sound"),
        ("name: x", "name: x\ndata: {evaluation: {path: e, classes: 3}}", "data.evaluation.classes: expected"),
        ("name: x", "name: x\ndata: {samples: {path: a, samples: 0}}", "data.samples.samples: must be at least 1"),
        ("name: x", "name: x\ndata: {calibration: [a]}", "3:21: data.calibration: expected a map, got a list"),
        ("name: x", "name: x\nvariants: [fp61]", "'fp61' is no precision, so it must be told one\nhint: did you mean"),
        ("name: x", "name: x\nvariants: [{a: {precision: fp61}}]", "3:28: variants[0].precision: expected one of"),
        ("name: x", "name: x\nvariants: [{fp32: {io: float16}}]", "3:20: variants[0].io: unknown key"),
        ("name: x", "name: x\nvariants: [{fp32: {precision: fp16}}]", "a variant called 'fp32' cannot be fp16"),
        ("name: x", "name: x\nvariants: fp16", "3:11: variants: expected a list, got 'fp16'"),
        ("name: x", "name: x\ngates: {parity: {fp32: {snr: 40}}}", "gates.parity.fp32.snr: unknown key"),
        ("name: x", "name: x\ngates: {accuracy: {max_drop: 2}}\ndata: {evaluation: e}", "must be at most 1, got 2"),
        ("name: x", "name: x\nwaivers: [{gate: speed}]", "3:18: waivers[0].gate: expected one of"),
    ],
)
def test_a_mistake_says_its_place_and_the_way_out(tmp_path: Path, old: str, new: str, problem: str) -> None:
    found = "\n".join(problems(tmp_path, LEAST.replace(old, new)))
    assert problem in found


@pytest.mark.parametrize(
    ("asked", "deployment", "needed"),
    [
        ("int8", "iOS16", "int8 needs minimum_deployment_target iOS17"),
        ("int8_weights", "iOS15", "int8_weights needs minimum_deployment_target iOS16"),
        ("int8_weights: {block: 32}", "iOS17", "weights in blocks need minimum_deployment_target iOS18"),
        ("int4_weights", "iOS17", "int4_weights needs minimum_deployment_target iOS18"),
        ("palette6", "iOS15", "palette6 needs minimum_deployment_target iOS16"),
    ],
)
def test_what_a_deployment_target_cannot_hold_is_met_with_the_oldest_that_can(
    tmp_path: Path, asked: str, deployment: str, needed: str
) -> None:
    body = LEAST.replace("[onnxruntime]", f"[{{coreml: {{minimum_deployment_target: {deployment}}}}}]")
    assert body != LEAST
    (problem,) = problems(tmp_path, body + f"data: {{calibration: c.npz}}\nvariants:\n  - {asked}\n")
    assert f"{needed}, not {deployment}" in problem
    assert f"minimum_deployment_target: {needed.split()[-1]}" in problem


INT8 = LEAST + "data: {calibration: c.npz}\n"


def test_int8_has_a_default_for_everything_but_data(tmp_path: Path) -> None:
    (variant,) = load_text(tmp_path, INT8 + "variants: [int8]\n").variants
    assert variant == Variant(name="int8", precision="int8", options=Int8())
    assert variant.options == Int8(method="auto", max_drop=None, min_snr_db=None, rest="fp32", equalize=True, keep=())


def test_int8_and_weights_only_say_what_they_are_told(tmp_path: Path) -> None:
    text = INT8 + (
        "variants:\n"
        "  - int8: {method: percentile, percentile: 99.9, max_drop: 0.01, rest: fp16, keep: [Softmax, /head], "
        "equalize: false, correct_bias: false}\n"
        "  - int4_weights: {block: 64, keep: [head]}\n"
        "  - small: {precision: int8_weights}\n"
    )
    recipe = load_text(tmp_path, text)
    assert [(one.name, one.precision, one.options) for one in recipe.variants] == [
        (
            "int8",
            "int8",
            Int8(
                method="percentile",
                percentile=99.9,
                max_drop=0.01,
                rest="fp16",
                keep=("Softmax", "/head"),
                equalize=False,
                correct_bias=False,
            ),
        ),
        ("int4_weights", "int4_weights", WeightsOnly(block=64, keep=("head",))),
        ("small", "int8_weights", WeightsOnly()),
    ]
    assert load_text(tmp_path, dump(recipe, tmp_path)) == recipe


@pytest.mark.parametrize(
    ("variants", "problem"),
    [
        (
            "[{int8: {max_drop: 0.01, min_snr_db: 30}}]",
            "max_drop and min_snr_db are two budgets\nhint: set one of them",
        ),
        ("[{int8: {method: mes}}]", "did you mean 'mse'?"),
        ("[{int8: {percentile: 40}}]", "percentile"),
        ("[{int8: {max_drop: 2}}]", "max_drop"),
        ("[{int8: {min_snr_db: 0}}]", "min_snr_db"),
        ("[{int8: {block: 32}}]", "unknown key"),
        ("[{int4_weights: {block: 48}}]", "block"),
        ("[{int8: {io: int16}}]", "expected one of float32, int8"),
        ("[{int16x8: {io: int8}}]", "expected one of float32, int16"),
        ("[{int8_dynamic: {method: mse}}]", "unknown key"),
    ],
)
def test_a_wrong_setting_of_int8_says_its_place(tmp_path: Path, variants: str, problem: str) -> None:
    with pytest.raises(RecipeError) as wrong:
        load_text(tmp_path, f"{INT8}variants: {variants}\n")
    text = str(wrong.value)
    assert "variants[0]" in text
    assert problem in text


def test_int8_without_data_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as wrong:
        load_text(tmp_path, LEAST + "variants: [fp32, int8, int8_weights]\n")
    text = str(wrong.value)
    assert "variants[1]: 'int8' needs data to be calibrated with, and there is none\nhint: " in text
    assert "variants[2]" not in text


def test_int16_activations_take_the_settings_of_int8_and_dynamic_ones_no_data(tmp_path: Path) -> None:
    text = "variants: [{int16x8: {io: int16, max_drop: 0.01}}, {int8_dynamic: {keep: [head]}}]\n"
    recipe = load_text(tmp_path, INT8.replace("onnxruntime", "tflite") + text)
    assert [one.options for one in recipe.variants] == [
        Int16x8(method="minmax", io="int16", max_drop=0.01),
        Int8Dynamic(keep=("head",)),
    ]
    assert load_text(tmp_path, dump(recipe, tmp_path)) == recipe
    found = problems(tmp_path, LEAST.replace("onnxruntime", "tflite") + text)
    assert len(found) == 1
    assert "variants[0]: 'int16x8' needs data to be calibrated with" in found[0]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"])
def test_integers_as_inputs_and_outputs_are_asked_of_targets_that_have_them(tmp_path: Path, target: str) -> None:
    text = INT8.replace("[onnxruntime]", f"[tflite, {target}]") + "variants: [fp32, {int8: {io: int8}}]\n"
    (problem,) = problems(tmp_path, text)
    assert problem.splitlines() == [
        f"4:19: targets[1]: {target} has no int8 inputs and outputs, which 'int8' asks for",
        "hint: leave 'int8' out of its `variants`, or set `io: float32`",
    ]
    load_text(tmp_path, text.replace(f", {target}]", "]"))


def test_a_target_must_take_the_variants_asked_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.target("openvino"), "precisions", frozenset({"fp32"}))
    text = LEAST.replace("[onnxruntime]", "[onnxruntime, openvino]") + "variants: [fp32, fp16]\n"
    (problem,) = problems(tmp_path, text)
    assert problem.splitlines() == [
        "4:24: targets[1]: openvino cannot take variant 'fp16' (fp16)",
        "hint: name those that it takes: `openvino: {variants: [fp32]}`",
    ]
    load_text(tmp_path, text.replace("openvino]", "{openvino: {variants: [fp32]}}]"))
    (problem,) = problems(tmp_path, LEAST.replace("onnxruntime", "openvino") + "variants: [fp16]\n")
    assert problem.splitlines()[1] == "hint: openvino takes fp32"


def test_options_of_the_frontend_are_checked_where_the_format_is_named(tmp_path: Path) -> None:
    options = "{path: m.onnx, options: {no_such_option: 1}}"
    assert load_text(tmp_path, LEAST.replace("m.onnx", options)).model.options == {"no_such_option": 1}
    named = options.replace("{path", "{format: onnx, path")
    assert problems(tmp_path, LEAST.replace("m.onnx", named))[0].startswith(
        "3:47: model.options.no_such_option: unknown key"
    )


def test_a_recipe_made_in_code_is_checked_by_the_same_rules(tmp_path: Path) -> None:
    recipe = load_text(tmp_path, CONTRACT)
    assert list(check(recipe)) == []
    broken = msgspec.structs.replace(recipe, targets=recipe.targets[:1], variants=recipe.variants[:1])
    assert [where for where, _, _ in check(broken)] == [
        ("gates", "verified", 0),
        ("waivers", 0, "target"),
        ("waivers", 0, "variant"),
    ]


def test_whatever_a_file_says_a_problem_is_one_short_line(tmp_path: Path) -> None:
    model = '{path: m.onnx, inputs: {a: "int8[' + 500 * "x\\n" + ']"}}'
    (problem,) = problems(tmp_path, LEAST.replace("m.onnx", model))
    assert "\n" not in problem.partition("\nhint")[0]
    assert len(problem) < 500


# ---- nothing but a recipe or a RecipeError


def fuzzed() -> Iterator[str]:
    words = re.findall(r"\w+|[^\w\s]|\s+", CONTRACT)
    yield from words
    yield from [
        "&a ",
        "*a",
        "!!x ",
        "<<",
        "\t",
        "null",
        "1e999",
        "[",
        "{",
        "'",
        '"',
        "|",
        "\n  ",
        "- ",
        ": ",
        "\x00",
        "é",
    ]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(sorted(set(fuzzed()))), max_size=40), st.integers(0, len(CONTRACT)), st.integers(0, 60))
def test_a_mangled_recipe_is_a_recipe_or_a_recipe_error(parts: list[str], at: int, gone: int) -> None:
    text = CONTRACT[:at] + "".join(parts) + CONTRACT[at + gone :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(text)
        try:
            recipe = load(path)
        except RecipeError as error:
            recipe = None
            found = error.problems
        assert recipe is not None or found


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_recipe_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(data)
        with pytest.raises(RecipeError):
            load(path)


# ---- weight


def test_loading_a_recipe_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(CONTRACT)
    code = (
        "import sys; from pathlib import Path; from retarget import recipe, recipe_starter, recipe_schema;"
        f"recipe.load(Path({str(tmp_path / 'recipe.yaml')!r})); recipe_schema.schema();"
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'torch', 'openvino', 'tensorrt', 'tensorrt_rtx'};"
        "sys.exit(f'imported: {heavy & sys.modules.keys()}' if heavy & sys.modules.keys() else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_an_unreadable_recipe_may_hold_is_not_said_to_be_missing(tmp_path: Path) -> None:
    text = "extends: nowhere.yaml\nmodel: {trust: true}\nvariantz: [fp32]\n"
    hint = "hint: `retarget init MODEL` writes a recipe to begin with"
    assert problems(tmp_path, text) == [
        f"1:10: extends: there is no file '{tmp_path}/nowhere.yaml'\n{hint}",
        "3:1: variantz: unknown key\nhint: did you mean 'variants'?",
    ]
