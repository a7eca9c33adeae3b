"""BatchNorm's running statistics: leave them alone for a pass, or estimate them anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lt_pipeline.learning.data.protocol import Pixels, fetch_parts
from lt_pipeline.learning.schema import UserError


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


class _Calls:
    """Stands for a layer's ``num_batches_tracked`` and counts what is added to it."""

    def __init__(self) -> None:
        self.count = 0

    def add_(self, more: int) -> None:
        self.count += more


@contextmanager
def batches_counted_at_once(module: nn.Module) -> Iterator[None]:
    """Count the batches of all BatchNorm layers behind the block, in one call for all.

    It gives the counts that they would have by themselves, each in a call of its own.
    """
    # a layer without momentum reads its count
    layers = [x for x in _layers(module) if x.momentum is not None and x.training]
    counts = [layer.num_batches_tracked for layer in layers]
    calls = [_Calls() for _ in layers]
    try:
        for layer, stand_in in zip(layers, calls, strict=True):
            layer._buffers["num_batches_tracked"] = stand_in  # type: ignore[assignment]
        yield
    finally:
        for layer, count in zip(layers, counts, strict=True):
            layer._buffers["num_batches_tracked"] = count
    by_number: dict[int, list[Tensor]] = {}
    for call, count in zip(calls, counts, strict=True):
        if call.count and count is not None:
            by_number.setdefault(call.count, []).append(count)
    for more, those in by_number.items():
        torch._foreach_add_(those, more)


@torch.no_grad()
def reestimate_batchnorm(
    module: nn.Module, images: Pixels | Tensor, *, device: torch.device, batch_size: int = 256
) -> None:
    """Set the running statistics to the mean over batches of ``images``; nothing else changes.

    ``images``, a set or ``[N, ...]``, are what ``module`` takes, in any order: they are shuffled,
    always in the same way. A set comes class by class, and a batch of few classes varies less than
    one of all. Batches are equally large, at most ``batch_size``. Dropout is off meanwhile, as it
    is where the statistics are used.

    Raises:
        UserError: if there is no image; the statistics are then as they were.
    """
    if not len(images):
        raise UserError("re-estimating BatchNorm needs at least one image, but got none")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    layers = _layers(module)
    with _estimating(module, layers):
        for layer in layers:
            layer.reset_running_stats()
        sizes = [len(part) for part in order.tensor_split(-(-len(order) // batch_size))]
        for part in fetch_parts(images, order, sizes):
            module(part.to(device))


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
