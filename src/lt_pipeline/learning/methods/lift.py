"""LIFT (Shi et al., Long-tail learning with foundation model: heavy fine-tuning hurts, ICML 2024).

A frozen backbone with small modules that learn (``model.adapter``), a cosine classifier that starts
at what the classes look like before any training, logit adjustment, and scores that are means over
crops. LIFT+ (Shi et al., arXiv 2504.13282, 2025) is the same with other epochs and rates.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.losses.config import CriterionConfig
from lt_pipeline.learning.losses.criteria import LogitAdjustmentConfig
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.methods.families.options import MethodOptions
from lt_pipeline.learning.models.backbones import Features
from lt_pipeline.learning.models.heads import l2_normalize
from lt_pipeline.learning.models.network import Network, parameter_count
from lt_pipeline.learning.models.weights import NONE
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.transforms.resize import resized


class LiftOptions(MethodOptions):
    """What LIFT can be told; what learns in the backbone is ``model.adapter``'s to say.

    Attributes:
        criterion: that is trained on.
        start: where the classifier begins: at the ``class_means`` of what the backbone makes of the
            training images, or as ``model.head_init`` has it (``as_built``).
        crops: that scores are the mean over, four corners and the middle of the image enlarged by
            ``expand``; 1 is the image as it is.
        expand: how much wider and higher that is, as a share: 24 of 224 pixels.
    """

    criterion: CriterionConfig = LogitAdjustmentConfig()
    start: Literal["class_means", "as_built"] = "class_means"
    crops: Literal[1, 5] = 5
    expand: float = Field(default=0.107, gt=0, le=1)

    def check_head(self, cosine: bool) -> None:
        """Refuse class means for a linear head, which they are no start for.

        Raises:
            UserError: saying what would do.
        """
        super().check_head(cosine)
        if self.start == "class_means" and not cosine:
            raise UserError(
                "start is class_means, which a cosine head starts at: set model.head to cosine, or "
                "start to as_built"
            )


class Lift(Method):
    """Adapters and a classifier that starts at the class means, scored over crops."""

    Options = LiftOptions
    options: LiftOptions
    one_label = ""

    @classmethod
    def stages(cls, options: LiftOptions) -> tuple[Stage, ...]:
        """Return the training and, in front of it, where the classifier is told to start."""
        if options.start == "as_built":
            return (Stage("train"),)
        return (Stage("class_means", step="start_classifier"), Stage("train", ("class_means",)))

    def build(self) -> Network:
        """Return the network.

        Raises:
            UserError: if it is one of features, which have no crops.
        """
        net = super().build()
        if self.options.crops > 1 and isinstance(net.backbone, Features):
            raise UserError(
                "features have no crops: set options.crops to 1, or training.features to none"
            )
        return net

    @torch.no_grad()
    def start_classifier(
        self, states: list[dict[str, Tensor]], train: Images, device: torch.device
    ) -> dict[str, Any]:
        """Set each class's weights to the direction of the mean features of its images."""
        features = predict(self.to(device), self.net.features, train, device=device).double()
        labels = train.labels.cpu()
        has = (
            labels
            if labels.ndim == 2
            else labels[:, None] == torch.arange(len(self.net.prototypes))
        )
        total = has.double().T @ features
        self.net.prototypes.copy_(l2_normalize(total / has.sum(0).clamp(min=1)[:, None]))
        return {"images": has.sum(0).tolist()}

    def score(self, images: Tensor) -> Tensor:
        """Return the mean logits ``[B, C]`` over the crops."""
        if self.options.crops == 1:
            return super().score(images)
        # torchvision takes a second to import, which every start would wait for
        from torchvision.transforms.functional import five_crop

        size = self.model.resize or images.shape[2]
        wider = size + max(1, round(self.options.expand * size))
        crops = five_crop(resized(images.float(), wider), [size, size])
        return torch.stack([super(Lift, self).score(crop) for crop in crops]).mean(0)

    def notes(self) -> list[str]:
        """Say how much learns, and of what the rest is frozen."""
        still = sum(parameter.numel() for parameter in self.net.kept.values())
        whole = parameter_count(self.net)
        notes = [*super().notes(), f"{whole - still:,} of {whole:,} parameters learn"]
        if still and self.model.weights == NONE:
            notes.append("model.weights is none: what is frozen is random")
        return notes
