"""DQRoute (Wei, Ouyang, Ye: Divide, Weight, and Route, 2025), equations 1 to 10.

Three experts for all classes, rarer ones and the rarest. Each says by a head of its own how much an
image is like its classes; that routes the image. Classes weigh by how hard they still are and by
how few images they have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from lt_pipeline.data.batches import Batch
from lt_pipeline.data.images import ImageSet
from lt_pipeline.data.longtail import LongTail
from lt_pipeline.data.prepare import DataCard
from lt_pipeline.diagnostics.logit_shift import by_group
from lt_pipeline.engine.phase import Phase
from lt_pipeline.engine.predict import predict
from lt_pipeline.figures.routing import class_weights, routing_by_group
from lt_pipeline.losses import routing
from lt_pipeline.losses.criteria import weighted
from lt_pipeline.methods._experts import ExpertMethod, ExpertOptions
from lt_pipeline.models.experts import ExpertHeads
from lt_pipeline.models.network import ModelConfig

EXPERTS = ("E_G", "E_M", "E_T")
# the class weights are kept at this many points of the run, for the picture
SNAPSHOTS = 51


class DqrouteOptions(ExpertOptions):
    """What DQRoute can be told; docs/methods/dqroute.md says what the paper leaves open.

    Attributes:
        experts: three, as the groups of classes are.
        medium_below: tau_m, the training images below which a class is E_M's, too.
        tail_below: tau_t, below which it is E_T's, too.
        alpha: share of the difficulty weight against the quantity weight (equation 3); null is no
            class weight at all, the ablation "OOD only" of figure 4.
        gamma: how much an epoch's difficulty adds to a weight's logarithm (equation 2).
        keep: how much of that logarithm an epoch leaves; 1 is equation 2, less has a fixed point.
        balance: lambda of equation 1, the say of accuracy against entropy.
        smoothing: of entropy and accuracy over the epochs; 0 takes each epoch's alone.
        difficulty: where both are measured: on the ``training`` batches as they went by, or on the
            ``validation`` hold-out (needs data.validation). Never on the test set.
        quantity: q_c of equation 3.
        weighted_mean: divide a batch's loss by its weights; else by its images.
        warmup: share of the epochs with equal routing and no update of the difficulty weight.
        route: false takes the experts alike and has no OOD heads' loss: "difficulty only".
        group_mode: ``soft`` is equation 10; ``hard`` gives an expert the images of its classes
            only (equation 4); ``masked`` has it choose among them only, too.
        detach_routing: the classification loss does not train the OOD heads.
        ood_loss: of table 6.
        ood_weight: lambda_OOD of equation 9.
        uniform_weight: the say of the entropy term within ``ood_loss: entropy``.
        weighted_ood: weight the OOD heads' loss by class, too.
        fuse: ``probabilities`` (equation 6) or ``logits``.
    """

    experts: Literal[3] = 3
    medium_below: PositiveInt = 100
    tail_below: PositiveInt = 20
    alpha: float | None = Field(default=0.5, ge=0, le=1)
    gamma: NonNegativeFloat = 0.02
    keep: float = Field(default=1.0, ge=0, le=1)
    balance: NonNegativeFloat = 1.0
    smoothing: float = Field(default=0.9, ge=0, lt=1)
    difficulty: Literal["training", "validation"] = "training"
    quantity: routing.Quantity = "inverse"
    weighted_mean: bool = True
    warmup: float = Field(default=0.025, ge=0, lt=1)
    route: bool = True
    group_mode: Literal["soft", "hard", "masked"] = "soft"
    detach_routing: bool = True
    ood_loss: routing.OodLoss = "entropy"
    ood_weight: NonNegativeFloat = 0.1
    uniform_weight: NonNegativeFloat = 0.1
    weighted_ood: bool = True
    fuse: Literal["probabilities", "logits"] = "probabilities"

    @property
    def wants_validation(self) -> bool:
        """Return whether a hold-out is needed."""
        return self.difficulty == "validation" or super().wants_validation


class DQRoute(ExpertMethod):
    """Experts routed by their own OOD heads, classes weighted by difficulty and quantity."""

    Options = DqrouteOptions
    options: DqrouteOptions

    def __init__(self, options: DqrouteOptions, model: ModelConfig, card: DataCard) -> None:
        super().__init__(options, model, card)
        longtail = card.longtail
        self.gates = ExpertHeads("linear", len(EXPERTS), self.net.width, 1, scale=1.0)
        member, self.rule = routing.expert_classes(
            longtail.class_counts, options.medium_below, options.tail_below
        )
        classes = longtail.classes
        self.register_buffer("member", member)  # [K, C]
        self.register_buffer("log_weight", torch.full((classes,), -math.log(classes)))
        self.register_buffer("entropy", torch.full((classes,), math.log(classes)))
        self.register_buffer("accuracy", torch.zeros(classes))
        # of the epoch that runs: images, their entropies and right answers by class, [3, C]
        self.register_buffer("sums", torch.zeros(3, classes))
        quantity = routing.quantity_weight(longtail.counts, options.quantity)
        self.register_buffer("quantity", quantity.float())
        self.register_buffer("weight_history", torch.ones(SNAPSHOTS, classes))
        self.member: Tensor
        self.log_weight: Tensor
        self.entropy: Tensor
        self.accuracy: Tensor
        self.sums: Tensor
        self.quantity: Tensor
        self.weight_history: Tensor
        self.warming = options.warmup > 0

    def class_weight(self) -> Tensor:
        """Return the final weight of every class, ``[C]``, of mean 1 (equation 3)."""
        if self.options.alpha is None:
            return torch.ones_like(self.quantity)
        return routing.mixed_weight(self.log_weight, self.quantity, self.options.alpha)

    def start_epoch(self, phase: Phase, epoch: int) -> None:
        """Note the class weights, and end the warm-up where it ends."""
        super().start_epoch(phase, epoch)
        done = epoch / phase.epochs
        self.warming = done < self.options.warmup
        self.weight_history[round(done * (SNAPSHOTS - 1)) :] = self.class_weight()

    def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return L_cls (equation 10) and lambda_OOD L_OOD (equations 7 to 9)."""
        features = self.net.features(batch.images)
        logits: Tensor = self.net.head(features).float()
        gates = self.gates(features).squeeze(2).float()
        share = self._routing(gates)
        self._count(logits, share, batch.labels)
        weight = self.class_weight()[batch.labels]
        member = self.member[:, batch.labels].T
        terms = {
            "classification": self._classification(logits, share, member, weight, batch.labels)
        }
        if self.options.route and self.options.ood_weight:
            outside = routing.ood_loss(
                self.options.ood_loss, gates, member, logits, self.options.uniform_weight
            ).sum(1)
            if self.options.weighted_ood:
                outside = weighted(outside, weight, mean=self.options.weighted_mean)
            terms["ood"] = self.options.ood_weight * outside.mean()
        return terms

    def _classification(
        self, logits: Tensor, share: Tensor, member: Tensor, weight: Tensor, labels: Tensor
    ) -> Tensor:
        """Return L_cls of ``logits`` ``[B, K, C]``, a scalar.

        ``share`` ``[B, K]`` is alpha_k, ``member`` ``[B, K]`` b_k and ``weight`` ``[B]`` w_y.
        """
        mode, mean = self.options.group_mode, self.options.weighted_mean
        if mode == "masked":
            # the own class stays, so that an image of other classes has a finite loss, times 0
            own = torch.zeros_like(logits, dtype=torch.bool).scatter_(
                2, labels[:, None, None].expand(-1, logits.shape[1], 1), True
            )
            logits = logits.masked_fill(~(self.member | own), -torch.inf)
        each = torch.stack([self.criterion(part, labels) for part in logits.unbind(1)], 1)
        if mode == "soft":
            if self.options.detach_routing:
                share = share.detach()
            return weighted((share * each).sum(1), weight, mean=mean).mean()
        inside = member * (weight[:, None] if mean else 1.0)
        total = inside.sum(0) if mean else member.sum(0)
        scaled = each * member * weight[:, None]
        # an expert may have no image in a batch
        return (scaled.sum(0) / total.clamp(min=1e-12)).mean()

    def _routing(self, gates: Tensor) -> Tensor:
        """Return alpha_k ``[B, K]``: equal without routing and while it warms up."""
        if not self.options.route or (self.training and self.warming):
            return torch.full_like(gates, 1 / gates.shape[1])
        return routing.routing_weight(gates.sigmoid())

    def _fused(self, logits: Tensor, share: Tensor) -> Tensor:
        """Return scores ``[B, C]``; their softmax is the fused probability."""
        if self.options.fuse == "logits":
            return (share[:, :, None] * logits).sum(1)
        return routing.fused_log_probability(logits, share)

    @torch.no_grad()
    def _count(self, logits: Tensor, share: Tensor, labels: Tensor) -> None:
        """Add a batch's images, entropies of the fused prediction and right answers, by class."""
        scores = self._fused(logits, share)
        log_p = scores.log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1)
        right = (scores.argmax(1) == labels).to(entropy.dtype)
        self.sums.index_add_(1, labels, torch.stack([torch.ones_like(entropy), entropy, right]))

    def end_epoch(self, phase: Phase, validation: ImageSet | None, device: torch.device) -> None:
        """Update difficulty and weights from the epoch that is over (equations 1 and 2)."""
        super().end_epoch(phase, validation, device)
        if self.options.difficulty == "validation":
            if validation is None:
                raise ValueError(
                    "dqroute measures difficulty on a hold-out: set data.validation > 0, or "
                    "dqroute.options.difficulty to training"
                )
            self.sums.zero_()
            found = predict(self, self._parts, validation.images, device=device).to(device)
            logits, gates = found[..., :-1], found[..., -1]
            self._count(logits, self._routing(gates), validation.labels.to(device))
        self._update()

    def _parts(self, images: Tensor) -> Tensor:
        """Return the experts' logits and, last, their OOD heads', ``[B, K, C + 1]``."""
        features = self.net.features(images)
        return torch.cat([self.net.head(features), self.gates(features)], 2)

    @torch.no_grad()
    def _update(self) -> None:
        options = self.options
        images, entropy, right = self.sums
        for smooth, total in ((self.entropy, entropy), (self.accuracy, right)):
            # a class that the epoch did not show keeps what it had
            found = torch.where(images > 0, total / images.clamp(min=1), smooth)
            smooth.lerp_(found, 1 - options.smoothing)
        self.sums.zero_()
        if not self.warming:
            difficulty = routing.class_difficulty(self.entropy, self.accuracy, options.balance)
            self.log_weight.copy_(
                routing.updated_log_weight(self.log_weight, difficulty, options.gamma, options.keep)
            )

    def follow(self) -> dict[str, float]:
        """Return how many classes share the weight, and entropy and weight by group."""
        longtail, weight = self.card.longtail, self.class_weight()
        labels = torch.arange(longtail.classes, device=weight.device)
        found = {"effective_classes": float(routing.effective_classes(self.log_weight))}
        for name, values in (("weight", weight), ("entropy", self.entropy)):
            by = by_group(values, labels, longtail)
            found |= {f"{name}_{group}": value for group, value in by.items()}
        return {f"difficulty/{name}": value for name, value in found.items()}

    def series(self) -> dict[str, list[list[float]]]:
        """Return the class weights over the run, ``[S][C]``."""
        return {"class_weight": self.weight_history.tolist()}

    @classmethod
    def draw(cls, report: Mapping[str, Any], longtail: LongTail, title: str) -> dict[str, Figure]:
        """Return the pictures of class weights over training and of routing by group."""
        found = report["diagnostics"]
        shares = {name: found[f"routing_{name}"] for name in EXPERTS}
        return {
            "class_weights": class_weights(report["series"]["class_weight"], longtail, title),
            "routing": routing_by_group(shares, title),
        }

    def notes(self) -> list[str]:
        """Say which classes the experts have."""
        return [self.rule]

    def score(self, images: Tensor) -> Tensor:
        """Return the logarithm of equation 6, ``[B, C]``."""
        return self._scored(images)[0]

    def answer(self, images: Tensor) -> dict[str, Tensor]:
        """Return the fused ``probabilities`` ``[B, C]`` and alpha_k, ``routing`` ``[B, 3]``."""
        scores, share = self._scored(images)
        return {"probabilities": scores.softmax(1), "routing": share}

    def _scored(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net.features(images)
        share = self._routing(self.gates(features).squeeze(2).float())
        return self._fused(self.net.head(features).float(), share), share

    def diagnose(
        self, train: ImageSet, test: ImageSet, device: torch.device
    ) -> dict[str, dict[str, float]]:
        """Return by group of ``test``: mean routing weights, and what other fusions would get."""
        self.to(device)
        found = predict(self, self._parts, test.images, device=device)
        logits, gates = found[..., :-1], found[..., -1]
        share, longtail = self._routing(gates), self.card.longtail
        alike = torch.full_like(share, 1 / share.shape[1])
        rivals = {
            "accuracy_routed_probabilities": routing.fused_log_probability(logits, share),
            "accuracy_routed_logits": (share[:, :, None] * logits).sum(1),
            "accuracy_equal_probabilities": routing.fused_log_probability(logits, alike),
            **{f"accuracy_{name}": logits[:, k] for k, name in enumerate(EXPERTS)},
        }
        result = {
            f"routing_{name}": by_group(share[:, k], test.labels, longtail)
            for k, name in enumerate(EXPERTS)
        }
        for name, scores in rivals.items():
            right = (scores.argmax(1) == test.labels).double()
            result[name] = {
                **by_group(right, test.labels, longtail),
                "all": float(right.mean()),
            }
        return result

    def fold(self) -> None:
        """Drop the criterion and the statistics of the training."""
        super().fold()
        for name in ("log_weight", "entropy", "accuracy", "sums", "quantity", "weight_history"):
            delattr(self, name)
