"""An experiment: a configuration and the data it is on; its method at any point of its life."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file

from lt_pipeline.learning import methods
from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.device import choose_device
from lt_pipeline.learning.engine.features import FeatureCache, FeatureSet
from lt_pipeline.learning.engine.parallel import RANDOM, alone
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.models.backbones import width_of
from lt_pipeline.learning.models.merging import StateDict
from lt_pipeline.learning.models.network import frozen_backbone, on_features
from lt_pipeline.learning.models.weights import version_of
from lt_pipeline.learning.schema import MissingFileError, UserError

# where features are kept unless the environment says otherwise
FEATURES, FEATURES_OF = Path("data/04_feature"), "LT_PIPELINE_FEATURES"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "data_card.json"


class Sets(NamedTuple):
    """The images of an experiment; all but the training set and the test set may be empty."""

    train: Images
    validation: Images
    test: Images
    auxiliary: Images


@dataclass(frozen=True)
class Experiment:
    """What is trained, and what is known of the data that it is trained on."""

    config: ExperimentConfig
    card: DataCard

    @property
    def kind(self) -> type[Method]:
        """Return the method's class."""
        return methods.get(self.config.method)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Return the stages in an order in which they can run."""
        return self.kind.stages(self.config.options)

    @property
    def device(self) -> torch.device:
        """Return where it is computed."""
        return choose_device(self.config.device)

    @property
    def title(self) -> str:
        """Return what a picture of it is of."""
        return f"{self.config.method} on {self.card.config.title}"

    @property
    def on_features(self) -> bool:
        """Return whether the backbone is frozen, and its features are computed once."""
        return self.config.training.on_features

    def seen(self, data: Images, *, training: bool = False) -> Images:
        """Return ``data`` as the method sees them: as they are, or the frozen backbone's features.

        Those of a ``training`` set are of mirror images, too, where images are flipped.
        """
        if not self.on_features or not len(data) or isinstance(data, FeatureSet):
            return data
        model, flip = self.config.model, self.config.training.augment.flip
        width, known = width_of(model.backbone), f"{model.backbone} {version_of(model.weights)}"
        known += f" {model.resize}" if model.resize else ""
        folder = Path(os.environ.get(FEATURES_OF, FEATURES)) / model.backbone.replace("/", "_")
        cache = FeatureCache(folder / sha256(known.encode()).hexdigest()[:12], width)
        with alone(folder):
            return cache.of(data, self._extractor, mirrored=training and flip > 0)

    def _extractor(self) -> Callable[[torch.Tensor], torch.Tensor]:
        network, device = frozen_backbone(self.config.model).to(self.device), self.device

        @torch.no_grad()
        def extract(images: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = network(images.to(device))
            return features

        return extract

    def build(self, *, whole: bool = False) -> Method:
        """Return the method as it begins: equal seeds, equal weights.

        One that trains on features has no backbone, unless it is to be ``whole``.
        """
        model = self.config.model
        heads = self.on_features and not whole
        with RANDOM:
            torch.manual_seed(self.config.seed)
            return self.kind(self.config.options, on_features(model) if heads else model, self.card)

    def begun(self, stage: Stage, checkpoints: Mapping[str, StateDict]) -> Method:
        """Return the method as ``stage`` begins with it, behind those of ``checkpoints``."""
        # what begins anew in it is drawn behind what was built, by no other thread's seed
        with RANDOM:
            method = self.build()
            method.load_weights(stage, checkpoints)
        return method

    def deployed(self, method: Method) -> Method:
        """Return the folded ``method`` with the backbone whose features it was trained on."""
        if not self.on_features:
            return method
        whole = self.build(whole=True)
        whole.merge_for_inference()
        whole.load(method.state_dict())
        return whole

    def behind(self, checkpoint: StateDict, stage: str | None = None) -> Method:
        """Return the method as it is behind ``stage``, the last one unless told."""
        return self.begun(self.kind.END, {stage or self.stages[-1].name: checkpoint})

    def finished(self, weights: Mapping[str, torch.Tensor], *, whole: bool = False) -> Method:
        """Return the finished, folded method with its ``weights``, on the CPU.

        One that was trained on features takes those, or, ``whole``, images.

        Raises:
            UserError: if the weights are of another architecture.
        """
        method = self.build(whole=whole)
        method.merge_for_inference()
        if self.on_features and not whole:
            own = method.state_dict()
            weights = {name: value for name, value in weights.items() if name in own}
        try:
            method.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(
                f"the weights do not fit {self.config.method} with backbone "
                f"{self.config.model.backbone} ({str(error).splitlines()[1].strip()}); train again "
                f"with this configuration"
            ) from error
        return method.eval()


def load_finished(run: Path, data: Path) -> Method:
    """Return the finished, folded method of a run, on the CPU; ``method.net`` is the network.

    ``run`` is its folder of models, as ``data/06_models/digits/more``, and ``data`` that of what it
    was trained on, as ``data/03_primary/digits``.

    Raises:
        MissingFileError: naming the file that is not there.
        UserError: if the weights are of another architecture.
    """
    for path in (run / CONFIG, run / WEIGHTS, data / CARD):
        if not path.is_file():
            raise MissingFileError(f"there is no {path}: the run that makes it has not ended")
    config = ExperimentConfig.model_validate_json((run / CONFIG).read_bytes())
    card = TypeAdapter(DataCard).validate_json((data / CARD).read_bytes())
    return Experiment(config, card).finished(load_file(run / WEIGHTS), whole=True)
