"""What calibration learned: ``ranges.json``, or the folder that it is in. Light."""

from __future__ import annotations

from pathlib import Path

import msgspec

from retarget.errors import RetargetError
from retarget.inspection.result import Extent, Inspection

NAME = "ranges.json"


class _Ranges(msgspec.Struct, frozen=True):
    samples: int
    tensors: dict[str, Extent]


def matches(path: Path) -> bool:
    """Whether ``path`` is such a file or holds one."""
    return path.name == NAME or (path / NAME).is_file()


def inspect(path: Path) -> Inspection:
    """The extent of each tensor. Raises ``RetargetError`` for a damaged file."""
    file = path / NAME if path.is_dir() else path
    try:
        found = msgspec.json.decode(file.read_bytes(), type=_Ranges)
    except (OSError, msgspec.DecodeError) as error:
        raise RetargetError(f"{file}: not readable ranges ({error})", "calibrate again") from error
    odd = [name for name, extent in found.tensors.items() if extent.nan_count or extent.inf_count]
    return Inspection(
        path=str(path),
        what=f"ranges of {len(found.tensors)} tensors over {found.samples} samples",
        bytes=file.stat().st_size,
        ranges=found.tensors,
        notes=(f"NaN or infinities arise in {', '.join(odd)}",) if odd else (),
    )
