"""Targets: one package for each deployable format. See `retarget.protocols.Target`."""
