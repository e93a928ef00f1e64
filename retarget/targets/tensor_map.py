"""``tensors.json``: which value of an artifact is which of the ONNX graph, a line each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

FILE = "tensors.json"


def write(entries: Iterable[Mapping[str, object]], path: Path) -> None:
    """Write ``entries``, each of which has at least ``name``, ``value`` (null: none there), dtype and shape."""
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    path.write_text(f'{{"schema": 1, "tensors": [\n{lines}\n]}}\n', encoding="utf-8")
