"""The runs of an MLflow experiment as tables.

MLflow is where several seeds of a method are: the files of data/ hold its last run only.
"""

from __future__ import annotations

import json
from ast import literal_eval
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any
from zlib import compress, decompress

import mlflow
import numpy as np
import pandas as pd
from mlflow.artifacts import load_text
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.uri import is_local_uri
from pydantic import ValidationError

from lt_pipeline.learning.data.prepare import DataConfig
from lt_pipeline.learning.evaluation.metrics.catalog import HEADLINES, PRECISION
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.renamed import renamed
from lt_pipeline.learning.schema import few, nested
from lt_pipeline.tracking import client as tracking

BELOW_OR_SWEEP = {MLFLOW_PARENT_RUN_ID, tracking.STUDY}
COMPARED = ("test/", "validation/", "cost/")
# the tag with how many images of each class were right, in order
RIGHT = "right_by_class"
# what servers of earlier versions take
MAX_TAG_LENGTH = 5000
RECALLS = ("class", "name", "group", "training_images", "test_images", "recall")

Values = dict[str, Any]


def finished_runs(*experiment_ids: str) -> Iterator[Run]:
    """Yield the finished runs of methods that were evaluated; those below others are left out.

    Arms of studies and trials of sweeps are below others: their parents compare them. A sweep
    itself has the metrics of its best trial, and is no run of a method either.
    """
    client, ended = mlflow.MlflowClient(), "attributes.status = 'FINISHED' and "
    for key in HEADLINES:  # of images with one label, and with several: no experiment has both
        runs = tracking.find_runs(client, [*experiment_ids], f'{ended}metrics."{key}" >= 0')
        yield from (run for run in runs if not BELOW_OR_SWEEP & set(run.data.tags))


class Runs:
    """The finished runs of an experiment, read by one query.

    Configurations are the runs' parameters, and recalls by class a tag. Only what a run of an
    earlier version has not, or the data's classes, are read from artifacts, which a server keeps
    elsewhere.
    """

    def __init__(self, experiment_id: str) -> None:
        self._runs = {run.info.run_id: run for run in finished_runs(experiment_id)}
        self._classes: dict[Any, pd.DataFrame] = {}
        self._unread: list[str] = []

    @property
    def notes(self) -> list[str]:
        """Return which runs could not be read so far, in a sentence."""
        if not self._unread:
            return []
        single = len(self._unread) == 1
        return [
            f"{few(self._unread)} {'is' if single else 'are'} left out: "
            f"{'it has' if single else 'they have'} no config.json and class_table.csv, as of some "
            f"nodes only, or these cannot be reached"
        ]

    def table(self) -> pd.DataFrame:
        """Return a row a run."""
        rows = self._each(self._runs, lambda run: _row(run, _config(run)))
        return pd.DataFrame(list(rows.values()))

    def recalls(self, wanted: Iterable[str]) -> pd.DataFrame:
        """Return a row a run and class of the runs ``wanted``, by their ids."""
        by_run = self._each(wanted, self._recalls).items()
        tables = [table.assign(run_id=run_id) for run_id, table in by_run]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=RECALLS)

    def _each(self, wanted: Iterable[str], read: Callable[[Run], Any]) -> dict[str, Any]:
        """Return what is read of each run, in order; what cannot be is noted and left out."""
        results = {}
        for run in map(self._runs.__getitem__, wanted):
            try:
                results[run.info.run_id] = read(run)
            except (MlflowException, OSError):
                self._unread.append(f"run {run.info.run_name} ({run.info.run_id[:8]})")
        return results

    def _recalls(self, run: Run) -> pd.DataFrame:
        tags, params = run.data.tags, run.data.params.items()
        # images of one hash may be grouped in another way
        groups = sorted(p for p in params if p[0].startswith("data.groups."))
        of = (tags.get("data_hash"), *groups)
        if RIGHT not in tags or of not in self._classes or PRECISION.key in self._classes[of]:
            whole = pd.read_csv(StringIO(_artifact(run, "class_table.csv")))
            table = whole[[*RECALLS, *{PRECISION.key} & {*whole}]]
            self._classes.setdefault(of, table)
            return table
        classes, right = self._classes[of], json.loads(decompress(b64decode(tags[RIGHT])))
        return classes.assign(recall=np.divide(right, classes["test_images"].clip(lower=1)))


