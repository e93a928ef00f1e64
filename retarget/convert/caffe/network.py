"""A prototxt and its caffemodel as one net: the layers of the test phase in their order, with their weights.

The rules are those of Caffe's own ``net.cpp``: layers run in the order of the file, a bottom must have been made
before, a top that exists already must be the bottom at its place. What Caffe would refuse is refused here.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retarget.convert.caffe import blobs, fields, files, text, weights
from retarget.convert.caffe.deploy import deploy
from retarget.convert.caffe.net import Blob, Layer, Message, Net
from retarget.convert.caffe.upgrade import upgrade
from retarget.convert.caffe.weights import SavedLayer, Weights
from retarget.errors import RetargetError

_SHOWN = 5
"""Names that a message lists."""


def read(
    path: Path,
    caffemodel: Path | None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    stages: Sequence[str] = (),
    level: int | None = None,
    partial: bool = False,
) -> Net:
    """The net of the prototxt at ``path`` in the test phase, with the weights of ``caffemodel``.

    Where ``path`` is a caffemodel, or a folder of both files, the prototxt is the one beside it.
    ``shapes`` are those of inputs, used where the file does not say them. ``stages`` and ``level``
    are the state that the rules of layers are held against. ``partial``: for a look at it, weights may be missing and
    shapes not be known. Raises ``RetargetError`` for what Caffe would refuse.
    """
    prototxt, caffemodel = files.pair(path, caffemodel)
    root = text.read(prototxt)
    _refuse_solver(root, prototxt)
    state = _State.of(root, stages, level)
    saved = weights.read(caffemodel) if caffemodel is not None else None
    layers: list[Layer] = []
    left_out: list[Layer] = []
    for message in upgrade(root):
        (layers if state.includes(message) else left_out).append(_layer(message))
    if not layers:
        why = "all of its layers are for the training phase" if left_out else "there are no layers in it"
        raise RetargetError(f"{prototxt.name}: {why}", "give the prototxt of a net, with `layer { … }`")
    layers = _with_weights(layers, saved)
    deployed = deploy(layers, left_out, shapes or {})
    outputs = _connect(deployed.inputs, deployed.layers, deployed.unwanted)
    if not outputs:
        raise RetargetError(f"{prototxt.name}: the net has no outputs", "each blob is taken by another layer")
    needed = _leading_to(outputs, deployed.layers)
    if not partial:
        fields.refuse_unknown(needed)
        _check_weights(needed, prototxt, saved)
    inputs, unknown = _shaped(deployed.inputs, shapes or {})
    if unknown and not partial:
        name, reason = next(iter(unknown.items()))
        raise RetargetError(reason, f"give it, with its sizes for C, H and W: `--input '{name}=float32[1,C,H,W]'`")
    return Net(
        name=root.word("name"),
        place=root.place,
        inputs=inputs,
        layers=_named(needed),
        outputs=outputs,
        transform=deployed.transform,
        notes=(
            *deployed.notes,
            *_preparation(deployed.transform, prototxt),
            *unknown.values(),
            *_unused(layers, left_out, saved),
        ),
    )


def _refuse_solver(root: Message, path: Path) -> None:
    if "layer" in root or "layers" in root or not any(name in root for name in ("base_lr", "lr_policy", "net")):
        return
    named = root.word("net") or root.word("train_net")
    raise RetargetError(
        f"{path.name}: this is a solver, which says how a net is trained",
        f"give the net that it names: {named}" if named else "give the prototxt of the net",
    )


# ---- which layers


@dataclass(frozen=True)
class _State:
    """What the rules of layers are held against; the phase is TEST."""

    level: int
    stages: frozenset[str]

    @classmethod
    def of(cls, root: Message, stages: Sequence[str], level: int | None) -> _State:
        own = root.message("state")
        return cls(own.integer("level") if level is None else level, frozenset((*own.words("stage"), *stages)))

    def includes(self, layer: Message) -> bool:
        include, exclude = layer.messages("include"), layer.messages("exclude")
        if include and exclude:
            raise RetargetError(
                f"{layer.place}: layer '{layer.word('name')}' has rules of both `include` and `exclude`",
                "Caffe takes one kind: remove the other",
            )
        if include:
            return any(self._meets(rule) for rule in include)
        return not any(self._meets(rule) for rule in exclude)

    def _meets(self, rule: Message) -> bool:
        if "phase" in rule and rule.word("phase") not in ("TEST", "1"):
            return False
        if "min_level" in rule and self.level < rule.integer("min_level"):
            return False
        if "max_level" in rule and self.level > rule.integer("max_level"):
            return False
        return self.stages.issuperset(rule.words("stage")) and self.stages.isdisjoint(rule.words("not_stage"))


def _layer(message: Message) -> Layer:
    layer = Layer(message.word("name"), message.word("type"), message.words("bottom"), message.words("top"), message)
    if not layer.type:
        raise RetargetError(
            f"{message.place}: layer '{layer.name}' has no type", 'write one, such as `type: "Convolution"`'
        )
    return layer


# ---- weights


def _with_weights(layers: Sequence[Layer], saved: Weights | None) -> list[Layer]:
    """``layers`` with what the caffemodel has for them, or for those that they share weights with."""
    if saved is None:
        return list(layers)
    by_name: dict[str, SavedLayer] = {}
    for each in saved.layers:
        if each.blobs:
            if each.name in by_name:
                raise RetargetError(
                    f"{saved.path.name}: two layers are called '{each.name}', both with weights",
                    "Caffe could not tell them apart either: give the layers names of their own",
                )
            by_name[each.name] = each
    taken: dict[str, str] = {}
    shared: dict[str, Blob] = {}
    found = []
    for layer in layers:
        own = by_name[layer.name].blobs if layer.name in by_name else ()
        names = [each.word("name") for each in layer.message.messages("param")]
        if own and layer.name in taken and blobs.expected(layer):
            raise RetargetError(
                f"{layer.place}: has the name of the layer in {taken[layer.name]}, and both have weights",
                "give them names of their own: the caffemodel has its weights by the name of the layer",
            )
        if not own and names and all(name in shared for name in names):
            own = tuple(shared[name] for name in names)
        shared |= {name: blob for name, blob in zip(names, own, strict=False) if name}
        taken.setdefault(layer.name, layer.message.place)
        found.append(dataclasses.replace(layer, blobs=own))
    return found


def _check_weights(layers: Sequence[Layer], prototxt: Path, saved: Weights | None) -> None:
    for layer in layers:
        expected = blobs.expected(layer)
        if not expected or len(layer.blobs) == len(expected):
            continue
        wanted = f"{len(expected)} ({', '.join(expected)})"
        if saved is None:
            raise RetargetError(
                f"{layer.place}: its weights stand in a caffemodel, and {_why_none(prototxt)}",
                f"give both: `{prototxt.name},NET.caffemodel`",
            )
        if layer.blobs:
            raise RetargetError(
                f"{layer.place}: {saved.path.name} has {len(layer.blobs)} blobs for it, and it takes {wanted}",
                "the prototxt must be the one that the net was trained with",
            )
        raise RetargetError(
            f"{layer.place}: {saved.path.name} has no weights for it; it takes {wanted}",
            _near(
                layer.name,
                (each.name for each in saved.layers if each.blobs),
                "weights belong to the layer of the same name: is it the caffemodel of this net?",
            ),
        )


def _why_none(prototxt: Path) -> str:
    choice = files.caffemodels(prototxt.parent)
    return f"there are several beside it: {files.listed(choice)}" if choice else "there is none beside it"


def _unused(layers: Sequence[Layer], left_out: Sequence[Layer], saved: Weights | None) -> list[str]:
    """A note on weights that no layer of the prototxt takes."""
    known = {layer.name for layer in (*layers, *left_out)}
    names = [each.name for each in saved.layers if each.blobs and each.name not in known] if saved else []
    if not names:
        return []
    return [f"no layer takes the weights that the caffemodel has of {_listed(names)}"]


# ---- connections


def _shaped(
    inputs: Mapping[str, tuple[int, ...] | str], given: Mapping[str, Sequence[int]]
) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The shapes of inputs, and for those that have none why."""
    if strange := [name for name in given if name not in inputs]:
        raise RetargetError(f"the net has no input '{strange[0]}'", f"its inputs: {_listed(list(inputs)) or 'none'}")
    shapes = {name: tuple(given.get(name, ())) if isinstance(shape, str) else shape for name, shape in inputs.items()}
    return shapes, {name: why for name, why in inputs.items() if isinstance(why, str) and name not in given}


