"""The one abstraction: a method answers, in the order of a model's life, what is special to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.phase import Phase, Stage
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.losses.config import CriterionConfig
from lt_pipeline.learning.losses.criteria import CrossEntropyConfig, Head, Outputs
from lt_pipeline.learning.losses.functional import at_least_float32
from lt_pipeline.learning.models.merging import StateDict
from lt_pipeline.learning.models.network import ModelConfig, Network, build_network
from lt_pipeline.learning.schema import Config, UserError
from lt_pipeline.learning.transforms.mix import MixConfig

# margins that are the same for every class
EVEN_MARGINS = ("sphereface", "cosface", "arcface")


class MethodOptions(Config):
    """What a method can be told; every method trains on some criterion."""

    criterion: CriterionConfig = CrossEntropyConfig()

    @property
    def wants_validation(self) -> bool:
        """Return whether training needs a hold-out."""
        return self.criterion.wants_validation

    def check_head(self, cosine: bool) -> None:
        """Refuse a head that does not suit.

        Raises:
            UserError: saying what would.
        """
        try:
            self.criterion.check_head(cosine)
        except UserError as error:
            raise UserError(f"criterion: {error}") from None

    def check_images(self, shape: tuple[int, int, int]) -> None:
        """Refuse images of ``(channels, height, width)`` that an option does not suit.

        Raises:
            UserError: naming the option.
        """

    @property
    def wants_auxiliary(self) -> bool:
        """Return whether training needs images of no class."""
        return False

    @property
    def handles_imbalance(self) -> bool:
        """Return whether a method of these options levels the classes by itself."""
        margin = self.criterion.margin
        plain = self.criterion.name == "cross_entropy"
        return not plain or (margin is not None and margin.name not in EVEN_MARGINS)

    @property
    def mixes(self) -> MixConfig | None:
        """Return how training mixes images, None where it does not."""
        return None

    @property
    def built_on(self) -> tuple[str, ...]:
        """Return the methods that this one trains first, from the outer to the inner one."""
        return ()

    @property
    def variant_name(self) -> tuple[str, ...]:
        """Return the name of the variant these options choose, for titles; mostly there is none."""
        return ()


class Recipe(NamedTuple):
    """What decides what a stage gives, beside the data and what all methods share.

    Attributes:
        method: that the stage is of.
        options: of that method.
        left_out: those of them that decide nothing of this stage, as dotted paths.
        above: how many methods stand on it: its network has other names further down.
        whole: no other configuration of the method that runs has the same.
    """

    method: str
    options: MethodOptions
    left_out: tuple[str, ...] = ()
    above: int = 0
    whole: bool = True


class Classifier(nn.Module):
    """A network and what it answers: all that judging and serving ask of a method."""

    net: Network

    def features(self, images: Tensor) -> Tensor:
        """Return what the classifier sees of every image, ``[B, F]``."""
        return self.net.features(images)

    def class_centres(self) -> Tensor:
        """Return the classifier's weights, ``[C, F]``, that features are near to or far from."""
        return self.net.centres

    def classify(self, features: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of what ``net.features`` gives, ``[B, ...]``.

        They are what energies are of, and what a change of the features is followed through.
        """
        logits: Tensor = self.net.head(features)
        return logits

    def score(self, images: Tensor) -> Tensor:
        """Return what ranks the classes of every image, ``[B, C]``; softmax makes it probable."""
        return self.classify(self.net.features(images))

    def answer(self, images: Tensor) -> dict[str, Tensor]:
        """Return what the deployed model gives, each ``[B, ...]``: ``probabilities`` at least."""
        return {"probabilities": self.score(images).softmax(1)}

    def ood_score(self, images: Tensor) -> Tensor:
        """Return how much every image looks like the training classes, ``[B]``; higher is more."""
        return at_least_float32(self.score(images)).softmax(1).amax(1)


class Method(Classifier):
    """A way to learn from long-tailed images: a network, its phases, its loss and its scores.

    Everything a subclass does not override is plain training of one network on
    ``options.criterion``. All that training changes are parameters and buffers, so that
    ``state_dict`` is the whole checkpoint. Images come in as uint8 ``[B, channels, H, W]``.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions

    def __init__(self, options: MethodOptions, model: ModelConfig, card: DataCard) -> None:
        super().__init__()
        self.options, self.model, self.card = options, model, card
        self.net = self.build()
        scale = model.scale if model.head == "cosine" else None
        self.criterion = options.criterion.build(card.longtail, Head(self.net.width, scale))

    def build(self) -> Network:
        """Return the network to train."""
        return build_network(
            self.model,
            classes=self.card.longtail.classes,
            channels=self.card.channels,
            mean=self.card.mean,
            std=self.card.std,
        )

    @classmethod
    def stages(cls, options: MethodOptions) -> tuple[Stage, ...]:
        """Return the stages in an order in which they can run; the last gives the model."""
        return (Stage("train"),)

    @classmethod
    def paths(cls, options: MethodOptions) -> tuple[tuple[str, str, int], ...]:
        """Return the pairs of stages to interpolate between, and at how many points."""
        return ()

    @classmethod
    def recipe(cls, stage: Stage, method: str, options: MethodOptions) -> Recipe:
        """Return what of the ``options`` of ``method`` decides what ``stage`` gives: all of them.

        ``method`` is the name that this class goes by.
        """
        return Recipe(method, options)

    def phases(self, epochs: int) -> Sequence[Phase]:
        """Return what gradients do, a phase for every stage that trains, named and ordered alike.

        ``epochs`` is the budget.
        """
        return [Phase("train", epochs)]

    def subsets(self, labels: Tensor, seed: int) -> dict[str, Tensor]:
        """Return the positions of training images that stages with a subset see, by stage.

        ``labels`` ``[N]`` are the training set's.
        """
        return {}

    def start(self, stage: Stage, checkpoints: Mapping[str, StateDict]) -> None:
        """Take up the weights that ``stage`` starts from, by stage: the last of them.

        Called once, before all else; without ``checkpoints`` the network is as it was built.
        """
        for state in list(checkpoints.values())[-1:]:
            self.load_state_dict(state)

    def step(
        self,
        stage: Stage,
        checkpoints: Mapping[str, StateDict],
        train: Images,
        device: torch.device,
    ) -> dict[str, Any]:
        """Do what a stage without gradients does, and return what it found, as plain values.

        ``train`` are the images that the stage sees.
        """
        raise NotImplementedError

    def no_weight_decay(self) -> Collection[str]:
        """Return the names of the parameters that weight decay leaves alone."""
        return ()

    @property
    def views(self) -> int:
        """Return how many contrastive views of every image a batch must bring."""
        return self.criterion.views

    @property
    def needs_float32(self) -> bool:
        """Return whether the loss at hand drowns in the rounding of bfloat16 and TF32.

        Training then computes it and its gradient in float32, whatever ``training.precision`` says.
        """
        return False

    def start_epoch(self, phase: Phase, epoch: int) -> None:
        """Change what changes between epochs; ``epoch`` counts from 0."""
        self.criterion.start_epoch(epoch, phase.epochs)

    def outputs(self, batch: Batch) -> Outputs:
        """Return the forward pass as the criterion asked for it.

        Images and views go through the network as one batch, so that BatchNorm normalises them
        alike.

        Raises:
            ValueError: if the batch has fewer views than the criterion needs.
        """
        if not self.criterion.needs_features:
            return Outputs(self.net(batch.images))
        if len(batch.views) < self.views:
            raise ValueError(
                f"the criterion {self.options.criterion.name!r} needs {self.views} views of every "
                f"image, but the batch has {len(batch.views)}"
            )
        images = len(batch.images)
        features = self.net.features(torch.cat([batch.images, *batch.views[: self.views]]))
        by_view = features.view(1 + self.views, images, -1)
        return Outputs(self.net.head(by_view[0]), by_view, self.net.centres)

    def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return named terms; their sum is minimised and each is logged.

        ``progress`` is the share of the phase's steps that are done after this one, in (0, 1].
        """
        return self.criterion.terms(self.outputs(batch), batch.labels)

    def end_epoch(self, phase: Phase, validation: Images | None, device: torch.device) -> None:
        """Learn from the epoch that is over; ``validation`` is the hold-out, if there is one.

        Raises:
            UserError: if the criterion needs a hold-out and there is none.
        """
        if self.options.criterion.wants_validation:
            self._show_hold_out(validation, device)
        self.criterion.end_epoch()

    def _show_hold_out(self, validation: Images | None, device: torch.device) -> None:
        if validation is None:
            raise UserError(
                f"the criterion {self.options.criterion.name!r} measures difficulty on a hold-out: "
                f"set data.validation > 0, or its difficulty to training"
            )
        scores = predict(self, self.score, validation, device=device)
        self.criterion.observe(scores, validation.labels.cpu())

    def follow(self) -> dict[str, float]:
        """Return what else is worth a curve over the epochs, by name."""
        return self.criterion.follow()

    def finish(self, train: Images, validation: Images, device: torch.device) -> dict[str, Any]:
        """Do what follows the last stage, on top of its weights; return what it found.

        ``validation`` is the hold-out, which may be empty.
        """
        return {}

    def diagnose(
        self, train: Images, test: Images, device: torch.device
    ) -> dict[str, dict[str, float]]:
        """Return what the paper looks at before folding, as {what: {group: value}}."""
        return {}

    def series(self) -> dict[str, list[list[float]]]:
        """Return what a picture needs of the training before folding, as plain lists."""
        return {}

    def notes(self) -> list[str]:
        """Return what a reader of the results must know of this run, a sentence each."""
        return self.criterion.notes()

    def remarks(self, diagnosed: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Return more notes: of what ``diagnose`` returned."""
        return []

    def fold(self) -> None:
        """Drop what was for training only; ``score`` must not change."""
        del self.criterion
