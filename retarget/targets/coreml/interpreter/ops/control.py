"""Branches, loops, labels, and what is not computed from operands alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.call import Call, Dictionary, NotInterpreted, OpFunction, Tensor, Value

if TYPE_CHECKING:
    from retarget.targets.coreml.interpreter.program import Block


def cond(call: Call) -> tuple[Value, ...]:
    then, otherwise = _two_blocks(call)
    return call.run_block(then if call.flag("pred") else otherwise, ())


def while_loop(call: Call) -> tuple[Value, ...]:
    condition, body = _two_blocks(call)
    values = call.values("loop_vars")
    while _holds(call.run_block(condition, values)):
        values = call.run_block(body, values)
    return values


def classify(call: Call) -> tuple[Value, ...]:
    """The label of the largest probability, and all labels with theirs."""
    probabilities, labels = call.array("probabilities").reshape(-1), _labels(call)
    if len(labels) != len(probabilities):
        raise ToolchainFailure(f"{len(probabilities)} probabilities of {len(labels)} classes")
    return labels[probabilities.argmax()].reshape(()), Dictionary(labels, probabilities.astype(np.float64))


def _two_blocks(call: Call) -> tuple[Block, Block]:
    if len(call.blocks) != 2:
        raise ToolchainFailure(f"it has {len(call.blocks)} blocks, 2 are expected")
    return call.blocks[0], call.blocks[1]


def _holds(values: tuple[Value, ...]) -> bool:
    if len(values) != 1 or not isinstance(values[0], np.ndarray) or values[0].size != 1:
        raise ToolchainFailure("its condition is not one value")
    return bool(values[0].reshape(())[()])


def _labels(call: Call) -> Tensor:
    values = call.values("classes")
    given = values[0] if len(values) == 1 else list(values)
    return np.array([np.asarray(each).reshape(()) for each in given]) if isinstance(given, list) else np.asarray(given)


def _refused(reason: str) -> OpFunction:
    def refuse(call: Call) -> Value:
        raise NotInterpreted(f"{call.type}: {reason}")

    return refuse


_RANDOM = _refused("no two devices draw the same numbers")
_STATE = _refused("a state outlives a prediction")
_LIST = _refused("what a list holds before it is written is not defined")

OPS: Mapping[str, OpFunction] = {
    "cond": cond,
    "while_loop": while_loop,
    "classify": classify,
    **dict.fromkeys(("random_bernoulli", "random_categorical", "random_normal", "random_uniform"), _RANDOM),
    **dict.fromkeys(("read_state", "write_state", "coreml_update_state"), _STATE),
    **dict.fromkeys(("make_list", "list_gather", "list_length", "list_read", "list_scatter", "list_write"), _LIST),
}
