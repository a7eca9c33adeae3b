"""What a process, or a thread of it, does with a study: trials, until there are enough."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from optuna import Study, TrialPruned
from optuna.trial import FrozenTrial, Trial, TrialState

from lt_pipeline.learning.engine.parallel import Stopped, alone, go_on
from lt_pipeline.learning.schema import UserError
from lt_pipeline.tracking.processes import this_process
from lt_pipeline.tuning.config import Sweep
from lt_pipeline.tuning.runs import Tracked
from lt_pipeline.tuning.space import Value
from lt_pipeline.tuning.study import (
    PROCESS,
    REASON,
    SURPLUS,
    counted,
    first_attempt,
    is_surplus,
    objective,
    suggest,
    to_start,
    try_again,
)

LOGGER = logging.getLogger(__name__)

# Called with the epochs done so far and what the hold-out gives; it ends a trial that is behind.
ReportValue = Callable[[int, float], None]


class Train(Protocol):
    """Trains a configuration; returns what trials are judged by at the end."""

    def __call__(self, config: dict[str, Any], report: ReportValue, number: int) -> float:
        """Train ``config``, calling ``report`` after epochs.

        ``number`` is that of the trial, and of the first one where it is tried again.
        """


class Surplus(Exception):  # noqa: N818
    """A trial that is one too many."""


@dataclass(frozen=True)
class Search:
    """One part of a sweep, on behalf of ``owner`` where that is on another machine."""

    study: Study
    sweep: Sweep
    tracked: Tracked
    train: Train
    deadline: float | None = None
    owner: Mapping[str, Any] | None = None

    def more(self) -> bool:
        """Return whether another trial is to start."""
        in_time = self.deadline is None or time.time() < self.deadline
        return in_time and to_start(self.study, self.sweep.config) > 0

    def run(self, after: Callable[[], None] = lambda: None) -> None:
        """Do trials, one by one, while there are some to do, calling ``after`` behind each."""
        while self.more():
            go_on()
            self._do_one()
            after()

    def _do_one(self) -> None:
        """Do a trial. One that is interrupted, or ends with a bug, is queued again."""
        trials: list[FrozenTrial] = []

        def judged(trial: Trial) -> float:
            try:
                return self.objective(trial)
            except Stopped:
                # so that Optuna notes its end
                raise KeyboardInterrupt from None
            finally:
                # as it is before Optuna notes its end
                trials.append(self.study.get_trials(deepcopy=False)[trial.number])

        try:
            self.study.optimize(judged, n_trials=1, catch=(Surplus,))
        except (Exception, KeyboardInterrupt):
            if not trials:
                raise
            if not trials[0].state.is_finished():
                try_again(self.study, self.sweep.config, trials[0].number)
                raise
            LOGGER.warning(
                "Trial %d was given up by another process: this one gave no sign of life for %d s "
                "(tune.heartbeat)",
                trials[0].number,
                2 * self.sweep.config.heartbeat,
            )

    def objective(self, trial: Trial) -> float:
        """Return what the sweep maximises: what the finished method reaches on the hold-out.

        A trial that cannot be trained, or not on this machine, counts as one that fell behind.
        """
        if is_surplus(self.study, self.sweep.config, trial):
            trial.set_user_attr(SURPLUS, True)
            raise Surplus
        trial.set_user_attr(PROCESS, this_process(self.owner))
        values = suggest(self.sweep.space, trial)
        title = f"trial {trial.number} · {short(values)}"
        with _fell_behind(trial):
            config = self.sweep.experiment(values).model_dump(mode="json")
        with self.tracked.trial(trial, title, config), _fell_behind(trial):
            number = first_attempt(self.study.trials[trial.number])
            return self.train(config, lambda step, value: _report(trial, step, value), number)


@contextmanager
def _fell_behind(trial: Trial) -> Iterator[None]:
    """Count ``trial`` as one that fell behind where what is inside is refused, and note why."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError) as error:
        if isinstance(error, OSError):
            raise  # a full disk or a missing file, which no other values would mend
        trial.set_user_attr(REASON, str(error).partition("\n")[0])
        raise TrialPruned(str(error)) from error


def _report(trial: Trial, step: int, value: float) -> None:
    trial.report(value, step)
    if trial.should_prune():
        raise TrialPruned


def short(values: dict[str, Value]) -> str:
    """Return ``values`` for people, as in ``rank 0.12, amplitude 3.1``."""
    shown = ((path.split(".")[-1], value) for path, value in values.items())
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown)


class Follower:
    """Says in a line how each trial ended, whichever process did it."""

    def __init__(self, study: Study, sweep: Sweep) -> None:
        self.study, self.sweep = study, sweep
        ended = self._ended()
        self.followed = {trial.number for trial in ended}
        if ended:
            LOGGER.info("%d trials of %s are there from before", len(ended), study.study_name)

    def __call__(self) -> None:
        """Tell what is new, if no other thread does."""
        with alone(Follower):
            self._tell()

    def _tell(self) -> None:
        for trial in self._ended():
            if trial.number in self.followed:
                continue
            self.followed.add(trial.number)
            done, total = len(self.followed), self.sweep.config.trials
            words = trial.number, short(trial.params), self._how(trial)
            LOGGER.info("%d/%d  trial %d · %s: %s", done, total, *words)

    def _ended(self) -> list[FrozenTrial]:
        trials = counted(self.study, self.sweep.config)
        return [trial for trial in trials if trial.state.is_finished()]

    def _how(self, trial: FrozenTrial) -> str:
        if trial.state == TrialState.COMPLETE:
            return objective(self.study).with_unit(trial.value or 0)
        if trial.state == TrialState.PRUNED:
            return trial.user_attrs.get(REASON) or f"stopped after {trial.last_step} epochs"
        return "given up, its process was killed"
