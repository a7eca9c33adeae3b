"""LGLA (Tao et al., Local and Global Logit Adjustments for Long-Tailed Learning, ICCV 2023).

Local experts rank the classes of one group each, a global one ranks all; an image weighs more where
it is further from its class than others of its group.
"""

from __future__ import annotations

import math

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.engine.protocol import Progress
from lt_pipeline.learning.evaluation.diagnostics.logit_shift import by_group, by_group_and_all
from lt_pipeline.learning.losses import local_global as losses
from lt_pipeline.learning.losses.ambiguity import energy
from lt_pipeline.learning.losses.criteria import CrossEntropyConfig
from lt_pipeline.learning.losses.experts import by_expert
from lt_pipeline.learning.losses.functional import at_least_float32
from lt_pipeline.learning.methods.families.experts import ExpertMethod, ExpertOptions
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.schema import UserError

# energies by class are kept at this many points of the run, for the pictures
SNAPSHOTS = 51


class LglaOptions(ExpertOptions):
    """What LGLA can be told.

    Attributes:
        criterion: fixed, but for a margin, which then stands in front of every expert's loss.
        experts: all but the last are local, each for a group with as many images as the others'.
        reduced: false, as in the authors' code.
        tau_global: the global expert's adjustment in log priors: 2.5 on CIFAR-100, 3 on CIFAR-10.
        angular: weight images by their angle to the class; needs a cosine head.
        tau: temperature of the energy that is followed (DARL, equation 8).
    """

    criterion: CrossEntropyConfig = CrossEntropyConfig()
    reduced: bool = False
    tau_global: NonNegativeFloat = 2.5
    angular: bool = True
    tau: PositiveFloat = 8.0

    def check_head(self, cosine: bool) -> None:
        """Refuse angles without a cosine head."""
        super().check_head(cosine)
        if self.angular and not cosine:
            raise UserError("angular: weights by angle need model.head = cosine")


