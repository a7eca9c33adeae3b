"""MORE (Luo et al., Long-tailed Recognition with Model Rebalancing, 2025), equations 1 to 6.

Every layer of the backbone becomes W = W^g + B A (equation 1). A discrepancy between the network
with and without B A, weighted by the class prior, pushes what head classes need into W^g and leaves
B A to the tail. After training B A is added into W: the deployed network is the plain one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.device import without_tf32
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.engine.protocol import Progress
from lt_pipeline.learning.evaluation.diagnostics.logit_shift import (
    changed_predictions,
    discrepancy_by_group,
    logit_shift,
)
from lt_pipeline.learning.losses.config import CriterionConfig
from lt_pipeline.learning.losses.criteria import LogitAdjustmentConfig
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.methods.families.options import MethodOptions
from lt_pipeline.learning.models.backbones import Features
from lt_pipeline.learning.models.batchnorm import frozen_batchnorm_statistics, reestimate_batchnorm
from lt_pipeline.learning.models.low_rank import (
    Layers,
    add_low_rank,
    fold_low_rank,
    freeze_general,
    general_weights,
    low_rank_parameters,
)
from lt_pipeline.learning.models.network import ModelConfig, Network
from lt_pipeline.learning.schema import UserError


class MoreOptions(MethodOptions):
    """What MORE can be told.

    Attributes:
        criterion: the base loss L_base.
        rank: rank r as a share of a layer's smaller number of channels (the paper's 0.1).
        layers: of the backbone, which are decomposed: ``all`` are convolutions, which are all that
            the paper's ResNets have, and linear ones, as a vision transformer's.
        amplitude: A' = A / C, the peak of the rebalancing loss; 0 drops the loss and keeps the
            decomposition, the paper's ablation.
        schedule: alpha(t) of equation 5: ``sin``, or the ablations ``cos`` and ``constant``.
        discrepancy: ``l2`` is equation 2; ``kl`` is the paper's alternative, KL(p || p^g).
        detach_general: stop the gradient through f(x; theta^g).
        update_batchnorm: let the pass with theta^g update BatchNorm's running statistics too.
        decay_low_rank: apply weight decay to A and B.
        freeze_general_after: share of the run after which W^g is frozen and only then A and B
            learn, which is LoRA; null is MORE, where all learn throughout.
    """

    symbols: ClassVar[Mapping[str, str]] = {
        "A": "amplitude",
        "A'": "amplitude",
        "r": "rank",
        "alpha": "schedule",
    }

    criterion: CriterionConfig = LogitAdjustmentConfig()
    rank: float = Field(default=0.1, gt=0, lt=1)
    layers: Layers = "all"
    amplitude: NonNegativeFloat = 2.0
    schedule: Literal["sin", "cos", "constant"] = "sin"
    discrepancy: Literal["l2", "kl"] = "l2"
    detach_general: bool = False
    update_batchnorm: bool = False
    decay_low_rank: bool = True
    freeze_general_after: float | None = Field(default=None, ge=0, lt=1)

    @property
    def handles_imbalance(self) -> bool:
        """Return true, whatever the criterion."""
        return True


def schedule_weight(schedule: str, progress: Progress) -> Progress:
    """Return alpha / A for ``progress`` = t / T: equation 5 and the two ablations of table 5."""
    of: Any = torch if isinstance(progress, Tensor) else math
    angles = {"sin": math.pi * progress, "cos": math.pi * progress / 2}
    return getattr(of, schedule)(angles[schedule]) if schedule in angles else 1.0


def rebalancing_weight(longtail: LongTail, amplitude: float) -> Tensor:
    """Return A pi_c for ``amplitude`` = A' = A / C, float32 ``[C]`` (equations 3 and 5).

    A pi_y = A' (C pi_y): the product averages A' over the classes.
    """
    return (amplitude * longtail.classes * longtail.prior).float()


def image_weight(weight: Tensor, labels: Tensor) -> Tensor:
    """Return the class ``weight`` ``[C]`` of every image, ``[B]``, of ``labels`` ``[B]``.

    Of several labels, ``[B, C]``, it is the mean over those that the image has (equation 4), and 0
    without one, where the equation is 0 / 0.
    """
    if labels.ndim == 1:
        return weight[labels]
    has = labels.to(weight.dtype)
    return has @ weight / has.sum(1).clamp(min=1)


def discrepancy(full: Tensor, general: Tensor, kind: str, several: bool = False) -> Tensor:
    """Return M(x) ``[B]`` between logits ``[B, C]`` of theta and of theta^g.

    ``l2`` is equation 2, squared and summed over the classes; ``kl`` is KL(p || p^g), of
    ``several`` labels the sum of each one's, which is there or not.
    """
    if kind == "l2":
        return (full - general).square().sum(1)
    if several:
        gap = full.sigmoid() * (full - general) + F.softplus(general) - F.softplus(full)
        return gap.sum(1)
    return F.kl_div(
        general.log_softmax(1), full.log_softmax(1), reduction="none", log_target=True
    ).sum(1)


class More(Method):
    """A base criterion plus the model-rebalancing loss on low-rank decomposed layers."""

    Options = MoreOptions
    options: MoreOptions
    one_label = ""

    def __init__(self, options: MoreOptions, model: ModelConfig, card: DataCard) -> None:
        super().__init__(options, model, card)
        weight = rebalancing_weight(card.longtail, options.amplitude)
        self.register_buffer("rebalancing_weight", weight)
        self.rebalancing_weight: Tensor

    def build(self) -> Network:
        """Return the network with the layers of its backbone decomposed (equation 1).

        Beside a frozen backbone they are the adapters' layers: what does not learn needs no W^g.

        Raises:
            UserError: if it has none of those that are to be, as one of features.
        """
        net, options = super().build(), self.options
        if isinstance(net.backbone, Features):
            raise UserError("there is no layer to decompose: set training.features to none")
        if self.model.adapter.name == "lora":
            raise UserError("model.adapter.name=lora is of low rank already: set it to adaptformer")
        if not add_low_rank(net.learned, options.rank, options.layers):
            raise UserError(
                f"options.layers is {options.layers}, but {self.model.backbone} has none: set all"
            )
        return net

    def no_weight_decay(self) -> Collection[nn.Parameter]:
        """Return A and B where weight decay is not meant for them."""
        if self.options.decay_low_rank:
            return ()
        return [parameter for _, parameter in low_rank_parameters(self.net)]

    @property
    def needs_float32(self) -> bool:
        """Return whether there is a discrepancy: a small difference of two large outputs.

        Under bfloat16 it is mostly what the two passes were rounded by.
        """
        return self.options.amplitude > 0

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Freeze what the LoRA ablation freezes; MORE itself trains everything throughout."""
        super().start_epoch(epoch, epochs)
        if self.options.freeze_general_after is None:
            return
        adapting = epoch >= self.options.freeze_general_after * epochs
        if adapting:
            freeze_general(self.net)
            return
        for _, parameter in low_rank_parameters(self.net):
            parameter.requires_grad_(False)

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return L_base and alpha(t) * L_MORE (equations 3 to 6); ``progress`` is t / T."""
        outputs = self.outputs(batch)
        terms = self.criterion.terms(outputs, batch.labels)
        if self.options.amplitude:
            general = self._general_logits(batch)
            if self.options.detach_general:
                general = general.detach()
            several = self.card.longtail.several
            gap = discrepancy(outputs.logits, general, self.options.discrepancy, several)
            alpha = schedule_weight(self.options.schedule, progress)
            weight = image_weight(self.rebalancing_weight, batch.labels)
            terms["rebalancing"] = alpha * (weight * gap).mean()
        return terms

    def diagnose(
        self, train: Images, test: Images, device: torch.device
    ) -> dict[str, dict[str, float]]:
        """Return what B A does to the logits and decisions on ``test``, by group.

        That is table 4's logit shift, the discrepancy of equation 2, and the share of predictions
        that are others with B A than without.

        Training compares both passes with each normalised by its own batch. Likewise here each
        gets BatchNorm statistics re-estimated on ``train``: the running ones are of theta alone,
        and their own error would outweigh what B A does.
        """
        self.to(device)
        full = self._reestimated_logits(train, test, device)
        with general_weights(self.net):
            general = self._reestimated_logits(train, test, device)
        longtail = self.card.longtail
        return {
            "logit_shift": logit_shift(full, general, test.labels, longtail),
            "discrepancy": discrepancy_by_group(full, general, test.labels, longtail),
            "changed_predictions": changed_predictions(full, general, test.labels, longtail),
        }

    def merge_for_inference(self) -> None:
        """Merge B A into W: the network has the plain one's parameters and the same logits."""
        super().merge_for_inference()
        fold_low_rank(self.net)

    def _reestimated_logits(self, train: Images, test: Images, device: torch.device) -> Tensor:
        kept = {name: value.clone() for name, value in self.net.state_dict().items()}
        with without_tf32():
            reestimate_batchnorm(self.net, train, device=device)
            logits = predict(self, self.score, test, device=device)
        self.net.load_state_dict(kept)
        return logits

    def _general_logits(self, batch: Batch) -> Tensor:
        """Return f(x; theta^g), ``[B, C]``, normalised by its own batch statistics.

        Views, where there are any, are in its batch, too: both passes normalise the same images.
        """
        update = self.options.update_batchnorm
        statistics = nullcontext() if update else frozen_batchnorm_statistics(self.net)
        with general_weights(self.net), statistics:
            return self.outputs(batch).logits
