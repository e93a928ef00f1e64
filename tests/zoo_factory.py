"""The factory of the tests' recipes: what a user writes beside a checkpoint that is only weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zoo

if TYPE_CHECKING:
    from torch import nn


def build(family: str) -> nn.Module:
    """The module that the weights of ``family`` belong to."""
    return zoo.FAMILIES[family].build()
