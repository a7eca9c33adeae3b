"""The one training loop. It knows no method, data set or logger."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track
from torch import Tensor

from lt_pipeline.data.augment import AugmentConfig
from lt_pipeline.data.batches import Batch, batches
from lt_pipeline.data.images import ImageSet
from lt_pipeline.engine.checkpoint import ResumeFile
from lt_pipeline.engine.config import TrainingConfig
from lt_pipeline.engine.device import autocast, memory_format
from lt_pipeline.engine.phase import Phase
from lt_pipeline.engine.predict import accuracies
from lt_pipeline.engine.schedule import rate_factor

if TYPE_CHECKING:
    from lt_pipeline.methods._base import Method

LOGGER = logging.getLogger(__name__)

# name -> [{"step": epoch from 1, "value": value}, ...]
History = dict[str, list[dict[str, float]]]
# Called after every epoch with the phase's name, the epoch (from 1) and its values.
Report = Callable[[str, int, Mapping[str, float]], None]


def fit(
    method: Method,
    phase: Phase,
    train: ImageSet,
    config: TrainingConfig,
    *,
    seed: int,
    device: torch.device,
    monitors: Mapping[str, ImageSet] | None = None,
    auxiliary: ImageSet | None = None,
    resume: ResumeFile | None = None,
    report: Report | None = None,
) -> History:
    """Minimise the sum of ``method.loss`` over one phase and return its history.

    With ``resume``, the state is kept there after every ``config.checkpoint_every`` epochs; a
    phase that was killed goes on from it and ends with the same weights; ``report`` is called for
    the epochs before, too. ``monitors`` are sets whose accuracy and mean recall are recorded as
    ``<name>/accuracy`` and ``<name>/mean_recall`` every ``config.monitor_every`` epochs.
    ``auxiliary`` are images of no class, for phases that ask for outliers.

    Raises:
        ValueError: if the set does not fill one batch, the phase asks for outliers and there are
            none, or a loss is no longer finite.
    """
    training = _Training(method, phase, train, config, seed, device, auxiliary)
    training.restore(resume.load() if resume else None)
    if report:
        training.replay(report)
    epochs = range(training.epoch, phase.epochs)
    for epoch in track(epochs, f"{phase.name}", total=len(epochs), disable=not len(epochs)):
        values = training.run_epoch(epoch)
        method.end_epoch(phase, (monitors or {}).get("validation"), device)
        values |= method.follow()
        if config.monitor_every and (epoch + 1) % config.monitor_every == 0:
            for name, data in (monitors or {}).items():
                found = accuracies(method, method.score, data, device=device)
                values |= {f"{name}/{key}": value for key, value in found.items()}
        training.record(epoch, values)
        done = epoch + 1
        if resume and (done % config.checkpoint_every == 0 or done == phase.epochs):
            resume.save(training.state())
        if report:
            report(phase.name, done, values)
    return training.history


class _Training:
    """The moving parts of a phase: optimizer, schedule, generators, epoch and history."""

    def __init__(
        self,
        method: Method,
        phase: Phase,
        train: ImageSet,
        config: TrainingConfig,
        seed: int,
        device: torch.device,
        auxiliary: ImageSet | None,
    ) -> None:
        self.steps_per_epoch = len(train) // config.batch_size
        if not self.steps_per_epoch:
            raise ValueError(
                f"training.batch_size must be <= the number of training images, "
                f"but is {config.batch_size} with {len(train)} images"
            )
        torch.manual_seed(seed)
        self.method, self.phase, self.config, self.device = method, phase, config, device
        self.format = memory_format(config, device)
        method.to(device)
        method.net.to(memory_format=self.format)
        if config.compile:
            method.net.compile()
        self.train = train.to(device)
        self.auxiliary = _auxiliary(auxiliary, phase, device)
        self.steps = self.steps_per_epoch * phase.epochs
        self.optimizer = _sgd(method, phase, config, device)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: rate_factor(config, step, self.steps, self.steps_per_epoch),
        )
        self.sampler = phase.sampler or config.sampler.build()
        self.order_generator = torch.Generator().manual_seed(seed)
        self.augment_generator = torch.Generator(device).manual_seed(seed)
        self.epoch = 0
        self.history: History = {}

    def run_epoch(self, epoch: int) -> dict[str, float]:
        """Train one epoch; return its mean loss terms, learning rate, seconds and images/s."""
        method, config = self.method, self.config
        self._choose_what_learns()
        method.start_epoch(self.phase, epoch)
        step, totals, started = epoch * self.steps_per_epoch, dict[str, Tensor](), time.monotonic()
        for batch in self._batches(epoch / self.phase.epochs):
            step += 1
            with autocast(config, self.device):
                terms = method.loss(batch.in_format(self.format), step / self.steps)
            self.optimizer.zero_grad(set_to_none=True)
            torch.stack(list(terms.values())).sum().backward()
            if config.gradient_clip:
                torch.nn.utils.clip_grad_norm_(method.parameters(), config.gradient_clip)
            self.optimizer.step()
            self.schedule.step()
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + value.detach()
        # The one transfer of an epoch; it also waits for the device, so that the time is right.
        sums = torch.stack(list(totals.values())).tolist()
        means = {name: s / self.steps_per_epoch for name, s in zip(totals, sums, strict=True)}
        seconds = time.monotonic() - started
        self._check_finite(means, epoch)
        images_seen = self.steps_per_epoch * config.batch_size
        return {
            **{f"train/{name}": value for name, value in means.items()},
            "train/learning_rate": float(self.schedule.get_last_lr()[0]),
            "train/seconds": seconds,
            "train/images_per_second": images_seen / seconds,
        }

    def _batches(self, done: float) -> Iterator[Batch]:
        """Yield the epoch's batches, each with the pair and the outliers that the phase asks for.

        ``done`` is the share of the phase's epochs that are over.
        """
        size, labels = self.config.batch_size, self.train.labels.cpu()
        order = self.sampler(labels, self.order_generator, done)
        found = self._augmented(self.train, order, size, self.method.views)
        if self.phase.pair:
            order = self.phase.pair(labels, self.order_generator, done)
            pairs = self._augmented(self.train, order, size)
            found = (b._replace(pair=p) for b, p in zip(found, pairs, strict=True))
        if self.auxiliary is not None:
            beside = max(round(size * self.phase.outliers), 1)
            needed = self.steps_per_epoch * beside
            order = torch.randint(len(self.auxiliary), (needed,), generator=self.order_generator)
            # what AutoAugment and Cutout make of noise is no noise
            plain = self.config.augment.model_copy(update={"autoaugment": False, "cutout": 0})
            others = self._augmented(self.auxiliary, order, beside, augment=plain)
            found = (b._replace(outliers=o.images) for b, o in zip(found, others, strict=True))
        return found

    def _augmented(
        self,
        data: ImageSet,
        order: Tensor,
        size: int,
        views: int = 0,
        augment: AugmentConfig | None = None,
    ) -> Iterator[Batch]:
        return batches(
            data,
            order.to(self.device),
            size,
            augment or self.config.augment,
            self.augment_generator,
            views=views,
            contrast=self.config.contrast,
        )

    def record(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add an epoch's values to the history."""
        self.epoch = epoch + 1
        for name, value in values.items():
            self.history.setdefault(name, []).append({"step": self.epoch, "value": value})

    def state(self) -> dict[str, Any]:
        """Return all that resuming needs."""
        cuda = self.device.type == "cuda"
        return {
            "epoch": self.epoch,
            "history": self.history,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "order_generator": self.order_generator.get_state(),
            "augment_generator": self.augment_generator.get_state(),
            "torch_generator": torch.get_rng_state(),
            "cuda_generator": torch.cuda.get_rng_state(self.device) if cuda else None,
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Take up a state that ``state`` returned; None leaves the start as it is."""
        if state is None:
            return
        self.epoch, self.history = state["epoch"], state["history"]
        LOGGER.info("Phase %s resumes after epoch %d", self.phase.name, self.epoch)
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.order_generator.set_state(state["order_generator"])
        self.augment_generator.set_state(state["augment_generator"])
        torch.set_rng_state(state["torch_generator"])
        if state["cuda_generator"] is not None:
            torch.cuda.set_rng_state(state["cuda_generator"], self.device)

    def replay(self, report: Report) -> None:
        """Report the epochs that an earlier run did, so that a tracker has the whole curve."""
        points = [(n, p) for n, series in self.history.items() for p in series]
        for epoch in range(1, self.epoch + 1):
            report(self.phase.name, epoch, {n: p["value"] for n, p in points if p["step"] == epoch})

    def _choose_what_learns(self) -> None:
        """Train the phase's submodules; the rest is frozen, its BatchNorm statistics too."""
        self.method.requires_grad_(False).eval()
        for name in self.phase.trained:
            self.method.get_submodule(name).requires_grad_(True).train()

    def _check_finite(self, means: Mapping[str, float], epoch: int) -> None:
        for name, value in means.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"the loss term {name!r} is {value} in epoch {epoch + 1} of phase "
                    f"{self.phase.name!r}: lower training.learning_rate, or set "
                    f"training.gradient_clip"
                )


def _auxiliary(auxiliary: ImageSet | None, phase: Phase, device: torch.device) -> ImageSet | None:
    if not phase.outliers:
        return None
    if auxiliary is None or not len(auxiliary):
        raise ValueError(
            f"phase {phase.name!r} trains on images of no class, but there are none: set "
            f"data.auxiliary"
        )
    return auxiliary.to(device)


def _sgd(
    method: Method, phase: Phase, config: TrainingConfig, device: torch.device
) -> torch.optim.SGD:
    """Return SGD over what the phase trains, without decay where the method says so."""
    undecayed = set(method.no_weight_decay())
    decay: list[Tensor] = []
    rest: list[Tensor] = []
    for scope in phase.trained:
        prefix = f"{scope}." if scope else ""
        for name, parameter in method.get_submodule(scope).named_parameters():
            (rest if prefix + name in undecayed else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=device.type == "cuda",
    )
