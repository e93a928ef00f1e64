"""Writes Caffe's files for tests: prototxt text, and caffemodels in the wire format of V0, V1 and V2.

It shares nothing with the readers: field numbers and names of types are here a second time, so that a number that is
wrong in a reader does not cancel out. OpenCV's own reader, in the tests of this module, says whether they are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32] | NDArray[np.float64]
Saved: TypeAlias = tuple[str, str, Sequence[Array]]
"""A layer as a caffemodel has it: name, type of today such as ``Convolution``, blobs."""
Version: TypeAlias = Literal[0, 1, 2]
Storage: TypeAlias = Literal["float", "unpacked", "double", "float16"]
"""How numbers are stored: packed floats as Caffe does, one by one, as doubles, or as NVIDIA's fork saves halves."""

# fmt: off
V1_TYPES = {
    "Accuracy": 1, "BNLL": 2, "Concat": 3, "Convolution": 4, "Data": 5, "Dropout": 6, "EuclideanLoss": 7,
    "Flatten": 8, "HDF5Data": 9, "HDF5Output": 10, "Im2col": 11, "ImageData": 12, "InfogainLoss": 13,
    "InnerProduct": 14, "LRN": 15, "MultinomialLogisticLoss": 16, "Pooling": 17, "ReLU": 18, "Sigmoid": 19,
    "Softmax": 20, "SoftmaxWithLoss": 21, "Split": 22, "TanH": 23, "WindowData": 24, "Eltwise": 25, "Power": 26,
    "SigmoidCrossEntropyLoss": 27, "HingeLoss": 28, "MemoryData": 29, "ArgMax": 30, "Threshold": 31,
    "DummyData": 32, "Slice": 33, "MVN": 34, "AbsVal": 35, "Silence": 36, "ContrastiveLoss": 37, "Exp": 38,
    "Deconvolution": 39,
}
V0_TYPES = {
    "Convolution": "conv", "InnerProduct": "innerproduct", "Pooling": "pool", "ReLU": "relu", "LRN": "lrn",
    "Softmax": "softmax", "Dropout": "dropout", "Concat": "concat", "Flatten": "flatten", "Data": "data",
}
# fmt: on


def layer(
    name: str,
    kind: str,
    bottoms: str | Sequence[str] = (),
    tops: str | Sequence[str] | None = None,
    parameters: str = "",
) -> str:
    """A layer of a V2 prototxt; its top bears its name unless ``tops`` says otherwise."""
    bottoms = [bottoms] if isinstance(bottoms, str) else bottoms
    tops = [name] if tops is None else [tops] if isinstance(tops, str) else tops
    lines = [f'  name: "{name}"', f'  type: "{kind}"']
    lines += [f'  bottom: "{bottom}"' for bottom in bottoms] + [f'  top: "{top}"' for top in tops]
    lines += [f"  {parameters}"] if parameters else []
    return "\n".join(["layer {", *lines, "}", ""])


def inputs(**shapes: Sequence[int]) -> str:
    """An ``Input`` layer for each of ``shapes``."""
    return "".join(
        layer(name, "Input", (), name, f"input_param {{ shape {{ {' '.join(f'dim: {dim}' for dim in shape)} }} }}")
        for name, shape in shapes.items()
    )


def write(
    folder: Path, prototxt: str, layers: Sequence[Saved] | None = (), *, stem: str = "net", version: Version = 2
) -> tuple[Path, Path | None]:
    """``stem.prototxt`` and ``stem.caffemodel`` in ``folder``; no caffemodel where ``layers`` is None."""
    text, weights = folder / f"{stem}.prototxt", folder / f"{stem}.caffemodel"
    text.write_text(prototxt)
    if layers is None:
        return text, None
    weights.write_bytes(caffemodel(layers, version=version))
    return text, weights


def caffemodel(
    layers: Sequence[Saved],
    *,
    version: Version = 2,
    name: str = "net",
    storage: Storage = "float",
    legacy: bool | None = None,
) -> bytes:
    """The bytes of a caffemodel. ``legacy``: 4-D shapes, as V0 and V1 have them where it is None."""
    old = version < 2 if legacy is None else legacy
    return field(1, name.encode()) + b"".join(
        saved_layer(*each, version=version, storage=storage, legacy=old) for each in layers
    )


def saved_layer(
    name: str,
    kind: str,
    blobs: Sequence[Array],
    *,
    version: Version = 2,
    storage: Storage = "float",
    legacy: bool = False,
) -> bytes:
    """One layer as a field of a net."""
    saved = [blob(each, storage=storage, legacy=legacy) for each in blobs]
    if version == 2:
        named = field(1, name.encode()) + field(2, kind.encode())
        return field(100, named + b"".join(field(7, each) for each in saved))
    if version == 1:
        typed = varint(5 << 3) + varint(V1_TYPES[kind])
        return field(2, field(4, name.encode()) + typed + b"".join(field(6, each) for each in saved))
    inner = field(1, name.encode()) + field(2, V0_TYPES[kind].encode()) + b"".join(field(50, each) for each in saved)
    return field(2, field(1, inner))


def blob(array: Array, *, storage: Storage = "float", legacy: bool = False) -> bytes:
    """A ``BlobProto``; also the whole of a ``.binaryproto`` file."""
    if legacy and array.ndim <= 4:
        dims = (1,) * (4 - array.ndim) + array.shape
        shape = b"".join(varint(number << 3) + varint(dim) for number, dim in enumerate(dims, start=1))
    else:
        shape = field(7, field(1, b"".join(varint(dim) for dim in array.shape)))
    if storage == "double":
        return shape + field(8, array.astype("<f8").tobytes())
    if storage == "float16":
        return shape + varint(10 << 3) + varint(2) + field(12, array.astype("<f2").tobytes())
    floats = array.astype("<f4").tobytes()
    if storage == "float":
        return shape + field(5, floats)
    tag = varint(5 << 3 | 5)
    return shape + b"".join(tag + floats[at : at + 4] for at in range(0, len(floats), 4))


def field(number: int, content: bytes) -> bytes:
    """A field with ``content`` of its own length: a string, a message or packed numbers."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """A number as protobuf has it; negative ones as 64 bits."""
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
