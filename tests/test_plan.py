from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from retarget import catalog, plan
from retarget import recipe as recipes
from retarget.errors import MissingToolchain, RetargetError
from retarget.plan import Invocation, Plan
from retarget.store import Store

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[N,4] x) => (float[N,4] y) {
  y = Relu(x)
}
"""

RECIPE = """
version: 1
name: net
model: {path: net.onnx, shapes: {N: {min: 1, opt: 2, max: 4}}}
variants: [fp32, fp16]
targets: [onnxruntime, openvino]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import onnx

    onnx.save(onnx.parser.parse_model(MODEL), tmp_path / "net.onnx")
    return tmp_path


def plan_of(folder: Path, text: str = RECIPE, **invocation: object) -> Plan:
    (folder / "recipe.yaml").write_text(text)
    store = Store(folder / "store")
    try:
        return plan.make(recipes.load(folder / "recipe.yaml"), store, Invocation(**invocation))  # type: ignore[arg-type]
    finally:
        store.close()


def keys(made: Plan) -> dict[str, str]:
    return {step.id: step.key for step in made.steps}


def test_steps_stand_in_an_order_in_which_they_can_run(folder: Path) -> None:
    made = plan_of(folder)
    seen: set[str] = set()
    for step in made.steps:
        assert {source.id for source in step.inputs.values()} <= seen
        seen.add(step.id)
    assert [step.id for step in made.steps] == [
        "convert",
        "optimize",
        "compare onnx",
        "compare optimized",
        "emit onnxruntime/fp32",
        "compare onnxruntime/fp32",
        "calibrate",
        "quantize fp16",
        "compare fp16",
        "emit onnxruntime/fp16",
        "compare onnxruntime/fp16",
        "emit openvino/fp32",
        "compare openvino/fp32",
        "emit openvino/fp16",
        "compare openvino/fp16",
        "bench",
    ]


LABELLED = RECIPE.replace(
    "[onnxruntime, openvino]", "[coreml: {classifier: {labels: labels.txt}, images: {x: {scale: 1/255}}}]"
)


def test_a_text_file_in_options_is_told_by_its_lines(folder: Path) -> None:
    def emit(text: str) -> tuple[str, object]:
        (folder / "labels.txt").write_text(text)
        made = plan_of(folder, LABELLED)
        assert folder / "labels.txt" in made.inputs
        (step,) = (step for step in made.steps if step.id == "emit coreml/fp32")
        options = step.options["options"]
        assert isinstance(options, dict)
        assert options["images"] == {"x": {"color_layout": "RGB", "scale": "1/255", "bias": 0.0}}
        return step.key, options["classifier"]

    key, told = emit("ant\nbee \n\n")
    assert told == {"labels": ["ant", "bee"], "predicted_feature_name": "classLabel", "probabilities": None}
    assert emit("ant\nbee\n") == (key, told)
    assert emit("ant\ncat\n")[0] != key


