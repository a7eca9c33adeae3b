"""Ablations and sweeps: every arm of a study trained, tabled and drawn."""

from lt_pipeline.pipelines.study.pipeline import STUDIES, create_pipeline

__all__ = ["STUDIES", "create_pipeline"]
