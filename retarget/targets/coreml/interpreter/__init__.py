"""Evaluates a saved `.mlpackage` where Core ML cannot run: by its own reading of the files, in numpy."""

from __future__ import annotations
