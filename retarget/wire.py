"""The messages between a worker process and its parent, one JSON object a line."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from retarget.protocols import Kind


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Run ``function`` (``module:name``) on a ``StepRequest`` of the other fields, its output into ``log``.

    Temporary files go into the folder ``temporary``, which is there, as ``scratch`` is.
    """

    function: str
    toolchain: str
    kind: Kind
    options: dict[str, object]
    inputs: dict[str, str]
    files: dict[str, str]
    out: str
    log: str
    temporary: str
    scratch: str | None = None
    python: str | None = None
    memory_bytes: int | None = None


class Progress(msgspec.Struct, frozen=True, tag=True):
    done: int
    total: int
    text: str


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The step's facts. Memory in bytes: resident high-water mark of this step, and anonymous memory at its end."""

    facts: dict[str, object]
    versions: dict[str, str]
    code: dict[str, str]
    """Absolute path of each file of the user's own that this process imported, to its digest."""
    peak_rss: int | None
    anonymous: int


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    kind: str
    message: str
    hint: str | None
    bug: bool
    peak_rss: int | None
    anonymous: int


Reply: TypeAlias = Progress | Done | Failed
