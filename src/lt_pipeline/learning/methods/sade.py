"""SADE: three experts for three class distributions, and their aggregation at test time.

Zhang et al., Self-supervised aggregation of diverse experts for test-agnostic long-tailed
recognition, NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)
from torch import Tensor

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images, fetch_parts
from lt_pipeline.learning.engine.features import FeatureSet
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.engine.protocol import Progress
from lt_pipeline.learning.evaluation.metrics.classification import confusion_matrix, report
from lt_pipeline.learning.losses import experts as losses
from lt_pipeline.learning.losses.criteria import CrossEntropyConfig
from lt_pipeline.learning.losses.functional import at_least_float32
from lt_pipeline.learning.methods.families.experts import ExpertMethod, ExpertOptions
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.schema import Config, UserError
from lt_pipeline.learning.transforms.augment import AugmentConfig, augment
from lt_pipeline.learning.transforms.views import ViewConfig, random_view

# The experts' losses, in order, and the names of their terms.
SKILLS = ("softmax", "balanced_softmax", "inverse_softmax")
# The logits of all experts, [B, K, C], for two views of a batch.
Views = tuple[Tensor, Tensor]


class AggregationConfig(Config):
    """How the experts' weights are learned on test images, without their labels.

    Attributes:
        epochs: passes over the test images; 0 leaves the experts alike.
        batch_size: images of a step.
        learning_rate: of SGD on the weights' logarithms: 0.1 on CIFAR, 0.025 on ImageNet-LT.
        momentum: Nesterov's.
        weight_decay: draws the weights towards equal ones.
        stop_below: no epoch follows one after which some weight is below this.
        seed: of the order of images and their augmentation.
        augment: crop and flip of the two views; it should be the training's.
        contrast: what is done to the views beyond that; null is nothing.
    """

    epochs: NonNegativeInt = 5
    batch_size: PositiveInt = 128
    learning_rate: PositiveFloat = 0.1
    momentum: float = Field(default=0.9, gt=0, lt=1)
    weight_decay: NonNegativeFloat = 5e-4
    stop_below: float = Field(default=0.05, ge=0, lt=1)
    seed: NonNegativeInt = 0
    augment: AugmentConfig = AugmentConfig()
    contrast: ViewConfig | None = None


class SadeOptions(ExpertOptions):
    """What SADE can be told.

    Attributes:
        criterion: fixed, but for a margin, which then stands in front of all three losses.
        experts: three, one a skill.
        tau: how far the third expert is pushed towards rare classes.
        aggregation: how the experts are weighted at test time.
    """

    symbols: ClassVar[Mapping[str, str]] = {"lambda": "tau"}

    criterion: CrossEntropyConfig = CrossEntropyConfig()
    experts: Literal[3] = 3
    tau: NonNegativeFloat = 2.0
    aggregation: AggregationConfig = AggregationConfig()

    def check_images(self, shape: tuple[int, int, int]) -> None:
        """Refuse images that the views at test time cannot be made of."""
        try:
            self.aggregation.augment.check(shape)
        except UserError as error:
            raise UserError(f"aggregation.augment.{error}") from None
        if self.aggregation.contrast is not None:
            self.aggregation.contrast.check(shape)

    @field_validator("experts", mode="before")
    @classmethod
    def _one_a_skill(cls, value: Any) -> Any:
        if value != len(SKILLS):
            raise UserError(
                f"SADE has {len(SKILLS)} experts, one each for {', '.join(SKILLS)}, but experts "
                f"is {value!r}"
            )
        return value


def learn_aggregation(
    passes: Callable[[], Iterable[Views]], experts: int, config: AggregationConfig
) -> Tensor:
    """Return weights of the experts, ``[K]``, positive with sum 1, that make predictions stable.

    ``passes`` gives the batches of a new epoch; what they are of needs no label. The weights are a
    softmax, start alike, and maximise the mean ``prediction_stability`` of two views.
    """
    raw = torch.zeros(experts, requires_grad=True)
    optimizer = torch.optim.SGD(
        [raw],
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=True,
    )
    for _ in range(config.epochs):
        for one, other in passes():
            weight = raw.softmax(0).to(one.device)
            loss = -losses.prediction_stability(one, other, weight).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if float(raw.detach().softmax(0).min()) < config.stop_below:
            break
    return raw.detach().softmax(0)


class SelfSupervisedAggregation(ExpertMethod):
    """Experts for the training distribution, a balanced one and a reversed one.

    Scores are the mean of the three. What the weights learned on the test images give is for
    ``diagnose``: it is transductive.
    """

    Options = SadeOptions
    options: SadeOptions

    def __init__(self, options: SadeOptions, model: ModelConfig, card: DataCard) -> None:
        super().__init__(options, model, card)
        shift = losses.skill_shift(card.longtail.prior, options.tau)
        self.register_buffer("skill_shift", shift.float())  # [3, C]
        self.skill_shift: Tensor

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the three experts' losses."""
        logits = at_least_float32(self.net(batch.images))  # [B, 3, C]
        margin = self.criterion.margin
        if margin is not None:
            labels = batch.labels.repeat_interleave(len(SKILLS))
            logits = margin(logits.flatten(0, 1), labels).view_as(logits)
        by_skill = losses.by_expert(logits + self.skill_shift, batch.labels).mean(0)
        return dict(zip(SKILLS, by_skill, strict=True))

    def diagnose(
        self, train: Images, test: Images, device: torch.device
    ) -> dict[str, dict[str, float]]:
        """Return the learned weights, and by group of ``test`` what they and each expert find.

        Features have no random views to learn weights from.
        """
        self.to(device)
        logits = predict(self, self.net, test, device=device)  # [N, 3, C]
        names = [f"expert {k + 1}" for k in range(len(SKILLS))]
        accuracies = {
            f"accuracy_{name.replace(' ', '_')}": self._accuracy(logits[:, k], test)
            for k, name in enumerate(names)
        }
        if isinstance(test, FeatureSet):
            return accuracies
        weight = self.aggregation_weight(test, device)
        return {
            "aggregation_weight": dict(zip(names, weight.tolist(), strict=True)),
            "aggregated_accuracy": self._accuracy((weight[:, None] * logits).sum(1), test),
            **accuracies,
        }

    def aggregation_weight(self, test: Images, device: torch.device) -> Tensor:
        """Return the experts' weights ``[3]`` for the images of ``test``."""
        config = self.options.aggregation
        config.augment.check(test.shape)
        order = torch.Generator().manual_seed(config.seed)
        draws = torch.Generator(device).manual_seed(config.seed)
        self.eval()

        def passes() -> Iterator[Views]:
            shuffled = torch.randperm(len(test), generator=order)
            for part in fetch_parts(test, shuffled, config.batch_size):
                batch = part.to(device)
                yield self._view_logits(batch, draws), self._view_logits(batch, draws)

        return learn_aggregation(passes, len(SKILLS), config)

    def merge_for_inference(self) -> None:
        """Drop the criterion and what is added to logits in training."""
        super().merge_for_inference()
        del self.skill_shift

    @torch.no_grad()
    def _view_logits(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the logits ``[B, 3, C]`` of a random view of uint8 ``images``."""
        config = self.options.aggregation
        view = augment(images, config.augment, generator)
        if config.contrast is not None:
            view = random_view(view, config.contrast, generator)
        logits: Tensor = self.net(view)
        return at_least_float32(logits)

    def _accuracy(self, scores: Tensor, test: Images) -> dict[str, float]:
        """Return the mean recalls by group and, as ``all``, the accuracy."""
        longtail = self.card.longtail
        metrics = report(confusion_matrix(scores, test.labels.cpu()), longtail)
        groups = {name: metrics[name] for name in longtail.groups if name in metrics}
        return {**groups, "all": metrics["accuracy"]}
