"""RIDE: experts that differ, and a router that asks for more of them.

Wang et al., Long-tailed recognition by routing diverse distribution-aware experts, ICLR 2021. Where
the released code differs from the paper, docs/methods/experts.md says which is which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.data.samplers import SamplerConfig
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.engine.protocol import Progress
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.evaluation.diagnostics.logit_shift import by_group_and_all
from lt_pipeline.learning.losses import experts as losses
from lt_pipeline.learning.losses.config import CriterionConfig
from lt_pipeline.learning.losses.criteria import ClassBalancedConfig, Outputs
from lt_pipeline.learning.losses.functional import at_least_float32
from lt_pipeline.learning.losses.margins import LdamConfig
from lt_pipeline.learning.methods.families.base import Part
from lt_pipeline.learning.methods.families.experts import ExpertMethod, ExpertOptions
from lt_pipeline.learning.models.network import ModelConfig


class RideOptions(ExpertOptions):
    """What RIDE can be told.

    Attributes:
        criterion: every expert's own classification loss; the sum over the experts is minimised.
        diversity: lambda, the weight of the diversity loss; 0.2 is the released code's default,
            0.45 its value for CIFAR-100, 0 drops it.
        diversity_target: what an expert is to differ from: the ``mean`` of all, as in the released
            code, or each of the ``others``, as in the paper.
        temperature: alpha, the largest class's temperature.
        temperature_gamma: gamma, how much rarer classes' temperatures are below it.
        temperature_rule: ``ratio`` is the released code's, ``shift`` the paper's.
        temperature_start: share of the epochs before which all classes have temperature alpha.
        route: score by the experts that the router asks for; false is the mean of all. The router
            is trained in both cases.
        router_share: epochs of the router's stage as a share of the training's; at least one.
        router_sampler: which images that stage sees.
        router_weight: omega_on, the weight of images that need another expert.
        router_hidden: features of each of the router's hidden layers.
        router_logits: how many of the largest logits it sees.
    """

    symbols: ClassVar[Mapping[str, str]] = {
        "K": "experts",
        "lambda": "diversity",
        "alpha": "temperature",
        "gamma": "temperature_gamma",
        "omega_on": "router_weight",
    }

    criterion: CriterionConfig = ClassBalancedConfig(start=0.8, margin=LdamConfig())
    diversity: NonNegativeFloat = 0.2
    diversity_target: losses.DiversityTarget = "mean"
    temperature: PositiveFloat = 1.0
    temperature_gamma: float = Field(default=0.05, ge=0, le=1)
    temperature_rule: losses.TemperatureRule = "ratio"
    temperature_start: float = Field(default=0.8, ge=0, lt=1)
    route: bool = False
    router_share: float = Field(default=0.1, gt=0, le=1)
    router_sampler: SamplerConfig = SamplerConfig(name="class_balanced")
    router_weight: PositiveFloat = 100.0
    router_hidden: int = Field(default=16, ge=1, le=65_536)
    router_logits: PositiveInt = 30


class Router(nn.Module):
    """Says, after each expert but the last, whether an image needs the next one.

    It sees the expert's features, of unit length, through a hidden layer of its own, and the
    largest of the mean logits so far; the output layer is shared. Logits of a cosine head are
    divided by its ``scale``: inputs near 1 train at the rate that the network trains at.
    """

    def __init__(
        self, experts: int, features: int, hidden: int, logits: int, scale: float | None
    ) -> None:
        super().__init__()
        self.logits, self.scale = logits, scale or 1.0
        self.hidden = nn.ModuleList(nn.Linear(features, hidden) for _ in range(experts - 1))
        self.output = nn.Linear(hidden + logits, 1)

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Return the gates ``[B, K - 1]``; above 0 means that the next expert is needed.

        ``features`` are ``[B, K, F]``, ``logits`` ``[B, K, C]``.
        """
        unit = F.normalize(at_least_float32(features), dim=2)
        seen = torch.stack([F.relu(layer(unit[:, k])) for k, layer in enumerate(self.hidden)], 1)
        so_far = losses.running_mean(at_least_float32(logits))[:, :-1] / self.scale
        largest = so_far.topk(self.logits, dim=2).values  # [B, K - 1, L]
        gates: Tensor = self.output(torch.cat([largest, seen], 2))
        return at_least_float32(gates.squeeze(2))