class LGLA(ExpertMethod):
    """Local and global experts, scored by the mean of their logits as they are."""

    Options = LglaOptions
    options: LglaOptions

    def __init__(self, options: LglaOptions, model: ModelConfig, card: DataCard) -> None:
        super().__init__(options, model, card)
        longtail = card.longtail
        if options.experts > longtail.classes + 1:
            raise UserError(
                f"options.experts must be at most {longtail.classes + 1}, as every local expert "
                f"needs one of the {longtail.classes} classes, but is {options.experts}"
            )
        class_mask = losses.half_groups(longtail.counts, options.experts - 1)
        shift = losses.expert_shifts(longtail.prior, class_mask, options.tau_global)
        self.register_buffer("member", class_mask)  # [K - 1, C]
        self.register_buffer("shift", shift.float())  # [K, C]
        # of the epoch that runs: images, energies and E_hat - 1 by class
        self.register_buffer("sums", torch.zeros(3, longtail.classes))
        # mean energy and E_hat - 1 by class over the run; a class that no epoch has shown yet has
        # the energy of logits that are all 0
        unseen = torch.tensor([-options.tau * math.log(longtail.classes), 0.0])
        self.register_buffer(
            "ambiguity", unseen[:, None, None].repeat(1, SNAPSHOTS, longtail.classes)
        )
        self.member: Tensor
        self.shift: Tensor
        self.sums: Tensor
        self.ambiguity: Tensor
        # the point of the run that the epoch is at; a buffer, as no step is by it
        self.register_buffer("snapshot", torch.zeros((), dtype=torch.int64), persistent=False)
        self.snapshot: Tensor

    @property
    def expert_names(self) -> list[str]:
        """Return the experts' names, in their order."""
        return [*(f"local_{g + 1}" for g in range(len(self.member))), "global"]

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Note how far the run is."""
        super().start_epoch(epoch, epochs)
        self.snapshot.fill_(round(epoch / epochs * (SNAPSHOTS - 1)))

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return every expert's loss."""
        logits = at_least_float32(self.net(batch.images))  # [B, K, C]
        energies = energy(logits, self.options.tau).mean(1)
        self._watch(energies, torch.zeros_like(energies), batch.labels)
        weighted = self.expert_losses(logits, logits + self.shift, batch.labels)
        return self._named(weighted)

    def expert_losses(
        self,
        logits: Tensor,
        adjusted: Tensor,
        labels: Tensor,
        reference: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the weighted losses ``[B, K]`` of ``adjusted`` logits ``[B, K, C]``.

        The angles that weigh are those of the ``logits`` as they came, compared with those of the
        ``reference`` logits and labels, by default the same.
        """
        margin = self.criterion.margin
        if margin is not None:
            repeated = labels.repeat_interleave(logits.shape[1])
            flat = logits.flatten(0, 1)
            adjusted = adjusted + (margin(flat, repeated) - flat).view_as(logits)
        unweighted = by_expert(adjusted, labels)
        if not self.options.angular:
            return unweighted
        return unweighted * losses.angular_weight(
            logits, labels, self.model.scale, self.member, reference
        )

    def _named(self, values: Tensor) -> dict[str, Tensor]:
        """Return the means of losses ``[B, K]`` by expert."""
        return dict(zip(self.expert_names, values.mean(0), strict=True))

    @torch.no_grad()
    def _watch(self, energies: Tensor, excess: Tensor, labels: Tensor) -> None:
        """Add a batch's energies and E_hat - 1, both ``[B]``, by class."""
        self.sums.index_add_(1, labels, torch.stack([torch.ones_like(energies), energies, excess]))

    def end_epoch(self, epochs: int, validation: Images | None, device: torch.device) -> None:
        """Keep the means by class of the epoch that is over."""
        super().end_epoch(epochs, validation, device)
        images, *totals = self.sums
        for kept, total in zip(self.ambiguity, totals, strict=True):
            # a class that the epoch did not show keeps what it had
            kept[int(self.snapshot) :] = torch.where(
                images > 0, total / images.clamp(min=1), kept[-1]
            )
        self.sums.zero_()

    def epoch_metrics(self) -> dict[str, float]:
        """Return energy and E_hat - 1 by group."""
        labels = torch.arange(self.card.longtail.classes, device=self.ambiguity.device)
        return super().epoch_metrics() | {
            f"ambiguity/{name}_{group}": value
            for name, values in zip(("energy", "weight_above_1"), self.ambiguity, strict=True)
            for group, value in by_group(values[-1], labels, self.card.longtail).items()
        }

    def training_curves(self) -> dict[str, list[list[float]]]:
        """Return energy and E_hat - 1 by class over the run, each ``[S][C]``."""
        energies, excess = self.ambiguity.tolist()
        return {"energy": energies, "weight_above_1": excess}

    def diagnose(
        self, train: Images, test: Images, device: torch.device
    ) -> dict[str, dict[str, float]]:
        """Return by group of ``test`` what every expert gets right."""
        self.to(device)
        logits = predict(self, self.net, test, device=device)  # [N, K, C]
        right = (logits.argmax(2) == test.labels.cpu()[:, None]).double()
        return {
            f"accuracy_{name}": by_group_and_all(right[:, k], test.labels.cpu(), self.card.longtail)
            for k, name in enumerate(self.expert_names)
        }

    def notes(self) -> list[str]:
        """Say which classes the local experts have, and whom the adjustment favours."""
        left, groups = self.prior_left(), self.card.longtail.groups
        notes = [
            *super().notes(),
            "local experts are for "
            + " and ".join(f"{int(n)} classes" for n in self.member.sum(1))
            + ", from most to fewest training images, each with about as many images",
        ]
        if {"few", "many"} <= groups.keys():
            few, many = (float(left[[*groups[name]]].mean()) for name in ("few", "many"))
            notes.append(
                f"adjusted like this, the mean logits favour few-shot classes over many-shot ones "
                f"by {few - many:+.2f} nats"
            )
        return notes

    def prior_left(self) -> Tensor:
        """Return what the adjustment leaves of the labels' prior in the mean logits, ``[C]``."""
        return losses.prior_left(self.card.longtail.prior.to(self.shift), self.shift)

    def merge_for_inference(self) -> None:
        """Drop the criterion, what is added to logits in training, and the statistics."""
        super().merge_for_inference()
        for name, _ in [*self.named_buffers(recurse=False)]:
            delattr(self, name)
