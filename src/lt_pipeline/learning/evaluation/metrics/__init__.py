"""Metrics by class and group, calibration, out-of-distribution."""
