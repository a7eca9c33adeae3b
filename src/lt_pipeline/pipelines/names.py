"""What data and sweeps are called in every pipeline, for those who need none of its nodes."""

from __future__ import annotations

from kedro.pipeline import Pipeline

# what data_prep makes
MADE = ("train_set", "validation_set", "test_set", "auxiliary_set", "data_card", "manifest")
DESCRIBED = ("class_counts", "imbalance_statistics", "class_distribution")
# the namespace of a sweep is this and the method
NAMESPACE = "tune."


def tuned_method(pipeline: Pipeline) -> str | None:
    """Return the method that ``pipeline`` tunes, if it does."""
    spaces = {node.namespace or "" for node in pipeline.nodes}
    methods = (space.removeprefix(NAMESPACE) for space in spaces if space.startswith(NAMESPACE))
    return next(methods, None)
