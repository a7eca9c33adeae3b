"""A look through images in files, before anything is trained on them."""

from lt_pipeline.pipelines.audit.pipeline import create_pipeline

__all__ = ["create_pipeline"]