@pytest.mark.parametrize(
    ("content", "words"), [(None, "labels.txt: no such file"), (b"\xff\xfe", "labels.txt: is not text in UTF-8")]
)
def test_a_text_file_that_cannot_be_read_is_refused(folder: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (folder / "labels.txt").write_bytes(content)
    with pytest.raises(RetargetError, match=words):
        plan_of(folder, LABELLED)


def test_without_bench_the_rest_is_the_same(folder: Path) -> None:
    whole, without = keys(plan_of(folder)), keys(plan_of(folder, bench=False))
    assert without == {step: key for step, key in whole.items() if step != "bench"}


def test_a_target_whose_fp16_is_storage_does_not_take_the_cast_graph(folder: Path) -> None:
    steps = {step.id: step for step in plan_of(folder).steps}
    assert steps["emit onnxruntime/fp16"].inputs["model"].id == "quantize fp16"
    assert steps["emit openvino/fp16"].inputs["model"].id == "optimize"


def test_no_calibration_where_no_target_needs_it(folder: Path) -> None:
    made = plan_of(folder, RECIPE.replace("[onnxruntime, openvino]", "[openvino]"))
    assert not {"calibrate", "quantize fp16"} & {step.id for step in made.steps}


def test_keys_are_the_same_in_another_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = keys(plan_of(folder))
    other = tmp_path_factory.mktemp("other")
    shutil.copy(folder / "net.onnx", other)
    assert keys(plan_of(other)) == before


def test_only_what_depends_on_a_change_has_a_new_key(folder: Path) -> None:
    before = keys(plan_of(folder))
    after = keys(plan_of(folder, RECIPE + "gates: {parity: {fp16: {snr_db: 30}}}\n"))
    assert {step for step in after if after[step] != before[step]} == {
        "compare fp16",
        "compare onnxruntime/fp16",
        "compare openvino/fp16",
    }


def test_another_model_changes_every_key(folder: Path) -> None:
    import onnx

    before = keys(plan_of(folder))
    onnx.save(onnx.parser.parse_model(MODEL.replace("Relu", "Sigmoid")), folder / "net.onnx")
    after = keys(plan_of(folder))
    assert all(after[step] != before[step] for step in before)


def test_only_builds_a_part(folder: Path) -> None:
    made = plan_of(folder, only=("openvino/fp32",))
    assert [step.id for step in made.steps if step.kind == "emit"] == ["emit openvino/fp32"]
    with pytest.raises(RetargetError, match="no such artifact") as wrong:
        plan_of(folder, only=("openvinoo",))
    assert wrong.value.hint == "did you mean 'openvino'?"


def test_a_missing_model_is_named(folder: Path) -> None:
    with pytest.raises(RetargetError, match=r"nett\.onnx: no such file"):
        plan_of(folder, RECIPE.replace("net.onnx", "nett.onnx"))


def test_another_file_than_the_recipe_demands_is_refused(folder: Path) -> None:
    wrong = RECIPE.replace("path: net.onnx,", f"path: net.onnx, sha256: {'f' * 64},")
    with pytest.raises(RetargetError, match="the recipe demands ffff"):
        plan_of(folder, wrong)


def test_a_missing_toolchain_is_refused_and_an_optional_one_left_out(folder: Path) -> None:
    with pytest.raises(MissingToolchain, match="tensorrt") as missing:
        plan_of(folder, RECIPE.replace("openvino]", "openvino, tensorrt]"))
    assert "pip install" in (missing.value.hint or "")
    made = plan_of(folder, RECIPE.replace("openvino]", "openvino, {tensorrt: {optional: true}}]"))
    assert [(one.target, one.variant) for one in made.left_out] == [("tensorrt", "fp32"), ("tensorrt", "fp16")]


def test_a_file_that_nobody_reads_is_refused(folder: Path) -> None:
    (folder / "net.txt").write_text("not a model")
    with pytest.raises(RetargetError, match="no frontend knows this file"):
        plan_of(folder, RECIPE.replace("net.onnx", "net.txt"))


def test_the_options_of_every_step_are_plain_json(folder: Path) -> None:
    for step in plan_of(folder).steps:
        assert msgspec.json.decode(msgspec.json.encode(step.options)) == step.options


# ---- int8

INT8 = """
version: 1
name: net
model: {path: net.onnx, shapes: {N: {min: 1, opt: 2, max: 4}}}
data: {calibration: rows.npz}
variants: [fp32, fp16, int8, {int8-kl: {precision: int8, method: entropy}}]
targets: [onnxruntime, openvino, {tensorrt_rtx: {optional: true}}]
"""


@pytest.fixture
def with_data(folder: Path) -> Path:
    (folder / "rows.npz").write_bytes(b"rows")  # a plan reads its digest alone
    (folder / "others.npz").write_bytes(b"others")
    return folder


def changed(folder: Path, old: str, new: str, text: str = INT8) -> set[str]:
    """Steps of both recipes that have another key in the second."""
    assert old in text
    before, after = keys(plan_of(folder, text)), keys(plan_of(folder, text.replace(old, new)))
    return {step for step in before.keys() & after.keys() if before[step] != after[step]}


def test_all_schemes_and_int8_variants_share_one_calibration_and_one_equalization(with_data: Path) -> None:
    made = plan_of(with_data, INT8)
    steps = {step.id: step for step in made.steps}
    assert len(steps) == len(made.steps)
    assert [step.id for step in made.steps if step.kind == "optimize"] == ["optimize", "equalize"]
    # fp16 has ranges of the model before equalization.
    calibrations = {step.id: step.inputs["model"].id for step in made.steps if step.kind == "calibrate"}
    assert calibrations == {"calibrate": "optimize", "calibrate equalized": "equalize"}
    quantized = {
        step.id: (step.inputs["model"].id, step.inputs["ranges"].id) for step in made.steps if step.kind == "quantize"
    }
    assert quantized.pop("quantize fp16") == ("optimize", "calibrate")
    assert set(quantized) == {
        f"quantize {variant}/{scheme}" for variant in ("int8", "int8-kl") for scheme in ("u8s8", "openvino", "tensorrt")
    }
    assert set(quantized.values()) == {("equalize", "calibrate equalized")}
    assert steps["emit openvino/int8-kl"].inputs["model"].id == "quantize int8-kl/openvino"


def test_targets_of_one_scheme_share_its_step(with_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.target("openvino"), "schemes", catalog.target("onnxruntime").schemes)
    steps = {step.id: step for step in plan_of(with_data, INT8).steps}
    assert "quantize int8/openvino" not in steps
    assert steps["emit openvino/int8"].inputs["model"] is steps["emit onnxruntime/int8"].inputs["model"]


@pytest.mark.parametrize(
    "setting", ["min_snr_db: 30", "max_drop: 0.01", "keep: [Relu]", "rest: fp16", "correct_bias: false", "method: mse"]
)
def test_another_setting_quantizes_its_variant_again_and_calibrates_nothing(with_data: Path, setting: str) -> None:
    again = changed(with_data, "method: entropy", setting)
    assert again - {"bench"} == {step for step in keys(plan_of(with_data, INT8)) if "int8-kl" in step}


def test_without_equalization_the_ranges_are_of_the_optimized_model(with_data: Path) -> None:
    steps = {step.id: step for step in plan_of(with_data, INT8.replace("method: entropy", "equalize: false")).steps}
    quantize = steps["quantize int8-kl/u8s8"]
    assert (quantize.inputs["model"].id, quantize.inputs["ranges"].id) == ("optimize", "calibrate optimized")
    assert steps["quantize int8/u8s8"].inputs["model"].id == "equalize"
    # fp16 takes all rows, int8 leaves some to be judged on.
    assert steps["calibrate"].key != steps["calibrate optimized"].key


def test_other_calibration_data_calibrate_again(with_data: Path) -> None:
    again = changed(with_data, "rows.npz", "others.npz")
    assert {"calibrate", "equalize", "calibrate equalized", "quantize int8/u8s8"} <= again


def test_selection_data_judge_in_place_of_rows_that_are_held_out(with_data: Path) -> None:
    selection = "rows.npz, selection: others.npz"
    again = changed(with_data, "rows.npz", selection)
    assert {"calibrate equalized", "quantize int8/u8s8", "quantize int8-kl/tensorrt"} <= again
    assert not {"convert", "optimize", "equalize", "calibrate", "quantize fp16"} & again
    text = INT8.replace("rows.npz", selection)
    once_more = changed(with_data, "others.npz", "{path: others.npz, samples: 3}", text)
    assert once_more - {"bench"} == {step for step in keys(plan_of(with_data, text)) if "int8" in step}, (
        "ranges are of the calibration data alone"
    )


def test_a_gate_quantizes_nothing_again(with_data: Path) -> None:
    after = keys(plan_of(with_data, INT8 + "gates: {parity: {int8: {snr_db: 30}}}\n"))
    before = keys(plan_of(with_data, INT8))
    assert {step.split()[0] for step in after if after[step] != before[step]} == {"compare"}


def test_int16_activations_have_a_scheme_and_ranges_as_int8_has(with_data: Path) -> None:
    text = INT8.replace("int8-kl: {precision: int8, method: entropy}", "int16x8: {io: int16}").replace(
        "[onnxruntime, openvino, {tensorrt_rtx: {optional: true}}]", "[tflite]"
    )
    steps = {step.id: step for step in plan_of(with_data, text).steps}
    wide, narrow = steps["quantize int16x8/tflite_16x8"], steps["quantize int8/tflite"]
    assert wide.inputs == narrow.inputs
    told = {step.id: step.options["int8"] for step in (wide, narrow)}
    assert [one["integer_io"] for one in told.values()] == [True, False]  # type: ignore[index,call-overload]
    assert wide.options["io"] == steps["emit tflite/int16x8"].options["io"] == "int16"
    assert [one["method"] for one in told.values()] == ["minmax", "auto"]  # type: ignore[index,call-overload]


def test_float16_of_a_format_that_stores_it_needs_no_step(folder: Path) -> None:
    text = RECIPE.replace("[onnxruntime, openvino]", "[tflite]")
    steps = {step.id: step for step in plan_of(folder, text).steps}
    assert not [step for step in steps if step.startswith(("quantize", "calibrate"))]
    assert steps["emit tflite/fp16"].inputs["model"] is steps["emit tflite/fp32"].inputs["model"]


def test_dynamic_int8_has_a_scale_a_channel_and_no_calibration(folder: Path) -> None:
    text = RECIPE.replace("[fp32, fp16]", "[{int8_dynamic: {keep: [head]}}]").replace(
        "[onnxruntime, openvino]", "[tflite]"
    )
    made = plan_of(folder, text)
    assert not [step for step in made.steps if step.kind == "calibrate"]
    (quantized,) = (step for step in made.steps if step.kind == "quantize")
    assert quantized.id == "quantize int8_dynamic"
    assert quantized.options["weights"] == {"bits": 8, "block": None, "keep": ["head"]}


def test_weights_alone_need_no_calibration_and_are_shared_by_all_targets(folder: Path) -> None:
    text = RECIPE.replace("[fp32, fp16]", "[int8_weights, {int4_weights: {block: 64}}]")
    made = plan_of(folder, text)
    assert not [step for step in made.steps if step.kind == "calibrate"]
    quantized = [step for step in made.steps if step.kind == "quantize"]
    assert [step.id for step in quantized] == ["quantize int8_weights", "quantize int4_weights"]
    assert [step.options["weights"]["block"] for step in quantized] == [32, 64]  # type: ignore[index,call-overload]
    assert changed(folder, "block: 64", "block: 128", text) == {
        step for step in keys(made) if "int4_weights" in step
    } | {"bench"}
