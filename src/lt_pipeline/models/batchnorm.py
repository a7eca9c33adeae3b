"""BatchNorm's running statistics: leave them alone for a pass, or estimate them anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen_batchnorm_statistics(module: nn.Module) -> Iterator[None]:
    """Normalise by the batch inside the block, without touching the running statistics."""
    layers = _layers(module)
    before = [layer.track_running_stats for layer in layers]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer, tracked in zip(layers, before, strict=True):
            layer.track_running_stats = tracked


@torch.no_grad()
def reestimate_batchnorm(
    module: nn.Module,
    batches: Iterable[Tensor],
    forward: Callable[[Tensor], object] | None = None,
) -> None:
    """Set the running statistics to the mean over ``batches`` of images; nothing else changes.

    ``forward`` is what is computed on a batch, ``module`` itself unless told. Every batch weighs
    the same, whatever its size. Dropout is off meanwhile, as it is where the statistics are used.

    Raises:
        ValueError: if there is no batch; the statistics are then as they were.
    """
    compute = module if forward is None else forward
    layers = _layers(module)
    count = 0
    with _estimating(module, layers):
        for count, images in enumerate(batches, start=1):
            if count == 1:
                for layer in layers:
                    layer.reset_running_stats()
            compute(images)
    if not count:
        raise ValueError("re-estimating BatchNorm needs at least one batch, but got none")


@contextmanager
def _estimating(module: nn.Module, layers: list[_BatchNorm]) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    momenta = [layer.momentum for layer in layers]
    try:
        module.eval()
        for layer in layers:
            layer.train()
            layer.momentum = None  # the cumulative mean
        yield
    finally:
        for m, training in modes:
            m.training = training
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _layers(module: nn.Module) -> list[_BatchNorm]:
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]
