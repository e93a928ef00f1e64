"""Toolchains for tests, which workers import: PYTHONPATH must name the folder of tests."""
