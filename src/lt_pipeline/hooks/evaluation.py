"""What an evaluation is of: found before anything is opened, its data and seed put into effect."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import mlflow
from kedro.config import AbstractConfigLoader

from lt_pipeline.io.own_folders import INDIFFERENT
from lt_pipeline.learning.experiments.config import data_config
from lt_pipeline.learning.schema import UserError, block_of, flatten, named, shown
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tracking import models, store
from lt_pipeline.tracking.addresses import EVALUATED

LOGGER = logging.getLogger(__name__)
EVALUATE = models.BLOCK


def to_evaluate(loader: AbstractConfigLoader, uri: str, experiment: str) -> models.Trained:
    """Return what the run that begins evaluates, and let the parameters be of its data and seed.

    A method's runs are looked for in ``experiment`` of the store at ``uri``.

    Raises:
        UserError: in one line, if there is nothing of that address, or the command line says
            something else of the training.
    """
    parameters = loader["parameters"]
    address = models.not_null(models.EvaluateConfig.read(block_of(parameters, EVALUATE)).model)
    store.open_store(uri)
    mlflow.set_tracking_uri(uri)
    model = models.trained(mlflow.MlflowClient(), address, experiment)
    data = _data(model)
    _check_given(model, data, loader.runtime_params or {})
    LOGGER.info("Evaluating run %s (%s)", model.id, model.run.info.run_name)
    loader["parameters"] = {
        **parameters,
        "seed": model.config.seed,
        # as it was given, and what was not is not what conf/ says today
        "data": {**data, **model.data},
        EVALUATE: {"model": f"runs:/{model.id}"},
    }
    return model


def _data(model: models.Trained) -> dict[str, Any]:
    """Return what the data of ``model`` are, the usual where it did not say."""
    with named(f"run {model.id}: "):
        return data_config({"data": model.data}).model_dump(mode="json")


def parent_tags(model: models.Trained) -> dict[str, str]:
    """Return the tags that put an evaluation below the run that it is of."""
    return {"mlflow.parentRunId": model.id, EVALUATED: model.id}


def _check_given(model: models.Trained, data: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse parameters of a training that are not those of ``model``."""
    trained = tracking.by_method(model.config.model_dump(mode="json"))
    known = {**trained, **dict(flatten({"data": data}, "."))}
    for path, value in flatten(given, "."):
        if path.partition(".")[0] not in INDIFFERENT and known.get(path) != value:
            was = f"was trained with {shown(known[path])}" if path in known else "knows no such"
            raise UserError(
                f"{path}: is {shown(value)}, but run {model.id} of {model.config.method} {was}: an "
                f"evaluation changes nothing of a training; leave it out, or name another run"
            )
