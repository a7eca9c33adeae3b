"""Methods that begin where another one ends: that one is trained first, as its own pipeline would.

``pretrain`` names it. Its stages are this method's first ones; afterwards it is folded, and what
is left is a network, ``net``, with a backbone and a head to go on with.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import SerializeAsAny, model_validator
from torch import Tensor, nn

from lt_pipeline.learning import methods
from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.phase import Phase, Stage
from lt_pipeline.learning.losses.criteria import Head
from lt_pipeline.learning.methods._base import Method, MethodOptions, Recipe
from lt_pipeline.learning.models.merging import StateDict
from lt_pipeline.learning.models.network import ModelConfig, Network
from lt_pipeline.learning.schema import UserError, one_line_errors
from lt_pipeline.learning.transforms.mix import MixConfig

FIRST = "pretrain"


class PretrainedOptions(MethodOptions):
    """What methods on top of another one can be told.

    Attributes:
        pretrain: the method that is trained first.
        pretrain_options: that method's options; they are its own block's in conf/ unless given.
    """

    pretrain: str = "ce"
    pretrain_options: SerializeAsAny[MethodOptions] = MethodOptions()

    @model_validator(mode="before")
    @classmethod
    def _typed(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name = values.get("pretrain", cls.model_fields["pretrain"].default)
        given = values.get("pretrain_options", {})
        try:
            kind = methods.get(name)
        except UserError as error:
            raise UserError(f"pretrain: {error}") from None
        if kind.finish is not Method.finish:
            raise UserError(
                f"pretrain: {name} replaces its classifier after training, and a second stage "
                f"would undo that: choose another method"
            )
        if not isinstance(given, MethodOptions):
            with one_line_errors("pretrain_options"):
                given = kind.Options.model_validate(given)
        return {**values, "pretrain": name, "pretrain_options": given}

    @property
    def handles_imbalance(self) -> bool:
        """Return true: it is what a second stage is for."""
        return True

    @property
    def built_on(self) -> tuple[str, ...]:
        """Return the methods that are trained first, from the outer to the inner one."""
        return (self.pretrain, *self.pretrain_options.built_on)

    @property
    def wants_validation(self) -> bool:
        """Return whether training needs a hold-out, in any stage."""
        return super().wants_validation or self.pretrain_options.wants_validation

    @property
    def wants_auxiliary(self) -> bool:
        """Return whether the method that is trained first needs images of no class."""
        return self.pretrain_options.wants_auxiliary

    @property
    def mixes(self) -> MixConfig | None:
        """Return how the method that is trained first mixes images."""
        return self.pretrain_options.mixes

    @property
    def variant_name(self) -> tuple[str, ...]:
        """Return what it stands on, where that is not the usual."""
        usual = type(self).model_fields["pretrain"].default
        return () if self.pretrain == usual else (f"on {self.pretrain}",)

    def check_head(self, cosine: bool) -> None:
        """Refuse a head that does not suit one of the stages.

        Raises:
            UserError: saying what would.
        """
        super().check_head(cosine)
        try:
            self.pretrain_options.check_head(cosine)
        except UserError as error:
            raise UserError(f"pretrain_options.{error}") from None

    @model_validator(mode="after")
    def _no_views(self) -> Self:
        if self.criterion.kind.views:
            raise UserError(
                f"criterion {self.criterion.name!r} contrasts views of images, and the second "
                f"stage has none: choose one that reads logits only"
            )
        return self


class Pretrained(Method):
    """A method on top of ``options.pretrain``, which is ``source``."""

    Options = PretrainedOptions
    options: PretrainedOptions

    def __init__(self, options: PretrainedOptions, model: ModelConfig, card: DataCard) -> None:
        nn.Module.__init__(self)
        self.options, self.model, self.card = options, model, card
        # first, so that it starts from the weights it would have by itself
        self.source = methods.get(options.pretrain)(options.pretrain_options, model, card)
        scale = model.scale if model.head == "cosine" else None
        self.criterion = options.criterion.build(card.longtail, Head(self.net.width, scale))
        # its stages by the names they have here, and those names by its own
        self.inner = self.source_stages(options)
        self.named = {stage.name: name for name, stage in self.inner.items()}
        self.source_phases: dict[str, Phase] = {}
        self.stage, self.folded = FIRST, False

    @property
    def net(self) -> Network:  # type: ignore[override]
        """Return the network that all stages train."""
        return self.source.net

    @classmethod
    def source_stages(cls, options: PretrainedOptions) -> dict[str, Stage]:
        """Return the stages of the method that is trained first, by the names they have here."""
        found = methods.get(options.pretrain).stages(options.pretrain_options)
        return {_renamed(stage.name, found): stage for stage in found}

    @classmethod
    def stages(cls, options: MethodOptions) -> tuple[Stage, ...]:
        """Return the stages of the method that is trained first."""
        own = _checked(options)
        inner = cls.source_stages(own)
        names = {stage.name: name for name, stage in inner.items()}
        return tuple(
            replace(stage, name=name, start=tuple(names[s] for s in stage.start))
            for name, stage in inner.items()
        )

    @classmethod
    def recipe(cls, stage: Stage, method: str, options: MethodOptions) -> Recipe:
        """Return, for the stages of the method that is trained first, that method's own."""
        own = _checked(options)
        inner = cls.source_stages(own)
        if stage.name not in inner:
            return super().recipe(stage, method, options)
        first = methods.get(own.pretrain)
        found = first.recipe(inner[stage.name], own.pretrain, own.pretrain_options)
        return found._replace(above=found.above + 1, whole=False)

    def phases(self, epochs: int) -> Sequence[Phase]:
        """Return the phases of the method that is trained first; ``epochs`` is its budget."""
        found = self.source.phases(epochs)
        self.source_phases = {self.named[phase.name]: phase for phase in found}
        return [
            replace(
                phase,
                name=name,
                trains=tuple(_within(scope) for scope in phase.trained),
                adapts=tuple(_within(scope) for scope in phase.adapts),
                rates={_within(scope): rate for scope, rate in phase.rates.items()},
            )
            for name, phase in self.source_phases.items()
        ]

    @property
    def pretraining(self) -> bool:
        """Return whether the stage at hand is one of the method that is trained first."""
        return self.stage in self.inner

    def no_weight_decay(self) -> Collection[str]:
        """Return what the method that is trained first says, while it is."""
        if not self.pretraining:
            return ()
        return [_within(name) for name in self.source.no_weight_decay()]

    def subsets(self, labels: Tensor, seed: int) -> dict[str, Tensor]:
        """Return those of the method that is trained first."""
        return {self.named[name]: p for name, p in self.source.subsets(labels, seed).items()}

    def start(self, stage: Stage, checkpoints: Mapping[str, StateDict]) -> None:
        """Take up the weights that ``stage`` starts from; behind the first stages, folded ones."""
        self.stage = stage.name
        if self.pretraining:
            given = {self.inner[name].name: _inner(state) for name, state in checkpoints.items()}
            self.source.start(self.inner[stage.name], given)
            return
        for name, state in list(checkpoints.items())[-1:]:
            if name in self.inner:
                # all else is as it was built: nothing of it was trained yet
                self.source.start(
                    Stage("finish", (self.inner[name].name,)),
                    {self.inner[name].name: _inner(state)},
                )
            self.fold_source()
            if name not in self.inner:
                self.take(name, state)

    def trained_by(self, name: str, state: StateDict) -> dict[str, Tensor]:
        """Return what of ``state`` the stage ``name`` and those before it trained.

        The rest is as it was built, maybe for other options of a later stage.
        """
        return {n: value for n, value in state.items() if n.startswith("source.")}

    def take(self, name: str, state: StateDict) -> None:
        """Load what the stage ``name`` and those before it trained."""
        self.load_state_dict({**self.state_dict(), **self.trained_by(name, state)})

    @torch.no_grad()
    def forget_factors(self) -> None:
        """Set the factors of logits to 1 that earlier stages learned."""
        for module in self.source.modules():
            factors = getattr(module, "scale", None)
            if isinstance(module, Pretrained) and isinstance(factors, nn.Parameter):
                factors.fill_(1)

    def step(
        self,
        stage: Stage,
        checkpoints: Mapping[str, StateDict],
        train: Images,
        device: torch.device,
    ) -> dict[str, Any]:
        """Do a step of the method that is trained first."""
        given = {self.inner[name].name: _inner(state) for name, state in checkpoints.items()}
        return self.source.step(self.inner[stage.name], given, train, device)

    def fold_source(self) -> None:
        """Fold the method that was trained first, once."""
        if not self.folded:
            self.source.fold()
            self.folded = True

    @property
    def views(self) -> int:
        """Return how many views the stage at hand asks for."""
        return self.source.views if self.pretraining else 0

    @property
    def needs_float32(self) -> bool:
        """Return what the method that is trained first says, while it is."""
        return self.pretraining and self.source.needs_float32

    def start_epoch(self, phase: Phase, epoch: int) -> None:
        """Change what changes between epochs of the stage at hand."""
        if self.pretraining:
            self.source.start_epoch(self.source_phases[phase.name], epoch)

    def end_epoch(self, phase: Phase, validation: Images | None, device: torch.device) -> None:
        """Learn from the epoch what the method that is trained first learns."""
        if self.pretraining:
            self.source.end_epoch(self.source_phases[phase.name], validation, device)

    def follow(self) -> dict[str, float]:
        """Return what is worth a curve while the first method is trained."""
        return self.source.follow() if self.pretraining else {}

    def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the terms of the method that is trained first."""
        return self.source.loss(batch, progress)

    def fold(self) -> None:
        """Drop what was for training only."""
        super().fold()
        self.fold_source()

    def features(self, images: Tensor) -> Tensor:
        """Return what the classifier sees of every image, ``[B, F]``."""
        return self.source.features(images)

    def class_centres(self) -> Tensor:
        """Return the classifier's weights, ``[C, F]``."""
        return self.source.class_centres()

    def classify(self, features: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of what ``net.features`` gives, ``[B, ...]``."""
        return self.source.classify(features)

    def score(self, images: Tensor) -> Tensor:
        """Return what ranks the classes of every image, ``[B, C]``."""
        if self.pretraining:
            return self.source.score(images)
        return super().score(images)


def _checked(options: MethodOptions) -> PretrainedOptions:
    if not isinstance(options, PretrainedOptions):
        raise TypeError(f"options must be PretrainedOptions, but are {type(options).__name__}")
    return options


def _renamed(name: str, stages: Sequence[Stage]) -> str:
    return FIRST if name == stages[0].name else f"{FIRST}_{name}"


def _within(scope: str) -> str:
    return f"source.{scope}" if scope else "source"


def _inner(state: StateDict) -> dict[str, Tensor]:
    return {n.removeprefix("source."): v for n, v in state.items() if n.startswith("source.")}
