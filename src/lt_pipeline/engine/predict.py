"""Scores of a whole set of images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lt_pipeline.data.images import ImageSet


@torch.no_grad()
def predict(
    module: nn.Module,
    score: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    device: torch.device,
    batch_size: int = 256,
) -> Tensor:
    """Return ``score`` of uint8 ``images`` ``[N, C, H, W]`` as float32 on the CPU, N first.

    ``module`` is what ``score`` computes with; it is put into evaluation mode.
    """
    module.eval()
    return torch.cat([score(part.to(device)).float().cpu() for part in images.split(batch_size)])


def accuracy(
    module: nn.Module, score: Callable[[Tensor], Tensor], data: ImageSet, *, device: torch.device
) -> float:
    """Return the share of ``data`` whose label has the highest score."""
    scores = predict(module, score, data.images, device=device)
    return float((scores.argmax(1) == data.labels.cpu()).double().mean())
