"""Calibration data, streaming statistics and the ranges made from them."""
