"""Ablations and sweeps: every run of a study trained, tabled and drawn."""

from lt_pipeline.pipelines.study.pipeline import create_pipeline

__all__ = ["create_pipeline"]
