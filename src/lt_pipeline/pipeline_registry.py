"""The pipelines there are: data preparation, and one for every method."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from lt_pipeline import methods
from lt_pipeline.pipelines import data_prep, method


def register_pipelines() -> dict[str, Pipeline]:
    """Return every pipeline by name; each runs alone from raw images."""
    data = data_prep.create_pipeline()
    pipelines = {name: data + method.create_pipeline(name) for name in methods.available()}
    return {"__default__": pipelines["more"], "data_prep": data, **pipelines}
