"""The pipelines there are: data preparation, one for every method and study, the comparison."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from lt_pipeline.learning import methods
from lt_pipeline.learning.methods._base import MethodOptions
from lt_pipeline.pipelines import compare, data_prep, method, study, tune


def method_pipeline(name: str, options: MethodOptions | None = None) -> Pipeline:
    """Return the pipeline of a method with its default ``options`` or others, from raw images."""
    return data_prep.create_pipeline() + method.create_pipeline(name, options)


def tune_pipeline(method: str) -> Pipeline:
    """Return the pipeline that searches the parameters of ``method``, from raw images."""
    return data_prep.create_pipeline() + tune.create_pipeline(method)


def register_pipelines() -> dict[str, Pipeline]:
    """Return every pipeline by name; each runs alone from raw images."""
    data = data_prep.create_pipeline()
    pipelines = {name: method_pipeline(name) for name in methods.available()}
    studies = {name: data + study.create_pipeline(name) for name in study.STUDIES}
    tables = {table: studies[name] for table, name in study.TABLES.items()}
    return {
        "__default__": pipelines["more"],
        "data_prep": data,
        **pipelines,
        **studies,
        **tables,
        "compare": data + compare.create_pipeline(),
        "tune": tune_pipeline("more"),
    }
