"""The bounds of a comparison. Light: plans and gates are made of them without numpy."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Tolerance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of one comparison; None is no bound. Upper for the absolute errors, lower for the others.

    Integer and boolean outputs must be equal, or their share of equal values must reach ``top1_agreement``
    where that is set; the other bounds do not apply to them.
    """

    max_abs: float | None = None
    mean_abs: float | None = None
    snr_db: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None


DEFAULT_TOLERANCE: Mapping[str, Tolerance] = {
    "fp32": Tolerance(snr_db=80),
    "fp16": Tolerance(snr_db=40),
    "int8": Tolerance(snr_db=15),
}
"""By precision, for a recipe without a parity gate."""
