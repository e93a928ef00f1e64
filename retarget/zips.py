"""What damaged zip archives raise. Standard library, Python 3.8: this serves in the user's own interpreter too."""

from __future__ import annotations

import struct
import zlib
from zipfile import BadZipFile

ZIP_ERRORS = (BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error, zlib.error)
"""What ``zipfile`` raises on damaged archives, as fuzzing found: it decodes names and data without a check."""
