"""The commented recipe that `retarget init` writes: what is known filled in, every other key shown as a comment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from retarget import catalog
from retarget.recipe_nodes import write_path
from retarget.recipe_write import scalar
from retarget.spec import DEFAULT_RANGE, DimRange, TensorSpec, symbols

IMAGE = DimRange(32, 224, 256)
"""A guess at the height and width of images, where 1 to 8 are no sizes for a network."""

COLUMN = 40
"""Where comments start, if the line is shorter."""


def starter(
    model: Path,
    *,
    weights: Path | None = None,
    frontend: str,
    inputs: Sequence[TensorSpec],
    shapes: Mapping[str, DimRange],
    targets: Sequence[str],
    folder: Path,
) -> str:
    """A recipe for ``model`` that ``load`` reads when it stands in ``folder``.

    ``inputs`` may be empty where the file does not say them; a dimension that ``shapes`` lacks gets the default.
    Taking away the ``# `` before a key puts that key into force.
    """
    lines = [
        "# What to build from a trained model, and what must hold. `retarget build` with this file builds it.",
        "# A key behind a # shows what else there is.",
        "",
        *_model(model, weights, frontend, inputs, shapes, folder),
        "",
        *_data(),
        "",
        *_build(targets),
        "",
        *_gates(targets),
    ]
    return "\n".join(lines) + "\n"


def _line(text: str, comment: str) -> str:
    return f"{text.ljust(COLUMN - 2)}  # {comment}"


def _model(
    model: Path,
    weights: Path | None,
    frontend: str,
    inputs: Sequence[TensorSpec],
    shapes: Mapping[str, DimRange],
    folder: Path,
) -> Iterator[str]:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", model.stem).strip("-_.") or "model"
    yield _line("version: 1", "of the recipe's language")
    yield _line(f"name: {scalar(name)}", "names the report and the build folder")
    yield _line("# extends: base.yaml", "keys of another recipe hold where this one says nothing")
    yield "model:"
    yield _line(f"  path: {scalar(write_path(model, folder))}", "every path is relative to this file")
    off = "" if weights else "# "
    second = scalar(write_path(weights, folder)) if weights else "net.caffemodel"
    yield _line(f"  {off}weights: {second}", "its second file; found beside it if absent")
    yield _line(f"  format: {scalar(frontend)}", "the frontend; found from the content if absent")
    yield _line("  # factory: model.py:build", "code that builds the module a state dict belongs to")
    yield _line("  # signature: serving_default", "which function of a SavedModel")
    yield _line("  # io_layout: nchw", "axes of images in and out; the source's own if absent")
    yield _line("  # normalize: {scale: 1/255, mean: 0.5, std: 0.5}", "what the model itself does to raw pixels")
    off = "" if inputs else "# "
    yield _line(f"  {off}inputs:", "DTYPE[SHAPE]; a name in the shape is a symbolic dimension")
    for spec in inputs or [TensorSpec("image", "float32", ("N", 3, 224, 224))]:
        yield f"  {off}  {scalar(spec.name)}: {scalar(spec.type)}"
    names = symbols(inputs) if inputs else ("N",)
    if not names:
        names, off = ("N",), "# "
    yield _line(f"  {off}shapes:", "sizes of each symbolic dimension, or one fixed size")
    for symbol in names:
        sizes = shapes.get(symbol) or (IMAGE if symbol in _within_images(inputs) else DEFAULT_RANGE)
        yield f"  {off}  {scalar(symbol)}: {{min: {sizes.min}, opt: {sizes.opt}, max: {sizes.max}}}"
    yield _line(f"  # sha256: {32 * '0a'}", "refuse any other file")
    yield _line("  # trust: true", "allow code inside the model file to run")
    yield _line("  # options: {}", "the frontend's own options")
    yield _line("# outputs: [logits]", "names for the model's outputs, in order")


def _within_images(inputs: Sequence[TensorSpec]) -> set[int | str]:
    """The dimensions of inputs of four and more, the first of each aside."""
    return {dim for spec in inputs if len(spec.shape) > 3 for dim in spec.shape[1:]}


def _data() -> Iterator[str]:
    yield _line("# data:", "each a path or {path: ..}: .npz, a folder of .npy or images, or file.py:function")
    yield _line("#   samples: samples.npz", "for parity; inputs are generated without it")
    yield _line("#   calibration:", "for the ranges that decide what fp16 can hold")
    yield "#     path: calibration.npz"
    yield _line("#     samples: 256", "use only so many, from the start")
    yield _line("#   selection: selection.npz", "for the search for what stays float in int8")
    yield _line("#   evaluation:", "for accuracy")
    yield "#     path: evaluation.npz"
    yield _line("#     labels: label", "the array that holds the labels")
    yield _line("#     metric: top1", "top1, top5 or file.py:function")
    yield "#     samples: 1000"
    yield _line("#   preprocess:", "how images become inputs, in every set that is a folder of them")
    yield _line("#     resize: 256", "the shorter side, or [height, width]")
    yield _line("#     crop: 224", "from the centre")
    yield _line("#     scale: 1/255", "then mean is subtracted, and std divided by")
    yield "#     mean: [0.485, 0.456, 0.406]"
    yield "#     std: [0.229, 0.224, 0.225]"


def _build(targets: Sequence[str]) -> Iterator[str]:
    yield _line("optimize: default", "none, default, aggressive, or a list of passes")
    yield _line("variants:", "each a precision, or {name: settings}")
    yield "  - fp32"
    yield "  - fp16"
    yield _line("  # - int8:", "needs data.calibration")
    yield _line("  #     method: mse", "how clipping ranges are found: auto, mse, minmax, percentile or entropy")
    yield _line("  #     max_drop: 0.01", "return nodes to float until the metric loses no more")
    yield _line("  # - int4_weights", "weights alone; also int8_weights, and palette6 for Core ML")
    yield _line("  # - half:", "a variant with a name of its own")
    yield "  #     precision: fp16"
    yield _line("  #     io: float16", "type of inputs and outputs; float32 if absent")
    yield _line("targets:", "each a name, or {name: settings}")
    yield from (f"  - {name}" for name in targets)
    for name in catalog.TARGETS:
        if name not in targets:
            yield f"  # - {name}:"
            yield _line("  #     variants: [fp32]", "all variants if absent")
            yield _line("  #     optional: true", "skip it, with the reason, where its toolchain cannot be had")


def _gates(targets: Sequence[str]) -> Iterator[str]:
    yield _line("# gates:", "bounds that fail the build")
    yield _line("#   parity:", "by variant or precision, against the source framework's outputs")
    yield _line("#     fp32: {max_abs: 1.0e-4, mean_abs: 1.0e-5}", "absolute differences")
    yield _line("#     fp16: {snr_db: 40, cosine: 0.999, top1_agreement: 0.99}", "least values")
    yield _line("#   accuracy: {max_drop: 0.01}", "needs data.evaluation")
    yield _line("#   latency: {max_ratio: 1.10}", "against a baseline report")
    executed = next((name for name in targets if catalog.target(name).interpreted is None), targets[0])
    yield _line(f"#   verified: [{executed}]", "must have been executed, not only built")
    yield _line("# toolchains:", "where a frontend's framework is, if not beside retarget")
    yield "#   pytorch: {python: /envs/train/bin/python}"
    yield _line("# waivers:", "broken gates that are accepted until a date")
    yield f"#   - {{gate: parity, target: {targets[0]}, variant: fp16, reason: known, expires: 2027-01-31}}"
