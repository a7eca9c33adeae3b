"""NCM (Kang et al., ICLR 2020): the nearest class mean in place of the classifier."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.losses.criteria import CrossEntropyConfig
from lt_pipeline.learning.methods.families.pretrained import Pretrained, PretrainedOptions
from lt_pipeline.learning.models.heads import l2_normalize
from lt_pipeline.learning.models.network import ModelConfig


class NcmOptions(PretrainedOptions):
    """What NCM can be told.

    Attributes:
        criterion: fixed; nothing is trained behind the first stage.
        scale: factor of the cosines; it decides how sure probabilities are and no class.
    """

    criterion: CrossEntropyConfig = CrossEntropyConfig()
    scale: PositiveFloat = 16.0


class NearestClassMean(Pretrained):
    """Plain training, then the cosine of an image's features and each class's mean features."""

    Options = NcmOptions
    options: NcmOptions
    one_label = "the class of the nearest mean is one"

    def __init__(self, options: NcmOptions, model: ModelConfig, card: DataCard) -> None:
        super().__init__(options, model, card)
        self.register_buffer("means", torch.zeros_like(self.source.class_prototypes()))
        self.means: Tensor

    @torch.no_grad()
    def post_process(
        self, train: Images, validation: Images, device: torch.device
    ) -> dict[str, Any]:
        """Take the means ``[C, F]`` of the training images' features, BatchNorm in eval mode."""
        self.to(device)
        features = predict(self, self.features, train, device=device).double()
        total = features.new_zeros(self.means.shape).index_add_(0, train.labels, features)
        count = torch.bincount(train.labels, minlength=len(total)).clamp(min=1)
        self.means.copy_(total / count[:, None])
        return {}

    def class_prototypes(self) -> Tensor:
        """Return the classes' mean features, ``[C, F]``."""
        return self.means

    def classify(self, features: Tensor) -> Tensor:
        """Return scaled cosines ``[B, C]`` of features ``[B, F]`` or, of experts, ``[B, K, F]``."""
        return self.options.scale * F.linear(
            l2_normalize(l2_normalize(features).flatten(1)), l2_normalize(self.means)
        )
