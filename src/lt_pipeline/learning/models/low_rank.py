"""Low-rank decomposed convolutions: W = W^g + B A (MORE, equation 1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lt_pipeline.learning.schema import UserError


class LowRank(nn.Module):
    """Adds B A, reshaped to the kernel, to a convolution's weight W^g.

    For a k x k kernel A is ``[r k, in k]`` and B is ``[out k, r k]``, as in LoRA's convolution.
    A starts Kaiming-uniform and B zero, so that the sum starts as W^g. B A has no scale factor:
    equation 1 has none.
    """

    def __init__(self, weight: Tensor, rank: int, groups: int) -> None:
        super().__init__()
        out, per_group, kernel, width = weight.shape
        if kernel != width:
            raise UserError(f"low rank needs square kernels, but got {kernel} x {width}")
        self.down = nn.Parameter(weight.new_empty(rank * kernel, per_group * groups * kernel))
        self.up = nn.Parameter(weight.new_zeros(out // groups * kernel, rank * kernel))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.enabled = True

    def forward(self, weight: Tensor) -> Tensor:
        """Return W^g + B A, or W^g while disabled; both of the kernel's shape."""
        return weight + (self.up @ self.down).view(weight.shape) if self.enabled else weight


def add_low_rank(module: nn.Module, rank: float) -> int:
    """Decompose every convolution of ``module``; return how many parameters that adds.

    The rank of a convolution is max(1, int(rank * min(in_channels, out_channels))): the rule that
    gives the paper's parameter counts.

    Raises:
        UserError: if ``rank`` is not a share, a kernel is not square, or the convolutions are
            decomposed already; ``module`` is then as it was.
    """
    if not 0 < rank < 1:
        raise UserError(f"rank must be > 0 and < 1, but got {rank}")
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    if any(parametrize.is_parametrized(m, "weight") for m in convolutions):
        raise UserError("the convolutions are decomposed already; add low rank once")
    parts = [_low_rank(convolution, rank) for convolution in convolutions]
    for convolution, part in zip(convolutions, parts, strict=True):
        parametrize.register_parametrization(convolution, "weight", part)
    return sum(part.down.numel() + part.up.numel() for part in parts)


@contextmanager
def general_weights(module: nn.Module) -> Iterator[None]:
    """Compute with W^g alone inside the block."""
    parts = [m for m in module.modules() if isinstance(m, LowRank)]
    before = [part.enabled for part in parts]
    try:
        for part in parts:
            part.enabled = False
        yield
    finally:
        for part, enabled in zip(parts, before, strict=True):
            part.enabled = enabled


def fold_low_rank(module: nn.Module) -> None:
    """Replace W^g by W^g + B A as a plain weight; the plain network's parameters remain.

    B A is added also inside ``general_weights``; deep copies of ``module`` stay decomposed.
    """
    for convolution in _decomposed(module):
        for part in convolution.modules():
            if isinstance(part, LowRank):
                part.enabled = True
        _own_class(convolution)
        parametrize.remove_parametrizations(convolution, "weight", leave_parametrized=True)


def freeze_general(module: nn.Module) -> None:
    """Take W^g of every decomposed convolution out of training."""
    for convolution in _decomposed(module):
        convolution.get_parameter("parametrizations.weight.original").requires_grad_(False)


def low_rank_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield A and B of every decomposed convolution, named as ``module`` names them."""
    for name, part in module.named_modules():
        if isinstance(part, LowRank):
            yield f"{name}.down", part.down
            yield f"{name}.up", part.up


def _decomposed(module: nn.Module) -> list[nn.Module]:
    return [
        m
        for m in module.modules()
        if isinstance(m, nn.Conv2d) and any(isinstance(part, LowRank) for part in m.modules())
    ]


def _low_rank(convolution: nn.Conv2d, rank: float) -> LowRank:
    smaller = min(convolution.in_channels, convolution.out_channels)
    return LowRank(convolution.weight, max(1, int(rank * smaller)), convolution.groups)


def _own_class(convolution: nn.Module) -> None:
    # A deep copy shares the class that parametrize made for the original, and removing the
    # parametrisation deletes ``weight`` from that class: without one of its own, folding a
    # network would break its copies.
    shared = type(convolution)
    convolution.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
