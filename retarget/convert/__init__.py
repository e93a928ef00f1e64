"""Frontends: one package for each source format. See `retarget.protocols.Frontend`."""