class RoutingDiverseExperts(ExpertMethod):
    """Experts with a loss each, pushed apart; then a router trained on them, all else frozen."""

    Options = RideOptions
    options: RideOptions

    def __init__(self, options: RideOptions, model: ModelConfig, card: DataCard) -> None:
        super().__init__(options, model, card)
        longtail = card.longtail
        temperature = losses.class_temperature(
            longtail.counts,
            options.temperature,
            options.temperature_gamma,
            options.temperature_rule,
        )
        self.register_buffer("class_temperature", temperature.float())
        self.class_temperature: Tensor
        self.tempered = options.temperature_start == 0
        self.router = Router(
            options.experts,
            self.net.width,
            options.router_hidden,
            min(options.router_logits, longtail.classes),
            model.scale if model.head == "cosine" else None,
        )

    @classmethod
    def stages(cls, options: RideOptions) -> tuple[Stage, ...]:
        """Return the experts' training, of the whole budget, and the router's behind it."""
        router = Stage(
            "router",
            ("train",),
            sampler=options.router_sampler.build(),
            trainable=("router",),
            fraction=options.router_share,
            objective="routing",
        )
        return (Stage("train"), router)

    @property
    def routing(self) -> Routing:
        """Return the router's objective."""
        return Routing(self)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Leave the router out, and temper from where that starts."""
        super().start_epoch(epoch, epochs)
        self.tempered = epoch / epochs >= self.options.temperature_start
        self.router.requires_grad_(False).eval()

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the experts' terms."""
        return self._expert_terms(self.features_and_logits(batch.images)[1], batch.labels)

    def classify(self, features: Tensor) -> Tensor:
        """Return the mean logits, ``[B, C]``, of all experts or, with ``route``, of those asked."""
        if not self.options.route:
            return super().classify(features)
        logits = at_least_float32(self.net.head(features))
        return losses.routed(logits, self.router(features, logits))

    def predictions(self, images: Tensor) -> dict[str, Tensor]:
        """Return probabilities and, where the router is deployed, how many experts were used."""
        if not self.options.route:
            return super().predictions(images)
        features, logits = self.features_and_logits(images)
        gates = self.router(features, logits)
        probabilities = losses.routed(logits, gates).softmax(1)
        return {"probabilities": probabilities, "experts_used": losses.experts_used(gates)}

    def notes(self) -> list[str]:
        """Say that routing here is a measure and no saving."""
        return [
            *super().notes(),
            "RIDE's experts are computed as one batch: experts_used counts what an image would "
            "need, and routing itself saves no time",
        ]

    def diagnose(
        self, train: Images, test: Images, device: torch.device
    ) -> dict[str, dict[str, float]]:
        """Return by group of ``test``: experts used, and what is right with and without routing."""
        self.to(device)
        outputs = predict(self, self._parts, test, device=device)
        classes = self.card.longtail.classes
        logits, gates = outputs[..., :classes], outputs[:, :-1, classes]
        values = {
            "experts_used": losses.experts_used(gates),
            "accuracy_routed": losses.routed(logits, gates).argmax(1) == test.labels.cpu(),
            "accuracy_mean": logits.mean(1).argmax(1) == test.labels.cpu(),
        }
        return {name: self._by_group(value, test) for name, value in values.items()}

    def merge_for_inference(self) -> None:
        """Drop the criterion, the temperatures and, unless it has a say, the router."""
        super().merge_for_inference()
        del self.class_temperature
        if not self.options.route:
            del self.router

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features ``[B, K, F]`` and logits ``[B, K, C]``."""
        features = self.net.features(images)
        return features, at_least_float32(self.net.head(features))

    def _expert_terms(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the sum over the experts of their criterion and of minus lambda the diversity."""
        experts = self.options.experts
        flat = Outputs(logits.flatten(0, 1))
        terms = self.criterion.terms(flat, labels.repeat_interleave(experts))
        terms = {name: experts * value for name, value in terms.items()}
        if self.options.diversity:
            flat_temperature = torch.full_like(self.class_temperature, self.options.temperature)
            temperature = self.class_temperature if self.tempered else flat_temperature
            apart = losses.diversity(logits, temperature, self.options.diversity_target)
            terms["diversity"] = -self.options.diversity * apart.sum(1).mean()
        return terms

    def _parts(self, images: Tensor) -> Tensor:
        """Return every expert's logits and, last, its gate, ``[B, K, C + 1]``; the last has 0."""
        features, logits = self.features_and_logits(images)
        gates = F.pad(self.router(features, logits), (0, 1))
        return torch.cat([logits, gates[:, :, None]], 2)

    def _by_group(self, values: Tensor, test: Images) -> dict[str, float]:
        return by_group_and_all(values, test.labels.cpu(), self.card.longtail)


class Routing(Part):
    """What the router learns: which images need more experts; nothing else changes."""

    method: RoutingDiverseExperts

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the router's loss, whose gradient stops at what it sees of the experts."""
        features, logits = (part.detach() for part in self.method.features_and_logits(batch.images))
        gates = self.method.router(features, logits)
        needed = losses.needs_more(logits, batch.labels)
        loss = losses.routing_loss(gates, needed, self.method.options.router_weight)
        return {"routing": loss.mean()}

    def epoch_metrics(self) -> dict[str, float]:
        """Return what the method follows."""
        return self.method.epoch_metrics()
