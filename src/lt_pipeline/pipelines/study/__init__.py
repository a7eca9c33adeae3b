"""Ablations and sweeps: every arm of a study trained, tabled and drawn."""

from lt_pipeline.pipelines.study.pipeline import STUDIES, TABLES, create_pipeline

__all__ = ["STUDIES", "TABLES", "create_pipeline"]
