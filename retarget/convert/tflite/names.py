"""Names and dimensions that a user can type, from what converters left. Syntax and library of Python 3.8."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from retarget.convert.tensorflow.names import Border
from retarget.convert.tflite.read import Signature, Subgraph


def cleaned(name: str, otherwise: str) -> str:
    """``serving_default_x:0`` → ``x``; of a fused operator the first name; ``otherwise`` where nothing is left.

    >>> cleaned("serving_default_image:0", "input"), cleaned("StatefulPartitionedCall:1", "output_1")
    ('image', 'output_1')
    """
    name = name.split(";")[0]
    name, _, port = name.partition(":")
    name = re.sub(r"^serving_default[_/]", "", name)
    if re.match(r"(Stateful)?PartitionedCall(_\d+)?$", name) or not name:
        return otherwise
    name = re.sub(r"[^\w/.\-]", "_", name)
    return f"{name}_{port}" if port.isdigit() and int(port) else name


def borders(graph: Subgraph, signature: Signature) -> tuple[tuple[Border, ...], tuple[str, ...]]:
    """The inputs, and the names of the outputs, of ``graph`` in its order, no two alike."""
    inputs = [
        signature.inputs.get(index) or cleaned(graph.tensors[index].name, numbered("input", at, graph.inputs))
        for at, index in enumerate(graph.inputs)
    ]
    outputs = [
        signature.outputs.get(index) or cleaned(graph.tensors[index].name, numbered("output", at, graph.outputs))
        for at, index in enumerate(graph.outputs)
    ]
    # A signature may call an input and an output the same.
    outputs = [f"{name}_out" if name in inputs else name for name in outputs]
    every = distinct([*inputs, *outputs])
    tensors = [graph.tensors[index] for index in graph.inputs]
    return (
        tuple(
            Border(name, tensor.dtype, tuple(None if size < 0 else size for size in tensor.shape))
            for name, tensor in zip(every, tensors)
        ),
        tuple(every[len(inputs) :]),
    )


def numbered(word: str, at: int, of: Sequence[int]) -> str:
    """``output`` for the only one, else ``output_0`` and so on."""
    return word if len(of) == 1 else f"{word}_{at}"


def distinct(names: Iterable[str]) -> list[str]:
    """``names``, with a number behind each that was there before."""
    taken: set[str] = set()
    found = []
    for name in names:
        number, free = 1, name
        while free in taken:
            number += 1
            free = f"{name}_{number}"
        taken.add(free)
        found.append(free)
    return found
