"""The reference as a ``Runner``, and what OpenCV says of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from retarget.convert.caffe.net import Blob, Net
from retarget.convert.caffe.reference import opencv
from retarget.convert.caffe.reference.checks import show
from retarget.convert.caffe.reference.evaluate import check, evaluate
from retarget.errors import RetargetError, ToolchainFailure, Unsupported

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs

OWN = "Caffe's layers in numpy, written from its sources"
AGREES_DB = 80.0
"""A relative error of 1e-4: above it, two implementations of the same layers differ in rounding only."""

log = logging.getLogger(__name__)


def open(  # noqa: A001 - the protocol's name
    net: Net, outputs: Sequence[str] = (), *, prototxt: Path | None = None, caffemodel: Path | None = None
) -> Reference:
    """``net`` in numpy, its outputs under the names ``outputs``. With its files OpenCV is asked about the first feeds.

    Raises ``RetargetError`` for a layer that is not known.
    """
    check(net)
    return Reference(net, outputs or net.outputs, None if prototxt is None else (prototxt, caffemodel))


class Reference:
    """A net in numpy; a ``Runner``."""

    def __init__(self, net: Net, outputs: Sequence[str], files: tuple[Path, Path | None] | None) -> None:
        if len(outputs) != len(net.outputs):
            raise RetargetError(
                f"{net.place}: {len(outputs)} names for {len(net.outputs)} outputs",
                f"its outputs: {', '.join(net.outputs)}",
            )
        self._net = net
        self._names = dict(zip(net.outputs, outputs, strict=True))
        self._files = files
        self.settings = OWN

    def run(self, feeds: Feeds) -> Outputs:
        """The outputs, float32.

        Raises ``RetargetError`` where sizes do not meet, naming the layer, and ``ToolchainFailure`` where OpenCV makes
        something else of the first feeds.
        """
        given = _fitting(self._net, feeds)
        found = evaluate(self._net, given)
        if self._files is not None:
            said = second_opinion(self._net, *self._files, given, found)
            log.info("%s", said)
            self.settings = f"{OWN}; {said}"
            self._files = None
        return {self._names[blob]: array for blob, array in found.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def second_opinion(
    net: Net, prototxt: Path, caffemodel: Path | None, feeds: Mapping[str, Blob], outputs: Mapping[str, Blob]
) -> str:
    """What OpenCV makes of ``feeds`` beside ``outputs`` (by blob), as a clause: ``OpenCV 4.14.0 agrees to 112 dB``.

    Raises ``ToolchainFailure`` where it makes something else of them.
    """
    if find_spec("cv2") is None:
        return "OpenCV is not installed to be asked as well (pip install 'retarget[caffe]')"
    if known := opencv.flaws(net):
        more = f" and {len(known) - 1} more" if len(known) > 1 else ""
        return f"OpenCV was not asked, for it differs from Caffe in {known[0]}{more}"
    try:
        asked = opencv.ask(net, prototxt, caffemodel, feeds)
    except Unsupported as error:
        return f"OpenCV does not take the net ({error.message})"
    worst, where = opencv.agreement(net, outputs, asked.outputs)
    if worst >= AGREES_DB:
        return f"OpenCV {asked.version} agrees to {worst:.0f} dB"
    raise ToolchainFailure(
        f"{net.place}: OpenCV {asked.version} disagrees with the reference on '{where}': {worst:.0f} dB",
        "one of the two is wrong, so neither proves anything: please report it with the prototxt;"
        " `options: {opencv: false}` goes on without OpenCV",
    )


def _fitting(net: Net, feeds: Feeds) -> dict[str, Blob]:
    if feeds.keys() != net.inputs.keys():
        raise RetargetError(
            f"{net.place}: was given {', '.join(sorted(feeds)) or 'nothing'}", f"its inputs: {', '.join(net.inputs)}"
        )
    for name, shape in net.inputs.items():
        if feeds[name].ndim != len(shape):
            raise RetargetError(
                f"{net.place}: input '{name}' is {show(shape)}, {show(feeds[name].shape)} was given",
                "sizes may differ from the file's, the number of axes may not",
            )
    return {name: np.asarray(feed, np.float32) for name, feed in feeds.items()}
