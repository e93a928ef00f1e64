"""A recipe that is written is read as the same."""

import re
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import given, settings
from recipe_texts import CONTRACT, load_text, options_of, valid

from retarget import catalog
from retarget.preprocess import Preprocess
from retarget.recipe import (
    AccuracyGate,
    Code,
    Data,
    Evaluation,
    Fp16,
    Gates,
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
    load,
)
from retarget.recipe_write import dump
from retarget.spec import DTYPES, TensorSpec
from retarget.tolerance import Tolerance

HOME = Path("/home/someone/recipes")
PATHS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
        lambda part: part not in {".", ".."}
    ),
    min_size=1,
    max_size=4,
).map(lambda parts: Path("/", *parts))
PLAIN_PATHS = PATHS.filter(lambda path: re.search(r"\.py:\w+$", str(path)) is None)
FUNCTIONS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True)
CODES = st.builds(lambda path, name: Code(path.with_name(path.name + ".py"), name), PATHS, FUNCTIONS)
SOURCES = st.builds(Source, PLAIN_PATHS) | CODES.map(lambda code: Source(code.file, code.function))
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True)
COUNTS = st.integers(1, 2**31)
SHAPES = st.lists(COUNTS, min_size=3, max_size=3).map(
    lambda sizes: Shape(min=min(sizes), opt=sorted(sizes)[1], max=max(sizes))
)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(-1e300, 1e300) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXTS.filter(lambda key: key not in {"", "<<"}), inner, max_size=3)
    ),
    max_leaves=5,
)
BOUNDS = st.none() | st.floats(0, 1)
TOLERANCES = st.builds(
    lambda first, rest: Tolerance(**{"snr_db": 1.0 if set(rest.values()) == {None} else first, **rest}),
    BOUNDS,
    st.fixed_dictionaries({"max_abs": BOUNDS, "mean_abs": BOUNDS, "cosine": BOUNDS, "top1_agreement": BOUNDS}),
)
SIZES = st.none() | COUNTS | st.tuples(COUNTS, COUNTS)
NUMBERS = st.floats(0.01, 1e6) | st.tuples(st.floats(-9, -0.1), st.floats(0.1, 9), st.floats(1, 2))
PREPROCESS = st.builds(
    Preprocess,
    resize=SIZES,
    crop=SIZES,
    color=st.sampled_from(["rgb", "bgr"]),
    layout=st.sampled_from(["nchw", "nhwc"]),
    scale=st.floats(0.001, 9) | st.just("1/255"),
    mean=NUMBERS,
    std=NUMBERS,
) | st.builds(Preprocess, sample_rate=COUNTS, length=st.none() | COUNTS)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    symbols = draw(st.lists(FUNCTIONS, unique=True, max_size=3))
    dtypes = draw(st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=2))
    input_names = draw(st.lists(TEXTS.filter(lambda key: key not in {"", "<<"}), unique=True, min_size=2, max_size=2))
    names = draw(st.lists(NAMES, unique_by=str.casefold, min_size=1, max_size=3))
    variants = []
    for name in names:
        if name == "fp32" or (name != "fp16" and draw(st.booleans())):
            variants.append(Variant(name=name, precision="fp32"))
        else:
            options = Fp16(io="float16") if draw(st.booleans()) else Fp16()
            variants.append(Variant(name=name, precision="fp16", options=options))
    targets = []
    for target in draw(st.lists(st.sampled_from(sorted(catalog.TARGETS)), unique=True, min_size=1)):
        some = draw(st.none() | st.lists(st.sampled_from(names), min_size=1, unique=True).map(tuple))
        given_options = {"compute_capability": ["8.9"]} if target == "tensorrt_rtx" and draw(st.booleans()) else {}
        targets.append(
            TargetEntry(
                name=target, variants=some, optional=draw(st.booleans()), options=options_of(target, **given_options)
            )
        )
    evaluation = Evaluation(
        path=draw(SOURCES),
        labels=draw(TEXTS),
        metric=draw(st.sampled_from(["top1", "top5"]) | CODES),  # type: ignore[arg-type]
    )
    passes = st.lists(
        st.builds(PassEntry, name=st.sampled_from(sorted(catalog.PASSES)), options=st.dictionaries(NAMES, JSON_VALUES)),
        max_size=2,
    ).map(tuple)
    return Recipe(
        version=1,
        name=draw(NAMES),
        model=Model(
            path=draw(PATHS),
            factory=draw(st.none() | CODES),
            inputs={name: TensorSpec(name, dtype, tuple(symbols)).type for name, dtype in zip(input_names, dtypes)},  # noqa: B905
            shapes={symbol: draw(SHAPES | COUNTS) for symbol in symbols},
            sha256=draw(st.none() | st.from_regex("[0-9a-f]{64}", fullmatch=True)),
            trust=draw(st.booleans()),
            options=draw(st.dictionaries(TEXTS.filter(lambda key: key not in {"", "<<"}), JSON_VALUES, max_size=2)),
        ),
        outputs=tuple(draw(st.lists(TEXTS, unique=True, max_size=2))),
        data=Data(
            samples=draw(st.none() | st.builds(Samples, path=SOURCES, samples=COUNTS)),
            calibration=draw(st.none() | st.builds(Samples, synthetic=st.just("normal"), samples=st.none() | COUNTS)),
            selection=draw(st.none() | st.builds(Samples, path=SOURCES)),
            evaluation=evaluation,
            preprocess=draw(st.none() | PREPROCESS),
        ),
        optimize=draw(st.just("aggressive") | passes),  # type: ignore[arg-type]
        variants=tuple(variants),
        targets=tuple(targets),
        gates=Gates(
            parity=draw(st.dictionaries(st.sampled_from([*names, "int8"]), TOLERANCES)),
            accuracy=AccuracyGate(max_drop=draw(st.floats(0, 1))),
            latency=draw(st.none() | st.builds(LatencyGate, max_ratio=st.floats(1e-6, 1e6))),
            verified=(targets[0].name,),
        ),
        waivers=(
            Waiver(
                gate="parity",
                target=targets[0].name,
                variant=draw(st.none() | st.sampled_from(names)),
                reason=draw(TEXTS.filter(bool)),
                expires=draw(st.dates()),
            ),
        ),
    )


@settings(max_examples=60, deadline=None)
@given(recipes())
def test_a_written_recipe_is_read_as_the_same(recipe: Recipe) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        for relative_to in (path.parent, None):
            text = dump(recipe, relative_to)
            path.write_text(text)
            assert load(path) == recipe
            assert dump(load(path), relative_to) == text
    assert valid(text)


def test_paths_are_written_relative_to_where_the_text_will_stand(tmp_path: Path) -> None:
    recipe = load_text(tmp_path, CONTRACT)
    text = dump(recipe, tmp_path / "build" / "digits")
    assert "path: ../../digits_cnn.safetensors\n" in text
    assert "factory: ../../model.py:build\n" in text
    assert str(tmp_path) not in text
    assert str(tmp_path / "digits_cnn.safetensors") in dump(recipe)
