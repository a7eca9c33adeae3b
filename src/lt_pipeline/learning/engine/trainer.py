"""The one training loop. It knows no method, data set or logger."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.checkpoint import ResumeFile
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.device import autocast, memory_format, without_tf32
from lt_pipeline.learning.engine.loader import Stream
from lt_pipeline.learning.engine.phase import Phase
from lt_pipeline.learning.engine.predict import accuracies
from lt_pipeline.learning.engine.progress import shown
from lt_pipeline.learning.engine.schedule import rate_factor
from lt_pipeline.learning.evaluation.metrics.finite import ADVICE
from lt_pipeline.learning.schema import UserError, one_line_errors

if TYPE_CHECKING:
    from lt_pipeline.learning.methods._base import Method

LOGGER = logging.getLogger(__name__)

# of an epoch, what is no term of the loss
MEASURED = ("learning_rate", "seconds", "images_per_second")
# name -> [{"step": epoch from 1, "value": value}, ...]
History = dict[str, list[dict[str, float]]]
# Called after every epoch with the phase's name, the epoch (from 1) and its values.
Report = Callable[[str, int, Mapping[str, float]], None]


def fit(
    method: Method,
    phase: Phase,
    train: Images,
    config: TrainingConfig,
    *,
    seed: int,
    device: torch.device,
    monitors: Mapping[str, Images] | None = None,
    auxiliary: Images | None = None,
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
        UserError: if the set does not fill one batch, the phase asks for outliers and there are
            none, or a loss, a weight or a monitored score is no longer finite.
    """
    training = Training(method, phase, train, config, seed, device, auxiliary)
    training.restore(resume.load() if resume else None)
    if report:
        training.replay(report)
    epochs = range(training.epoch, phase.epochs)
    with shown(phase.name, len(epochs) * training.steps_per_epoch, patience=0) as progress:
        for epoch in epochs:
            values = training.run_epoch(epoch, progress.advance)
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
            progress.note(in_short(done, phase.epochs, values))
    return training.history


def in_short(epoch: int, epochs: int, values: Mapping[str, float]) -> str:
    """Return of an epoch's ``values`` what a person who waits wants to see."""
    terms = [
        value
        for name, value in values.items()
        if name.startswith("train/") and name.removeprefix("train/") not in MEASURED
    ]
    parts = [f"epoch {epoch}/{epochs}", f"loss {sum(terms):.3f}"]
    for name in ("validation/mean_recall", "test/accuracy"):
        if name in values:
            parts.append(f"{name.replace('/', ' ').replace('_', ' ')} {100 * values[name]:.1f} %")
    parts.append(f"rate {values['train/learning_rate']:.2g}")
    return " · ".join([*parts, f"{values['train/images_per_second']:,.0f} images/s"])


