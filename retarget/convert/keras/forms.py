"""What a Keras file may be: names that both halves of the frontend use."""

from __future__ import annotations

ARCHIVE = "Keras"
"""``.keras``: a zip of configuration and weights."""
HDF5 = "Keras HDF5"
"""``.h5``: of Keras 2 or 3, a whole model or its weights alone, which only the reader tells apart."""

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
"""Members of the zip."""

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ZIP_MAGIC = b"PK\x03\x04"
