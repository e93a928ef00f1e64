"""Amounts of memory and disk as a person types them."""

from __future__ import annotations

import re

from retarget.errors import RetargetError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes from ``4GB``, ``1.5 GiB`` or ``500000``. Raises ``RetargetError``."""
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise RetargetError(f"'{text}' is not a size", "write a number and a unit, as in 4GB or 1.5GiB")
    return int(float(match[1]) * unit)
