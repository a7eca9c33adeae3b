"""Raw images -> long-tailed training set, hold-out, balanced test set, and what describes them."""

from lt_pipeline.pipelines.data_prep.pipeline import create_pipeline

__all__ = ["create_pipeline"]
