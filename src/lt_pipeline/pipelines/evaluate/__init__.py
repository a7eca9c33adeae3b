"""Judge a model of an earlier run anew, beside the images that it was trained beside."""

from lt_pipeline.pipelines.evaluate.pipeline import create_pipeline

__all__ = ["create_pipeline"]
