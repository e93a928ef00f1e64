"""Core ML: ``model.mlpackage``, an ML Program written on any machine, interpreted there and executed on a Mac."""

from __future__ import annotations
