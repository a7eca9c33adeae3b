"""The one training loop. It knows no method, data set or logger."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.captured import step_for
from lt_pipeline.learning.engine.checkpoint import ResumeFile
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.device import enough_threads
from lt_pipeline.learning.engine.freeze import with_frozen
from lt_pipeline.learning.engine.loader import Stream
from lt_pipeline.learning.engine.optim import set_trainable
from lt_pipeline.learning.engine.parallel import at_once, begin_draws, generator, go_on
from lt_pipeline.learning.engine.predict import accuracies
from lt_pipeline.learning.engine.protocol import Learner
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.steps import Plain
from lt_pipeline.learning.evaluation.metrics.catalog import HEADLINES, METRICS, OBJECTIVES
from lt_pipeline.learning.evaluation.metrics.finite import ADVICE
from lt_pipeline.learning.progress import shown
from lt_pipeline.learning.schema import UserError, one_line_errors

LOGGER = logging.getLogger(__name__)

# of an epoch, what is no term of the loss
MEASURED = ("learning_rate", "seconds", "images_per_second")
# of the states that are resumed from
KIND = ["Plain"]
# name -> [{"step": epoch from 1, "value": value}, ...]
History = dict[str, list[dict[str, float]]]
# Called after every epoch with the stage's name, the epoch (from 1) and its values.
Report = Callable[[str, int, Mapping[str, float]], None]
# Gives values of a network, as it would be deployed, and its scores, whenever it is monitored.
Measure = Callable[[nn.Module, Callable[[Tensor], Tensor]], Mapping[str, float]]


def fit(
    method: Learner,
    stage: Stage,
    train: Images,
    config: TrainingConfig,
    *,
    seed: int,
    device: torch.device,
    monitors: Mapping[str, Images] | None = None,
    auxiliary: Images | None = None,
    resume: ResumeFile | None = None,
    report: Report | None = None,
    measure: Measure | None = None,
) -> History:
    """Minimise what ``stage`` has for its objective in ``method``; return the history.

    With ``resume``, the state is kept there after an epoch, every ``config.checkpoint_every``
    seconds and at the end; a stage that was killed goes on from it and ends with the same weights;
    ``report`` is called for the epochs before, too. ``monitors`` are sets whose accuracy and mean
    recall are recorded as ``<name>/accuracy`` and ``<name>/mean_recall`` every
    ``config.monitor_every`` epochs, and after the last; so is what ``measure`` gives.
    ``auxiliary`` are images of no class, for stages that ask for outliers. ``train/seconds`` of
    one of several that train side by side are its share, ``train/images_per_second`` those of all.

    Raises:
        UserError: if the set does not fill one batch, the stage asks for outliers and there are
            none, what is to be frozen is not there or is all that learns, or a loss, a weight or a
            monitored score is no longer finite.
    """
    config = stage_config(config, stage)
    stage = with_frozen(method, stage, config)
    step = step_for(method, stage, config, device)
    trainer = Trainer(step, stage, train, seed, auxiliary)
    with enough_threads(device, [config.batch_size, *train.shape]):
        trainer.run(monitors or {}, resume, report, measure)
    return trainer.history


def stage_config(config: TrainingConfig, stage: Stage) -> TrainingConfig:
    """Return the parameters of the training with what is different in ``stage``.

    Raises:
        UserError: if the two do not go together.
    """
    with one_line_errors(f"training of stage {stage.name}"):
        return TrainingConfig.model_validate({**config.model_dump(), **stage.training})


class Trainer:
    """A training: its steps, their batches, the epochs and the history."""

    def __init__(
        self, step: Plain, stage: Stage, train: Images, seed: int, auxiliary: Images | None = None
    ) -> None:
        self.step, self.stage = step, stage
        self.config, self.device = step.config, step.device
        self.objective, self.method = step.objective, step.method
        views, device = self.objective.views, self.device
        stream = Stream(
            stage, train, self.config, views=views, seed=seed, device=device, auxiliary=auxiliary
        )
        begin_draws(seed)
        step.begin(stream)
        self.epochs, self.steps_per_epoch, self.images = step.epochs, stream.steps, stream.images
        self.epoch = 0
        self.history: History = {}

    def run(
        self,
        monitors: Mapping[str, Images],
        resume: ResumeFile | None = None,
        report: Report | None = None,
        measure: Measure | None = None,
    ) -> None:
        """Train the epochs that are left; the arguments are as in ``fit``."""
        self.restore(resume.load() if resume else None)
        if report:
            # of the epochs that an earlier run did, too: a tracker has the whole curve
            for epoch in range(1, self.epoch + 1):
                self.report_epoch(report, epoch)
        # once, and not a batch at a time whenever they are looked at
        looked_at = {
            name: data if data.labels.device == self.device else data.to(self.device)
            for name, data in monitors.items()
        }
        left = range(self.epoch, self.epochs)
        keep, look = Due(self.config.checkpoint_every), Due(self.config.monitor_seconds)
        with shown(self.stage.name, len(left) * self.steps_per_epoch, patience=0) as progress:

            def tick() -> None:
                go_on()
                progress.advance()

            for epoch in left:
                values = self.run_epoch(epoch, tick)
                self.objective.end_epoch(self.epochs, monitors.get("validation"), self.device)
                values |= self.objective.epoch_metrics()
                last, every = epoch + 1 == self.epochs, self.config.monitor_every
                if every and (last or ((epoch + 1) % every == 0 and look())):
                    values |= self.monitor(looked_at, measure)
                self.record(values)
                if resume and (last or keep()):
                    resume.save(self.state())
                if report:
                    self.report_epoch(report, self.epoch)
                progress.note(in_short(self.epoch, self.epochs, values))
        self.step.swap()

    def run_epoch(self, epoch: int, tick: Callable[[], None]) -> dict[str, float]:
        """Train one epoch; return the mean loss terms, the rate, seconds and images a second.

        ``tick`` is called after every step.
        """
        set_trainable(self.method, self.stage)
        self.objective.start_epoch(epoch, self.epochs)
        started = time.monotonic()
        totals = self.step.epoch(epoch, tick)
        # The one transfer of an epoch; it also waits for the device, so that the time is right.
        *sums, finite = torch.stack([*totals.values(), self.finite()]).tolist()
        seconds = (time.monotonic() - started) / at_once()
        means = {n: s / self.steps_per_epoch for n, s in zip(totals, sums, strict=True)}
        check_finite(means, bool(finite), self.stage, epoch)
        measured = (self.step.rate, seconds, self.images / seconds)
        values = {**means, **dict(zip(MEASURED, measured, strict=True))}
        return {f"train/{name}": value for name, value in values.items()}

    def monitor(
        self, monitors: Mapping[str, Images], measure: Measure | None = None
    ) -> dict[str, float]:
        """Return the network's accuracies, as it would be deployed."""
        self.step.swap()
        module, score = cast("nn.Module", self.method), self.objective.score
        values: dict[str, float] = {}
        for name, data in monitors.items():
            scored = accuracies(module, score, data, device=self.device)
            values |= {f"{name}/{key}": value for key, value in scored.items()}
        values |= measure(module, score) if measure else {}
        self.step.swap()
        return values

    def record(self, values: Mapping[str, float]) -> None:
        """Add an epoch's values to the history."""
        self.epoch += 1
        for name, value in values.items():
            self.history.setdefault(name, []).append({"step": self.epoch, "value": value})

    def finite(self) -> Tensor:
        """Return 1.0 if the weights are finite, else 0.0, ``[]``, without a transfer."""
        state = [v for v in self.method.state_dict().values() if v.is_floating_point()]
        return torch.stack([value.isfinite().all() for value in state]).all().float()

    def state(self) -> dict[str, Any]:
        """Return all that resuming needs, in lists of one where earlier versions had several."""
        cuda = self.device.type == "cuda"
        return {
            "kind": KIND,
            "epoch": self.epoch,
            "histories": [self.history],
            "weights": [self.method.state_dict()],
            "steps": [self.step.state()],
            "torch_generator": generator().get_state(),
            "cuda_generator": torch.cuda.get_rng_state(self.device) if cuda else None,
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Take up what ``state`` returned; that of several networks leaves the start as it is."""
        if state is None or state.get("kind") != KIND:
            return
        self.epoch, (self.history,) = state["epoch"], state["histories"]
        LOGGER.info("Stage %s resumes after epoch %d", self.stage.name, self.epoch)
        self.method.load_state_dict(*state["weights"])
        self.step.restore(*state["steps"])
        generator().set_state(state["torch_generator"])
        if state["cuda_generator"] is not None:
            torch.cuda.set_rng_state(state["cuda_generator"], self.device)

    def report_epoch(self, report: Report, epoch: int) -> None:
        """Report an epoch, counted from 1."""
        points = [(name, p) for name, series in self.history.items() for p in series]
        report(self.stage.name, epoch, {n: p["value"] for n, p in points if p["step"] == epoch})


class Due:
    """Says whether so many seconds are over since it last said so, or since it was made."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.last = seconds, time.monotonic()

    def __call__(self) -> bool:
        """Return whether it is time, and begin anew if so."""
        now = time.monotonic()
        if now - self.last < self.seconds:
            return False
        self.last = now
        return True


def in_short(epoch: int, epochs: int, values: Mapping[str, float]) -> str:
    """Return of an epoch's values what a person who waits wants to see."""
    terms = [
        value
        for name, value in values.items()
        if name.startswith("train/") and name.removeprefix("train/") not in MEASURED
    ]
    parts = [f"epoch {epoch}/{epochs}", f"loss {sum(terms):.3f}"]
    for name in (*OBJECTIVES, *HEADLINES):
        if name in values:
            words = name.replace("/", " ").replace("_", " ")
            parts.append(f"{words} {METRICS[name].with_unit(values[name])}")
    parts.append(f"rate {values['train/learning_rate']:.2g}")
    return " · ".join([*parts, f"{values['train/images_per_second']:,.0f} images/s"])


def check_finite(means: Mapping[str, float], weights: bool, stage: Stage, epoch: int) -> None:
    """Refuse to go on with a loss that is no number, or with such weights.

    ``weights`` says whether they are finite behind the epoch: no loss has seen what its last step
    made of them.

    Raises:
        UserError: naming the term, and what to do.
    """
    wrong = [f"the loss term {name!r} is {v}" for name, v in means.items() if not math.isfinite(v)]
    if not weights:
        wrong.append("weights are nan or infinite")
    if wrong:
        raise UserError(f"{wrong[0]} in epoch {epoch + 1} of stage {stage.name!r}: {ADVICE}")
