"""OpenCV on one net, in a process of its own: a net that it misunderstands may end the process.

It imports nothing of retarget. The question comes as JSON on stdin, the arrays in a file beside it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

THREADS = 2
Maker: TypeAlias = tuple[str, int, str]
"""The layer that makes an output, which of its tops that is, and the top's name."""


def answer(
    prototxt: str, caffemodel: str, feeds: Mapping[str, NDArray[np.float32]], makers: Sequence[Maker]
) -> list[NDArray[np.float32]]:
    """The output of each of ``makers``. Raises ``cv2.error`` where OpenCV does not take the net."""
    cv2.setNumThreads(THREADS)
    net = cv2.dnn.readNetFromCaffe(prototxt, caffemodel)
    for name, feed in feeds.items():
        net.setInput(feed, name)
    # OpenCV takes a Convolution apart into one a bottom, and calls each as its top is called.
    places = [(layer, index) if layer in net.getLayerNames() else (top, 0) for layer, index, top in makers]
    names = list(dict.fromkeys(name for name, _ in places))
    tops = dict(zip(names, net.forwardAndRetrieve(names), strict=True))
    return [np.asarray(tops[name][index], np.float32) for name, index in places]


def main() -> None:
    question = json.load(sys.stdin)
    reply: dict[str, str] = {"version": cv2.__version__}
    with np.load(question["feeds"], allow_pickle=False) as held:
        feeds = {name: held[f"arr_{number}"] for number, name in enumerate(question["inputs"])}
    try:
        found = answer(question["prototxt"], question["caffemodel"], feeds, question["makers"])
    except cv2.error as error:
        # Without the file and line of its own source.
        reply["error"] = str(error).strip().partition("error: ")[2].partition("\n")[0] or str(error)
    else:
        np.savez(Path(question["outputs"]), *found)
    json.dump(reply, sys.stdout)


if __name__ == "__main__":
    main()
