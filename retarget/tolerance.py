"""The bounds of a comparison, as a recipe writes them. Light: plans and gates are made of them without numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from retarget.errors import RetargetError


class Tolerance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of one comparison; None is no bound, and one at least is set.

    They are upper bounds for the absolute errors and lower ones for the others. Integer and boolean outputs must be
    equal, or their share of equal values must reach ``top1_agreement`` where that is set; the others do not apply.
    """

    max_abs: Annotated[Annotated[float, Meta(ge=0)] | None, Meta(description="Largest absolute difference.")] = None
    mean_abs: Annotated[Annotated[float, Meta(ge=0)] | None, Meta(description="Mean absolute difference.")] = None
    snr_db: Annotated[float | None, Meta(description="Smallest signal-to-noise ratio in dB.")] = None
    cosine: Annotated[Annotated[float, Meta(ge=-1, le=1)] | None, Meta(description="Smallest cosine similarity.")] = (
        None
    )
    top1_agreement: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="Smallest share of samples with the same top 1.")
    ] = None

    def __post_init__(self) -> None:
        if not self.bounds():
            raise RetargetError("no bound is given", f"known: {', '.join(self.__struct_fields__)}")

    def bounds(self) -> dict[str, float]:
        """The bounds that are set, by name."""
        return {name: bound for name, bound in msgspec.structs.asdict(self).items() if bound is not None}


DEFAULT_TOLERANCE: Mapping[str, Tolerance] = {
    "fp32": Tolerance(snr_db=80),
    "fp16": Tolerance(snr_db=40),
    "int8": Tolerance(snr_db=15),
    "int16x8": Tolerance(snr_db=25),
    "int8_dynamic": Tolerance(snr_db=20),
    "int8_weights": Tolerance(snr_db=25),
    "int4_weights": Tolerance(snr_db=10),
    "palette6": Tolerance(snr_db=15),
}
"""By precision, for a recipe without a parity gate."""
