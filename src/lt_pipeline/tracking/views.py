"""Views of MLflow's table of runs that open with the columns that matter.

MLflow keeps a view that is shared as a tag of its experiment, and an address with the view's name
opens it; without one, the table has no metrics at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import mlflow

from lt_pipeline.learning.evaluation.metrics.catalog import (
    MEAN_RECALL,
    METRICS,
    OBJECTIVE,
    OBJECTIVES,
    placed,
)
from lt_pipeline.tracking.client import masked

TAG = "mlflow.sharedViewState."
RESULTS = "results"
# else the UI opens on its half for language models
HALF = "&workflowType=machine_learning"
LOCAL = "http://127.0.0.1:5000"
# of the charts' sections, which are sorted by name with capitals first
SUMMARY = "Summary"
RUN_NAME = "attributes.`Run Name`"
WIDTHS = {RUN_NAME: 290, "runDateAndNestInfo": 145, "duration": 80}
# of a heading: a character, and what is around them
CHARACTER, MARGIN = 7, 24


def results(*, several: bool = False, balanced: bool = True) -> str:
    """Return the view of all runs: what of the test set is looked at first, and the hold-out.

    Metrics are those of images with one label or with ``several``. On a test set that is not
    ``balanced`` accuracy is mostly the head's, so the mean recall stands before it.
    """
    first = [metric.key for metric in placed("first") if bool(metric.from_decided) == several]
    if not balanced and not several:
        first = [MEAN_RECALL, *first]
    return _view(_metrics([*first, OBJECTIVES[several]]))


def of_sweep(study: str, parameters: Iterable[str], metric: str = OBJECTIVE) -> str:
    """Return the view of a sweep's trials: what was searched, and what each reached; best first."""
    reached = _metrics([f"finished/{metric}"])
    searched = [f"params.`{path}`" for path in parameters]
    facets = {"searchFilter": f"tags.study = '{study}'", "orderByKey": reached[0]}
    return _view([*reached, *searched], {**facets, "orderByAsc": METRICS[metric].better == "lower"})


def keep(name: str, view: str) -> None:
    """Keep ``view`` with the active run's experiment; without a run, nothing happens."""
    active = mlflow.active_run()
    if active:
        client = mlflow.MlflowClient()
        experiment = client.get_experiment(active.info.experiment_id)
        if experiment.tags.get(TAG + name) != view:
            client.set_experiment_tag(experiment.experiment_id, TAG + name, view)


def where(name: str) -> str:
    """Return in words how to open the view ``name`` of the active run's experiment."""
    uri, active = mlflow.get_tracking_uri(), mlflow.active_run()
    local = uri.startswith("sqlite:")
    base = LOCAL if local else masked(uri).rstrip("/")
    if active and base.startswith("http"):
        base += f"/#/experiments/{active.info.experiment_id}/runs?viewStateShareKey={name}{HALF}"
    return f"run `make ui` and open {base}" if local else f"open {base}"


def _metrics(names: Iterable[str]) -> list[str]:
    return [f"metrics.`{name}`" for name in names]


def _view(columns: list[str], facets: Mapping[str, str | bool] | None = None) -> str:
    own = {name: MARGIN + CHARACTER * len(name.partition(".")[2]) for name in columns}
    widths = {**WIDTHS, **own}
    return json.dumps(
        {
            "selectedColumns": columns,
            "columnOrder": [*widths],
            "columnWidths": widths,
            **(facets or {}),
        }
    )
