"""DARL (Zhang, Chin et al., Mitigating Gradient Conflicts in Long-Tailed OOD Learning, MM 2025).

LGLA's experts learn from the long-tailed set, a balanced draw of it and mixtures of both; how
ambiguous an image is to an expert scales the adjustment of its logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.samplers import class_balanced
from lt_pipeline.learning.engine.parallel import generator
from lt_pipeline.learning.engine.protocol import Progress
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.losses import ambiguity as losses
from lt_pipeline.learning.losses.ambiguity import Ambiguity
from lt_pipeline.learning.losses.functional import at_least_float32
from lt_pipeline.learning.losses.local_global import expert_shifts, prior_left
from lt_pipeline.learning.methods.lgla import LGLA, LglaOptions
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.transforms.mix import MixConfig, Mixed, expected_lam, mix, two_hot_loss


class DarlOptions(LglaOptions):
    """What DARL can be told; docs/methods/darl.md says what the paper leaves open.

    Attributes:
        original: images of the long-tailed draw in a step, as a share of training.batch_size.
        balanced: images of the class-balanced draw, likewise.
        mixed: mixtures, likewise.
        mix: how two images are mixed; with ``mixup`` and ``cutmix`` both false nothing is.
        prior: whose labels the adjustment is for: ``parts``, every part by its own, the long-tailed
            draw by the long-tailed set's, the balanced one by none, a mixture by what its lam
            makes of the two; ``training``, all by the long-tailed set's, equation 7 to the letter;
            ``step``, all by those that a step shows, a third long-tailed and the rest levelled.
        pairs: an image of the long-tailed draw is mixed with one of the ``balanced`` draw (section
            4.1), or of the ``original`` one (section 4.2).
        ambiguity: E_hat of equation 9: ``softmax`` as it is written, 1 + softmax(E) over the
            samples of a step; ``scaled_softmax`` times their number; ``class_means`` over the
            classes' mean energies; or the controls ``constant`` and ``none``.
        constant: E_hat where it is constant.
        momentum: of the classes' mean energies, by step.
        detach: E_hat passes no gradient on; ``class_means`` never does.
        energy_of: each ``expert``'s own logits, or their mean, ``fused``.
        tau: temperature of the energy (equation 8).
    """

    symbols: ClassVar[Mapping[str, str]] = {"E_hat": "ambiguity", "K": "experts"}

    original: float = Field(default=1.0, gt=0, le=1)
    balanced: float = Field(default=1.0, ge=0, le=1)
    mixed: float = Field(default=1.0, ge=0, le=1)
    mix: MixConfig = MixConfig()
    prior: Literal["parts", "training", "step"] = "parts"
    pairs: Literal["balanced", "original"] = "balanced"
    ambiguity: Ambiguity = "softmax"
    constant: NonNegativeFloat = 2.0
    momentum: float = Field(default=0.9, ge=0, lt=1)
    detach: bool = True
    energy_of: Literal["expert", "fused"] = "expert"

    @property
    def mixed_fraction(self) -> float:
        """Return the share of mixtures, which is 0 where nothing mixes."""
        return self.mixed if self.mix.mixup or self.mix.cutmix else 0.0

    @property
    def draws_pairs(self) -> bool:
        """Return whether a step needs a second, balanced draw."""
        return bool(self.balanced or (self.mixed_fraction and self.pairs == "balanced"))


class DARL(LGLA):
    """LGLA with mixed data and ambiguity-aware logit adjustment."""

    Options = DarlOptions
    options: DarlOptions

    def __init__(self, options: DarlOptions, model: ModelConfig, card: DataCard) -> None:
        super().__init__(options, model, card)
        if options.prior == "step":
            self.shift = self._shifts(self.step_prior())
        self.register_buffer("prior", card.longtail.prior.float())  # [C]
        self.prior: Tensor
        start = losses.energy(torch.zeros(card.longtail.classes), options.tau)
        self.register_buffer(
            "class_energy", start.expand(options.experts, card.longtail.classes).clone()
        )
        self.class_energy: Tensor

    @classmethod
    def stages(cls, options: DarlOptions) -> tuple[Stage, ...]:
        """Return one stage, whose batches come in pairs where a balanced draw is needed."""
        return (Stage("train", pair=class_balanced if options.draws_pairs else None),)

    def prepare(self, batch: Batch) -> Batch:
        """Return ``batch`` with the mixtures of its images and their pairs, unless it has them.

        Raises:
            ValueError: if it brings no pair and a balanced draw is needed.
        """
        if batch.mixed is not None:
            return batch
        images, labels, pair, mixed = batch.images, batch.labels, batch.pair, self._sizes(batch)[2]
        if pair is None and self.options.draws_pairs:
            raise ValueError("DARL's batches must bring a balanced pair, but this one has none")
        other = (images.roll(1, 0), labels.roll(1, 0))
        if pair is not None and self.options.pairs == "balanced":
            other = (pair.images, pair.labels)
        made = self._mixture((images[:mixed], labels[:mixed]), (other[0][:mixed], other[1][:mixed]))
        return batch._replace(mixed=made)

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return every expert's loss, the mean over all images of the step (equations 3, 7, 9)."""
        plain, labels, mixed = self._parts(batch)
        own, cut = self._sizes(batch)[0], len(labels)
        logits = at_least_float32(self.net(torch.cat([plain.float(), mixed.images])))  # [N, K, C]
        first = torch.cat([labels, mixed.first])
        energies, weight = self.ambiguity_weight(logits, first, cut)
        self._watch(energies[:own].mean(1), weight[:own].mean(1) - 1, labels[:own])
        shift = self.step_shifts(own, cut - own, mixed.lam)
        adjusted = losses.adjusted_logits(logits, weight, shift)
        # angles are compared with those of images of one class, for either label of a mixture
        plainly = (logits[:cut], labels)
        loss = self.expert_losses(logits, adjusted, first, plainly)
        second = self.expert_losses(logits[cut:], adjusted[cut:], mixed.second, plainly)
        return self._named(torch.cat([loss[:cut], two_hot_loss(loss[cut:], second, mixed.lam)]))

    def ambiguity_weight(self, logits: Tensor, labels: Tensor, plain: int) -> tuple[Tensor, Tensor]:
        """Return energies and E_hat, ``[N, K]``, of ``logits`` ``[N, K, C]``.

        The first ``plain`` images are of one class each and make the means of ``class_means``.
        """
        options = self.options
        seen = logits.detach() if options.detach else logits
        if options.energy_of == "fused":
            seen = seen.mean(1, keepdim=True).expand_as(seen)
        energies = losses.energy(seen, options.tau)
        if options.ambiguity == "class_means" and self.training:
            means = losses.class_mean_energy(
                self.class_energy, energies[:plain], labels[:plain], options.momentum
            )
            self.class_energy.copy_(means)
        return energies, losses.ambiguity_weight(
            energies,
            options.ambiguity,
            constant=options.constant,
            class_energy=self.class_energy,
            labels=labels,
        )

    def step_shifts(self, own: int, balanced: int, lam: Tensor) -> Tensor:
        """Return what experts add to a step's logits: ``[K, C]``, or ``[N, K, C]`` by ``parts``.

        The step has ``own`` images as drawn, ``balanced`` ones and a mixture for each of ``lam``
        ``[M]``. The labels of a mixture are of both draws, by its lam: one that is all of one
        image is adjusted as that image.
        """
        if self.options.prior != "parts":
            return self.shift
        tailed = lam if self.options.pairs == "balanced" else torch.ones_like(lam)
        tailed = torch.cat([lam.new_ones(own), lam.new_zeros(balanced), tailed])[:, None]
        return self._shifts(tailed * self.prior + (1 - tailed) / len(self.prior))

    def _shifts(self, prior: Tensor) -> Tensor:
        return expert_shifts(prior, self.member, self.options.tau_global).float()

    def _sizes(self, batch: Batch) -> tuple[int, int, int]:
        """Return how many images of a step are as drawn, balanced and mixed."""
        options, size = self.options, len(batch.images)
        own, balanced, mixed = options.original, options.balanced, options.mixed_fraction
        return max(round(own * size), 1), round(balanced * size), round(mixed * size)

    def _parts(self, batch: Batch) -> tuple[Tensor, Tensor, Mixed]:
        """Return the images of one class uint8 ``[P, ...]``, their labels, and the mixtures."""
        batch = self.prepare(batch)
        own, balanced, _ = self._sizes(batch)
        images, labels, pair = batch.images[:own], batch.labels[:own], batch.pair
        if pair is not None:
            images = torch.cat([images, pair.images[:balanced]])
            labels = torch.cat([labels, pair.labels[:balanced]])
        return images, labels, batch.mixtures

    def _mixture(self, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Mixed:
        if not len(one[0]):
            return Mixed(one[0].float(), one[1], other[1], torch.empty(0, device=one[0].device))
        return mix(*one, *other, self.options.mix, generator())

    def notes(self) -> list[str]:
        """Say how far the labels of a step are from those that the adjustment stands for."""
        seen = self.step_prior()
        adjusted = {
            "training": {"": self.card.longtail.prior},
            "step": {"": seen},
            "parts": {f" {name}": prior for name, (_, prior) in self.part_priors().items()},
        }[self.options.prior]
        imbalances = [f"{_imbalance(prior)}{name}" for name, prior in adjusted.items()]
        return [
            *super().notes(),
            f"the labels of a training step have an imbalance of {_imbalance(seen)}, the "
            f"adjustment is for {', '.join(imbalances)}",
        ]

    def prior_left(self) -> Tensor:
        """Return what the adjustment leaves in the mean logits, ``[C]``, at the mean E_hat.

        By ``parts`` it is the mean over the images of a step, a mixture with the expected share: no
        more than an estimate, as one network answers for all parts.
        """
        scale = losses.mean_weight(self.options.ambiguity, self.options.constant)
        if self.options.prior != "parts":
            return prior_left(self.step_prior().to(self.shift), scale * self.shift)
        left = torch.zeros_like(self.prior)
        for weight, prior in self.part_priors().values():
            part_prior = prior.to(self.prior)
            left += weight * prior_left(part_prior, scale * self._shifts(part_prior))
        return left

    def part_priors(self) -> dict[str, tuple[float, Tensor]]:
        """Return of each part its share of a step and its labels' expected prior, float64 ``[C]``.

        The labels of a mixture's partner are those of the draw that it comes from.
        """
        options, prior = self.options, self.card.longtail.prior
        level = torch.full_like(prior, 1 / len(prior))
        parts = {"as drawn": (options.original, prior), "balanced": (options.balanced, level)}
        if options.mixed_fraction:
            lam = expected_lam(options.mix)
            partner = level if options.pairs == "balanced" else prior
            parts["mixed"] = (options.mixed_fraction, lam * prior + (1 - lam) * partner)
        whole = sum(size for size, _ in parts.values())
        return {name: (size / whole, expected) for name, (size, expected) in parts.items() if size}

    def step_prior(self) -> Tensor:
        """Return the expected share of every class among a step's labels, float64 ``[C]``."""
        return torch.stack([weight * prior for weight, prior in self.part_priors().values()]).sum(0)


def _imbalance(prior: Tensor) -> str:
    return f"{float(prior.max() / prior.min()):.1f}"
