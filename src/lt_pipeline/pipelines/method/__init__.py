"""Train, finish, evaluate and deploy one method; every method gets this pipeline."""

from lt_pipeline.pipelines.method.pipeline import create_pipeline

__all__ = ["create_pipeline"]
