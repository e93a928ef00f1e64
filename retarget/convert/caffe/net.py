"""A Caffe net as the frontend sees it: messages of the text format, layers with their weights, whatever the version.

The readers make these (``text`` and ``weights``, joined by ``network``), ``lower`` and the ``reference`` consume them.
Layers are of today's format: those of V0 and V1 were upgraded, those of the training phase left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retarget.errors import RetargetError

Blob: TypeAlias = NDArray[np.float32]
_LARGEST = 3.40282356e38
"""What still rounds to the largest float32, as it is often written."""
Scalar: TypeAlias = "str | int | float | bool"
"""A ``str`` is a quoted string or a bare word, such as the name of an enum's value."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message of protobuf's text format. Fields keep the order in which they stand; one may stand several times."""

    place: str
    """``deploy.prototxt:12``: where it begins."""
    fields: Mapping[str, Sequence[Scalar | Message]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def integer(self, name: str, default: int = 0) -> int:
        """The last value of ``name``. Raises ``RetargetError`` if it is not an integer, here and below likewise."""
        found = self.integers(name)
        return found[-1] if found else default

    def integers(self, name: str) -> tuple[int, ...]:
        """All values of ``name``, in order. Caffe's integers are of 32 bits."""
        return tuple(
            value
            if isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**32
            else self._wrong(name, value, "an integer")
            for value in self.fields.get(name, ())
        )

    def number(self, name: str, default: float = 0.0) -> float:
        found = self.numbers(name)
        return found[-1] if found else default

    def numbers(self, name: str) -> tuple[float, ...]:
        """All values of ``name``, in order. They fit into a float32, and are finite."""
        return tuple(
            float(value)
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
            else self._wrong(name, value, "a number")
            for value in self.fields.get(name, ())
        )

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.fields.get(name, (default,))[-1]
        if isinstance(value, bool) or value in (0, 1):
            return bool(value)
        return self._wrong(name, value, "true or false")

    def word(self, name: str, default: str = "") -> str:
        """A string, or an enum's value by its name; one that is written as a number gives that number's digits."""
        found = self.words(name)
        return found[-1] if found else default

    def words(self, name: str) -> tuple[str, ...]:
        return tuple(
            self._wrong(name, value, "a word") if isinstance(value, Message) else str(value)
            for value in self.fields.get(name, ())
        )

    def message(self, name: str) -> Message:
        """The last message called ``name``; an empty one where there is none."""
        found = self.messages(name)
        return found[-1] if found else Message(self.place)

    def messages(self, name: str) -> tuple[Message, ...]:
        return tuple(
            value if isinstance(value, Message) else self._wrong(name, value, "a message")
            for value in self.fields.get(name, ())
        )

    def _wrong(self, name: str, value: Scalar | Message, wanted: str) -> NoReturn:
        shown = "a message" if isinstance(value, Message) else repr(value)
        raise RetargetError(
            f"{self.place}: {name} is {shown}, not {wanted}", "see caffe.proto for what the field holds"
        )


@dataclass(frozen=True)
class Layer:
    """One layer of the net."""

    name: str
    type: str
    """As of today, such as ``Convolution``."""
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    message: Message
    """The whole layer as written (upgraded): ``message.message("convolution_param")`` holds its parameters."""
    blobs: tuple[Blob, ...] = ()
    """Its weights in the shapes that they were saved in: 4-D with leading ones where they are old."""

    @property
    def place(self) -> str:
        """``deploy.prototxt:12: layer 'conv1' (Convolution)``: what an error about it begins with."""
        return f"{self.message.place}: layer '{self.name}' ({self.type})"


@dataclass(frozen=True)
class Net:
    """A net to be executed: inputs, then layers in the order in which they run."""

    name: str
    place: str
    inputs: Mapping[str, tuple[int, ...]]
    """Blob to shape, as the file says it."""
    layers: tuple[Layer, ...]
    """Without ``Input`` layers. A top may bear the name of a bottom: computed in place."""
    outputs: tuple[str, ...]
    """Blobs that no layer takes, in the order in which they are made."""
    transform: Message | None = None
    """``transform_param`` of the data layer of a train prototxt: mean, scale, crop."""
    notes: tuple[str, ...] = ()
    """What was done to make it deployable, a sentence each."""
