"""Classifier heads: features to logits."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lt_pipeline.learning.schema import UserError, unknown

HEADS = ("linear", "cosine")
HeadInit = Literal["uniform", "kaiming", "text"]


class CosineHead(nn.Module):
    """Logits s * cos(features, w_c); no bias.

    The weights start at unit length: only their direction counts, but their length decides how
    far a step turns them.
    """

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        start = torch.empty(classes, features).uniform_(-1, 1)
        self.weight = nn.Parameter(F.normalize(start, dim=1))

    def cosines(self, features: Tensor) -> Tensor:
        """Return cos(features, w_c), ``[B, C]``, in float32 also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(l2_normalize(features), l2_normalize(self.weight))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of ``features`` ``[B, F]``."""
        return self.scale * self.cosines(features)


class TextHead(nn.Module):
    """Logits s * cos(features, t_c) + b, of class embeddings t_c that do not learn, as CLIP's.

    All of it are buffers; b is 0 for CLIP itself.
    """

    def __init__(self, embeddings: Tensor, scale: float, bias: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("weight", l2_normalize(embeddings))
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("bias", torch.tensor(bias))
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of ``features`` ``[B, F]``, in float32 also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            cosines = F.linear(l2_normalize(features), l2_normalize(self.weight))
        return self.scale * cosines + self.bias


def build_head(
    name: str, features: int, classes: int, scale: float, init: HeadInit = "uniform"
) -> nn.Module:
    """Return the head ``name``; ``scale`` is the cosine head's s, ``init`` the linear one's start.

    Raises:
        UserError: for a name that is not in ``HEADS``.
    """
    if name == "linear":
        head = nn.Linear(features, classes)
        if init == "kaiming":
            start_kaiming(head.weight)
        return head
    if name == "cosine":
        return CosineHead(features, classes, scale)
    raise UserError(unknown("head", name, HEADS))


def start_kaiming(weight: Tensor) -> None:
    """Draw a linear head's ``weight`` ``[..., C, F]`` from N(0, 2 / F) (He et al., ICCV 2015).

    As the released codes of LDAM's family. Its deviation is sqrt(6) = 2.4 times that of
    ``nn.Linear``'s own start, which is uniform in [-F^(-1/2), F^(-1/2)].
    """
    nn.init.normal_(weight, std=math.sqrt(2 / weight.shape[-1]))


def l2_normalize(x: Tensor) -> Tensor:
    """Return the vectors ``x`` ``[..., F]`` at unit length, in at least float32."""
    x = x if x.dtype == torch.float64 else x.float()
    # The gradient at the origin is 1 / eps: a smaller one would overflow.
    return F.normalize(x, dim=-1, eps=torch.finfo(x.dtype).eps)
