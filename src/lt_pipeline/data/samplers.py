"""Samplers: which images an epoch sees, in which order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# (labels [N], generator on the CPU) -> positions of one epoch, int64
Sampler = Callable[[Tensor, torch.Generator], Tensor]


def instance_balanced(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return every position of ``labels`` ``[N]`` once, in random order."""
    return torch.randperm(len(labels), generator=generator)