def keep_recalls(table: pd.DataFrame) -> None:
    """Tag the active run with how many images of each class were right, as ``Runs`` reads them.

    Of several labels it is the average precision that is compared, which follows from no counts.
    """
    if PRECISION.key in table:
        return
    right = (table["recall"] * table["test_images"]).round().astype(int).tolist()
    text = b64encode(compress(json.dumps(right, separators=(",", ":")).encode(), 9)).decode()
    if len(text) <= MAX_TAG_LENGTH:
        tracking.set_tags({RIGHT: text})


def _config(run: Run) -> Values:
    """Return the configuration that a run logged as parameters, else its file's."""
    params, method = run.data.params, run.data.tags.get("method", "")
    cut = any(len(value) >= tracking.MAX_PARAM_LENGTH for value in params.values())
    if not cut and {"seed", "device", "training.epochs", "evaluation.recall_floor"} <= {*params}:
        blocks = {name: block_logged(params, name) for name in ("model", "training", "evaluation")}
        options = block_logged(params, method).get("options", {})
        single = {name: _value(params[name]) for name in ("seed", "device")}
        try:
            config = ExperimentConfig.model_validate(
                {"method": method, **single, **blocks, "options": options}
            )
            return config.model_dump(mode="json")
        except ValidationError:
            pass
    return dict(json.loads(_artifact(run, "config.json")))


def data_of_runs() -> Iterator[tuple[str, Values]]:
    """Yield the method and the data settings of every finished run, whatever its experiment.

    The settings are those of ``DataConfig``; empty where the run did not log them, and as they are
    where they are no longer valid.
    """
    experiments = mlflow.MlflowClient().search_experiments()
    for run in finished_runs(*(experiment.experiment_id for experiment in experiments)):
        yield run.data.tags.get("method", "unknown method"), _data_settings(run.data.params)


def block_logged(params: Mapping[str, str], name: str) -> Values:
    """Return the block ``name`` as logged ``params`` have it, empty where they have none."""
    own = {path: _value(text) for path, text in params.items() if path.startswith(f"{name}.")}
    return dict(renamed({name: {}, **nested(own, ".")})[name])


def _value(text: str) -> Any:
    """Return a value of which MLflow keeps what Python calls it."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _data_settings(params: Mapping[str, str]) -> Values:
    block = block_logged(params, "data")
    try:
        return DataConfig.model_validate(block).model_dump(mode="json") if block else {}
    except ValidationError:
        return block


def earlier_paces() -> dict[tuple[str, str], float]:
    """Return the seconds that an epoch took in finished runs of the active run's experiment.

    They are by method and backbone: the median of the training time of all stages over
    ``training.epochs``. Without an active run there are none.
    """
    active = mlflow.active_run()
    if active is None:
        return {}
    only = "attributes.status = 'FINISHED' and metrics.\"cost/training_seconds\" > 0"
    runs = tracking.find_runs(mlflow.MlflowClient(), [active.info.experiment_id], only)
    paces: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        params, method = run.data.params, run.data.tags.get("method")
        if method and {"training.epochs", "model.backbone"} <= params.keys():
            seconds = run.data.metrics["cost/training_seconds"] / int(params["training.epochs"])
            paces.setdefault((method, params["model.backbone"]), []).append(seconds)
    return {key: median(values) for key, values in paces.items()}


def _artifact(run: Run, name: str) -> str:
    uri = run.info.artifact_uri
    if is_local_uri(uri):
        return (Path(local_file_uri_to_path(uri)) / name).read_text()
    return load_text(f"{uri}/{name}")


def _row(run: Run, config: Values) -> Values:
    tags = run.data.tags
    # the detector that tables show; runs of earlier versions have none
    detectors = config.get("evaluation", {}).get("detectors", ())
    shown = (*COMPARED, *(f"ood/{name}/mean/" for name in detectors[:1]))
    metrics = {k: v for k, v in run.data.metrics.items() if k.startswith(shown)}
    return {
        "run_id": run.info.run_id,
        "run_name": run.info.run_name,
        "method": config["method"],
        "title": _title(config),
        "seed": config["seed"],
        "data_hash": tags.get("data_hash", ""),
        "experiment": tags.get("dvc_experiment", ""),
        "started": run.info.start_time,
        "commit": tags.get("mlflow.source.git.commit", "unknown"),
        "command": tags.get("command", ""),
        "config": json.dumps(config),
        **metrics,
    }


def _title(config: Values) -> str:
    """Return the run's title; a configuration that is no longer valid has the method's name."""
    try:
        return ExperimentConfig.model_validate(config).title
    except ValidationError:
        return str(config["method"])