def _connect(inputs: Iterable[str], layers: Sequence[Layer], unwanted: frozenset[str]) -> tuple[str, ...]:
    """The blobs that no layer takes, in the order in which they are made."""
    made: dict[str, str] = dict.fromkeys(inputs, "an input")
    open_blobs: dict[str, None] = {}
    for index, layer in enumerate(layers):
        for bottom in layer.bottoms:
            if bottom not in made:
                raise _no_bottom(layer, bottom, layers[index:], made)
            open_blobs.pop(bottom, None)
        for position, top in enumerate(layer.tops):
            if top in made and layer.bottoms[position : position + 1] != (top,):
                raise RetargetError(
                    f"{layer.place}: makes '{top}', which {made[top]} is or makes already",
                    "give it another name; only a layer that takes a blob at the same place may make it again",
                )
            made[top] = f"layer '{layer.name}' ({layer.message.place})"
            open_blobs[top] = None
    return tuple(blob for blob in open_blobs if blob not in unwanted)


def _leading_to(outputs: Iterable[str], layers: Sequence[Layer]) -> list[Layer]:
    """``layers`` that ``outputs`` are made from: no head that only helps to train, nothing that is silenced."""
    needed = set(outputs)
    kept = []
    for layer in reversed(layers):
        if needed.intersection(layer.tops):
            needed.difference_update(layer.tops)
            needed.update(layer.bottoms)
            kept.append(layer)
    return kept[::-1]


