"""What was trained, side by side: one table, pictures, a report, and the champion's alias."""

from lt_pipeline.pipelines.compare.pipeline import create_pipeline

__all__ = ["create_pipeline"]
