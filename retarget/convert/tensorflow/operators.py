"""What the operators of a graph do beyond computing: files that they read or write when the graph runs.

A graph is data, and yet to run it is to run what it says. Found before anything of it is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from retarget.errors import RetargetError, Unsupported

if TYPE_CHECKING:
    from tensorflow.core.framework.graph_pb2 import GraphDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef

_FILES = re.compile(
    r"File|Save|Restore|Checkpoint|Reader|Dataset|Iterator|Summary(?:Writer|Db)|Write\w*Summary|^Debug|RemapMatrix"
    r"|VocabRemapping"
)
"""Operators that touch files, or feed graphs from what does."""

_SAVER = frozenset({"Save", "SaveV2", "SaveSlices", "MergeV2Checkpoints"})
_RESTORER = frozenset({"Restore", "RestoreV2", "RestoreSlice"})
"""What each graph with variables has, to write them and read them; no harm where nothing else leads there."""

_HARMLESS = frozenset({"ShardedFilename", "ShardedFilespec"})

_REASONS = (
    (re.compile(r"PyFunc"), "calls Python code, which is not in the file"),
    (re.compile(r"Table"), "looks up a table"),
    (
        re.compile(r"String|Regex|Unicode|^Substr|^AsString|DecodeJpeg|DecodePng|DecodeImage|DecodeBmp|DecodeGif"),
        "works on text or encoded files",
    ),
    (re.compile(r"Random|Multinomial"), "draws random numbers"),
    (re.compile(r"^(?:Var|Stack|Queue)"), "keeps a state that outlives the call"),
)


_CHANGES = re.compile(
    r"(?:Assign|Resource(?:Scatter|Apply|SparseApply|StridedSliceAssign|CountUpTo)|Apply|SparseApply)\w*"
    r"|Scatter(?:Nd)?(?:Update|Add|Sub|Mul|Div|Min|Max)|CountUpTo"
)
"""Operators that write variables."""


def reason(operator: str, otherwise: str | None = None) -> str:
    """Why ``operator`` has no form in ONNX, as far as its name tells it."""
    known = (text for pattern, text in _REASONS if pattern.search(operator))
    return next(known, otherwise or "tf2onnx has no form of it in ONNX")


def refuse_changes(graph: GraphDef, place: str) -> None:
    """Raise ``Unsupported`` that lists each node of ``graph``, or of a function it calls, that writes a variable."""
    names = [
        f"  {node.name} ({node.op})"
        for node in _reached(graph, [node.name for node in graph.node], ())
        if _CHANGES.fullmatch(node.op)
    ]
    if names:
        raise Unsupported(
            "\n".join(
                [f"{place}: its variables change when it is called, and in ONNX nothing outlives a call:", *names]
            ),
            "export the function that predicts, without training or counting; give a state as an input and an output",
        )


def refuse_files(
    graph: GraphDef, place: str, *, runs: Iterable[str], calls: Iterable[str] = (), restores: Iterable[str] = ()
) -> None:
    """Raise ``RetargetError`` that lists each node of ``graph``, or of a function in it, that touches files.

    ``runs`` are the nodes that are going to be run, ``calls`` the functions, and ``restores`` the nodes that read the
    variables: what writes checkpoints is let be where none of them leads to it, what reads them where only the last do.
    """
    every = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    wrong = [node for node in every if _touches_files(node) and node.op not in _SAVER | _RESTORER]
    wrong += [node for node in _reached(graph, runs, calls) if node.op in _SAVER | _RESTORER]
    wrong += [node for node in _reached(graph, restores, ()) if node.op in _SAVER]
    if wrong:
        names = sorted({f"  {node.name} ({node.op})" for node in wrong})
        raise RetargetError(
            "\n".join(
                [f"{place}: {len(names)} node{'s' if len(names) > 1 else ''} would read or write files:", *names]
            ),
            "if you know where the model comes from, add --trust",
        )


def _touches_files(node: NodeDef) -> bool:
    if node.op == "PrintV2":
        return not node.attr["output_stream"].s.startswith((b"stdout", b"stderr", b"log("))
    return _FILES.search(node.op) is not None and node.op not in _HARMLESS


def _reached(graph: GraphDef, names: Iterable[str], functions: Iterable[str]) -> Iterator[NodeDef]:
    """The nodes that ``names`` depend on, and all those of functions that these, or ``functions``, call."""
    nodes = {node.name: node for node in graph.node}
    bodies = {function.signature.name: function.node_def for function in graph.library.function}
    seen = set()
    waiting = list(names)
    calls = list(functions)
    while waiting:
        name = waiting.pop().lstrip("^").partition(":")[0]
        if name in seen or name not in nodes:
            continue
        seen.add(name)
        yield nodes[name]
        waiting.extend(nodes[name].input)
        calls.extend(_called(nodes[name]))
    entered = set()
    while calls:
        function = calls.pop()
        if function in entered or function not in bodies:
            continue
        entered.add(function)
        for node in bodies[function]:
            yield node
            calls.extend(_called(node))


def _called(node: NodeDef) -> Sequence[str]:
    # A function may be called by an operator of its name.
    names = [node.op]
    for attribute in node.attr.values():
        if attribute.HasField("func"):
            names.append(attribute.func.name)
        elif attribute.HasField("list"):
            names.extend(function.name for function in attribute.list.func)
    return names
