"""The roles that a method has beside its objective: what scores, what is trained, what is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.losses.functional import at_least_float32
from lt_pipeline.learning.methods.families.options import MethodOptions
from lt_pipeline.learning.models.merging import StateDict
from lt_pipeline.learning.models.network import ModelConfig, Network


class Classifier(nn.Module):
    """A network and what it answers: all that judging and serving ask of a method."""

    net: Network

    def features(self, images: Tensor) -> Tensor:
        """Return what the classifier sees of every image, ``[B, F]``."""
        return self.net.features(images)

    def class_prototypes(self) -> Tensor:
        """Return the classifier's weights, ``[C, F]``, that features are near to or far from."""
        return self.net.prototypes

    def classify(self, features: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of what ``net.features`` gives, ``[B, ...]``.

        They are what energies are of, and what a change of the features is followed through.
        """
        logits: Tensor = self.net.head(features)
        return logits

    def score(self, images: Tensor) -> Tensor:
        """Return what ranks the classes of every image, ``[B, C]``: see ``probable``."""
        return self.classify(self.net.features(images))

    def probable(self, scores: Tensor) -> Tensor:
        """Return how probable each class is by its ``scores`` ``[B, C]``: of one label an image."""
        return scores.softmax(1)

    def predictions(self, images: Tensor) -> dict[str, Tensor]:
        """Return what the deployed model gives, each ``[B, ...]``: ``probabilities`` at least."""
        return {"probabilities": self.probable(self.score(images))}

    def ood_score(self, images: Tensor) -> Tensor:
        """Return how much every image looks like the training classes, ``[B]``; higher is more."""
        return self.probable(at_least_float32(self.score(images))).amax(1)


class Staged(Classifier):
    """The way to the finished model: stages, each from the checkpoints of earlier ones.

    All that training changes are parameters and buffers, so that ``state_dict`` is the whole
    checkpoint.
    """

    # as it is behind the last stage
    END: ClassVar[Stage] = Stage("finish")
    folded = False  # whether what was for training only is gone
    inner = False  # whether another method, which may still train the network, stands on it

    def __init__(self, options: MethodOptions, model: ModelConfig, card: DataCard) -> None:
        super().__init__()
        self.options, self.model, self.card = options, model, card

    def probable(self, scores: Tensor) -> Tensor:
        """Return how probable each class is, of several labels an image each by itself."""
        return scores.sigmoid() if self.card.longtail.several else super().probable(scores)

    @classmethod
    def stages(cls, options: Any) -> tuple[Stage, ...]:
        """Return the stages in an order in which they can run; the last gives the model.

        ``options`` are of the method's kind.
        """
        return (Stage("train"),)

    @classmethod
    def paths(cls, options: Any) -> tuple[tuple[str, str, int], ...]:
        """Return the pairs of stages to interpolate between, and at how many points."""
        return ()

    def load_weights(self, stage: Stage, checkpoints: Mapping[str, StateDict]) -> None:
        """Become what ``stage`` begins with: the last of ``checkpoints``, by stage, if any.

        Called once, before all else.
        """
        for before, state in list(self._decided(checkpoints))[-1:]:
            self._fold(before.folded)
            self.load(state)
        self._fold(stage.folded)
        if stage.anew:
            self._restart(stage.anew)

    def step(
        self,
        stage: Stage,
        checkpoints: Mapping[str, StateDict],
        train: Images,
        device: torch.device,
    ) -> dict[str, Any]:
        """Do ``stage``, which has no gradients, and return what it found, as plain values.

        Its function is given what the earlier stages decided, one state each, named as in the
        module whose function it is; ``train`` are the images that it sees.
        """
        self.load_weights(stage, {})
        home, _, function = stage.step.rpartition(".")
        states = [
            {name.removeprefix(f"{home}."): value for name, value in state.items()}
            for _, state in self._decided(checkpoints)
        ]
        values: dict[str, Any] = getattr(self.get_submodule(home), function)(states, train, device)
        return values

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up ``state``, which may be of some parts only."""
        self.load_state_dict({**self.state_dict(), **state})

    def merge_for_inference(self) -> None:
        """Drop what was for training only, once; ``score`` must not change."""
        self._fold(self.END.folded)
        self.folded = True

    def _decided(
        self, checkpoints: Mapping[str, StateDict]
    ) -> Iterator[tuple[Stage, dict[str, Tensor]]]:
        """Yield stages with what they and those before them decided of their checkpoints."""
        known = {stage.name: stage for stage in self.stages(self.options)}
        for name, state in checkpoints.items():
            stage = known[name]
            within = f"{stage.decides}." if stage.decides else ""
            yield stage, {n: v for n, v in state.items() if n.startswith(within)}

    @torch.no_grad()
    def _restart(self, names: Iterable[str]) -> None:
        fresh = type(self)(self.options, self.model, self.card)
        # by attribute, not by name in the state: a network may be reached in more ways than one
        for part, new in ((attrgetter(name)(self), attrgetter(name)(fresh)) for name in names):
            if isinstance(part, nn.Module):
                part.load_state_dict(new.state_dict())
            else:
                part.copy_(new)

    def _fold(self, names: Iterable[str]) -> None:
        for name in names:
            below = self.get_submodule(name)
            if isinstance(below, Staged) and not below.folded:
                below.merge_for_inference()


class Reported:
    """What is told of a method behind its last stage."""

    def post_process(
        self, train: Images, validation: Images, device: torch.device
    ) -> dict[str, Any]:
        """Do what follows the last stage, on top of its weights; return what it found.

        ``validation`` is the hold-out, which may be empty.
        """
        return {}

    def diagnose(
        self, train: Images, test: Images, device: torch.device
    ) -> dict[str, dict[str, float]]:
        """Return what the paper looks at before folding, as {what: {group: value}}."""
        return {}

    def training_curves(self) -> dict[str, list[list[float]]]:
        """Return what a picture needs of the training before folding, as plain lists."""
        return {}

    def notes(self) -> list[str]:
        """Return what a reader of the results must know of this run, a sentence each."""
        return []

    def remarks(self, diagnosed: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Return more notes: of what ``diagnose`` returned."""
        return []
