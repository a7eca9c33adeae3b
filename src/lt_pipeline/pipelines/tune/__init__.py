"""Sweeps: a method's parameters searched on the hold-out, the best judged on the test set."""

from lt_pipeline.pipelines.tune.pipeline import create_pipeline

__all__ = ["create_pipeline"]
