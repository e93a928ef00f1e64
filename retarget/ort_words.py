"""What ONNX Runtime says of a failure, in one line with the failing node first. Standard library alone."""

from __future__ import annotations

import re

_RUNNING = re.compile(r"while running (?P<op>\S+) node\. Name:'(?P<name>[^']*)' Status Message: (?P<why>.*)", re.DOTALL)
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE = re.compile(r"(?:\S*onnxruntime_src\S+|\S+\.(?:cc|h):\d+) ")


def ort_words(error: Exception) -> str:
    """``node 'add' (Add): the shapes do not fit``, or what else ``error`` says."""
    text = _PREFIX.sub("", str(error).strip())
    running = _RUNNING.search(text)
    if running is not None:
        text = f"node '{running['name']}' ({running['op']}): {_SOURCE.sub('', running['why'])}"
    return " ".join(text.split())
