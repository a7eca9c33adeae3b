"""Backbones, heads, and the low-rank parametrisation."""
