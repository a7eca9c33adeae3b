"""Low-rank decomposed layers: W = W^g + B A (MORE, equation 1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lt_pipeline.learning.schema import UserError

Layers = Literal["all", "convolutions", "linear"]
KINDS: dict[Layers, tuple[type[nn.Conv2d] | type[nn.Linear], ...]] = {
    "all": (nn.Conv2d, nn.Linear),
    "convolutions": (nn.Conv2d,),
    "linear": (nn.Linear,),
}


class LowRank(nn.Module):
    """Adds B A, reshaped to the kernel, to the weight W^g of a convolution or a linear layer.

    For a k x k kernel A is ``[r k, in k]`` and B is ``[out k, r k]``, as in LoRA's convolution; a
    linear layer is as one of k = 1.
    A starts Kaiming-uniform and B zero, so that the sum starts as W^g. B A has no scale factor:
    equation 1 has none.
    """

    def __init__(self, weight: Tensor, rank: int, groups: int) -> None:
        super().__init__()
        out, per_group, kernel, width = (*weight.shape, 1, 1)[:4]
        if kernel != width:
            raise UserError(f"low rank needs square kernels, but got {kernel} x {width}")
        self.down = nn.Parameter(weight.new_empty(rank * kernel, per_group * groups * kernel))
        self.up = nn.Parameter(weight.new_zeros(out // groups * kernel, rank * kernel))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.enabled = True

    def forward(self, weight: Tensor) -> Tensor:
        """Return W^g + B A, or W^g while disabled; both of the kernel's shape."""
        return weight + (self.up @ self.down).view(weight.shape) if self.enabled else weight


def add_low_rank(module: nn.Module, rank: float, layers: Layers = "convolutions") -> int:
    """Decompose those ``layers`` of ``module``; return how many parameters that adds.

    The rank of a layer is max(1, int(rank * min(in, out))) of its channels or features: the rule
    that gives the paper's parameter counts. Where there are groups it stays below out / groups, so
    that the product has no full rank; of a depthwise convolution it is 1.

    Raises:
        UserError: if ``rank`` is not a share, a kernel is not square, or the layers are decomposed
            already; ``module`` is then as it was.
    """
    if not 0 < rank < 1:
        raise UserError(f"rank must be > 0 and < 1, but got {rank}")
    chosen = [m for m in module.modules() if isinstance(m, KINDS[layers])]
    if any(parametrize.is_parametrized(m, "weight") for m in chosen):
        raise UserError("the layers are decomposed already; add low rank once")
    parts = [_low_rank(layer, rank) for layer in chosen]
    for layer, part in zip(chosen, parts, strict=True):
        parametrize.register_parametrization(layer, "weight", part)
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
    for layer in _decomposed(module):
        for part in layer.modules():
            if isinstance(part, LowRank):
                part.enabled = True
        own_class(layer)
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def freeze_general(module: nn.Module) -> None:
    """Take W^g of every decomposed layer out of training."""
    for layer in _decomposed(module):
        layer.get_parameter("parametrizations.weight.original").requires_grad_(False)


def low_rank_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield A and B of every decomposed layer, named as ``module`` names them."""
    for name, part in module.named_modules():
        if isinstance(part, LowRank):
            yield f"{name}.down", part.down
            yield f"{name}.up", part.up


def _decomposed(module: nn.Module) -> list[nn.Module]:
    return [
        m
        for m in module.modules()
        if isinstance(m, KINDS["all"]) and any(isinstance(part, LowRank) for part in m.modules())
    ]


def _low_rank(layer: nn.Conv2d | nn.Linear, rank: float) -> LowRank:
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    out, per_group = layer.weight.shape[:2]
    most = out // groups - 1  # equation 1's r < min(m, k): a group's own matrix has no more rows
    return LowRank(
        layer.weight, max(1, min(int(rank * min(out, per_group * groups)), most)), groups
    )


def own_class(layer: nn.Module) -> None:
    """Give ``layer`` a class of its own, before a parametrisation of it is removed.

    A deep copy shares the class that parametrize made for the original, and removing the
    parametrisation deletes ``weight`` from that class: copies would break.
    """
    shared = type(layer)
    layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
