"""Passes: one file a pass, `ir.Model` to `ir.Model`. `presets.py` is the ordered list."""