class Training:
    """The moving parts of a phase: optimizer, schedule, stream of batches, epoch and history."""

    def __init__(
        self,
        method: Method,
        phase: Phase,
        train: Images,
        config: TrainingConfig,
        seed: int,
        device: torch.device,
        auxiliary: Images | None,
    ) -> None:
        config = phase_config(config, phase)
        self.method, self.phase, self.config, self.device = method, phase, config, device
        self.stream = Stream(
            phase,
            train,
            config,
            views=method.views,
            seed=seed,
            device=device,
            auxiliary=auxiliary,
        )
        torch.manual_seed(seed)
        self.format = memory_format(config, device)
        method.to(device)
        method.net.to(memory_format=self.format)
        if config.compile:
            method.net.compile()
        self.steps_per_epoch = self.stream.steps
        self.steps = self.steps_per_epoch * phase.epochs
        learning = dict(trained_parameters(method, phase))
        self.optimizer = sgd(learning, method, phase, config, device)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: rate_factor(config, step, self.steps, self.steps_per_epoch),
        )
        self.epoch = 0
        self.history: History = {}

    def run_epoch(self, epoch: int, tick: Callable[[], None] | None = None) -> dict[str, float]:
        """Train one epoch; return its mean loss terms, learning rate, seconds and images/s.

        ``tick`` is called after every step.
        """
        choose_what_learns(self.method, self.phase)
        self.method.start_epoch(self.phase, epoch)
        step, totals, started = epoch * self.steps_per_epoch, dict[str, Tensor](), time.monotonic()
        for batch in self.stream.epoch(epoch / self.phase.epochs):
            step += 1
            for name, value in self._step(batch.in_format(self.format), step / self.steps).items():
                totals[name] = totals.get(name, 0.0) + value
            if tick:
                tick()
        # The one transfer of an epoch; it also waits for the device, so that the time is right.
        state = [*self.method.parameters(), *self.method.buffers()]
        *sums, finite = torch.stack([*totals.values(), all_finite(state)]).tolist()
        means = {name: s / self.steps_per_epoch for name, s in zip(totals, sums, strict=True)}
        seconds = time.monotonic() - started
        check_finite(means, bool(finite), self.phase, epoch)
        return {
            **{f"train/{name}": value for name, value in means.items()},
            "train/learning_rate": float(self.schedule.get_last_lr()[0]),
            "train/seconds": seconds,
            "train/images_per_second": self.stream.images / seconds,
        }

    def _step(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Take one step; return its loss terms."""
        method, exact = self.method, self.method.needs_float32
        with without_tf32(exact):
            with autocast(self.config, self.device, exact=exact):
                terms = method.loss(batch, progress)
            self.optimizer.zero_grad(set_to_none=True)
            torch.stack(list(terms.values())).sum().backward()
        if self.config.gradient_clip:
            torch.nn.utils.clip_grad_norm_(method.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.schedule.step()
        return {name: value.detach() for name, value in terms.items()}

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
            **self.stream.state(),
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
        self.stream.restore(state)
        torch.set_rng_state(state["torch_generator"])
        if state["cuda_generator"] is not None:
            torch.cuda.set_rng_state(state["cuda_generator"], self.device)

    def replay(self, report: Report) -> None:
        """Report the epochs that an earlier run did, so that a tracker has the whole curve."""
        points = [(n, p) for n, series in self.history.items() for p in series]
        for epoch in range(1, self.epoch + 1):
            report(self.phase.name, epoch, {n: p["value"] for n, p in points if p["step"] == epoch})


def phase_config(config: TrainingConfig, phase: Phase) -> TrainingConfig:
    """Return the parameters of the training with what is different in ``phase``.

    Raises:
        UserError: if the two do not go together.
    """
    with one_line_errors(f"training of phase {phase.name}"):
        return TrainingConfig.model_validate({**config.model_dump(), **phase.training})


def trained_parameters(method: nn.Module, phase: Phase) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield what learns in ``phase``, by its name in ``method``."""
    learning = {id(p) for scope in phase.trained for p in parameters_of(method, scope)}
    for name, parameter in method.named_parameters():
        if id(parameter) in learning:
            yield name, parameter


def parameters_of(method: nn.Module, scope: str) -> Iterator[nn.Parameter]:
    """Yield the parameter ``scope``, or those of the submodule; "" is all.

    By identity, not by name: a submodule may be reached in more ways than one.
    """
    if scope in dict(method.named_parameters()):
        yield method.get_parameter(scope)
    else:
        yield from method.get_submodule(scope).parameters()


def choose_what_learns(method: nn.Module, phase: Phase) -> None:
    """Train what the phase trains; the rest is frozen, and its BatchNorm unless it adapts."""
    method.requires_grad_(False).eval()
    for _, parameter in trained_parameters(method, phase):
        parameter.requires_grad_(True)
    parameters = dict(method.named_parameters())
    for scope in phase.trained:
        if scope not in parameters:
            method.get_submodule(scope).train()
    for scope in phase.adapts:
        for module in method.get_submodule(scope).modules():
            if isinstance(module, _BatchNorm):
                module.train()


def sgd(
    learning: Mapping[str, Tensor],
    method: Method,
    phase: Phase,
    config: TrainingConfig,
    device: torch.device,
) -> torch.optim.SGD:
    """Return SGD over ``learning``, by name, with the decay and rates that the method wants."""
    undecayed = set(method.no_weight_decay())
    groups: dict[tuple[float, float], list[Tensor]] = {}
    scopes = [
        ({id(p) for p in parameters_of(method, scope)}, rate) for scope, rate in phase.rates.items()
    ]
    for name, parameter in learning.items():
        own = id(method.get_parameter(name))
        rates = [rate for members, rate in scopes if own in members]
        decay = 0.0 if name in undecayed else config.weight_decay
        groups.setdefault((math.prod(rates), decay), []).append(parameter)
    return torch.optim.SGD(
        [
            {
                "params": groups[rate, decay],
                "lr": config.learning_rate * rate,
                "weight_decay": decay,
            }
            for rate, decay in sorted(groups, reverse=True)
        ],
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=device.type == "cuda",
    )


def all_finite(tensors: Iterable[Tensor], networks: tuple[int, ...] = ()) -> Tensor:
    """Return 1.0 where all of ``tensors`` are finite and 0.0 where not, without a transfer.

    Integers are. Tensors of K ``networks`` at once are ``[K, ...]``, and so is what is returned.
    """
    finite = [t.isfinite().reshape(*networks, -1).all(-1) for t in tensors if t.is_floating_point()]
    return torch.stack(finite).all(0).float()


def check_finite(means: Mapping[str, float], weights: bool, phase: Phase, epoch: int) -> None:
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
        raise UserError(f"{wrong[0]} in epoch {epoch + 1} of phase {phase.name!r}: {ADVICE}")
