"""The one training loop. It knows no method, data set or logger."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
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
from lt_pipeline.learning.engine.protocol import Learner, objective_of
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.steps import Step, Terms, Tick
from lt_pipeline.learning.evaluation.metrics.catalog import HEADLINES, METRICS, OBJECTIVES
from lt_pipeline.learning.evaluation.metrics.finite import ADVICE
from lt_pipeline.learning.progress import Shown, shown
from lt_pipeline.learning.schema import UserError, one_line_errors

LOGGER = logging.getLogger(__name__)

# of an epoch, what is no term of the loss
MEASURED = ("learning_rate", "seconds", "images_per_second")
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
    trainer = Trainer([step], [stage], [train], [seed], auxiliary)
    with enough_threads(device, [config.batch_size, *train.shape]):
        trainer.run(monitors or {}, resume, report, measure)
    return trainer.histories[0]


def stage_config(config: TrainingConfig, stage: Stage) -> TrainingConfig:
    """Return the parameters of the training with what is different in ``stage``.

    Raises:
        UserError: if the two do not go together.
    """
    with one_line_errors(f"training of stage {stage.name}"):
        return TrainingConfig.model_validate({**config.model_dump(), **stage.training})


class Trainer:
    """K trainings, mostly one: steps, their batches, the epoch and the histories.

    One step has all K networks, or K have one each, and take an epoch as ``each`` maps them.
    Network k sees ``sets[k]`` in the order of ``seeds[k]``; the stages differ in their names only.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        stages: Sequence[Stage],
        sets: Sequence[Images],
        seeds: Sequence[int],
        auxiliary: Images | None = None,
        each: Callable[..., Iterable[Terms]] = map,
    ) -> None:
        self.steps, self.stages, self.each = steps, stages, each
        self.config, self.device = steps[0].config, steps[0].device
        streams = [
            Stream(
                stage,
                data,
                self.config,
                views=steps[0].objective.views,
                seed=seed,
                device=self.device,
                auxiliary=auxiliary,
            )
            for stage, data, seed in zip(stages, sets, seeds, strict=True)
        ]
        begin_draws(seeds[0])
        waiting = iter(streams)
        for step in steps:
            step.begin(list(islice(waiting, step.count)))
        self.epochs, self.steps_per_epoch = steps[0].epochs, streams[0].steps
        self.images, self.kind = streams[0].images, [step.kind for step in steps]
        self.title = " to ".join(dict.fromkeys((stages[0].name, stages[-1].name)))
        self.epoch = 0
        self.histories: list[History] = [{} for _ in stages]

    def networks(self) -> Iterator[tuple[Stage, Learner]]:
        """Yield each network with its stage, there until the next one is asked for."""
        found = chain.from_iterable(step.networks() for step in self.steps)
        return zip(self.stages, found, strict=True)

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
                self.tell(report, epoch)
        # once, and not a batch at a time whenever they are looked at
        looked_at = {
            name: data if data.labels.device == self.device else data.to(self.device)
            for name, data in monitors.items()
        }
        left = range(self.epoch, self.epochs)
        keep, look = Due(self.config.checkpoint_every), Due(self.config.monitor_seconds)
        total = len(left) * self.steps_per_epoch * len(self.stages)
        with shown(self.title, total, patience=0) as progress:
            for epoch in left:
                found = self.run_epoch(epoch, partial(self.tick, progress))
                for values, (stage, method) in zip(found, self.networks(), strict=True):
                    objective = objective_of(method, stage)
                    objective.end_epoch(self.epochs, monitors.get("validation"), self.device)
                    values |= objective.epoch_metrics()
                last, every = epoch + 1 == self.epochs, self.config.monitor_every
                if every and (last or ((epoch + 1) % every == 0 and look())):
                    self.monitor(found, looked_at, measure)
                self.record(found)
                if resume and (last or keep()):
                    resume.save(self.state())
                if report:
                    self.tell(report, self.epoch)
                progress.note(in_short(self.epoch, self.epochs, found))
        self.swap()

    def run_epoch(self, epoch: int, tick: Tick) -> list[dict[str, float]]:
        """Train one epoch; return each network's mean loss terms, rate, seconds and images/s.

        ``tick`` is called with how many networks took a step.
        """
        for stage, method in self.networks():
            set_trainable(method, stage)
            objective_of(method, stage).start_epoch(epoch, self.epochs)
        started = time.monotonic()
        found = list(self.each(lambda step: step.epoch(epoch, tick), self.steps))
        totals = {name: torch.cat([terms[name] for terms in found]) for name in found[0]}
        # The one transfer of an epoch; it also waits for the device, so that the time is right.
        sums = torch.stack([*totals.values(), self.finite()], 1).tolist()
        seconds, others = time.monotonic() - started, at_once()
        common = {
            "learning_rate": self.steps[0].rate,
            "seconds": seconds / len(sums) / others,
            "images_per_second": self.images * len(sums) * others / seconds,
        }
        epochs = []
        for stage, (*row, finite) in zip(self.stages, sums, strict=True):
            means = {n: s / self.steps_per_epoch for n, s in zip(totals, row, strict=True)}
            check_finite(means, bool(finite), stage, epoch)
            epochs.append({f"train/{name}": value for name, value in {**means, **common}.items()})
        return epochs

    def tick(self, progress: Shown, count: int) -> None:
        """Show that so many networks took a step, and end here if the process is to end."""
        go_on()
        progress.advance(count)

    def monitor(
        self,
        found: Sequence[dict[str, float]],
        monitors: Mapping[str, Images],
        measure: Measure | None = None,
    ) -> None:
        """Add each network's accuracies, as it would be deployed, to the epoch's values."""
        self.swap()
        for values, (stage, method) in zip(found, self.networks(), strict=True):
            module, score = cast("nn.Module", method), objective_of(method, stage).score
            for name, data in monitors.items():
                scored = accuracies(module, score, data, device=self.device)
                values |= {f"{name}/{key}": value for key, value in scored.items()}
            values |= measure(module, score) if measure else {}
        self.swap()

    def swap(self) -> None:
        """Change places of the weights and their average, where one is deployed."""
        for step in self.steps:
            step.swap()

    def record(self, found: Sequence[Mapping[str, float]]) -> None:
        """Add an epoch's values to the histories."""
        self.epoch += 1
        for history, values in zip(self.histories, found, strict=True):
            for name, value in values.items():
                history.setdefault(name, []).append({"step": self.epoch, "value": value})

    def states(self) -> list[dict[str, Tensor]]:
        """Return the state of each network as it is, not a copy."""
        return [method.state_dict() for _, method in self.networks()]

    def finite(self) -> Tensor:
        """Return 1.0 for each network of finite weights, else 0.0, ``[K]``, without a transfer."""
        whole = [
            torch.stack([v.isfinite().all() for v in state.values() if v.is_floating_point()])
            for state in self.states()
        ]
        return torch.stack(whole).all(1).float()

    def state(self) -> dict[str, Any]:
        """Return all that resuming needs."""
        cuda = self.device.type == "cuda"
        return {
            "kind": self.kind,
            "epoch": self.epoch,
            "histories": self.histories,
            "weights": self.states(),
            "steps": [step.state() for step in self.steps],
            "torch_generator": generator().get_state(),
            "cuda_generator": torch.cuda.get_rng_state(self.device) if cuda else None,
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Take up what ``state`` returned; another kind of step's leaves the start as it is."""
        if state is None or state.get("kind") != self.kind:
            return
        self.epoch, self.histories = state["epoch"], state["histories"]
        LOGGER.info("Stage %s resumes after epoch %d", self.title, self.epoch)
        for (_, method), weights in zip(self.networks(), state["weights"], strict=True):
            method.load_state_dict(weights)
        for step, saved in zip(self.steps, state["steps"], strict=True):
            step.restore(saved)
        generator().set_state(state["torch_generator"])
        if state["cuda_generator"] is not None:
            torch.cuda.set_rng_state(state["cuda_generator"], self.device)

    def tell(self, report: Report, epoch: int) -> None:
        """Report an epoch, counted from 1, of every network."""
        for stage, history in zip(self.stages, self.histories, strict=True):
            points = [(name, p) for name, series in history.items() for p in series]
            report(stage.name, epoch, {n: p["value"] for n, p in points if p["step"] == epoch})


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


def in_short(epoch: int, epochs: int, found: Sequence[Mapping[str, float]]) -> str:
    """Return of an epoch's values what a person who waits wants to see, as the networks' mean."""

    def mean(name: str) -> float:
        return sum(values[name] for values in found) / len(found)

    terms = [
        mean(name)
        for name in found[0]
        if name.startswith("train/") and name.removeprefix("train/") not in MEASURED
    ]
    parts = [f"epoch {epoch}/{epochs}", f"loss {sum(terms):.3f}"]
    for name in (*OBJECTIVES, *HEADLINES):
        if name in found[0]:
            words = name.replace("/", " ").replace("_", " ")
            parts.append(f"{words} {METRICS[name].said(mean(name))}")
    parts.append(f"rate {mean('train/learning_rate'):.2g}")
    return " · ".join([*parts, f"{mean('train/images_per_second'):,.0f} images/s"])


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
