"""A sweep in MLflow: one run of the study, and below it one for each trial."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import mlflow
import pandas as pd
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException
from optuna import Study, TrialPruned
from optuna.trial import Trial, TrialState

from lt_pipeline.learning.schema import UserError
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tuning.study import REASON, RUN, kept_trials

PARENT = "mlflow_parent"
BELOW = "mlflow.parentRunId"
# stores and servers that other machines cannot reach
LOCAL = ("", "file", "sqlite")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Tracked:
    """Where trials are logged: below which run of which server. Without a run, nowhere."""

    uri: str = ""
    experiment: str = ""
    parent: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, study: Study) -> Tracked:
        """Return the run of ``study``: the one that began it, if this server has it.

        A run that goes on with the study, or helps, stands below that one, too.
        """
        active = mlflow.active_run()
        if active is None:
            return cls()
        own, experiment = active.info.run_id, active.info.experiment_id
        tracking.set_tags({tracking.STUDY: study.study_name})
        parent = study.user_attrs.get(PARENT)
        if parent is None or not _is_there(parent, experiment):
            study.set_user_attr(PARENT, own)
            # of machines that begin at one moment it is the last one's
            parent = study.user_attrs[PARENT]
        if parent != own:
            tracking.set_tags({BELOW: parent})
        tags = mlflow.MlflowClient().get_run(own).data.tags
        inherited = {key: tags[key] for key in tracking.INHERITED if key in tags}
        named = {**inherited, tracking.STUDY: study.study_name}
        return cls(mlflow.get_tracking_uri(), experiment, parent, named)

    @property
    def began_elsewhere(self) -> bool:
        """Return whether the study's run is not the active one."""
        active = mlflow.active_run()
        return bool(self.parent) and active is not None and active.info.run_id != self.parent

    def check_reach(self, machines: int) -> None:
        """Refuse to log trials of several ``machines`` where only this one can.

        Raises:
            UserError: naming the address and what to do.
        """
        parts = urlsplit(self.uri)
        stored = parts.scheme in LOCAL and not self.uri.startswith("databricks")
        if machines > 1 and self.parent and (stored or parts.hostname in LOOPBACK):
            server = f"{socket.gethostname()}:5000"
            raise UserError(
                f"trials run on {machines} machines, but only this one can log to "
                f"{tracking.masked(self.uri)}: "
                f"start `mlflow server --host 0.0.0.0 --allowed-hosts {server}` here and set "
                f"MLFLOW_TRACKING_URI=http://{server}"
            )

    @contextmanager
    def trial(self, trial: Trial, title: str, config: Mapping[str, Any]) -> Iterator[None]:
        """Log what happens inside to a run of ``trial``."""
        if not self.parent:
            yield
            return
        mlflow.set_tracking_uri(self.uri)
        with mlflow.start_run(
            experiment_id=self.experiment,
            run_name=title,
            nested=True,
            tags={**self.tags, "seed": str(config["seed"]), "trial": str(trial.number)},
        ) as run:
            # MLflow itself starts runs only below the active one
            tracking.set_tags({BELOW: self.parent})
            trial.set_user_attr(RUN, run.info.run_id)
            tracking.log_params(tracking.by_method(config))
            try:
                yield
            except TrialPruned:
                why = trial.study.trials[trial.number].user_attrs.get(REASON, "fell behind")
                tracking.set_tags({"trial_state": "pruned", REASON: why})
                # a run that was stopped on purpose has not failed
                mlflow.end_run()
                raise
            tracking.set_tags({"trial_state": "complete"})

    def close_lost(self, study: Study) -> None:
        """Mark the runs of trials whose process died, but for those on an earlier server."""
        if not self.parent:
            return
        client = mlflow.MlflowClient()
        for trial in kept_trials(study):
            run_id = trial.user_attrs.get(RUN)
            if run_id is None or trial.state != TrialState.FAIL:
                continue
            with suppress(MlflowException):
                run = client.get_run(run_id)
                if "trial_state" not in run.data.tags:
                    client.set_tag(run_id, "trial_state", "lost")
                if run.info.status == "RUNNING":
                    client.set_terminated(run_id, "FAILED")

    def publish(
        self, trials: pd.DataFrame, best: Mapping[str, Any], figures: Mapping[str, Figure]
    ) -> None:
        """Log the results to the study's run, if the active one is another and logs its own."""
        if not self.began_elsewhere:
            return
        client = mlflow.MlflowClient()
        client.log_text(self.parent, trials.to_csv(index=False), "trials.csv")
        client.log_dict(self.parent, dict(best), "best.json")
        for name, figure in figures.items():
            client.log_figure(self.parent, figure, f"figures/{name}")
        client.log_metric(self.parent, f"best/{best['metric']}", best["value"])


def publish_tested(tested: Mapping[str, float]) -> None:
    """Log the test set's metrics to the study's run, if the active one stands below it.

    That ends the sweep, and so that run: the process that began it may have been killed.
    """
    active = mlflow.active_run()
    if active is None or not tested:
        return
    parent = mlflow.MlflowClient().get_run(active.info.run_id).data.tags.get(BELOW)
    if parent is not None:
        with mlflow.start_run(run_id=parent, nested=True):
            tracking.log_metrics(tested)
            mlflow.log_dict(dict(tested), "tested.json")


def _is_there(run: str, experiment: str) -> bool:
    try:
        info = mlflow.MlflowClient().get_run(run).info
    except MlflowException:
        return False
    return info.experiment_id == experiment and info.lifecycle_stage == "active"
