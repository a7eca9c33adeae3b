"""Optuna studies: who proposes trials and which are still to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import fail_stale_trials
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from lt_pipeline.learning.evaluation.metrics.catalog import METRICS, OBJECTIVE, Metric
from lt_pipeline.learning.schema import UserError
from lt_pipeline.tracking.processes import is_alive
from lt_pipeline.tuning.config import Sweep, TuneConfig
from lt_pipeline.tuning.space import Range, Space, Value
from lt_pipeline.tuning.storage import TryAgain, open_storage, place_of

optuna.logging.set_verbosity(optuna.logging.ERROR)

# a share of the epochs that no trial is stopped in, and the trials that none is compared before
PATIENCE, FIRST = 5, 5
# hyperband's brackets: the shortest trials have a 27th of the epochs
SHORTEST, REDUCTION = 27, 3
# user attributes of a trial and of a study
PROCESS, REASON, RUN, SURPLUS, IDENTITY = "process", "reason", "mlflow_run", "surplus", "identity"
METRIC = "metric"


def open_study(
    sweep: Sweep,
    data_hash: str,
    folder: Path,
    journal: BaseJournalBackend | None = None,
    metric: str = OBJECTIVE,
) -> optuna.Study:
    """Return the study of ``sweep``, with the trials it has; a new one where there is none.

    Its trials are judged by ``metric``.

    Raises:
        UnreachableError: if the storage cannot be reached.
        UserError: if the study has another search space, other fixed parameters or other data.
    """
    study = optuna.create_study(
        storage=open_storage(sweep.config, folder, journal),
        study_name=sweep.name,
        direction="minimize" if METRICS[metric].better == "lower" else "maximize",
        load_if_exists=True,
        sampler=SeededSampler(sweep.config),
        pruner=pruner(sweep),
    )
    # what a database gives back has been JSON
    wanted = json.loads(json.dumps({**sweep.identity(), "other data": {"data_hash": data_hash}}))
    known = study.user_attrs.get(IDENTITY)
    if known is None:
        study.set_user_attr(IDENTITY, wanted)
        study.set_user_attr(METRIC, metric)
        known = wanted
    for kind, values in wanted.items():
        for key in [*values, *known[kind]]:
            if known[kind].get(key) != values.get(key):
                raise UserError(
                    f"the study {sweep.name!r} in {place_of(sweep.config, folder)} has "
                    f"{kind}: {key} was {_short(known[kind].get(key))} and is "
                    f"{_short(values.get(key))} now; give this one another name with "
                    f"tune.study=NAME"
                )
    return study


def objective(study: optuna.Study) -> Metric:
    """Return what trials are judged by."""
    return METRICS[study.user_attrs.get(METRIC, OBJECTIVE)]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        shown = {k: v for k, v in value.items() if v not in (None, False)}
        return ", ".join(f"{k} {v}" for k, v in shown.items())
    return "missing" if value is None else str(value)


class SeededSampler(BaseSampler):
    """Proposes what follows from the seed, the trial's place and the trials before.

    A search that was stopped goes on as if it had not been, and no two processes propose alike.
    """

    def __init__(self, config: TuneConfig) -> None:
        self.config = config
        self._current: BaseSampler = RandomSampler()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Start anew with the seed of ``trial``."""
        digest = sha256(f"{self.config.seed}/{_place(study, trial)}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        random = self.config.sampler == "random"
        self._current = RandomSampler(seed) if random else TPESampler(seed=seed)
        self._current.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what is proposed together."""
        return self._current.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return values for what is proposed together."""
        return self._current.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a value for one parameter alone."""
        return self._current.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Let the sampler know how ``trial`` ended."""
        self._current.after_trial(study, trial, state, values)


def pruner(sweep: Sweep) -> BasePruner:
    """Return what stops trials that fall behind."""
    epochs = sweep.base.training.epochs
    if sweep.config.pruner == "median":
        return MedianPruner(n_startup_trials=FIRST, n_warmup_steps=epochs // PATIENCE)
    if sweep.config.pruner == "hyperband":
        return HyperbandPruner(
            min_resource=max(1, epochs // SHORTEST),
            max_resource=epochs,
            reduction_factor=REDUCTION,
        )
    return NopPruner()


def suggest(space: Space, trial: Trial) -> dict[str, Value]:
    """Return values for ``trial`` by path."""
    values: dict[str, Value] = {}
    for path, dimension in space.dimensions.items():
        if not isinstance(dimension, Range):
            values[path] = trial.suggest_categorical(path, dimension.choices)
        elif dimension.integer:
            step, low, high = int(dimension.step or 1), int(dimension.low), int(dimension.high)
            values[path] = trial.suggest_int(path, low, high, step=step, log=dimension.log)
        else:
            values[path] = trial.suggest_float(
                path, dimension.low, dimension.high, step=dimension.step, log=dimension.log
            )
    return values


def kept_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials, but for those that were one too many."""
    return [t for t in study.get_trials(deepcopy=False) if SURPLUS not in t.user_attrs]


def counted(study: optuna.Study, config: TuneConfig) -> list[FrozenTrial]:
    """Return the trials that count: all but failed ones in whose place there is, or will be, one.

    One that was given up counts, too, so that a search ends.
    """
    return [
        trial
        for trial in kept_trials(study)
        if trial.state != TrialState.FAIL or _attempts(trial) > config.retries
    ]


def to_start(study: optuna.Study, config: TuneConfig) -> int:
    """Return how many trials no process works on yet."""
    trials = counted(study, config)
    waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
    return max(config.trials - len(trials), 0) + len(waiting)


def running(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that some process works on."""
    return [t for t in kept_trials(study) if t.state == TrialState.RUNNING]


def is_surplus(study: optuna.Study, config: TuneConfig, trial: Trial) -> bool:
    """Return whether as many trials as were asked for had started before ``trial``.

    Processes that ask at one moment may start one too many between them.
    """
    retried = _history(study.trials[trial.number])
    before = [t for t in counted(study, config) if t.number < trial.number]
    return not retried and len(before) >= config.trials


def release_lost(study: optuna.Study, config: TuneConfig, dead: Sequence[str] = ()) -> list[int]:
    """Fail the trials whose process is gone, queue them again, and return their numbers.

    Of a file, that is every process that neither lives on this machine nor works for one that does.
    In a database, those of other machines may live: their trials are lost when they give no sign of
    life. Lost are, too, those of ``dead``: the ``key`` of each process.
    """
    fail_stale_trials(study)
    again = TryAgain(config.retries)
    lost = []
    for trial in running(study):
        process = trial.user_attrs.get(PROCESS)
        if process is None:
            gone = _age(trial) > 2 * config.heartbeat
        else:
            gone = process["key"] in dead or (config.storage is None and not is_alive(process))
        if gone and _fail(study, trial):
            again(study, trial)
            lost.append(trial.number)
    return lost


def try_again(study: optuna.Study, config: TuneConfig, number: int) -> None:
    """Queue the failed trial ``number`` again, if it has not been tried too often."""
    TryAgain(config.retries)(study, study.trials[number])


def _fail(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Return whether it was this process that failed ``trial``: one of all that try."""
    try:
        return study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False


def _history(trial: FrozenTrial) -> list[int]:
    """Return the trials that ``trial`` repeats, as Optuna's callback notes them."""
    history: list[int] = trial.system_attrs.get("retry_history", [])
    return history


def first_attempt(trial: FrozenTrial) -> int:
    """Return the number of the trial that ``trial`` repeats, or its own."""
    return (_history(trial) or [trial.number])[0]


def _place(study: optuna.Study, trial: FrozenTrial) -> int:
    """Return the number that ``trial`` had if none had been tried again, or was one too many."""
    first = first_attempt(trial)
    # hyperband gives samplers a study that has the trials of one bracket only
    trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
    return sum(t.number < first and not _history(t) and SURPLUS not in t.user_attrs for t in trials)


def _attempts(trial: FrozenTrial) -> int:
    return 1 + len(_history(trial))


def _age(trial: FrozenTrial) -> float:
    started = trial.datetime_start
    return (datetime.now() - started).total_seconds() if started else 0.0


def trials_table(study: optuna.Study, space: Space) -> pd.DataFrame:
    """Return a row a trial: number, state, value, epochs, seconds, parameters, what went wrong."""
    rows = []
    for trial in kept_trials(study):
        history = _history(trial)
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                objective(study).key: trial.value,
                "epochs": trial.last_step,
                "seconds": trial.duration.total_seconds() if trial.duration else None,
                **{path: trial.params.get(path) for path in space.dimensions},
                "repeats": history[-1] if history else None,
                "reason": trial.user_attrs.get(REASON),
                "process": trial.user_attrs.get(PROCESS, {}).get("key"),
                "mlflow_run": trial.user_attrs.get(RUN),
            }
        )
    return pd.DataFrame(rows)


def any_ended(study: optuna.Study) -> bool:
    """Return whether a trial went to its end, so that there is a best one."""
    return any(t.state == TrialState.COMPLETE for t in kept_trials(study))


def best_trial(study: optuna.Study) -> FrozenTrial:
    """Return the best of the trials that went to their end; of equals the first.

    Raises:
        UserError: if none did.
    """
    ended = [t for t in kept_trials(study) if t.state == TrialState.COMPLETE]
    if not ended:
        reasons = [t.user_attrs[REASON] for t in kept_trials(study) if REASON in t.user_attrs]
        why = f"; the last one: {reasons[-1]}" if reasons else ""
        raise UserError(f"no trial of the study {study.study_name!r} went to its end{why}")
    gain = objective(study).gain
    return max(ended, key=lambda trial: (gain(trial.value or 0.0), -trial.number))
