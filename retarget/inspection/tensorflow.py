"""TensorFlow models: their graphs and signatures, read from protobuf without TensorFlow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from retarget.convert.tensorflow import forms
from retarget.convert.tensorflow.names import Border, choose_signature
from retarget.errors import DAMAGED, RetargetError
from retarget.inspection import borders
from retarget.inspection import tensorflow_graph as graphs
from retarget.inspection.result import Inspection, most_first
from retarget.protobuf import WireError, mapped

_SERVE = "serve"
_SHOWN = 8
"""Names that a note lists."""


def inspect(path: Path, form: str, parts: Mapping[str, Path]) -> Inspection:
    """What the model says, which is of ``form``. Raises ``RetargetError`` for what is damaged."""
    place = path
    if path.is_dir() and form == forms.SAVED_MODEL:
        place = next(path / name for name in forms.SAVED_MODEL_FILES if (path / name).is_file())
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    elif form == forms.CHECKPOINT:
        prefix = forms.checkpoint_prefix(path)
        files = forms.checkpoint_files(prefix) if prefix else {}
        if "graph" not in files:
            return _no_graph(path, sum(file.stat().st_size for file in {path, *parts.values()} if file.is_file()))
        place, size = files["graph"], sum(file.stat().st_size for file in files.values())
    else:
        size = path.stat().st_size
    if forms.is_text(place):
        return Inspection(
            path=str(path), what=_what(form), bytes=size, notes=(f"{place.name} is text, which is not listed",)
        )
    try:
        with mapped(place) as content:
            if form == forms.SAVED_MODEL:
                return _saved_model(path, graphs.saved(content), size)
            if form == forms.CHECKPOINT:
                return _checkpoint(path, graphs.meta(content), size)
            return _graph(path, form, graphs.frozen(content), None, size, [])
    except WireError as error:
        raise RetargetError(f"{place}: not a readable {form} ({error})", DAMAGED) from None


def _what(form: str) -> str:
    return form if "TensorFlow" in form else f"{form} of TensorFlow"


def _no_graph(path: Path, size: int) -> Inspection:
    return Inspection(
        path=str(path),
        what=forms.CHECKPOINT,
        bytes=size,
        notes=(
            "these are weights alone: "
            + ("give the SavedModel around them" if path.parent.name == "variables" else "the .meta file is missing"),
        ),
    )


def _saved_model(path: Path, held: Sequence[graphs.Meta], size: int) -> Inspection:
    serving = [each for each in held if _SERVE in each.tags] or list(held)
    if not serving:
        raise RetargetError(f"{path}: holds no graph", DAMAGED)
    chosen = serving[0]
    signatures = {name: each for name, each in chosen.signatures.items() if not name.startswith("__")}
    notes = [f"signature '{name}': {each}" for name, each in sorted(signatures.items())]
    if len(held) > 1:
        tags = "; ".join(", ".join(each.tags) or "no tag" for each in held)
        notes.append(f"holds {len(held)} graphs, by their tags: {tags}")
    try:
        signature = signatures[choose_signature(list(signatures), None, str(path))]
    except RetargetError as error:
        notes.insert(0, error.hint or error.message)
        signature = None
    form = f"{forms.SAVED_MODEL} of TensorFlow {'2' if chosen.objects else '1'}"
    version = f"TensorFlow {chosen.version}" if chosen.version else None
    return _graph(path, form, chosen.graph, signature, size, notes, version)


def _checkpoint(path: Path, chosen: graphs.Meta, size: int) -> Inspection:
    version = f"TensorFlow {chosen.version}" if chosen.version else None
    return _graph(path, forms.CHECKPOINT, chosen.graph, None, size, [], version)


def _graph(
    path: Path,
    form: str,
    graph: graphs.Graph,
    signature: graphs.Signature | None,
    size: int,
    notes: list[str],
    version: str | None = None,
) -> Inspection:
    """``graph`` between the inputs and outputs of ``signature``, or from its placeholders on."""
    outputs: tuple[Border, ...] = ()
    if signature is not None:
        inputs, outputs = signature.inputs, signature.outputs
        nodes = graph.reached(tensor.partition(":")[0] for tensor in signature.tensors)
    elif form.startswith(forms.SAVED_MODEL):
        inputs, nodes = (), list(graph.nodes.values())
    else:
        inputs, ends = graph.placeholders(), graph.ends()
        nodes = graph.reached(ends or graph.nodes)
        if ends:
            shown = ", ".join(ends[:_SHOWN]) + (f" and {len(ends) - _SHOWN} more" if len(ends) > _SHOWN else "")
            notes.append(f"no other node takes what these give: {shown}")
    given, said = borders.specs(inputs, "input", str(path))
    made, more = borders.specs(outputs, "output", str(path))
    weights: Counter[str] = Counter()
    parameters = 0
    for dtype, shape in graph.weights(nodes):
        weights[dtype] += borders.size_of(dtype, math.prod(shape))
        parameters += math.prod(shape)
    ops = {op: count for op, count in graph.ops(nodes).items() if op not in graphs.CONSTANTS}
    return Inspection(
        path=str(path),
        what=_what(form),
        version=version,
        bytes=size,
        inputs=given,
        outputs=made,
        nodes=sum(ops.values()),
        ops=most_first(ops),
        parameters=parameters,
        weights=most_first(weights),
        notes=(*said, *more, *notes),
    )
