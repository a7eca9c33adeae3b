"""Sweeps: a method's parameters searched on the hold-out, the best judged on the test set."""

from lt_pipeline.pipelines.tune.pipeline import SPACE, create_pipeline, tuned_method

__all__ = ["SPACE", "create_pipeline", "tuned_method"]