def _no_bottom(layer: Layer, bottom: str, rest: Sequence[Layer], made: Mapping[str, str]) -> RetargetError:
    makers = [each for each in rest if bottom in each.tops and bottom not in each.bottoms]
    if not makers:
        return RetargetError(
            f"{layer.place}: takes '{bottom}', which nothing makes",
            _near(bottom, made, "see whether a layer or an input is missing above it"),
        )
    # What is made from what ``layer`` makes: a circle where ``bottom`` is.
    takers: dict[str, list[Layer]] = {}
    for each in rest:
        for taken in each.bottoms:
            takers.setdefault(taken, []).append(each)
    reached, ahead = set(layer.tops), list(layer.tops)
    while ahead:
        fresh = {top for each in takers.pop(ahead.pop(), ()) for top in each.tops} - reached
        reached |= fresh
        ahead += fresh
    if bottom in reached:
        return RetargetError(
            f"{layer.place}: takes '{bottom}', which is made from what it makes itself: a circle",
            f"'{bottom}' is made by layer '{makers[0].name}' ({makers[0].message.place})",
        )
    return RetargetError(
        f"{layer.place}: takes '{bottom}', which is made further down, by layer '{makers[0].name}' "
        f"({makers[0].message.place})",
        "Caffe runs layers in the order of the file: move the layer that makes it up",
    )


def _named(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """``layers`` with names that are not empty, each once: Caffe itself does not ask for that."""
    used: set[str] = set()
    numbers: Counter[str] = Counter()
    named = []
    for layer in layers:
        name = start = layer.name or (layer.tops[0] if layer.tops else layer.type)
        while name in used:
            numbers[start] += 1
            name = f"{start}_{numbers[start] + 1}"
        used.add(name)
        named.append(layer if name == layer.name else dataclasses.replace(layer, name=name))
    return tuple(named)


def _preparation(transform: Message | None, prototxt: Path) -> list[str]:
    """A note on what the data layer did to pixels, in the words of a recipe; Caffe subtracts first and then scales."""
    if transform is None:
        return []
    means, scale, file = transform.numbers("mean_value"), transform.number("scale", 1.0), transform.word("mean_file")
    notes = []
    if file:
        beside = prototxt.parent / Path(file).name
        if beside.is_file():
            means = tuple(round(float(mean), 3) for mean in weights.read_mean(beside).mean((1, 2)))
            notes.append(f"the mean image {file} counts by its means over each channel")
        else:
            notes.append(f"the net was trained on pixels less {file}: give its means by channel in `normalize`")
    parts = []
    if means:
        parts.append(f"mean: {means[0] if len(means) == 1 else list(means)}")
    if scale not in (0, 1):
        parts.append(f"std: {1 / scale:.9g}")
    if parts:
        notes.append(f"the net was trained on prepared pixels: `normalize: {{{', '.join(parts)}}}` builds that in")
    return notes


def _near(word: str, names: Iterable[str], otherwise: str) -> str:
    """A hint for a name that does not exist; nets may have thousands of them."""
    near = difflib.get_close_matches(word, list(itertools.islice(names, 1000)), n=1)
    return f"did you mean '{near[0]}'?" if near else otherwise


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
